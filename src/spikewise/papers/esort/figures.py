"""The figures of the experiments of Han & Wang: SVG for the page in two widths, and a PNG of each.

Each ``_draw_*`` function fills one matplotlib figure from one table and returns its alternative text. Style
and colours are those of :mod:`spikewise.papers.figures`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spikewise.core.files import writing
from spikewise.output.colours import COLOURS
from spikewise.papers.esort.methods import METHOD_NAMES
from spikewise.papers.esort.tables import PUBLISHED_REDUCTION_PERCENT
from spikewise.papers.figures import INK, NARROW, WIDE, as_svg, styled_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOUR_OF = dict(zip(METHOD_NAMES, itertools.cycle(COLOURS)))
_PNG_DPI = 150


def draw_all(tables: dict[str, pd.DataFrame], folder: Path) -> dict[str, dict[str, str]]:
    """Draw the tables.

    Parameters
    ----------
    tables : dict of str to DataFrame
        As :func:`spikewise.papers.esort.tables.make_tables` returned them.
    folder : Path
        Folder for a PNG of each figure.

    Returns
    -------
    dict of str to dict
        For each name in :data:`PICTURES` whose table has rows, SVG elements: ``wide`` and ``narrow``.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    """
    return {
        name: {
            kind: _draw(name, draw, tables[name], width, folder)
            for kind, width in (("wide", WIDE), ("narrow", NARROW))
        }
        for name, draw in PICTURES.items()
        if name in tables and len(tables[name])
    }


def _draw(
    name: str, draw: Callable[[Figure, pd.DataFrame], str], table: pd.DataFrame, width: float, folder: Path
) -> str:
    with styled_figure(width, 3.4) as figure:
        alt = draw(figure, table)
        if width == WIDE:
            path = folder / f"{name}.png"
            with writing(path):
                figure.savefig(path, dpi=_PNG_DPI, facecolor="white")
        return as_svg(figure, f"{name}{width:g}", alt)


def _draw_lines(figure: Figure, table: pd.DataFrame, key: str, label: str) -> str:
    """Draw accuracy against a number, a line for each method."""
    axes = figure.subplots()
    for name, part in table.sort_values(key).groupby("method", sort=False):
        method = str(name)
        axes.errorbar(
            part[key], part["accuracy"], part["sd"].fillna(0), color=_COLOUR_OF[method], marker="o",
            markersize=4, linewidth=1.4, capsize=3, label=METHOD_NAMES[method],
        )  # fmt: skip
    axes.set_xticks(sorted(table[key].unique()))
    axes.set_xlabel(label)
    axes.set_ylabel("accuracy (%)")
    _add_legend(figure)
    return f"Accuracy by {label}: " + _as_text(table, [key])


def _draw_labels(figure: Figure, table: pd.DataFrame) -> str:
    return _draw_lines(figure, table, "labels_per_unit", "labelled spikes of each unit")


def _draw_noise(figure: Figure, table: pd.DataFrame) -> str:
    return _draw_lines(figure, table, "noise_uV", "noise (uV)")


def _draw_needed(figure: Figure, table: pd.DataFrame) -> str:
    """Draw the reduction of labels and the published one; bounds are open marks."""
    axes, texts = figure.subplots(), []
    for index, (names, part) in enumerate(table.groupby(["method", "baseline"], sort=False)):
        method, baseline = map(str, names)
        label = f"{METHOD_NAMES[method]} against {METHOD_NAMES[baseline]}"
        colour = COLOURS[index]
        counts, shares = part["labels_per_unit"], part["reduction_percent"]
        axes.plot(counts, shares, color=colour, linewidth=1.4, label=label)
        for is_bound, fill in (((part["bound"] != ""), "none"), ((part["bound"] == ""), colour)):
            axes.plot(counts[is_bound], shares[is_bound], "o", color=colour, markersize=5, mfc=fill)
        texts.append(label + " " + _pairs(counts, shares))
    axes.axhline(PUBLISHED_REDUCTION_PERCENT, color=INK, linestyle="--", linewidth=1, label="published")
    axes.set_xticks(sorted(table["labels_per_unit"].unique()))
    axes.set_xlabel("labelled spikes of each unit")
    axes.set_ylabel("fewer labels (%)")
    _add_legend(figure, columns=2)
    return "Reduction of labels at equal accuracy, by labels: " + "; ".join(texts) + "."


def _draw_bars(figure: Figure, table: pd.DataFrame, keys: list[str]) -> str:
    """Draw accuracy as bars, a group for each condition and a colour for each method."""
    axes = figure.subplots()
    conditions = list(dict.fromkeys(_conditions(table, keys)))
    methods = list(table["method"].unique())
    height = 0.8 / len(methods)
    for index, method in enumerate(methods):
        part = table[table["method"] == method]
        rows = np.array([conditions.index(condition) for condition in _conditions(part, keys)])
        axes.barh(
            rows + (index - (len(methods) - 1) / 2) * height, part["accuracy"], 0.9 * height,
            xerr=part["sd"].fillna(0), color=_COLOUR_OF[method], label=METHOD_NAMES[method],
        )  # fmt: skip
    axes.set_yticks(range(len(conditions)), conditions)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("accuracy (%)")
    _add_legend(figure)
    return "Accuracy: " + _as_text(table, keys)


def _draw_probes(figure: Figure, table: pd.DataFrame) -> str:
    return _draw_bars(figure, table, ["probe"])


def _draw_drift(figure: Figure, table: pd.DataFrame) -> str:
    return _draw_bars(figure, table, ["drift", "pretraining_drift"])


def _draw_sorters(figure: Figure, table: pd.DataFrame) -> str:
    axes = figure.subplots()
    names = [METHOD_NAMES[method] for method in table["method"]]
    needs_labels = table["labels_per_unit"] > 0
    colours = np.where(needs_labels, COLOURS[0], COLOURS[1])
    bars = axes.barh(names, table["accuracy"], xerr=table["sd"].fillna(0), color=colours)
    axes.bar_label(bars, [f"{value:.1f}" for value in table["accuracy"]], padding=4)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy (%)")
    return "Accuracy of sorters: " + _pairs(names, table["accuracy"]) + "."


def _conditions(table: pd.DataFrame, keys: list[str]) -> list[str]:
    """Return the condition of each row as text."""
    if keys == ["drift", "pretraining_drift"]:
        pairs = zip(table["drift"], table["pretraining_drift"], strict=True)
        return [drift if before == "none" else f"{drift}, filters from {before}" for drift, before in pairs]
    return [" ".join(map(str, row)) for row in table[keys].itertuples(index=False)]


def _add_legend(figure: Figure, columns: int = 3) -> None:
    """Add one legend above the axes."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    columns = columns if figure.get_figwidth() >= WIDE else 1
    figure.legend(handles, labels, loc="outside upper center", ncols=columns)


def _as_text(table: pd.DataFrame, keys: list[str]) -> str:
    """Return the accuracies of a table as text."""
    parts = [
        f"{METHOD_NAMES[str(method)]} {_pairs(_conditions(part, keys), part['accuracy'])}"
        for method, part in table.groupby("method", sort=False)
    ]
    return "; ".join(parts) + "."


def _pairs(names: list | pd.Series, values: pd.Series) -> str:
    return ", ".join(f"{name}: {value:.4g}" for name, value in zip(names, values, strict=True))


PICTURES: dict[str, Callable[[Figure, pd.DataFrame], str]] = {
    "labels": _draw_labels,
    "labels_needed": _draw_needed,
    "probes": _draw_probes,
    "noise": _draw_noise,
    "drift": _draw_drift,
    "sorters": _draw_sorters,
}
"""The function that draws each table."""
