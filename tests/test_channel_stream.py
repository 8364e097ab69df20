"""Single channels of a running stream: the spikes of the file for any cut, gaps, many channels."""

import json

import numpy as np
import pytest
from commands import assert_told, run, succeed
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeinterface.core import NumpyRecording

import spikewise
from spikewise.core.errors import CheckpointError, RecordingError, SettingError
from spikewise.single_channel.config import (
    ChannelSortingConfig,
    SpikeDetectionConfig,
    WaveClusConfig,
    WaveformTrainingConfig,
)
from spikewise.sorting.live.channel_peaks import ChannelPeaks, PeakCut

LIVE = SpikeDetectionConfig(filter="live")
SHORT = WaveformTrainingConfig(epochs=3, windows_per_epoch=600)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    file = tmp_path_factory.mktemp("channel") / "simulated.mat"
    config = WaveClusConfig(duration_s=12, difficulty="easy2", noise_level=0.05, seed=3)
    return file, spikewise.simulate_channel(output=file, config=config)


@pytest.fixture(scope="module")
def result(simulated):
    file, _ = simulated
    config = ChannelSortingConfig(label_interval=(0, 6))
    return spikewise.sort_channel(file, labels=file, config=config, detection=LIVE, training=SHORT)


@pytest.fixture(scope="module")
def signal(simulated):
    return simulated[1].signal.astype("float32")


@pytest.fixture(scope="module")
def expected(result):
    spikes = result.sorting.to_spike_vector()
    assert len(spikes) > 300
    return list(zip(spikes["sample_index"].tolist(), spikes["unit_index"].tolist(), strict=True))


def pairs(spikes):
    return list(zip(spikes["sample_index"].tolist(), spikes["unit_index"].tolist(), strict=True))


def streamed(sorter, samples, cuts):
    parts = [sorter.push(block) for block in np.split(samples, sorted(cuts))]
    return pairs(np.concatenate([*parts, sorter.flush()]))


def test_the_filter_keeps_the_shape_of_a_spike_in_its_place():
    cut = PeakCut(24000.0, (300.0, 3000.0), 36, 20, 44, 5)
    spike = np.exp(-(((np.arange(2000) - 1000) / 5) ** 2))
    filtered = ChannelPeaks(cut, np.ones(1), ["both"]).filtered(spike[:, None])[:, 0]
    assert int(np.argmax(filtered)) == 1000
    np.testing.assert_allclose(filtered[960:1000], filtered[1040:1000:-1], atol=1e-9)
    assert abs(cut.taps.sum()) < 1e-12  # no constant passes


def test_peaks_are_the_largest_within_the_refractory_time():
    cut = PeakCut(24000.0, (300.0, 3000.0), 36, 20, 44, 5)
    samples = np.zeros((3000, 2))
    for at, height in ((500, 1.0), (520, 2.0), (1000, 1.0), (1060, 1.0), (2990, 1.0), (3, 1.0)):
        samples[at, 1] = height
    search = ChannelPeaks(cut, np.array([0.2, 0.2]), ["positive", "positive"])
    parts = [search.push(samples), search.end()]
    assert np.concatenate([part.sample_index for part in parts]).tolist() == [520, 1000, 1060]
    assert set(np.concatenate([part.channel_index for part in parts]).tolist()) == {1}
    waveforms = np.concatenate([part.waveforms for part in parts])
    assert waveforms.shape == (3, 64)
    assert waveforms.argmax(axis=1).tolist() == [20, 20, 20]
    np.testing.assert_allclose(waveforms[1] * 2, waveforms[0] * 1, atol=1.5)


def test_the_exact_peak_lies_between_two_samples():
    cut = PeakCut(24000.0, (300.0, 3000.0), 36, 20, 44, 5)
    found = []
    for shift in (0.0, 0.4):
        spike = np.exp(-(((np.arange(600) - 300 - shift) / 5) ** 2))
        search = ChannelPeaks(cut, np.array([0.2]), ["positive"])
        parts = [search.push(spike[:, None]), search.end()]
        found.append(np.concatenate([part.waveforms for part in parts])[0])
    assert np.abs(found[0] - found[1]).max() < 0.005 * np.abs(found[0]).max()


def test_most_spikes_are_found_and_right(result):
    truth = result.provenance["truth"]
    assert truth["detection_recall"] > 0.93
    assert truth["detection_precision"] > 0.97
    assert truth["classification_accuracy"] > 0.97


@settings(max_examples=8, deadline=None)
@given(st.lists(st.integers(0, 288_000), max_size=40))
def test_any_cut_gives_the_spikes_of_the_file(result, signal, expected, cuts):
    assert streamed(spikewise.ChannelStreamSorter(result.model), signal, cuts) == expected


def test_blocks_of_one_millisecond_and_single_samples(result, signal, expected):
    sorter = spikewise.ChannelStreamSorter(result.model)
    head = [sorter.push(signal[at : at + 1]) for at in range(3000)]
    rest = [sorter.push(signal[at : at + 24]) for at in range(3000, len(signal), 24)]
    assert pairs(np.concatenate([*head, *rest, sorter.flush()])) == expected


