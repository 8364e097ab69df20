"""Files as users of other programs have them: outputs that point at the input, tables, wrong causes."""

import logging

import numpy as np
import pytest
from probeinterface import generate_linear_probe, write_probeinterface
from spikeinterface.core import BinaryRecordingExtractor, NumpyRecording, NumpySorting, load
from test_clock import write_nwb
from test_recordings import write_open_ephys

import spikewise
from spikewise.core.config import RecordingConfig
from spikewise.core.errors import BootstrapError, LabelsError, OutputError, ProbeError
from spikewise.data.labels.label_files import load_labels
from spikewise.data.opening import open_recording
from spikewise.data.recordings.probes import load_probe
from spikewise.output.export.nwb import OWN_TABLE

START = "2026-03-01T14:00:00+01:00"


@pytest.fixture(scope="module")
def traces(tetrode):
    return load(tetrode.recording).get_traces()


def result_of(recording, model):
    return spikewise.sort(recording, model=model, report=False)


# ---------------------------------------------------------------- outputs that point at the input


def test_units_are_appended_to_the_file_of_the_recording(tetrode, trained, traces, tmp_path):
    pynwb = pytest.importorskip("pynwb")
    path = tmp_path / "session.nwb"
    rate = load(tetrode.recording).sampling_frequency
    traces = traces[: round(3 * rate)]
    write_nwb(path, np.arange(len(traces)) / rate, traces, {7: np.array([300, 900])})
    recording, _ = open_recording(path, RecordingConfig(probe="tetrode"))
    result = result_of(recording, trained)
    with pytest.raises(OutputError, match=r"session\.nwb is the recording itself.*--append"):
        spikewise.export_nwb(result, recording, path, overwrite=True, session_start_time=START)
    done = spikewise.export_nwb(result, recording, path, append=True)
    assert done.num_spikes == result.sorting.count_total_num_spikes() > 0
    assert [item.name for item in tmp_path.iterdir()] == ["session.nwb"]
    with pynwb.NWBHDF5IO(path, "r") as io:
        file = io.read()
        np.testing.assert_array_equal(file.acquisition["ElectricalSeries"].data[:], traces)
        np.testing.assert_allclose(file.units["spike_times"][0], np.array([300, 900]) / rate)
        units = file.processing["ecephys"][OWN_TABLE]
        assert len(units) == done.num_units
    np.testing.assert_array_equal(recording.get_traces(), traces)  # what was open can still be read


@pytest.mark.parametrize("dtype", ["<i2", ">i2"])
def test_phy_reads_the_recordings_own_file(tetrode, trained, traces, tmp_path, dtype):
    path = tmp_path / "raw.dat"
    path.write_bytes(b"head" * 25 + traces.astype(dtype).tobytes())
    original = load(tetrode.recording)
    recording = BinaryRecordingExtractor(
        [path], original.sampling_frequency, dtype, 4, file_offset=100, channel_ids=original.channel_ids
    )
    recording.set_probegroup(original.get_probegroup())
    result = result_of(recording, trained)
    for kept in ("auto", "copy"):
        done = spikewise.export_phy(result, recording, tmp_path / kept, traces=kept)
        params: dict = {}
        exec(done.params.read_text(), params)
        (file,) = params["dat_path"]
        read = np.fromfile(tmp_path / kept / file, params["dtype"], offset=params["offset"])
        np.testing.assert_array_equal(read.reshape(-1, params["n_channels_dat"]), traces)


# ---------------------------------------------------------------- labels


PHY_TABLES = {
    "blank unit": {"cluster_info.tsv": "cluster_id\tgroup\n0\t\n\tgood\n1\tgood\n"},
    "unit of pandas": {"cluster_info.tsv": "cluster_id\tgroup\n0.0\tnoise\n1.0\tgood\n"},
    "older name and ending": {"cluster_groups.csv": "cluster_id\tgroup\n0\tnoise\n1\tgood\n"},
    "commas": {"cluster_group.csv": "cluster_id,group\n0,noise\n1,good\n"},
    "id, capitals, quotes": {"cluster_info.tsv": '"id"\t"Group"\n0\tNoise\n1\tgood\n'},
    "Kilosort alone": {"cluster_KSLabel.tsv": "cluster_id\tKSLabel\n0\tnoise\n1\tgood\n"},
    "spaces and a byte order mark": {"cluster_group.tsv": "\ufeffcluster_id\tgroup\n 0 \t noise \n1\tgood\n"},
}


def phy_folder(folder, tables, times=(100, 200, 300, 400)):
    np.save(folder / "spike_times.npy", np.array(times))
    np.save(folder / "spike_clusters.npy", np.array([0, 1, 0, 2], "int32"))
    (folder / "params.py").write_text("sample_rate = 30000.0\n")
    for name, text in tables.items():
        (folder / name).write_text(text, encoding="utf-8")
    return NumpyRecording([np.zeros((1000, 4), "int16")], 30000.0)


