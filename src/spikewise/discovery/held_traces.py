"""Preprocessed traces in memory, in which units are searched: a short recording, or parts of a long one.

The parts are spread evenly over the whole recording. A *column* counts the samples that are held. Zeros
separate parts that do not follow each other, so a window around a spike never mixes two of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spikewise.core.progress import Tell
from spikewise.core.threads import on_all_cores
from spikewise.data.recordings.conditioning import reusable_array
from spikewise.data.recordings.conditioning_loops import STEP, fill_from_steps
from spikewise.data.recordings.reader import TraceReader, Traces
from spikewise.data.spatial.mixing import mix_channels
from spikewise.data.spatial.whitening import noise_correlation, noise_covariance, whitening_weights
from spikewise.discovery.event_loops import fill_steps
from spikewise.sorting.groups import KEPT_BYTES

MEMORY_BYTES = KEPT_BYTES
"""Largest size of the traces."""
_CHANNELS_AT_ONCE = 16
"""Channels that one thread keeps at a time."""
STRETCH_S = 1.0
"""Length of a part; the reader prepares blocks of this length."""
GAP_MS = 5.0
"""Zeros between two parts; longer than a window around a spike with all its shifts."""
UNIT = STEP
"""Value of one step, in noise standard deviations."""


Part = tuple[int, int, int, int]
"""Part of a recording: segment, first sample, last sample + 1, global frame of the first."""


_NOISE_PARTS = 12
"""Parts on which the covariance of the noise is measured."""


class HeldTraces:
    """Traces as 16-bit integers.

    Parameters
    ----------
    traces : Traces
        Preprocessed traces, in noise standard deviations.
    memory_bytes : int
        Largest size.
    parts : list of Part, optional
        The parts to hold, in order of time, whatever their size; default: all, or as many as fit.
    distance : ndarray, optional
        (num_channels, num_channels) distances of the channels in um, to whiten the traces; default: they
        stay as they are.
    tell : callable, optional
        Called with the number of parts that are read, and of all.
    serves : bool
        Whether the reader of the traces reads from these afterwards, if all are held. Changes must be undone.

    Attributes
    ----------
    values : ndarray of int16, shape (num_channels, num_columns)
        Traces in steps of UNIT; larger values are cut off.
    sampling_frequency : float
    seconds : float
        Duration of the parts.
    total_s : float
        Duration of the recording.
    """

    def __init__(
        self,
        traces: Traces,
        memory_bytes: int = MEMORY_BYTES,
        parts: Sequence[Part] | None = None,
        distance: np.ndarray | None = None,
        tell: Tell | None = None,
        serves: bool = False,
    ):
        rate = self.sampling_frequency = traces.sampling_frequency
        if parts is None:
            parts = spread_parts(traces, memory_bytes)
        gap = round(GAP_MS * rate / 1000)
        column, last = gap, None
        placed = []
        for segment, start, stop, frame in parts:
            if last is not None and last != frame:
                column += gap
            placed.append((segment, start, stop, frame, column))
            column, last = column + stop - start, frame + stop - start
        self.values = np.zeros((traces.num_channels, column + gap), np.int16)
        self._columns = np.array([part[4] for part in placed], np.int64)
        self._frames = np.array([part[3] for part in placed], np.int64)
        self._lengths = np.array([part[2] - part[1] for part in placed], np.int64)
        self._whitening = None if distance is None else whitening_of(traces, parts, distance)

        self._parts = placed
        self.fill(traces, tell)
        self.seconds = float(self._lengths.sum()) / rate
        lengths = [traces.num_samples(index) for index in range(traces.num_segments)]
        self.total_s = sum(lengths) / rate
        self._segments = np.concatenate(([0], np.cumsum(lengths)))
        is_whole = self._lengths.sum() == self._segments[-1] and not self.is_whitened
        if serves and is_whole and isinstance(traces, TraceReader):
            traces.read_from(self)

    def fill(self, traces: Traces, tell: Tell | None = None) -> None:
        """Hold the same parts of these traces; they may be computed from what is held now, part by part."""

        def hold(index: int) -> None:
            segment, start, stop, _, column = self._parts[index]
            block = traces.read(segment, start, stop).T
            self._keep(self.whitened(np.ascontiguousarray(block)), column)

        on_all_cores(hold, range(len(self._parts)), tell)

    @property
    def is_whitened(self) -> bool:
        """Whether the traces are whitened."""
        return self._whitening is not None

    def whitened(self, block: np.ndarray) -> np.ndarray:
        """Return traces (num_channels, num_samples) whitened, if that is asked for."""
        if self._whitening is None:
            return block
        whitened = np.empty_like(block)
        mix_channels(block, *self._whitening, whitened)
        return whitened

    def _keep(self, block: np.ndarray, column: int) -> None:
        """Keep traces (num_channels, num_samples) from a column on."""
        target = self.values[:, column : column + block.shape[1]]

        def keep(first: int) -> None:
            channels = slice(first, first + _CHANNELS_AT_ONCE)
            fill_steps(block[channels], np.float32(1 / UNIT), target[channels])

        on_all_cores(keep, range(0, len(block), _CHANNELS_AT_ONCE))

    @property
    def num_channels(self) -> int:
        """Number of channels."""
        return len(self.values)

    @property
    def num_columns(self) -> int:
        """Number of columns, zeros between the parts included."""
        return self.values.shape[1]

    def block(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return float32 traces (stop - start, num_channels) of frames that all are held."""
        first = int(self._segments[segment_index]) + start
        part = int(np.searchsorted(self._frames, first, side="right")) - 1
        column = int(self._columns[part] + first - self._frames[part])
        values = self.values[:, column : column + stop - start]
        by_channel = reusable_array(values.shape)

        def fill(first: int) -> None:
            channels = slice(first, first + _CHANNELS_AT_ONCE)
            fill_from_steps(values[channels], by_channel[channels])

        on_all_cores(fill, range(0, len(values), _CHANNELS_AT_ONCE))
        return by_channel.T

    def spread(self, seconds: float) -> tuple[tuple[int, int], ...]:
        """Return parts of at most so many seconds in all, evenly spread, in global frames (half open)."""
        count = min(len(self._frames), max(1, round(seconds / STRETCH_S)))
        chosen = np.unique(np.linspace(0, len(self._frames) - 1, count).round().astype(int))
        return tuple((int(self._frames[k]), int(self._frames[k] + self._lengths[k])) for k in chosen)

    def noise_correlation(self, distance: np.ndarray) -> np.ndarray | None:
        """Return the correlation (C, C) of the noise of near channels; None if the noise is white."""
        chosen = _evenly(len(self._columns), _NOISE_PARTS)
        pieces = [slice(self._columns[part], self._columns[part] + self._lengths[part]) for part in chosen]
        blocks = [self.values[:, piece] * np.float32(UNIT) for piece in pieces]
        return noise_correlation(noise_covariance(blocks), distance) if blocks else None

    def columns_of(self, stretches: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return the columns of parts that :meth:`spread` returned, half open."""
        parts = np.searchsorted(self._frames, [start for start, _ in stretches])
        starts = self._columns[parts]
        return [
            (int(start), int(start + self._lengths[part])) for start, part in zip(starts, parts, strict=True)
        ]

    @property
    def stretches(self) -> tuple[tuple[int, int], ...]:
        """The parts, in global frames (half open)."""
        ends = self._frames + self._lengths
        return tuple(zip(self._frames.tolist(), ends.tolist(), strict=True))

    def held_columns(self, frames: np.ndarray) -> np.ndarray:
        """Return the columns of those global frames that are held."""
        part = np.searchsorted(self._frames, frames, side="right") - 1
        offset = frames - self._frames[np.maximum(part, 0)]
        inside = (part >= 0) & (offset < self._lengths[np.maximum(part, 0)])
        return self._columns[part[inside]] + offset[inside]

    def frames_of(self, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the global frames of columns, and whether each column is a sample of the recording."""
        part = np.maximum(np.searchsorted(self._columns, columns, side="right") - 1, 0)
        offset = columns - self._columns[part]
        return self._frames[part] + offset, (offset >= 0) & (offset < self._lengths[part])


def _evenly(count: int, most: int) -> np.ndarray:
    """Return at most so many indices, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def whitening_of(
    traces: Traces, parts: Sequence[Part], distance: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return channels and weights that whiten the noise of some evenly spread parts."""
    blocks = [traces.read(*parts[index][:3]).T for index in _evenly(len(parts), _NOISE_PARTS)]
    return whitening_weights(noise_covariance(blocks), distance) if blocks else None


def cut_traces(traces: Traces, length: int) -> list[Part]:
    """Cut all segments into parts of at most so many samples."""
    parts, first = [], 0
    for segment in range(traces.num_segments):
        samples = traces.num_samples(segment)
        parts += [
            (segment, start, min(start + length, samples), first + start)
            for start in range(0, samples, length)
        ]
        first += samples
    return parts


def spread_parts(traces: Traces, memory_bytes: int = MEMORY_BYTES) -> list[Part]:
    """Return as many parts as fit into the memory, evenly spread."""
    parts = cut_traces(traces, max(1, round(STRETCH_S * traces.sampling_frequency)))
    size = sum(stop - start for _, start, stop, _ in parts) * 2 * traces.num_channels
    if size <= memory_bytes:
        return parts
    count = max(1, int(len(parts) * memory_bytes / size))
    return [parts[index] for index in np.linspace(0, len(parts) - 1, count).round().astype(int)]
