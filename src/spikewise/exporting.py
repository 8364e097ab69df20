"""Handing a result to other tools: Phy, NWB, a SortingAnalyzer of SpikeInterface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording

from spikewise.config import Config, RecordingConfig
from spikewise.data.preprocessing import split_groups
from spikewise.errors import RecordingError
from spikewise.export_config import PhyConfig
from spikewise.learning import Group, prepare_groups
from spikewise.models.checkpoint import check_model_fits
from spikewise.opening import open_recording
from spikewise.output.phy import PhyExport, write_phy
from spikewise.output.result import StoredResult, load_result
from spikewise.output.sorted_group import SortedGroup
from spikewise.progress import ProgressCallback, silent


def groups_of(result: StoredResult, recording: BaseRecording) -> list[Group]:
    """Return the groups of the recording that was sorted, preprocessed as for the result's model.

    Raises
    ------
    RecordingError, CheckpointError
        If it is another recording: of another length, or with other channels.
    """
    lengths = [recording.get_num_samples(index) for index in range(recording.get_num_segments())]
    if lengths != result.num_samples:
        raise RecordingError(
            f"the recording has segments of {lengths} samples",
            f"the result is of a recording with segments of {result.num_samples}",
            "give the recording that was sorted",
        )
    check_model_fits(result.model, split_groups(recording, result.model.preprocessing_config.group_by))
    return prepare_groups(recording, Config(), result.model)


def export_phy(
    result: Any,
    recording: BaseRecording | str | Path,
    output: str | Path,
    *,
    config: PhyConfig | None = None,
    progress: ProgressCallback = silent,
    **options: Any,
) -> PhyExport:
    """Write a result as a folder for Phy's template GUI.

    Parameters
    ----------
    result : SortingResult, str or Path
        What :func:`spikewise.sort` gave, or its output folder.
    recording : BaseRecording, str or Path
        The recording that was sorted.
    output : str or Path
        Folder to write; it must not exist.
    config : PhyConfig, optional
        All settings; or give single ones as keyword options.
    progress : callable, optional
        Told how far it is.

    Returns
    -------
    PhyExport
        ``params``, the file to open with ``phy template-gui``, and what the folder holds.

    Raises
    ------
    SpikewiseError
        If something that was given cannot be used; the message says what to do.
    """
    config = config or PhyConfig.from_dict(options)
    stored = _stored(result)
    opened, _ = open_recording(recording, RecordingConfig())
    groups = sorted_groups(stored, opened)
    return write_phy(stored.sorting, opened, groups, Path(output), config, progress)


def sorted_groups(result: StoredResult, recording: BaseRecording) -> list[SortedGroup]:
    """Return the traces and the units of each group of a result."""
    gains = recording.get_property("gain_to_uV")
    groups = {group.name: group for group in groups_of(result, recording)}
    first, found = 0, []
    for part in result.model.groups:
        group = groups[part.name]
        channel_index = recording.ids_to_indices(group.recording.channel_ids)
        scale = np.nan_to_num(group.preprocessed.noise_levels)
        if gains is not None:
            scale = scale * abs(np.asarray(gains, dtype=float)[channel_index])
        positions = group.recording.get_channel_locations()
        units = np.arange(first, first + len(part.unit_ids))
        found.append(SortedGroup(part.name, group.reader, channel_index, positions, scale, units))
        first += len(part.unit_ids)
    return found


def _stored(result: Any) -> StoredResult:
    if isinstance(result, str | Path):
        return load_result(result)
    return StoredResult(result.sorting, result.model, result.provenance)
