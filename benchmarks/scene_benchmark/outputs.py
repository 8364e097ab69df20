"""Tables of the runs: ``runs.csv``, ``summary.csv``, ``scenes.json``, ``scenes.md`` and ``scenes.png``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scene_benchmark.making import SCENES
from scene_benchmark.sorters import SORTERS
from spikewise.core.files import save_json, writing
from spikewise.output.colours import colour_of
from spikewise.papers.figures import WIDE, styled_figure
from spikewise.papers.speed.limits import describe_machine

SCORES = (
    "accuracy",
    "mean_accuracy",
    "units_above_0.8",
    "true_units",
    "units_found",
    "spurious_units",
    "twice_percent",
    "both_found_percent",
)
TIMES = ("seconds", "ratio", "sorting_s", "sorting_ratio", "cpu_s", "load", "cores_of_others")
MEASURED = (*SCORES, *TIMES)
COLUMNS = (
    *("scene", "seed", "repeat", "sorter", "version", "parameters"),
    *MEASURED,
    *("ratio_in_one_command", "started", "run", "error"),
)
_SHOWN = {
    "accuracy": ("accuracy", "{:.3f}"),
    "mean_accuracy": ("mean over units", "{:.3f}"),
    "units_above_0.8": ("above 0.8", "{:.1f}"),
    "units_found": ("units found", "{:.1f}"),
    "spurious_units": ("spurious", "{:.1f}"),
    "twice_percent": ("twice, %", "{:.2f}"),
    "both_found_percent": ("both found, %", "{:.1f}"),
    "seconds": ("seconds", "{:.1f}"),
    "sorting_s": ("without start, s", "{:.1f}"),
    "ratio": ("ratio", "{:.2f}"),
    "cores_of_others": ("cores of others", "{:.1f}"),
}
"""Columns of the table that is printed, with the form of their numbers."""


def tabulate(rows: list[dict[str, Any]], reference: str) -> pd.DataFrame:
    """Return all runs as a table, one row for each, with their ratios to the reference.

    ``ratio`` divides `seconds` by those of the reference on the same scene, seed and repeat;
    ``sorting_ratio`` does so without Python's start and imports. ``ratio_in_one_command``:
    whether one command measured both.
    """
    measured = {_place(row): row for row in rows if row["sorter"] == reference and not row["error"]}
    table = pd.DataFrame([row | _ratios(row, measured.get(_place(row))) for row in rows])
    table = table.reindex(columns=list(COLUMNS))
    table["parameters"] = [json.dumps(parameters) for parameters in table["parameters"]]
    order = {name: place for place, name in enumerate([*SCENES, *SORTERS])}
    return table.sort_values(
        ["scene", "seed", "repeat", "sorter"],
        key=lambda column: column.map(order) if column.name in ("scene", "sorter") else column,
        ignore_index=True,
    )


def _place(row: dict[str, Any]) -> tuple:
    return row["scene"], row["seed"], row["repeat"]


def _ratios(row: dict[str, Any], against: dict[str, Any] | None) -> dict[str, Any]:
    if row["error"] or against is None:
        return {"ratio": None, "sorting_ratio": None, "ratio_in_one_command": None}
    return {
        "ratio": row["seconds"] / against["seconds"],
        "sorting_ratio": row["sorting_s"] / against["sorting_s"],
        "ratio_in_one_command": row["run"] == against["run"],
    }


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Return mean and standard deviation over the seeds, one row for each scene and sorter.

    Repeats of a seed are averaged first. The deviation of a single seed is empty. Failed runs are counted and
    left out.
    """
    rows = []
    for (scene, sorter), part in table.groupby(["scene", "sorter"], sort=False):
        done = part[part["accuracy"].notna()]
        by_seed = done.groupby("seed")[list(MEASURED)].agg("mean") if len(done) else pd.DataFrame()
        row: dict[str, Any] = {
            "scene": scene,
            "sorter": sorter,
            "seeds": len(by_seed),
            "failed": len(part) - len(done),
            "ratios_in_one_command": not any(value is False for value in done["ratio_in_one_command"]),
        }
        for name in MEASURED:
            values = by_seed[name].astype(float) if len(by_seed) else pd.Series(dtype=float)
            row |= {f"{name}_mean": values.mean(), f"{name}_sd": values.std(ddof=1)}
        rows.append(row)
    return pd.DataFrame(rows)


