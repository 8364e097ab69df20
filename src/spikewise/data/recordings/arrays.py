"""Raw binary files and NumPy arrays as recordings.

A raw binary file has the frames of all channels, one after the other; the longer axis of an array is time.
Python objects (pickles) are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording, BinaryRecordingExtractor, NumpyRecording

from spikewise.core.config import RecordingConfig
from spikewise.core.errors import RecordingError
from spikewise.core.untrusted import check_npz, load_npy

_RATE_KEYS = ("sampling_frequency", "fs")


def read_binary(path: Path, config: RecordingConfig) -> BaseRecording:
    """Read a raw binary file; the settings give its layout."""
    needed = ("sampling_frequency", "num_channels", "dtype")
    missing = [name for name in needed if getattr(config, name) is None]
    if config.sampling_frequency is None or config.num_channels is None or config.dtype is None:
        raise RecordingError(
            f"the raw binary file {path} does not contain its {', '.join(missing)}",
            f"a raw binary file needs {', '.join(needed)}",
            "give " + " ".join(f"--{name.replace('_', '-')}" for name in missing),
        )
    try:
        dtype = np.dtype(config.dtype)
    except TypeError as error:
        raise RecordingError(
            f"the type of the samples is {config.dtype!r}",
            "it is a NumPy type such as int16, uint16 or float32",
            "correct --dtype",
        ) from error
    check_dtype(dtype, path)
    check_whole_frames(path, config.num_channels, dtype, 0)
    return BinaryRecordingExtractor(
        [path], config.sampling_frequency, dtype, config.num_channels, **_scaling(config)
    )


def _scaling(config: RecordingConfig) -> dict[str, float]:
    return {} if config.gain_to_uV is None else {"gain_to_uV": config.gain_to_uV, "offset_to_uV": 0.0}


def check_whole_frames(path: Path, num_channels: int, dtype: np.dtype, offset: int) -> None:
    """Raise unless the file has whole frames after `offset` bytes."""
    frame, size = num_channels * dtype.itemsize, path.stat().st_size - offset
    if size % frame:
        raise RecordingError(
            f"the file {path} holds {size} bytes of samples: {size // frame} frames and {size % frame} bytes",
            f"a frame of {num_channels} channels of {dtype} has {frame} bytes, and a file holds whole frames",
            "correct --num-channels and --dtype, or copy the file again if it was cut short",
        )


def read_numpy(path: Path, config: RecordingConfig) -> BaseRecording:
    """Read a .npy or .npz file; a .npz may have several segments."""
    sampling_frequency = config.sampling_frequency
    try:
        if path.suffix.lower() == ".npz":
            check_npz(path)
            with np.load(path, allow_pickle=False) as archive:
                arrays = [archive[key] for key in _trace_keys(archive, path)]
                keys = [key for key in _RATE_KEYS if key in archive.files and archive[key].size == 1]
                if sampling_frequency is None and keys:
                    sampling_frequency = float(archive[keys[0]].item())
        else:
            arrays = [load_npy(path, mmap_mode="r")]
    except ValueError as error:
        raise RecordingError(
            f"the array of {path} cannot be read: {error}",
            "a complete file of plain numbers is read; Python objects are refused",
            "save the traces again as one numeric array",
        ) from error
    if sampling_frequency is None:
        raise RecordingError(
            f"the array {path} does not contain its sampling frequency",
            f"it is given as an option, or is a number called {' or '.join(_RATE_KEYS)} in the .npz",
            "give --sampling-frequency in Hz",
        )
    return _from_arrays([_time_major(array, path) for array in arrays], sampling_frequency, config, path)


def _trace_keys(archive: Any, path: Path) -> list[str]:
    """Return the names of the arrays with the traces, one for each segment."""
    names = archive.files
    if "traces" in names:
        return ["traces"]
    segments = sorted(
        (name for name in names if re.fullmatch(r"traces_\d+", name)), key=lambda name: int(name[7:])
    )
    if segments:
        return segments
    shapes = {name: archive[name].shape for name in names}
    two_dimensional = [name for name, shape in shapes.items() if len(shape) == 2]
    if len(two_dimensional) == 1:
        return two_dimensional
    listing = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    raise RecordingError(
        f"it is not clear which array of {path} holds the traces: {listing or 'it is empty'}",
        "the traces are called 'traces', or 'traces_0', 'traces_1', ... for segments, or are the only "
        "array of two dimensions",
        "save the traces under the name 'traces'",
    )


def _time_major(array: np.ndarray, path: Path) -> np.ndarray:
    """Return the array as (num_samples, num_channels); the longer axis is time."""
    check_dtype(array.dtype, path)
    if array.ndim == 1:
        return array[:, np.newaxis]
    if array.ndim != 2:
        raise RecordingError(
            f"the traces in {path} have the shape {array.shape}",
            "they have two dimensions, time and channels, or one for a single channel",
            "save them as one array (num_samples, num_channels)",
        )
    return array.T if array.shape[0] < array.shape[1] else array


def _from_arrays(
    arrays: list[np.ndarray], sampling_frequency: float, config: RecordingConfig, path: Path
) -> BaseRecording:
    layouts = {(array.shape[1], array.dtype) for array in arrays}
    if len(layouts) > 1:
        raise RecordingError(
            f"the segments in {path} differ: " + ", ".join(f"{a.shape} {a.dtype}" for a in arrays),
            "all have the same number of channels and type, and more samples than channels",
            "save them with one layout",
        )
    traces = arrays[0]
    if isinstance(traces, np.memmap) and traces.flags.c_contiguous and traces.size:
        # a plain file with a header, which unlike an array can be opened by other processes
        return BinaryRecordingExtractor(
            [path],
            sampling_frequency,
            traces.dtype,
            traces.shape[1],
            file_offset=traces.offset,
            **_scaling(config),
        )
    recording = NumpyRecording(arrays, sampling_frequency)
    if config.gain_to_uV is not None:
        recording.set_channel_gains(config.gain_to_uV)
        recording.set_channel_offsets(0.0)
    return recording


def check_dtype(dtype: np.dtype, path: Path) -> None:
    """Raise unless samples have a type that can be sorted."""
    if dtype.kind not in "iuf" or dtype.names:
        raise RecordingError(
            f"the samples of {path} have the type {dtype}",
            "whole and floating-point numbers are read, such as int16 and float32",
            "save the traces as plain real numbers",
        )
