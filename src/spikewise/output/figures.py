"""The pictures of a report: inline SVG that takes its ink from the page, so that it suits light and dark.

matplotlib draws with :data:`_INK`, which becomes ``currentColor``; only the colours of units are fixed, and
all of them stand out from white and from near-black. Text stays text. Widths are in inches of a picture that
the page scales to fit: :data:`WIDE` for a desktop, :data:`NARROW` for a telephone.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

import numpy as np

from spikewise.errors import MissingExtraError
from spikewise.output.measures import (
    CORRELOGRAM_MS,
    REFRACTORY_MS,
    WAVEFORM_AFTER_MS,
    WAVEFORM_BEFORE_MS,
    MeanWaveform,
    UnitMeasures,
    spread,
)
from spikewise.output.result import StoredResult
from spikewise.output.stretch import Stretch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE, NARROW = 10.4, 4.0
UNIT_WIDTH = 4.0
MAX_RASTER_SPIKES = 50_000
MAX_WAVEFORM_CHANNELS = 4
COLOURS = (
    "#3b7dd8", "#d9541e", "#2a8f4e", "#c2459b", "#a9741a",
    "#0f8f99", "#8a62d6", "#d1435b", "#6b8a1f", "#5580a3",
)  # fmt: skip
"""Units take them in turn; each has a contrast of at least 3 to white and to the dark page."""

_INK = "#010203"
_MAX_NAMED_ROWS = 40
_SPIKE_SIDES_MS = (0.4, 0.8)
_LABEL_WIDTH = 0.13  # inches that the id of a unit takes, for each character
_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "spikewise",  # ids of parts would be drawn by chance
    "text.parse_math": False,
    "font.size": 8.5,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
}


def require_matplotlib() -> None:
    """Raise unless pictures can be drawn.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report", "a report") from error


def colour_of(unit_index: int) -> str:
    """Return the colour of a unit on all pictures."""
    return COLOURS[unit_index % len(COLOURS)]


def draw_stretch(stretch: Stretch, units: list[UnitMeasures], width: float) -> str:
    """Draw traces of a short time, with each spike in the colour of its unit and named by its id."""
    num_samples, num_channels = stretch.traces.shape
    time_ms = np.arange(num_samples) / stretch.sampling_frequency * 1000
    spacing = 0.75 * max(float(np.abs(stretch.traces).max()), 8.0)
    lines = stretch.traces - spacing * np.arange(num_channels)
    before, after = (round(side / 1000 * stretch.sampling_frequency) for side in _SPIKE_SIDES_MS)
    with _figure(width, 0.9 + 0.42 * num_channels) as figure:
        axes = figure.subplots()
        axes.plot(time_ms, lines, color=_INK, linewidth=0.5, alpha=0.55)
        for sample, channel, unit in stretch.spikes:
            part = slice(max(sample - before, 0), sample + after + 1)
            axes.plot(time_ms[part], lines[part, channel], color=colour_of(unit), linewidth=1.6)
        _name_spikes(axes, stretch, lines, units, width)
        axes.set_yticks(-spacing * np.arange(num_channels), stretch.channel_ids)
        axes.set_ylabel(f"channel ({spacing:.0f} noise s.d. apart)")
        axes.set_xlim(0, time_ms[-1])
        axes.set_xlabel(f"ms after {stretch.start_s:.3f} s")
        fired = ", ".join(dict.fromkeys(str(units[unit].unit_id) for _, _, unit in stretch.spikes))
        alt = (
            f"Traces of channels {', '.join(stretch.channel_ids)} for {time_ms[-1]:.0f} ms from "
            f"{stretch.start_s:.3f} s, with {len(stretch.spikes)} spikes of units {fired} marked."
        )
        return _as_svg(figure, f"traces{width:g}", alt)