def shown(summary: pd.DataFrame, reference: str) -> str:
    """Return the summary as a table in Markdown: mean, and deviation over the seeds where there is one."""
    heads = [head for head, _ in _SHOWN.values()]
    lines = ["| scene | sorter | seeds |" + "".join(f" {head} |" for head in heads)]
    lines.append("| --- " * (3 + len(heads)) + "|")
    previous = None
    for _, row in summary.iterrows():
        cells = ["" if row["scene"] == previous else row["scene"], row["sorter"], str(row["seeds"])]
        previous = row["scene"]
        for name, (_, form) in _SHOWN.items():
            cells.append(_cell(row, name, form))
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"ratio: seconds divided by those of {reference} on the same recording."]
    if not summary["ratios_in_one_command"].all():
        notes.append("~: at least one ratio compares runs of different commands.")
    if summary["failed"].any():
        failed = summary[summary["failed"] > 0]
        notes.append("failed: " + ", ".join(f"{r.sorter} on {r.scene}" for r in failed.itertuples()))
    return "\n".join([*lines, "", *notes])


def _cell(row: pd.Series, name: str, form: str) -> str:
    mean, deviation = row[f"{name}_mean"], row[f"{name}_sd"]
    if np.isnan(mean):
        return ""
    text = form.format(mean) + ("" if np.isnan(deviation) else " ± " + form.format(deviation))
    if name == "units_above_0.8":
        text += f" of {row['true_units_mean']:g}"
    return "~" + text if name == "ratio" and not row["ratios_in_one_command"] else text


def write_outputs(
    folder: Path, rows: list[dict[str, Any]], reference: str, facts: dict[str, Any], figure: bool
) -> str:
    """Write all tables, and the figure if asked to; return the table that is printed."""
    table = tabulate(rows, reference)
    summary = summarise(table)
    text = shown(summary, reference)
    for name, frame in (("runs", table), ("summary", summary)):
        with writing(folder / f"{name}.csv"):
            frame.to_csv(folder / f"{name}.csv", index=False)
    with writing(folder / "scenes.md"):
        (folder / "scenes.md").write_text(text + "\n", encoding="utf-8")
    content = {"machine": describe_machine(), "reference": reference, **facts}
    content |= {"runs": _plain(table), "summary": _plain(summary)}
    save_json(content, folder / "scenes.json")
    if figure and summary["seeds"].any():
        draw(table, folder / "scenes.png")
    return text


def _plain(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows in JSON types; what is missing becomes None."""
    return json.loads(frame.to_json(orient="records", double_precision=6))


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw accuracy and seconds: a bar for the mean of each sorter, a point for each run."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    done = table[table["accuracy"].notna()]
    scenes = list(dict.fromkeys(done["scene"]))
    heights = [0.8 + 0.24 * done[done["scene"] == scene]["sorter"].nunique() for scene in scenes]
    places = {name: place for place, name in enumerate(SORTERS)}
    with styled_figure(WIDE, 0.3 + sum(heights)) as figure:
        axes = figure.subplots(len(scenes), 2, squeeze=False, height_ratios=heights)
        for scene, (left, right) in zip(scenes, axes, strict=True):
            part = done[done["scene"] == scene]
            for panel, column in ((left, "accuracy"), (right, "seconds")):
                means = part.groupby("sorter", sort=False)[column].mean()
                colours = [colour_of(places[name]) for name in means.index]
                bars = panel.barh(list(means.index), list(means), color=colours)
                panel.bar_label(bars, [f"{value:.3g}" for value in means], padding=6)
                panel.plot(part[column], part["sorter"], "o", color="0.25", markersize=3, linestyle="")
                panel.invert_yaxis()
            left.set(xlim=(0, 1.1), xlabel="accuracy", title=scene)
            right.set(xscale="log", xlabel="seconds from file to result")
            right.set_xlim(0.5 * part["seconds"].min(), 4 * part["seconds"].max())
            right.tick_params(labelleft=False)
            right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            right.xaxis.set_minor_formatter(NullFormatter())
        with writing(path):
            figure.savefig(path, dpi=150, facecolor="white")
