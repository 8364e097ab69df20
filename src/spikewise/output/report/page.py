"""The report of a sort: one HTML file that needs no other file and no network.

The page is the template ``assets/report.html.jinja`` with the style and the scripts beside it. The template
writes the table of units. Plotly draws the charts in the browser, from the data of
:mod:`spikewise.output.report.page_data`, and only when they come into view. The amount of data that is read
and drawn is bounded; the page says how much it is.
"""

from __future__ import annotations

import importlib.resources
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from plotly.offline import get_plotlyjs
from spikeinterface.core import BaseSorting

from spikewise.core.constants import REFRACTORY_MS
from spikewise.core.files import check_output_file, writing
from spikewise.core.progress import REPORT, ProgressCallback, Steps, silent
from spikewise.data.recordings.reader import TraceReader, Traces
from spikewise.output.colours import colour_of
from spikewise.output.firing import measure_firing
from spikewise.output.kept_traces import KeptTraces
from spikewise.output.measures import (
    MAX_WAVEFORM_SPIKES,
    UnitMeasures,
    measure_units,
    spike_trains,
)
from spikewise.output.pairs import MIN_SIMILARITY, UnitPair, likely_pairs, unit_similarity
from spikewise.output.report.excerpts import Excerpt, choose_excerpts, excerpt_windows
from spikewise.output.report.motion_lines import motion_notes
from spikewise.output.report.page_data import (
    ReportContents,
    TraceScale,
    compress,
    labels_are_everywhere,
    page_data,
)
from spikewise.output.result import StoredResult, finder_of
from spikewise.output.samples import sample_spikes
from spikewise.output.store import PROVENANCE_FILE
from spikewise.output.unexplained import UnexplainedEvents
from spikewise.output.unit_table import trust_of_unit
from spikewise.sorting.damaged import summarise_damage

if TYPE_CHECKING:
    from spikewise.output.matching import Performance

logger = logging.getLogger(__name__)

PAGE_FOLDER = "assets"
PHY_FOLDER = "phy"
"""Folder for Phy beside the report, to which the report links if it is there."""
TEMPLATE = "report.html.jinja"
MAX_NAMED_UNITS = 12
"""Most units that a sentence of the page names; the others are only counted. Chosen by hand."""
SCRIPTS = ("charts.js", "saving.js", "unit.js", "pairs.js", "motion.js", "overview.js", "table.js", "page.js")
"""The scripts of the page, in the order in which they run."""


_STEPS = {"mean waveforms": 3.5, "pairs": 0.5, "spikes": 4.0, "traces": 0.5, "page": 1.0}
"""Relative length of each step, for the progress."""


@dataclass(frozen=True)
class Comparison:
    """What a result is compared with.

    Attributes
    ----------
    truth : BaseSorting or None
        The true spikes; with the traces they give the SNR of each true unit.
    performance : Performance or None
        Comparison with the truth; without it no score is shown.
    interval_s : (float, float) or None
        Time of that comparison, in seconds; traces are drawn from this time only.
    """

    truth: BaseSorting | None = None
    performance: Performance | None = None
    interval_s: tuple[float, float] | None = None


@dataclass(frozen=True)
class UnitRow:
    """A row of the table of units.

    Attributes
    ----------
    measures : UnitMeasures
    colour : str
    main_channel : str or None
        None without the recording, or without spikes.
    depth_um : float or None
        Second coordinate of the unit; None without the recording, or without spikes.
    snr : float or None
        Largest deflection of its mean waveform over the noise of this recording.
    amplitude_uV : float or None
        Largest deflection of its mean waveform; None where the gain is not known.
    amplitude_cutoff : float or None
        Estimated fraction of its spikes that are too small to be found; None with too few sampled spikes.
    num_labels : int or None
        Number of labelled spikes that trained it; None if the model does not store it.
    score : dict of str to Any, or None
        A row of :attr:`Performance.units` with its ``truth_unit``; None if no true unit matches.
    verdict : str
        The worst :attr:`UnitPair.verdict` of its pairs, ``duplicate`` or ``split``; empty if there is none.
    trust : dict of str to Any, or None
        Expected ``accuracy`` with the ends ``low`` and ``high`` of its interval, ``verdict`` and ``reason``.
    """

    measures: UnitMeasures
    colour: str
    main_channel: str | None
    depth_um: float | None
    snr: float | None
    amplitude_uV: float | None
    amplitude_cutoff: float | None
    num_labels: int | None
    score: dict[str, Any] | None
    verdict: str
    trust: dict[str, Any] | None


