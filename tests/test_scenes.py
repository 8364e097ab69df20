"""The benchmark of whole scenes: scores of trains that are counted by hand, scenes, and a small run."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from commands import QUICK, words
from spikeinterface.comparison import compare_sorter_to_ground_truth
from spikeinterface.core import NumpySorting, load

from spikewise.core.errors import SettingError

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))
scenes = importlib.import_module("scenes")
kinds = importlib.import_module("scene_benchmark.kinds")
making = importlib.import_module("scene_benchmark.making")
outputs = importlib.import_module("scene_benchmark.outputs")
scoring = importlib.import_module("scene_benchmark.scoring")
sorters = importlib.import_module("scene_benchmark.sorters")

RATE = 30000.0
DELTA = 12
"""0.4 ms in samples."""
LENGTH = 3_000_000


def sorting_of(**trains) -> NumpySorting:
    return NumpySorting.from_unit_dict(
        {name: np.sort(np.asarray(train, dtype=np.int64)) for name, train in trains.items()}, RATE
    )


def scored(truth: dict, found: dict, pairs=()) -> dict:
    return scoring.score(sorting_of(**truth), sorting_of(**found), LENGTH, list(pairs), 0.3)


A = np.arange(1000, 101_000, 1000)
"""A hundred spikes, far from those of B."""
B = A + 500


# Scores


def test_a_perfect_result():
    assert scored({"a": A, "b": B}, {"x": A, "y": B}) == {
        "accuracy": 1.0,
        "mean_accuracy": 1.0,
        "units_above_0.8": 2,
        "true_units": 2,
        "units_found": 2,
        "spurious_units": 0,
        "twice_percent": 0.0,
        "both_found_percent": None,
    }


def test_accuracy_is_pooled_and_averaged():
    # a: 100 of 100. b: 60 of 100 and 20 wrong ones: 60 / 120.
    found = scored({"a": A, "b": B}, {"x": A, "y": np.concatenate([B[:60], B[:20] + 250])})
    assert found["accuracy"] == round(160 / 220, 5)
    assert found["mean_accuracy"] == 0.75
    assert (found["units_above_0.8"], found["true_units"]) == (1, 2)


@pytest.mark.parametrize(("common", "num_spurious"), [(20, 0), (19, 1)])
def test_a_unit_that_agrees_with_no_true_unit_is_spurious(common, num_spurious):
    found = scored({"a": A, "b": B}, {"x": A[:common], "y": B})  # x agrees with a by common / 100
    assert found["spurious_units"] == num_spurious


def test_units_without_a_true_spike_or_a_report_do_not_count():
    found = scored({"a": A, "silent": []}, {"x": A, "empty": []})
    assert found["mean_accuracy"] == 1.0
    assert (found["true_units"], found["units_found"], found["spurious_units"]) == (1, 1, 0)


def test_nothing_found():
    found = scored({"a": A, "b": A}, {}, [["a", "b"]])
    assert (found["accuracy"], found["units_found"], found["twice_percent"]) == (0.0, 0, None)
    assert found["both_found_percent"] == 0.0


def test_a_unit_that_is_found_twice():
    # The second unit repeats 40 of 100 spikes: of 140 reports, 40 say what another says.
    assert scored({"a": A}, {"x": A, "y": A[:40] + 5})["twice_percent"] == round(100 * 40 / 140, 4)


def test_a_split_unit_is_not_found_twice():
    assert scored({"a": A}, {"x": A[:60], "y": A[60:]})["twice_percent"] == 0.0


def test_a_look_alike_that_claims_spikes_of_another_unit():
    found = scored({"a": A, "b": B}, {"x": A, "y": np.concatenate([B, A[:10] - 4])})
    assert found["twice_percent"] == round(100 * (10 - 10 * 100 * 25 / LENGTH) / 210, 4)


def test_units_that_fire_together_are_not_found_twice():
    together = np.concatenate([A[:50] + 6, B[50:]])
    found = scored({"a": A, "b": together}, {"x": A, "y": together}, [["a", "b"]])
    assert found["twice_percent"] == 0.0
    assert found["both_found_percent"] == 100.0


def test_reports_that_coincide_by_chance_do_not_count():
    rng = np.random.default_rng(5)
    trains = {f"u{k}": rng.choice(LENGTH, 3000, replace=False) for k in range(12)}
    wrong = {name: np.concatenate([train, rng.choice(LENGTH, 600)]) for name, train in trains.items()}
    near_any = sum(
        np.abs(np.sort(a)[:, None] - b[None, :]).min(axis=1) <= DELTA
        for a, b in [(wrong["u0"][3000:], trains["u1"])]
    ).sum()
    assert near_any > 5  # they do coincide
    assert scored(trains, wrong)["twice_percent"] < 0.05


def test_both_spikes_of_a_pair():
    # 40 pairs of spikes 0.2 ms apart. a misses ten of its own, b ten others; five are missed by both.
    b = np.concatenate([A[:40] + 6, B[40:]])
    found_a, found_b = np.delete(A, np.arange(0, 10)), np.delete(b, np.arange(5, 15))
    found = scored({"a": A, "b": b}, {"x": found_a, "y": found_b}, [["a", "b"]])
    assert found["both_found_percent"] == 100 * 25 / 40


# Scenes


def test_a_scene_is_kept_until_other_settings_are_asked_for(tmp_path):
    def make(seconds):
        settings = making.scene_settings("tetrode", 3, Path("none"), seconds, 2)
        return making.make_scene(settings, tmp_path, 1)

    first = make(2.0)
    traces = load(first.recording).get_traces()
    assert traces.shape == (50000, 4)
    assert first.facts["num_true_spikes"] == len(load(first.truth).to_spike_vector()) > 0
    mark = first.folder / "mark"
    mark.touch()
    assert make(2.0).digest == first.digest
    assert mark.exists()
    other = make(3.0)
    assert not mark.exists()
    assert other.digest != first.digest == make(2.0).digest
    np.testing.assert_array_equal(load(first.recording).get_traces(), traces)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tetrode_seed3"]


def test_a_tenth_of_the_spikes_is_moved_next_to_those_of_the_partner():
    rng = np.random.default_rng(1)
    a, b = (np.sort(rng.choice(LENGTH // 200, 1000, replace=False)) * 200 for _ in range(2))
    b = b + 100  # never within 9 samples of a
    moved = kinds.synchronise(a, b, RATE, LENGTH, rng)
    distance = np.abs(moved[:, None] - a[None, :]).min(axis=1)
    assert len(moved) == 1000
    assert (distance <= 9).sum() == 100
    assert np.isin(moved[distance > 9], b).all()
    near_new = np.abs(moved[distance > 9][:, None] - moved[distance <= 9][None, :]).min(axis=1)
    assert near_new.min() > 0.004 * RATE
    assert len(np.unique(distance[distance <= 9])) > 5


def test_partners_share_channels_and_differ_in_shape():
    wave, other = np.sin(np.linspace(0, 6, 20)), np.cos(np.linspace(0, 6, 20))
    shapes = np.zeros((6, 20, 8), dtype=np.float32)
    for unit, (shape, channels) in enumerate(
        [(wave, [0, 1]), (other, [0, 1]), (wave, [0, 1]), (wave, [4, 5]), (other, [5, 6]), (wave, [7])]
    ):
        shapes[unit][:, channels] = shape[:, None]
    allowed = [{0, 1}, {1, 2}, {3, 4}]
    for seed in range(10):
        pairs = [set(pair) for pair in kinds.choose_partners(shapes, 2, np.random.default_rng(seed)).tolist()]
        assert all(pair in allowed for pair in pairs)
        assert not pairs[0] & pairs[1]
    with pytest.raises(SettingError, match="3 pairs of units are asked for"):
        kinds.choose_partners(shapes, 3, np.random.default_rng(0))


@pytest.mark.realdata
def test_the_scene_pairs(tmp_path, data_folder):
    templates = data_folder / "mearec" / scenes.TEMPLATES.name
    settings = making.scene_settings("pairs", 2, templates, 4.0, 6)
    scene = making.make_scene(settings, tmp_path, 1)
    recording, truth = load(scene.recording), load(scene.truth)
    assert recording.get_num_channels() == 128
    assert scene.facts["pairs"] == [["0", "1"], ["2", "3"], ["4", "5"]]
    traces = recording.get_traces(0)
    assert abs(np.median(np.abs(traces)) / 0.6745 - 12) < 1  # the noise
    for unit_id in truth.unit_ids:  # its spikes are where the truth says, on some channel
        train = truth.get_unit_spike_train(unit_id)
        train = train[(train > 50) & (train < len(traces) - 50)]
        mean = np.mean([traces[frame - 20 : frame + 21] for frame in train], axis=0)
        frame, channel = np.unravel_index(mean.argmin(), mean.shape)
        assert abs(frame - 20) <= 16
        assert mean[frame, channel] < -20


def test_a_scene_without_its_template_file(capsys, tmp_path):
    arguments = ["plain", "--templates", tmp_path / "none.h5", "--folder", tmp_path / "out"]
    assert scenes.main(words(*arguments)) == 2
    assert "none.h5 does not exist" in capsys.readouterr().err


# Runs

SMALL = {
    "--seconds": 8,
    "--units": 3,
    "--seeds": 1,
    "--jobs": 1,
    "--reference": "spikewise+labels",
    "--spikewise-args": " ".join(words("--no-report", QUICK)),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of a small run, and its options."""
    folder = tmp_path_factory.mktemp("scenes")
    options = {**SMALL, "--sorters": "spikewise+labels", "--folder": folder}
    assert scenes.main(words("tetrode", options)) == 0
    assert not (folder / "work").exists()
    return folder, options


