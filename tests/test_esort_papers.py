"""The experiments of Han & Wang: plan, scores, tables, and a tiny run from end to end."""

import dataclasses
import json
import re
from itertools import groupby

import numpy as np
import pandas as pd
import pytest
from commands import run, succeed
from spikeinterface.core import NumpySorting

from spikewise.core.errors import SettingError
from spikewise.papers.esort import config as esort_config
from spikewise.papers.esort.config import EsortPaperConfig, Scale
from spikewise.papers.esort.figures import draw_all
from spikewise.papers.esort.methods import LEARNERS, METHOD_NAMES
from spikewise.papers.esort.page import page_table
from spikewise.papers.esort.plan import (
    KEY,
    Recipe,
    Run,
    base_recipe,
    find_templates,
    plan_runs,
    simulation_options,
)
from spikewise.papers.esort.runs import COLUMNS, missing_sorters, read_rows
from spikewise.papers.esort.scores import score_as_published, score_sorting
from spikewise.papers.esort.tables import labels_needed, make_tables
from spikewise.sorting.spikes import Spikes

RATE = 32000
TINY = Scale("tetrode", 15, 8.0, 1, (5, 10), 10, ("tetrode",), (10.0,), ("none",), ())


# The plan


def test_each_run_is_planned_once_and_those_of_a_recording_together():
    runs = plan_runs(EsortPaperConfig(num_seeds=2), Scale("neuropixels64", 20, 40.0, 1, (5, 50), 15))
    assert len({run.key for run in runs}) == len(runs)
    recipes = [recipe for recipe, _ in groupby(runs, key=lambda run: run.recipe)]
    assert len(set(recipes)) == len(recipes)
    assert {run.recipe.seed for run in runs} == {0, 1}


def test_other_sorters_run_on_each_recording_that_is_not_wide_and_the_slow_ones_on_one():
    scale = dataclasses.replace(TINY, drifts=("none", "slow"), probes=("tetrode", "sqmea", "ultra"))
    runs = plan_runs(EsortPaperConfig(experiments=("f",)), dataclasses.replace(scale, sorters_on_wide=False))
    lupin = {(run.recipe.probe, run.recipe.drift) for run in runs if run.method == "lupin"}
    assert lupin == {("tetrode", "none"), ("tetrode", "slow"), ("sqmea", "none")}
    wide = plan_runs(EsortPaperConfig(experiments=("f",)), scale)
    assert {run.recipe.probe for run in wide if run.method == "lupin"} == {"tetrode", "sqmea", "ultra"}


def test_other_sorters_run_at_each_noise_and_the_slow_ones_at_the_lowest_alone():
    scale = dataclasses.replace(TINY, noises_uV=(10.0, 20.0))
    planned: dict[float, set[str]] = {10.0: set(), 20.0: set()}
    for one in plan_runs(EsortPaperConfig(experiments=("f",)), scale):
        planned[one.recipe.noise_uV].add(one.method)
    everywhere = {"spikewise", "esort", "spikewise_no_labels", "lupin", "tridesclous2"}
    assert everywhere < planned[20.0] < planned[10.0]
    assert planned[10.0] - planned[20.0] == {"kilosort4", "kilosort4_no_drift"}


def test_labels_and_labels_needed_share_their_runs():
    planned = {name: plan_runs(EsortPaperConfig(experiments=(name,)), TINY) for name in ("a", "b")}
    assert planned["a"] == planned["b"]
    assert [(run.method, run.labels_per_unit) for run in planned["a"]] == [
        (method, count) for count in (5, 10) for method in LEARNERS
    ]
    both = plan_runs(EsortPaperConfig(experiments=("a", "b")), TINY)
    assert both == planned["a"]


