"""Labels: spikes of known units, from which the network learns.

Labels are a SpikeInterface sorting, with spike times in samples of each segment and unit ids as in their
source, and the interval in which they are complete.

Conventions: a global frame counts samples from 0 over all segments laid end to end, and global seconds are
global frames over the sampling frequency; intervals are half open. Nothing that is read here is unpickled or
run: pickled arrays and the code in Phy's ``params.py`` stay closed.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd
from spikeinterface.core import (
    BaseRecording,
    BaseSorting,
    NpzSortingExtractor,
    NumpySorting,
    SpikeVectorSortingSegment,
)
from spikeinterface.core.base import minimum_spike_dtype
from spikeinterface.core.zarrextractors import ZarrSortingExtractor

from spikewise.config import LabelsConfig
from spikewise.errors import LabelsError, MissingExtraError

logger = logging.getLogger(__name__)

CSV_COLUMNS = "sample_index,unit_id or time_s,unit_id, and optionally segment_index"
LABEL_FORMATS = {
    "Phy": "Phy or Kilosort folder (spike_times.npy); units of the group noise are left out",
    "SpikeInterface": "SpikeInterface sorting (folder, .zarr, .npz), analyzer or sorter folder",
    "Spikewise": "folder made by spikewise sort",
    "NWB": "NWB file (.nwb) with a units table",
    "MEArec": "MEArec recording (.h5): its true spike trains",
    "CSV": f"file (.csv) with the columns {CSV_COLUMNS}",
}
# A header may round the sampling frequency (30000 for 29999.84 Hz); another frequency differs by far more.
_FREQUENCY_TOLERANCE = 1e-3
_READ_ERRORS = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    RuntimeError,
    OverflowError,
    csv.Error,
    pd.errors.ParserWarning,
    zipfile.BadZipFile,
)

Reader = Callable[[Path, BaseRecording], BaseSorting]


class Traces(Protocol):
    """What waveforms are read from: preprocessed traces, zero outside the recording."""

    @property
    def sampling_frequency(self) -> float:
        """Samples in a second."""

    def read(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return float32 traces (stop - start, num_channels)."""


@dataclass(frozen=True)
class LabelSet:
    """Labels and the interval in which they are complete.

    Attributes
    ----------
    sorting : BaseSorting
        All labels, also those outside the interval.
    start_frame, stop_frame : int
        The interval, in global frames, half open.
    source : str
        Where the labels came from.
    segment_starts : tuple of int
        First global frame of each segment.
    """

    sorting: BaseSorting
    start_frame: int
    stop_frame: int
    source: str
    segment_starts: tuple[int, ...] = (0,)

    def seconds(self, sampling_frequency: float | None = None) -> tuple[float, float]:
        """Return start and end of the interval in global seconds, by default at the sorting's frequency."""
        frequency = sampling_frequency or self.sorting.sampling_frequency
        return self.start_frame / frequency, self.stop_frame / frequency


@dataclass(frozen=True)
class KeptSpikes:
    """Spikes inside the interval in order of time, then unit; the arrays are (num_spikes,).

    Attributes
    ----------
    global_frame, unit_index : ndarray of int64
    is_positive : ndarray of bool
        True for the first K spikes of each unit: the examples that train.
    unit_ids : ndarray
        (num_units,) id of each unit index.
    """

    global_frame: np.ndarray
    unit_index: np.ndarray
    is_positive: np.ndarray
    unit_ids: np.ndarray