def _name_spikes(
    axes: Axes, stretch: Stretch, lines: np.ndarray, units: list[UnitMeasures], width: float
) -> None:
    """Write the id of the unit over each spike, except where it would cover another."""
    rate, reach = stretch.sampling_frequency, round(0.001 * stretch.sampling_frequency)
    per_ms = 0.85 * width / (len(lines) / rate * 1000)  # inches
    taken: dict[int, float] = {}
    for sample, channel, unit in sorted(stretch.spikes):
        name = str(units[unit].unit_id)
        time_ms = sample / rate * 1000
        half_ms = _LABEL_WIDTH * len(name) / 2 / per_ms
        if time_ms - half_ms < taken.get(channel, -1.0) or time_ms + half_ms > len(lines) / rate * 1000:
            continue
        taken[channel] = time_ms + half_ms
        top = lines[max(sample - reach, 0) : sample + reach, channel].max()
        axes.annotate(
            name,
            (time_ms, top),
            (0, 1),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=8,
            color=colour_of(unit),
            fontweight="bold",
        )


def draw_raster(result: StoredResult, width: float) -> str:
    """Draw all spikes over time, a row for each unit; the time of the labels is shaded."""
    spikes = result.sorting.to_spike_vector()
    rate, num_units = result.sorting.sampling_frequency, result.sorting.get_num_units()
    duration_s = sum(result.num_samples) / rate
    scale, unit_of_time = _time_scale(duration_s)
    drawn = spikes[spread(len(spikes), MAX_RASTER_SPIKES)]
    offsets = np.cumsum([0, *result.num_samples])
    time = (offsets[drawn["segment_index"]] + drawn["sample_index"]) / rate / scale
    with _figure(width, 1.0 + min(0.15 * num_units, 4.5)) as figure:
        axes = figure.subplots()
        size = max(1.0, 72 * 0.7 * min(0.15, 4.5 / num_units))
        for unit in range(num_units):
            mine = time[drawn["unit_index"] == unit]
            axes.plot(
                mine,
                np.full(len(mine), unit),
                "|",
                color=colour_of(unit),
                markersize=size,
                markeredgewidth=0.6,
                rasterized=True,
            )
        labels = result.label_interval_s
        if labels is not None:
            axes.axvspan(labels[0] / scale, labels[1] / scale, color=_INK, alpha=0.09, linewidth=0)
            middle = (labels[0] + labels[1]) / 2 / scale
            above = axes.get_xaxis_transform()
            axes.annotate("labels", (middle, 1), (0, 3), above, textcoords="offset points", ha="center")
        named = num_units <= _MAX_NAMED_ROWS
        names = [str(unit_id) for unit_id in result.model.unit_ids] if named else []
        axes.set_yticks(range(len(names)), names)
        axes.set_ylabel("unit" if named else f"{num_units} units")
        axes.set_xlim(0, duration_s / scale)
        axes.set_ylim(num_units - 0.4, -0.6)
        axes.set_xlabel(f"time ({unit_of_time})")
        alt = f"Spikes of {num_units} units over {duration_s:.1f} s, a row for each unit" + (
            "."
            if labels is None
            else f"; shaded from {labels[0]:g} to {labels[1]:g} s, the time of the labels."
        )
        return _as_svg(figure, f"raster{width:g}", alt)


def _time_scale(duration_s: float) -> tuple[float, str]:
    """Return the length in seconds of the unit of a time axis, and its name."""
    if duration_s <= 600:
        return 1.0, "s"
    return (60.0, "min") if duration_s <= 3 * 3600 else (3600.0, "h")