def test_filters_come_from_other_units_as_many_or_half_as_many_again(tmp_path):
    runs = {run.method: run for run in plan_runs(EsortPaperConfig(experiments=("a",)), TINY)}
    same, denser = runs["esort_transfer"].pretraining, runs["esort_transfer_denser"].pretraining
    units = runs["esort"].recipe.num_units
    assert (same.num_units, denser.num_units) == (units, round(1.5 * units))
    assert runs["esort"].pretraining is None
    assert runs["spikewise_scratch"].pretraining is None
    seeds = [simulation_options(r, 0, {}, tmp_path)["seed"] for r in (runs["esort"].recipe, same)]
    assert seeds[0] != seeds[1]


def test_template_files_are_used_where_no_filters_are_carried_over(tmp_path, data_folder_like):
    templates = find_templates(data_folder_like)
    assert set(templates) == {"tetrode"}
    scale = dataclasses.replace(TINY, probe="neuropixels64", probes=("neuropixels64", "tetrode"))
    runs = plan_runs(EsortPaperConfig(experiments=("c",)), scale, frozenset(templates))
    assert {(run.recipe.probe, run.recipe.source) for run in runs} == {
        ("neuropixels64", "generator"),
        ("tetrode", "mearec"),
    }
    options = simulation_options(runs[-1].recipe, 0, templates, tmp_path)
    assert options["templates"] == str(templates["tetrode"])
    assert "probe" not in options


@pytest.fixture
def data_folder_like(tmp_path):
    """A data folder with one template file."""
    (tmp_path / "data" / "mearec").mkdir(parents=True)
    (tmp_path / "data" / "mearec" / "templates_tetrode_seed671.h5").write_bytes(b"")
    return tmp_path / "data"


def test_a_part_of_a_probe_has_its_first_contacts(tmp_path):
    from spikewise.data.recordings.probes import load_probe

    recipe = dataclasses.replace(base_recipe(TINY, 0), probe="neuropixels64")
    options = simulation_options(recipe, 0, {}, tmp_path)
    cut, whole = load_probe(options["probe"], 64), load_probe("neuropixels-1.0")
    np.testing.assert_array_equal(
        cut.get_global_contact_positions(), whole.get_global_contact_positions()[:64]
    )


def test_drift_is_an_option_only_where_there_is_any(tmp_path):
    still = base_recipe(TINY, 0)
    assert "drift" not in simulation_options(still, 0, {}, tmp_path)
    slow = dataclasses.replace(still, drift="slow")
    assert simulation_options(slow, 0, {}, tmp_path)["drift"] == "slow"


def test_sorters_that_are_not_installed_are_named_with_the_reason(monkeypatch):
    monkeypatch.setattr("spikewise.papers.esort.runs.installed_sorters", lambda: ["lupin"])
    runs = [Run(base_recipe(TINY, 0), name, 0) for name in ("lupin", "kilosort4", "kilosort4_no_drift")]
    told = missing_sorters(runs)
    assert told == dict.fromkeys(("kilosort4", "kilosort4_no_drift"), "kilosort4 is not installed")


@pytest.mark.parametrize("experiments", [("g",), ()])
def test_unknown_experiments_are_refused(experiments):
    with pytest.raises(SettingError, match="all, a, b, c, d, e, f"):
        EsortPaperConfig(experiments=experiments)


# The published way to score


def sorting_of(trains, unit_ids=("x", "y")):
    """A sorting of two units from their frames."""
    samples = np.concatenate(trains)
    labels = np.repeat(np.arange(len(trains)), [len(train) for train in trains])
    order = np.argsort(samples, kind="stable")
    made = NumpySorting.from_samples_and_labels(
        [samples[order]], [labels[order]], RATE, unit_ids=np.arange(len(trains))
    )
    return made.rename_units(list(unit_ids))


def peaks_of(rows):
    """Peaks from (sample, unit, response)."""
    sample, unit, response = map(np.array, zip(*rows, strict=True))
    return Spikes(sample.astype(np.int64), unit.astype(np.int64), response.astype(np.float32))


