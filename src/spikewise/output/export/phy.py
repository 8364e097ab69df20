"""Writes a folder for Phy's template GUI in one pass over the recording.

First, a few preprocessed spikes of each unit give its channels and its rough shape. Then the traces are read
once, from start to end. On the channels near its unit, each spike is projected on the shape of the unit,
which gives its amplitude, and on principal components that all channels share, which gives its features.
Spikes from all over the recording are averaged to the unit's template. Memory depends on the number of units,
not on the length of the recording. If possible, Phy reads raw traces from the recording's own file.

Conventions: Phy has one time axis, on which segments are laid end to end (global frames). It numbers units
from 0; here the number is the unit's index in the sorting, and ``cluster_unit_id.tsv`` holds the ids. The
label ``KSLabel`` (the name is Kilosort's, and other tools read it) and the group follow from how far a unit
can be trusted (:mod:`spikewise.output.unit_table`). If that is not known, the label is only a guess from the
contamination, and the group is ``unsorted``, as nobody has judged the unit.
Templates and amplitudes are in microvolts. The amplitude of a spike is the size of its unit's template after
it was scaled to fit the spike best. Templates and features are sparse: ``template_ind.npy`` and
``pc_feature_ind.npy`` hold the channels, the one with the largest amplitude first, and -1 where a unit has
fewer. If the recording has a clock of its own, ``spike_seconds.npy`` holds the times of the spikes.
Phy's format: https://phy.readthedocs.io/en/latest/sorting_user_guide.
"""

from __future__ import annotations

import csv
import gc
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from spikeinterface.core import BaseRecording, BaseSorting, write_binary_recording

from spikewise.core.errors import OutputError
from spikewise.core.files import writing
from spikewise.core.progress import WRITING, ProgressCallback, silent
from spikewise.data.labels.label_set import segment_starts
from spikewise.data.recordings.channels import SilencedRecording
from spikewise.data.recordings.clock import TimedRecording
from spikewise.output.export.config import PhyConfig
from spikewise.output.export.phy_features import Projection, project_spikes
from spikewise.output.export.phy_units import LocatedUnits, locate_units, unit_similarity
from spikewise.output.export.sorted_group import SortedGroup, SpikeList
from spikewise.output.export.spike_times import has_own_times, times_of_spikes
from spikewise.output.measures import spike_trains, violations_ratio

logger = logging.getLogger(__name__)

GOOD_CONTAMINATION = 10.0
"""Contamination in percent below which a unit is guessed to be good; chosen by hand."""
_GROUP_GAP_UM = 200.0
"""Gap between groups that are moved side by side because their coordinates overlap; chosen by hand."""


@dataclass(frozen=True)
class PhyExport:
    """A written folder.

    Attributes
    ----------
    params : Path
        The file to open: ``phy template-gui params.py``.
    num_units, num_spikes : int
        Number of units with spikes, and of spikes.
    num_empty : int
        Number of units without a spike, which Phy does not show.
    traces : str
        The file from which Phy reads raw traces: ``own file``, ``copy`` or ``none``.
    """

    params: Path
    num_units: int
    num_spikes: int
    num_empty: int
    traces: str


