"""Labels: each format read to the same spikes, each mistake answered, intervals and groups exact."""

import json
import logging

import numpy as np
import pytest
from spikeinterface.core import NpzSortingExtractor, NumpyRecording, NumpySorting, create_sorting_analyzer

from spikewise.core.config import LabelsConfig
from spikewise.core.errors import LabelsError, RecordingError
from spikewise.data.labels.label_files import load_labels, load_sorting
from spikewise.data.labels.label_set import (
    LabelSet,
    check_labels,
    kept_spikes,
    make_label_set,
    mean_waveforms,
    segment_starts,
    split_labels_by_group,
)
from spikewise.data.recordings.reader import TraceReader

FREQUENCY = 10000.0
TRAINS = {3: [100, 500, 900], 7: [200, 900]}


def make_recording(*lengths, frequency=FREQUENCY, num_channels=2):
    return NumpyRecording([np.zeros((n, num_channels), np.float32) for n in lengths or (1000,)], frequency)


def make_sorting(trains=TRAINS, frequency=FREQUENCY):
    segments = trains if isinstance(trains, list) else [trains]
    return NumpySorting.from_unit_dict(
        [{unit: np.array(train, np.int64) for unit, train in segment.items()} for segment in segments],
        frequency,
    )


def trains_of(sorting, segment_index=0):
    ids = sorting.unit_ids.tolist()
    return {u: sorting.get_unit_spike_train(u, segment_index=segment_index).tolist() for u in ids}


def write_phy(folder, trains=TRAINS, **files):
    folder.mkdir()
    times = np.concatenate([np.array(train, np.uint64) for train in trains.values()])
    units = np.repeat(np.array(list(trains), np.int32), [len(train) for train in trains.values()])
    order = np.argsort(times, kind="stable")
    np.save(folder / "spike_times.npy", times[order][:, np.newaxis])
    np.save(folder / "spike_clusters.npy", units[order])
    (folder / "params.py").write_text(
        f"dat_path = 'C:\\Users\\x.dat'\nsample_rate = {FREQUENCY}\nraise SystemExit\n"
    )
    for name, text in files.items():
        (folder / f"{name}.tsv").write_text(text)
    return folder


def write_csv(path, text):
    path.write_text(text)
    return path


def make_traces(*segments):
    return TraceReader(NumpyRecording([segment.astype(np.float32) for segment in segments], FREQUENCY))


# Formats


def save_numpy_folder(folder):
    make_sorting().save(folder=folder / "any")
    return folder / "any"


def save_sorted_folder(folder):
    make_sorting().save(folder=folder / "run" / "sorting")
    return folder / "run"


def save_zarr(folder):
    make_sorting().save(folder=folder / "any.zarr", format="zarr")
    return folder / "any.zarr"


def save_npz(folder):
    NpzSortingExtractor.write_sorting(make_sorting(), folder / "any.npz")
    return folder / "any.npz"


def save_analyzer(folder):
    recording = make_recording()
    recording.set_dummy_probe_from_locations(np.array([[0.0, 0.0], [0.0, 20.0]]))
    create_sorting_analyzer(
        make_sorting(), recording, format="binary_folder", folder=folder / "any", sparse=False
    )
    return folder / "any"


def save_analyzer_zarr(folder):
    recording = make_recording()
    recording.set_dummy_probe_from_locations(np.array([[0.0, 0.0], [0.0, 20.0]]))
    recording = recording.save(folder=folder / "recording")
    create_sorting_analyzer(
        make_sorting(), recording, format="zarr", folder=folder / "any.zarr", sparse=False
    )
    return folder / "any.zarr"


def save_phy(folder):
    return write_phy(folder / "any")


def save_csv(folder):
    return write_csv(folder / "any.csv", "sample_index,unit_id\n900,3\n100,3\n200,7\n900,7\n500,3\n")


