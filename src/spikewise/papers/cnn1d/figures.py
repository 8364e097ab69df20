"""The figures of the experiments of Li et al. 2020: SVG for the page in two widths, and a PNG of each.

Each ``_draw_*`` function fills one matplotlib figure from one table and returns its alternative text. Studies
have a panel for each set, side by side on a desktop and below each other on a telephone. Style and colours
are those of :mod:`spikewise.papers.figures`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from spikewise.core.files import writing
from spikewise.output.colours import COLOURS, colour_of
from spikewise.papers.cnn1d.methods import PRESETS
from spikewise.papers.cnn1d.runs import SHARES
from spikewise.papers.figures import INK, NARROW, WIDE, as_svg, styled_figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

METHOD_NAMES = {
    "default": "Spikewise",
    "paper": "CNN of the paper",
    "pca_fcm_f3": "PCA+FCM, 3",
    "pca_fcm_f10": "PCA+FCM, 10",
    "fsde_kmeans_f3": "FSDE+k-means, 3",
    "corr_fcm_f3": "CORR+FCM, 3",
    "corr_fcm_f10": "CORR+FCM, 10",
    "fusion_svm_f10": "Fusion+SVM, 10",
    "wmsorting_f3": "WMsorting, 3",
    "wmsorting_f10": "WMsorting, 10",
    "mlp": "MLP",
}
"""Names of the methods on the page; the number is that of the features."""

_COLOUR_OF = {
    "published": INK,
    "default": COLOURS[0],
    "paper": COLOURS[1],
    "wmsorting_f10": COLOURS[2],
    "fusion_svm_f10": COLOURS[3],
}
_MAX_WRONG = 200
"""Most misclassified waveforms in a panel."""
_PNG_DPI = 150


def draw_all(frames: dict[str, pd.DataFrame], folder: Path) -> dict[str, dict[str, str]]:
    """Draw the figures whose tables have rows.

    Parameters
    ----------
    frames : dict of str to DataFrame
        By name: the studies, the table of means, and its rows of the networks.
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
    drawn = {}
    for name, (frame_name, draw, height) in PICTURES.items():
        frame = frames.get(frame_name)
        if frame is not None and len(frame):
            drawn[name] = {
                kind: _draw(name, draw, frame, width, height, folder)
                for kind, width in (("wide", WIDE), ("narrow", NARROW))
            }
    return drawn


def _draw(
    name: str, draw: Callable[[Figure, pd.DataFrame], str], frame: pd.DataFrame, width: float,
    height: float, folder: Path,
) -> str:  # fmt: skip
    num_panels = frame["set"].nunique() if "set" in frame else 1
    with styled_figure(width, height * (num_panels if width < WIDE else 1)) as figure:
        alt = draw(figure, frame)
        if width == WIDE:
            path = folder / f"{name}.png"
            with writing(path):
                figure.savefig(path, dpi=_PNG_DPI, facecolor="white")
        return as_svg(figure, f"{name}{width:g}", alt)


def _panels(figure: Figure, frame: pd.DataFrame) -> list[tuple[Axes, pd.DataFrame]]:
    """Return axes for each set; their title is its name and whether it is real."""
    names = list(frame["set"].unique())
    is_wide = figure.get_figwidth() >= WIDE
    shape = (1, len(names)) if is_wide else (len(names), 1)
    panels = []
    for axes, name in zip(figure.subplots(*shape, squeeze=False).flat, names, strict=True):
        part = frame[frame["set"] == name]
        axes.set_title(f"{name} ({part['source'].iloc[0]})", fontsize=9)
        panels.append((axes, part))
    return panels