def test_the_numbers_of_a_run_are_those_of_a_direct_computation(measured):
    folder, _ = measured
    row = pd.read_csv(folder / "runs.csv").set_index("sorter").loc["spikewise+labels"]
    scene = folder / "scenes" / "tetrode_seed1"
    truth = load(scene / "truth")
    arrays = np.load(folder / "runs" / "tetrode_seed1_spikewise+labels_1.npz")
    found = NumpySorting.from_samples_and_labels(
        [arrays["sample_index"]], [arrays["unit_index"]], truth.sampling_frequency
    )
    compared = compare_sorter_to_ground_truth(truth, found, exhaustive_gt=True)
    counts, accuracy = compared.count_score, compared.get_performance()["accuracy"]
    assert row["accuracy"] == round(counts.tp.sum() / (counts.tp + counts.fp + counts.fn).sum(), 5) > 0.3
    assert row["mean_accuracy"] == round(accuracy.astype(float).mean(), 5)
    assert row["units_above_0.8"] == (accuracy > 0.8).sum()
    assert (row["true_units"], row["units_found"]) == (3, len(found.unit_ids))
    assert row["spurious_units"] == (compared.agreement_scores.max(axis=0) < 0.2).sum()
    assert 0 < row["sorting_s"] < row["seconds"]
    assert (row["ratio"], row["ratio_in_one_command"]) == (1.0, True)
    saved = json.loads((folder / "scenes.json").read_text())
    (in_json,) = [line for line in saved["runs"] if line["sorter"] == "spikewise+labels"]
    assert in_json["accuracy"] == row["accuracy"]
    summary = pd.read_csv(folder / "summary.csv").set_index("sorter").loc["spikewise+labels"]
    assert summary["accuracy_mean"] == row["accuracy"]
    assert f"{row['accuracy']:.3f}" in (folder / "scenes.md").read_text()
    assert (folder / "scenes.png").read_bytes().startswith(b"\x89PNG")


