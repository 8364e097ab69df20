"""Traces of parts of the label interval in memory, channel by channel; patches are cut from them.

They can also be read like other traces.

Conventions: a global frame counts samples from 0 over all segments; a *column* counts the stored samples. A
window around a usable column never crosses the end of the stored part that holds it; columns where it would
are not usable.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from spikewise.core.threads import on_all_cores
from spikewise.data.recordings.reader import Traces
from spikewise.learning.examples.patch_loops import fill_from_halves, fill_halves, fill_windows
from spikewise.learning.examples.training_set import Block

_CHANNELS_AT_ONCE = 32
"""Channels that one thread stores at a time. Chosen by hand."""
MEMORY_BYTES = 2**31
"""Largest size of the stored traces. Chosen by hand."""


class StoredTraces:
    """Blocks of traces in half precision; the rounding error is about a thousandth of the noise.

    Parameters
    ----------
    traces : Traces
        Preprocessed traces, in noise standard deviations.
    blocks : sequence of Block
        What to store, in order of time; if all blocks need more memory than allowed, evenly spread ones.
    reach : int
        Samples to either side that a usable column has within its block or the one beside it.
    memory_bytes : int
        Largest size.

    Attributes
    ----------
    values : Tensor
        (num_channels, num_columns) float16
    usable : ndarray of int
        Columns that have `reach` samples to either side.
    """

    def __init__(self, traces: Traces, blocks: Sequence[Block], reach: int, memory_bytes: int = MEMORY_BYTES):
        chosen = _affordable(blocks, memory_bytes // (2 * max(1, traces.num_channels)))
        self._starts = np.array([block.start for block in chosen], dtype=np.int64)
        self._stops = np.array([block.stop for block in chosen], dtype=np.int64)
        lengths = self._stops - self._starts
        self._columns = np.cumsum(lengths) - lengths
        self.values = torch.empty(traces.num_channels, int(lengths.sum()), dtype=torch.float16)
        self.num_segments = traces.num_segments
        self.num_channels = traces.num_channels
        self.sampling_frequency = traces.sampling_frequency
        self._lengths = [traces.num_samples(segment) for segment in range(traces.num_segments)]
        firsts = np.cumsum([0, *self._lengths])
        for block, column in zip(chosen, self._columns, strict=True):
            low, high = block.start - firsts[block.segment_index], block.stop - firsts[block.segment_index]
            self._keep(traces.read(block.segment_index, int(low), int(high)), column)
        self.usable = self._usable(reach)

    def _keep(self, part: np.ndarray, column: int) -> None:
        """Store traces (num_samples, num_channels) from a column on."""
        by_channel, target = part.T, self.bits[:, column : column + len(part)]

        def copy(first: int) -> None:
            channels = slice(first, first + _CHANNELS_AT_ONCE)
            fill_halves(by_channel[channels], target[channels])

        on_all_cores(copy, range(0, self.num_channels, _CHANNELS_AT_ONCE))

    @property
    def bits(self) -> np.ndarray:
        """The bits of the values, (num_channels, num_columns) uint16, for compiled loops."""
        return self.values.numpy().view(np.uint16)

    def _usable(self, reach: int) -> np.ndarray:
        parts = []
        for first, last in self._runs():
            begin = self._columns[first] + reach
            end = self._columns[last] + self._stops[last] - self._starts[last] - reach
            parts.append(np.arange(begin, max(begin, end)))
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _runs(self) -> list[tuple[int, int]]:
        """Return the first and the last block of each stretch without a gap."""
        if not len(self._starts):
            return []
        breaks = np.flatnonzero(self._starts[1:] != self._stops[:-1])
        return list(zip(np.r_[0, breaks + 1], np.r_[breaks, len(self._starts) - 1], strict=True))

    def num_samples(self, segment_index: int) -> int:
        """Return the length of a segment."""
        return self._lengths[segment_index]

    def read(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return float32 traces (stop - start, num_channels), zero where they are not stored.

        The samples of a channel lie side by side in memory.
        """
        offset = sum(self._lengths[:segment_index])
        traces = np.zeros((self.num_channels, stop - start), dtype=np.float32)
        limits = offset + max(start, 0), offset + min(stop, self._lengths[segment_index])
        for first, last, column in zip(self._starts, self._stops, self._columns, strict=True):
            low, high = max(first, limits[0]), min(last, limits[1])
            if low < high:
                part = self.bits[:, column + low - first : column + high - first]
                fill_from_halves(part, traces[:, low - offset - start : high - offset - start])
        return traces.T

    def is_usable(self, columns: np.ndarray) -> np.ndarray:
        """Return which columns are usable."""
        if not len(self.usable):
            return np.zeros(len(columns), bool)
        index = np.searchsorted(self.usable, columns)
        return self.usable[np.minimum(index, len(self.usable) - 1)] == columns

    def columns_of(self, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the columns of the global frames that are usable, and the indices of these frames."""
        if not len(self.usable):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        block = np.searchsorted(self._starts, frames, side="right") - 1
        inside = (block >= 0) & (frames < self._stops[block])
        columns = np.where(inside, frames - self._starts[block] + self._columns[block], -1)
        index = np.searchsorted(self.usable, columns)
        found = inside & (self.usable[np.minimum(index, len(self.usable) - 1)] == columns)
        return columns[found], np.flatnonzero(found)

    def windows(
        self, columns: np.ndarray, before: int, length: int, channels: np.ndarray | None = None
    ) -> Tensor:
        """Cut windows that begin `before` samples ahead of columns: (num_columns, num_channels, length)."""
        if channels is None:
            channels = np.arange(self.num_channels)
        begins = np.asarray(columns, np.int64) - before
        windows = np.empty((len(begins), len(channels), length), np.float32)
        fill_windows(self.bits, begins, np.asarray(channels, np.int64), windows)
        return torch.from_numpy(windows)


def _affordable(blocks: Sequence[Block], num_samples: int) -> list[Block]:
    """Take blocks evenly spread until they have `num_samples`."""
    total = sum(block.stop - block.start for block in blocks)
    if total <= num_samples:
        return list(blocks)
    count = max(1, int(len(blocks) * num_samples / total))
    return [blocks[index] for index in np.linspace(0, len(blocks) - 1, count).round().astype(int)]