def test_spikes_come_as_soon_as_they_are_certain(result, signal, expected):
    sorter = spikewise.ChannelStreamSorter(result.model)
    assert sorter.latency.filter_ms == 1.0
    assert sorter.latency.look_ahead_ms < 3.5
    for at in range(0, 24_000, 24):
        for sample in sorter.push(signal[at : at + 24])["sample_index"].tolist():
            assert 0 <= sorter.num_samples - sample - sorter.latency.look_ahead_samples <= 24


def test_a_gap_begins_anew(result, signal):
    first, second = signal[:100_000], signal[120_000:200_000]
    parts = [streamed(spikewise.ChannelStreamSorter(result.model), part, []) for part in (first, second)]
    sorter = spikewise.ChannelStreamSorter(result.model)
    found = [sorter.push(first), sorter.gap(20_000), sorter.push(second), sorter.flush()]
    assert pairs(np.concatenate(found)) == parts[0] + [(at + 120_000, unit) for at, unit in parts[1]]
    broken = signal[:200_000].copy()
    broken[100_000:120_000] = np.nan
    again = streamed(spikewise.ChannelStreamSorter(result.model), broken, [50_000, 110_000])
    assert again == pairs(np.concatenate(found))


def test_many_channels_at_once_are_each_its_own(result, signal):
    count = 60_000
    columns = np.column_stack([signal[:count], np.zeros(count), signal[count : 2 * count]])
    alone = [
        streamed(spikewise.ChannelStreamSorter(result.model), columns[:, column], []) for column in (0, 2)
    ]
    sorter = spikewise.ChannelStreamSorter({0: result.model, 2: result.model})
    num_units = len(result.model.unit_ids)
    assert sorter.unit_ids == [f"{column}-{unit}" for column in (0, 2) for unit in result.model.unit_ids]
    both = streamed(sorter, columns, range(0, count, 4800))
    assert sorted(both) == sorted(alone[0] + [(at, unit + num_units) for at, unit in alone[1]])


def test_samples_of_another_gain(result, signal, expected):
    from dataclasses import replace

    live = {**result.model.facts["live"], "gain_to_uV": 0.5}
    model = replace(result.model, facts={**result.model.facts, "live": live})
    sorter = spikewise.ChannelStreamSorter(model, gain_to_uV=1.0)
    assert streamed(sorter, signal * np.float32(0.5), []) == expected
    inverted = spikewise.ChannelStreamSorter(model, gain_to_uV=-0.5)
    assert streamed(inverted, -signal, []) == expected


def test_the_noise_is_compared_with_that_of_the_training(result, signal):
    sorter = spikewise.ChannelStreamSorter(result.model)
    assert np.isnan(sorter.noise())
    sorter.push(3 * signal[:24_000])
    assert 1.5 < sorter.noise() < 6


def test_what_cannot_be_streamed_is_refused(result, simulated):
    file, _ = simulated
    usual = spikewise.sort_channel(file, labels=file, training=SHORT).model
    with pytest.raises(CheckpointError, match="--filter live"):
        spikewise.ChannelStreamSorter(usual)
    from dataclasses import replace

    damaged = replace(result.model, facts={"live": {"threshold": "x"}})
    with pytest.raises(CheckpointError, match="cannot be used"):
        spikewise.ChannelStreamSorter(damaged)
    sorter = spikewise.ChannelStreamSorter(result.model)
    with pytest.raises(RecordingError, match="shape"):
        sorter.push(np.zeros((5, 2)))
    with pytest.raises(SettingError, match="0 or more"):
        sorter.gap(-1)
    with pytest.raises(SettingError, match="Columns 0 to 0"):
        spikewise.ChannelStreamSorter({1: result.model}, num_columns=1)


def test_the_command_streams_a_file(capsys, simulated, result, expected, tmp_path):
    file, _ = simulated
    model = tmp_path / "model.safetensors"
    spikewise.save_classifier(result.model, model)
    options = {"--model": model, "--sink": tmp_path / "out", "--speed": "fast"}
    told = succeed(capsys, "waveforms", "stream", file, options)
    assert told.summary["num_spikes"] == len(expected)
    from spikewise.data.labels.label_files import load_sorting

    assert pairs(load_sorting(tmp_path / "out").to_spike_vector()) == expected
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert facts["result"]["num_spikes"] == len(expected)
    assert spikewise.load_classifier(tmp_path / "out" / "model.safetensors").hash() == result.model.hash()
    again = {**options, "--sink": tmp_path / "other", "--learn-s": 5}
    assert_told(run(capsys, "waveforms", "stream", file, again), "single channels")


def test_channels_of_a_recording_are_streamed(result, signal, tmp_path):
    columns = np.column_stack([np.zeros(60_000, "float32"), signal[:60_000]])
    recording = NumpyRecording([columns], 24000.0)
    from spikewise.core.config import StreamConfig

    config = StreamConfig(speed="fast", block_ms=20)
    spikewise.stream_channels(
        recording, models=[result.model], columns=[1], sinks=tmp_path / "out", config=config
    )
    from spikewise.data.labels.label_files import load_sorting

    found = pairs(load_sorting(tmp_path / "out").to_spike_vector())
    assert found == streamed(spikewise.ChannelStreamSorter(result.model), signal[:60_000], [])