def test_only_what_is_missing_or_has_changed_is_run_and_a_failure_does_not_end_it(measured, capsys):
    folder, options = measured
    file = folder / "runs" / "tetrode_seed1_spikewise+labels_1.json"
    before = file.read_text()
    in_a_hurry = {**options, "--sorters": ("spikewise", "spikewise+labels"), "--timeout-s": 0.3}
    assert scenes.main(words("tetrode", in_a_hurry)) == 1
    failed = pd.read_csv(folder / "runs.csv").set_index("sorter").loc["spikewise"]
    assert failed["error"] == "ended after 0.3 s"
    assert np.isnan(failed["accuracy"])
    assert file.read_text() == before
    assert "(kept)" in capsys.readouterr().out
    try:
        file.write_text(json.dumps({**json.loads(before), "version": "0.0.9"}))
        assert scenes.main(words("tetrode", in_a_hurry)) == 1
        assert json.loads(file.read_text())["error"] == "ended after 0.3 s"
    finally:
        file.write_text(before)


def test_what_a_sorter_says_when_it_fails_is_told(measured):
    folder, options = measured
    options = {**options, "--sorters": "spikewise", "--spikewise-args": None}
    assert scenes.main(words("tetrode", options, "--spikewise-args=--nonsense 3")) == 1
    row = json.loads((folder / "runs" / "tetrode_seed1_spikewise_1.json").read_text())
    assert "--nonsense" in row["error"]


