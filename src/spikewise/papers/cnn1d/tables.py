"""The tables of Li et al. 2020: published and measured values, made from the rows of results.

Conventions: scores are in percent; means are over the sets, standard deviations over the divisions.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spikewise.papers.cnn1d.baselines import BASELINES
from spikewise.papers.cnn1d.folder import write_csv
from spikewise.papers.cnn1d.methods import METHODS, PRESETS
from spikewise.papers.cnn1d.sets import public_name, published_table

_RIVALS_EXPERIMENT = 2
"""The experiment in which the paper compares the rivals."""


def make_tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables of the paper with the measured values.

    Parameters
    ----------
    rows : DataFrame
        Columns as in :data:`~spikewise.papers.cnn1d.runs.COLUMNS`.

    Returns
    -------
    dict of str to DataFrame
        ``table1``, ``table2``, ``table3`` from :func:`compare`, ``means`` from :func:`mean_scores`, and
        ``real_sets`` with mean and standard deviation over the seeds.
    """
    experiments = sorted(rows["experiment"].unique())
    rivals_at = _RIVALS_EXPERIMENT if _RIVALS_EXPERIMENT in experiments else experiments[0]
    tables = {}
    for name, file, keys, score in (
        ("table1", "cnn_table1", ["dataset", "noise_level"], "accuracy"),
        ("table2", "cnn_table2", ["dataset", "noise_level"], "accuracy"),
        ("table3", "cnn_table3_macro_f", ["channel", "n_clusters"], "macro_f"),
    ):
        published = published_table(file)
        columns = _cells_of([str(column) for column in published], experiments, rivals_at)
        names = (
            [f"channel_{channel}" for channel in published["channel"]]
            if "channel" in keys
            else [public_name(*row) for row in published[keys].itertuples(index=False)]
        )
        tables[name] = compare(published.assign(set=names), rows, columns, [*keys], score)
    tables["means"] = mean_scores(rows, experiments, rivals_at)
    tables["real_sets"] = _real_scores(rows)
    return tables


def _cells_of(
    published: list[str], experiments: list[int], rivals_at: int
) -> dict[str, list[tuple[str, int]]]:
    """Return, for each published column, the methods and the experiment that it is compared with."""
    cells: dict[str, list[tuple[str, int]]] = {}
    for column in published:
        if column in BASELINES:
            cells[column] = [(column, rivals_at)]
        elif re.fullmatch(r"cnn_e\d", column) and int(column[-1]) in experiments:
            cells[column] = [(preset, int(column[-1])) for preset in PRESETS]
    return cells


def compare(
    published: pd.DataFrame,
    rows: pd.DataFrame,
    columns: dict[str, list[tuple[str, int]]],
    keys: list[str],
    score: str,
) -> pd.DataFrame:
    """Return the cells of a published table with the measured values.

    Parameters
    ----------
    published : DataFrame
        A row for each set, in percent; the column `set` holds the set's name.
    rows : DataFrame
        Columns as in :data:`~spikewise.papers.cnn1d.runs.COLUMNS`.
    columns : dict
        For each published column the methods and experiments that it is compared with.
    keys : list of str
        Columns of `published` that identify its rows.
    score : "accuracy" or "macro_f"

    Returns
    -------
    DataFrame
        Long: `keys`, `set`, `source`, `column`, `method` ("published" or the name of a method),
        `experiment`, `mean`, `sd` (NaN for one seed), `num_seeds`. Only sets that were run.
    """
    source = rows.drop_duplicates("set").set_index("set")["source"]
    scores = rows.groupby(["set", "method", "experiment"])[score].agg(["mean", "std", "count"])
    measured = {key: tuple(values) for key, values in zip(scores.index, scores.to_numpy(), strict=True)}
    cells = []
    for row in published[published["set"].isin(source.index)].to_dict("records"):
        identity = {**{key: row[key] for key in keys}, "set": row["set"], "source": source[row["set"]]}
        for column, methods in columns.items():
            compared = [
                (method, e, *measured[key])
                for method, e in methods
                if (key := (row["set"], method, e)) in measured
            ]
            from_paper = ("published", methods[0][1], row[column], np.nan, 0)
            for method, experiment, mean, sd, count in [from_paper, *compared]:
                cells.append(
                    {**identity, "column": column, "method": method, "experiment": experiment,
                     "mean": mean, "sd": sd, "num_seeds": int(count)}
                )  # fmt: skip
    names = [*keys, "set", "source", "column", "method", "experiment", "mean", "sd", "num_seeds"]
    return pd.DataFrame(cells, columns=names)