def write_phy(
    sorting: BaseSorting,
    recording: BaseRecording,
    groups: Sequence[SortedGroup],
    folder: Path,
    config: PhyConfig,
    progress: ProgressCallback = silent,
) -> PhyExport:
    """Write a folder for Phy.

    Parameters
    ----------
    sorting : BaseSorting
        The spikes.
    recording : BaseRecording
        The raw recording.
    groups : sequence of SortedGroup
        Preprocessed traces and units of each group.
    folder : Path
        Folder to write. It must not exist, because an existing folder may hold manual curation.
    config : PhyConfig
        What to write.
    progress : callable
        Called with the seconds of the recording that are done, and all of them.

    Returns
    -------
    PhyExport

    Raises
    ------
    OutputError
        If the folder exists or cannot be written, or there are fewer than two spikes.
    """
    if folder.exists():
        raise OutputError(
            f"the folder {folder} exists already",
            "a new name, because the folder may hold curated units",
            "choose another name",
        )
    spikes = _spikes_in_order(sorting, recording)
    partial = folder.with_name(folder.name + ".partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            units = locate_units(spikes, recording, groups, config)
            features = partial / "pc_features.npy"
            projection = project_spikes(features, spikes, recording, groups, units, config, progress)
            progress(WRITING, 0, 1, "")
            _write_spikes(partial, spikes, units, projection)
            _write_times(partial, sorting, recording)
            _write_units(partial, sorting, units, groups, projection.templates, recording.sampling_frequency)
            _write_quality(partial, sorting, recording)
            _write_channels(partial, recording, groups)
            source = _write_params(partial, folder, recording, config)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    counts = np.bincount(spikes.unit_index, minlength=len(sorting.unit_ids))
    empty = [str(unit_id) for unit_id in sorting.unit_ids[counts == 0]]
    if empty:
        logger.warning("units without a spike, which Phy does not show: %s", ", ".join(empty))
    return PhyExport(folder / "params.py", int((counts > 0).sum()), len(spikes), len(empty), source)


def _spikes_in_order(sorting: BaseSorting, recording: BaseRecording) -> SpikeList:
    """Return all spikes in order of time, and of the unit index within a frame."""
    spikes = sorting.to_spike_vector()
    if len(spikes) < 2:
        raise OutputError(
            f"the sorting has {len(spikes)} spikes", "Phy needs at least two", "sort with a lower --threshold"
        )
    starts = np.array(segment_starts(recording))
    frames = spikes["sample_index"] + starts[spikes["segment_index"]]
    order = np.lexsort((spikes["unit_index"], frames))
    return SpikeList(frames[order], spikes["unit_index"][order].astype(np.int32))


def _write_spikes(folder: Path, spikes: SpikeList, units: LocatedUnits, projection: Projection) -> None:
    peak_uV = abs(projection.templates * units.scale[:, None]).max(axis=(1, 2))
    np.save(folder / "spike_times.npy", spikes.frames.astype(np.int64))
    np.save(folder / "spike_templates.npy", spikes.unit_index)
    np.save(folder / "spike_clusters.npy", spikes.unit_index)
    np.save(folder / "amplitudes.npy", projection.sizes * peak_uV[spikes.unit_index])


def _write_times(folder: Path, sorting: BaseSorting, recording: BaseRecording) -> None:
    """Write the times of the spikes where they are not their frames divided by the sampling frequency."""
    if has_own_times(recording):
        vector = sorting.to_spike_vector()
        frames = vector["sample_index"] + np.array(segment_starts(recording))[vector["segment_index"]]
        order = np.lexsort((vector["unit_index"], frames))
        np.save(folder / "spike_seconds.npy", times_of_spikes(sorting, recording)[order])


def _write_units(
    folder: Path,
    sorting: BaseSorting,
    units: LocatedUnits,
    groups: Sequence[SortedGroup],
    templates: np.ndarray,
    sampling_frequency: float,
) -> None:
    similarity = unit_similarity(templates, groups, units, sampling_frequency)
    np.save(folder / "templates.npy", (templates * units.scale[:, None]).astype(np.float32))
    np.save(folder / "template_ind.npy", units.recorded)
    np.save(folder / "similar_templates.npy", similarity.astype(np.float32))
    np.save(folder / "pc_feature_ind.npy", units.recorded)
    _write_table(folder, "unit_id", [str(unit_id) for unit_id in sorting.unit_ids])
    if len(groups) > 1:
        names = dict(zip(np.concatenate([g.unit_index for g in groups]), _names(groups), strict=True))
        _write_table(folder, "probe_group", [names.get(index, "") for index in range(len(sorting.unit_ids))])
    _write_trust(folder, sorting)


def _write_trust(folder: Path, sorting: BaseSorting) -> None:
    """Write how far each unit can be trusted, if it is known: Phy shows it as columns."""
    verdicts = sorting.get_property("verdict")
    if verdicts is None:
        return
    for name in ("accuracy", "precision", "recall"):
        values = sorting.get_property(f"estimated_{name}")
        _write_table(folder, f"estimated_{name}", ["" if v != v else f"{v:.3f}" for v in values])
    _write_table(folder, "verdict", verdicts.tolist())


def _write_quality(folder: Path, sorting: BaseSorting, recording: BaseRecording) -> None:
    """Write the contamination of each unit, its label and its group.

    Units whose verdict is good are ``good`` in both, others ``mua``. Without verdicts the label is a guess
    from the contamination, and the group is nobody's yet. None is ``noise``: labels leave out such units, and
    only a curator should.
    """
    num_samples = sum(recording.get_num_samples(k) for k in range(recording.get_num_segments()))
    rate = float(recording.sampling_frequency)
    ratios = [violations_ratio(train, rate, num_samples) for train in spike_trains(sorting)]
    percent = [None if ratio is None else 100 * min(1.0, ratio) for ratio in ratios]
    verdicts = sorting.get_property("verdict")
    if verdicts is None:
        labels = ["good" if value is not None and value < GOOD_CONTAMINATION else "mua" for value in percent]
        groups = ["unsorted"] * len(labels)
    else:
        labels = groups = ["good" if verdict == "good" else "mua" for verdict in verdicts]
    _write_table(folder, "ContamPct", ["" if value is None else f"{value:.2f}" for value in percent])
    _write_table(folder, "KSLabel", labels)
    _write_table(folder, "group", groups)


def _names(groups: Sequence[SortedGroup]) -> list[str]:
    return [group.name for group in groups for _ in group.unit_index]


def _write_table(folder: Path, name: str, values: Sequence[str]) -> None:
    with (folder / f"cluster_{name}.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["cluster_id", name])
        table.writerows(row for row in enumerate(values) if row[1])


def _write_channels(folder: Path, recording: BaseRecording, groups: Sequence[SortedGroup]) -> None:
    positions = recording.get_channel_locations().astype(np.float64)
    shanks = np.zeros(len(positions), dtype=np.int32)
    for number, group in enumerate(groups):
        shanks[group.channel_index] = number
    if len(np.unique(positions, axis=0)) < len(positions):  # tetrodes, each at its own origin
        positions[:, 0] += shanks * (np.ptp(positions[:, 0]) + _GROUP_GAP_UM)
    np.save(folder / "channel_map.npy", np.arange(len(positions), dtype=np.int32))
    np.save(folder / "channel_positions.npy", positions)
    np.save(folder / "channel_shanks.npy", shanks)


def _write_params(partial: Path, folder: Path, recording: BaseRecording, config: PhyConfig) -> str:
    """Write params.py and, if needed, a copy of the raw traces; return the source of the traces."""
    own = _flat_files(recording) if config.traces == "auto" else None
    dtype, offset = np.dtype(recording.get_dtype()), 0
    if config.traces == "none":
        paths, source = [], "none"
    elif own is not None:
        source, paths = "own file", [str(Path(path).absolute()) for path in own["file_paths"]]
        dtype, offset = np.dtype(own["dtype"]), own["file_offset"]
    else:
        source = "copy"
        paths = [f"traces_{index}.dat" for index in range(recording.get_num_segments())]
        files = [partial / path for path in paths]
        dtype = dtype.newbyteorder("=")
        _copy(recording, files, dtype)
    lines = {
        "dat_path": paths,
        "n_channels_dat": recording.get_num_channels(),
        "dtype": dtype.name if dtype.isnative else dtype.str,  # the name leaves the byte order out
        "offset": offset,
        "sample_rate": float(recording.sampling_frequency),
        "hp_filtered": bool(recording.is_filtered()),
    }
    text = "".join(f"{name} = {value!r}\n" for name, value in lines.items())
    (partial / "params.py").write_text(text, encoding="utf-8")
    return source


def _copy(recording: BaseRecording, files: Sequence[Path], dtype: np.dtype) -> None:
    gc.freeze()  # SpikeInterface runs the garbage collector after each chunk; over all objects it takes 0.2 s
    try:
        write_binary_recording(recording, file_paths=files, dtype=dtype, n_jobs=1, progress_bar=False)
    finally:
        gc.unfreeze()


def _flat_files(recording: BaseRecording) -> dict | None:
    """Return SpikeInterface's description of the recording's own files.

    None unless each segment is one flat binary file with exactly the channels of the recording, in order.
    """
    while isinstance(recording, TimedRecording) or (
        isinstance(recording, SilencedRecording) and not recording._kwargs["channel_ids"]
    ):
        recording = recording.get_parent()
    if not recording.binary_compatible_with(time_axis=0):
        return None
    found = recording.get_binary_description()
    whole = found["num_channels"] == recording.get_num_channels()
    return found if whole and len(found["file_paths"]) == recording.get_num_segments() else None