@pytest.mark.parametrize("form", PHY_TABLES)
def test_phy_tables_of_many_programs(form, tmp_path):
    tables = {**PHY_TABLES[form]}
    if form == "blank unit":
        tables["cluster_group.tsv"] = "cluster_id\tgroup\n0\tnoise\n1\tgood\n"
    recording = phy_folder(tmp_path, tables)
    labels = load_labels(tmp_path, recording)
    assert labels.unit_ids.tolist() == [1, 2]
    assert labels.get_unit_spike_train(1).tolist() == [200]


def test_a_unit_that_is_no_number_is_named_with_its_line(tmp_path):
    recording = phy_folder(tmp_path, {"cluster_group.tsv": "cluster_id\tgroup\n0\tgood\nnine\tgood\n"})
    with pytest.raises(LabelsError, match=r"[Ll]ine 3 of .*cluster_group\.tsv has the unit 'nine'"):
        load_labels(tmp_path, recording)


@pytest.mark.parametrize("times", [(0.0033, 0.0066, 0.01, 0.0133), (1.0, 2.0, 3.0, 9.0)])
def test_spike_times_in_seconds_are_told(times, tmp_path):
    recording = phy_folder(tmp_path, {}, times=times)
    recording = NumpyRecording([np.zeros((300_000, 4), "int16")], 30000.0)
    with pytest.raises(LabelsError, match=rf"such as {times[0]:g}.*seconds.*time_s"):
        load_labels(tmp_path, recording)


def test_spike_times_that_are_no_numbers_are_told(tmp_path):
    recording = phy_folder(tmp_path, {}, times=(100, np.nan, 200, 300))
    with pytest.raises(LabelsError, match=r"1 spike times in .* are no numbers"):
        load_labels(tmp_path, recording)


def test_units_that_bombcell_calls_noise_are_left_out_unless_a_person_says_otherwise(tmp_path):
    bombcell = {"cluster_bc_unitType.tsv": "cluster_id\tbc_unitType\n0\tNOISE\n1\tGOOD\n2\tMUA\n"}
    recording = phy_folder(tmp_path, bombcell)
    kept = load_labels(tmp_path, recording).unit_ids.tolist()
    assert 0 not in kept
    assert 1 in kept
    (tmp_path / "cluster_group.tsv").write_text("cluster_id\tgroup\n0\tgood\n")
    assert 0 in load_labels(tmp_path, recording).unit_ids.tolist()


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("sample_index,unit_id\n0.5,1\n1.25,2\n", "seem to be seconds.*time_s"),
        ("time_s,unit_id\n15000,1\n37500,2\n", "seem to be samples.*sample_index"),
        ("time_s,unit_id\n500.1,1\n9998.5,2\n", "seem to be milliseconds.*1000"),
    ],
)
def test_tables_of_another_unit_of_time_are_told(rows, told, tmp_path):
    (tmp_path / "labels.csv").write_text(rows)
    with pytest.raises(LabelsError, match=told):
        load_labels(tmp_path / "labels.csv", NumpyRecording([np.zeros((300_000, 4), "int16")], 30000.0))


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("labels.csv", "Sample,Cluster_ID\n15000,7\n30000,8\n"),
        ("labels.csv", "frame,unit,label\n15000,7,a\n30000,8,b\n"),
        ("labels.csv", "time;unit_id\n0,5;7\n1,0;8\n"),
        ("labels.csv", "sample_index,unit_id\n15000,7.0\n30000,8.0\n"),
        ("labels.tsv", "time_s\tunit_id\n0.5\t7\n1.0\t8\n"),
        ("labels.txt", "sample_index unit_id\n15000 7\n30000 8\n"),
        ("labels.csv", "sample_index,sample,unit_id\n15000,1,7\n30000,2,8\n"),
    ],
)
def test_tables_of_many_programs(name, rows, tmp_path):
    (tmp_path / name).write_text(rows)
    labels = load_labels(tmp_path / name, NumpyRecording([np.zeros((300_000, 4), "int16")], 30000.0))
    assert labels.unit_ids.tolist() == [7, 8]
    assert labels.get_unit_spike_train(7).tolist() == [15_000]
    assert labels.get_unit_spike_train(8).tolist() == [30_000]


@pytest.mark.parametrize("sign", [",", "\t", ";"])
def test_label_tables_with_tabs_or_semicolons(sign, tmp_path):
    recording = NumpyRecording([np.zeros((1000, 4), "int16")], 30000.0)
    rows = [("sample_index", "unit_id"), ("100", "a"), ("200", "b")]
    (tmp_path / "labels.csv").write_text("\n".join(sign.join(row) for row in rows))
    assert load_labels(tmp_path / "labels.csv", recording).get_unit_spike_train("b").tolist() == [200]


