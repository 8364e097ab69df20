"""Describes the job of a sort: recording, labels, model and settings. Equal jobs give the same spikes.

To hash hours of traces would take as long as to sort them. So only some pieces of each segment, evenly
spread, are hashed. While a sort runs, the size and the time of change of the recording's files are watched,
too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikeinterface.core import BaseRecording, BaseSorting

from spikewise.core.config import Config
from spikewise.core.devices import choose_device
from spikewise.core.errors import OutputError, RecordingError
from spikewise.core.version import __version__
from spikewise.data.opening import files_of
from spikewise.data.recordings.clock import has_clock, read_times
from spikewise.data.recordings.formats import reading_errors
from spikewise.output.store import spikes_hash
from spikewise.sorting.device_detector import choose_dtype

_PIECES = 32
"""Pieces of each segment that are hashed. Chosen by hand."""
_PIECE_SAMPLES = 500
"""Samples of such a piece. Chosen by hand."""
_MAX_DIFFERENCES = 6
"""An error message names at most so many differences. Chosen by hand."""
_NOT_OF_RESULT = ("chunk_s", "cluster", "report", "trust", "auto_merge")
"""Settings that change no spike, only how the work is done."""


def describe_job(
    recording: BaseRecording,
    labels: BaseSorting | None,
    model_hash: str | None,
    filters_hash: str | None,
    config: Config,
) -> dict[str, Any]:
    """Return all that the spikes of a sort depend on, as JSON types.

    Parameters
    ----------
    recording : BaseRecording
    labels : BaseSorting or None
    model_hash : str or None
        Hash of the given model.
    filters_hash : str or None
        Hash of the filters or the model that training starts from.
    config : Config

    Raises
    ------
    RecordingError
        If the recording cannot be read.
    """
    settings = config.to_dict()
    del settings["recording"]  # how a file is read changes what is read, which is hashed
    settings["sorting"] = {k: v for k, v in settings["sorting"].items() if k not in _NOT_OF_RESULT}
    device = choose_device(config.sorting.device)
    dtype = torch.float32 if device.type == "cpu" else choose_dtype(config.sorting.precision, device)
    settings["sorting"] |= {"device": device.type, "precision": str(dtype).removeprefix("torch.")}
    settings["transfer"]["pretrained"] = filters_hash
    facts = {
        "spikewise_version": __version__,
        "recording": _describe_recording(recording),
        "labels": None if labels is None else spikes_hash(labels),
        "model": model_hash,
        "settings": settings,
    }
    return json.loads(json.dumps(facts))


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> list[str]:
    """Return what differs between two jobs, each as text with both values."""
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} was {_short(old)} and is {_short(new)}")
    return found


def check_same_job(before: Any, now: dict[str, Any], where: Path) -> None:
    """Raise unless the sort that was begun is the one that is requested now.

    Raises
    ------
    OutputError
        The message names the first differences.
    """
    different = differences(before if isinstance(before, dict) else {}, now)
    more = len(different) - _MAX_DIFFERENCES
    if different:
        raise OutputError(
            f"the result {where} is of another sort: {'; '.join(different[:_MAX_DIFFERENCES])}"
            + (f"; and {more} more differences" if more > 0 else ""),
            "the recording, labels, model and settings that it began with",
            "give these, or start again with --overwrite and without --resume",
        )


class FileWatch:
    """Notices when a file of a recording changes while it is sorted.

    Parameters
    ----------
    recording : BaseRecording
        If it is in memory, it has no files, and nothing is watched.
    """

    def __init__(self, recording: BaseRecording):
        self._files = files_of(recording)
        self._before = {path: _state(path) for path in self._files}

    def check(self) -> None:
        """Raise if a file has changed.

        Raises
        ------
        RecordingError
            If a file is gone, has another size or was written to.
        """
        for path in self._files:
            before, now = self._before[path], _state(path)
            if before != now:
                sizes = [None if state is None else state[0] for state in (before, now)]
                what = "is gone" if now is None else f"changed: it had {sizes[0]} bytes and has {sizes[1]}"
                if sizes[0] == sizes[1]:
                    what = "was written to"
                raise RecordingError(
                    f"the file {path} {what} while it was sorted",
                    "a recording that does not change until it is sorted",
                    "sort it when it is complete; if the old files are back, go on with --resume",
                )


def _describe_recording(recording: BaseRecording) -> dict[str, Any]:
    positions = np.asarray(recording.get_channel_locations(), dtype=np.float64)
    return {
        "sampling_frequency": float(recording.get_sampling_frequency()),
        "dtype": str(recording.get_dtype()),
        "num_samples": [recording.get_num_samples(k) for k in range(recording.get_num_segments())],
        "channel_ids": [str(channel_id) for channel_id in recording.channel_ids],
        "channel_positions_hash": hashlib.sha256(positions.tobytes()).hexdigest(),
        "groups": [str(name) for name in recording.get_channel_groups()],
        "traces_hash": _hash_of_traces(recording),
        **({"clock_hash": hashed} if (hashed := _hash_of_clock(recording)) else {}),
    }


def _hash_of_clock(recording: BaseRecording) -> str | None:
    """Return a hash of pieces of the times of the samples; None if the clock is regular."""
    digest = hashlib.sha256()
    segments = [k for k in range(recording.get_num_segments()) if has_clock(recording, k)]
    for segment_index, start, stop in _pieces(recording, segments):
        digest.update(read_times(recording, segment_index, start, stop).tobytes())
    return digest.hexdigest() if segments else None


def _hash_of_traces(recording: BaseRecording) -> str:
    digest = hashlib.sha256()
    for segment_index, start, stop in _pieces(recording, range(recording.get_num_segments())):
        with reading_errors(f"the recording from {start / recording.sampling_frequency:.3f} s on"):
            traces = recording.get_traces(segment_index, start, stop)
        digest.update(np.ascontiguousarray(traces).tobytes())
    return digest.hexdigest()


def _pieces(recording: BaseRecording, segments: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """Yield segment, start and stop of pieces that are spread evenly over each segment."""
    for segment_index in segments:
        last = max(0, recording.get_num_samples(segment_index) - _PIECE_SAMPLES)
        for start in np.unique(np.linspace(0, last, _PIECES).astype(int)).tolist():
            yield (
                segment_index,
                start,
                min(start + _PIECE_SAMPLES, recording.get_num_samples(segment_index)),
            )


def _state(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