def _add_legend(figure: Figure, columns: int = 4) -> None:
    """Add one legend for the lines of all panels, above them."""
    named: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    columns = columns if figure.get_figwidth() >= WIDE else max(1, columns // 2)
    figure.legend([*named.values()], list(named), loc="outside upper center", ncols=columns)


def _draw_means(figure: Figure, networks: pd.DataFrame) -> str:
    """Draw the mean accuracy over the sets, E1 to E6, and the published one on the same sets."""
    axes = figure.subplots()
    for method, part in networks.groupby("method", sort=False):
        axes.errorbar(
            part["experiment"], part["mean"], part["sd"].fillna(0), color=_COLOUR_OF[str(method)],
            marker="o", markersize=4, linewidth=1.4, capsize=3, label=METHOD_NAMES[str(method)],
        )  # fmt: skip
    published = networks.drop_duplicates("experiment")
    axes.plot(
        published["experiment"],
        published["published_mean"],
        "s--",
        color=INK,
        markersize=4,
        label="published",
        zorder=1,
    )
    names = [f"E{experiment}\n{100 * SHARES[experiment]:g} %" for experiment in published["experiment"]]
    axes.set_xticks(published["experiment"], names)
    axes.set_xlabel("experiment, fraction of the spikes that train")
    axes.set_ylabel("accuracy (%)")
    _add_legend(figure)
    return "Mean accuracy over the sets in each experiment: " + _as_text(networks, "experiment", "mean")


def _draw_rivals(figure: Figure, means: pd.DataFrame) -> str:
    """Draw the measured and the published mean of each method, on one line."""
    rivals_at = means[~means["method"].isin(PRESETS)]["experiment"]
    experiment = int(rivals_at.iloc[0]) if len(rivals_at) else int(means["experiment"].iloc[0])
    shown = means[means["experiment"] == experiment].sort_values("published_mean", kind="stable")
    axes, rows = figure.subplots(), np.arange(len(shown))
    axes.hlines(rows, shown["published_mean"], shown["mean"], color=INK, linewidth=0.8, alpha=0.5)
    axes.plot(shown["published_mean"], rows, "s", color=INK, markersize=5, label="published")
    axes.plot(shown["mean"], rows, "o", color=COLOURS[0], markersize=6, label="measured here")
    axes.set_yticks(rows, [METHOD_NAMES[method] for method in shown["method"]])
    axes.set_xlabel(f"accuracy (%), E{experiment}")
    _add_legend(figure)
    return f"Mean accuracy of each method in E{experiment}: " + _as_text(shown, "experiment", "mean")


def _draw_confusion(figure: Figure, frame: pd.DataFrame) -> str:
    texts = []
    for axes, part in _panels(figure, frame):
        counts = part.pivot(index="true_unit", columns="predicted_unit", values="count")
        numbers = counts.to_numpy()
        shares = numbers / numbers.sum(axis=1, keepdims=True)
        for (true, assigned), share in np.ndenumerate(shares):
            axes.add_patch(_square(assigned, true, share))
            text = f"{int(numbers[true, assigned])}\n{100 * share:.2f} %"
            axes.text(assigned, true, text, ha="center", va="center")
        axes.set_xlim(-0.5, len(counts) - 0.5)
        axes.set_ylim(len(counts) - 0.5, -0.5)
        axes.set_aspect("equal")
        axes.set_xticks(range(len(counts)), counts.columns)
        axes.set_yticks(range(len(counts)), counts.index)
        axes.set_xlabel("assigned unit")
        axes.set_ylabel("true unit")
        texts.append(f"{axes.get_title()}: {numbers.sum() - np.trace(numbers)} of {numbers.sum()} wrong")
    return "Confusion matrices. " + "; ".join(texts) + "."


def _square(column: float, row: float, share: float) -> Rectangle:
    """Return a square whose colour is stronger for a larger share; small shares are visible too."""
    from matplotlib.patches import Rectangle

    face = (COLOURS[0], 0.55 * np.sqrt(share))
    return Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=face, edgecolor=INK, linewidth=0.4)


def _draw_losses(figure: Figure, frame: pd.DataFrame) -> str:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axes, part in _panels(figure, frame):
        for method, curve in part.groupby("method", sort=False):
            axes.plot(
                curve["epoch"], curve["loss"], "o-", color=_COLOUR_OF[str(method)], markersize=2.5,
                linewidth=1.2, label=METHOD_NAMES[str(method)],
            )  # fmt: skip
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel("epoch")
        axes.set_ylabel("training loss")
    _add_legend(figure)
    last = frame.groupby(["set", "method"], sort=False).tail(1)
    return "Training loss by epoch; at the end: " + _as_text(last, "set", "loss")


def _draw_misclassified(figure: Figure, frame: pd.DataFrame) -> str:
    """Draw the misclassified waveforms, thin and in the colour of their true unit, over the means."""
    counts = []
    for axes, part in _panels(figure, frame):
        samples = [column for column in part.filter(like="sample_") if part[column].notna().all()]
        means, wrong = part[part["kind"] == "mean"], part[part["kind"] == "wrong"]
        for true_unit, waveform in zip(
            wrong["true_unit"][:_MAX_WRONG], wrong[samples].to_numpy(), strict=False
        ):
            axes.plot(waveform, color=colour_of(true_unit), linewidth=0.6, alpha=0.7)
        for unit, mean in zip(means["true_unit"], means[samples].to_numpy(), strict=True):
            axes.plot(mean, color=colour_of(unit), linewidth=2.4, label=f"unit {unit}")
        axes.set_xlabel("sample")
        axes.set_ylabel("amplitude (as in the set)")
        axes.legend()
        overlapping = int(wrong["is_overlap"].astype(bool).sum())
        counts.append(f"{part['set'].iloc[0]}: {len(wrong)}, {overlapping} of them overlapping another spike")
    return "Wrongly assigned waveforms over the units' means. " + "; ".join(counts) + "."


