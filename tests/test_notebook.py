"""The notebook of the documentation runs, on the real recording that it names, and finds clean units."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "locust-tetrode.ipynb"
RECORDING = "real/locust20010201_trial01_raw_tetrode_unlabelled.npz"


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_the_notebook_holds_no_output():
    """It is kept as it was written, so that a change of it is a change of its text."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell["outputs"] for cell in cells if cell["cell_type"] == "code"] == [[]] * len(code_cells())


@pytest.mark.realdata
def test_the_notebook_runs_and_its_units_are_clean(data_folder, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib").use("Agg")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPIKEWISE_LOCUST", str(data_folder / RECORDING))
    names: dict = {}
    for number, cell in enumerate(code_cells()):
        exec(compile(cell, f"cell {number}", "exec"), names)
    violations = names["violations_percent"]
    assert 4 <= len(violations) <= 10  # published analyses find about ten units in it
    assert sorted(violations.values())[len(violations) // 2] < 1.0
    assert sum(names["counts"].values()) > 1000
    assert (tmp_path / "locust_sorted" / "report.html").is_file()
    assert (tmp_path / "locust_phy" / "params.py").is_file()
