"""A result as a SortingAnalyzer and in NWB: what they hold is true, and other tools accept it."""

import json

import numpy as np
import pytest
from commands import QUICK, Simulated, assert_told, run, succeed
from spikeinterface.core import load
from spikeinterface.curation import bombcell_label_units

import spikewise
from spikewise.core.errors import OutputError, SettingError
from spikewise.output.export.nwb import write_nwb

START = "2026-03-01T14:00:00+01:00"
ANIMAL = {"subject_id": "m1", "species": "Mus musculus", "age": "P90D"}
SESSION = {
    "experimenter": "Doe, Jane",
    "institution": "An Institute",
    "experiment_description": "Spikes of a tetrode.",
    "brain_area": "VISp",
}


@pytest.fixture(scope="module")
def result(tetrode: Simulated, trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("result") / "sorted"
    return spikewise.sort(tetrode.recording, model=trained, output=output)


@pytest.fixture(scope="module")
def analyzer_folder(tetrode, result):
    folder = result.folder.parent / "analyzer"
    spikewise.analyze(result.folder, tetrode.recording, output=folder, spikes_per_unit=100)
    return folder


@pytest.fixture(scope="module")
def analyzer(analyzer_folder):
    return load(analyzer_folder)


def test_the_analyzer_holds_what_curation_asks_for(analyzer, result, tetrode):
    assert list(analyzer.unit_ids) == list(result.sorting.unit_ids)
    metrics = analyzer.get_metrics_extension_data()
    counts = result.sorting.count_num_spikes_per_unit(outputs="dict")
    assert metrics["num_spikes"].to_dict() == counts
    assert {"snr", "isi_violations_ratio", "peak_to_trough_duration", "exp_decay"} <= set(metrics.columns)
    labels = bombcell_label_units(analyzer)["bombcell_label"]
    assert set(labels) <= {"good", "mua", "noise", "non_soma"}
    assert "noise" not in set(labels)  # all are true units
    # The trough of a template is the depth of the trace there: both in microvolts.
    unit = metrics["snr"].idxmax()
    template = analyzer.get_extension("templates").get_unit_template(unit)
    raw = load(tetrode.recording).get_traces(return_in_uV=True)
    raw = raw - np.median(raw, axis=0)
    frames = result.sorting.get_unit_spike_train(unit)
    assert template.min() == pytest.approx(raw[frames].mean(axis=0).min(), rel=0.15)


def test_the_command_and_what_it_refuses(tetrode, result, analyzer_folder, tmp_path, capsys):
    options = {"--recording": tetrode.recording, "-o": analyzer_folder}
    assert_told(run(capsys, "export", "analyzer", result.folder, options), "exists already", "Choose another")
    options["-o"] = tmp_path / "units.nwb"
    assert_told(run(capsys, "export", "nwb", result.folder, options), "session_start_time", "2026-03-01")
    outcome = run(capsys, "export", "nwb", result.folder, options, "--append")
    assert_told(outcome, "There is no file", "--append")
    assert_told(run(capsys, "export", "nwb", result.folder, {**options, "-o": tmp_path / "u.h5"}), ".nwb")
    assert not list(tmp_path.iterdir())
    with pytest.raises(SettingError, match="yesterday"):
        spikewise.export_nwb(result, tetrode.recording, options["-o"], session_start_time="yesterday")


@pytest.fixture(scope="module")
def nwb_file(tetrode, result, analyzer):
    file = result.folder.parent / "units.nwb"
    config = spikewise.NwbConfig(session_start_time=START, **ANIMAL, **SESSION)
    done = write_nwb(analyzer, load(tetrode.recording), result.provenance, file, False, config)
    assert (done.table, done.num_units) == ("units", 3)
    return file


def test_without_a_gain_nothing_is_told_in_volts(tetrode, result, tmp_path, caplog):
    pynwb = pytest.importorskip("pynwb")
    recording = load(tetrode.recording)
    for name in ("gain_to_uV", "offset_to_uV"):
        recording.delete_property(name)
    made = spikewise.analyze(result.folder, recording, output=tmp_path / "analyzer")
    assert "does not tell its gain" in caplog.text
    assert "--gain-to-uv" in caplog.text
    assert not made.has_extension("template_metrics")
    assert made.has_extension("quality_metrics")
    done = spikewise.export_nwb(result.folder, recording, tmp_path / "u.nwb", session_start_time=START)
    with pynwb.NWBHDF5IO(str(done.path), "r") as io:
        table = io.read().units
        assert "waveform_mean" not in table.colnames
        counts = result.sorting.count_num_spikes_per_unit(outputs="dict")
        assert [len(times) for times in table["spike_times"][:]] == list(counts.values())
        assert len(table["electrodes"][0]) == 4


def inspect(file) -> list[str]:
    """All that nwbinspector finds, suggestions included."""
    inspector = pytest.importorskip("nwbinspector")
    found = inspector.inspect_nwbfile(nwbfile_path=file)
    return [f"{m.importance.name}: {m.check_function_name}: {m.message}" for m in found]


def test_a_new_file_holds_the_units_and_passes_the_inspector(nwb_file, tetrode, result, analyzer):
    pynwb = pytest.importorskip("pynwb")
    assert inspect(nwb_file) == []
    with pynwb.NWBHDF5IO(str(nwb_file), "r") as io:
        read = io.read()
        units = read.units.to_dataframe()
        electrodes = read.electrodes.to_dataframe()
        assert set(electrodes["location"]) == {"VISp"}
        positions = load(tetrode.recording).get_channel_locations()
        np.testing.assert_allclose(electrodes[["rel_x", "rel_y"]], positions)
        assert read.electrode_groups["0"].location == "VISp"
        assert list(read.keywords[:]) == ["extracellular electrophysiology", "spike sorting"]
        places = analyzer.get_extension("unit_locations").get_data()
        np.testing.assert_allclose(units[["position_x_um", "position_y_um"]], places[:, :2])
        assert set(units["group"]) == {"0"}
        assert read.units.waveform_rate == 30000
        for row, unit in enumerate(result.sorting.unit_ids):
            train = result.sorting.get_unit_spike_train(unit) / 30000
            assert np.allclose(units["spike_times"].iloc[row], train, atol=1e-6)
            template = analyzer.get_extension("templates").get_unit_template(unit)
            stored = np.asarray(units["waveform_mean"].iloc[row])
            assert stored.min() == pytest.approx(template.min() * 1e-6)  # volts
            first = units["electrodes"].iloc[row].index[0]
            assert first == abs(template).max(axis=0).argmax()
        kept = json.loads(read.scratch["spikewise_provenance"].data)
        assert kept["model"]["hash"] == result.model.hash()


def test_units_that_are_there_stay_as_they_are(nwb_file, tetrode, result, analyzer, tmp_path):
    pynwb = pytest.importorskip("pynwb")
    recording, file = load(tetrode.recording), tmp_path / "other.nwb"
    other = pynwb.NWBFile("a session", "id", pynwb.file.datetime.fromisoformat(START))
    other.add_unit(spike_times=[0.5, 1.5], id=7)
    with pynwb.NWBHDF5IO(str(file), "w") as io:
        io.write(other)
    done = write_nwb(analyzer, recording, result.provenance, file, True, spikewise.NwbConfig())
    assert done.table == "processing/ecephys/spikewise_units"
    with pynwb.NWBHDF5IO(str(file), "r") as io:
        read = io.read()
        assert read.units["spike_times"][0].tolist() == [0.5, 1.5]
        assert len(read.units) == 1
        assert len(read.processing["ecephys"]["spikewise_units"]) == 3
    with pytest.raises(OutputError, match="already"):
        write_nwb(analyzer, recording, result.provenance, file, True, spikewise.NwbConfig())


def test_the_nwb_command_appends(tetrode, result, tmp_path, capsys):
    pynwb = pytest.importorskip("pynwb")
    file = tmp_path / "units.nwb"
    empty = pynwb.NWBFile("a session", "id", pynwb.file.datetime.fromisoformat(START))
    with pynwb.NWBHDF5IO(str(file), "w") as io:
        io.write(empty)
    options = {"--recording": tetrode.recording, "-o": file}
    told = succeed(capsys, "export", "nwb", result.folder, options, "--append").summary
    assert told["table"] == "units"
    assert told["spikes"] == result.provenance["result"]["num_spikes"]
    labels = spikewise.train(
        tetrode.recording, file, **{k.strip("-").replace("-", "_"): v for k, v in QUICK.items()}
    )
    assert len(labels.unit_ids) == 3  # and the file serves as labels
