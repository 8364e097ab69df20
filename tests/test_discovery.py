"""Units found in traces: each step on constructed traces, and whole simulated recordings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from arrays import ArrayTraces
from spikeinterface.core import NumpyRecording, generate_ground_truth_recording

import spikewise
from spikewise.core.errors import BootstrapError
from spikewise.data.recordings.reader import TraceReader
from spikewise.discovery.discover import discover_units, is_periodic
from spikewise.discovery.event_loops import BLOCK, best_lag, find_peaks, largest_responses
from spikewise.discovery.event_search import Events, EventSearch, UnitSearch
from spikewise.discovery.held_traces import UNIT, HeldTraces
from spikewise.discovery.merging import Clusters, Merger
from spikewise.discovery.neighbours import channels_within, distances
from spikewise.discovery.peeling import Peeler
from spikewise.discovery.spike_shapes import load_shapes
from spikewise.discovery.unit_shapes import ShapeMeter, UnitShape, are_sums, similarity

RATE = 32000.0
SHAPES = load_shapes(RATE)
LENGTH = SHAPES.bank.shape[1]
COLUMN_UM = np.column_stack([np.zeros(6), 20.0 * np.arange(6)])


def traces_with(spikes, seconds=4.0, num_channels=6, seed=0):
    """White noise of deviation 1 with (times, sizes of channels, shape) added; times are of the trough."""
    traces = np.random.default_rng(seed).normal(size=(round(seconds * RATE), num_channels)).astype(np.float32)
    for times, sizes, shape in spikes:
        for time in times:
            start = time - SHAPES.before
            traces[start : start + LENGTH] += np.outer(shape, sizes)
    return traces


def shape_of(number, trough=1.0):
    """A shape of the bank whose trough is `trough` deep."""
    shape = SHAPES.bank[number]
    return shape * (trough / -shape[SHAPES.before])


def steps_of(traces, positions=COLUMN_UM):
    held = HeldTraces(ArrayTraces(traces, sampling_frequency=RATE))
    distance = distances(positions)
    meter = ShapeMeter(held, distance, SHAPES.before, LENGTH)
    return held, distance, meter


# Shapes and traces


def test_shapes_have_unit_energy_and_their_trough_where_it_is_said():
    for rate in (10000.0, 15000.0, 30000.0, RATE):
        shapes = load_shapes(rate)
        assert np.allclose(np.linalg.norm(shapes.bank, axis=1), 1, atol=1e-5)
        assert np.abs(shapes.bank.argmin(axis=1) - shapes.before).max() <= 1
        assert shapes.bank.shape[1] == pytest.approx(2e-3 * rate, abs=2)
        whole = shapes.basis[0][:, : shapes.bank.shape[1]]
        assert np.allclose(whole @ whole.T, np.eye(len(whole)), atol=2e-2)


@pytest.mark.parametrize(("late", "moved"), [(20, 20), (4, 0)])
def test_spikes_are_moved_to_the_lowest_trough_of_all_channels_if_it_is_far(late, moved):
    """A channel beside the one of the spikes has a deeper trough, `late` samples after it."""
    times = np.arange(1000, 120000, 700)
    own, beside = np.array([0, 0, 6.0, 0, 0, 0]), np.array([0, 9.0, 0, 0, 0, 0])
    held, _, meter = steps_of(traces_with([(times, own, shape_of(1)), (times + late, beside, shape_of(1))]))
    shift = int(np.flatnonzero(held.frames_of(np.arange(held.num_columns))[1])[0])
    found = meter.far_trough(meter.measure(times + shift, 2), times + shift)
    assert abs(found - moved) <= (1 if moved else 0)


def test_events_beside_a_much_larger_one_are_not_clean():
    distance = distances(np.column_stack([np.zeros(3), [0.0, 100.0, 400.0]]))
    at = np.array([100.0, 120.0, 121.0, 160.0, 400.0])
    events = Events(at, np.array([0, 1, 2, 0, 1]), np.array([30.0, 8.0, 8.0, 20.0, 8.0], np.float32))
    clean = events.clean(distance, RATE)  # 32 samples are a millisecond
    assert clean.column.tolist() == [100.0, 121.0, 160.0, 400.0]


def test_traces_that_are_held_are_those_that_the_reader_gives_and_serve_it_then():
    random = np.random.default_rng(0)
    recording = NumpyRecording([random.normal(0, 3, (70_001, 6)).astype(np.float32)], RATE)
    first, second = TraceReader(recording), TraceReader(recording)
    second.allow_keeping()
    held = HeldTraces(second, serves=True)
    expected = first.read(0, 20_000, 68_000)
    assert np.array_equal(expected * 128, np.rint(expected * 128))
    second.release()
    assert np.array_equal(second.read(0, 20_000, 68_000), expected)
    held.values[:] = 0
    second.release()
    assert not second.read(0, 20_000, 68_000).any()  # it reads from what is held


def test_a_short_recording_is_held_whole_and_a_long_one_in_even_parts():
    first, second = (np.full((round(s * RATE), 2), s, np.float32) for s in (2.5, 1.0))
    traces = ArrayTraces(first, second, sampling_frequency=RATE)
    held = HeldTraces(traces)
    assert (held.seconds, held.total_s) == (3.5, 3.5)
    for frame in (0, 79999, 80000, 111999):
        columns = np.arange(held.num_columns)
        frames, inside = held.frames_of(columns)
        (column,) = np.flatnonzero(inside & (frames == frame))
        assert held.values[0, column] * UNIT == (2.5 if frame < 80000 else 1.0)
    assert not held.values[:, ~inside].any()
    part = HeldTraces(traces, memory_bytes=2 * 2 * round(2 * RATE))
    frames, inside = part.frames_of(np.arange(part.num_columns))
    assert part.seconds <= 2
    assert {0, 111999} <= set(frames[inside].tolist())
    assert held.spread(1.0) == ((0, 32000),)
    assert held.spread(60.0)[-1] == (80000, 112000)


def test_near_channels_are_evenly_spread_where_there_are_many():
    near = channels_within(distances(COLUMN_UM), 45.0, 3)
    assert near[0].tolist() == [0, 1, 2]
    assert near[2].tolist()[0] == 2
    assert channels_within(distances(COLUMN_UM), 15.0, 3).tolist() == [[c] for c in range(6)]


# Events


def test_a_unit_too_weak_for_any_single_channel_is_found():
    """2.6 deviations on four channels: a threshold of 4.5 on one channel sees a few percent of the spikes."""
    times = np.arange(1000, 120000, 700)
    traces = traces_with([(times, [0, 2.6, 2.6, 2.6, 2.6, 0], shape_of(1))])
    seen = (traces[times[:, None] + np.arange(-8, 9)].min(axis=1) < -4.5).any(axis=1)
    assert seen.mean() < 0.35
    held, distance, _ = steps_of(traces)
    events = EventSearch(held, distance, SHAPES).find(5.0)
    frames, inside = held.frames_of(np.rint(events.column).astype(int))
    assert inside.all()
    near = np.abs(frames[:, None] - times[None]).min(axis=1)
    assert len(np.unique(np.abs(frames[:, None] - times[None]).argmin(axis=1)[near < 12])) > 0.95 * len(times)
    assert (near >= 12).sum() < 10
    assert np.median(near) <= 2


def test_peaks_are_the_largest_of_their_neighbourhood():
    response = np.zeros((3, 40), np.float32)
    response[0, 10], response[1, 12], response[2, 12] = 7, 9, 8  # 1 is beside 0 and 2
    response[0, 30] = response[1, 30] = 6  # equal: the first channel
    rivals = np.array([[0, 1, -1], [1, 0, 2], [2, 1, -1]])
    found = np.empty(9, np.int64), np.empty(9), np.empty(9, np.float32)
    count = find_peaks(response, rivals, np.float32(5), 4, (1, 39), found)
    assert list(zip(found[0][:count], found[1][:count], found[2][:count], strict=True)) == [
        (0, 30, 6),
        (1, 12, 9),
    ]


def test_responses_are_the_largest_of_the_scaled_sums_over_near_channels():
    random = np.random.default_rng(0)
    filtered = random.normal(size=(2, 4, BLOCK)).astype(np.float32)
    near = np.array([[0, 1, 2, 3], [1, 0, 2, 0], [2, 1, 3, 0], [3, 2, 0, 0]])
    counts = np.array([[2, 4], [1, 3], [3, 4], [1, 2]])
    weights = random.uniform(0.1, 1, size=(4, 4, 3)).astype(np.float32)
    for channel, (of_all, in_last) in enumerate(counts):
        weights[channel, of_all:, :2] = 0
        weights[channel, 1:, 0] = 0
        weights[channel, in_last:] = 0
    scale = random.uniform(0.5, 2, size=(4, 2, 3)).astype(np.float32)
    best = np.full((4, BLOCK), np.nan, np.float32)
    largest_responses(filtered, near, counts, weights, scale, best, BLOCK - 30)
    sums = np.einsum("kcpt,cpw->ckwt", filtered[:, near], weights) * scale[..., None]
    np.testing.assert_allclose(best[:, :-30], sums.max(axis=(1, 2))[:, :-30], atol=1e-5)
    assert np.isnan(best[:, -30:]).all()


def test_a_spike_of_a_known_unit_is_found_by_its_own_waveform_where_no_shape_of_the_bank_fits():
    """The unit goes up on one channel and down on the next: the bank sees only one of them."""
    times = np.arange(1000, 120000, 700)
    sizes = np.array([0, 2.8, -2.8, 2.8, -2.8, 0])
    held, distance, meter = steps_of(traces_with([(times, sizes, shape_of(1))]))
    shift = int(np.flatnonzero(held.frames_of(np.arange(held.num_columns))[1])[0])
    channels = meter.near[2][meter.near[2] >= 0]
    unit = UnitShape(2, channels, np.outer(sizes, shape_of(1))[channels].astype(np.float32), 0)
    tails = np.zeros((len(channels), LENGTH + 2 * meter.tail), np.float32)
    packed = Peeler(held, distance, [unit], [tails], SHAPES.before).units
    found = {}
    searches = {"bank": EventSearch(held, distance, SHAPES), "unit": UnitSearch(held, distance, packed)}
    for name, search in searches.items():
        columns = search.find(5.0).column - shift
        found[name] = np.mean(np.abs(columns[:, None] - times[None]).min(axis=0) <= 3)
    assert found["unit"] > 0.95
    assert found["bank"] < 0.8


# Waveforms, merging, peeling


def test_the_shift_between_two_waveforms_is_found():
    shape = shape_of(2, 10.0)
    moved = np.roll(shape, 5)
    product, lag = best_lag(shape[None], moved[None], 10)
    assert lag == 5
    assert product == pytest.approx(float(shape[: LENGTH - 5] @ shape[: LENGTH - 5]), rel=0.02)


def test_mean_waveforms_are_those_of_the_unit():
    times = np.arange(1000, 120000, 700)
    sizes = np.array([0, 2, 8, 3, 0, 0], np.float32)
    held, _, meter = steps_of(traces_with([(times, sizes, shape_of(1))]))
    frames, inside = held.frames_of(np.arange(held.num_columns))
    columns = np.flatnonzero(inside)[np.searchsorted(frames[inside], times)]
    unit = meter.measure(columns.astype(float), channel=0)
    assert unit.main_channel == 2
    assert unit.trough == 0
    expected = np.outer(sizes, shape_of(1))[unit.channels]
    assert np.abs(unit.waveform - expected).max() < 0.6
    assert similarity(unit, unit, 5)[0] == pytest.approx(1)
    assert not meter.tails(unit, columns.astype(float)).any()


def clusters_of(held, *trains):
    """Clusters of spikes at global frames of a recording of one segment."""
    shift = int(np.flatnonzero(held.frames_of(np.arange(held.num_columns))[1])[0])
    columns = np.concatenate(trains).astype(float) + shift
    labels = np.repeat(np.arange(len(trains)), [len(train) for train in trains])
    order = np.argsort(columns, kind="stable")
    return Clusters(columns[order], np.full(len(columns), 2), labels[order])


def test_halves_of_a_unit_are_joined_and_other_units_are_not():
    times = np.arange(1000, 120000, 500) + np.random.default_rng(1).integers(0, 60, 238)
    other = np.arange(1250, 120000, 500) + np.random.default_rng(2).integers(0, 60, 238)
    sizes, others = [0, 4, 8, 4, 0, 0], [0, 8, 8, 1, 0, 0]
    traces = traces_with([(times, sizes, shape_of(1)), (other, others, shape_of(1))])
    held, distance, meter = steps_of(traces)
    merger = Merger(held, distance, SHAPES, meter)
    late = times[1::2] + 3  # aligned to another sample
    clusters = clusters_of(held, times[::2], late, other)
    assert merger.merge(clusters) == 1
    shift = clusters_of(held, times[:1]).columns[0] - times[0]
    members = [np.sort(clusters.columns[events] - shift) for events in clusters.members()]
    assert sorted(len(train) for train in members) == [238, 238]
    joined = next(train for train in members if np.abs(train - times).max() < 20)
    assert np.abs(joined - times).max() <= 1


def test_like_units_that_fire_within_each_others_refractory_period_stay_two():
    random = np.random.default_rng(3)
    trains = [np.sort(random.choice(np.arange(1000, 120000, 45), 900, replace=False)) for _ in range(2)]
    held, distance, meter = steps_of(
        traces_with([(train, [0, 0, 9, 0, 0, 0], shape_of(1)) for train in trains])
    )
    merger = Merger(held, distance, SHAPES, meter)
    assert merger.merge(clusters_of(held, *trains)) == 0


def test_overlapping_spikes_are_both_explained_and_restoring_gives_the_same_traces():
    first, second = np.arange(2000, 120000, 1500), np.arange(2024, 120000, 1500)
    alone = np.arange(2750, 120000, 1500)
    spikes = [
        (np.concatenate([first, alone]), [0, 3, 12, 3, 0, 0], shape_of(1)),
        (second, [0, 0, 4, 10, 4, 0], shape_of(3)),
    ]
    held, distance, meter = steps_of(traces_with(spikes))
    shift = int(np.flatnonzero(held.frames_of(np.arange(held.num_columns))[1])[0])
    clean = [
        shape_of(1)[None] * np.array(spikes[0][1])[:, None],
        shape_of(3)[None] * np.array(spikes[1][1])[:, None],
    ]
    units = []
    for main, waveform in zip((2, 3), clean, strict=True):
        channels = meter.near[main][meter.near[main] >= 0]
        unit = meter.measure(np.array([shift + 2000.0]), main)
        units.append(type(unit)(main, channels, waveform[channels].astype(np.float32), 0))
    tails = [np.zeros((len(u.channels), LENGTH + 2 * meter.tail), np.float32) for u in units]
    before = held.values.copy()
    peeler = Peeler(held, distance, units, tails, SHAPES.before)
    times = np.concatenate([first, second, alone]) + float(shift)
    channels = np.repeat([2, 3, 2], [len(first), len(second), len(alone)])
    order = np.argsort(times, kind="stable")
    heights = np.where(channels == 2, 20, 15).astype(np.float32)
    explained = peeler.explain(times[order], channels[order], heights[order])
    assert (explained.unit == (channels[order] == 3)).mean() > 0.98
    assert np.abs(explained.column - times[order]).max() < 1.5
    lone = np.isin(times[order] - shift, alone)
    assert np.abs(np.median(explained.amplitude[lone]) - 1) < 0.05
    assert np.abs(np.median(explained.unexplained[lone])) < 0.1
    assert held.values[:, shift : shift + 120000].std() * UNIT < 1.05
    peeler.restore()
    assert np.array_equal(held.values, before)


def test_two_units_that_often_fire_together_are_no_third_unit():
    random = np.random.default_rng(0)
    waveforms = np.zeros((4, 6, 80), np.float32)
    time = np.arange(80)
    for unit, channels in enumerate([(0, 1, 2), (2, 3, 4), (0, 1, 2)]):
        shape = -np.exp(-(((time - 40) / (3 + unit)) ** 2))
        waveforms[unit, list(channels)] = random.uniform(8, 15, 3)[:, None] * shape
    waveforms[3] = 0.9 * waveforms[0]
    waveforms[3, :, :-10] += 1.1 * waveforms[1, :, 10:]  # the second fires 10 samples earlier
    waveforms[3] += 0.3 * random.normal(size=(6, 80))

    def sums(counts, reach=12):
        units = [UnitShape(0, np.arange(6), waveform, 0) for waveform in waveforms]
        return are_sums(units, np.array(counts), reach)

    assert sums([900, 800, 700, 90]) == [False, False, False, True]
    assert sums([900, 800, 700, 300]) == [False] * 4  # too many spikes for pairs of the others
    assert sums([900, 80, 700, 90]) == [False] * 4  # the second fires too rarely
    assert sums([900, 800, 700, 90], reach=2) == [False] * 4
    waveforms[3, 0] += 2 * waveforms[1, 2]  # something else on the first channel
    assert sums([900, 800, 700, 90]) == [False] * 4


def test_what_repeats_with_one_period_is_no_neuron():
    random = np.random.default_rng(0)
    pulses = 640.0 * np.flatnonzero(random.random(300) < 0.6)
    assert is_periodic(pulses, RATE)
    assert is_periodic(np.concatenate([pulses, random.uniform(0, 190000, 30)]), RATE)
    assert not is_periodic(np.cumsum(random.uniform(100, 1200, 300)), RATE)
    steady = np.cumsum(random.normal(640, 64, 300))  # a neuron that keeps time well
    assert not is_periodic(steady, RATE)
    assert not is_periodic(pulses[:5], RATE)


# Whole recordings


@pytest.fixture(scope="module")
def tetrode():
    return generate_ground_truth_recording(
        durations=[40.0], num_channels=4, num_units=3, seed=5, sampling_frequency=25000.0
    )


def test_a_tetrode_without_labels(tetrode, tmp_path):
    recording, truth = tetrode
    result = spikewise.sort(recording, output=tmp_path / "out", report=False)
    scores = spikewise.evaluate(truth, result.sorting)
    assert scores.accuracy > 0.9
    assert result.sorting.get_num_units() == 3
    labels = result.provenance["labels"]["groups"]["0"]
    assert labels["sorter"] == "spikewise"
    assert labels["looked_at_s"] == 40.0
    assert labels["num_units_kept"] == 3


def discovered(recording):
    traces = recording.get_traces() / 5.0
    positions = recording.get_channel_locations()
    return discover_units(ArrayTraces(traces, sampling_frequency=25000.0), positions, seed=0)


def test_the_same_units_on_one_thread_and_on_two(tetrode):
    recording, _ = tetrode
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = discovered(recording)
        torch.set_num_threads(2)
        two = discovered(recording)
    finally:
        torch.set_num_threads(threads)
    assert len(one.trains) == len(two.trains)
    assert all(np.array_equal(a, b) for a, b in zip(one.trains, two.trains, strict=True))


@pytest.mark.parametrize("num_channels", [1, 16])
def test_noise_and_silence_hold_no_units(num_channels):
    positions = np.column_stack([np.zeros(num_channels), 20.0 * np.arange(num_channels)])
    noise = np.random.default_rng(0).normal(size=(round(10 * RATE), num_channels))
    assert discover_units(ArrayTraces(noise), positions, 0).trains == []
    assert discover_units(ArrayTraces(0 * noise), positions, 0).trains == []
    assert discover_units(ArrayTraces(noise[:50]), positions, 0).trains == []


def test_one_unit_on_one_channel_is_one_unit():
    random = np.random.default_rng(4)
    times = np.sort(random.choice(np.arange(1000, 310000, 200), 300, replace=False)) + random.integers(
        0, 60, 300
    )
    traces = traces_with([(times, [9.0], shape_of(0))], seconds=10, num_channels=1)
    (train,) = discover_units(ArrayTraces(traces), np.zeros((1, 2)), 0).trains
    assert len(train) == pytest.approx(300, abs=6)
    assert np.abs(train[:, None] - times[None]).min(axis=1).max() <= 2


def test_a_recording_without_units_is_refused(tmp_path):
    noise = np.random.default_rng(0).normal(scale=10, size=((5 * 25000), 4)).astype(np.float32)
    recording, _ = generate_ground_truth_recording(durations=[5.0], num_channels=4, num_units=1, seed=0)
    silent = NumpyRecording([noise], 25000.0)
    silent.set_probe(recording.get_probe(), in_place=True)
    with pytest.raises(BootstrapError, match="No unit was found in 5 s"):
        spikewise.sort(silent, report=False)
