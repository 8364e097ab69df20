"""The report of a sort: one HTML file that needs nothing else, to look at and to send around.

The page is the template ``report.html.jinja``; its numbers come from :mod:`spikewise.output.measures`, its
pictures from :mod:`spikewise.output.figures`. What is drawn is bounded, and the page says where it is.
"""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from spikewise.data.preprocessing import TraceReader
from spikewise.output.figures import (
    MAX_RASTER_SPIKES,
    NARROW,
    WIDE,
    colour_of,
    draw_losses,
    draw_raster,
    draw_stretch,
    draw_unit,
    require_matplotlib,
)
from spikewise.output.measures import MAX_WAVEFORM_SPIKES, REFRACTORY_MS, UnitMeasures, measure_units
from spikewise.output.result import StoredResult
from spikewise.output.stretch import choose_stretch
from spikewise.sorting.damaged import tell_damage
from spikewise.sorting.store import check_output_file, writing

if TYPE_CHECKING:
    from spikewise.evaluation.matching import Performance

logger = logging.getLogger(__name__)

MAX_UNIT_FIGURES = 100
"""Units whose waveform and correlogram are drawn; the table holds all."""
TEMPLATE = "report.html.jinja"


@dataclass(frozen=True)
class UnitRow:
    """A unit as the page shows it: its measures, its colour, and how it compares with the truth.

    Attributes
    ----------
    measures : UnitMeasures
    colour : str
    main_channel : str or None
        None without the recording, or without spikes.
    peak : float or None
        Largest deflection of the mean waveform, in standard deviations of the noise.
    score : dict of str to Any, or None
        A row of :attr:`Performance.units` with its ``truth_unit``; None if no true unit matches.
    figure : str or None
        SVG; None for units beyond :data:`MAX_UNIT_FIGURES`.
    """

    measures: UnitMeasures
    colour: str
    main_channel: str | None
    peak: float | None
    score: dict[str, Any] | None
    figure: str | None


def write_report(
    result: StoredResult,
    path: Path | str,
    *,
    readers: Mapping[str, TraceReader] | None = None,
    performance: Performance | None = None,
    interval_s: tuple[float, float] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the report of a sort.

    Parameters
    ----------
    result : StoredResult
    path : Path or str
        File to write, for example ``report.html``.
    readers : mapping of str to TraceReader, optional
        Preprocessed traces of each group of the model; without them no trace or waveform is drawn.
    performance : Performance, optional
        Comparison with the truth; without it no score is shown.
    interval_s : (float, float), optional
        Time that was compared; traces are drawn from there.
    overwrite : bool
        Whether a file there may be replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    MissingExtraError
        If matplotlib is not installed.
    OutputError
        If the file exists and `overwrite` is not set, or it cannot be written.
    RecordingError
        If the traces cannot be read.
    """
    require_matplotlib()
    path = check_output_file(path, overwrite)
    units = measure_units(result, readers)
    stretch = None if readers is None else choose_stretch(result, units, readers, interval_s)
    num_spikes = sum(unit.num_spikes for unit in units)
    page = _template().render(
        result=result,
        facts=result.provenance,
        damage=tell_damage(result.provenance.get("damage")),
        num_spikes=num_spikes,
        has_recording=readers is not None,
        performance=performance,
        interval_s=interval_s,
        stretch=stretch,
        traces=None
        if stretch is None
        else _in_both_widths(lambda width: draw_stretch(stretch, units, width)),
        raster=_in_both_widths(lambda width: draw_raster(result, width)),
        losses=_draw_losses(result),
        rows=_rows(units, performance),
        missed=[] if performance is None else _missed_units(performance),
        limits={
            "raster_spikes": MAX_RASTER_SPIKES,
            "unit_figures": MAX_UNIT_FIGURES,
            "waveform_spikes": MAX_WAVEFORM_SPIKES,
            "refractory_ms": REFRACTORY_MS,
        },
    )
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8")
        partial.replace(path)
    logger.info("report of %d units written to %s, %d bytes", len(units), path, len(page.encode()))
    return path


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    source = importlib.resources.files(__package__).joinpath(TEMPLATE).read_text(encoding="utf-8")
    return environment.from_string(source)


def _in_both_widths(draw: Callable[[float], str]) -> dict[str, str]:
    """Draw a picture for a desktop and for a telephone; the page shows one of them."""
    return {"wide": draw(WIDE), "narrow": draw(NARROW)}


def _draw_losses(result: StoredResult) -> dict[str, str] | None:
    trainings = result.trainings
    return _in_both_widths(lambda width: draw_losses(trainings, width)) if trainings else None


def _rows(units: list[UnitMeasures], performance: Performance | None) -> list[UnitRow]:
    """Join measures, scores and pictures; the units with the most spikes have pictures."""
    scores: dict[str, dict[str, Any]] = {}
    if performance is not None:
        for score in performance.to_dict()["units"]:
            if score["tested_unit"] is not None:
                scores[str(score["tested_unit"])] = score
    by_size = sorted(units, key=lambda unit: -unit.num_spikes)
    drawn = {unit.unit_index for unit in by_size[:MAX_UNIT_FIGURES]}
    rows = []
    for unit in units:
        channels = [] if unit.waveform is None else unit.waveform.main_channels(1).tolist()
        rows.append(
            UnitRow(
                measures=unit,
                colour=colour_of(unit.unit_index),
                main_channel=unit.group.channel_ids[channels[0]] if channels else None,
                peak=None if unit.waveform is None else float(unit.waveform.peaks.max()),
                score=scores.get(str(unit.unit_id)),
                figure=draw_unit(unit) if unit.unit_index in drawn else None,
            )
        )
    return rows


def _missed_units(performance: Performance) -> list[dict[str, Any]]:
    """Return the scores of the true units that fire in the time compared and that no unit matches."""
    scores = performance.to_dict()["units"]
    return [score for score in scores if score["tested_unit"] is None and score["num_truth"] > 0]