def draw_losses(trainings: list[dict[str, Any]], width: float) -> str:
    """Draw the loss of each epoch, or round, in training and on held-out time: two lines for each group."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    with _figure(width, 2.6) as figure:
        axes = figure.subplots()
        step = "round" if "num_confident_spikes" in trainings[0] else "epoch"
        for index, training in enumerate(trainings):
            best = training["best_epoch"]
            for name, colour, style in (("train_loss", 0, "--"), ("held_out_loss", 1, "-")):
                loss = np.array(training[name], dtype=float)
                what = {"train_loss": "training", "held_out_loss": "held-out time"}[name]
                axes.plot(
                    np.arange(1, len(loss) + 1),
                    loss,
                    style,
                    color=COLOURS[colour],
                    linewidth=1.3,
                    marker="o",
                    markersize=2.5,
                    label=what if index == 0 else None,
                )
                if name == "held_out_loss":
                    label = f"{step} kept" if index == 0 else None
                    axes.plot(best + 1, loss[best], "o", ms=8, mfc="none", mec=COLOURS[1], label=label)
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(step)
        axes.set_ylabel("loss")
        axes.legend()
        kept = ", ".join(str(training["best_epoch"] + 1) for training in trainings)
        return _as_svg(figure, f"losses{width:g}", f"Loss by {step} in training and held out; kept: {kept}.")


def draw_unit(unit: UnitMeasures) -> str:
    """Draw the mean waveform of a unit, where there is one, beside its auto-correlogram."""
    with _figure(UNIT_WIDTH, 1.75) as figure:
        if unit.waveform is not None:
            left, right = figure.subplots(1, 2)
            _draw_waveform(left, unit, unit.waveform)
        else:
            right = figure.subplots()
        edges = np.linspace(-CORRELOGRAM_MS, CORRELOGRAM_MS, len(unit.correlogram) + 1)
        right.axvspan(-REFRACTORY_MS, REFRACTORY_MS, color=_INK, alpha=0.12, linewidth=0)
        right.stairs(unit.correlogram, edges, fill=True, color=colour_of(unit.unit_index))
        right.set_xlim(edges[0], edges[-1])
        right.set_ylim(bottom=0)
        right.yaxis.get_major_locator().set_params(nbins=3, integer=True)
        right.set_xlabel("lag (ms)")
        drawn = "Auto-correlogram" if unit.waveform is None else "Mean waveform and auto-correlogram"
        return _as_svg(figure, f"unit{unit.unit_index}", f"{drawn} of unit {unit.unit_id}.")


def _draw_waveform(axes: Axes, unit: UnitMeasures, waveform: MeanWaveform) -> None:
    """Draw the main channels below each other on one scale, the largest on top, with a bar for the scale."""
    channels = waveform.main_channels(MAX_WAVEFORM_CHANNELS)
    rate = unit.sampling_frequency
    time_ms = (np.arange(len(waveform.values)) - waveform.num_before) / rate * 1000
    height = max(float(np.ptp(waveform.values)), 1.0)
    offset = 0.0
    for channel in channels:
        axes.plot(
            time_ms, waveform.values[:, channel] - offset, color=colour_of(unit.unit_index), linewidth=1.2
        )
        axes.text(time_ms[0] - 0.1, -offset, unit.group.channel_ids[channel], ha="right", va="center")
        offset += 0.45 * height
    bar = max((size for size in (1, 2, 5, 10, 20, 50, 100, 200) if size <= 0.5 * height), default=1)
    end = time_ms[-1] + 0.2
    axes.plot([end, end], [0, -bar], color=_INK, linewidth=1.2)
    axes.text(end + 0.08, -bar / 2, f"{bar}", ha="left", va="center")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.set_xticks([-1, 0, 1, 2])
    axes.set_xlabel("ms")
    axes.spines["bottom"].set_bounds(-WAVEFORM_BEFORE_MS, WAVEFORM_AFTER_MS)


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    """Lend an empty figure, drawn and saved in the style of the report."""
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]  # typed as a list of every name
        yield Figure(figsize=(width, height), layout="constrained")


def _as_svg(figure: Figure, name: str, alt: str) -> str:
    """Return an SVG element to set into a page: ids of its own, the page's ink, an alternative text."""
    text = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(text, format="svg", transparent=True, dpi=160, metadata=nothing)
    svg = text.getvalue()
    body = re.sub(r"<style.*?</style>", "", svg[svg.index(">", svg.index("<svg")) + 1 :], flags=re.DOTALL)
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group()), body)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body).replace(_INK, "currentColor")
    width, height = (72 * side for side in figure.get_size_inches())
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="0 0 {width:g} {height:g}" role="img" aria-labelledby="{name}-alt">'
    )
    return f'{opening}<title id="{name}-alt">{escape(alt)}</title>{body}'