def test_the_published_way_takes_a_spike_that_is_29_samples_away_and_no_farther():
    frames = np.arange(1, 11) * 3000
    for away, accuracy, corrected in ((12, 100, 100), (13, 100, 0), (29, 100, 0), (30, 0, 0)):
        truth, found = sorting_of([frames, frames + 1500]), sorting_of([frames + away, frames + 1500 + away])
        assert score_sorting(truth, found, (0.0, 1.2), as_published=True).accuracy == accuracy
        assert score_sorting(truth, found, (0.0, 1.2)).accuracy == corrected


def test_the_published_way_moves_peaks_by_7_samples():
    frames = np.arange(1, 10) * 900 + 50
    truth = sorting_of([frames, frames + 450])
    for away, accuracy in ((20, 100), (22, 100), (23, 0), (-36, 100), (-37, 0)):
        rows = [(frame + shift + away, unit, 0.95) for frame in frames for unit, shift in ((0, 0), (1, 450))]
        assert score_as_published(truth, peaks_of(rows), ("x", "y"), (0.0, 1.0)).accuracy == accuracy


def test_the_published_threshold_is_the_best_on_the_test():
    frames = np.arange(1, 10) * 900 + 50
    truth = sorting_of([frames, frames + 450])
    true = [(frame, 0, 0.85) for frame in frames] + [(frame + 450, 1, 0.75) for frame in frames]
    false = [(frame + 200, 0, 0.65) for frame in frames]
    score = score_as_published(truth, peaks_of(sorted(true + false)), ("x", "y"), (0.0, 1.0))
    assert (score.threshold, score.accuracy) == (0.7, 100)
    halves = score_as_published(truth, peaks_of(sorted(true)), ("x", "y"), (0.0, 1.0))
    assert halves.threshold == 0.5  # all up to 0.7 are as good


def test_the_published_way_does_not_see_the_seams_of_chunks():
    start = RATE
    places = np.array([0, 8, 9, 5000, 9990, 9991, 10008, 10009, 15000])
    truth = sorting_of([start + places + 20, start + places + 25], ("x", "y"))
    rows = sorted((start + place, unit, 0.9) for place in places for unit in (0, 1))
    score = score_as_published(truth, peaks_of(rows), ("x", "y"), (1.0, 2.0))
    assert score.precision == 100
    assert score.recall == pytest.approx(100 * 5 / 9)


# The tables


def row(method, labels, accuracy, **others):
    """A row of results."""
    usual = {
        "probe": "tetrode", "num_units": 3, "noise_uV": 10.0, "drift": "none", "method": method,
        "pretraining_drift": "none", "labels_per_unit": labels, "seed": 0, "source": "generator",
        "num_channels": 4, "duration_s": 8.0, "accuracy": accuracy, "precision": 90.0, "recall": 80.0,
        "accuracy_all_spikes": accuracy, "num_units_found": 3, "threshold": np.nan, "learning_s": 4.0,
        "sorting_s": 2.0, "sorted_s": 8.0, "note": "",
    }  # fmt: skip
    return {**usual, **others}


@pytest.mark.parametrize(
    ("wanted", "needed"), [(40, 5), (50, 5), (60, 7.5), (70, 10), (75, 20), (80, 30), (80.1, np.inf)]
)
def test_labels_needed_are_read_from_the_curve(wanted, needed):
    assert labels_needed((5, 10, 30), (50, 70, 80), wanted) == pytest.approx(needed)


def test_a_curve_that_falls_keeps_what_it_reached():
    assert labels_needed((5, 10, 20, 30), (50, 70, 60, 80), 65) == pytest.approx(8.75)
    assert labels_needed((5, 10, 20, 30), (50, 70, 60, 80), 75) == pytest.approx(25)


