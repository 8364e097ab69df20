"""Exports a result to other tools: Phy, NWB, a SortingAnalyzer of SpikeInterface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording, SortingAnalyzer

from spikewise.core.errors import OutputError
from spikewise.core.files import check_output_file, writing
from spikewise.core.progress import PREPARING, WRITING, ProgressCallback
from spikewise.core.progress_bars import shown
from spikewise.data.opening import files_of, open_recording
from spikewise.output.export.analyzer import make_analyzer
from spikewise.output.export.config import AnalyzerConfig, NwbConfig, PhyConfig
from spikewise.output.export.nwb import NwbExport, check_nwb_settings, require_neuroconv, write_nwb
from spikewise.output.export.phy import PhyExport, write_phy
from spikewise.output.export.sorted_group import SortedGroup
from spikewise.output.result import StoredResult, load_result
from spikewise.output.result_groups import groups_of
from spikewise.output.sorted_traces import traces_as_sorted
from spikewise.output.unit_table import Keep, set_properties, spikes_of
from spikewise.sorting.groups import Group


def export_phy(
    result: Any,
    recording: BaseRecording | str | Path,
    output: str | Path,
    *,
    config: PhyConfig | None = None,
    progress: ProgressCallback | bool | None = None,
    **options: Any,
) -> PhyExport:
    """Write a result as a folder for Phy's template GUI.

    Parameters
    ----------
    result : SortingResult, str or Path
        The result of :func:`spikewise.sort`, or its output folder.
    recording : BaseRecording, str or Path
        The recording that was sorted.
    output : str or Path
        Folder to write; it must not exist.
    config : PhyConfig, optional
        All settings; or give single settings as keyword options.
    progress : callable or bool, optional
        Called with the progress. By default a terminal or a notebook shows bars; False: nothing is shown.

    Returns
    -------
    PhyExport
        ``params``, the file to open with ``phy template-gui``, and the contents of the folder.

    Raises
    ------
    SpikewiseError
        If an argument cannot be used; the message says what to do.
    """
    config = config or PhyConfig.from_dict(options)
    stored = _stored(result, config.keep)
    opened, _ = open_recording(recording, stored.reading)
    with shown(progress) as told:
        told(PREPARING, 0, 1, "")
        groups = sorted_groups(stored, opened, groups_of(stored, opened))
        return write_phy(stored.sorting, opened, groups, Path(output), config, told)


def analyze(
    result: Any,
    recording: BaseRecording | str | Path,
    *,
    output: str | Path | None = None,
    config: AnalyzerConfig | None = None,
    progress: ProgressCallback | bool | None = None,
    **options: Any,
) -> SortingAnalyzer:
    """Make a SortingAnalyzer of a result, with waveforms, templates, locations, correlograms and metrics.

    Parameters
    ----------
    result : SortingResult, str or Path
        The result of :func:`spikewise.sort`, or its output folder.
    recording : BaseRecording, str or Path
        The recording that was sorted.
    output : str or Path, optional
        Folder to write, for ``spikeinterface.load``; it must not exist. Without it the analyzer is in memory.
    config : AnalyzerConfig, optional
        All settings; or give single settings as keyword options.
    progress : callable or bool, optional
        Called with the progress. By default a terminal or a notebook shows bars; False: nothing is shown.

    Returns
    -------
    SortingAnalyzer
        Of all units that have spikes.

    Raises
    ------
    SpikewiseError
        If an argument cannot be used; the message says what to do.
    """
    config = config or AnalyzerConfig.from_dict(options)
    folder = None if output is None else Path(output)
    if folder is not None and folder.exists():
        raise OutputError(f"the folder {folder} exists already", "a new name", "choose another")
    stored = _stored(result, config.keep)
    opened, _ = open_recording(recording, stored.reading)
    with shown(progress) as told:
        return _analyze(stored, opened, config, folder, told)


def export_nwb(
    result: Any,
    recording: BaseRecording | str | Path,
    output: str | Path,
    *,
    append: bool = False,
    overwrite: bool = False,
    config: NwbConfig | None = None,
    progress: ProgressCallback | bool | None = None,
    **options: Any,
) -> NwbExport:
    """Write the units of a result into an NWB file.

    Parameters
    ----------
    result : SortingResult, str or Path
        The result of :func:`spikewise.sort`, or its output folder.
    recording : BaseRecording, str or Path
        The recording that was sorted.
    output : str or Path
        The file, ending in .nwb.
    append : bool
        Whether to add the units to an existing file, which is changed in place.
    overwrite : bool
        Whether an existing file may be replaced.
    config : NwbConfig, optional
        Metadata of a new file; or give single settings as keyword options.
    progress : callable or bool, optional
        Called with the progress. By default a terminal or a notebook shows bars; False: nothing is shown.

    Returns
    -------
    NwbExport

    Raises
    ------
    SpikewiseError
        If an argument cannot be used; the message says what to do.
    """
    require_neuroconv()
    config = config or NwbConfig.from_dict(options)
    file = Path(output)
    if file.suffix.lower() != ".nwb":
        raise OutputError(f"the file {file} does not end in .nwb", "the name of an NWB file", "change it")
    check_nwb_settings(file, append, config)
    if not append:
        check_output_file(file, overwrite, ending=".nwb")
    stored = _stored(result, config.keep)
    opened, _ = open_recording(recording, stored.reading)
    if not append and file.exists() and any(file.samefile(one) for one in files_of(opened)):
        raise OutputError(
            f"the file {file} is the recording itself, which would be lost",
            "another file, or the units beside the recording in its file",
            "choose another name, or give --append",
        )
    with shown(progress) as told:
        analyzer = _analyze(stored, opened, AnalyzerConfig(), None, told)
        told(WRITING, 0, 1, "")
        with writing(file):
            file.absolute().parent.mkdir(parents=True, exist_ok=True)
        return write_nwb(analyzer, opened, stored.provenance, file, append, config)


def _analyze(
    stored: StoredResult,
    recording: BaseRecording,
    config: AnalyzerConfig,
    folder: Path | None,
    progress: ProgressCallback,
) -> SortingAnalyzer:
    progress(PREPARING, 0, 1, "")
    prepared = groups_of(stored, recording)
    groups = sorted_groups(stored, recording, prepared)
    traces = traces_as_sorted(stored, recording, prepared)
    return make_analyzer(stored.sorting, traces, groups, config, folder, progress)


def sorted_groups(
    result: StoredResult, recording: BaseRecording, prepared: Sequence[Group]
) -> list[SortedGroup]:
    """Return the traces and the units of each group of a result; `prepared` comes from :func:`groups_of`."""
    gains = recording.get_property("gain_to_uV")
    groups = {group.name: group for group in prepared}
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


def _stored(result: Any, keep: Keep) -> StoredResult:
    """Return a result with the spikes of the units to keep.

    Its units have their group, their threshold, and how far they can be trusted, as properties.
    """
    if isinstance(result, str | Path):
        stored = load_result(result)
    else:
        stored = StoredResult(result.sorting, result.model, result.provenance, motions=result.motions)
        stored = stored.with_parts_of(result.folder)
    groups = stored.model.groups
    names = [group.name for group in groups for _ in group.unit_ids]
    stored.sorting.set_property("group", np.array(names))
    stored.sorting.set_property("threshold", np.concatenate([group.thresholds for group in groups]))
    if stored.units is not None:
        set_properties(stored.sorting, stored.units)
    return replace(stored, sorting=spikes_of(stored.sorting, stored.units, keep))
