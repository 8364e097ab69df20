import json
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from spikewise.data.wave_clus import save_wave_clus, simulate_wave_clus
from spikewise.data.waveform_windows import shift_into_silence
from spikewise.errors import Interrupted, OutputError, SettingError, WaveformsError
from spikewise.evaluation import papers
from spikewise.evaluation.baselines import BASELINES
from spikewise.evaluation.papers import (
    SHARES,
    choose_methods,
    compare,
    divide,
    division_of,
    draw_noise,
    find_sets,
    load_set,
    make_pairs,
    make_tables,
    mean_scores,
    public_name,
    published_table,
    run_cnn_paper,
    take_points,
    uses_labels,
)
from spikewise.output.papers_page import page_table
from spikewise.waveform_config import WAVEFORM_PRESETS, PapersConfig, WaveClusConfig

SMALL = PapersConfig(
    experiments=(1, 2),
    methods=("pca_fcm_f3", "wmsorting_f3"),
    sets=("C_Easy1_noise005", "channel_66", "real"),
    num_seeds=2,
    duration_s=6.0,
    num_jobs=1,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with two real sets, one of them the public C_Easy2 at 0.1, and files that are none."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "deeper").mkdir()
    simulation = simulate_wave_clus(WaveClusConfig(duration_s=5.0, seed=3))
    save_wave_clus(simulation, folder / "C_Easy2_noise01.mat")
    waveforms = simulation.signal[simulation.sample_index[:200, None] + np.arange(64)]
    labels = simulation.labels[:200].copy()
    labels[:20] = -1
    arrays = {"spikes_thr_unaligned": waveforms, "labels_thr": labels, "spikes_gt": waveforms}
    np.savez(folder / "deeper" / "recorded.npz", **arrays)
    np.savez(folder / "unlabelled.npz", waveforms=waveforms)
    (folder / "notes.txt").write_text("seen on Tuesday")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory, data):
    return run_cnn_paper(tmp_path_factory.mktemp("papers") / "out", data, SMALL)


def rows_of(scores, source="generated"):
    """Rows of results from {(set, method, experiment, seed): accuracy}."""
    return pd.DataFrame(
        [
            {
                "set": name, "source": source, "dataset": name, "noise_level": 0.1, "experiment": experiment,
                "method": method, "seed": seed, "num_train": 10, "num_test": 90, "accuracy": accuracy,
                "macro_f": accuracy - 1, "seconds": 1.0,
            }
            for (name, method, experiment, seed), accuracy in scores.items()
        ]
    )  # fmt: skip


# What is published


def test_published_means_are_those_that_the_paper_states():
    means = published_table("cnn_table1").mean(numeric_only=True).round(2)
    assert means["cnn_e2"] == 99.36
    assert means["cnn_e6"] == 99.69


def test_published_tables_name_the_methods_and_sets_that_can_be_run():
    columns = {*published_table("cnn_table1"), *published_table("cnn_table2")}
    assert set(BASELINES) <= columns
    assert len(published_table("cnn_table1")) == 20
    assert len(published_table("cnn_table3_macro_f")) == 28
    both = published_table("cnn_table1").merge(published_table("cnn_table2"), on=["dataset", "noise_level"])
    assert len(both) == 20
    assert (both["cnn_e2_x"] == both["cnn_e2_y"]).all()


# Sets


@pytest.mark.parametrize(
    ("level", "name"), [(0.05, "C_Easy1_noise005"), (0.1, "C_Easy1_noise01"), (0.15, "C_Easy1_noise015"),
                        (0.4, "C_Easy1_noise04")]
)  # fmt: skip
def test_names_of_public_sets(level, name):
    assert public_name("C_Easy1", level) == name
    match = papers._PUBLIC_NAME.fullmatch(name)
    assert int(match[2]) / 10 ** (len(match[2]) - 1) == level