def test_gains_and_reductions_are_those_of_the_curves():
    scratch = [row("esort", count, score) for count, score in ((5, 50), (10, 70), (30, 80))]
    transfer = [row("esort_transfer", count, score) for count, score in ((5, 75), (10, 78), (30, 85))]
    tables = make_tables(pd.DataFrame(scratch + transfer), TINY, ("a", "b"))
    needed = tables["labels_needed"].set_index("labels_per_unit")
    assert set(needed["baseline"]) == {"esort"}
    assert needed["gain_points"].to_list() == [25, 8, 5]
    assert needed["labels_needed"].to_list() == pytest.approx([20, 26, 30])
    assert needed["reduction_percent"].to_list() == pytest.approx([75, 100 * (1 - 10 / 26), 0])
    assert needed["bound"].to_list() == ["", "", "at least"]
    claims = tables["claims"].set_index("claim")
    assert claims["measured"].to_list() == [75, 25]
    assert claims["published"].to_list() == [44, 25.68]
    assert claims["labels_per_unit"].to_list() == [5, 5]


def test_what_is_below_the_curve_claims_no_reduction():
    rows = [row("esort", 5, 90), row("esort", 10, 95), row("esort_transfer", 5, 80)]
    tables = make_tables(pd.DataFrame(rows), TINY, ("b",))
    assert tables["labels_needed"]["bound"].to_list() == ["at most"]
    assert tables["claims"]["measured"].to_list() == [-10]


def test_means_are_over_seeds_and_each_table_takes_its_condition():
    rows = [
        *(row("esort", 10, score, seed=seed) for seed, score in enumerate((80, 90))),
        row("esort", 10, 60, noise_uV=20.0),
        row("lupin", 0, 50, noise_uV=20.0),
        row("esort", 10, 55, probe="sqmea", num_channels=100),
        row("esort", 10, 40, drift="slow"),
        row("esort_transfer", 10, 45, pretraining_drift="slow"),
        row("esort", 5, np.nan, note="failed"),
    ]
    tables = make_tables(pd.DataFrame(rows), TINY, ("a", "c", "d", "e"))
    (labels,) = tables["labels"].to_dict("records")
    assert (labels["accuracy"], labels["num_seeds"]) == (85, 2)
    assert labels["sd"] == pytest.approx(np.sqrt(50))
    noise = tables["noise"].set_index(["noise_uV", "method"])["accuracy"]
    assert noise.to_dict() == {(10, "esort"): 85, (20, "esort"): 60, (20, "lupin"): 50}
    assert tables["probes"].set_index("probe")["accuracy"].to_dict() == {"tetrode": 85, "sqmea": 55}
    drift = tables["drift"].set_index(["method", "drift", "pretraining_drift"])["accuracy"]
    assert drift.to_dict() == {
        ("esort", "none", "none"): 85,
        ("esort", "slow", "none"): 40,
        ("esort_transfer", "none", "slow"): 45,
    }


def test_sorters_are_compared_at_the_same_labels_and_in_seconds_of_50():
    rows = [
        row("lupin", 0, 80.0, sorting_s=6.0, sorted_s=4.0),
        row("spikewise", 10, 95.0),
        row("spikewise", 5, 10.0),
        row("spikewise_no_labels", 0, 85.0),
    ]
    tables = make_tables(pd.DataFrame(rows), TINY, ("f",))
    sorters = tables["sorters"].set_index("method")
    assert sorters.index.to_list() == ["spikewise", "spikewise_no_labels", "lupin"]
    assert sorters["sorting_s_of_50"].to_list() == [12.5, 12.5, 75]
    claims = tables["claims"].set_index(["method", "compared_with"])["measured"]
    assert claims.to_dict() == {("spikewise", ""): 12.5, ("spikewise", "lupin"): 15}


