"""Labels from a sorter: each rule exact on constructed units, and real sorters run from end to end."""

from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest
from probeinterface import generate_tetrode
from spikeinterface.comparison import compare_sorter_to_ground_truth
from spikeinterface.core import (
    NumpyRecording,
    NumpySorting,
    append_recordings,
    generate_ground_truth_recording,
)
from spikeinterface.core.time_series_tools import get_random_sample_slices
from spikeinterface.preprocessing import scale

import spikewise.discovery.bootstrap as bootstrap
from spikewise.core.config import BootstrapConfig, PreprocessingConfig
from spikewise.core.errors import BootstrapError
from spikewise.data.labels.label_set import LabelSet, mean_waveforms
from spikewise.data.recordings.preprocessing import preprocess_recording
from spikewise.data.recordings.reader import TraceReader
from spikewise.discovery.bootstrap import bootstrap_labels, initial_interval
from spikewise.discovery.other_sorters import sorter_parameters
from spikewise.discovery.unit_rules import clean_units

FREQUENCY = 10000.0
NOISE_UV = 5.0


def make_found(trains, *, stop_frame=60000, segments=(60000,)):
    """Units as a sorter might find them, from global frames."""
    starts = np.cumsum([0, *segments[:-1]])
    parts = [
        {u: np.array([f - s for f in train if s <= f < s + n], np.int64) for u, train in trains.items()}
        for s, n in zip(starts, segments, strict=True)
    ]
    sorting = NumpySorting.from_unit_dict(parts, FREQUENCY)
    return LabelSet(sorting, 0, stop_frame, "test", tuple(int(s) for s in starts))


def make_traces(*spikes, num_channels=3, segments=(60000,)):
    """Silent traces with (frames, channel, height)."""
    traces = np.zeros((sum(segments), num_channels), np.float32)
    for frames, channel, height in spikes:
        traces[np.asarray(frames), channel] = height
    pieces = np.split(traces, np.cumsum(segments)[:-1])
    return TraceReader(NumpyRecording(pieces, FREQUENCY))


def clean(trains, *spikes, **settings):
    return clean_units(make_found(trains), make_traces(*spikes), BootstrapConfig(**settings))


def every(step, start, count):
    return np.arange(count) * step + start


# Rules


def test_too_few_spikes():
    few, enough = every(1000, 100, 9), every(1000, 600, 10)
    cleaned = clean({"a": few, "b": enough}, (few, 0, -9), (enough, 1, -9))
    assert cleaned.dropped == {"a": {"reason": "too few spikes", "num_spikes": 9, "limit": 10}}
    assert {index: train.tolist() for index, train in cleaned.trains.items()} == {1: enough.tolist()}
    assert cleaned.main_channels == {1: 1}


def with_short_intervals(train, count, interval):
    train = train.copy()
    train[1 : 2 * count : 2] = train[0 : 2 * count : 2] + interval
    return train


def test_refractory_violations():
    clean_train = every(1000, 100, 21)  # 20 intervals
    trains = {
        0: with_short_intervals(clean_train, 3, 14),  # 1.4 ms, 3 of 20
        1: with_short_intervals(clean_train + 300, 2, 14),  # 2 of 20 is the limit
        2: with_short_intervals(clean_train + 600, 3, 15),  # 1.5 ms is none
    }
    spikes = [(train, unit, -9) for unit, train in trains.items()]
    cleaned = clean(trains, *spikes)
    assert cleaned.dropped == {"0": {"reason": "refractory violations", "fraction": 0.15, "limit": 0.1}}
    assert list(cleaned.trains) == [1, 2]


def test_low_amplitude():
    trains = {unit: every(1000, 100 + 200 * unit, 20) for unit in range(3)}
    spikes = [(trains[0], 0, -2.25), (trains[1], 1, -2.5), (trains[2], 2, 2.75)]
    cleaned = clean(trains, *spikes)
    assert cleaned.dropped == {"0": {"reason": "low amplitude", "amplitude": 2.25, "limit": 2.5}}
    assert cleaned.main_channels == {1: 1, 2: 2}


def test_amplitude_is_that_of_the_mean():
    train = every(1000, 100, 20)
    assert clean({0: train}, (train[:10], 0, -7), (train[10:], 1, -7)).trains
    cleaned = clean({0: train}, (train[:7], 0, -7), (train[7:14], 1, -7), (train[14:], 2, -7))
    assert cleaned.dropped["0"]["amplitude"] == pytest.approx(2.45)


