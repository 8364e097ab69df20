"""A SortingAnalyzer of SpikeInterface with everything that quality metrics and automatic curation need.

Its traces are those of :mod:`spikewise.output.sorted_traces`, so that an analyzer of an undamaged recording
in a folder opens without Spikewise. They keep the raw gain, so that amplitudes are in microvolts. Units that
have no spike have no template and no metrics; they are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import (
    BaseRecording,
    BaseSorting,
    ChannelSparsity,
    SortingAnalyzer,
    create_sorting_analyzer,
)
from spikeinterface.core.template_tools import estimate_main_channel_from_recording

from spikewise.core.errors import OutputError
from spikewise.core.progress import ProgressCallback, silent
from spikewise.output.export.config import AnalyzerConfig
from spikewise.output.export.sorted_group import SortedGroup

logger = logging.getLogger(__name__)

_READS_TRACES = ("waveforms", "noise_levels", "spike_amplitudes", "spike_locations", "principal_components")
"""Extensions that read the recording, in several processes if the settings say so."""


def make_analyzer(
    sorting: BaseSorting,
    preprocessed: BaseRecording,
    groups: Sequence[SortedGroup],
    config: AnalyzerConfig,
    folder: Path | None = None,
    progress: ProgressCallback = silent,
) -> SortingAnalyzer:
    """Make an analyzer of a sorted recording, in memory or in a folder.

    Parameters
    ----------
    sorting : BaseSorting
        The spikes.
    preprocessed : BaseRecording
        The recording, as from :func:`spikewise.output.sorted_traces.traces_as_sorted`.
    groups : sequence of SortedGroup
        The groups that were sorted.
    config : AnalyzerConfig
        What to compute.
    folder : Path, optional
        Folder to write; without it the analyzer is in memory.
    progress : callable
        Called with the number of steps that are done.

    Returns
    -------
    SortingAnalyzer
        Of the units that have spikes.

    Raises
    ------
    OutputError
        If no unit has a spike.
    """
    counts = np.array(list(sorting.count_num_spikes_per_unit(outputs="dict").values()))
    kept = np.flatnonzero(counts > 0)
    if not len(kept):
        raise OutputError(
            "no unit of the sorting has a spike", "at least one spike", "sort with a lower --threshold"
        )
    if len(kept) < len(counts):
        left_out = ", ".join(map(str, sorting.unit_ids[counts == 0]))
        logger.warning("units without a spike are left out of the analyzer: %s", left_out)
    sorting = sorting.select_units(sorting.unit_ids[kept])
    main_channels = estimate_main_channel_from_recording(
        preprocessed,
        sorting,
        peak_sign="both",
        peak_mode="extremum",
        seed=config.seed,
        n_jobs=config.jobs,
        progress_bar=False,
    )
    sparsity = _sparsity(sorting, preprocessed, groups, kept, main_channels, config)
    analyzer = create_sorting_analyzer(
        sorting,
        preprocessed,
        format="memory" if folder is None else "binary_folder",
        folder=folder,
        sparsity=sparsity,
        main_channel_indices=main_channels,
        return_in_uV=preprocessed.has_scaleable_traces(),
    )
    steps = _extensions(config)
    if not analyzer.return_in_uV:
        logger.warning(
            "the recording does not tell its gain. Amplitudes are in the recording's own unit, and the "
            "template metrics, which need microvolts, are left out. If you know the gain, give --gain-to-uv"
        )
        del steps["template_metrics"]
    for done, (name, options) in enumerate(steps.items()):
        progress("measuring units", done, len(steps), name.replace("_", " "))
        reading = {"n_jobs": config.jobs, "progress_bar": False} if name in _READS_TRACES else {}
        analyzer.compute_one_extension(name, verbose=False, **options, **reading)
    progress("measuring units", len(steps), len(steps), "")
    return analyzer


def _extensions(config: AnalyzerConfig) -> dict[str, dict[str, Any]]:
    """Return the extensions to compute and their options, in order."""
    steps: dict[str, dict[str, Any]] = {
        "random_spikes": {"max_spikes_per_unit": config.spikes_per_unit, "seed": config.seed},
        "waveforms": {"ms_before": config.before_ms, "ms_after": config.after_ms},
        "templates": {"operators": ["average", "std", "median"]},
        "noise_levels": {"random_slices_kwargs": {"seed": config.seed}},
        "spike_amplitudes": {},
        "unit_locations": {},
        "spike_locations": {"method": "center_of_mass"},
        "correlograms": {},
        "template_metrics": {"include_multi_channel_metrics": True},
    }
    if config.components:
        steps["principal_components"] = {"n_components": config.components, "mode": "by_channel_local"}
    return {**steps, "quality_metrics": {"seed": config.seed}}


def _sparsity(
    sorting: BaseSorting,
    recording: BaseRecording,
    groups: Sequence[SortedGroup],
    kept: np.ndarray,
    main_channels: np.ndarray,
    config: AnalyzerConfig,
) -> ChannelSparsity:
    """Return for each unit the channels of its group that are near its main channel."""
    near = ChannelSparsity.from_radius_and_main_channel(
        sorting.unit_ids,
        recording.channel_ids,
        main_channels,
        recording.get_channel_locations(),
        config.radius_um,
    )
    if len(groups) == 1:
        return near
    of_group = np.zeros_like(near.mask)
    for group in groups:
        of_group[np.ix_(np.isin(kept, group.unit_index), group.channel_index)] = True
    both = near.mask & of_group
    both = np.where(both.any(axis=1, keepdims=True), both, of_group)
    return ChannelSparsity(both, sorting.unit_ids, recording.channel_ids)