def test_all_sets_are_20_of_wave_clus_and_28_channels(tmp_path):
    sets = find_sets(tmp_path, None, PapersConfig(duration_s=30.0))
    assert {item.source for item in sets} == {"generated"}
    assert [item.kind for item in sets] == ["wave_clus"] * 20 + ["channel"] * 28
    units = {
        f"channel_{row.channel}": row.n_clusters for row in published_table("cnn_table3_macro_f").itertuples()
    }
    for item in sets:
        simulation = item.simulation
        assert simulation.duration_s == 30.0
        if item.kind == "channel":
            rates = np.array(simulation.firing_rates_hz)
            assert len(rates) == simulation.num_units == units[item.name]
            assert simulation.num_samples == item.reading.num_samples == 12
            assert simulation.sampling_frequency == 24_400
            assert rates.sum() == pytest.approx(60)
            assert rates.min() / rates.sum() > 0.005
            assert 0.05 <= simulation.noise_level <= 0.25
        else:
            assert simulation.noise_level == item.noise_level
            assert simulation.difficulty == item.dataset.removeprefix("C_").lower()
    seeds = {item.dataset: set() for item in sets}
    for item in sets:
        seeds[item.dataset].add(item.simulation.seed)
    assert all(len(of_dataset) == 1 for of_dataset in seeds.values())
    assert len(set.union(*seeds.values())) == len(seeds)


def test_real_files_are_found_and_take_the_place_of_generated_sets(tmp_path, data):
    sets = {item.name: item for item in find_sets(tmp_path, data, PapersConfig())}
    assert len(sets) == 20 + 28 + 1
    assert sets["C_Easy2_noise01"].source == "real"
    assert sets["C_Easy2_noise01"].kind == "wave_clus"
    assert sets["C_Easy2_noise01"].noise_level == 0.1
    assert sets["recorded"].source == "real"
    assert sets["recorded"].kind == "other"
    assert {name for name, item in sets.items() if item.source == "real"} == {"C_Easy2_noise01", "recorded"}


def test_detected_spikes_do_not_take_the_place_of_a_public_set(tmp_path):
    simulation = simulate_wave_clus(WaveClusConfig(duration_s=5.0))
    waveforms = simulation.signal[simulation.sample_index[:, None] + np.arange(64)]
    folder = tmp_path / "data"
    folder.mkdir()
    np.savez(folder / "quiroga_C_Difficult2_noise005_spikes.npz", spikes=waveforms, labels=simulation.labels)
    sets = {item.name: item for item in find_sets(tmp_path / "out", folder, PapersConfig())}
    found = sets["quiroga_C_Difficult2_noise005_spikes"]
    assert (found.source, found.kind, found.dataset, found.noise_level) == (
        "real",
        "other",
        "C_Difficult2",
        0.05,
    )
    assert sets["C_Difficult2_noise005"].source == "generated"


def test_spikes_without_a_unit_and_rare_units_are_left_out(tmp_path, data):
    chosen = find_sets(tmp_path, data, PapersConfig(sets=("recorded",)))
    spikes = load_set(chosen[0])
    assert len(spikes.labels) == len(spikes.waveforms) == 180
    assert set(spikes.labels) == {0, 1, 2}
    labels = np.repeat([7, 8, 9, 3], [600, 500, 5, 3])
    np.savez(tmp_path / "rare.npz", waveforms=np.random.default_rng(0).normal(size=(1108, 20)), labels=labels)
    rare = load_set(find_sets(tmp_path / "out", tmp_path, PapersConfig(sets=("rare",)))[0])
    np.testing.assert_array_equal(rare.labels, np.repeat([0, 1], [600, 500]))  # 5 of 1108 are under 0.5 %


def test_units_that_are_named_by_text_are_numbered(tmp_path):
    waveforms = np.random.default_rng(0).normal(size=(40, 20))
    np.savez(tmp_path / "named.npz", waveforms=waveforms, labels=np.array(["b", "", "a", "a"] * 10))
    spikes = load_set(find_sets(tmp_path / "out", tmp_path, PapersConfig(sets=("named",)))[0])
    np.testing.assert_array_equal(spikes.labels, [1, 0, 0] * 10)


