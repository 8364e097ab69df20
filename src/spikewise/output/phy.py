"""A folder for Phy's template GUI, written in one pass over the recording.

A template is the mean of some spikes of a unit, preprocessed as for sorting. Then the traces are read once,
from start to end: each spike is projected on its unit's template, which gives its amplitude, and on principal
components that all channels share, on the channels near its unit. Memory depends on the number of units,
never on the length of the recording. Phy reads raw traces from the recording's own file where it can.

Conventions: Phy knows one time axis, in which segments lie end to end (global frames), and units by a number
from 0, here the unit's index in the sorting; ``cluster_unit_id.tsv`` tells their ids. Templates and
amplitudes are in microvolts; the amplitude of a spike is the size of its unit's template, scaled to fit the
spike best. Templates and features are sparse: ``template_ind.npy`` and ``pc_feature_ind.npy`` name the
channels, the one with the largest amplitude first and -1 where a unit has fewer. Phy's format:
https://phy.readthedocs.io/en/latest/sorting_user_guide.
"""

from __future__ import annotations

import csv
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from spikeinterface.core import BaseRecording, BaseSorting, write_binary_recording

from spikewise.data.channels import SilencedRecording
from spikewise.data.labels import segment_starts
from spikewise.errors import OutputError
from spikewise.export_config import PhyConfig
from spikewise.output.sorted_group import SortedGroup
from spikewise.progress import ProgressCallback, silent
from spikewise.sorting.store import writing

logger = logging.getLogger(__name__)

_TEMPLATE_STRETCHES = 60  # of a second; templates of a long recording are made from so many
_FEW_SPIKES = 20  # a unit with fewer in those stretches adds some of its own
_MAX_LAG_MS = 0.3
_BATCH = 2000  # spikes whose windows are held at once
_CHUNK_S = 1.0
_GROUP_GAP_UM = 200.0


@dataclass(frozen=True)
class PhyExport:
    """A written folder.

    Attributes
    ----------
    params : Path
        The file to open: ``phy template-gui params.py``.
    num_units, num_spikes : int
        What it holds.
    num_empty : int
        Units without a spike, which Phy does not show.
    traces : str
        Where Phy reads raw traces: ``own file``, ``copy`` or ``none``.
    """

    params: Path
    num_units: int
    num_spikes: int
    num_empty: int
    traces: str


@dataclass(frozen=True)
class _Units:
    """Templates of all units, and the channels of each.

    ``templates`` is (num_units, num_samples, num_near) in units of noise, ``scale`` (num_units, num_near) the
    microvolts of such a unit; ``near`` (num_units, num_near) holds the channels in the group's traces, -1
    where there are no more, ``recorded`` the same in the recording; ``peak`` is the largest amplitude of each
    unit in microvolts; ``components`` is (num_samples, num_components).
    """

    templates: np.ndarray
    scale: np.ndarray
    near: np.ndarray
    recorded: np.ndarray
    peak: np.ndarray
    similarity: np.ndarray
    components: np.ndarray


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
        The recording as it came in.
    groups : sequence of SortedGroup
        Preprocessed traces and units of each group.
    folder : Path
        Where to; it must not exist, since it will hold the work of a person.
    config : PhyConfig
        What to write.
    progress : callable
        Told the seconds done, of the seconds in all.

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
            f"{folder} exists already",
            "a new name, since the folder may hold curated units",
            "choose another",
        )
    frames, unit_index = _spikes_in_order(sorting, recording)
    partial = folder.with_name(folder.name + ".partial")
    with writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            units = _measure_units(frames, unit_index, recording, groups, config)
            _write_spikes(partial, frames, unit_index)
            _write_units(partial, sorting, units, groups)
            _write_features(partial, frames, unit_index, recording, groups, units, config, progress)
            _write_channels(partial, recording, groups)
            source = _write_params(partial, folder, recording, config)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    counts = np.bincount(unit_index, minlength=len(sorting.unit_ids))
    empty = [str(unit_id) for unit_id in sorting.unit_ids[counts == 0]]
    if empty:
        logger.warning("units without a spike, which Phy does not show: %s", ", ".join(empty))
    return PhyExport(folder / "params.py", int((counts > 0).sum()), len(frames), len(empty), source)


