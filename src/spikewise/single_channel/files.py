"""Files of single-channel waveforms and signals: their content as plain arrays, and the checks of it.

Conventions: a signal is ``(num_samples,)``, its ``sample_index`` counts from 0. MATLAB counts from 1; only
:func:`from_matlab` converts. Nothing is unpickled.

In the simulations of Wave_Clus (Quiroga et al. 2004, Neural Comput. 16:1661) the time of a spike is that of
its first sample. Its peak follows about 22 samples later.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from scipy.io import loadmat
from spikeinterface.core import BaseRecording

from spikewise.core.errors import WaveformsError
from spikewise.core.untrusted import check_hdf5, check_matlab, load_npy, load_npz, parsing

SNIPPET_FORMATS = {
    ".mat": "simulation of Wave_Clus (data, spike_times, spike_class, samplingInterval), result of wave_clus "
    "(spikes, cluster_class), or a matrix of waveforms",
    ".npz": "arrays waveforms (or spikes), labels, sampling_frequency (or fs), sample_index (or times); "
    "or a simulation: data (or traces), times, labels, fs",
    ".npy": "one array of waveforms",
    ".csv": "table with a row for each spike; all columns are samples, except label, unit_id, unit or "
    "cluster, and time_s or sample_index",
    ".tsv": "the same with tabs",
    ".txt": "the same with tabs, commas, semicolons or spaces",
}
"""What a file of each ending may hold."""
SIGNAL_KEYS = ("data", "traces", "signal", "array")
"""Names of the array that holds a signal."""
_RATE_KEYS = ("sampling_frequency", "fs", "sr")
"""Names of the number that is the sampling frequency."""


class RawChannel(NamedTuple):
    """The signal of one electrode, with its true spikes if they are known.

    ``signal`` is (num_samples,) float32, ``sampling_frequency`` in Hz. ``sample_index`` (num_spikes,) int64,
    ``labels`` (num_spikes,) and ``is_overlap`` (num_spikes,) bool describe the true spikes, or are None.
    ``recording`` is what the signal was read from, whose clock labels in seconds follow.
    """

    signal: np.ndarray
    sampling_frequency: float
    sample_index: np.ndarray | None = None
    labels: np.ndarray | None = None
    is_overlap: np.ndarray | None = None
    recording: BaseRecording | None = None


def load_wave_clus_signal(path: str | Path, sampling_frequency: float | None = None) -> RawChannel:
    """Read a simulation of Wave_Clus, .mat or .npz: the signal and its true spikes.

    Parameters
    ----------
    path : str or Path
        The file.
    sampling_frequency : float, optional
        In Hz, used if the file does not hold it.

    Raises
    ------
    WaveformsError
        If the file cannot be read, or lacks the signal, the true spikes or the sampling frequency.
    """
    path = Path(path)
    with reading(path):
        return with_truth(load_arrays(path), path, sampling_frequency)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Check that a file exists, and turn every error while it is read into a WaveformsError."""
    suffix = path.suffix.lower()
    if not path.is_file():
        given = f"{path} is a folder" if path.is_dir() else f"there is no file {path}"
        raise WaveformsError(given, "a file of waveforms", "check the path")
    if suffix not in SNIPPET_FORMATS:
        known = "; ".join(f"{ending}: {text}" for ending, text in SNIPPET_FORMATS.items())
        raise WaveformsError(f"the ending of {path} is not known", f"allowed are {known}", "convert the file")
    if path.stat().st_size == 0:
        raise WaveformsError(f"the file {path} is empty", SNIPPET_FORMATS[suffix], "write or copy it again")

    def refuse(reason: str) -> WaveformsError:
        return WaveformsError(
            f"the file {path} cannot be read: {reason}",
            f"a complete file of plain numbers, no Python objects: {SNIPPET_FORMATS[suffix]}",
            "check that it was copied completely, or write it again",
        )

    with parsing(refuse):
        yield


def load_arrays(path: Path) -> dict[str, Any]:
    """Return the content of a .mat, .npz or .npy: arrays, lists (MATLAB cells), dictionaries (structs).

    The only array of an .npy is called ``array``.
    """
    if path.suffix.lower() == ".mat":
        if h5py.is_hdf5(path):
            with h5py.File(path, "r") as file:
                return {name: _of_hdf5(item, file) for name, item in file.items() if not name.startswith("#")}
        check_matlab(path)
        variables = loadmat(path, appendmat=False)
        return {name: _of_matlab(value) for name, value in variables.items() if not name.startswith("__")}
    return dict(load_npz(path)) if zipfile.is_zipfile(path) else {"array": load_npy(path)}