def save_csv_seconds(folder):
    # 0.05004 s and 0.08996 s are nearest to samples 500 and 900
    rows = "unit_id, time_s\r\n3,0.01\r\n3,0.05004\r\n7,0.02\r\n\r\n3,0.09\r\n7,0.08996\r\n"
    return write_csv(folder / "any.CSV", rows)


def save_nwb(folder):
    pynwb = pytest.importorskip("pynwb")
    from datetime import UTC, datetime

    file = pynwb.NWBFile("labels", "labels", datetime(2024, 1, 1, tzinfo=UTC))
    for unit, train in TRAINS.items():
        file.add_unit(id=unit, spike_times=np.array(train) / FREQUENCY)
    with pynwb.NWBHDF5IO(folder / "any.nwb", "w") as io:
        io.write(file)
    return folder / "any.nwb"


WRITERS = [
    save_numpy_folder,
    save_sorted_folder,
    save_zarr,
    save_npz,
    save_analyzer,
    save_analyzer_zarr,
    save_phy,
    save_csv,
    save_csv_seconds,
    save_nwb,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_format_gives_the_same_labels(write, tmp_path):
    sorting = load_labels(write(tmp_path), make_recording())
    assert trains_of(sorting) == TRAINS
    assert sorting.sampling_frequency == FREQUENCY


@pytest.mark.realdata
def test_mearec_gives_its_true_spike_trains(data_folder, tmp_path):
    mearec = pytest.importorskip("MEArec")
    params = mearec.get_default_recordings_params()
    params["spiketrains"].update(n_exc=2, n_inh=1, duration=3.0, seed=1)
    params["templates"].update(min_amp=40, max_amp=300, min_dist=1, seed=1)
    params["recordings"].update(noise_level=5, filter=False, seed=1)
    templates = mearec.load_templates(data_folder / "mearec" / "templates_tetrode_seed671.h5")
    generated = mearec.gen_recordings(params=params, tempgen=templates, verbose=0, n_jobs=1)
    mearec.save_recording_generator(generated, tmp_path / "any.h5", verbose=False)
    frequency = params["recordings"]["fs"] or generated.info["recordings"]["fs"]
    truth = [np.round(train.times.rescale("s").magnitude * frequency) for train in generated.spiketrains]
    recording = make_recording(round(3 * frequency), frequency=frequency, num_channels=4)
    found = trains_of(load_labels(tmp_path / "any.h5", recording))
    assert [len(train) for train in found.values()] == [len(train) for train in truth]
    for train, times in zip(found.values(), truth, strict=True):
        assert abs(np.array(train) - times).max() <= 1


def test_file_that_is_no_mearec_recording(data_folder):
    with pytest.raises(LabelsError, match="cannot be read as MEArec"):
        load_labels(data_folder / "mearec" / "templates_tetrode_seed671.h5", make_recording())


def test_phy_leaves_out_what_a_person_called_noise(tmp_path):
    folder = write_phy(
        tmp_path / "phy",
        {1: [10], 2: [20], 5: [30, 40]},
        cluster_KSLabel="cluster_id\tKSLabel\n1\tnoise\n2\tgood\n5\tnoise\n",
        cluster_info="id\tch\tgroup\n1\t0\tgood\n2\t0\tgood\n5\t1\t\n",
        cluster_group="cluster_id\tgroup\n2\tNoise\n",
    )
    # 1: the person's good overrides Kilosort; 2: cluster_group is the last word; 5: nothing overrides noise
    with pytest.raises(LabelsError, match="only one label"):
        load_labels(folder, make_recording())
    (folder / "cluster_KSLabel.tsv").unlink()
    assert trains_of(load_labels(folder, make_recording())) == {1: [10], 5: [30, 40]}


def test_phy_without_clusters_takes_templates_and_float_times(tmp_path):
    folder = write_phy(tmp_path / "phy")
    (folder / "spike_clusters.npy").rename(folder / "spike_templates.npy")
    np.save(folder / "spike_times.npy", np.load(folder / "spike_times.npy").astype(float) + 0.4)
    assert trains_of(load_labels(folder, make_recording())) == TRAINS
    (folder / "spike_templates.npy").unlink()
    with pytest.raises(LabelsError, match=r"spike_clusters.npy and spike_templates.npy"):
        load_labels(folder, make_recording())


def test_phy_without_params_takes_the_recordings_frequency(tmp_path, caplog):
    folder = write_phy(tmp_path / "phy")
    (folder / "params.py").unlink()
    with caplog.at_level(logging.WARNING):
        assert trains_of(load_labels(folder, make_recording())) == TRAINS
    assert "params.py" in caplog.text


def test_phy_with_other_lengths(tmp_path):
    folder = write_phy(tmp_path / "phy")
    np.save(folder / "spike_clusters.npy", np.zeros(3, np.int32))
    with pytest.raises(LabelsError, match="5 spike times and 3 units"):
        load_labels(folder, make_recording())


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was loaded",))


@pytest.mark.parametrize("name", ["spike_times.npy", "spike_clusters.npy"])
def test_phy_is_not_unpickled(tmp_path, name):
    folder = write_phy(tmp_path / "phy")
    np.save(folder / name, np.array([Trap()] * 5, dtype=object), allow_pickle=True)
    with pytest.raises(LabelsError, match="cannot be read as Phy"):
        load_labels(folder, make_recording())


def test_pickled_properties_are_left_alone(tmp_path):
    folder = save_numpy_folder(tmp_path)
    np.save(folder / "properties" / "trap.npy", np.array([Trap(), Trap()], dtype=object), allow_pickle=True)
    assert trains_of(load_labels(folder, make_recording())) == TRAINS


def test_zarr_with_pickles_is_refused(tmp_path):
    folder = save_zarr(tmp_path)
    metadata = json.loads((folder / "unit_ids" / ".zarray").read_text())
    metadata["filters"] = [{"id": "pickle", "protocol": 5}]
    (folder / "unit_ids" / ".zarray").write_text(json.dumps(metadata))
    with pytest.raises(LabelsError, match="pickled arrays"):
        load_labels(folder, make_recording())


# CSV


def read_text(tmp_path, text, recording=None):
    return load_labels(write_csv(tmp_path / "labels.csv", text), recording or make_recording())


def test_csv_ids_are_numbers_only_where_all_are(tmp_path):
    assert trains_of(read_text(tmp_path, "sample_index,unit_id\n5,01\n9,2\n")) == {1: [5], 2: [9]}
    assert trains_of(read_text(tmp_path, "sample_index,unit_id\n5,01\n9,b\n")) == {"01": [5], "b": [9]}


def test_csv_segments_and_ignored_columns(tmp_path, caplog):
    text = "amplitude,sample_index,time_s,unit_id,segment_index\n8,700,1,1,1\n9,4,1,1,0\n7,3,1,2,1\n"
    with caplog.at_level(logging.WARNING):
        sorting = read_text(tmp_path, text, make_recording(10, 800, 20))
    assert [trains_of(sorting, k) for k in range(3)] == [{1: [4], 2: []}, {1: [700], 2: [3]}, {1: [], 2: []}]
    assert "amplitude, time_s are not used" in caplog.text


def test_csv_seconds_follow_the_recordings_clock(tmp_path):
    recording = make_recording(1000)
    recording.set_times(5.0 + np.arange(1000) / FREQUENCY + np.arange(1000) ** 2 * 1e-9, segment_index=0)
    clock = recording.get_times()
    text = f"time_s,unit_id\n{clock[400] + 4e-5},1\n{clock[700] - 4e-5},1\n{clock[999] + 4e-5},1\n"
    assert trains_of(read_text(tmp_path, text, recording)) == {1: [400, 700, 999]}
    with pytest.raises(LabelsError, match="1 of 2 labels lie outside"):
        read_text(tmp_path, "time_s,unit_id\n5.01,1\n7.0,1\n", recording)
    with pytest.raises(LabelsError, match=r"Line 3 .*At least 5"):
        read_text(tmp_path, "time_s,unit_id\n5.01,1\n4.9,1\n", recording)


BAD_ROWS = [
    ("sample_index,unit_id\n5,1\nx,1\n9,\n", "Line 3 .* sample_index 'x'.* A number"),
    ("sample_index,unit_id\n\n5,1\nnan,1\n", "Line 4 .* 'nan'"),
    ("time_s,unit_id\n0.1,1\ninf,1\n-inf,1\n", r"Line 3 .* 'inf'.* \(2 in all\)"),
    ("sample_index,unit_id\n5.5,1\n6,1\n", "Line 2 .* '5.5'.* whole number"),
    ("sample_index,unit_id\n5,1\n-6,1\n", "Line 3 .* '-6'.* At least 0"),
    ("time_s,unit_id\n-0.001,1\n0.002,1\n", "Line 2 .* '-0.001'.* At least 0"),
    ("sample_index,unit_id\n5,1\n6\n", "Line 3 .* unit_id ''"),
    ("sample_index,unit_id,segment_index\n5,1,0\n6,1,1\n", "Line 3 .* segment_index '1'.* 0 to 0"),
    ("sample_index,unit_id,segment_index\n5,1,0\n6,1,0.5\n", "Line 3 .* segment_index '0.5'"),
    ("place,unit_id\n5,1\n", "'place,unit_id'.*Allowed: sample_index,unit_id or time_s,unit_id"),
    ("time_s,neuron\n5,1\n", "'time_s,neuron'"),
    ("5,1\n6,1\n", "'5,1'"),
    ("", "cannot be read as CSV"),
    ("sample_index,unit_id\n5,1,2,3\n6,1\n7,1,1,1,1\n", "cannot be read as CSV"),
    ("sample_index,unit_id\n5,1,2\n6,1,2\n", "cannot be read as CSV"),
    ("sample_index,unit_id\n", "There are no labels"),
]


@pytest.mark.parametrize(("text", "message"), BAD_ROWS)
def test_csv_mistakes_are_named(tmp_path, text, message):
    with pytest.raises(LabelsError, match=message):
        read_text(tmp_path, text)


# Paths


def test_missing_and_unknown_paths(tmp_path):
    with pytest.raises(LabelsError, match="There are no labels at"):
        load_labels(tmp_path / "absent", make_recording())
    with pytest.raises(LabelsError, match=r"not known.*Phy or Kilosort folder.*\.nwb"):
        load_labels(tmp_path, make_recording())
    with pytest.raises(LabelsError, match="not known"):
        load_labels(write_csv(tmp_path / "labels.pkl", "x"), make_recording())


@pytest.mark.parametrize("name", ["a.npz", "a.nwb", "a.h5", "a.csv"])
def test_damaged_files(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x93\xff\x00broken" * 20)
    with pytest.raises(LabelsError, match="cannot be read as"):
        load_labels(tmp_path / name, make_recording())


@pytest.mark.parametrize("write", [save_numpy_folder, save_npz, save_phy, save_zarr, save_nwb])
def test_truncated_files(tmp_path, write):
    path = write(tmp_path)
    files = (
        [path]
        if path.is_file()
        else [f for f in path.rglob("*") if f.name in ("spikes.npy", "spike_times.npy", "0")]
    )
    for file in files:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(LabelsError, match="cannot be read as"):
        load_labels(path, make_recording())


# Fit to the recording


def test_sampling_frequency(tmp_path):
    with pytest.raises(LabelsError, match=r"10000 Hz.*12000 Hz"):
        load_labels(save_npz(tmp_path), make_recording(frequency=12000.0))
    rounded = check_labels(make_sorting(), make_recording(frequency=10002.0))
    assert rounded.sampling_frequency == 10002.0


def test_segments_must_be_as_many():
    with pytest.raises(LabelsError, match=r"1 segments.*has 2"):
        check_labels(make_sorting(), make_recording(1000, 1000))
    last_is_empty = make_sorting([{3: [5, 6]}, {3: [9]}])
    assert check_labels(last_is_empty, make_recording(10, 10)).get_num_segments() == 2


def test_no_label_and_only_one():
    with pytest.raises(LabelsError, match="There are no labels"):
        check_labels(make_sorting({1: []}), make_recording())
    with pytest.raises(LabelsError, match="only one label"):
        check_labels(make_sorting({1: [7]}), make_recording())


def test_labels_outside():
    trains = {"a": [0, 999], "b": [5, 1000, 1200]}
    with pytest.raises(
        LabelsError, match=r"2 of 5 .* sample 1000 of segment 0 \(unit b\).* 0 to 999.* 0\.100 s"
    ):
        check_labels(make_sorting(trains), make_recording())
    with pytest.raises(LabelsError, match=r"1 of 2 .* sample -1"):
        check_labels(make_sorting({1: [-1, 5]}), make_recording())
    assert trains_of(check_labels(make_sorting({1: [0, 999]}), make_recording())) == {1: [0, 999]}


def test_repeated_rows_are_left_out(caplog):
    with caplog.at_level(logging.WARNING):
        sorting = check_labels(make_sorting({1: [5, 5, 8, 8, 8], 2: [5, 9]}), make_recording())
    assert trains_of(sorting) == {1: [5, 8], 2: [5, 9]}
    assert "3 labels repeat" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        check_labels(sorting, make_recording())
    assert not caplog.text


# Label sets


def test_interval_goes_from_first_to_last_label():
    label_set = make_label_set(make_sorting(), make_recording(), LabelsConfig(), "here")
    assert (label_set.start_frame, label_set.stop_frame, label_set.source) == (100, 901, "here")
    assert label_set.seconds() == (0.01, 0.0901)
    assert label_set.seconds(1000.0) == (0.1, 0.901)


def test_interval_over_segments():
    sorting = make_sorting([{1: [7], 2: [9]}, {1: [0], 2: []}, {1: [3], 2: [3]}])
    recording = make_recording(10, 0, 5)
    with pytest.raises(LabelsError, match="1 of 5"):
        make_label_set(sorting, recording, LabelsConfig(), "")
    recording = make_recording(10, 4, 5)
    label_set = make_label_set(sorting, recording, LabelsConfig(), "")
    assert label_set.segment_starts == segment_starts(recording) == (0, 10, 14)
    assert (label_set.start_frame, label_set.stop_frame) == (7, 18)
    kept = kept_spikes(label_set, 2)
    assert kept.global_frame.tolist() == [7, 9, 10, 17, 17]
    assert kept.unit_index.tolist() == [0, 1, 0, 0, 1]
    assert kept.is_positive.tolist() == [True, True, True, False, True]
    assert kept.unit_ids.tolist() == [1, 2]
    assert kept_spikes(label_set, None).is_positive.all()


def test_given_interval_is_half_open():
    config = LabelsConfig(label_interval=(0.02, 0.09))
    label_set = make_label_set(make_sorting(), make_recording(), config, "")
    assert (label_set.start_frame, label_set.stop_frame) == (200, 900)
    kept = kept_spikes(label_set, 1)
    assert (kept.global_frame.tolist(), kept.unit_index.tolist()) == ([200, 500], [1, 0])
    assert kept.is_positive.tolist() == [True, True]


def make_set_in(start, stop, trains=TRAINS):
    return make_label_set(
        make_sorting(trains), make_recording(), LabelsConfig(label_interval=(start, stop)), ""
    )


def test_intervals_that_do_not_fit():
    with pytest.raises(LabelsError, match=r"0 to 0\.1001 s.*0\.100000 s"):
        make_set_in(0.0, 0.1001)
    assert make_set_in(0.0, 0.1).stop_frame == 1000
    with pytest.raises(LabelsError, match="At least one sample"):
        make_set_in(0.05001, 0.05002)
    with pytest.raises(LabelsError, match=r"No label lies in the label interval, 0\.03 to 0\.04 s"):
        make_set_in(0.03, 0.04)
    with pytest.raises(LabelsError, match=r"units 7 have no label.*remove these units"):
        make_set_in(0.03, 0.09)
    many = {unit: [500 if unit == 0 else 10] for unit in range(13)}
    with pytest.raises(LabelsError, match="units 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more have"):
        make_set_in(0.03, 0.09, many)


# Waveforms and groups


def test_mean_waveforms_are_exact():
    traces = np.zeros((1000, 2))
    traces[[100, 500, 900], 0] = [-3, -6, -9]
    traces[202, 1] = 4
    label_set = make_label_set(make_sorting(), make_recording(), LabelsConfig(), "")
    means = mean_waveforms(label_set, make_traces(traces), 10, 0.3)
    expected = np.zeros((2, 7, 2))
    expected[0, 3, 0] = -6
    expected[1, 3, 0] = -4.5
    expected[1, 5, 1] = 2
    np.testing.assert_allclose(means, expected)
    # two of three spikes: the first and the last
    np.testing.assert_allclose(mean_waveforms(label_set, make_traces(traces), 2, 0.3)[0, 3], [-6, 0])
    traces[500] = 50
    np.testing.assert_allclose(mean_waveforms(label_set, make_traces(traces), 2, 0.3)[0, 3], [-6, 0])


def test_units_go_to_the_group_of_their_largest_peak():
    sorting = make_sorting([{"a": [50], "b": [70], "c": []}, {"a": [20], "b": [], "c": [40]}])
    label_set = make_label_set(sorting, make_recording(100, 100), LabelsConfig(), "")
    first, second = (np.zeros((100, 3)), np.zeros((100, 3))), (np.zeros((100, 1)), np.zeros((100, 1)))
    second[0][50], second[1][20] = -8, -2  # a: mean 5 against 4
    first[0][50, 2], first[1][20, 2] = 4, 4
    first[0][73, 1] = 6  # b: a positive peak 0.3 ms late
    second[0][70] = -5
    second[1][40] = 1  # c
    first[1][46, 0] = 99  # beyond 0.5 ms of c
    groups = split_labels_by_group(
        label_set,
        {
            "left": make_traces(*first),
            "none": make_traces(*(s * 0 for s in second)),
            "right": make_traces(*second),
        },
    )
    assert {name: part.sorting.unit_ids.tolist() for name, part in groups.items()} == {
        "left": ["b"],
        "right": ["a", "c"],
    }
    right = kept_spikes(groups["right"], None)
    assert (right.global_frame.tolist(), right.unit_index.tolist()) == ([50, 120, 140], [0, 0, 1])
    assert groups["left"].start_frame == label_set.start_frame
    assert groups["left"].stop_frame == label_set.stop_frame


def test_one_group_reads_nothing():
    label_set = LabelSet(make_sorting(), 0, 1000, "")
    unreadable = make_traces(np.full((1000, 1), np.nan))
    assert split_labels_by_group(label_set, {"0": unreadable}) == {"0": label_set}
    with pytest.raises(RecordingError):
        split_labels_by_group(label_set, {"0": unreadable, "1": unreadable})


def test_a_sorting_is_read_without_its_recording_where_it_tells_its_frequency(tmp_path):
    make_sorting().save(folder=tmp_path / "sorting")
    sorting = load_sorting(tmp_path / "sorting")
    assert sorting.sampling_frequency == FREQUENCY
    assert trains_of(sorting) == TRAINS
    (tmp_path / "spikes.csv").write_text("sample_index,unit_id\n100,3\n")
    with pytest.raises(LabelsError, match="--recording"):
        load_sorting(tmp_path / "spikes.csv")
    assert trains_of(load_sorting(tmp_path / "spikes.csv", make_recording())) == {3: [100]}
