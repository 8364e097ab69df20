import os
import threading
import time

import numpy as np
import pytest
import scipy.stats
from spikeinterface.core import NumpyRecording

from spikewise.core.config import Config, PreprocessingConfig, RecordingConfig, SortingConfig
from spikewise.core.errors import RecordingError, SettingError
from spikewise.data.recordings.channels import SilencedRecording, draw_chunks, find_unusable, measure_noise
from spikewise.data.recordings.formats import load_recording
from spikewise.data.recordings.preprocessing import Preprocessed, preprocess_recording, split_groups
from spikewise.data.recordings.probes import attach_probe
from spikewise.data.recordings.reader import TraceReader
from spikewise.sorting.groups import Preparation, prepare_groups

FS = 20000.0
KEEP = PreprocessingConfig(bad_channels="keep")


def make_traces(num_channels: int = 4, duration_s: float = 2.0, *, common: float = 0.0, seed: int = 0):
    """Return white noise, with a part that all channels share, in units of its standard deviation."""
    rng = np.random.default_rng(seed)
    own = rng.standard_normal((round(duration_s * FS), num_channels))
    return (own + common * rng.standard_normal((len(own), 1))) * 40


def make_recording(traces, probe: str | None = None, fs: float = FS):
    segments = list(traces) if isinstance(traces, list) else [traces]
    recording = NumpyRecording(segments, fs, channel_ids=[f"c{i}" for i in range(segments[0].shape[1])])
    return attach_probe(recording, probe or f"linear-{segments[0].shape[1]}")


def noise_of(traces):
    return scipy.stats.median_abs_deviation(traces, axis=0, scale="normal")


# ---------------------------------------------------------------- groups


def test_groups_are_split_by_probe_and_named():
    recording = make_recording(make_traces(8), "tetrode-2")
    groups = split_groups(recording, "auto")
    assert list(groups) == ["0", "1"]
    assert groups["1"].channel_ids.tolist() == ["c4", "c5", "c6", "c7"]
    np.testing.assert_array_equal(groups["1"].get_traces(), recording.get_traces()[:, 4:])
    np.testing.assert_allclose(groups["1"].get_channel_locations()[0], [310, 0])
    assert split_groups(recording, "none") == {"0": recording}
    assert split_groups(groups["1"], "auto") == {"0": groups["1"]}
    with pytest.raises(SettingError, match=r"'shank'.*one of 'auto', 'none'"):
        split_groups(recording, "shank")


def test_groups_keep_the_names_of_their_property():
    recording = make_recording(make_traces(4))
    recording.set_property("group", ["right", "left", "right", "left"])
    groups = split_groups(recording)
    assert {name: part.channel_ids.tolist() for name, part in groups.items()} == {
        "left": ["c1", "c3"],
        "right": ["c0", "c2"],
    }


# ---------------------------------------------------------------- filter, reference, scale


def test_output_is_float32_in_units_of_noise_with_the_same_channels():
    traces = make_traces(4) * [1, 2, 5, 10]
    recording = make_recording((traces + 2044).astype(np.int16))
    recording.set_channel_gains(0.195)
    recording.set_channel_offsets(0.0)
    result = preprocess_recording(recording, PreprocessingConfig())
    out = result.recording.get_traces()
    assert isinstance(result, Preprocessed)
    assert out.dtype == np.float32
    assert result.recording.channel_ids.tolist() == recording.channel_ids.tolist()
    np.testing.assert_array_equal(result.recording.get_channel_locations(), recording.get_channel_locations())
    np.testing.assert_allclose(noise_of(out), 1, rtol=0.02)
    np.testing.assert_allclose(np.median(out, axis=0), 0, atol=0.02)
    expected_ratio = result.noise_levels / result.noise_levels[0]
    np.testing.assert_allclose(expected_ratio, [1, 2, 5, 10], rtol=0.05)
    assert not result.recording.has_scaleable_traces()
    assert result.steps[0] == "band-pass 300-6000 Hz"
    assert result.silenced_channel_ids == ()