def _of_matlab(value: Any) -> Any:
    """Return a variable of an older MATLAB file as an array, a list (a cell) or a dictionary (a struct)."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.names:
        return {name: _of_matlab(value[name].flat[0]) for name in value.dtype.names} if value.size else {}
    return [_of_matlab(item) for item in value.flat] if value.dtype.kind == "O" else value


def _of_hdf5(item: Any, file: h5py.File) -> Any:
    """Return a variable of a MATLAB 7.3 file in the same way; HDF5 stores the axes in reverse order."""
    if isinstance(item, h5py.Group):
        return {name: _of_hdf5(part, file) for name, part in item.items()}
    check_hdf5(item)
    if h5py.check_ref_dtype(item.dtype):
        return [_of_hdf5(file[reference], file) for reference in item[()].T.flat]
    return np.empty((0, 0)) if "MATLAB_empty" in item.attrs else item[()].T


def missing(arrays: dict[str, Any], path: Path, needed: str) -> WaveformsError:
    """Return the error that says what a file holds and what it should hold."""
    held = ", ".join(
        f"{name} {value.shape}" if isinstance(value, np.ndarray) else name for name, value in arrays.items()
    )
    return WaveformsError(
        f"the file {path} holds {held or 'nothing'}",
        f"needed: {needed}",
        "rename the arrays, or name them (waveforms_key, labels_key)",
    )


def channel_of(arrays: dict[str, Any], path: Path, sampling_frequency: float | None) -> RawChannel:
    """Return the single channel among the arrays of a file, with its true spikes if the file holds them."""
    key = next((name for name in SIGNAL_KEYS if name in arrays), None)
    if key is None:
        raise missing(arrays, path, f"a signal called {' or '.join(SIGNAL_KEYS)}")
    signal = single_channel(arrays[key], f"{key} of {path}").astype(np.float32)
    frequency = frequency_of(arrays, sampling_frequency)
    if frequency is None:
        raise WaveformsError(
            f"the file {path} does not hold its sampling frequency",
            "a number called samplingInterval (in ms), sr or fs",
            "give the sampling frequency in Hz",
        )
    frequency = checked_frequency(frequency, str(path))
    name = f"the spike times of {path}"
    if "spike_times" in arrays and "spike_class" in arrays:
        times, labels = _cell(arrays["spike_times"], 0), _cell(arrays["spike_class"], 0)
        overlap = _cell(arrays["spike_class"], 1)
        index = from_matlab(np.empty(0) if times is None else times, name)
    elif path.suffix.lower() != ".mat" and "times" in arrays and "labels" in arrays:
        index, labels, overlap = as_whole(arrays["times"], name), arrays["labels"], arrays.get("is_overlap")
    else:
        return RawChannel(signal, frequency)
    labels = as_labels(np.empty(0) if labels is None else labels, str(path))
    overlap = None if overlap is None or not np.size(overlap) else np.ravel(overlap).astype(bool)
    for what, values in (("units", labels), ("overlap flags", overlap)):
        if values is not None and len(values) != len(index):
            raise WaveformsError(
                f"the file {path} has {len(index)} spike times and {len(values)} {what} of spikes",
                "one for each spike",
                "check how it was written",
            )
    return RawChannel(signal, frequency, index, labels, overlap)


def with_truth(arrays: dict[str, Any], path: Path, sampling_frequency: float | None) -> RawChannel:
    """Return the single channel and its true spikes; raise if the file holds none."""
    channel = channel_of(arrays, path, sampling_frequency)
    if channel.sample_index is None:
        raise missing(arrays, path, "data, spike_times and spike_class; in an .npz data, times and labels")
    return channel


def _cell(value: Any, position: int) -> np.ndarray | None:
    """Return the numbers at a position of a MATLAB cell, or None; cells may be nested."""
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    parts = value if isinstance(value, list) else [value]
    if position >= len(parts):
        return None
    part = parts[position]
    while isinstance(part, list) and len(part) == 1:
        part = part[0]
    return np.ravel(part)


def from_matlab(index: np.ndarray, name: str) -> np.ndarray:
    """Return indices that MATLAB counts from 1, counted from 0."""
    return as_whole(index, name) - 1


def frequency_of(arrays: dict[str, Any], given: float | None) -> float | None:
    """Return the sampling frequency in the arrays, or else the given one."""
    parameters = arrays.get("par")
    for part in (arrays, parameters if isinstance(parameters, dict) else {}):
        for name in _RATE_KEYS:
            if np.size(part.get(name, ())) == 1:
                return float(np.ravel(part[name])[0])
    interval_ms = np.ravel(arrays.get("samplingInterval", ()))
    has_interval = interval_ms.size == 1 and interval_ms[0] > 0
    return round(1000.0 / float(interval_ms[0]), 6) if has_interval else given


def single_channel(values: Any, name: str) -> np.ndarray:
    """Return a signal as (num_samples,); raise unless it is one row or one column of numbers."""
    values = np.asarray(values)
    if values.size == 0 or values.size != max(values.shape, default=0) or values.dtype.kind not in "iuf":
        raise WaveformsError(
            f"{name} is an array of {values.dtype} of the shape {values.shape}",
            "the samples of one channel, whole or floating-point numbers",
            "choose one channel, or give the whole recording",
        )
    return values.reshape(-1)


def as_labels(values: Any, name: str) -> np.ndarray:
    """Return labels as int64 or text; NaN becomes -1."""
    values = np.ravel(values)
    if values.dtype.kind in "SU":
        return values.astype(str)
    if values.dtype.kind == "f":
        values = np.where(np.isnan(values), -1, values)
    return as_whole(values, f"the labels of {name}")


def as_whole(values: Any, name: str) -> np.ndarray:
    """Return whole numbers as (num_values,) int64; raise if some are not whole."""
    values = np.ravel(values)
    whole = values.dtype.kind in "biu" or (
        values.dtype.kind == "f" and bool((np.isfinite(values) & (values % 1 == 0)).all())
    )
    if not whole:
        raise WaveformsError(
            f"{name} are {values.dtype} and not all whole", "whole numbers", "correct or leave them out"
        )
    return values.astype(np.int64)


def checked_frequency(value: float, name: str) -> float:
    """Return a sampling frequency in Hz; raise unless it is finite and above 0."""
    if not (np.isfinite(value) and value > 0):
        raise WaveformsError(f"the sampling frequency of {name} is {value}", "above 0 Hz", "correct it")
    return float(value)