def mean_scores(rows: pd.DataFrame, experiments: list[int], rivals_at: int) -> pd.DataFrame:
    """Return the mean accuracy over the Wave_Clus sets, by which the paper compares methods.

    Returns
    -------
    DataFrame
        `method`, `experiment`, `num_sets` and `num_generated` that were run and have a published score,
        `mean` over them, `sd` over the seeds of that mean, `published_mean` over the same sets and
        `published_mean_all` over all 20; the networks first, each sorted by experiment.
    """
    tables = [published_table(name) for name in ("cnn_table1", "cnn_table2")]
    published = tables[0].merge(tables[1].drop(columns="cnn_e2"), on=["dataset", "noise_level"])
    names = [public_name(*row) for row in published[["dataset", "noise_level"]].itertuples(index=False)]
    published = published.set_index(pd.Index(names, name="set"))
    means = []
    for column, methods in _cells_of([str(column) for column in published], experiments, rivals_at).items():
        known = published[column].dropna()
        for method, experiment in methods:
            mine = rows[
                (rows["method"] == method)
                & (rows["experiment"] == experiment)
                & rows["set"].isin(known.index)
            ]
            if mine.empty:
                continue
            sources = mine.drop_duplicates("set")["source"]
            of_seeds = mine.groupby("seed")["accuracy"].mean()
            means.append(
                {
                    "method": method,
                    "experiment": experiment,
                    "num_sets": len(sources),
                    "num_generated": int((sources == "generated").sum()),
                    "mean": of_seeds.mean(),
                    "sd": of_seeds.std(),
                    "published_mean": known[known.index.isin(mine["set"])].mean(),
                    "published_mean_all": known.mean(),
                }
            )
    names = ["method", "experiment", "num_sets", "num_generated", "mean", "sd"]
    table = pd.DataFrame(means, columns=[*names, "published_mean", "published_mean_all"])
    order = {method: index for index, method in enumerate(METHODS)}
    table = table.sort_values(
        ["method", "experiment"], key=lambda part: part.map(order) if part.name == "method" else part
    )
    return table.reset_index(drop=True)


def _real_scores(rows: pd.DataFrame) -> pd.DataFrame:
    groups = rows[rows["source"] == "real"].groupby(["set", "experiment", "method"], sort=False)
    return groups.agg(
        num_train=("num_train", "first"),
        num_test=("num_test", "first"),
        num_seeds=("seed", "count"),
        accuracy_mean=("accuracy", "mean"),
        accuracy_sd=("accuracy", "std"),
        macro_f_mean=("macro_f", "mean"),
        macro_f_sd=("macro_f", "std"),
        seconds=("seconds", "mean"),
    ).reset_index()


def widen(cells: pd.DataFrame) -> pd.DataFrame:
    """Return the result of :func:`compare` in wide form: each published column, then the measured ones."""
    keys = list(cells.columns[: list(cells.columns).index("source") + 1])
    table: dict[str, dict[str, Any]] = {}
    for cell in cells.to_dict("records"):
        row = table.setdefault(cell["set"], {key: cell[key] for key in keys})
        if cell["method"] == "published":
            row[f"published_{cell['column']}"] = cell["mean"]
        else:
            name = f"{cell['method']}_e{cell['experiment']}"
            row |= {f"{name}_mean": cell["mean"], f"{name}_sd": cell["sd"]}
    return pd.DataFrame(list(table.values()))


def plain_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as dictionaries of plain types; missing values are None."""
    return [
        {str(key): None if pd.isna(value) else value for key, value in row.items()}
        for row in table.to_dict("records")
    ]


def write_tables(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write the tables of :func:`make_tables`, a CSV for each; published tables are in wide form.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    for name, table in tables.items():
        write_csv(widen(table) if "column" in table else table, folder / f"{name}.csv")
