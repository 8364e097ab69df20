"""The network that judges and embeds events (benchmarks): its windows, its events, its loss, its clusters."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from arrays import ArrayTraces

from spikewise.discovery import discover
from spikewise.discovery.held_traces import UNIT, HeldTraces
from spikewise.discovery.spike_shapes import load_shapes

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
judging = importlib.import_module("event_network.judging")
networks = importlib.import_module("event_network.network")
simulated = importlib.import_module("event_network.simulated")
training = importlib.import_module("event_network.training")

POSITIONS = np.column_stack([np.zeros(5), 20.0 * np.arange(5)])


@pytest.fixture
def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return networks.EventNetwork().eval()


def waves(times, rate):
    """Smooth traces (samples, 5 channels) at times in samples of a rate, of frequencies up to 3000 Hz."""
    seconds = np.asarray(times)[:, None] / rate
    tones = np.array([600.0, 1100.0, 1600.0, 2100.0, 2600.0])
    return 5 * np.sin(2 * np.pi * tones * seconds + np.arange(5)) * np.cos(2 * np.pi * 400 * seconds)


def held(traces, rate):
    return HeldTraces(ArrayTraces(traces, sampling_frequency=rate))


def column_of(traces, sample):
    """Column of a sample of the recording."""
    frames, inside = traces.frames_of(np.arange(traces.num_columns))
    return int(np.flatnonzero(inside & (frames == sample))[0])


def test_judged_events_are_those_of_the_network_on_their_windows(network):
    traces = held(np.random.default_rng(0).normal(size=(2000, 5)), networks.RATE)
    judge = judging.EventJudge(network, POSITIONS)
    columns = np.array([column_of(traces, sample) for sample in (300, 900, 1500)])
    channels = np.array([0, 2, 4])
    probability, embedded = judge(traces, columns.astype(float), channels)
    for index, (column, channel) in enumerate(zip(columns, channels, strict=True)):
        near = [c for c in np.argsort(abs(np.arange(5) - channel), kind="stable") if abs(c - channel) <= 3]
        window = traces.values[near, column - networks.BEFORE : column - networks.BEFORE + networks.LENGTH]
        offsets = torch.tensor(POSITIONS[near] - POSITIONS[channel], dtype=torch.float32)
        with torch.no_grad():
            weights = network.weights_of(offsets, torch.ones(len(near)))
            logit, expected = network(torch.tensor(window * UNIT, dtype=torch.float32)[None], weights[None])
        assert probability[index] == pytest.approx(torch.sigmoid(logit).item(), abs=1e-5)
        assert np.allclose(embedded[index], expected[0].numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("rate", "shift"), [(32000.0, 0.25), (32000.0, 0.75), (30000.0, 0.0), (25000.0, 0.5)]
)
def test_an_event_looks_the_same_between_samples_and_at_other_rates(network, rate, shift):
    judge = judging.EventJudge(network, POSITIONS)
    reference = held(waves(np.arange(-600, 600), networks.RATE), networks.RATE)
    expected = judge(reference, np.array([float(column_of(reference, 600))]), np.array([2]))
    other = held(waves(np.arange(-600, 600) - shift, rate), rate)
    found = judge(other, np.array([column_of(other, 600) + shift]), np.array([2]))
    unshifted = judge(other, np.array([column_of(other, 603) + shift]), np.array([2]))
    assert found[0] == pytest.approx(expected[0], abs=0.02)
    assert np.abs(found[1] - expected[1]).max() < 0.1 * np.abs(unshifted[1] - expected[1]).max()


def place_of(num_units):
    """A place of one contact and a neighbour, with shapes of the bank."""
    bank = load_shapes(networks.RATE).bank
    span = networks.LENGTH + 2 * simulated.PAD
    waveforms = np.zeros((num_units, networks.NEAR, simulated.STEPS * span), np.float16)
    for unit in range(num_units):
        shape = np.zeros(span)
        shape[simulated.PAD : simulated.PAD + networks.LENGTH] = bank[unit % len(bank)]
        fine = np.interp(np.arange(simulated.STEPS * span) / simulated.STEPS, np.arange(span), shape)
        waveforms[unit, :2] = fine / np.ptp(fine) * np.array([[1.0], [0.5]])
    offsets = np.zeros((networks.NEAR, 2), np.float32)
    offsets[1] = 0, 20
    return simulated.Place(offsets, (np.arange(networks.NEAR) < 2) * 1.0, waveforms, np.arange(num_units))


def test_drawn_spikes_are_centred_and_others_are_not_spikes_of_the_place():
    draw = simulated.EventDraw(np.random.default_rng(1))
    place = place_of(5)
    means, others = [], []
    for _ in range(20):
        windows, units = draw.draw(place)
        assert windows.shape == (len(units), networks.NEAR, networks.LENGTH)
        assert not windows[:, 2:].any()
        assert (units[-simulated.OTHERS :] == -1).all()
        assert (np.bincount(units[units >= 0]) == 24).all()
        means += [windows[units == unit, 0].mean(axis=0) for unit in np.unique(units[units >= 0])]
        others.append(windows[units < 0, 0].mean(axis=0))
    troughs = np.array([mean.argmin() for mean in means])
    assert np.abs(troughs - networks.BEFORE).max() <= 2
    depth = -np.mean([mean.min() for mean in means])
    assert np.ptp(np.mean(others, axis=0)) < 0.5 * depth


def test_the_loss_falls_where_units_lie_apart():
    random = np.random.default_rng(2)
    label = torch.tensor(np.repeat([0, 1, -1], 8))
    noise = torch.tensor(random.normal(size=(24, 4)) * 0.1, dtype=torch.float32)
    apart = noise + 8 * torch.eye(4)[label % 3]
    assert training.shape_loss(apart, label) < 0.01
    assert training.shape_loss(noise, label) == pytest.approx(np.log(3), abs=0.1)
    with_noise = noise + 8 * torch.eye(4)[label.clamp(min=0)]
    assert training.shape_loss(with_noise, label) > training.shape_loss(apart, label) + 0.2


def test_embedded_events_are_clustered_on_each_channel():
    random = np.random.default_rng(4)
    channels = np.repeat([0, 2], [120, 15])
    embedded = random.normal(size=(135, networks.NUM_DIMENSIONS)).astype(np.float32)
    embedded[60:120, 3] += 12
    labels = judging.cluster_embedded(embedded, channels, 3, (20, 0))
    assert (labels[:60] == labels[0]).all()
    assert (labels[60:120] == labels[60]).all()
    assert labels[0] != labels[60]
    assert (labels[120:] == -1).all()


def test_the_search_is_as_it_was_afterwards(network):
    before = discover.EventSearch, discover.cluster_events
    with judging.plugged_in("both", network, POSITIONS):
        assert (discover.EventSearch, discover.cluster_events) != before
    assert (discover.EventSearch, discover.cluster_events) == before