def test_amplitude_is_of_at_most_200_spikes():
    train = every(140, 100, 400)
    kept = np.rint(np.linspace(0, 399, 200)).astype(int)
    others = np.setdiff1d(np.arange(400), kept)
    assert clean({0: train}, (train[others], 0, -50)).dropped["0"]["reason"] == "low amplitude"
    assert clean({0: train}, (train[kept], 0, -4)).trains


@pytest.mark.parametrize(
    ("distance", "moved"), [(0, 0), (7, 7), (-3, -3), (10, 10), (-10, -10), (11, 0), (-11, 0)]
)
def test_labels_move_onto_the_main_peak(distance, moved):
    train = every(1000, 100, 20)
    cleaned = clean({0: train}, (train + distance, 1, -9), (train, 0, -1))
    assert cleaned.trains[0].tolist() == (train + moved).tolist()


def test_moved_labels_stay_in_their_segment_and_the_interval():
    train = np.sort([*every(100, 100, 20), 2997, 2999, 3300, 3997])
    segments = (3000, 2000)
    shape = (np.setdiff1d(train + 3, [3000, 3002]), 0, -9)
    found = make_found({0: train}, stop_frame=4000, segments=segments)
    cleaned = clean_units(found, make_traces(shape, segments=segments), BootstrapConfig())
    assert cleaned.trains[0].tolist() == [*(every(100, 100, 20) + 3), 3303]


def test_of_two_units_with_the_same_spikes_the_smaller_goes():
    large, other = every(1000, 100, 50), every(1000, 600, 50)
    small = np.sort([*(large[:34] + 4), *(other[:6] + 100)])  # 0.4 ms: 34 of 40, agreement 34 / 56
    shifted = np.sort([*(large[:34] + 5), *(other[:6] + 200)])  # 0.5 ms
    trains = {"small": small, "large": large, "other": other, "shifted": shifted}
    spikes = [(large, 0, -9), (other, 1, -9), (small, 2, -8), (shifted, 2, -8)]
    cleaned = clean(trains, *spikes, bootstrap_max_agreement=0.6)
    assert list(cleaned.dropped) == ["small"]
    reason = cleaned.dropped["small"]
    assert reason["agreement"] == pytest.approx(34 / 56)
    assert reason["contained"] == pytest.approx(0.85)
    assert (reason["reason"], reason["of"], reason["limit"]) == ("duplicate", "large", 0.6)


def test_contained_and_agreeing_units_go_each_by_its_own_limit():
    large = every(1000, 100, 50)
    trains = {
        0: large,
        1: np.sort([*large[:40:2], 555, 1555, 2555, 3555, 4555]),  # 20 of 25 is not more than 0.8
        2: np.sort([*large[1:40:2], 666, 1666, 2666, 3666]),  # 20 of 24 is
        3: np.sort([*large[10:], *every(1000, 777, 10)]),  # agreement 40 / 60
    }
    extras = [(np.array(trains[unit]), unit, -9) for unit in range(3)]
    traces = (*extras, (trains[3][trains[3] % 1000 == 777], 0, -9))
    assert list(clean(trains, *traces, bootstrap_max_agreement=0.5).dropped) == ["3", "2"]
    assert list(clean(trains, *traces, bootstrap_max_agreement=0.67).dropped) == ["2"]


def test_a_dropped_unit_drops_no_other():
    # b shares its spikes with a, c with b, c not with a
    a = every(500, 100, 100)
    b = np.sort([*a[:70], *every(500, 300, 25)])
    c = np.sort([*a[:20], *every(500, 300, 25), *every(500, 400, 5)])
    cleaned = clean({"a": a, "b": b, "c": c}, (a, 0, -9), (b, 0, -9), (c, 1, -9))
    assert {unit: reason["of"] for unit, reason in cleaned.dropped.items()} == {"b": "a"}


def test_of_equal_duplicates_the_first_stays():
    train = every(1000, 100, 20)
    cleaned = clean({"x": train, "y": train + 2}, (train, 0, -9))
    assert {unit: reason["of"] for unit, reason in cleaned.dropped.items()} == {"y": "x"}


def test_duplicates_are_found_after_alignment():
    train = every(1000, 100, 20)
    cleaned = clean({"late": train + 9, "true": train}, (train, 0, -9))
    assert list(cleaned.dropped) == ["true"]
    assert cleaned.trains[0].tolist() == train.tolist()


