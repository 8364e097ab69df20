"""Makes the report of a result, from its folder or right after the sort."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from spikeinterface.core import BaseRecording, BaseSorting
from spikeinterface.core.motion import Motion

from spikewise.core.config import EvaluationConfig
from spikewise.core.files import check_output_file
from spikewise.core.progress import PREPARING, ProgressCallback
from spikewise.core.progress_bars import shown
from spikewise.data.opening import open_recording, open_sorting
from spikewise.data.recordings.preprocessing import known_gains
from spikewise.data.recordings.reader import TraceReader
from spikewise.models.checkpoint import Model
from spikewise.output.matching import Performance, compare_sortings
from spikewise.output.report.page import Comparison, write_report
from spikewise.output.report.page_data import TraceScale
from spikewise.output.result import StoredResult, load_result
from spikewise.output.result_groups import groups_of
from spikewise.output.store import REPORT_FILE
from spikewise.sorting.groups import Group

logger = logging.getLogger(__name__)


class SortedResult(Protocol):
    """The result of a sort, such as :class:`spikewise.SortingResult`."""

    @property
    def sorting(self) -> BaseSorting:
        """The spikes."""

    @property
    def model(self) -> Model:
        """The model that found the spikes."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Settings, versions, hashes, seeds and timings."""

    @property
    def motions(self) -> dict[str, Motion]:
        """The motion of each group that was removed from its traces."""

    @property
    def folder(self) -> Path | None:
        """The output folder, if there is one."""


@dataclass(frozen=True)
class Report:
    """A written report.

    Attributes
    ----------
    path : Path
        The HTML file.
    provenance : dict
        The provenance of the result.
    performance : Performance or None
        The comparison with the truth; None if no truth was given.
    """

    path: Path
    provenance: dict[str, Any]
    performance: Performance | None


def report(
    result: SortedResult | str | Path,
    output: str | Path,
    *,
    recording: BaseRecording | str | Path | None = None,
    truth: BaseSorting | str | Path | None = None,
    overwrite: bool = False,
    config: EvaluationConfig | None = None,
    progress: ProgressCallback | bool | None = None,
    **options: Any,
) -> Report:
    """Write the report of a result as one HTML page.

    Parameters
    ----------
    result : SortingResult, str or Path
        The result of :func:`spikewise.sort`, or its output folder.
    output : str or Path
        File to write, for example ``report.html``.
    recording : BaseRecording, str or Path, optional
        The recording that was sorted; without it no trace and no waveform is drawn.
    truth : BaseSorting, str or Path, optional
        True spikes to compare with; without them no score is shown.
    overwrite : bool
        Whether an existing file may be replaced.
    config : EvaluationConfig, optional
        How to compare with the truth; or give single settings as keyword options.
    progress : callable or bool, optional
        Called with the progress. By default a terminal or a notebook shows bars; False: nothing is shown.

    Returns
    -------
    Report
        The file, and the comparison with the truth.

    Raises
    ------
    SpikewiseError
        If the result is incomplete, or another argument cannot be used.
    """
    output = check_output_file(output, overwrite)
    settings = config or EvaluationConfig.from_dict(options)
    if isinstance(result, str | Path):
        stored = load_result(result)
    else:
        stored = StoredResult(result.sorting, result.model, result.provenance, motions=result.motions)
        stored = stored.with_parts_of(result.folder)
    with shown(progress) as told:
        told(PREPARING, 0, 1, "")
        opened = None if recording is None else open_recording(recording, stored.reading)[0]
        groups = None if opened is None else groups_of(stored, opened)
        performance, true_spikes = None, None
        if truth is not None:
            told("comparing with the truth", 0, 1, "")
            true_spikes = open_sorting(truth, opened)
            performance = compare_sortings(true_spikes, stored.sorting, settings, stored.num_samples)
        path = write_report(
            stored,
            output,
            readers=None if groups is None else _readers_of(groups),
            scales=None if groups is None else _scales_of(groups),
            comparison=Comparison(true_spikes, performance, settings.interval),
            overwrite=overwrite,
            progress=told,
        )
    return Report(path, stored.provenance, performance)


def report_of_sort(
    result: StoredResult, groups: Sequence[Group], folder: Path, progress: ProgressCallback
) -> None:
    """Write the report of a sort into its output folder, from the groups that were sorted.

    The sort is finished, so an error only logs a warning, and Ctrl-C only skips the report.
    """
    try:
        readers, scales = _readers_of(groups), _scales_of(groups)
        write_report(result, folder / REPORT_FILE, readers=readers, scales=scales, progress=progress)
    except (Exception, KeyboardInterrupt) as error:  # the finished sort must survive any error here
        logger.debug("the report failed", exc_info=True)
        logger.warning(
            "the report was left out: %s. The sort is complete; "
            "make the report with: spikewise report OUT --recording RECORDING -o report.html",
            "interrupted" if isinstance(error, KeyboardInterrupt) else str(error).rstrip("."),
        )


def _readers_of(groups: Sequence[Group]) -> dict[str, TraceReader]:
    """Return the traces of each group, preprocessed as for the model."""
    return {group.name: group.reader for group in groups}


def _scales_of(groups: Sequence[Group]) -> dict[str, TraceScale]:
    """Return what the traces of each group are measured in."""
    scales = {}
    for group in groups:
        gains = known_gains(group.recording)
        levels = np.nan_to_num(group.preprocessed.noise_levels)
        scales[group.name] = TraceScale(None if gains is None else levels * np.abs(gains), group.noise_ratio)
    return scales