@pytest.mark.realdata
def test_real_sets_of_the_data_folder(tmp_path, data_folder):
    sets = {item.name: item for item in find_sets(tmp_path, data_folder, PapersConfig(sets=("real",)))}
    assert len(load_set(sets["quiroga_C_Difficult2_noise005_spikes"]).labels) == 2508
    assert len(load_set(sets["martinez2009_simulation1_spikes"]).labels) == 1187
    assert not [name for name in sets if "unlabelled" in name or "templates" in name or "times_only" in name]


@pytest.mark.parametrize("names", [("C_Easy3",), ("generated", "nothing"), ()])
def test_unknown_sets_are_refused_with_the_known_ones(tmp_path, names):
    with pytest.raises(SettingError, match=r"C_Easy1_noise005.*channel_126"):
        find_sets(tmp_path, None, PapersConfig(sets=names))


def test_real_sets_without_a_folder_of_data_are_refused(tmp_path):
    with pytest.raises(SettingError, match="Sets is real, and there is no such set"):
        find_sets(tmp_path, None, PapersConfig(sets=("real",)))
    with pytest.raises(WaveformsError, match="There is no folder"):
        find_sets(tmp_path, tmp_path / "absent", PapersConfig())


# Methods and divisions


def test_methods():
    assert choose_methods(["all"]) == ["default", "paper", *BASELINES]
    assert choose_methods(["mlp", "default"]) == ["default", "mlp"]
    learning = [method for method in choose_methods(["all"]) if uses_labels(method)]
    assert learning == ["default", "paper", "fusion_svm_f10", "wmsorting_f3", "wmsorting_f10"]
    for names in (["kmeans"], []):
        with pytest.raises(SettingError, match="wmsorting_f10"):
            choose_methods(names)


def test_divisions_are_disjoint_nested_and_of_the_right_size():
    labels = np.random.default_rng(1).integers(3, size=1001)
    earlier = np.empty(0, int)
    for experiment, size in zip(SHARES, (50, 100, 200, 300, 400, 500), strict=True):
        train, test = divide(labels, SHARES[experiment], np.random.default_rng(5))
        assert len(train) == size
        np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(1001))
        assert np.isin(earlier, train).all()
        earlier = train
    other, _ = divide(labels, 0.5, np.random.default_rng(6))
    assert 200 < np.isin(other, earlier).sum() < 300


def test_rare_units_train_with_two_spikes_at_least():
    labels = np.repeat([0, 1, 2], [990, 6, 4])
    sizes = []
    for seed in range(20):
        train, test = divide(labels, 0.05, np.random.default_rng(seed))
        counts = np.bincount(labels[train], minlength=3)
        assert counts[1:].min() >= 2
        assert len(train) + len(test) == 1000
        sizes.append(len(train))
    assert min(sizes) >= 50
    assert max(sizes) <= 54


def test_all_methods_get_the_same_division(small, monkeypatch):
    asked = []

    def remember(method, waveforms, labels, test, seed):
        asked.append((method, np.flatnonzero(labels >= 0), test))
        return np.zeros(len(test), int)

    monkeypatch.setattr(papers, "answer", remember)
    item = small.sets[0]
    for method in ("default", "paper", "wmsorting_f3"):
        papers.run_job(papers.Job(item, method, 1, (2,), SMALL.seed))
    train, test = division_of(item, 2, 1, SMALL.seed)
    assert [method for method, *_ in asked] == ["default", "paper", "wmsorting_f3"]
    for _, known, answered in asked:
        np.testing.assert_array_equal(known, train)
        np.testing.assert_array_equal(answered, test)
    assert not np.array_equal(train, division_of(item, 2, 0, SMALL.seed)[0])


def test_no_test_label_reaches_a_method(small):
    item = small.sets[0]
    labels = load_set(item).labels
    train, test = division_of(item, 2, 0, 0)
    known = np.full(len(labels), -1)
    known[train] = labels[train]
    fitted = []

    class Spy(BASELINES["wmsorting_f3"].func):
        def _fit(self, waveforms, labels):
            fitted.append(labels.copy())
            super()._fit(waveforms, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BASELINES, "wmsorting_f3", lambda units, seed: Spy(units, seed, num_features=3))
        papers.run_job(papers.Job(item, "wmsorting_f3", 0, (2,), 0))
    np.testing.assert_array_equal(fitted[0], known)
    assert (fitted[0][test] == -1).all()