def test_a_unit_falls_by_the_first_rule_it_breaks():
    cleaned = clean({0: [100, 105, 110], 1: every(10, 100, 30)})
    reasons = [reason["reason"] for reason in cleaned.dropped.values()]
    assert reasons == ["too few spikes", "refractory violations"]
    assert cleaned.trains == {}


# The sorter's input


def make_tetrode(duration_s=8.0, frequency=15000.0, num_units=3, seed=5):
    """Recording in uV with noise of NOISE_UV, its truth, and the same in noise units."""
    probe = generate_tetrode()
    probe.set_device_channel_indices(np.arange(4))
    recording, truth = generate_ground_truth_recording(
        durations=[duration_s],
        sampling_frequency=frequency,
        num_units=num_units,
        probe=probe,
        generate_unit_locations_kwargs={"margin_um": 5.0, "minimum_z": 5.0, "maximum_z": 15.0},
        noise_kwargs={"noise_levels": NOISE_UV, "strategy": "on_the_fly"},
        seed=seed,
    )
    recording = NumpyRecording.from_recording(recording, n_jobs=1, progress_bar=False)
    return recording, truth, scale(recording, gain=1 / NOISE_UV)


def make_silence(num_samples=150000, frequency=15000.0, seed=0):
    traces = np.random.default_rng(seed).normal(0, 20, (num_samples, 4)).astype(np.int16)
    recording = NumpyRecording(traces, frequency)
    probe = generate_tetrode()
    probe.set_device_channel_indices(np.arange(4))
    recording.set_probe(probe)
    return recording


def test_initial_interval_joins_segments_and_leaves_channels_out():
    whole = make_silence(1000)
    parts = append_recordings(
        [whole.frame_slice(0, 300), whole.frame_slice(300, 500), whole.frame_slice(500, 1000)]
    )
    interval = initial_interval(parts, 450, ["1"])
    assert interval.get_num_segments() == 1
    assert interval.channel_ids.tolist() == [0, 2, 3]
    np.testing.assert_array_equal(interval.get_traces(), whole.get_traces()[:450, [0, 2, 3]])
    np.testing.assert_array_equal(interval.get_channel_locations(), whole.get_channel_locations()[[0, 2, 3]])
    assert initial_interval(parts, 300).get_num_samples() == 300
    with pytest.raises(BootstrapError, match="Every channel"):
        initial_interval(parts, 450, ["0", "1", "2", "3"])


@pytest.mark.parametrize(("frequency", "edge_hz"), [(10000.0, 4500.0), (30000.0, 7000.0)])
def test_band_pass_stays_below_the_nyquist_frequency(frequency, edge_hz):
    recording = make_silence(100, frequency)
    assert sorter_parameters("lupin", recording, 3)["freq_max"] == edge_hz
    assert sorter_parameters("tridesclous2", recording, 3)["freq_max"] == min(edge_hz, 6000.0)
    assert sorter_parameters("spykingcircus2", recording, 3)["filtering"]["freq_max"] == edge_hz
    assert sorter_parameters("lupin", recording, 3)["seed"] == 3


def test_short_recordings_are_refused(tmp_path):
    recording = make_silence(29999)
    with pytest.raises(BootstrapError, match=r"lasts 2\.000 s.*At least 2 s"):
        bootstrap_labels(recording, BootstrapConfig(bootstrap="lupin"), recording, 0, tmp_path)
    assert not list(tmp_path.iterdir())


def test_interval_ends_with_the_recording():
    recording = make_silence(45000)
    assert bootstrap._interval_frames(recording, 60.0) == 45000
    assert bootstrap._interval_frames(recording, 2.5) == 37500


def test_a_sorter_without_units_is_an_error(tmp_path, monkeypatch):
    # no sorter can be made to find nothing without failing
    empty = NumpySorting.from_unit_dict({}, 15000.0)
    monkeypatch.setattr("spikewise.discovery.other_sorters.run_sorter", lambda *args, **kwargs: empty)
    recording = make_silence()
    with pytest.raises(BootstrapError, match=r"Lupin found no unit .*\(10 s\)"):
        bootstrap_labels(recording, BootstrapConfig(bootstrap="lupin"), recording, 0, tmp_path)