def load_labels(path: str | Path, recording: BaseRecording) -> BaseSorting:
    """Read labels of any of :data:`LABEL_FORMATS`, found from the path alone, and check them.

    Times in seconds (CSV, NWB) are those of the recording and go to its nearest sample. Unit ids of a CSV
    become whole numbers where all are.

    Parameters
    ----------
    path : str or Path
        File or folder.
    recording : BaseRecording
        The recording that the labels belong to.

    Returns
    -------
    BaseSorting
        The labels in memory, without repeated rows, at the recording's sampling frequency.

    Raises
    ------
    LabelsError
        If the path is missing, of no known format or unreadable, or what :func:`check_labels` raises.
    MissingExtraError
        If the package that reads the format is not installed.
    """
    path = Path(path)
    if not path.exists():
        raise LabelsError(f"there are no labels at {path}", "a file or folder that exists", "check the path")
    name, read, place = _find_format(path)
    try:
        sorting = read(place, recording)
        sorting.to_spike_vector()  # some readers read only now
    except (LabelsError, MissingExtraError):
        raise
    except _READ_ERRORS as error:
        raise LabelsError(
            f"the labels {path} cannot be read as {name}: {type(error).__name__}: {error}",
            f"{name}: {LABEL_FORMATS[name]}",
            "check that the file is whole, or write the labels again",
        ) from error
    return check_labels(sorting, recording)


def _find_format(path: Path) -> tuple[str, Reader, Path]:
    """Return the name of the format, its reader, and the file or folder in which the labels really are."""
    if path.is_dir():
        if (path / "spike_times.npy").is_file():
            return "Phy", _read_phy, path
        if (path / "numpysorting_info.json").is_file():
            return "SpikeInterface", _read_numpy_folder, path
        if (path / "sorting_cached.npz").is_file():
            return "SpikeInterface", _read_npz, path / "sorting_cached.npz"
        if (path / ".zgroup").is_file() or (path / "zarr.json").is_file():
            return "SpikeInterface", _read_zarr, path
        for name in ("sorting", "sorter_output", "truth"):
            if (path / name).is_dir():
                return _find_format(path / name)
    readers: dict[str, tuple[str, Reader]] = {
        ".npz": ("SpikeInterface", _read_npz),
        ".nwb": ("NWB", _read_nwb),
        ".h5": ("MEArec", _read_mearec),
        ".csv": ("CSV", _read_csv),
    }
    if path.is_file() and path.suffix.lower() in readers:
        return (*readers[path.suffix.lower()], path)
    raise LabelsError(
        f"the format of the labels {path} is not known",
        "known: " + "; ".join(f"{name}: {text}" for name, text in LABEL_FORMATS.items()),
        "give a path of one of these kinds",
    )


def _read_phy(folder: Path, recording: BaseRecording) -> BaseSorting:
    names = ("spike_clusters.npy", "spike_templates.npy")
    clusters_file = next((folder / name for name in names if (folder / name).is_file()), None)
    if clusters_file is None:
        raise LabelsError(
            f"the folder {folder} holds no units of its spikes",
            f"beside spike_times.npy one of {' and '.join(names)}",
            "export the folder again",
        )
    times = np.load(folder / "spike_times.npy", allow_pickle=False).reshape(-1)
    clusters = np.load(clusters_file, allow_pickle=False).reshape(-1)
    if len(times) != len(clusters):
        raise LabelsError(
            f"{folder} holds {len(times)} spike times and {len(clusters)} units of spikes",
            "one unit for each spike",
            "export the folder again",
        )
    noise = [unit for unit, group in _phy_groups(folder).items() if group == "noise"]
    kept = ~np.isin(clusters, noise)
    frequency = _phy_sampling_frequency(folder)
    if frequency is None:
        logger.warning("%s has no params.py with sample_rate: the recording's frequency is assumed", folder)
        frequency = recording.sampling_frequency
    spikes = np.zeros(kept.sum(), dtype=minimum_spike_dtype)
    spikes["sample_index"] = np.rint(times[kept])
    unit_ids, spikes["unit_index"] = np.unique(clusters[kept].astype(np.int64), return_inverse=True)
    return make_sorting(spikes, frequency, unit_ids, 1)