# A small run


def test_every_row_is_there_and_tells_the_division(small):
    rows = small.rows
    assert list(rows) == list(papers.COLUMNS)
    assert len(rows) == small.num_new == 4 * 2 * 2 * 2
    assert len(rows.drop_duplicates(["set", "experiment", "method", "seed"])) == len(rows)
    assert set(rows["set"]) == {"C_Easy1_noise005", "channel_66", "C_Easy2_noise01", "recorded"}
    learnt = rows[rows["method"] == "wmsorting_f3"]
    for (name, experiment), part in learnt.groupby(["set", "experiment"]):
        total = part["num_train"] + part["num_test"]
        assert total.nunique() == 1
        smallest = max(round(SHARES[experiment] * total.iloc[0]), 2)
        assert (part["num_train"] >= smallest).all(), name
        assert (part["num_train"] <= smallest + 6).all(), name
    assert (rows[rows["method"] == "pca_fcm_f3"]["num_train"] == 0).all()
    assert rows[["accuracy", "macro_f"]].to_numpy().min() >= 0
    assert rows[["accuracy", "macro_f"]].to_numpy().max() <= 100
    easy = rows[rows["set"] == "C_Easy1_noise005"]
    assert easy["accuracy"].min() > 80


def test_the_files_are_there_and_say_the_same(small):
    for name in ("settings.json", "results.csv", "papers.html", "figures/rivals.png", "sets/channel_66.mat"):
        assert (small.output / name).is_file()
    assert not list(small.output.rglob("*.partial"))
    table = pd.read_csv(small.output / "tables" / "table1.csv").set_index("set")
    assert sorted(table.index) == ["C_Easy1_noise005", "C_Easy2_noise01"]
    assert table.loc["C_Easy2_noise01", "source"] == "real"
    assert table.loc["C_Easy1_noise005", "published_wmsorting_f3"] == 99.60
    rows = pd.read_csv(small.output / "results.csv")
    mine = rows[
        (rows["set"] == "C_Easy1_noise005") & (rows["method"] == "wmsorting_f3") & (rows["experiment"] == 2)
    ]
    accuracy = mine["accuracy"].to_numpy()
    assert len(accuracy) == 2
    assert table.loc["C_Easy1_noise005", "wmsorting_f3_e2_mean"] == pytest.approx(accuracy.mean(), abs=1e-3)
    sd = np.sqrt(((accuracy - accuracy.mean()) ** 2).sum())
    assert table.loc["C_Easy1_noise005", "wmsorting_f3_e2_sd"] == pytest.approx(sd, abs=1e-3)
    channels = pd.read_csv(small.output / "tables" / "table3.csv")
    assert list(channels["channel"]) == [66]
    mine = rows[
        (rows["set"] == "channel_66") & (rows["method"] == "wmsorting_f3") & (rows["experiment"] == 2)
    ]
    assert channels["wmsorting_f3_e2_mean"].item() == pytest.approx(mine["macro_f"].mean(), abs=1e-3)
    real = pd.read_csv(small.output / "tables" / "real_sets.csv")
    assert set(real["set"]) == {"C_Easy2_noise01", "recorded"}
    assert len(real) == 2 * 2 * 2


def test_a_second_run_measures_nothing_again(small, data):
    again = run_cnn_paper(small.output, data, replace(SMALL, num_jobs=2))
    assert again.num_new == 0
    pd.testing.assert_frame_equal(again.rows, small.rows)