def test_missing_sorter_is_named(tmp_path):
    if "kilosort4" in bootstrap.installed_sorters():
        pytest.skip("Kilosort4 is installed")
    recording = make_silence()
    with pytest.raises(BootstrapError, match=r"kilosort4 is not installed.*lupin, tridesclous2"):
        bootstrap_labels(recording, BootstrapConfig(bootstrap="kilosort4"), recording, 0, tmp_path)


# Real sorters


def run(recording, preprocessed, folder, sorter="spykingcircus2", silenced=(), **settings):
    config = BootstrapConfig(bootstrap=sorter, **settings)
    return bootstrap_labels(recording, config, preprocessed, 0, folder, silenced)


@pytest.fixture(scope="module")
def sorted_tetrode(tmp_path_factory):
    recording, truth, preprocessed = make_tetrode()
    folder = tmp_path_factory.mktemp("bootstrap")
    return run(recording, preprocessed, folder, bootstrap_s=6.0), truth, folder, recording, preprocessed


def test_a_real_sorter_gives_the_true_units(sorted_tetrode):
    result, truth, *_ = sorted_tetrode
    label_set = result.label_set
    assert (label_set.start_frame, label_set.stop_frame) == (0, 90000)
    assert label_set.sorting.unit_ids.tolist() == [0, 1, 2]
    assert label_set.sorting.to_spike_vector()["sample_index"].max() < 90000
    matched = compare_sorter_to_ground_truth(truth.frame_slice(0, 90000), label_set.sorting)
    assert matched.get_performance()["accuracy"].min() > 0.9
    assert (result.sorter, result.num_found - len(result.dropped)) == ("spykingcircus2", 3)
    assert result.sorter_version.startswith("20")
    assert result.seconds > 0
    assert label_set.source == "spykingcircus2 on the first 6 s"


def test_nothing_but_the_log_is_left(sorted_tetrode):
    folder = sorted_tetrode[2]
    assert [file.name for file in folder.iterdir()] == ["bootstrap_spykingcircus2.log"]
    text = (folder / "bootstrap_spykingcircus2.log").read_text()
    assert text.startswith("spykingcircus2 20")
    assert '"seed": 0' in text


def test_two_runs_are_the_same_and_quiet(sorted_tetrode, tmp_path, capfd):
    first, _, _, recording, preprocessed = sorted_tetrode
    defaults = get_random_sample_slices.__defaults__
    again = run(recording, preprocessed, tmp_path, bootstrap_s=6.0)
    assert tuple(capfd.readouterr()) == ("", "")
    assert get_random_sample_slices.__defaults__ == defaults
    np.testing.assert_array_equal(
        again.label_set.sorting.to_spike_vector(), first.label_set.sorting.to_spike_vector()
    )
    assert again.dropped == first.dropped


def test_units_follow_the_probe_and_silenced_channels_are_not_sorted(sorted_tetrode, tmp_path):
    _, truth, _, recording, preprocessed = sorted_tetrode
    noisy = recording.get_traces().copy()
    noisy[:, 2] += 400 * np.sin(np.arange(len(noisy)) / 3)  # would drown its neighbours
    spoilt = NumpyRecording(noisy, recording.sampling_frequency, channel_ids=recording.channel_ids)
    spoilt.set_probe(recording.get_probe())
    silent = scale(preprocessed, gain=np.array([1.0, 1.0, 0.0, 1.0]))
    channel = str(recording.channel_ids[2])
    result = run(spoilt, silent, tmp_path, silenced=[channel], bootstrap_s=6.0)
    performance = compare_sorter_to_ground_truth(
        truth.frame_slice(0, 90000), result.label_set.sorting
    ).get_performance()
    assert (performance["accuracy"] > 0.9).sum() >= 2
    peaks = abs(mean_waveforms(result.label_set, TraceReader(silent), 200, 1.0)).max(axis=1).argmax(axis=1)
    places = recording.get_channel_locations().round(3)[peaks, ::-1].tolist()
    assert places == sorted(places)
    assert peaks.tolist() != sorted(peaks)  # another order than that of the channels


