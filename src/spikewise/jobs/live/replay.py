"""Sources that need no other program: a recording that is replayed, and standard input."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from spikeinterface.core import BaseRecording

from spikewise.core.config import RecordingConfig, StreamConfig
from spikewise.core.errors import SettingError
from spikewise.data.opening import open_recording
from spikewise.jobs.live.source import MOST_BYTES, POLL_S, Chunk, StreamFacts

_READ_S = 1.0
"""Seconds of a recording that are read at once; chosen by hand."""
_SPIN_S = 0.0001
"""The last part of a wait is not slept, since the system wakes a sleeper late; chosen by hand."""


class Replay:
    """A recording that is sent block by block, at its own rate or as fast as possible.

    The samples of a block are there when the last of them would have been recorded. Segments follow one
    another with a gap of no samples between them.

    Parameters
    ----------
    path : Path or BaseRecording
    config : StreamConfig
    reading : RecordingConfig
        How the recording is read.
    """

    def __init__(
        self, path: Path | BaseRecording, config: StreamConfig, reading: RecordingConfig | None = None
    ):
        self._path, self._config, self._reading = path, config, reading or RecordingConfig()

    def open(self) -> StreamFacts:
        """Open the recording."""
        self._recording = open_recording(self._path, self._reading)[0]
        rate = self._recording.get_sampling_frequency()
        gains = self._recording.get_property("gain_to_uV")
        is_one_gain = gains is not None and len(set(gains.tolist())) == 1 and gains[0] != 0
        return StreamFacts(
            self._recording.get_num_channels(),
            rate,
            str(self._recording.get_dtype()),
            None,
            float(gains[0]) if is_one_gain else None,
        )

    def chunks(self) -> Iterator[Chunk]:
        """Yield the blocks of all segments."""
        rate = self._recording.get_sampling_frequency()
        block = max(1, round(self._config.block_ms * rate / 1000))
        is_paced = self._config.speed == "real-time"
        begin, sent = time.perf_counter(), 0
        for segment_index in range(self._recording.get_num_segments()):
            gap = 0 if segment_index else None
            for samples in self._blocks(segment_index, block):
                sent += len(samples)
                if is_paced:
                    wait_until(begin + sent / rate)
                    yield Chunk(samples, gap, begin + sent / rate)
                else:
                    yield Chunk(samples, gap)
                gap = None

    def close(self) -> None:
        """Nothing stays open."""

    def _blocks(self, segment_index: int, block: int) -> Iterator[np.ndarray]:
        at_once = block * max(1, round(_READ_S * self._recording.get_sampling_frequency() / block))
        num_samples = self._recording.get_num_samples(segment_index)
        for start in range(0, num_samples, at_once):
            part = self._recording.get_traces(segment_index, start, min(start + at_once, num_samples))
            part = np.ascontiguousarray(part)
            for first in range(0, len(part), block):
                yield part[first : first + block]


class StandardInput:
    """Raw samples of standard input, sample after sample, all channels of each.

    Parameters
    ----------
    num_channels : int
        Channels of the model.
    config : StreamConfig
        Its `dtype` is that of the samples.
    descriptor : int
        File descriptor that is read.
    """

    def __init__(self, num_channels: int, config: StreamConfig, descriptor: int = 0):
        try:
            self._dtype = np.dtype(config.dtype)
        except TypeError as error:
            raise SettingError(
                f"the setting dtype is {config.dtype!r}", "a type of samples such as int16", "correct it"
            ) from error
        if self._dtype.kind not in "iuf":
            raise SettingError(
                f"the setting dtype is {config.dtype!r}", "whole or floating-point numbers", "correct it"
            )
        self._num_channels, self._descriptor = num_channels, descriptor

    def open(self) -> StreamFacts:
        """Return what the settings say."""
        return StreamFacts(self._num_channels, None, str(self._dtype))

    def chunks(self) -> Iterator[Chunk]:
        """Yield whole samples as soon as they are there, until the input ends."""
        size = self._num_channels * self._dtype.itemsize
        most = max(1, min(2**20, MOST_BYTES) // size) * size
        rest = b""
        while True:
            if not select.select([self._descriptor], [], [], POLL_S)[0]:
                yield self._chunk(b"")
                continue
            received = os.read(self._descriptor, most)
            if not received:
                return
            content = rest + received
            end = len(content) // size * size
            rest = content[end:]
            if end:
                yield self._chunk(content[:end])

    def close(self) -> None:
        """Standard input stays open."""

    def _chunk(self, content: bytes) -> Chunk:
        return Chunk(np.frombuffer(content, self._dtype).reshape(-1, self._num_channels))


def wait_until(when_s: float) -> None:
    """Wait until :func:`time.perf_counter` reaches a time."""
    while (rest := when_s - time.perf_counter()) > 0:
        if rest > _SPIN_S:
            time.sleep(rest - _SPIN_S)
