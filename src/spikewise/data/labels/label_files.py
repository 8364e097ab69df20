"""Read labels, or any sorting, from files and folders; the path alone decides the format.

Nothing is unpickled or run: pickled arrays are refused, and Phy's ``params.py`` is only searched as text.
"""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from spikeinterface.core import (
    BaseRecording,
    BaseSorting,
    NpzSortingExtractor,
)
from spikeinterface.core.base import minimum_spike_dtype
from spikeinterface.core.zarrextractors import ZarrSortingExtractor

from spikewise.core.errors import LabelsError, MissingExtraError
from spikewise.core.untrusted import check_npz, load_npy, parsing, read_json
from spikewise.data.labels.curation import CURATION_FILE, apply_curation_file
from spikewise.data.labels.label_set import check_labels, make_sorting, segment_starts, segments_of
from spikewise.data.labels.label_tables import CSV_COLUMNS, read_table, required, seem_seconds
from spikewise.data.recordings.clock import read_times, samples_at

logger = logging.getLogger(__name__)

LABEL_FORMATS = {
    "Phy": "Phy or Kilosort folder (spike_times.npy); units of the group noise are left out",
    "SpikeInterface": "SpikeInterface sorting (folder, .zarr, .npz), analyzer or sorter folder",
    "Spikewise": "folder made by spikewise sort; its curation.json (spikewise gui) is applied",
    "NWB": "NWB file (.nwb) with a units table",
    "MEArec": "MEArec recording (.h5): its true spike trains",
    "CSV": f"table (.csv, .tsv, .txt) with the columns {CSV_COLUMNS}",
}
_MAX_SEGMENTS = 10_000
"""Most segments that a file may claim; chosen by hand."""

Reader = Callable[[Path, BaseRecording | None], BaseSorting]


def load_labels(path: str | Path, recording: BaseRecording) -> BaseSorting:
    """Read labels in any of :data:`LABEL_FORMATS`, and check them.

    Times in seconds (CSV, NWB) are times of the recording and become its nearest sample. Unit ids of a CSV
    become whole numbers if all are whole numbers.

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
        If the path is missing, of no known format or unreadable; and what :func:`check_labels` raises.
    MissingExtraError
        If the package that reads the format is not installed.
    """
    return check_labels(_read(Path(path), recording), recording)


def _read(path: Path, recording: BaseRecording | None) -> BaseSorting:
    try:
        if not path.exists():
            raise LabelsError(
                f"there are no labels at {path}", "a file or folder that exists", "check the path"
            )
        name, read, source = _find_format(path)
    except OSError as error:
        raise LabelsError(
            f"the labels {path} cannot be opened: {error.strerror}",
            "a file or folder that can be read",
            "check the path and its permissions",
        ) from error

    def refuse(reason: str) -> LabelsError:
        return LabelsError(
            f"the labels {path} cannot be read as {name}: {reason}",
            f"{name}: {LABEL_FORMATS[name]}",
            "check that the file is whole, or write the labels again",
        )

    with parsing(refuse):
        sorting = read(source, recording)
        sorting.to_spike_vector()  # some readers read the spikes only now
    return sorting


def load_sorting(path: str | Path, recording: BaseRecording | None = None) -> BaseSorting:
    """Read any sorting: a result of Spikewise, another sorter's output, true spikes.

    Parameters
    ----------
    path : str or Path
        File or folder, of any of :data:`LABEL_FORMATS`.
    recording : BaseRecording, optional
        Its recording. A CSV and an NWB file need it: they do not contain the sampling frequency.

    Raises
    ------
    LabelsError
        If it is missing or cannot be read, or if the recording is needed and not given.
    """
    return _read(Path(path), recording)


