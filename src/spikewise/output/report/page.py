"""The report of a sort: one HTML file that needs nothing else, to look at and to send around.

The page is the template ``page/report.html.jinja`` with its style and scripts beside it. The table of units
is written here; what is drawn, Plotly draws in the browser from what :mod:`spikewise.output.report.page_data` packs,
and only what is looked at. What is read and drawn is bounded, and the page says where it is.
"""

from __future__ import annotations

import importlib.resources
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from plotly.offline import get_plotlyjs
from spikeinterface.core import BaseSorting

from spikewise.core.files import check_output_file, writing
from spikewise.data.recordings.reader import TraceReader
from spikewise.output.colours import colour_of
from spikewise.output.measures import (
    MAX_WAVEFORM_SPIKES,
    REFRACTORY_MS,
    UnitMeasures,
    measure_with_truth,
    spike_trains,
)
from spikewise.output.pairs import LEAST_SIMILARITY, UnitPair, likely_pairs, unit_similarity
from spikewise.output.report.moments import choose_moments
from spikewise.output.report.page_data import compress, page_data
from spikewise.output.result import StoredResult
from spikewise.output.samples import SpikeSamples, sample_spikes
from spikewise.sorting.damaged import tell_damage

if TYPE_CHECKING:
    from spikewise.output.matching import Performance

logger = logging.getLogger(__name__)

PAGE_FOLDER = "assets"
TEMPLATE = "report.html.jinja"
MAX_NAMED_UNITS = 12
"""Units that a sentence names; the others are counted, and stand in the table."""
SCRIPTS = ("charts.js", "unit.js", "overview.js", "table.js", "page.js")


@dataclass(frozen=True)
class UnitRow:
    """A unit as the table shows it.

    Attributes
    ----------
    measures : UnitMeasures
    colour : str
    main_channel : str or None
        None without the recording, or without spikes.
    amplitude_cutoff : float or None
        Estimated fraction of its spikes that are too small to be found; None where too few were looked at.
    num_labels : int or None
        Labelled spikes that trained it in this sort; None where the model does not tell.
    score : dict of str to Any, or None
        A row of :attr:`Performance.units` with its ``truth_unit``; None if no true unit matches.
    verdict : str
        How it stands to the units that resemble it: ``duplicate``, ``split`` or empty.
    """

    measures: UnitMeasures
    colour: str
    main_channel: str | None
    amplitude_cutoff: float | None
    num_labels: int | None
    score: dict[str, Any] | None
    verdict: str


def write_report(
    result: StoredResult,
    path: Path | str,
    *,
    readers: Mapping[str, TraceReader] | None = None,
    truth: BaseSorting | None = None,
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
    truth : BaseSorting, optional
        The true spikes that were compared; with the readers they tell the size of each true unit.
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
    OutputError
        If the file exists and `overwrite` is not set, or it cannot be written.
    RecordingError
        If the traces cannot be read.
    """
    path = check_output_file(path, overwrite)
    units, truth_snr = measure_with_truth(result, truth, readers)
    samples, similarity = None, None
    pairs: list[UnitPair] = []
    if readers is not None:
        samples = sample_spikes(result, units, readers)
        similarity = unit_similarity(units)
        pairs = likely_pairs(result.sorting, spike_trains(result.sorting), result.num_samples, similarity)
    moments = [] if readers is None else choose_moments(result, units, readers, interval_s)
    data = page_data(
        result,
        units,
        samples=samples,
        moments=moments,
        similarity=similarity,
        pairs=pairs,
        performance=performance,
        truth_snr=truth_snr,
    )
    page = _template().render(
        result=result,
        facts=result.provenance,
        damage=tell_damage(result.provenance.get("damage")),
        num_spikes=sum(unit.num_spikes for unit in units),
        has_recording=readers is not None,
        performance=performance,
        interval_s=interval_s,
        moments=moments,
        samples=samples,
        pairs=pairs,
        rows=_rows(result, units, samples, pairs, performance),
        missed=[] if performance is None else _missed_units(performance),
        limits={
            "waveform_spikes": MAX_WAVEFORM_SPIKES,
            "refractory_ms": REFRACTORY_MS,
            "similarity": LEAST_SIMILARITY,
            "named": MAX_NAMED_UNITS,
        },
        data=compress(data),
        library=compress(get_plotlyjs()),
        style=_page_file("report.css"),
        scripts=[_page_file(name) for name in SCRIPTS],
    )
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(page, encoding="utf-8")
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    logger.info("report of %d units written to %s, %d bytes", len(units), path, len(page.encode()))
    return path


def _page_file(name: str) -> str:
    folder = importlib.resources.files(__package__) / PAGE_FOLDER
    return (folder / name).read_text(encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_page_file(TEMPLATE))


def _rows(
    result: StoredResult,
    units: list[UnitMeasures],
    samples: SpikeSamples | None,
    pairs: list[UnitPair],
    performance: Performance | None,
) -> list[UnitRow]:
    """Join measures, labels, scores and doubts."""
    scores: dict[str, dict[str, Any]] = {}
    if performance is not None:
        for score in performance.to_dict()["units"]:
            if score["tested_unit"] is not None:
                scores[str(score["tested_unit"])] = score
    verdicts: dict[int, str] = {}
    for pair in reversed(pairs):  # the gravest come first, and so are set last
        if pair.verdict != "alike":
            verdicts.update(dict.fromkeys((pair.first, pair.second), pair.verdict))
    labels = result.num_labels_of_units
    return [
        UnitRow(
            measures=unit,
            colour=colour_of(unit.unit_index),
            main_channel=None if unit.main_channel is None else unit.group.channel_ids[unit.main_channel],
            amplitude_cutoff=None if samples is None else samples.amplitude_cutoff(unit.unit_index),
            num_labels=labels[unit.unit_index] if labels is not None else None,
            score=scores.get(str(unit.unit_id)),
            verdict=verdicts.get(unit.unit_index, ""),
        )
        for unit in units
    ]


def _missed_units(performance: Performance) -> list[dict[str, Any]]:
    """Return the scores of the true units that fire in the time compared and that no unit matches."""
    scores = performance.to_dict()["units"]
    return [score for score in scores if score["tested_unit"] is None and score["num_truth"] > 0]
