"""The paper's tables: published cells, measured cells, means."""

import numpy as np
import pandas as pd
import pytest
from paper_data import rows_of

from spikewise.papers.cnn1d.page import page_table
from spikewise.papers.cnn1d.tables import compare, make_tables, mean_scores, plain_rows


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


def test_what_is_missing_is_none_in_plain_rows():
    table = pd.DataFrame({"name": ["a", None], "count": [1, 2], "mean": [0.5, np.nan]})
    assert plain_rows(table) == [
        {"name": "a", "count": 1, "mean": 0.5},
        {"name": None, "count": 2, "mean": None},
    ]