def test_spikes_come_back_to_their_segments(sorted_tetrode, tmp_path):
    first, _, _, recording, preprocessed = sorted_tetrode
    pieces = [(0, 40000), (40000, 120000)]
    parts = append_recordings([recording.frame_slice(*piece) for piece in pieces])
    parts_preprocessed = append_recordings([preprocessed.frame_slice(*piece) for piece in pieces])
    result = run(parts, parts_preprocessed, tmp_path, bootstrap_s=6.0)
    spikes, whole = result.label_set.sorting.to_spike_vector(), first.label_set.sorting.to_spike_vector()
    frames = spikes["sample_index"] + np.array([0, 40000])[spikes["segment_index"]]
    assert result.label_set.segment_starts == (0, 40000)
    assert result.label_set.sorting.get_num_segments() == 2
    np.testing.assert_array_equal(frames, whole["sample_index"])
    np.testing.assert_array_equal(spikes["unit_index"], whole["unit_index"])


def test_a_sorter_that_fails_is_quoted_and_leaves_its_log(tmp_path):
    recording = make_silence()
    causes = {
        1.0: "failed on the initial interval: AssertionError: Prototype",  # as if there were many peaks
        1 / 20: r"hardly any spikes in the initial interval: in \d+ s, \d+ peaks are higher than 5 standard",
    }
    for gain, cause in causes.items():
        with pytest.raises(BootstrapError, match=cause) as caught:
            run(recording, scale(recording, gain=gain), tmp_path)
        log = tmp_path / "bootstrap_spykingcircus2.log"
        assert str(log) in str(caught.value)
        assert "Traceback" in log.read_text()
        assert list(tmp_path.iterdir()) == [log]


def test_all_units_dropped_says_why(sorted_tetrode, tmp_path):
    _, _, _, recording, preprocessed = sorted_tetrode
    with pytest.raises(BootstrapError, match=r"All \d units .* dropped: \d for low amplitude"):
        run(recording, preprocessed, tmp_path, bootstrap_s=6.0, bootstrap_min_amplitude=1000.0)


def test_memory_that_a_sorter_shares_is_given_back(sorted_tetrode, tmp_path):
    _, _, _, recording, preprocessed = sorted_tetrode
    before = SharedMemory(create=True, size=8)  # not the sorter's
    names = []

    class Noted(SharedMemory):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            names.append(self.name)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("multiprocessing.shared_memory.SharedMemory", Noted)
        run(recording, preprocessed, tmp_path, bootstrap_s=6.0)
    assert names
    for name in names:
        with pytest.raises(FileNotFoundError):
            SharedMemory(name)
    SharedMemory(before.name).close()
    before.close()
    before.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("sorter", ["lupin", "tridesclous2"])
@pytest.mark.parametrize("frequency", [10000.0, 30000.0])
def test_other_sorters_give_the_true_units_twice(sorter, frequency, tmp_path):
    recording, truth, preprocessed = make_tetrode(frequency=frequency)
    first, again = (run(recording, preprocessed, tmp_path, sorter) for _ in range(2))
    matched = compare_sorter_to_ground_truth(truth, first.label_set.sorting)
    accuracy = matched.get_performance()["accuracy"]
    assert (accuracy > 0.9).sum() >= 2
    assert accuracy.min() > 0.7  # Lupin splits a unit at 10 kHz
    np.testing.assert_array_equal(
        again.label_set.sorting.to_spike_vector(), first.label_set.sorting.to_spike_vector()
    )


@pytest.mark.slow
@pytest.mark.parametrize("sorter", ["lupin", "tridesclous2", "spykingcircus2"])
def test_single_channel(sorter, tmp_path):
    recording, truth, preprocessed = make_tetrode(num_units=1)
    ids = recording.channel_ids[:1]
    result = run(recording.select_channels(ids), preprocessed.select_channels(ids), tmp_path, sorter)
    matched = compare_sorter_to_ground_truth(truth, result.label_set.sorting)
    assert matched.get_performance()["accuracy"].min() > 0.9


@pytest.mark.slow
@pytest.mark.realdata
def test_real_tetrode(data_folder, tmp_path):
    stored = np.load(data_folder / "real" / "locust20010201_trial01_raw_tetrode_unlabelled.npz")
    recording = NumpyRecording(np.ascontiguousarray(stored["data"].T), float(stored["fs"]))
    probe = generate_tetrode()
    probe.set_device_channel_indices(np.arange(4))
    recording.set_probe(probe)
    preprocessed = preprocess_recording(recording, PreprocessingConfig()).recording
    result = run(recording, preprocessed, tmp_path, "lupin")
    assert 4 <= len(result.label_set.sorting.unit_ids) <= 12
    assert result.label_set.stop_frame == 431548
