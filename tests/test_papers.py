"""The paper's experiments from one end to the other, in small: files, page, command."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from commands import assert_told, contents, run, succeed
from paper_data import write_files

from spikewise.core.errors import Interrupted, OutputError
from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.papers.cnn1d.experiments import run_cnn_paper
from spikewise.papers.cnn1d.runs import COLUMNS, SHARES
from spikewise.single_channel.config import WAVEFORM_PRESETS

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
    return write_files(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def small(tmp_path_factory, data):
    return run_cnn_paper(tmp_path_factory.mktemp("papers") / "out", data, SMALL)


def test_every_row_is_there_and_tells_the_division(small):
    rows = small.rows
    assert list(rows) == list(COLUMNS)
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
    assert easy["accuracy"].median() > 90


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
    columns = [name for name in COLUMNS if name != "seconds"]
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
    columns = [name for name in COLUMNS if name != "seconds"]
    pd.testing.assert_frame_equal(again.rows[columns], small.rows[columns])


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
    assert 'id="rivals10.4-alt"' in page
    assert "means10.4-alt" not in page  # neither network was run, so there is nothing to draw
    assert not (small.output / "figures" / "means.png").exists()
    cell = small.tables["means"].set_index(["method", "experiment"]).loc[("wmsorting_f3", 2)]
    assert f"{cell['mean']:.2f}<small> ± {cell['sd']:.2f}</small>" in page


# The command


def options(small, data):
    """The command line of the small run."""
    chosen = {"--experiments": SMALL.experiments, "--methods": SMALL.methods, "--sets": SMALL.sets}
    several = [word for name, values in chosen.items() for value in values for word in (name, value)]
    settings = {"--num-seeds": SMALL.num_seeds, "--duration-s": SMALL.duration_s, "--num-jobs": 1}
    return "papers", "cnn", data, *several, settings | {"-o": small.output}


def test_the_command_prints_the_means_and_the_page(capsys, small, data):
    told = succeed(capsys, *options(small, data))
    means = small.tables["means"]
    assert told.summary["command"] == "papers cnn"
    assert told.summary["means"] == means.to_dict("records")
    assert told.summary["page"] == str(small.page)
    assert told.summary["seconds"] > 0
    row = means.set_index(["method", "experiment"]).loc[("wmsorting_f3", 2)]
    measured, published = f"{row['mean']:.2f} ± {row['sd']:.2f}", f"{row['published_mean']:.2f}"
    lines = [re.split(r"\s{2,}", line.strip()) for line in told.out.splitlines()]
    assert ["wmsorting_f3", "E2", "2", "1", measured, published] in lines
    assert "sets: 4, scores: 32, measured now: 0" in told.out
    assert str(small.page) in told.out


def test_the_command_gives_null_for_what_is_not_known(capsys, tmp_path):
    settings = {"--experiments": 1, "--methods": "pca_fcm_f3", "--sets": "C_Easy1_noise005", "--num-seeds": 1}
    more = {"--duration-s": 5, "--num-jobs": 1, "-o": tmp_path / "out"}
    told = succeed(capsys, "papers", "cnn", settings | more)
    (mean,) = told.summary["means"]
    assert (mean["method"], mean["num_sets"], mean["num_generated"], mean["sd"]) == ("pca_fcm_f3", 1, 1, None)
    assert f"{mean['mean']:.2f} ±" not in told.out
    assert "nan" not in told.out.lower()


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"--methods": "kmeans"}, ("kmeans", "wmsorting_f10")),
        ({"--sets": "C_Hard1"}, ("C_Hard1", "C_Easy1_noise005")),
        ({"--experiments": 7}, ("7", "6")),
        ({"--shapes": "absent.npz"}, ("absent.npz",)),
    ],
)
def test_the_command_refuses_bad_settings(capsys, tmp_path, given, parts):
    assert_told(run(capsys, "papers", "cnn", {"-o": tmp_path / "out", **given}), *parts)
    assert not (tmp_path / "out").exists()


def test_the_command_refuses_bad_paths(capsys, tmp_path, data):
    file = data / "notes.txt"
    assert_told(run(capsys, "papers", "cnn", file, {"-o": tmp_path / "out"}), "notes.txt", "folder")
    assert_told(run(capsys, "papers", "cnn", {"-o": file}), "notes.txt", "folder")
    before = contents(data)
    assert_told(run(capsys, "papers", "cnn", {"-o": data}), "C_Easy2_noise01.mat", "new or empty")
    assert contents(data) == before
    assert not (tmp_path / "out").exists()