def _draw_labels(figure: Figure, frame: pd.DataFrame) -> str:
    from matplotlib.ticker import NullLocator

    for axes, part in _panels(figure, frame):
        for method, curve in part.groupby("method", sort=False):
            axes.plot(
                curve["labels_per_unit"], curve["accuracy"], "o-", color=_COLOUR_OF[str(method)],
                markersize=4, linewidth=1.3, label=METHOD_NAMES[str(method)],
            )  # fmt: skip
        counts = part["labels_per_unit"].unique()
        axes.set_xscale("log")
        axes.set_xticks(counts, map(str, counts))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("labelled spikes of each unit")
        axes.set_ylabel("accuracy (%)")
    _add_legend(figure)
    return "Accuracy by number of labels: " + _as_text(frame, "labels_per_unit", "accuracy")


def _draw_points(figure: Figure, frame: pd.DataFrame) -> str:
    for axes, part in _panels(figure, frame):
        for method, curve in part.groupby("method", sort=False):
            axes.plot(
                curve["num_points"], curve["accuracy"], "o-", color=_COLOUR_OF[str(method)], markersize=4,
                linewidth=1.3, label=METHOD_NAMES[str(method)],
            )  # fmt: skip
        published = part.dropna(subset="published").drop_duplicates("num_points")
        axes.plot(
            published["num_points"], published["published"], "s--", color=INK, markersize=5, label="published"
        )
        axes.set_xticks(part["num_points"].unique())
        axes.invert_xaxis()
        axes.set_xlabel("sampling points of a waveform")
        axes.set_ylabel("accuracy (%)")
    _add_legend(figure)
    return "Accuracy by number of sampling points: " + _as_text(frame, "num_points", "accuracy")


def _draw_pairs(figure: Figure, frame: pd.DataFrame) -> str:
    for axes, part in _panels(figure, frame[frame["ratio_to"] > 0]):
        for (name, ratio_from), curve in part.groupby(["method", "ratio_from"], sort=False):
            method = str(name)
            share, what = ("both_right", "both units") if method == "default" else ("one_right", "one of two")
            axes.plot(
                (curve["lag_from"] + curve["lag_to"]) / 2, curve[share],
                "o-" if ratio_from == part["ratio_from"].max() else "o:", color=_COLOUR_OF[method],
                markersize=3.5, linewidth=1.4,
                label=f"{METHOD_NAMES[method]}: {what}, "
                f"second {ratio_from:g} to {curve['ratio_to'].iloc[0]:g} as large",
            )  # fmt: skip
        axes.set_ylim(0, 102)
        axes.set_xticks(sorted({*part["lag_from"], *part["lag_to"]}))
        axes.set_xlabel("lag of the second spike (samples)")
        axes.set_ylabel("pairs classified right (%)")
    _add_legend(figure, columns=2)
    both = frame[(frame["method"] == "default") & (frame["ratio_to"] > 0)]
    return "Pairs of spikes by lag, both units right: " + _as_text(both, "lag_from", "both_right")


def _as_text(frame: pd.DataFrame, key: str, value: str) -> str:
    """Return a table as text: the values of each method, for each set if there are several."""
    within = ["set", "method"] if "set" in frame and key != "set" else ["method"]
    parts = [
        " ".join([*map(str, names[:-1]), METHOD_NAMES[str(names[-1])]])
        + " "
        + ", ".join(f"{at}: {number:.4g}" for at, number in zip(part[key], part[value], strict=True))
        for names, part in frame.groupby(within, sort=False)
    ]
    return "; ".join(parts) + "."


PICTURES: dict[str, tuple[str, Callable[[Figure, pd.DataFrame], str], float]] = {
    "means": ("networks", _draw_means, 3.2),
    "rivals": ("means", _draw_rivals, 3.4),
    "confusion": ("confusion", _draw_confusion, 3.6),
    "losses": ("losses", _draw_losses, 2.8),
    "misclassified": ("misclassified", _draw_misclassified, 3.0),
    "labels_per_unit": ("labels_per_unit", _draw_labels, 3.0),
    "sampling_points": ("sampling_points", _draw_points, 3.0),
    "overlapping_pairs": ("overlapping_pairs", _draw_pairs, 3.2),
}
"""For each figure: its table, its function, and the height of a panel in inches."""