def test_the_band_passes_what_is_inside_and_stops_what_is_outside():
    t = np.arange(round(2 * FS)) / FS
    tones = {30: 0, 1500: 1, 9500: 2}
    traces = make_traces(3) * 0.01 + 1000 * np.stack([np.sin(2 * np.pi * f * t) for f in tones], axis=1)
    result = preprocess_recording(make_recording(traces), KEEP)
    power = (result.recording.get_traces()[1000:-1000] * result.noise_levels).std(axis=0)
    assert power[1] == pytest.approx(1000 / np.sqrt(2), rel=0.01)
    assert power[0] < 1
    assert power[2] < 1


def test_upper_edge_is_lowered_to_what_the_sampling_frequency_allows():
    result = preprocess_recording(make_recording(make_traces(), fs=10000.0), KEEP)
    assert result.steps[0] == "band-pass 300-4500 Hz"
    with pytest.raises(RecordingError, match=r"600 Hz, too low.*from 300 Hz.*ends at 270 Hz"):
        preprocess_recording(make_recording(make_traces(), fs=600.0), KEEP)


def test_a_low_edge_is_accepted():
    config = PreprocessingConfig(bad_channels="keep", freq_min_hz=50.0)
    assert preprocess_recording(make_recording(make_traces()), config).steps[0] == "band-pass 50-6000 Hz"


def test_without_the_filter_the_traces_are_only_centred_and_scaled():
    traces = make_traces(4).astype(np.float32) + np.float32(300)
    config = PreprocessingConfig(bandpass=False)
    result = preprocess_recording(make_recording(traces), config)
    assert "subtracted the median of each channel" in result.steps
    out = result.recording.get_traces()
    np.testing.assert_allclose(np.median(out, axis=0), 0, atol=0.03)
    slope = (out[1:] - out[:1]) * result.noise_levels
    np.testing.assert_allclose(slope, traces[1:] - traces[:1], atol=1e-2)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", "int16", "float64"])
def test_every_type_gives_the_same_result(dtype):
    traces = np.clip(np.round(make_traces(4) / 8), -120, 120)
    shift = 128 if dtype == "uint8" else 2**15 if dtype.startswith("u") else 0
    reference = preprocess_recording(make_recording(traces.astype(np.float32)), KEEP)
    result = preprocess_recording(make_recording((traces + shift).astype(dtype)), KEEP)
    inside = slice(400, -400)  # the filter rings at the edges where there is an offset
    np.testing.assert_allclose(
        result.recording.get_traces()[inside], reference.recording.get_traces()[inside], atol=0.01
    )
    np.testing.assert_allclose(result.noise_levels, reference.noise_levels, rtol=1e-2)


@pytest.mark.parametrize(
    ("mode", "num_channels", "referenced"),
    [("auto", 15, False), ("auto", 16, True), ("median", 4, True), ("none", 16, False)],
)
def test_common_reference_takes_away_what_all_channels_share(mode, num_channels, referenced):
    recording = make_recording(make_traces(num_channels, common=3.0))
    config = PreprocessingConfig(bad_channels="keep", common_reference=mode)
    result = preprocess_recording(recording, config)
    first, second = result.recording.get_traces()[:, :2].T
    assert (np.corrcoef(first, second)[0, 1] < 0.3) == referenced
    line = f"common median reference over {num_channels} of {num_channels} channels"
    assert (line in result.steps) == referenced


def test_reference_leaves_silenced_channels_out():
    traces = make_traces(16)
    traces[:, 3] *= 1e4
    traces[:, 4] = np.nan
    config = PreprocessingConfig(exclude_channels=("c3", "c4"), bad_channels="keep")
    result = preprocess_recording(make_recording(traces), config)
    out, good = result.recording.get_traces(), [i for i in range(16) if i not in (3, 4)]
    assert "common median reference over 14 of 16 channels" in result.steps
    np.testing.assert_allclose(np.median((out * result.noise_levels)[:, good], axis=1), 0, atol=1e-3)
    assert (out[:, [3, 4]] == 0).all()