@pytest.mark.parametrize("offset_ms", [-1.0, 0.0, 1.0])
def test_labels_at_the_onset_are_told(tetrode, offset_ms, caplog):
    truth = tetrode.truth if not isinstance(tetrode.truth, str) else load(tetrode.truth)
    truth = load(truth) if not hasattr(truth, "get_unit_spike_train") else truth
    recording = load(tetrode.recording)
    shift = round(offset_ms * recording.sampling_frequency / 1000)
    trains = {unit: truth.get_unit_spike_train(unit) + shift for unit in truth.unit_ids}
    last = recording.get_num_samples(0)
    trains = {unit: train[(train > 100) & (train < last - 100)] for unit, train in trains.items()}
    labels = NumpySorting.from_unit_dict([trains], recording.sampling_frequency)
    small = {"rounds": 1, "patches_per_unit": 1000, "unit_steps": 20, "seed": 0}
    with caplog.at_level(logging.WARNING):
        spikewise.train(recording, labels, **small)
    told = [r.getMessage() for r in caplog.records if "from the peaks" in r.getMessage()]
    assert len(told) == (offset_ms != 0)
    if told:
        assert f"({-offset_ms:+.0f}" in told[0].replace(".0 ms)", "")


# ---------------------------------------------------------------- messages


@pytest.mark.parametrize(
    ("wiring", "told"),
    [
        ([1, 2, 3, 4], r"wired to the channels 1 to 4: it counts from 1.*0, here to 3.*[Ss]ubtract 1"),
        ([0, 1, 2, 4], r"4 different channels, from 0 to 4; missing: 3"),
        ([4, 5, 6, 7], r"4 different channels, from 4 to 7; missing: 0, 1, 2, 3"),
    ],
)
def test_wiring_is_told_as_it_is(wiring, told, tmp_path):
    probe = generate_linear_probe(4)
    probe.set_device_channel_indices(wiring)
    write_probeinterface(tmp_path / "probe.json", probe)
    with pytest.raises(ProbeError, match=told):
        load_probe(tmp_path / "probe.json", 4)


@pytest.mark.parametrize(
    ("dtype", "bootstrap", "told"),
    [
        ("int16", "lupin", r"hardly any spikes.* peaks .*standard deviations of the noise"),
        ("float16", "spikewise", r"[Nn]o unit was found"),
    ],
)
def test_a_recording_without_spikes_is_told(dtype, bootstrap, told, tmp_path):
    noise = np.random.default_rng(0).normal(0, 50, (90_000, 4)).round().astype(dtype)
    np.save(tmp_path / "noise.npy", noise)
    options = {"sampling_frequency": 30000.0, "probe": "tetrode", "report": False, "bootstrap": bootstrap}
    with pytest.raises(BootstrapError, match=told):
        spikewise.sort(tmp_path / "noise.npy", **options)


def test_samples_of_16_bit_floating_point_are_sorted(tetrode, trained, traces):
    original = load(tetrode.recording)
    scale = 1000 / np.abs(traces).max()
    sorted_spikes = []
    for dtype in ("float16", "float32"):
        rounded = (traces * scale).astype("float16").astype(dtype)
        recording = NumpyRecording([rounded], original.sampling_frequency, channel_ids=original.channel_ids)
        recording.set_probegroup(original.get_probegroup())
        sorted_spikes.append(result_of(recording, trained).sorting.to_spike_vector())
    np.testing.assert_array_equal(*sorted_spikes)
    assert len(sorted_spikes[0]) > 100


def test_channels_that_are_no_electrodes_are_left_out(tmp_path, caplog):
    data = np.random.default_rng(0).integers(-99, 99, (3000, 7)).astype("int16")
    folder = tmp_path / "Record Node 101" / "experiment1" / "recording1"
    write_open_ephys(folder, {"Rhythm Data": data})
    file = folder / "structure.oebin"
    text = file.read_text()
    for index, name in enumerate(("AUX1", "AUX2", "AUX3")):
        text = text.replace(f'"CH{4 + index}"', f'"{name}"')
    file.write_text(text)
    caplog.set_level(logging.WARNING)
    recording, _ = open_recording(tmp_path, RecordingConfig(probe="tetrode"))
    np.testing.assert_array_equal(recording.get_traces(), data[:, :4])
    assert all(name in caplog.text for name in ("no electrodes by their names", "AUX1", "AUX2", "AUX3"))


@pytest.mark.parametrize("name", ["there", "result", "seed"])
def test_paths_are_written_as_they_were_given(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    recording = NumpyRecording([np.zeros((1000, 1), "int16")], 30000.0)
    with pytest.raises(OutputError, match=rf"\b{name} "):
        spikewise.sort(recording, output=name)
    with pytest.raises(OutputError, match=rf"\b{name} "):
        spikewise.sort(recording, output=name, overwrite=True)