# Sorters and tables


def installed(*packages) -> object:
    return sorters.Installed(Path("peers"), dict.fromkeys(packages, "1.0"))


def test_all_sorters_that_are_installed_are_run():
    with_peers = installed("spikewise", "spikeinterface", "spikesift")
    chosen, missing = sorters.choose_sorters(with_peers, None, ["lupin"], with_labels=False)
    assert chosen == [
        "spikewise", "lupin+motion", "tridesclous2", "spykingcircus2", "spikesift", "spikesift+6",
    ]  # fmt: skip
    assert missing == ["mountainsort5", "kilosort4"]
    chosen, _ = sorters.choose_sorters(with_peers, ["spikesift", "spikewise+labels"], [], with_labels=False)
    assert chosen == ["spikewise+labels", "spikesift"]
    with pytest.raises(SettingError, match="kilosort4 is not installed for peers"):
        sorters.choose_sorters(with_peers, ["spikewise", "kilosort4"], [], with_labels=False)


def test_a_python_that_does_not_exist_is_told(capsys, tmp_path):
    arguments = ["tetrode", "--peers-python", tmp_path / "python", "--folder", tmp_path / "out"]
    assert scenes.main(words(*arguments)) == 2
    assert "check --peers-python" in capsys.readouterr().err.lower()


def row_of(sorter, seed, seconds, accuracy=0.5, run="now", error=""):
    return {
        "scene": "plain", "seed": seed, "repeat": 1, "sorter": sorter, "parameters": {}, "seconds": seconds,
        "sorting_s": seconds - 1, "run": run, "error": error, "true_units": 4,
        **({} if error else {"accuracy": accuracy}),
    }  # fmt: skip


def test_means_deviations_and_ratios():
    rows = [
        row_of("tridesclous2", 1, 20.0), row_of("spikewise", 1, 10.0, 0.8), row_of("spikewise", 2, 30.0, 0.9),
        row_of("tridesclous2", 2, 10.0, run="earlier"), row_of("lupin", 1, 3.0, error="no luck"),
    ]  # fmt: skip
    table = outputs.tabulate(rows, "tridesclous2")
    assert list(table["sorter"]) == ["spikewise", "lupin", "tridesclous2", "spikewise", "tridesclous2"]
    assert list(table["ratio"].dropna()) == [0.5, 1.0, 3.0, 1.0]
    summary = outputs.summarise(table).set_index("sorter")
    ours = summary.loc["spikewise"]
    assert ours["accuracy_mean"] == pytest.approx(0.85)
    assert ours["accuracy_sd"] == pytest.approx(np.std([0.8, 0.9], ddof=1))
    assert ours["ratio_mean"] == pytest.approx(1.75)
    assert ours["sorting_ratio_mean"] == pytest.approx((9 / 19 + 29 / 9) / 2)
    assert not ours["ratios_in_one_command"]
    assert summary.loc["tridesclous2", "ratios_in_one_command"]
    assert (summary.loc["lupin", "seeds"], summary.loc["lupin", "failed"]) == (0, 1)
    text = outputs.shown(summary.reset_index(), "tridesclous2")
    assert "0.850 ± 0.071" in text
    assert "~1.75 ± 1.77" in text
    assert "failed: lupin on plain" in text