def _find_format(path: Path) -> tuple[str, Reader, Path]:
    """Return the name of the format, its reader, and the file or folder that contains the labels."""
    if path.is_dir():
        if (path / "spike_times.npy").is_file():
            return "Phy", _read_phy, path
        if (path / "numpysorting_info.json").is_file():
            return "SpikeInterface", _read_numpy_folder, path
        if (path / "sorting_cached.npz").is_file():
            return "SpikeInterface", _read_npz, path / "sorting_cached.npz"
        if (path / ".zgroup").is_file() or (path / "zarr.json").is_file():
            return "SpikeInterface", _read_zarr, path
        if (path / CURATION_FILE).is_file() and (path / "sorting").is_dir():
            return "Spikewise", _read_curated, path
        for name in ("sorting", "sorter_output", "truth"):
            if (path / name).is_dir():
                return _find_format(path / name)
    readers: dict[str, tuple[str, Reader]] = {
        ".npz": ("SpikeInterface", _read_npz),
        ".nwb": ("NWB", _read_nwb),
        ".h5": ("MEArec", _read_mearec),
        ".csv": ("CSV", read_table),
        ".tsv": ("CSV", read_table),
        ".txt": ("CSV", read_table),
    }
    if path.is_file() and path.suffix.lower() in readers:
        return (*readers[path.suffix.lower()], path)
    raise LabelsError(
        f"the format of the labels {path} is not known",
        "known: " + "; ".join(f"{name}: {text}" for name, text in LABEL_FORMATS.items()),
        "give a path of one of these kinds",
    )


def _read_phy(folder: Path, recording: BaseRecording | None) -> BaseSorting:
    names = ("spike_clusters.npy", "spike_templates.npy")
    clusters_file = next((folder / name for name in names if (folder / name).is_file()), None)
    if clusters_file is None:
        raise LabelsError(
            f"the folder {folder} has no file with the units of its spikes",
            f"besides spike_times.npy one of {' and '.join(names)}",
            "export the folder again",
        )
    times = load_npy(folder / "spike_times.npy").reshape(-1)
    clusters = load_npy(clusters_file).reshape(-1)
    if len(times) != len(clusters):
        raise LabelsError(
            f"the folder {folder} holds {len(times)} spike times and {len(clusters)} units of spikes",
            "one unit for each spike",
            "export the folder again",
        )
    if not np.isfinite(times).all():
        raise LabelsError(
            f"{np.count_nonzero(~np.isfinite(times))} spike times in {folder} are no numbers",
            "samples",
            "export the folder again",
        )
    if recording is not None and seem_seconds(times, recording):
        raise LabelsError(
            f"the spike times in {folder} are numbers such as {times[0]:.6g}, and none lies beyond the "
            f"{recording.get_total_duration():.6g} s of the recording",
            "samples; these seem to be seconds",
            "multiply them by the sampling frequency, or give a CSV with time_s and unit_id",
        )
    noise = [unit for unit, group in _phy_groups(folder).items() if group == "noise"]
    kept = ~np.isin(clusters, noise)
    frequency = _phy_sampling_frequency(folder)
    if frequency is None:
        logger.warning("%s has no params.py with sample_rate: the recording's frequency is used", folder)
        frequency = required(recording, folder).sampling_frequency
    spikes = np.zeros(kept.sum(), dtype=minimum_spike_dtype)
    starts = np.array([0] if recording is None else segment_starts(recording))
    frames = np.rint(times[kept]).astype(np.int64)  # global frames
    spikes["segment_index"] = np.maximum(0, segments_of(frames, starts))
    spikes["sample_index"] = frames - starts[spikes["segment_index"]]
    unit_ids, spikes["unit_index"] = np.unique(clusters[kept].astype(np.int64), return_inverse=True)
    return make_sorting(spikes, frequency, unit_ids, len(starts))


def _phy_groups(folder: Path) -> dict[int, str]:
    """Return the group of each unit; manual curation overrides the labels of Kilosort and Bombcell."""
    groups: dict[int, str] = {}
    for stems, column in _PHY_TABLES:
        files = [folder / f"{stem}{ending}" for stem in stems for ending in (".tsv", ".csv")]
        file = next((file for file in files if file.is_file()), None)
        if file is not None:
            groups |= _read_groups(file, column)
    return groups


_PHY_TABLES = (
    (("cluster_KSLabel",), "kslabel"),
    (("cluster_bc_unitType",), "bc_unittype"),
    (("cluster_info",), "group"),
    (("cluster_group", "cluster_groups"), "group"),
)
"""Tables of the groups of units, and their columns; older programs write .csv, and another name."""