def _spikes_in_order(sorting: BaseSorting, recording: BaseRecording) -> tuple[np.ndarray, np.ndarray]:
    """Return the global frame and the unit of each spike, in order of time."""
    spikes = sorting.to_spike_vector()
    if len(spikes) < 2:
        raise OutputError(
            f"the sorting has {len(spikes)} spikes", "Phy needs at least two", "sort with a lower --threshold"
        )
    starts = np.array(segment_starts(recording))
    frames = spikes["sample_index"] + starts[spikes["segment_index"]]
    order = np.lexsort((spikes["unit_index"], frames))
    return frames[order], spikes["unit_index"][order].astype(np.int32)


def _window(traces_rate: float, config: PhyConfig) -> tuple[int, int]:
    """Return the samples before the spike, and in all."""
    before = round(config.before_ms * traces_rate / 1000)
    return before, before + round(config.after_ms * traces_rate / 1000)


def _measure_units(
    frames: np.ndarray,
    unit_index: np.ndarray,
    recording: BaseRecording,
    groups: Sequence[SortedGroup],
    config: PhyConfig,
) -> _Units:
    """Return the mean waveforms of all units on their own channels, and what all channels have in common."""
    before, length = _window(recording.sampling_frequency, config)
    num_units = max(2, 1 + max(int(group.unit_index.max()) for group in groups))  # Phy fails on a single row
    width = min(config.phy_channels, max(len(group.channel_index) for group in groups))
    templates = np.zeros((num_units, length, width), dtype=np.float32)
    near, recorded = (np.full((num_units, width), -1) for _ in range(2))
    scale, peak, similarity = np.zeros((num_units, width)), np.zeros(num_units), np.eye(num_units)
    shapes = []
    chosen = _spikes_for_templates(frames, unit_index, recording, config)
    for group in groups:
        means, examples = _mean_waveforms(
            group, frames[chosen], unit_index[chosen], recording, (before, length)
        )
        shapes.append(examples)
        lag = round(_MAX_LAG_MS * recording.sampling_frequency / 1000)
        similarity[np.ix_(group.unit_index, group.unit_index)] = _similarity(means, lag)
        for unit, mean in zip(group.unit_index, means, strict=True):
            size_uV = abs(mean).max(axis=0) * group.scale
            distance = np.linalg.norm(group.positions_um - group.positions_um[size_uV.argmax()], axis=1)
            channels = np.argsort(distance, kind="stable")[:width]
            channels = channels[np.argsort(-size_uV[channels], kind="stable")]
            near[unit, : len(channels)] = channels
            recorded[unit, : len(channels)] = group.channel_index[channels]
            templates[unit, :, : len(channels)] = mean[:, channels]
            scale[unit, : len(channels)] = group.scale[channels]
            peak[unit] = size_uV.max()
    components = _principal_components(np.concatenate(shapes), config.components)
    return _Units(templates, scale, near, recorded, peak, similarity, components)


def _spikes_for_templates(
    frames: np.ndarray, unit_index: np.ndarray, recording: BaseRecording, config: PhyConfig
) -> np.ndarray:
    """Return which spikes make templates: those of some seconds, spread evenly; more where a unit has few."""
    second = frames // round(recording.sampling_frequency)
    last = recording.get_total_samples() // round(recording.sampling_frequency)
    wanted = np.unique(np.linspace(0, last, _TEMPLATE_STRETCHES).astype(np.int64))
    inside = np.isin(second, wanted)
    chosen = []
    for unit in np.unique(unit_index):
        spikes = np.flatnonzero(unit_index == unit)
        these = spikes[inside[spikes]]
        if len(these) < _FEW_SPIKES:
            these = spikes[: max(_FEW_SPIKES, len(these))]
        spread = np.linspace(0, len(these) - 1, min(len(these), config.template_spikes))
        chosen.append(these[np.rint(spread).astype(np.int64)])
    return np.sort(np.concatenate(chosen))