def _phy_groups(folder: Path) -> dict[int, str]:
    """Return the group of each unit; what a person curated overrides Kilosort's own label."""
    groups: dict[int, str] = {}
    for stem, column in (
        ("cluster_KSLabel", "KSLabel"),
        ("cluster_info", "group"),
        ("cluster_group", "group"),
    ):
        file = folder / f"{stem}.tsv"
        if not file.is_file():
            continue
        with file.open(encoding="utf-8-sig", newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                if row.get(column):
                    groups[int(row.get("cluster_id") or row["id"])] = row[column].strip().lower()
    return groups


def _phy_sampling_frequency(folder: Path) -> float | None:
    """Return ``sample_rate`` of params.py, which is not run, or None."""
    file = folder / "params.py"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    found = re.search(r"^\s*sample_rate\s*=\s*([0-9.eE+-]+)", text, re.MULTILINE)
    return float(found.group(1)) if found else None


def _read_numpy_folder(folder: Path, recording: BaseRecording) -> BaseSorting:
    # SpikeInterface's own reader would unpickle the units' properties, which labels do not need.
    info = json.loads((folder / "numpysorting_info.json").read_text(encoding="utf-8"))
    spikes = np.load(folder / "spikes.npy", allow_pickle=False).astype(minimum_spike_dtype)
    num_segments = int(info["num_segments"])
    return make_sorting(spikes, float(info["sampling_frequency"]), np.array(info["unit_ids"]), num_segments)


def _read_npz(file: Path, recording: BaseRecording) -> BaseSorting:
    return NpzSortingExtractor(file)


def _read_zarr(folder: Path, recording: BaseRecording) -> BaseSorting:
    for name in (".zarray", ".zmetadata", "zarr.json"):
        for file in folder.rglob(name):
            if "pickle" in file.read_text(encoding="utf-8"):
                raise LabelsError(
                    f"{folder} holds pickled arrays ({file.relative_to(folder)})",
                    "arrays without pickles, since a pickle can run any code",
                    "save the sorting with sorting.save(folder=...)",
                )
    return ZarrSortingExtractor(folder, zarr_group="sorting" if (folder / "sorting").is_dir() else None)


def _read_nwb(file: Path, recording: BaseRecording) -> BaseSorting:
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("h5py", "nwb", "reading labels from NWB") from error
    from spikeinterface.extractors.nwbextractors import NwbSortingExtractor

    units = NwbSortingExtractor(file, sampling_frequency=recording.sampling_frequency, t_start=0.0)
    trains = [units.segments[0].get_unit_spike_train_in_seconds(unit_id) for unit_id in units.unit_ids]
    spikes = np.zeros(sum(map(len, trains)), dtype=minimum_spike_dtype)
    spikes["sample_index"] = _nearest_samples(np.concatenate([np.empty(0), *trains]), recording, 0)
    spikes["unit_index"] = np.repeat(np.arange(len(trains)), list(map(len, trains)))
    return make_sorting(spikes, recording.sampling_frequency, units.unit_ids, 1)


def _read_mearec(file: Path, recording: BaseRecording) -> BaseSorting:
    try:
        import MEArec  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("MEArec", "simulate", "reading labels from MEArec") from error
    from spikeinterface.extractors.neoextractors.mearec import MEArecSortingExtractor

    return MEArecSortingExtractor(file)


def _read_csv(file: Path, recording: BaseRecording) -> BaseSorting:
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
        text = pd.read_csv(
            file,
            dtype=str,
            keep_default_na=False,
            index_col=False,
            skip_blank_lines=False,
            skipinitialspace=True,
            encoding="utf-8-sig",
        )
    text.columns = text.columns.str.strip()
    column = _check_header(file, list(text.columns))
    table = text.fillna("").apply(lambda cells: cells.str.strip())
    table = table[(table != "").any(axis=1)]

    numbers = pd.to_numeric(table[column], errors="coerce").to_numpy(float)
    _check_lines(file, table[column], np.isfinite(numbers), "a number")
    if column == "sample_index":
        _check_lines(file, table[column], numbers == np.rint(numbers), "a whole number")
    _check_lines(file, table["unit_id"], (table["unit_id"] != "").to_numpy(), "a unit id")
    spikes = np.zeros(len(table), dtype=minimum_spike_dtype)
    num_segments = recording.get_num_segments()
    if "segment_index" in table:
        segments = pd.to_numeric(table["segment_index"], errors="coerce")
        allowed = segments.isin(range(num_segments)).to_numpy()
        _check_lines(
            file, table["segment_index"], allowed, f"a segment of the recording, 0 to {num_segments - 1}"
        )
        spikes["segment_index"] = segments
    for segment_index in range(num_segments):
        here = spikes["segment_index"] == segment_index
        first = recording.sample_index_to_time(0, segment_index) if column == "time_s" else 0
        _check_lines(
            file, table[column][here], numbers[here] >= first, f"at least {first:g}, the segment's start"
        )
        samples = numbers if column == "sample_index" else _nearest_samples(numbers, recording, segment_index)
        spikes["sample_index"][here] = samples[here]
    names = table["unit_id"].to_numpy(str)
    whole = table["unit_id"].str.fullmatch(r"[+-]?\d+").all()
    unit_ids, spikes["unit_index"] = np.unique(
        names.astype(np.int64) if whole else names, return_inverse=True
    )
    return make_sorting(spikes, recording.sampling_frequency, unit_ids, num_segments)


def _check_header(file: Path, columns: list[str]) -> str:
    """Return which column holds the times; warn of columns that are not used."""
    times = [name for name in ("sample_index", "time_s") if name in columns]
    if not times or "unit_id" not in columns:
        raise LabelsError(
            f"the header of {file} is {','.join(columns)!r}",
            f"allowed: {CSV_COLUMNS}",
            "correct the first line",
        )
    ignored = [name for name in columns if name not in (times[0], "unit_id", "segment_index")]
    if ignored:
        logger.warning("%s: the columns %s are not used", file, ", ".join(ignored))
    return times[0]


def _check_lines(file: Path, cells: pd.Series, good: np.ndarray, allowed: str) -> None:
    """Raise at the first of the cells that is not good; their index counts lines after the header."""
    if good.all():
        return
    bad = cells[~good]
    raise LabelsError(
        f"line {bad.index[0] + 2} of {file} has the {cells.name} {bad.iloc[0]!r}",
        allowed,
        f"correct the line ({len(bad)} in all)" if len(bad) > 1 else "correct the line",
    )


def _nearest_samples(times_s: np.ndarray, recording: BaseRecording, segment_index: int) -> np.ndarray:
    """Return the sample nearest to each time of the recording's clock; outside stays outside."""
    samples = np.asarray(recording.time_to_sample_index(times_s, segment_index))
    if not recording.has_time_vector(segment_index):
        return samples  # SpikeInterface rounds to the nearest
    # With a time for each sample, it gives the last sample that is not later.
    clock = recording.get_times(segment_index)
    last = len(clock) - 1
    following = np.minimum(samples + 1, last)
    samples = np.where(clock[following] - times_s < times_s - clock[samples], following, samples)
    return np.where(times_s > clock[last] + 1 / recording.sampling_frequency, last + 1, samples)


def make_sorting(
    spikes: np.ndarray, sampling_frequency: float, unit_ids: np.ndarray, num_segments: int
) -> BaseSorting:
    """Return an in-memory sorting of spikes in any order, with segments that hold no spike too."""
    order = np.lexsort((spikes["unit_index"], spikes["sample_index"], spikes["segment_index"]))
    sorting = NumpySorting(spikes[order], sampling_frequency, unit_ids)
    # NumpySorting ends with the last segment that holds a spike.
    for segment_index in range(sorting.get_num_segments(), num_segments):
        sorting.add_sorting_segment(SpikeVectorSortingSegment(spikes[:0], segment_index, unit_ids))
    return sorting


def check_labels(sorting: BaseSorting, recording: BaseRecording) -> BaseSorting:
    """Check that labels fit the recording, and take out rows that repeat unit and sample of another.

    Parameters
    ----------
    sorting : BaseSorting
        The labels.
    recording : BaseRecording
        The recording that they belong to.

    Returns
    -------
    BaseSorting
        The labels in memory, in order of time, at the recording's sampling frequency.

    Raises
    ------
    LabelsError
        If the sampling frequency or the number of segments differs, if there is no label or only one, or if
        one lies outside the recording.
    """
    frequency, expected = sorting.sampling_frequency, recording.sampling_frequency
    if abs(frequency - expected) > _FREQUENCY_TOLERANCE * expected:
        raise LabelsError(
            f"the labels have a sampling frequency of {frequency:g} Hz",
            f"that of the recording, {expected:g} Hz",
            "give the labels of this recording, or give spike times in seconds (CSV with time_s)",
        )
    num_segments = recording.get_num_segments()
    if sorting.get_num_segments() != num_segments:
        raise LabelsError(
            f"the labels have {sorting.get_num_segments()} segments",
            f"as many as the recording, which has {num_segments}",
            "give the labels of this recording, or a CSV with segment_index",
        )
    spikes = sorting.to_spike_vector()
    if len(spikes) < 2:
        raise LabelsError(
            "there is only one label" if len(spikes) else "there are no labels",
            "at least two labelled spikes, better 30 for each unit",
            "label more spikes, or leave the labels out to have a sorter make them",
        )
    _check_inside(spikes, sorting.unit_ids, recording)
    distinct = np.unique(spikes)
    if len(distinct) < len(spikes):
        logger.warning("%d labels repeat unit and sample of another: left out", len(spikes) - len(distinct))
    return make_sorting(distinct, expected, sorting.unit_ids, num_segments)


def _check_inside(spikes: np.ndarray, unit_ids: np.ndarray, recording: BaseRecording) -> None:
    lengths = np.array([recording.get_num_samples(index) for index in range(recording.get_num_segments())])
    outside = (spikes["sample_index"] < 0) | (spikes["sample_index"] >= lengths[spikes["segment_index"]])
    if not outside.any():
        return
    first = spikes[outside][0]
    length = lengths[first["segment_index"]]
    raise LabelsError(
        f"{outside.sum()} of {len(spikes)} labels lie outside the recording, the first at sample "
        f"{first['sample_index']} of segment {first['segment_index']} (unit {unit_ids[first['unit_index']]})",
        f"samples 0 to {length - 1}, since the segment lasts {length / recording.sampling_frequency:.3f} s",
        "give the labels of this recording, or take these out",
    )


def segment_starts(recording: BaseRecording) -> tuple[int, ...]:
    """Return the first global frame of each segment."""
    lengths = [recording.get_num_samples(index) for index in range(recording.get_num_segments())]
    return tuple(int(start) for start in np.cumsum([0, *lengths[:-1]]))


def make_label_set(
    sorting: BaseSorting, recording: BaseRecording, config: LabelsConfig, source: str
) -> LabelSet:
    """Check labels and fix the interval in which they are complete.

    The interval is ``config.label_interval``, or goes from the first label to the last.

    Raises
    ------
    LabelsError
        What :func:`check_labels` raises; if the interval leaves the recording or holds no label; if a unit
        has none in it, since nothing of it could be learnt while its spikes would count as noise.
    """
    sorting = check_labels(sorting, recording)
    whole = LabelSet(sorting, 0, recording.get_total_samples(), source, segment_starts(recording))
    frames = kept_spikes(whole, None).global_frame
    start_frame, stop_frame = int(frames[0]), int(frames[-1]) + 1
    if config.label_interval is not None:
        start_frame, stop_frame = _frames_of(config.label_interval, whole)
    label_set = replace(whole, start_frame=start_frame, stop_frame=stop_frame)
    _check_units(label_set)
    return label_set


def _frames_of(interval_s: tuple[float, float], whole: LabelSet) -> tuple[int, int]:
    start, stop = (round(second * whole.sorting.sampling_frequency) for second in interval_s)
    if stop > whole.stop_frame or start >= stop:
        raise LabelsError(
            f"the label interval is {interval_s[0]:g} to {interval_s[1]:g} s",
            f"at least one sample between 0 and the end of the recording, {whole.seconds()[1]:.6f} s",
            "change label_interval",
        )
    return start, stop


def _check_units(label_set: LabelSet) -> None:
    """Raise unless each unit has a label in the interval."""
    start_s, stop_s = label_set.seconds()
    kept = kept_spikes(label_set, None)
    counts = np.bincount(kept.unit_index, minlength=len(kept.unit_ids))
    if not counts.any():
        raise LabelsError(
            f"no label lies in the label interval, {start_s:g} to {stop_s:g} s",
            "an interval with labels of every unit",
            "change label_interval, or leave it out",
        )
    absent = [str(unit_id) for unit_id in kept.unit_ids[counts == 0]]
    if absent:
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        raise LabelsError(
            f"the units {', '.join(absent[:10])}{more} have no label in the label interval, "
            f"{start_s:g} to {stop_s:g} s",
            "at least one label of each unit in it",
            "widen label_interval, or remove these units from the labels",
        )


def kept_spikes(label_set: LabelSet, labels_per_unit: int | None) -> KeptSpikes:
    """Return the spikes inside the interval, of which the first `labels_per_unit` of each unit are positive.

    With None all are.
    """
    spikes = label_set.sorting.to_spike_vector()
    frames = spikes["sample_index"] + np.array(label_set.segment_starts)[spikes["segment_index"]]
    inside = (frames >= label_set.start_frame) & (frames < label_set.stop_frame)
    frames, units = frames[inside], spikes["unit_index"][inside].astype(np.int64)
    order = np.lexsort((units, frames))
    frames, units = frames[order], units[order]
    is_positive = np.ones(len(frames), dtype=bool)
    if labels_per_unit is not None:
        for unit_index in range(len(label_set.sorting.unit_ids)):
            is_positive[np.flatnonzero(units == unit_index)[labels_per_unit:]] = False
    return KeptSpikes(frames, units, is_positive, label_set.sorting.unit_ids)


def mean_waveforms(label_set: LabelSet, traces: Traces, max_spikes: int, radius_ms: float) -> np.ndarray:
    """Return the mean waveform of each unit over at most `max_spikes` labels spread over the interval.

    Parameters
    ----------
    label_set : LabelSet
        The units and their spikes.
    traces : Traces
        Preprocessed traces; they are read in order of time.
    max_spikes : int
        Largest number of spikes of a unit that are read.
    radius_ms : float
        How far the waveform goes before and after the spike.

    Returns
    -------
    ndarray of float32
        (num_units, num_samples, num_channels), zeros for a unit without spikes; the spike is in the middle.
    """
    kept = kept_spikes(label_set, None)
    num_units = len(kept.unit_ids)
    chosen = []
    for unit_index in range(num_units):
        places = np.flatnonzero(kept.unit_index == unit_index)
        spread = np.linspace(0, len(places) - 1, min(len(places), max_spikes))
        chosen.append(places[np.rint(spread).astype(np.int64)])
    starts = np.array(label_set.segment_starts)
    radius = max(1, round(radius_ms * traces.sampling_frequency / 1000))
    sums: list[np.ndarray | int] = [0] * num_units
    for place in np.sort(np.concatenate(chosen)):
        frame, unit_index = kept.global_frame[place], kept.unit_index[place]
        segment_index = int(np.searchsorted(starts, frame, side="right")) - 1
        sample = int(frame - starts[segment_index])
        sums[unit_index] = sums[unit_index] + traces.read(segment_index, sample - radius, sample + radius + 1)
    return np.stack([total / max(1, len(places)) for total, places in zip(sums, chosen, strict=True)])


def split_labels_by_group(label_set: LabelSet, readers: Mapping[str, Traces]) -> dict[str, LabelSet]:
    """Give each unit to the group on which its mean waveform has the largest peak.

    Parameters
    ----------
    label_set : LabelSet
        Labels of the whole recording.
    readers : mapping of str to Traces
        Preprocessed traces, in noise units, of each group (probe, shank or tetrode).

    Returns
    -------
    dict of str to LabelSet
        The labels of each group that has any; with one group nothing is read.
    """
    if len(readers) == 1:
        return {name: label_set for name in readers}
    peaks = np.stack(
        [abs(mean_waveforms(label_set, traces, 50, 0.5)).max(axis=(1, 2)) for traces in readers.values()]
    )
    group_of_unit = peaks.argmax(axis=0)
    unit_ids = label_set.sorting.unit_ids
    return {
        name: replace(label_set, sorting=label_set.sorting.select_units(unit_ids[group_of_unit == group]))
        for group, name in enumerate(readers)
        if (group_of_unit == group).any()
    }