def _read_groups(file: Path, column: str) -> dict[int, str]:
    """Read the groups of one table; rows without a unit or a group are left aside."""
    groups: dict[int, str] = {}
    with file.open(encoding="utf-8-sig", newline="") as lines:
        header = lines.readline()
        delimiter = next((sign for sign in "\t,;" if sign in header), "\t")
        names = [name.strip().strip('"').lower() for name in header.rstrip("\r\n").split(delimiter)]
        rows = csv.DictReader(lines, names, delimiter=delimiter)
        for row in rows:
            group = (row.get(column) or "").strip().lower()
            unit = (row.get("cluster_id") or row.get("id") or "").strip()
            if not group or unit.lower() in ("", "nan"):
                continue
            number = pd.to_numeric(unit, errors="coerce")
            if not number == np.rint(number):
                raise LabelsError(
                    f"line {rows.line_num + 1} of {file} has the unit {unit!r}",
                    "the number of a unit",
                    "correct the line, or remove it",
                )
            groups[int(number)] = group
    return groups


def _phy_sampling_frequency(folder: Path) -> float | None:
    """Return ``sample_rate`` of params.py, or None; the file is not run."""
    file = folder / "params.py"
    text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
    found = re.search(r"^\s*sample_rate\s*=\s*([0-9.eE+-]+)", text, re.MULTILINE)
    return float(found.group(1)) if found else None


def _read_numpy_folder(folder: Path, recording: BaseRecording | None) -> BaseSorting:
    # SpikeInterface's own reader would unpickle the units' properties, which labels do not need.
    info = read_json(folder / "numpysorting_info.json")
    spikes = load_npy(folder / "spikes.npy").astype(minimum_spike_dtype)
    unit_ids, num_segments = np.array(info["unit_ids"]), int(info["num_segments"])
    if unit_ids.ndim != 1 or unit_ids.dtype.kind not in "iuSU":
        raise ValueError("its unit ids are not a list of whole numbers or texts")
    if not 1 <= num_segments <= _MAX_SEGMENTS:
        raise ValueError(f"its number of segments is {num_segments}")
    for name, count in (("unit_index", len(unit_ids)), ("segment_index", num_segments)):
        if len(spikes) and not 0 <= spikes[name].min() <= spikes[name].max() < count:
            raise ValueError(f"a {name} of its spikes is not below {count}")
    return make_sorting(spikes, float(info["sampling_frequency"]), unit_ids, num_segments)


def _read_curated(folder: Path, recording: BaseRecording | None) -> BaseSorting:
    """Read a result and apply its manual curation; the sorting on disk does not change."""
    _, read, source = _find_format(folder / "sorting")
    return apply_curation_file(read(source, recording), folder / CURATION_FILE)


def _read_npz(file: Path, recording: BaseRecording | None) -> BaseSorting:
    check_npz(file)
    return NpzSortingExtractor(file)


def _read_zarr(folder: Path, recording: BaseRecording | None) -> BaseSorting:
    for name in (".zarray", ".zmetadata", "zarr.json"):
        for file in folder.rglob(name):
            if "pickle" in file.read_text(encoding="utf-8"):
                raise LabelsError(
                    f"the folder {folder} holds pickled arrays ({file.relative_to(folder)})",
                    "arrays without pickles: a pickle can run any code",
                    "save the sorting with sorting.save(folder=...)",
                )
    return ZarrSortingExtractor(folder, zarr_group="sorting" if (folder / "sorting").is_dir() else None)


def _read_nwb(file: Path, recording: BaseRecording | None) -> BaseSorting:
    try:
        import h5py  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("h5py", "nwb", "reading labels from NWB") from error
    from spikeinterface.extractors.nwbextractors import NwbSortingExtractor

    recording = required(recording, file)
    units = NwbSortingExtractor(file, sampling_frequency=recording.sampling_frequency, t_start=0.0)
    trains = [units.segments[0].get_unit_spike_train_in_seconds(unit_id) for unit_id in units.unit_ids]
    times = np.concatenate([np.empty(0), *trains])
    spikes = np.zeros(len(times), dtype=minimum_spike_dtype)
    spikes["unit_index"] = np.repeat(np.arange(len(trains)), list(map(len, trains)))
    for segment_index in range(recording.get_num_segments()):
        later = times >= read_times(recording, segment_index, 0, 1)[0] if segment_index else slice(None)
        spikes["segment_index"][later] = segment_index
        spikes["sample_index"][later] = samples_at(recording, times[later], segment_index)
    return make_sorting(spikes, recording.sampling_frequency, units.unit_ids, recording.get_num_segments())


def _read_mearec(file: Path, recording: BaseRecording | None) -> BaseSorting:
    try:
        import MEArec  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("MEArec", "simulate", "reading labels from MEArec") from error
    from spikeinterface.extractors.neoextractors.mearec import MEArecSortingExtractor

    return MEArecSortingExtractor(file)