def write_report(
    result: StoredResult,
    path: Path | str,
    *,
    readers: Mapping[str, TraceReader] | None = None,
    scales: Mapping[str, TraceScale] | None = None,
    comparison: Comparison | None = None,
    overwrite: bool = False,
    progress: ProgressCallback = silent,
) -> Path:
    """Write the report of a sort.

    Parameters
    ----------
    result : StoredResult
    path : Path or str
        File to write, for example ``report.html``.
    readers : mapping of str to TraceReader, optional
        Preprocessed traces of each group of the model; without them no trace or waveform is drawn.
    scales : mapping of str to TraceScale, optional
        What the traces of each group are measured in; by default standard deviations of the noise.
    comparison : Comparison, optional
        The truth, and how well the result agrees with it.
    overwrite : bool
        Whether an existing file may be replaced.
    progress : callable
        Called with the progress of the report.

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
    compared = comparison or Comparison()
    steps = Steps(progress, REPORT, _STEPS)
    steps.begin("mean waveforms")
    contents = _gather(result.with_names_of_recording(), readers, scales or {}, compared, steps)
    steps.begin("page")
    page = _render(contents, compared.interval_s, path)
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_text(page, encoding="utf-8")
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
    num_units, num_bytes = len(contents.units), len(page.encode())
    steps.end()
    logger.info("report of %d units written to %s, %d bytes", num_units, path, num_bytes)
    return path


def _gather(
    result: StoredResult,
    readers: Mapping[str, TraceReader] | None,
    scales: Mapping[str, TraceScale],
    compared: Comparison,
    steps: Steps,
) -> ReportContents:
    """Measure everything that the report shows; without readers, only what needs no traces."""
    kept: dict[str, Traces] | None = None
    if readers is not None:  # no second is read twice
        windows = excerpt_windows(result, compared.interval_s)
        kept = {name: KeptTraces(reader, windows.get(name, [])) for name, reader in readers.items()}
    units, truth_snr = measure_units(result, kept, compared.truth)
    trains = spike_trains(result.sorting)
    samples, similarity = None, None
    pairs: list[UnitPair] = []
    excerpts: list[Excerpt] = []
    if kept is not None:
        steps.begin("pairs")
        similarity = unit_similarity(units)
        pairs = likely_pairs(result.sorting, trains, result.num_samples, similarity)
        steps.begin("spikes")
        samples = sample_spikes(result, units, kept, pairs, steps.tell)
        steps.begin("traces")
        excerpts = choose_excerpts(result, units, kept, compared.interval_s)
    return ReportContents(
        result=result,
        units=units,
        firing=measure_firing(result, trains),
        scales=scales,
        samples=samples,
        excerpts=excerpts,
        similarity=similarity,
        pairs=pairs,
        performance=compared.performance,
        truth_snr=truth_snr,
    )


def _render(contents: ReportContents, interval_s: tuple[float, float] | None, path: Path) -> str:
    """Return the page as HTML; `path` is where it will be."""
    result, performance = contents.result, contents.performance
    return _template().render(
        result=result,
        facts=result.provenance,
        finder=finder_of(str((result.provenance.get("labels") or {}).get("source", ""))),
        damage=summarise_damage(result.provenance.get("damage")),
        unexplained=UnexplainedEvents.of(result.provenance.get("unexplained")),
        num_spikes=sum(unit.num_spikes for unit in contents.units),
        has_recording=contents.samples is not None,
        has_trust=result.units is not None,
        suggestions=[] if result.suggestions is None else result.suggestions.to_dict("records"),
        has_gain=any(scale.uV is not None for scale in contents.scales.values()),
        labels_are_everywhere=labels_are_everywhere(result),
        phy=_phy_commands(result, path),
        performance=performance,
        interval_s=interval_s,
        excerpts=contents.excerpts,
        motion_notes=motion_notes(result),
        samples=contents.samples,
        pairs=contents.pairs,
        rows=_rows(contents),
        missed=[] if performance is None else _missed_units(performance),
        limits={
            "waveform_spikes": MAX_WAVEFORM_SPIKES,
            "refractory_ms": REFRACTORY_MS,
            "similarity": MIN_SIMILARITY,
            "named": MAX_NAMED_UNITS,
        },
        data=compress(page_data(contents)),
        library=compress(get_plotlyjs()),
        style=_page_file("report.css"),
        scripts=[_page_file(name) for name in SCRIPTS],
    )


def _phy_commands(result: StoredResult, path: Path) -> dict[str, Any]:
    """Return the commands that open the result in Phy, and whether the folder is there already."""
    is_beside = (path.parent / PROVENANCE_FILE).is_file()
    output = str(path.parent) if is_beside else "OUT"
    recording = result.provenance["recording"].get("path") or "RECORDING"
    folder = str(path.parent / PHY_FOLDER) if is_beside else PHY_FOLDER
    export = ["spikewise", "export", "phy", output, "--recording", str(recording), "-o", folder]
    return {
        "export": shlex.join(export),
        "open": shlex.join(["phy", "template-gui", f"{folder}/params.py"]),
        "link": f"{PHY_FOLDER}/params.py" if (path.parent / PHY_FOLDER / "params.py").is_file() else None,
    }


def _page_file(name: str) -> str:
    """Return the text of a file in the assets folder."""
    folder = importlib.resources.files(__package__) / PAGE_FOLDER
    return (folder / name).read_text(encoding="utf-8")


def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(_page_file(TEMPLATE))


def _rows(contents: ReportContents) -> list[UnitRow]:
    """Join the measures, labels, scores and verdicts of the units."""
    samples = contents.samples
    scores: dict[str, dict[str, Any]] = {}
    if contents.performance is not None:
        for score in contents.performance.to_dict()["units"]:
            if score["tested_unit"] is not None:
                scores[str(score["tested_unit"])] = score
    verdicts: dict[int, str] = {}
    for pair in reversed(contents.pairs):  # the worst verdicts come first in the list, so they are set last
        if pair.verdict != "alike":
            verdicts.update(dict.fromkeys((pair.first, pair.second), pair.verdict))
    labels = contents.result.num_labels_of_units
    return [
        UnitRow(
            measures=unit,
            colour=colour_of(unit.unit_index),
            main_channel=None if unit.main_channel is None else unit.group.channel_ids[unit.main_channel],
            depth_um=contents.depth_um(unit),
            snr=contents.snr(unit),
            amplitude_uV=contents.amplitude_uV(unit),
            amplitude_cutoff=None if samples is None else samples.amplitude_cutoff(unit.unit_index),
            num_labels=labels[unit.unit_index] if labels is not None else None,
            score=scores.get(str(unit.unit_id)),
            verdict=verdicts.get(unit.unit_index, ""),
            trust=trust_of_unit(contents.result.units, unit.unit_index),
        )
        for unit in contents.units
    ]


def _missed_units(performance: Performance) -> list[dict[str, Any]]:
    """Return the scores of the true units that fire in the time compared and have no partner."""
    scores = performance.to_dict()["units"]
    return [score for score in scores if score["tested_unit"] is None and score["num_truth"] > 0]
