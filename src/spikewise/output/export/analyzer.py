"""A SortingAnalyzer of SpikeInterface with all that its quality metrics, and curation built on them, ask for.

Its traces are filtered and referenced as for sorting, by SpikeInterface itself, so that an analyzer in a
folder opens without Spikewise, and keep the raw gain, so that amplitudes are microvolts. Units without a
spike have neither template nor metrics, and are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import spikeinterface.preprocessing as spre
from spikeinterface.core import (
    BaseRecording,
    BaseSorting,
    ChannelSparsity,
    SortingAnalyzer,
    create_sorting_analyzer,
)
from spikeinterface.core.template_tools import estimate_main_channel_from_recording

from spikewise.core.config import PreprocessingConfig
from spikewise.core.errors import OutputError
from spikewise.core.progress import ProgressCallback, silent
from spikewise.data.recordings.channels import SilencedRecording, ids_of
from spikewise.data.recordings.preprocessing import MAX_OF_SAMPLING_FREQUENCY, REFERENCE_CHANNELS
from spikewise.output.export.config import AnalyzerConfig
from spikewise.output.export.sorted_group import SortedGroup

logger = logging.getLogger(__name__)


def make_analyzer(
    sorting: BaseSorting,
    recording: BaseRecording,
    groups: Sequence[SortedGroup],
    preprocessing: PreprocessingConfig,
    silenced: Sequence[str],
    config: AnalyzerConfig,
    folder: Path | None = None,
    progress: ProgressCallback = silent,
) -> SortingAnalyzer:
    """Make an analyzer of a sorted recording, in memory or in a folder.

    Parameters
    ----------
    sorting : BaseSorting
        The spikes.
    recording : BaseRecording
        The recording as it came in.
    groups : sequence of SortedGroup
        The groups that were sorted.
    preprocessing : PreprocessingConfig
        How they were preprocessed.
    silenced : sequence of str
        Names of the channels that were silenced; they are zero here too.
    config : AnalyzerConfig
        What to compute.
    folder : Path, optional
        Folder to write; without it the analyzer is in memory.
    progress : callable
        Told how many of the steps are done.

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
    conditioned = condition(recording, groups, preprocessing, silenced)
    main_channels = estimate_main_channel_from_recording(
        conditioned,
        sorting,
        peak_sign="both",
        peak_mode="extremum",
        seed=config.seed,
        n_jobs=config.jobs,
        progress_bar=False,
    )
    sparsity = _sparsity(sorting, conditioned, groups, kept, main_channels, config)
    analyzer = create_sorting_analyzer(
        sorting,
        conditioned,
        format="memory" if folder is None else "binary_folder",
        folder=folder,
        sparsity=sparsity,
        main_channel_indices=main_channels,
        return_in_uV=conditioned.has_scaleable_traces(),
    )
    steps = _extensions(config)
    if not analyzer.return_in_uV:
        logger.warning(
            "the recording does not tell its gain: amplitudes are in its own steps, and there are no metrics "
            "of templates, which need microvolts. Where it is known, give --gain-to-uv"
        )
        del steps["template_metrics"]
    for done, (name, options) in enumerate(steps.items()):
        progress("analyzer", done, len(steps), name)
        reading = {"n_jobs": config.jobs, "progress_bar": False} if name in _READING else {}
        analyzer.compute_one_extension(name, verbose=False, **options, **reading)
    progress("analyzer", len(steps), len(steps), "")
    return analyzer


_READING = ("waveforms", "noise_levels", "spike_amplitudes", "spike_locations", "principal_components")
"""Extensions that go through the recording, in several processes if asked for."""


def _extensions(config: AnalyzerConfig) -> dict[str, dict[str, Any]]:
    """Return what is computed, in order."""
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


def condition(
    recording: BaseRecording,
    groups: Sequence[SortedGroup],
    preprocessing: PreprocessingConfig,
    silenced: Sequence[str],
) -> BaseRecording:
    """Return the recording filtered and referenced as for sorting, in its own unit."""
    bad = ids_of(recording, silenced)
    if len(bad):
        recording = SilencedRecording(recording, list(bad))
    if preprocessing.bandpass:
        freq_max = min(
            preprocessing.freq_max_hz, MAX_OF_SAMPLING_FREQUENCY * recording.get_sampling_frequency()
        )
        recording = spre.bandpass_filter(recording, preprocessing.freq_min_hz, freq_max, dtype="float32")
    referenced = []
    for group in groups:
        ids = recording.channel_ids[group.channel_index]
        large = len(ids) >= REFERENCE_CHANNELS if preprocessing.common_reference == "auto" else len(ids) > 1
        good = [channel_id for channel_id in ids if channel_id not in bad]
        if preprocessing.common_reference != "none" and large and len(good) > 1:
            referenced.append(good)
    if referenced == [list(recording.channel_ids)]:
        return spre.common_reference(recording, operator="median")
    return spre.common_reference(recording, operator="median", groups=referenced) if referenced else recording


def _sparsity(
    sorting: BaseSorting,
    recording: BaseRecording,
    groups: Sequence[SortedGroup],
    kept: np.ndarray,
    main_channels: np.ndarray,
    config: AnalyzerConfig,
) -> ChannelSparsity:
    """Return the channels near each unit's largest, and of its own group."""
    near = ChannelSparsity.from_radius_and_main_channel(
        sorting.unit_ids,
        recording.channel_ids,
        main_channels,
        recording.get_channel_locations(),
        config.radius_um,
    )
    if len(groups) == 1:
        return near
    mine = np.zeros_like(near.mask)
    for group in groups:
        mine[np.ix_(np.isin(kept, group.unit_index), group.channel_index)] = True
    both = near.mask & mine
    both = np.where(both.any(axis=1, keepdims=True), both, mine)
    return ChannelSparsity(both, sorting.unit_ids, recording.channel_ids)
