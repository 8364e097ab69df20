"""A result in the hands of a user: what it shows of itself, its units, its report and exports."""

import json

import numpy as np
import pandas as pd
import pytest
from spikeinterface.core import load

import spikewise
from spikewise.core.errors import OutputError


@pytest.fixture(scope="module")
def folder(tetrode, trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("results") / "out"
    spikewise.sort(tetrode.recording, model=trained, output=folder, report=False)
    return folder


@pytest.fixture
def result(folder):
    return spikewise.load_result(folder)


def test_public_names_are_listed():
    names = dir(spikewise)
    assert {"sort", "load_result", "SortingResult", "StreamSorter", "__version__"} <= set(names)
    assert set(spikewise.__all__) <= set(names)
    assert not {"annotations", "importlib", "Any"} & set(names)
    assert all(getattr(spikewise, name) is not None for name in spikewise.__all__)


def test_a_result_is_read_from_its_folder(tetrode, trained, folder, result):
    sorted_now = spikewise.sort(tetrode.recording, model=trained, report=False)
    np.testing.assert_array_equal(result.sorting.to_spike_vector(), sorted_now.sorting.to_spike_vector())
    assert result.folder == folder
    assert result.provenance["recording"] == sorted_now.provenance["recording"]
    with pytest.raises(OutputError, match="result"):
        spikewise.load_result(folder.parent)


def test_what_a_result_shows_of_itself(tetrode, result, folder):
    spikes = result.sorting.count_total_num_spikes()
    text = repr(result)
    assert text.startswith("SortingResult(units: 3, spikes: ")
    for part in (f"spikes: {spikes}", "8 s, 4 channels, 30000 Hz", "a model that was given", str(folder)):
        assert part in text
    assert len(text.splitlines()) == 1
    page = result._repr_html_()
    assert f"<td style='text-align:left'>{spikes}</td>" in page
    assert page.count("<tr") >= 3 + 5
    assert "<th>num_spikes</th>" in page


def test_a_notebook_shows_text_and_not_markup(result):
    from dataclasses import replace
    from pathlib import Path

    assert "<b>&" not in replace(result, folder=Path("<b>&"))._repr_html_()


def test_units_are_a_table(result):
    table = result.units
    counts = result.sorting.count_num_spikes_per_unit()
    assert table.index.tolist() == result.sorting.unit_ids.tolist()
    assert table.index.name == "unit_id"
    assert table["num_spikes"].to_dict() == counts
    np.testing.assert_allclose(table["rate_hz"], table["num_spikes"] / 8)
    first = table.index[0]
    intervals = np.diff(result.sorting.get_unit_spike_train(first))
    assert table["violations_percent"][first] == pytest.approx(100 * np.mean(intervals < 60))
    assert table["num_labels"].sum() == sum(g["num_labels"] for g in result.model.facts["groups"])


def test_units_of_a_file_are_used(result, folder):
    ids = result.sorting.unit_ids.tolist()
    file = folder / "units.csv"
    try:
        pd.DataFrame({"unit_id": ids, "trust": [0.9, 0.8, 0.7]}).to_csv(file, index=False)
        assert result.units["trust"].to_dict() == dict(zip(ids, [0.9, 0.8, 0.7], strict=True))
        file.write_text("unit_id,trust\n7,1\n")
        with pytest.raises(OutputError, match="its units are not those of the sorting"):
            result.units  # noqa: B018
        file.write_bytes(b"\xff\xfe")
        with pytest.raises(OutputError, match="cannot be read"):
            result.units  # noqa: B018
    finally:
        file.unlink()


def test_exports_use_the_recording_at_hand(tetrode, result, tmp_path):
    exported = result.to_phy(tmp_path / "phy", traces="none")
    assert exported.num_spikes == result.sorting.count_total_num_spikes()
    analyzer = result.analyzer()
    assert analyzer.get_num_units() == 3
    written = result.report(tmp_path / "report.html", truth=tetrode.truth)
    direct = spikewise.evaluate(tetrode.truth, result.sorting)
    assert written.performance.accuracy == direct.accuracy
    assert "waveform" in written.path.read_text()


def test_units_go_to_nwb(tetrode, result, tmp_path):
    pynwb = pytest.importorskip("pynwb")
    pytest.importorskip("neuroconv")
    start = "2026-03-01T14:00:00+01:00"
    result.to_nwb(tmp_path / "units.nwb", load(tetrode.recording), session_start_time=start)
    with pynwb.NWBHDF5IO(str(tmp_path / "units.nwb"), "r") as file:
        units = file.read().units
        assert sum(map(len, units["spike_times"][:])) == result.sorting.count_total_num_spikes()


def test_the_report_goes_into_the_folder(result, folder):
    assert result.report().path == folder / "report.html"
    assert result.report().path.exists()  # replaced


def test_a_result_without_folder_or_recording_says_what_is_missing(tetrode, trained, tmp_path):
    result = spikewise.sort(load(tetrode.recording), model=trained, report=False)
    assert result.recording is not None
    assert result.folder is None
    with pytest.raises(OutputError, match="no file is named for the report"):
        result.report()
    assert result.to_phy(tmp_path / "phy", traces="none").num_spikes > 0
    from dataclasses import replace

    alone = replace(result, recording=None)
    with pytest.raises(OutputError, match="Give recording"):
        alone.to_phy(tmp_path / "other")
    assert alone.report(tmp_path / "report.html").path.exists()


def test_a_raw_file_is_opened_again_as_it_was(tetrode, trained, tmp_path):
    original = load(tetrode.recording)
    original.get_traces().tofile(tmp_path / "raw.dat")
    options = {"sampling_frequency": 30000.0, "num_channels": 4, "dtype": str(original.get_dtype())}
    recording = spikewise.load_recording(tmp_path / "raw.dat", probe="tetrode", **options)
    model = spikewise.load_model(trained)
    positions = model.groups[0].channel_positions_um
    if not np.allclose(recording.get_channel_locations(), positions, atol=1):
        pytest.skip("the tetrode of the catalogue has other positions")
    spikewise.sort(tmp_path / "raw.dat", model=model, output=tmp_path / "out", probe="tetrode", **options)
    again = spikewise.load_result(tmp_path / "out")
    facts = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert facts["recording"]["path"] == str(tmp_path / "raw.dat")
    assert again.to_phy(tmp_path / "phy", traces="none").num_spikes == again.sorting.count_total_num_spikes()
