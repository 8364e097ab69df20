"""A stream is sorted as a file is: the same filter, the same spikes, however it is cut."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st
from spikeinterface.core import NumpyRecording
from streams import RATE, SILENT, explained, live_model, noise, offline, pairs, saved, streamed

import spikewise
from spikewise.core.config import PreprocessingConfig
from spikewise.core.errors import CheckpointError, RecordingError, SettingError
from spikewise.data.recordings.conditioning import (
    LIVE_EDGE,
    LIVE_FILTER_ORDER,
    ConditionedRecording,
    LiveBand,
)
from spikewise.data.recordings.live_conditioning import LiveConditioner, bandpass_rows
from spikewise.data.recordings.preprocessing import preprocess_recording
from spikewise.data.recordings.reader import TraceReader
from spikewise.discovery.held_traces import HeldTraces
from spikewise.models.channel_noise import ChannelNoise
from spikewise.sorting.live.blocks import evaluate_blocks, join_blocks
from spikewise.sorting.live.stream_sorter import StreamSorter
from spikewise.sorting.loops import peaks_of_units
from spikewise.sorting.owner.loops import decide, fill_products

BAND = (300.0, 6000.0)
NUM = 95_000
"""Samples of a recording here: more than three runs of the filter, and twelve tiles."""


@pytest.fixture(scope="module", params=["peaks", "explained"])
def model(request):
    return live_model() if request.param == "peaks" else explained(live_model())


@pytest.fixture(scope="module")
def samples():
    return noise(NUM, 6)


@pytest.fixture(scope="module")
def expected(model, samples):
    (spikes,) = offline(model, samples)
    assert len(spikes) > 500
    assert len({unit for _, unit in spikes}) == 5
    return spikes


def test_the_live_filter_is_a_butterworth_filter_that_runs_forward():
    traces = noise(40_000, 3, dtype="float64")
    found = ConditionedRecording(NumpyRecording([traces], RATE), BAND, is_live=True).get_traces()
    edges = LIVE_EDGE * BAND[0], BAND[1]
    sections = scipy.signal.butter(LIVE_FILTER_ORDER, edges, "bandpass", output="sos", fs=RATE)
    expected = scipy.signal.sosfilt(sections, traces - traces[0], axis=0)
    # It begins anew after a second, where what was before the lead-in has faded.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3)


def test_the_live_filter_knows_no_later_samples_and_no_request():
    traces = noise(70_000, 18)
    other = traces.copy()
    other[45_000:] = 0
    good = np.arange(18) != 4
    views = [
        ConditionedRecording(NumpyRecording([one], RATE), BAND, good, 0.05 * good, is_live=True)
        for one in (traces, other)
    ]
    whole = views[0].get_traces()
    assert np.array_equal(whole[:45_000], views[1].get_traces(end_frame=45_000))
    assert not np.array_equal(whole[45_000:45_010], views[1].get_traces(0, 45_000, 45_010))
    for start, stop in ((0, 1), (29_990, 30_010), (31_234, 31_236), (1, 69_999), (60_000, 70_000)):
        assert np.array_equal(views[0].get_traces(0, start, stop), whole[start:stop])
    assert views[0].get_traces(0, 5, 5).shape == (0, 18)
    assert views[0].get_traces(0, 5, 9, channel_ids=[3, 1]).tolist() == whole[5:9, [3, 1]].tolist()


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 65_000), max_size=40), band=st.sampled_from([BAND, (4.0, 900.0)]))
def test_a_stream_is_conditioned_as_a_recording_is(cuts, band):
    traces = noise(65_000, 17)
    good = np.arange(17) != 4
    view = ConditionedRecording(NumpyRecording([traces], RATE), band, good, 0.05 * good, is_live=True)
    conditioner = LiveConditioner(LiveBand.of(band, RATE), np.arange(17), good, good, 0.05 * good)
    parts = []
    for block in np.split(traces, sorted(cuts)):
        target = np.empty((conditioner.width, len(block) + 16), np.float32)
        conditioner.push(block, target)
        parts.append(target[:17, : len(block)].T)
    assert np.array_equal(np.concatenate(parts), view.get_traces())


def test_traces_of_the_live_filter_are_not_kept_in_steps_that_a_stream_does_not_have():
    good = np.arange(6) != SILENT
    view = ConditionedRecording(NumpyRecording([noise(9000, 6)], RATE), BAND, good, 0.05 * good, is_live=True)
    reader = TraceReader(view)
    reader.allow_keeping()
    HeldTraces(reader, serves=True)
    reader.release()
    assert np.array_equal(reader.read(0, 0, 9000), view.get_traces())


def test_with_the_live_filter_damage_is_kept_and_the_noise_can_be_given():
    traces = noise(60_000, 4)
    traces[20_000:21_000] = 0
    config = PreprocessingConfig(filter="live")
    recording = NumpyRecording([traces], RATE)
    made = preprocess_recording(recording, config)
    assert made.repaired is None
    assert "live filter" in made.steps[0]
    given_noise = preprocess_recording(
        recording, config, scale_of=lambda measured: np.array([1.0, 2.0, 4.0, 8.0])
    )
    both = [one.recording.get_traces(end_frame=50).T for one in (made, given_noise)]
    for channel, (measured, given_one) in enumerate(zip(*both, strict=True)):
        np.testing.assert_allclose(given_one * 2**channel, measured * made.noise_levels[channel], rtol=1e-5)


@pytest.mark.parametrize(("cut", "rest"), [(1, 4000), (30, 0), (4096, 0), (50_000, 0), (NUM, 0)])
def test_blocks_of_any_length_give_the_spikes_of_the_file(model, samples, expected, cut, rest):
    cuts = range(cut, rest or NUM, cut)
    assert streamed(StreamSorter(model), samples, cuts) == expected


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, NUM), max_size=60), dtype=st.sampled_from(["int16", ">i2", "float64"]))
def test_any_cut_gives_the_spikes_of_the_file(model, samples, expected, cuts, dtype):
    assert streamed(StreamSorter(model), samples.astype(dtype), cuts) == expected


@pytest.mark.parametrize("length", [1, 7, 33, 300, 8192 - 30, 8192, 8192 + 9])
def test_streams_of_any_length_end_as_files_do(model, length):
    samples = noise(length, 6, seed=5)
    found = streamed(StreamSorter(model), samples, range(11, length, 29))
    if length >= 56:  # a file must be longer than a window
        assert found == offline(model, samples)[0]
    assert {s for s, _ in found} <= set(range(length))


def test_spikes_are_returned_as_soon_as_they_are_certain(model, samples):
    sorter = StreamSorter(model)
    waits = []
    for sample in range(9000):
        for spike in sorter.push(samples[sample : sample + 1]):
            waits.append(sample - spike["sample_index"])
    latency = sorter.latency
    assert max(waits) == latency.look_ahead_samples
    assert min(waits) > latency.look_ahead_samples - latency.block_samples
    assert latency.look_ahead_ms < (2.5 if model.groups[0].waveforms is None else 3.7)


def test_no_block_waits_for_a_loop_to_be_compiled(model, samples):
    sorter = StreamSorter(model)
    sorter.warm_up("int16")
    loops = bandpass_rows, evaluate_blocks, join_blocks, peaks_of_units, fill_products, decide
    before = [len(loop.signatures) for loop in loops]
    message = np.frombuffer(samples[:3000].tobytes(), np.int16).reshape(-1, 6)  # not writeable
    for block in (message, samples[3000:6000], np.asfortranarray(samples[6000:9000])):
        assert len(sorter.push(block))
    assert [len(loop.signatures) for loop in loops] == before


def test_a_gap_is_sorted_as_two_segments_and_adds_no_spike(model, samples):
    ends = 40_010, 40_300
    both = offline(model, samples[: ends[0]], samples[ends[1] :])
    expected = both[0] + [(sample + ends[1], unit) for sample, unit in both[1]]
    sorter = StreamSorter(model)
    parts = [sorter.push(block) for block in np.split(samples[: ends[0]], range(77, ends[0], 1777))]
    parts.append(sorter.gap(ends[1] - ends[0]))
    assert sorter.num_samples == ends[1]
    parts += [sorter.push(samples[ends[1] :]), sorter.flush()]
    assert pairs(np.concatenate(parts)) == expected

    broken = samples.astype(np.float32)
    broken[ends[0] : ends[1], 1] = np.nan
    broken[100, 4] = np.inf  # a silenced channel
    assert streamed(StreamSorter(model), broken, range(333, NUM, 3333)) == expected


def test_a_stream_goes_on_from_its_state(model, samples, expected, tmp_path):
    file, cuts = tmp_path / "state.npz", sorted(np.random.default_rng(3).integers(0, NUM, 12).tolist())
    found, sorter = [], StreamSorter(model)
    for block in np.split(samples, cuts):
        found.append(sorter.push(block))
        sorter.save_state(file)
        sorter = StreamSorter(saved(model, tmp_path))  # as in another process
        sorter.load_state(file)
    assert sorter.num_samples == NUM
    assert pairs(np.concatenate([*found, sorter.flush()])) == expected


def test_a_state_of_another_model_or_a_damaged_one_is_refused(model, tmp_path):
    file = tmp_path / "state.npz"
    sorter = StreamSorter(model)
    sorter.push(noise(500, 6))
    sorter.save_state(file)
    with pytest.raises(CheckpointError, match="another model"):
        StreamSorter(live_model(seed=9)).load_state(file)
    with pytest.raises(CheckpointError, match="other settings"):
        StreamSorter(model, threshold=0.4).load_state(file)
    content = file.read_bytes()
    random, num_loaded = np.random.default_rng(0), 0
    for _ in range(60):
        broken = bytearray(content)
        for place in random.integers(0, len(broken), 5):
            broken[place] ^= int(random.integers(1, 256))
        file.write_bytes(bytes(broken[: int(random.integers(len(broken) // 2, len(broken) + 1))]))
        other = StreamSorter(model)
        with contextlib.suppress(CheckpointError):
            other.load_state(file)
            num_loaded += 1
        other.push(noise(2000, 6))
    assert num_loaded < 30
    file.write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match="Begin without it"):
        StreamSorter(model).load_state(file)


def test_groups_are_sorted_each_on_its_own_columns():
    model = live_model(num_groups=2)
    samples = noise(20_000, 12)
    names = [name for group in model.groups for name in group.channel_ids]
    (expected,) = offline(model, samples)
    assert {unit for _, unit in expected} == set(range(10))
    assert streamed(StreamSorter(model), samples, range(1000, 20_000, 1000)) == expected
    mixed = np.random.default_rng(0).permutation(12)
    columns = np.column_stack([samples[:, mixed], np.zeros(20_000)])  # and one that nobody knows
    sorter = StreamSorter(model, channel_ids=[*(names[index] for index in mixed), "sync"])
    assert streamed(sorter, columns, [5000]) == expected
    assert sorter.unit_ids == model.unit_ids


def test_samples_in_microvolts_are_scaled_to_the_noise_of_the_model(model, samples):
    known = ChannelNoise(model.groups[0].noise.levels, np.full(6, 0.25))
    other = replace(model, groups=(replace(model.groups[0], noise=known),))
    expected = streamed(StreamSorter(model), samples[:20_000], [])
    same = streamed(StreamSorter(other, gain_to_uV=0.25), samples[:20_000], [])
    in_uV = streamed(StreamSorter(other, gain_to_uV=1.0), samples[:20_000] * np.float32(0.25), [])
    assert same == expected
    assert in_uV == expected  # a power of two: exact
    inverted = streamed(StreamSorter(other, gain_to_uV=-1.0), samples[:20_000] * np.float32(-0.25), [])
    assert inverted == expected


def test_a_model_of_the_live_filter_is_saved_with_its_noise(model, tmp_path, samples, expected):
    again = spikewise.load_model(saved(model, tmp_path))
    assert again.groups[0].noise.levels.tolist() == model.groups[0].noise.levels.tolist()
    assert again.groups[0].noise.gains_to_uV is None
    assert again.hash() == model.hash()
    assert streamed(StreamSorter(again), samples, []) == expected


def test_what_cannot_be_streamed_is_refused_with_advice(model):
    with pytest.raises(RecordingError, match="6 channels"):
        StreamSorter(model).push(noise(10, 5))
    with pytest.raises(RecordingError, match="Convert it"):
        StreamSorter(model).push(np.zeros((10, 6), complex))
    with pytest.raises(SettingError, match="0 or more"):
        StreamSorter(model).gap(-1)
    with pytest.raises(CheckpointError, match="not in the stream"):
        StreamSorter(model, channel_ids=["a", "b"])
    with pytest.raises(SettingError, match="gain_to_uV"):
        StreamSorter(model, gain_to_uV=0.0)
    other = replace(model, preprocessing_config=PreprocessingConfig())
    with pytest.raises(CheckpointError, match="--filter live"):
        StreamSorter(other)
    with pytest.raises(SettingError, match="band-pass"):
        PreprocessingConfig(filter="live", bandpass=False)


@pytest.mark.parametrize("wild", [np.nan, np.inf, 1e30])
def test_wild_samples_add_no_spikes(model, samples, wild):
    clean = samples[:60_000].astype("float32")
    spoilt = clean.copy()
    spoilt[30_000, 2] = wild
    spoilt[31_000, SILENT] = wild  # of a silenced channel: nothing happens
    (before,), (after,) = (offline(model, traces) for traces in (clean, spoilt))
    far = [[one for one in found if not 29_900 <= one[0] <= 60_000] for found in (before, after)]
    assert far[0] == far[1]
    near = [sum(29_900 <= sample <= 33_000 for sample, _ in found) for found in (before, after)]
    assert near[1] <= near[0] + 5
    sorter = StreamSorter(model)
    found = streamed(sorter, spoilt, [29_990, 30_010])
    first, second = offline(model, clean[:30_000], clean[30_001:])
    assert found == first + [(sample + 30_001, unit) for sample, unit in second]
    assert sorter.num_samples == 60_000


def test_samples_without_a_unit_of_their_own_are_told():
    with pytest.raises(RecordingError, match="complex128"):
        preprocess_recording(NumpyRecording([noise(9000, 2) * (1 + 1j)], RATE), PreprocessingConfig())


def test_different_gains_under_a_common_median_are_told(caplog):
    recording = NumpyRecording([noise(20_000, 4)], RATE)
    recording.set_channel_gains([1.0, 1.0, 0.5, 1.0])
    preprocess_recording(recording, PreprocessingConfig(common_reference="median", bad_channels="keep"))
    assert "gains of the channels go from 0.5 to 1 uV" in caplog.text