def _mean_waveforms(
    group: SortedGroup,
    frames: np.ndarray,
    unit_index: np.ndarray,
    recording: BaseRecording,
    window: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return means (num_units, num_samples, num_channels) and a waveform (num_samples) of each spike.

    That waveform is on the channel where the spike itself is largest.
    """
    before, length = window
    starts = np.array(segment_starts(recording))
    row_of = {int(unit): row for row, unit in enumerate(group.unit_index)}
    sums = np.zeros((len(row_of), length, len(group.channel_index)), dtype=np.float32)
    counts, shapes = np.zeros(len(row_of)), [np.zeros((0, length), dtype=np.float32)]
    for frame, unit in zip(frames, unit_index, strict=True):
        if int(unit) not in row_of:
            continue
        segment = int(np.searchsorted(starts, frame, side="right")) - 1
        start = int(frame - starts[segment]) - before
        waveform = group.traces.read(segment, start, start + length)
        sums[row_of[int(unit)]] += waveform
        counts[row_of[int(unit)]] += 1
        shapes.append(waveform[:, [abs(waveform).max(axis=0).argmax()]].T)
    return sums / np.maximum(counts, 1)[:, None, None], np.concatenate(shapes)


def _similarity(templates: np.ndarray, max_lag: int) -> np.ndarray:
    """Return (num_units, num_units) cosines between templates, the largest over all lags up to `max_lag`."""
    num_samples = templates.shape[1]
    length = np.maximum(np.linalg.norm(templates, axis=(1, 2)), 1e-12)
    best = np.full((len(templates), len(templates)), -1.0)
    for lag in range(max_lag + 1):
        ahead, behind = templates[:, lag:], templates[:, : num_samples - lag]
        cosines = np.tensordot(ahead, behind, axes=((1, 2), (1, 2))) / length[:, None] / length
        best = np.maximum(best, np.maximum(cosines, cosines.T))
    return best


def _principal_components(shapes: np.ndarray, num_components: int) -> np.ndarray:
    """Return (num_samples, num_components) directions of largest variance, along the mean shape."""
    _, _, rows = np.linalg.svd(shapes, full_matrices=False)
    components = np.zeros((shapes.shape[1], num_components), dtype=np.float32)
    found = rows[:num_components].T
    components[:, : found.shape[1]] = found * np.where(shapes.mean(axis=0) @ found < 0, -1, 1)
    return components


def _write_spikes(folder: Path, frames: np.ndarray, unit_index: np.ndarray) -> None:
    np.save(folder / "spike_times.npy", frames.astype(np.int64))
    np.save(folder / "spike_templates.npy", unit_index)
    np.save(folder / "spike_clusters.npy", unit_index)


def _write_units(folder: Path, sorting: BaseSorting, units: _Units, groups: Sequence[SortedGroup]) -> None:
    np.save(folder / "templates.npy", (units.templates * units.scale[:, None]).astype(np.float32))
    np.save(folder / "template_ind.npy", units.recorded)
    np.save(folder / "similar_templates.npy", units.similarity.astype(np.float32))
    np.save(folder / "pc_feature_ind.npy", units.recorded)
    _write_table(folder, "unit_id", [str(unit_id) for unit_id in sorting.unit_ids])
    if len(groups) > 1:
        names = dict(zip(np.concatenate([g.unit_index for g in groups]), _names(groups), strict=True))
        _write_table(folder, "probe_group", [names.get(index, "") for index in range(len(sorting.unit_ids))])


def _names(groups: Sequence[SortedGroup]) -> list[str]:
    return [group.name for group in groups for _ in group.unit_index]


def _write_table(folder: Path, name: str, values: Sequence[str]) -> None:
    with (folder / f"cluster_{name}.tsv").open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["cluster_id", name])
        table.writerows(enumerate(values))


def _write_features(
    folder: Path,
    frames: np.ndarray,
    unit_index: np.ndarray,
    recording: BaseRecording,
    groups: Sequence[SortedGroup],
    units: _Units,
    config: PhyConfig,
    progress: ProgressCallback,
) -> None:
    """Write the amplitude and the features of each spike, chunk by chunk."""
    rate = recording.sampling_frequency
    before, length = _window(rate, config)
    shape = (len(frames), units.components.shape[1], units.near.shape[1])
    features = np.lib.format.open_memmap(folder / "pc_features.npy", "w+", dtype=np.float32, shape=shape)
    amplitudes = np.zeros(len(frames), dtype=np.float64)
    chunk = round(_CHUNK_S * rate)
    done, total = 0, recording.get_total_samples() * len(groups)
    for group in groups:
        mine = np.flatnonzero(np.isin(unit_index, group.unit_index))
        for segment, first in enumerate(segment_starts(recording)):
            num_samples = recording.get_num_samples(segment)
            for start in range(0, num_samples, chunk):
                stop = min(start + chunk, num_samples)
                low, high = np.searchsorted(frames[mine], (first + start, first + stop))
                if low < high:
                    traces = group.traces.read(segment, start - before, stop + length)
                for batch in range(low, high, _BATCH):
                    spikes = mine[batch : min(batch + _BATCH, high)]
                    samples = frames[spikes] - first - start  # of the windows' starts, in the traces
                    features[spikes], sizes = _project(traces, samples, unit_index[spikes], units)
                    amplitudes[spikes] = sizes * units.peak[unit_index[spikes]]
                done += stop - start
                progress("phy", done / rate, total / rate, "")
    features.flush()
    np.save(folder / "amplitudes.npy", amplitudes)


def _project(
    traces: np.ndarray, samples: np.ndarray, unit_index: np.ndarray, units: _Units
) -> tuple[np.ndarray, np.ndarray]:
    """Return features (num_spikes, num_components, num_near), and sizes relative to the unit's template."""
    length = units.components.shape[0]
    near, templates = units.near[unit_index], units.templates[unit_index]
    times = samples[:, None] + np.arange(length)
    waveforms = traces[times[:, :, None], near[:, None, :]] * (near >= 0)[:, None, :]
    features = np.tensordot(waveforms, units.components, axes=(1, 0)).transpose(0, 2, 1)
    energy = np.maximum((templates**2).sum(axis=(1, 2)), 1e-12)
    return features, (waveforms * templates).sum(axis=(1, 2)) / energy


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
    """Write params.py, and the raw traces where Phy is to have them and cannot read the recording's own."""
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
        write_binary_recording(recording, file_paths=files, dtype=dtype, n_jobs=1, progress_bar=False)
    lines = {
        "dat_path": paths,
        "n_channels_dat": recording.get_num_channels(),
        "dtype": dtype.name,
        "offset": offset,
        "sample_rate": float(recording.sampling_frequency),
        "hp_filtered": bool(recording.is_filtered()),
    }
    text = "".join(f"{name} = {value!r}\n" for name, value in lines.items())
    (partial / "params.py").write_text(text, encoding="utf-8")
    return source


def _flat_files(recording: BaseRecording) -> dict | None:
    """Return where the samples of all channels lie in order, for each segment one file; None if nowhere."""
    while isinstance(recording, SilencedRecording) and not recording._kwargs["channel_ids"]:
        recording = recording.get_parent()
    if not recording.binary_compatible_with(time_axis=0):
        return None
    found = recording.get_binary_description()
    whole = found["num_channels"] == recording.get_num_channels()
    return found if whole and len(found["file_paths"]) == recording.get_num_segments() else None