def test_spikewise_stands_beside_the_best_other_sorter_of_each_recording():
    rows = [
        *(row("lupin", 0, score, seed=seed) for seed, score in enumerate((80, 90))),
        row("tridesclous2", 0, 84),
        row("spikewise", 10, 95.0),
        row("spikewise", 5, 10.0),
        row("spikewise_no_labels", 0, 82),
        row("spikewise", 10, 70, noise_uV=20.0),
        row("tridesclous2", 0, 60, noise_uV=20.0),
        row("spikewise", 10, 99, drift="slow"),
    ]
    table = make_tables(pd.DataFrame(rows), TINY, ("f",))["best_sorters"].set_index("noise_uV")
    quiet, noisy = table.loc[10.0], table.loc[20.0]
    assert (quiet["best_sorter"], quiet["best_accuracy"]) == ("lupin", 85)
    assert (quiet["gain_with_labels"], quiet["gain_without_labels"]) == (10, -3)
    assert (noisy["best_sorter"], noisy["gain_with_labels"]) == ("tridesclous2", 10)
    assert np.isnan(noisy["gain_without_labels"])
    assert len(table) == 2  # no other sorter ran on the drifting one


def test_every_method_can_be_drawn(tmp_path):
    rows = [
        row(method, 10 if method in LEARNERS else 0, 50 + place, noise_uV=noise)
        for place, method in enumerate(METHOD_NAMES)
        for noise in (10.0, 20.0)
    ]
    tables = make_tables(pd.DataFrame(rows), TINY, ("a", "d", "f"))
    drawn = draw_all(tables, tmp_path)
    assert {"noise", "sorters"} <= set(drawn)
    assert all(name in drawn["noise"]["wide"] for name in ("Lupin", "Spikewise, no labels"))


def test_the_page_shows_names_and_marks_what_is_missing():
    table = pd.DataFrame([{"method": "esort", "labels_per_unit": 5, "accuracy": 50.126, "sd": np.nan}])
    assert page_table(table)["rows"] == [["E-Sort, from scratch", "5", "50.13", "-"]]
    assert page_table(table.iloc[:0]) is None


# The file of results


def test_the_latest_row_of_a_run_counts_and_a_line_cut_short_goes(tmp_path):
    path = tmp_path / "results.csv"
    rows = [row("esort", 5, np.nan, note="failed"), row("lupin", 0, 70), row("esort", 5, 50)]
    frame = pd.DataFrame(rows)[list(COLUMNS)]
    frame.to_csv(path, index=False)
    whole = path.read_text()
    path.write_text(whole + "tetrode,3,10.0,no")
    found = read_rows(path)
    assert path.read_text() == whole
    assert found[["method", "accuracy"]].to_numpy().tolist() == [["lupin", 70], ["esort", 50]]
    assert found["note"].to_list() == ["", ""]


# The command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("esort") / "out"


@pytest.fixture
def tiny(monkeypatch):
    """Makes the scale small tiny."""
    monkeypatch.setitem(esort_config.SCALES, "small", TINY)


def test_the_command_runs_an_experiment_from_end_to_end_and_goes_on(capsys, tiny, folder):
    told = succeed(capsys, "papers", "esort", {"-o": folder, "--experiments": "d"})
    assert (told.summary["command"], told.summary["scores"], told.summary["new"]) == ("papers esort", 2, 2)
    rows = pd.read_csv(folder / "results.csv")
    assert list(rows) == list(COLUMNS)
    assert set(zip(rows["method"], rows["noise_uV"], strict=True)) == {("spikewise", 10), ("esort", 10)}
    assert (rows["accuracy"] > 85).all()
    assert (rows["sorting_s"] > 0).all()
    page = (folder / "papers.html").read_text()
    assert "d) Noise" in page
    assert "Probes" not in page
    assert "<script" not in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert (folder / "figures" / "noise.png").read_bytes()[:4] == b"\x89PNG"
    table = pd.read_csv(folder / "tables" / "noise.csv")
    assert sorted(table["accuracy"]) == pytest.approx(sorted(rows["accuracy"]), abs=0.01)
    assert list((folder / "sets").iterdir()) == []  # recordings are removed

    lines = (folder / "results.csv").read_text().splitlines(keepends=True)
    (folder / "results.csv").write_text("".join(lines[:-1]))
    told = succeed(capsys, "papers", "esort", {"-o": folder, "--experiments": "d"})
    assert (told.summary["scores"], told.summary["new"]) == (2, 1)
    again = pd.read_csv(folder / "results.csv")
    scores = [name for name in COLUMNS if not name.endswith("_s")]
    pd.testing.assert_frame_equal(again[scores], rows[scores])


