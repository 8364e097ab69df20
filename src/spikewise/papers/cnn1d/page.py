"""The page of the experiments of Li et al. 2020: one HTML file without other files.

The page shows published and measured values, and marks each set as real or generated. It is the template
``page.html.jinja``; its figures come from :mod:`spikewise.papers.cnn1d.figures`.
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from spikewise.core.files import writing
from spikewise.core.version import __version__
from spikewise.papers.cnn1d.figures import METHOD_NAMES, draw_all
from spikewise.papers.cnn1d.methods import PRESETS
from spikewise.papers.cnn1d.results import PaperResults
from spikewise.papers.cnn1d.runs import SHARES
from spikewise.papers.cnn1d.tables import plain_rows

TEMPLATE = "page.html.jinja"
_KEY_NAMES = {"dataset": "set", "noise_level": "noise", "channel": "channel", "n_clusters": "units"}
_SHARES = {experiment: round(100 * share) for experiment, share in SHARES.items()}


@dataclass(frozen=True)
class Cell:
    """A number of a table; `sd` is None for one seed and for published numbers."""

    mean: float | None
    sd: float | None = None


@dataclass(frozen=True)
class PageTable:
    """A published table with the measured values, in the order of the page.

    Attributes
    ----------
    keys : list of str
        Headings of the first columns.
    groups : list of (str, list of str)
        Published columns, each with the headings of the columns under it.
    rows : list of dict
        `keys` (list of str), `source`, `cells` (a list of :class:`Cell`).
    means : list of Cell
        Mean over the rows; None if a row has no number, since means over other rows are not comparable.
    """

    keys: list[str]
    groups: list[tuple[str, list[str]]]
    rows: list[dict[str, Any]]
    means: list[Cell]


def write_papers_page(results: PaperResults) -> Path:
    """Write the page and its figures into the folder of the results.

    Returns
    -------
    Path
        The page.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    OutputError
        If it cannot be written.
    """
    sets, means = results.sets, results.tables["means"]
    networks = means[means["method"].isin(PRESETS)]
    frames = {"networks": networks, "means": means, **results.studies}
    pictures = draw_all(frames, results.output / "figures")
    page = _template().render(
        version=__version__,
        config=results.config.to_dict(),
        sets=sets,
        num_generated=sum(item.source == "generated" for item in sets),
        tiles=_tiles(networks),
        means=plain_rows(means),
        tables={name: page_table(results.tables[name]) for name in ("table1", "table2", "table3")},
        real=_real_rows(results.tables["real_sets"]),
        experiments=sorted(set(results.config.experiments)),
        shares=_SHARES,
        pictures=pictures,
        singles=_single_spikes(results.studies.get("overlapping_pairs")),
        method_names=METHOD_NAMES,
    )
    partial = results.page.with_name(results.page.name + ".partial")
    with writing(results.page):
        partial.write_text(page, encoding="utf-8")
        partial.replace(results.page)
    return results.page


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source)


def page_table(cells: pd.DataFrame) -> PageTable | None:
    """Arrange the result of :func:`spikewise.papers.cnn1d.tables.compare`; None if there are no cells."""
    if cells.empty:
        return None
    keys = list(cells.columns[: list(cells.columns).index("set")])
    page_columns = list(
        dict.fromkeys(zip(cells["column"], cells["method"], cells["experiment"], strict=True))
    )
    groups: dict[str, list[str]] = {}
    for column, method, experiment in page_columns:
        groups.setdefault(_group_name(column, experiment), []).append(_column_name(column, method))
    by_cell = {
        (cell["column"], cell["method"], cell["experiment"], cell["set"]): Cell(cell["mean"], cell["sd"])
        for cell in plain_rows(cells)
    }
    rows = []
    for name, part in cells.groupby("set", sort=False):
        first = part.iloc[0]
        numbers = [by_cell.get((*column, name), Cell(None)) for column in page_columns]
        rows.append({"keys": [f"{first[key]}" for key in keys], "source": first["source"], "cells": numbers})
    columns = zip(*(row["cells"] for row in rows), strict=True)
    means = [Cell(_mean([cell.mean for cell in column])) for column in columns]
    return PageTable([_KEY_NAMES[key] for key in keys], list(groups.items()), rows, means)


def _group_name(column: str, experiment: int) -> str:
    if column in METHOD_NAMES:
        return METHOD_NAMES[column]
    return f"CNN, E{experiment} ({_SHARES[experiment]} %)"


def _column_name(column: str, method: str) -> str:
    return "published" if method == "published" else "measured" if method == column else METHOD_NAMES[method]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def _tiles(networks: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the main results: mean accuracy of the networks in E2 and E6."""
    main = networks[networks["experiment"].isin([2, 6])]
    return plain_rows(main.sort_values(["experiment", "method"]))


def _real_rows(real: pd.DataFrame) -> list[dict[str, Any]]:
    """Return a row for each real set and method, with the scores of each experiment."""
    rows = []
    for (name, method), part in real.groupby(["set", "method"], sort=False):
        scores = {
            int(score["experiment"]): {
                "accuracy": Cell(score["accuracy_mean"], score["accuracy_sd"]),
                "macro_f": Cell(score["macro_f_mean"], score["macro_f_sd"]),
            }
            for score in plain_rows(part)
        }
        rows.append({"set": name, "method": method, "scores": scores})
    return rows


def _single_spikes(pairs: pd.DataFrame | None) -> list[dict[str, Any]]:
    """Return the percentage of single spikes with a second unit, for each set and method."""
    if pairs is None:
        return []
    singles = pairs[pairs["ratio_to"] == 0].groupby(["set", "method"], sort=False)
    return plain_rows(singles[["second_named", "one_right"]].mean().reset_index())