def test_the_only_channel_left_is_not_erased():
    config = PreprocessingConfig(common_reference="median", exclude_channels=("c0",))
    result = preprocess_recording(make_recording(make_traces(2)), config)
    assert "common median reference left out: it would erase the only channel" in result.steps
    np.testing.assert_allclose(noise_of(result.recording.get_traces()[:, 1]), 1, rtol=0.02)


def test_a_recording_without_noise_is_scaled_by_its_standard_deviation():
    traces = np.zeros((round(FS), 2), dtype=np.float32)
    traces[::1000] = 50
    result = preprocess_recording(make_recording(traces), PreprocessingConfig(bandpass=False))
    np.testing.assert_allclose(result.noise_levels, 50 * np.sqrt(0.001 * 0.999), rtol=0.02)


# ---------------------------------------------------------------- channels that are silenced


def spoil(traces, kind):
    traces[:, 2] = {"constant": 7.0, "zero": 0.0}.get(kind, traces[:, 2])
    if kind in ("nan", "inf"):
        traces[: len(traces) * 3 // 4, 2] = np.nan if kind == "nan" else np.inf
    return traces


@pytest.mark.parametrize("kind", ["constant", "zero", "nan", "inf"])
def test_unusable_channels_stop_or_are_exactly_zero(kind):
    recording = make_recording(spoil(make_traces(4), kind))
    with pytest.raises(
        RecordingError, match=r"1 of 4 channels are unusable: c2 \(.*--exclude-channels.*silence"
    ):
        preprocess_recording(recording, PreprocessingConfig())
    result = preprocess_recording(recording, PreprocessingConfig(unusable_channels="silence"))
    out = result.recording.get_traces()
    assert result.silenced_channel_ids == ("c2",)
    assert (out[:, 2] == 0).all()
    assert np.isnan(result.noise_levels).tolist() == [False, False, True, False]
    np.testing.assert_allclose(noise_of(out[:, [0, 1, 3]]), 1, rtol=0.02)
    reason = "NaN or infinite" if kind in ("nan", "inf") else "constant"
    assert f"silenced 1 channel: c2 ({reason})" in result.steps


def test_channels_that_are_not_finite_for_less_than_half_of_the_time_are_usable():
    segments = [make_traces(2, 3.0), make_traces(2, 3.0)]
    segments[1][-3, 1] = np.nan
    assert find_unusable(NumpyRecording(segments, FS), seed=0) == {}
    for traces in segments:
        traces[:-100, 1] = np.nan
    assert find_unusable(NumpyRecording(segments, FS), seed=0) == {"1": "NaN or infinite"}


def test_a_channel_that_changes_only_between_chunks_is_not_constant():
    traces = make_traces(2, 3.0)
    traces[:, 1] = 0
    traces[: len(traces) // 2, 1] = 1
    assert find_unusable(NumpyRecording([traces], FS), seed=0) == {}


def test_many_unusable_channels_are_counted_after_ten():
    traces = make_traces(14)
    traces[:, 1:13] = 0
    with pytest.raises(RecordingError, match=r"12 of 14 .*c10 \(constant\) and 2 more\."):
        preprocess_recording(make_recording(traces), PreprocessingConfig())


def test_no_channel_left_is_always_an_error():
    silence = PreprocessingConfig(unusable_channels="silence")
    with pytest.raises(RecordingError, match="All channels of the recording are unusable"):
        preprocess_recording(make_recording(np.zeros((20000, 3))), silence)
    traces = make_traces(3)
    traces[:, 0] = 0
    config = PreprocessingConfig(unusable_channels="silence", exclude_channels=("c1", "c2"))
    with pytest.raises(RecordingError, match=r"No channel is left of 3: c1 \(excluded\)"):
        preprocess_recording(make_recording(traces), config)


def test_excluded_channels_must_exist_in_the_whole_recording():
    recording = make_recording(make_traces(8), "tetrode-2")
    config = PreprocessingConfig(exclude_channels=("c5",))
    groups = split_groups(recording)
    assert preprocess_recording(groups["0"], config).silenced_channel_ids == ()
    assert preprocess_recording(groups["1"], config).silenced_channel_ids == ("c5",)
    with pytest.raises(RecordingError, match=r"no channel c50.*channels are c0, c1"):
        prepare_groups(recording, Preparation.of(Config.from_options(exclude_channels=["c50"])))
    with pytest.raises(RecordingError, match=r"no channel c5.*channels are c0, c1, c2, c3\."):
        prepare_groups(groups["0"], Preparation.of(Config.from_options(exclude_channels=["c5"])))


def test_given_silenced_channels_replace_excluded_and_detected_ones():
    traces = make_traces(4)
    traces[:, 3] *= 50
    config = PreprocessingConfig(exclude_channels=("c0",))
    detected = preprocess_recording(make_recording(traces), config)
    assert detected.silenced_channel_ids == ("c0", "c3")
    given = preprocess_recording(make_recording(traces), config, silenced_channel_ids=["c2", "c1"])
    assert given.silenced_channel_ids == ("c1", "c2")
    assert (given.recording.get_traces() == 0).all(axis=0).tolist() == [False, True, True, False]
    traces[:, 0] = 0
    with pytest.raises(RecordingError, match=r"unusable: c0 \(constant\)"):
        preprocess_recording(make_recording(traces), config, silenced_channel_ids=["c1"])


def test_integer_channel_ids_are_named_as_text():
    recording = NumpyRecording([make_traces(4)], FS)
    recording = attach_probe(recording, "tetrode")
    result = preprocess_recording(recording, PreprocessingConfig(exclude_channels=("2",)))
    assert result.silenced_channel_ids == ("2",)
    assert (result.recording.get_traces()[:, 2] == 0).all()


# ---------------------------------------------------------------- detection


@pytest.mark.parametrize("unit", [1e-4, 1.0, 1e3])
def test_noisy_and_dead_channels_of_a_probe_are_found_whatever_the_unit(unit):
    traces = make_traces(24, 4.0, common=2.0)
    traces[:, 5] *= 0.1
    traces[:, 11] *= 20
    traces[:, 17] *= 3
    traces *= unit
    result = preprocess_recording(make_recording(traces), PreprocessingConfig(bandpass=unit < 1))
    assert result.silenced_channel_ids == ("c5", "c11")
    assert "silenced 2 channels: c5 (dead), c11 (noisy)" in result.steps
    assert "common median reference over 22 of 24 channels" in result.steps
    kept = preprocess_recording(make_recording(traces), KEEP)
    assert kept.silenced_channel_ids == ()


def test_good_channels_that_share_no_noise_are_kept():
    result = preprocess_recording(make_recording(make_traces(24, 4.0)), PreprocessingConfig())
    assert result.silenced_channel_ids == ()


def test_silenced_channels_are_zero_however_they_are_asked_for():
    traces = make_traces(5, 0.01)
    recording = SilencedRecording(make_recording(traces), ["c1", "c3"])
    expected = traces * [1, 0, 1, 0, 1]
    np.testing.assert_array_equal(recording.get_traces(), expected)
    for names in (["c3"], ["c2", "c3"], ["c1", "c3", "c4"], ["c4", "c1"], ["c0", "c2"]):
        columns = [int(name[1]) for name in names]
        np.testing.assert_array_equal(recording.get_traces(channel_ids=names), expected[:, columns])
    np.testing.assert_array_equal(SilencedRecording(recording.get_parent(), []).get_traces(), traces)


@pytest.mark.parametrize("num_channels", [3, 4, 24])
def test_good_channels_are_kept_whatever_their_unit(num_channels):
    """White noise far above the microvolt threshold that SpikeInterface would apply is no reason."""
    for scale in (1e-4, 1.0, 1e3):
        recording = make_recording(make_traces(num_channels) * scale)
        assert preprocess_recording(recording, PreprocessingConfig()).silenced_channel_ids == ()


def test_detection_that_finds_too_many_is_not_believed():
    traces = make_traces(20, common=2.0) * np.where(np.arange(20) % 5 < 2, 30, 1)
    result = preprocess_recording(make_recording(traces), PreprocessingConfig(common_reference="none"))
    assert result.silenced_channel_ids == ()
    assert any(step.startswith("kept all channels: ") and "of 20 look bad" in step for step in result.steps)


@pytest.mark.parametrize("num_samples", [34, 200, 1999])
@pytest.mark.parametrize("num_channels", [1, 4, 20])
def test_short_recordings_work(num_samples, num_channels):
    traces = make_traces(num_channels, 1.0)[:num_samples]
    result = preprocess_recording(make_recording(traces), PreprocessingConfig())
    assert np.isfinite(result.recording.get_traces()).all()
    assert any("bad-channel detection left out" in step for step in result.steps)


def test_a_segment_too_short_for_the_filter_is_named():
    recording = make_recording([make_traces(2, 1.0), make_traces(2, 1.0)[:33]])
    with pytest.raises(RecordingError, match="Segment 1 of the recording has 33 samples"):
        preprocess_recording(recording, PreprocessingConfig())
    result = preprocess_recording(recording, PreprocessingConfig(bandpass=False))
    assert result.recording.get_num_samples(1) == 33


# ---------------------------------------------------------------- what is measured, and how


def test_chunks_lie_in_segments_and_are_seeded():
    segments = [make_traces(1, d) for d in (0.2, 3.0, 0.5, 30.0)]
    recording = NumpyRecording(segments, FS)
    chunks = draw_chunks(recording, 0.5, seed=3)
    assert len(chunks) == 10
    assert chunks == sorted(chunks) == draw_chunks(recording, 0.5, seed=3)
    assert chunks != draw_chunks(recording, 0.5, seed=4)
    for segment_index, start, stop in chunks:
        assert stop - start == 10000
        assert start >= 0
        assert stop <= len(segments[segment_index])
    assert sum(segment_index == 3 for segment_index, _, _ in chunks) >= 6
    every = {
        c for seed in range(40) for c in draw_chunks(NumpyRecording([segments[0][:6]], FS), 5 / FS, seed)
    }
    assert every == {(0, 0, 5), (0, 1, 6)}


def test_noise_is_exact_where_all_is_read():
    traces = make_traces(3, 0.4) + 11
    noise_levels, medians = measure_noise(NumpyRecording([traces], FS), seed=0)
    np.testing.assert_allclose(noise_levels, noise_of(traces), rtol=1e-6)
    np.testing.assert_allclose(medians, np.median(traces, axis=0), rtol=1e-6)


def test_the_same_seed_gives_the_same_traces():
    recording = make_recording(make_traces(4, 8.0))
    first, same, other = (
        preprocess_recording(recording, PreprocessingConfig(), seed=seed).noise_levels for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()


# ---------------------------------------------------------------- reading


@pytest.fixture
def preprocessed():
    recording = make_recording([make_traces(4, 0.5), make_traces(4, 0.311, seed=5)])
    return preprocess_recording(recording, PreprocessingConfig()).recording


def test_reads_are_slices_of_one_another(preprocessed):
    whole = {i: TraceReader(preprocessed, 0.1).read(i, 0, preprocessed.get_num_samples(i)) for i in (0, 1)}
    reader = TraceReader(preprocessed, 0.1)
    assert reader.num_segments == 2
    assert (reader.num_channels, reader.sampling_frequency, reader.num_samples(1)) == (4, FS, 6220)
    rng = np.random.default_rng(0)
    edges = [0, 1, 1999, 2000, 2001, 4000, 6219, 6220]
    starts = np.concatenate([edges, rng.integers(0, 6220, 40)])
    stops = np.concatenate([edges[::-1], starts[8:] + rng.integers(0, 5000, 40)])
    for index, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        stop = min(stop, 6220)
        piece = reader.read(index % 2, start, stop)
        assert piece.dtype == np.float32
        np.testing.assert_array_equal(piece, whole[index % 2][start:stop] if stop > start else piece[:0])
    direct = preprocessed.get_traces(0, 2500, 2600)
    np.testing.assert_allclose(direct, whole[0][2500:2600], atol=0.05)


def test_frames_outside_a_segment_are_zeros(preprocessed):
    reader = TraceReader(preprocessed, 0.1)
    end = reader.num_samples(1)
    whole = reader.read(1, 0, end)
    wide = reader.read(1, -70, end + 90)
    assert wide.shape == (end + 160, 4)
    assert (wide[:70] == 0).all()
    assert (wide[-90:] == 0).all()
    np.testing.assert_array_equal(wide[70:-90], whole)
    for start, stop in [(-50, -10), (end + 5, end + 20), (end + 5000, end + 5020), (30, 30)]:
        outside = reader.read(1, start, stop)
        assert outside.shape == (stop - start, 4)
        assert (outside == 0).all()


def test_few_blocks_are_kept_and_read_again_only_when_needed(preprocessed, monkeypatch):
    asked = []
    get_traces = preprocessed.get_traces

    def spy(segment_index, start, stop):
        asked.append((segment_index, start, stop))
        return get_traces(segment_index, start, stop)

    monkeypatch.setattr(preprocessed, "get_traces", spy)
    reader = TraceReader(preprocessed, 0.1)
    reader.read(0, 1900, 2100)
    reader.read(0, 0, 4000)
    assert asked == [(0, 0, 2000), (0, 2000, 4000)]
    reader.read(1, 6100, 6220)
    assert asked[-1] == (1, 6000, 6220)
    reader.read(0, 10, 20)
    reader.read(0, 4000, 4001)
    assert len(asked) == 4
    reader.read(0, 10, 20)
    assert len(asked) == 4
    reader.read(0, 2000, 2001)
    assert len(asked) == 5


@pytest.mark.parametrize("damage", ["skip", "keep"])
def test_samples_of_the_other_byte_order_are_the_same_numbers(damage):
    traces = make_traces(4, 1.0).astype("int16")
    found = [
        preprocess_recording(
            make_recording(traces.astype(dtype)), PreprocessingConfig(), damage=SortingConfig(damage=damage)
        ).recording.get_traces()
        for dtype in ("<i2", ">i2")
    ]
    np.testing.assert_array_equal(*found)


def test_blocks_are_read_ahead_once_and_by_one_thread_at_a_time(preprocessed, monkeypatch):
    asked, at_once, most = [], 0, 0
    get_traces, lock = preprocessed.get_traces, threading.Lock()

    def spy(segment_index, start, stop):
        nonlocal at_once, most
        with lock:
            at_once, most = at_once + 1, max(most, at_once + 1)
        time.sleep(0.05)
        traces = get_traces(segment_index, start, stop)
        with lock:
            asked.append((segment_index, start, stop))
            at_once -= 1
        return traces

    monkeypatch.setattr(preprocessed, "get_traces", spy)
    alone, reader = TraceReader(preprocessed, 0.1), TraceReader(preprocessed, 0.1)
    expected = alone.read(0, 100, 7900)
    asked.clear()
    found = []
    for start in range(0, 8000, 2000):
        reader.read_ahead(0, start + 2000, min(start + 4000, 8000))
        found.append(reader.read(0, max(start, 100), min(start + 2000, 7900)))
    np.testing.assert_array_equal(np.concatenate(found), expected)
    assert sorted(asked) == [(0, start, start + 2000) for start in range(0, 8000, 2000)]
    assert most == 1


def test_what_goes_wrong_ahead_is_told_where_it_is_asked_for(preprocessed, monkeypatch):
    get_traces = preprocessed.get_traces

    def broken(segment_index, start, stop):
        if start == 2000:
            raise OSError("the disk is gone")
        return get_traces(segment_index, start, stop)

    monkeypatch.setattr(preprocessed, "get_traces", broken)
    reader = TraceReader(preprocessed, 0.1)
    reader.read_ahead(0, 0, 4000)
    assert len(reader.read(0, 0, 2000)) == 2000
    with pytest.raises(RecordingError, match="disk is gone"):
        reader.read(0, 2000, 2100)


def test_nan_that_appears_later_is_named_with_its_time_where_damage_is_kept():
    traces = make_traces(20, 60.0)
    config = PreprocessingConfig(exclude_channels=("c1",), bad_channels="keep")
    chunks = draw_chunks(make_recording(traces), 0.5, seed=0)
    frame = next(
        f for f in range(30000, len(traces), 1000) if all(not a - 900 < f < b + 900 for _, a, b in chunks)
    )
    traces[frame, 7] = np.nan
    traces[frame, 1] = np.nan
    keep = SortingConfig(damage="keep")
    reader = TraceReader(preprocess_recording(make_recording(traces), config, damage=keep).recording)
    seconds = rf"{frame / FS:.3f}"
    with pytest.raises(RecordingError, match=rf"of 1 channels .*at {seconds} s of segment 0: c7\."):
        reader.read(0, frame, frame + 10)
    before = frame - 3 * int(FS)
    if before > 0:
        assert np.isfinite(reader.read(0, before, before + 10)).all()


def test_nan_without_preprocessing_is_named_too():
    traces = make_traces(3)
    traces[1234, 2] = np.inf
    with pytest.raises(RecordingError, match=r"at 0\.062 s of segment 0: c2\."):
        TraceReader(make_recording(traces)).read(0, 0, 10)


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "a.bin"
    make_traces(4, 3.0).astype(np.int16).tofile(path)
    config = RecordingConfig(sampling_frequency=FS, num_channels=4, dtype="int16")
    recording = attach_probe(load_recording(path, config), "tetrode")
    reader = TraceReader(preprocess_recording(recording, PreprocessingConfig()).recording)
    os.truncate(path, 8 * 20000)
    with pytest.raises(RecordingError, match=r"from 2\.000 s on cannot be read"):
        reader.read(0, 50000, 50010)
    with pytest.raises(RecordingError, match="cannot be read"):
        preprocess_recording(recording, PreprocessingConfig())


def test_block_length_must_be_positive(preprocessed):
    with pytest.raises(SettingError, match=r"is 0 s.*above 0"):
        TraceReader(preprocessed, 0)


# ---------------------------------------------------------------- real data


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "band"),
    [
        ("locust20010201_trial01_raw_tetrode_unlabelled.npz", "band-pass 300-6000 Hz"),
        ("hc1_d533101_raw5s_4ch_intracellular_gt.npz", "band-pass 300-4500 Hz"),
    ],
)
def test_real_tetrodes_have_unit_noise(data_folder, name, band):
    recording = attach_probe(load_recording(data_folder / "real" / name), "tetrode")
    result = preprocess_recording(recording, PreprocessingConfig())
    assert result.steps[0] == band
    assert result.silenced_channel_ids == ()
    traces = TraceReader(result.recording).read(0, 0, recording.get_num_samples(0))
    np.testing.assert_allclose(noise_of(traces), 1, rtol=0.1)
    np.testing.assert_allclose(np.median(traces, axis=0), 0, atol=0.1)
    assert (np.abs(traces).max(axis=0) > 5).all()