def test_a_folder_keeps_to_its_way_of_scoring(capsys, tiny, folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    settings = {"experiments_of": "Han & Wang 2024", "as_published": False}
    (out / "settings.json").write_text(json.dumps(settings))
    told = run(capsys, "papers", "esort", {"-o": out, "--experiments": "d"}, "--as-published")
    assert told.code == 2
    assert "as_published: False, now True" in told.err


@pytest.mark.slow
def test_a_run_scored_as_published_carries_filters_over(capsys, tiny, tmp_path):
    out = tmp_path / "out"
    told = succeed(capsys, "papers", "esort", {"-o": out, "--experiments": "b"}, "--as-published")
    assert told.summary["scores"] == 2 * len(LEARNERS)
    rows = pd.read_csv(out / "results.csv")
    assert set(rows["threshold"]) <= {0.5, 0.6, 0.7, 0.8, 0.9}
    assert (rows["accuracy"] > 85).all()
    assert len(list((out / "sets").glob("pretraining_*.safetensors"))) == 2
    assert "is 7 samples late" in (out / "papers.html").read_text()


def test_a_recording_that_cannot_be_made_fails_its_runs_alone(capsys, monkeypatch, tmp_path):
    sideways = dataclasses.replace(TINY, drifts=("sideways",))
    monkeypatch.setitem(esort_config.SCALES, "small", sideways)
    options = {"-o": tmp_path / "out", "--experiments": "e"}
    told = succeed(capsys, "papers", "esort", options)
    assert (told.summary["scores"], told.summary["failed"]) == (0, 3)
    rows = read_rows(tmp_path / "out" / "results.csv")
    assert rows["note"].str.contains("no recording").all()
    assert "no recording" in (tmp_path / "out" / "papers.html").read_text()
    assert succeed(capsys, "papers", "esort", options).summary["new"] == 3  # tried again


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"--scale": "huge"}, "huge"),
        ({"--experiments": "g"}, "'g'"),
        ({"--seeds": 0}, "num_seeds"),
    ],
)
def test_the_command_refuses_bad_settings(capsys, tmp_path, given, part):
    told = run(capsys, "papers", "esort", {"-o": tmp_path / "out", **given})
    assert told.code == 2
    assert part in told.err
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_bad_paths(capsys, tmp_path):
    (tmp_path / "notes.txt").write_text("seen on Tuesday")
    told = run(capsys, "papers", "esort", tmp_path / "absent", {"-o": tmp_path / "out"})
    assert told.code == 2
    assert "absent" in told.err
    told = run(capsys, "papers", "esort", {"-o": tmp_path})
    assert told.code == 2
    assert "notes.txt" in told.err
    assert not (tmp_path / "out").exists()


def test_the_key_of_a_run_has_the_columns_of_its_row():
    recipe = Recipe("tetrode", "generator", 3, 10.0, "slow", "tuning", 2, 8.0)
    filters = dataclasses.replace(recipe, role="pretraining", drift="fast")
    key = dict(zip(KEY, Run(recipe, "esort_transfer", 5, filters).key, strict=True))
    assert key == {
        "probe": "tetrode", "num_units": 3, "noise_uV": 10.0, "drift": "slow", "method": "esort_transfer",
        "pretraining_drift": "fast", "labels_per_unit": 5, "seed": 2,
    }  # fmt: skip