def test_only_what_is_missing_is_run(small, data, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    for name in ("settings.json", "results.csv"):
        (output / name).write_bytes((small.output / name).read_bytes())
    lines = (output / "results.csv").read_text().splitlines()
    (output / "results.csv").write_text(
        "\n".join([*lines[:-3], lines[-3][:25]])
    )  # 3 rows less, one cut short
    again = run_cnn_paper(output, data, SMALL)
    assert again.num_new == 3
    columns = [name for name in papers.COLUMNS if name != "seconds"]
    pd.testing.assert_frame_equal(again.rows[columns], small.rows[columns])


def test_an_interrupted_run_keeps_its_rows(small, data, tmp_path):
    def stop(stage, done, total, note=""):
        if stage == "experiments" and done == 3:
            raise KeyboardInterrupt

    output = tmp_path / "out"
    with pytest.raises(Interrupted, match="Run the same command again"):
        run_cnn_paper(output, data, SMALL, stop)
    kept = pd.read_csv(output / "results.csv")
    assert 3 <= len(kept) < len(small.rows)
    again = run_cnn_paper(output, data, SMALL)
    assert again.num_new == len(small.rows) - len(kept)
    columns = [name for name in papers.COLUMNS if name != "seconds"]
    pd.testing.assert_frame_equal(again.rows[columns], small.rows[columns])


def test_a_training_that_was_interrupted_is_no_score(monkeypatch):
    class Stopped:
        facts = {"interrupted": True}  # noqa: RUF012

    monkeypatch.setattr(papers, "train_classifier", lambda *_: Stopped())
    with pytest.raises(KeyboardInterrupt):
        papers.answer("default", np.zeros((4, 20)), np.array([0, 0, 1, 1]), np.arange(4), 0)


def test_other_settings_are_refused_by_name(small, data):
    with pytest.raises(OutputError, match=r"num_seeds: 2, now 3"):
        run_cnn_paper(small.output, data, replace(SMALL, num_seeds=3))
    settings = json.loads((small.output / "settings.json").read_text())
    assert settings["num_seeds"] == 2


def test_other_files_and_other_networks_are_refused_by_name(small, data, tmp_path, monkeypatch):
    for file in data.rglob("*.*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    arrays = dict(np.load(tmp_path / "recorded.npz"))
    np.savez(tmp_path / "recorded.npz", **arrays | {"labels_thr": arrays["labels_thr"][::-1]})
    with pytest.raises(OutputError, match="files recorded: "):
        run_cnn_paper(small.output, tmp_path, SMALL)
    monkeypatch.setitem(WAVEFORM_PRESETS, "default", WAVEFORM_PRESETS["default"] | {"epochs": 77})
    with pytest.raises(OutputError, match=r"networks default epochs: \d+, now 77"):
        run_cnn_paper(small.output, data, SMALL)


@pytest.mark.parametrize("name", ["thesis.txt", "results.csv"])
def test_a_foreign_folder_is_refused(tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=name):
        run_cnn_paper(tmp_path, None, SMALL)
    assert [item.name for item in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"


# Tables


def test_measured_cells_stand_beside_the_published_ones():
    published = pd.DataFrame({"dataset": ["A", "B"], "set": ["a", "b"], "cnn_e1": [90.0, 80.0]})
    rows = rows_of({("a", "default", 1, 0): 92.0, ("a", "default", 1, 1): 94.0, ("a", "default", 2, 0): 1.0})
    cells = compare(published, rows, {"cnn_e1": [("default", 1), ("paper", 1)]}, ["dataset"], "accuracy")
    assert cells[["set", "method", "mean", "num_seeds"]].values.tolist() == [
        ["a", "published", 90.0, 0],
        ["a", "default", 93.0, 2],
    ]
    assert cells["sd"].iloc[1] == pytest.approx(np.sqrt(2))
    shown = page_table(cells)
    assert [title for title, _ in shown.groups] == ["CNN, E1 (5 %)"]
    assert [cell.mean for cell in shown.means] == [90.0, 93.0]


def test_means_are_over_sets_then_seeds():
    names = ["C_Easy1_noise005", "C_Difficult1_noise02"]
    rows = rows_of({(name, "default", 6, seed): 90 + 4 * place + seed
                    for place, name in enumerate(names) for seed in (0, 1)})  # fmt: skip
    mean = mean_scores(rows, [6], 6).set_index("method").loc["default"]
    assert (mean["num_sets"], mean["num_generated"]) == (2, 2)
    assert mean["mean"] == 92.5
    assert mean["sd"] == pytest.approx(np.sqrt(0.5))
    assert mean["published_mean"] == pytest.approx((99.77 + 98.83) / 2)
    assert round(mean["published_mean_all"], 2) == 99.69


def test_rivals_stand_at_e2_or_at_the_first_experiment_that_was_run():
    scores = {
        ("C_Easy1_noise005", "wmsorting_f3", experiment, 0): 80.0 + experiment for experiment in (1, 2, 3)
    }
    table = make_tables(rows_of(scores))["table1"]
    assert table[table["method"] == "wmsorting_f3"]["mean"].tolist() == [82.0]
    table = make_tables(rows_of({k: v for k, v in scores.items() if k[2] == 3}))["table1"]
    assert table[table["method"] == "wmsorting_f3"]["mean"].tolist() == [83.0]


# Studies


def test_pairs_are_two_units_with_their_lag_and_size():
    generator = np.random.default_rng(0)
    means = generator.normal(size=(3, 64)).cumsum(axis=1)
    lag, ratio = generator.uniform(0, 64, 300), generator.uniform(0.5, 1, 300)
    waveforms, first, second = make_pairs(means, np.zeros((300, 64)), lag, ratio, generator)
    assert (first != second).all()
    assert {*zip(first, second, strict=True)} == {(a, b) for a in range(3) for b in range(3) if a != b}
    later = waveforms - means[first]
    np.testing.assert_allclose(later, ratio[:, None] * shift_into_silence(means[second], lag), atol=1e-4)
    before = np.arange(64) < lag[:, None] - 2
    assert np.abs(later[before]).max() < 1e-4


@pytest.mark.parametrize(
    ("answers", "both_right", "one_right", "second_named"),
    [
        (lambda first, second, other: (first, second), 100, 100, 100),
        (lambda first, second, other: (second, first), 100, 100, 100),
        (lambda first, second, other: (first, other), 0, 100, 100),
        (lambda first, second, other: (second, np.full_like(first, -1)), 0, 100, 0),
        (lambda first, second, other: (other, second), 0, 0, 100),
    ],
)
def test_answers_to_pairs_are_scored(small, monkeypatch, answers, both_right, one_right, second_named):
    drawn = {}

    def remember(*given):
        waveforms, first, second = make_pairs(*given)
        drawn["units"] = (first, second, 3 - first - second)
        return waveforms, first, second

    class Classifier:
        def classify(self, waveforms):
            labels, second_labels = answers(*drawn["units"])
            return SimpleNamespace(labels=labels, second_labels=second_labels)

    monkeypatch.setattr(papers, "make_pairs", remember)
    monkeypatch.setattr(papers, "_trained_on_half", lambda *_: (Classifier(), None))
    item = next(item for item in small.sets if item.name == "C_Easy1_noise005")
    shares = papers.study_pairs(item, ["default"], 0)
    pairs = shares[shares["ratio_to"] > 0]
    assert len(pairs) == 2 * 8
    assert (pairs["both_right"] == both_right).all()
    assert (pairs["one_right"] == one_right).all()
    assert (pairs["second_named"] == second_named).all()
    assert (shares[shares["ratio_to"] == 0]["both_right"] == 0).all()


@pytest.mark.slow
def test_most_pairs_a_third_of_a_waveform_apart_are_told(tmp_path):
    config = PapersConfig(sets=("C_Easy1_noise005",), duration_s=20.0)
    item = find_sets(tmp_path, None, config)[0]
    save_wave_clus(simulate_wave_clus(item.simulation), tmp_path / "set.mat")
    pairs = papers.study_pairs(replace(item, path=tmp_path / "set.mat"), ["default", "paper"], 0)
    apart = pairs[(pairs["ratio_from"] == 0.75) & pairs["lag_from"].between(16, 31)].groupby("method").mean()
    assert apart.loc["default", "both_right"] > 60
    assert apart.loc["paper", "both_right"] == 0
    assert apart.loc["paper", "one_right"] > 60


def test_noise_is_taken_from_where_there_is_no_spike():
    signal, index = np.zeros(2000), np.array([100, 300, 1500])
    for begin in index:
        signal[begin : begin + 64] = 1
    noise = draw_noise(signal, index, 64, 500, np.random.default_rng(0))
    assert noise.shape == (500, 64)
    assert not noise.any()
    exact = np.zeros(192)
    exact[[0, 63, 128, 191]] = 1
    assert not draw_noise(exact, np.array([0, 128]), 64, 5, np.random.default_rng(0)).any()
    with pytest.raises(WaveformsError, match="64 samples without a spike"):
        draw_noise(signal[:190], np.array([0, 60, 120]), 64, 5, np.random.default_rng(0))


def test_fewer_points():
    waveforms = np.random.default_rng(0).normal(size=(5, 64))
    np.testing.assert_array_equal(take_points(waveforms, 64), waveforms)
    np.testing.assert_array_equal(take_points(waveforms, 16), waveforms[:, ::4])
    line = np.linspace(0, 63, 64)[None]
    np.testing.assert_allclose(take_points(line, 48), np.arange(48)[None] * 64 / 48, atol=1e-5)


def test_studies_of_a_small_set(tmp_path, monkeypatch):
    quick = {"epochs": 3, "windows_per_epoch": 1000}
    monkeypatch.setitem(WAVEFORM_PRESETS, "default", WAVEFORM_PRESETS["default"] | quick)
    config = PapersConfig(
        sets=("C_Easy1_noise015",), methods=("default",), duration_s=5.0, num_seeds=1, experiments=(6,),
        num_jobs=1,
    )  # fmt: skip
    results = run_cnn_paper(tmp_path / "out", None, config)
    studies, item = results.studies, results.sets[0]
    _, test = division_of(item, 6, 0, 0)
    counts = (
        studies["confusion"].pivot(index="true_unit", columns="predicted_unit", values="count").to_numpy()
    )
    assert counts.sum() == len(test)
    right = 100 * np.trace(counts) / len(test)
    assert results.rows["accuracy"].item() == pytest.approx(right, abs=1e-3)
    wrong = studies["misclassified"]
    assert (wrong["kind"] == "wrong").sum() == len(test) - np.trace(counts)
    assert (wrong["kind"] == "mean").sum() == 3
    is_wrong = wrong["kind"] == "wrong"
    assert (wrong["true_unit"] != wrong["predicted_unit"])[is_wrong].all()
    assert studies["losses"]["epoch"].tolist() == [1, 2, 3]
    assert studies["losses"]["loss"].iloc[-1] < studies["losses"]["loss"].iloc[0]
    few = studies["labels_per_unit"]
    assert few["num_test"].nunique() == 1
    assert few["labels_per_unit"].tolist() == [5, 10, 20, 40]  # each at most half of about 100
    assert few["accuracy"].iloc[-1] > 85
    points = studies["sampling_points"].set_index("num_points")
    assert points.loc[16, "published"] == 99.14
    assert points.loc[64, "accuracy"] > 90
    pairs = studies["overlapping_pairs"]
    two = pairs[pairs["ratio_to"] > 0]
    assert (two["both_right"] <= two["second_named"] + 1e-9).all()
    assert two["one_right"].mean() > 80
    assert pairs[pairs["ratio_to"] == 0]["both_right"].eq(0).all()
    assert pairs[pairs["ratio_to"] == 0]["second_named"].mean() < 30
    page = results.page.read_text()
    assert "can never have both right" in page
    assert (results.output / "figures" / "overlapping_pairs.png").stat().st_size > 10_000


# The page


def test_the_page_tells_generated_from_real_and_needs_no_network(small):
    page = small.page.read_text()
    marks = re.findall(r'<span class="mark (\w+)">(\w+)</span>', page)
    assert all(kind == text for kind, text in marks)
    assert "2 of the 4 sets are simulated" in page
    rows = re.findall(
        r'<tr><th scope="row">(C_\w+|\d+)</th><td>[^<]*</td><td><span class="mark (\w+)">', page
    )
    assert ("C_Easy1", "generated") in rows
    assert ("C_Easy2", "real") in rows
    assert ("66", "generated") in rows
    links = set(re.findall(r'(?:src|href)="([^"#][^"]*)"', page))
    assert all(link.startswith("data:") for link in links)
    assert "<script" not in page
    cell = small.tables["means"].set_index(["method", "experiment"]).loc[("wmsorting_f3", 2)]
    assert f"{cell['mean']:.2f}<small> ± {cell['sd']:.2f}</small>" in page
