"""The figure of the speed benchmark: seconds of each stage, and of each method.

Style and colours are those of :mod:`spikewise.papers.figures`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikewise.core.files import writing
from spikewise.output.colours import COLOURS
from spikewise.papers.figures import WIDE, styled_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PNG_DPI = 150
_LOWEST_SHARE = 0.3
"""Beginning of the logarithmic axis, as a fraction of the shortest bar."""


def draw_speed(results: dict[str, Any], path: Path) -> None:
    """Draw the results of :func:`spikewise.papers.speed.speed.measure_speed` into a PNG.

    Parameters
    ----------
    results : dict
    path : Path

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    from matplotlib.ticker import FuncFormatter, NullFormatter

    stages = {name: stage["seconds"] for name, stage in results["stages"].items()}
    methods, colours = _methods(results)
    with styled_figure(WIDE, 0.9 + 0.32 * max(len(stages), len(methods))) as figure:
        left, right = figure.subplots(1, 2)
        _draw_bars(left, stages, [COLOURS[0]] * len(stages))
        left.set_xlim(0, 1.2 * max(stages.values()))
        left.set_title("stages of the sort")
        _draw_bars(right, methods, colours)
        right.set_xscale("log")
        right.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        right.xaxis.set_minor_formatter(NullFormatter())
        right.set_xlim(_LOWEST_SHARE * min(methods.values()), 4 * max(methods.values()))
        right.set_title("methods")
        scene = results["scene"]
        figure.suptitle(
            f"{scene['duration_s']:g} s of {scene['channels']} channels, {scene['units']} units, "
            f"on {results['threads']} thread{'s' if results['threads'] > 1 else ''} "
            f"of {results['machine']['processor']}"
        )
        with writing(path):
            figure.savefig(path, dpi=_PNG_DPI, facecolor="white")


def _methods(results: dict[str, Any]) -> tuple[dict[str, float], list[str]]:
    """Return the seconds and the colour of each method: Spikewise, the paper's network, other sorters."""
    learnt = results["training_seconds"] is not None
    ours = {
        **({"Spikewise, with learning": results["end_to_end_seconds"]} if learnt else {}),
        "Spikewise, given model": results["sorting_seconds"],
        "network": results["network_seconds"],
        "network, without gates": results["dense_seconds"],
    }
    paper = {"E-Sort network, as published": results["paper_form_seconds"]}
    others = {
        f"{other['name']}, file to spikes": other["seconds"]
        for other in results["others"]
        if other["seconds"] is not None
    }
    counts = zip(COLOURS, map(len, (ours, paper, others)), strict=False)
    return ours | paper | others, [colour for colour, count in counts for _ in range(count)]


def _draw_bars(axes: Axes, seconds: dict[str, float], colours: list[str]) -> None:
    bars = axes.barh(list(seconds), list(seconds.values()), color=colours)
    axes.bar_label(bars, [f"{value:.3g}" for value in seconds.values()], padding=4)
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
