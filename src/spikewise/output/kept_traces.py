"""Traces for a report, of which no second is read and prepared twice.

A report needs mean waveforms before it can measure single spikes, which lie in the same seconds of the
recording. So the seconds that are read first are kept in memory, in half precision if they are large. Short
windows that are needed later are cut out when the second around them is read.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from spikewise.core.compiling import compiled
from spikewise.data.recordings.reader import Traces
from spikewise.learning.examples.patch_loops import fill_from_halves, fill_halves

MEMORY_BYTES = 2**29
"""Largest size of the seconds that are kept: 512 MiB are 22 s of 384 channels at 30 kHz. Chosen by hand."""


class KeptTraces:
    """Traces that keep the seconds that were read from them first.

    It fulfils :class:`spikewise.data.recordings.reader.Traces`.

    Parameters
    ----------
    traces : Traces
    wanted : iterable of (int, int, int)
        Segment, start and end of windows that are cut out when their seconds are read, and kept.
    memory_bytes : int
        Largest size of the seconds that are kept.
    """

    def __init__(
        self,
        traces: Traces,
        wanted: Iterable[tuple[int, int, int]] = (),
        memory_bytes: int = MEMORY_BYTES,
    ):
        self._traces = traces
        self.num_segments, self.num_channels = traces.num_segments, traces.num_channels
        self.sampling_frequency = traces.sampling_frequency
        self._second = max(1, round(self.sampling_frequency))
        samples = sum(self.num_samples(segment) for segment in range(self.num_segments))
        fits = 4 * samples * self.num_channels <= memory_bytes
        self._dtype = np.dtype(np.float32 if fits else np.uint16)
        self._left = memory_bytes
        self._seconds: dict[tuple[int, int], np.ndarray] = {}
        self._last: tuple[tuple[int, int], np.ndarray] | None = None
        self._wanted = list(wanted)
        self._windows: dict[tuple[int, int, int], np.ndarray] = {}

    def num_samples(self, segment_index: int) -> int:
        """Return the length of a segment."""
        return self._traces.num_samples(segment_index)

    def read(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return float32 traces (stop - start, num_channels), which are zero outside the segment."""
        if (window := self._windows.get((segment_index, start, stop))) is not None:
            return window
        first, last = max(0, start), min(stop, self.num_samples(segment_index))
        traces = np.zeros((self.num_channels, max(0, stop - start)), np.float32).T
        for number in range(first // self._second, -(-last // self._second) if last > first else 0):
            offset = number * self._second
            low, high = max(first, offset), min(last, offset + self._second)
            part = self._of((segment_index, number))[:, low - offset : high - offset]
            target = traces.T[:, low - start : high - start]
            if part.dtype == np.uint16:
                fill_from_halves(part, target)
            else:
                target[:] = part
        return traces

    def _of(self, key: tuple[int, int]) -> np.ndarray:
        """Return the traces of a second (num_channels, num_samples): float32, or the bits of float16."""
        if (kept := self._seconds.get(key)) is not None:
            return kept
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        segment, number = key
        start = number * self._second
        stop = min(start + self._second, self.num_samples(segment))
        read = self._traces.read(segment, start, stop)
        for window in self._wanted:
            if window[0] == segment and start <= window[1] and window[2] <= stop:
                self._windows[window] = read[window[1] - start : window[2] - start].copy(order="F")
        size = read.size * self._dtype.itemsize
        if size <= self._left:
            self._left -= size
            kept = np.empty(read.T.shape, self._dtype)
            if self._dtype == np.uint16:
                fill_halves(read.T, kept)
            else:
                kept[:] = read.T
            self._seconds[key] = kept
            return kept
        self._last = key, read.T
        return read.T


@compiled()
def add_windows(traces, starts, units, sums, squares):  # type: ignore[no-untyped-def]
    """Add windows of traces (num_channels, num_samples), and their squares, to those of units (U, C, S)."""
    for index in range(len(starts)):
        start, unit = starts[index], units[index]
        for channel in range(len(traces)):
            for sample in range(sums.shape[2]):
                value = traces[channel, start + sample]
                sums[unit, channel, sample] += value
                squares[unit, channel, sample] += value * value
