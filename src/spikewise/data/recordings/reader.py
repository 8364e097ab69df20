"""Read the preprocessed traces of a recording block by block; every stage uses this reader."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from contextlib import nullcontext
from typing import Protocol

import numpy as np
from spikeinterface.core import BaseRecording

from spikewise.core.errors import RecordingError, SettingError
from spikewise.core.threads import READ_LOCK, num_threads, on_all_cores
from spikewise.data.recordings.channels import SilencedRecording, list_channels
from spikewise.data.recordings.conditioning import ConditionedRecording
from spikewise.data.recordings.conditioning_loops import are_finite, round_to_steps
from spikewise.data.recordings.damage import STRETCH, clip_stretches
from spikewise.data.recordings.formats import reading_errors
from spikewise.data.recordings.repair import RepairedRecording
from spikewise.data.spatial.motion import MotionOfFrames
from spikewise.data.spatial.still_traces import StillTraces

_CHANNELS_AT_ONCE = 16
"""Channels that one thread rounds at a time."""


class KeptTraces(Protocol):
    """Protocol of traces that are kept in memory."""

    def block(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return float32 traces (stop - start, num_channels) of frames that all are kept."""


class TraceReader:
    """Reads traces such that the value of a sample never depends on the requested interval.

    Near the edge of a request, a filter sees fewer samples, so SpikeInterface returns slightly different
    values for different requests. This reader always requests the same blocks on a fixed grid (frames
    ``k * block`` to ``(k + 1) * block`` of a segment), keeps the last few in memory, and cuts from them.
    Values are rounded to multiples of STEP, so that traces can be kept in 16 bits without being changed;
    those of the live filter are not. Several threads may read; :meth:`read_ahead` reads the next blocks in a
    thread of its own.

    Parameters
    ----------
    recording : BaseRecording
        Preprocessed recording.
    block_s : float
        Length of a block, s.
    repaired : RepairedRecording, optional
        The source of `recording`, which finds the damaged stretches.
    still : StillTraces, optional
        Removes a motion from the traces.
    moving : TraceReader, optional
        With `still`: reads the traces with their motion. Blocks that it keeps are taken from it.

    Attributes
    ----------
    num_segments, num_channels : int
    sampling_frequency : float
    """

    max_blocks = 3
    """Most blocks in memory; with :meth:`read_ahead` two more."""

    def __init__(
        self,
        recording: BaseRecording,
        block_s: float = 1.0,
        repaired: RepairedRecording | None = None,
        still: StillTraces | None = None,
        moving: TraceReader | None = None,
    ):
        if not block_s > 0:
            raise SettingError(f"the length of a block is {block_s!r} s", "it must be above 0", "change it")
        self._recording = recording
        self._repaired = repaired
        self._still = still
        self._moving = moving
        self._may_keep: bool = moving is not None and moving._may_keep
        self._kept: KeptTraces | None = None
        is_live = isinstance(recording, ConditionedRecording) and recording.is_live
        self._rounds = not is_live
        self._damage: dict[tuple[int, int], np.ndarray] = {}
        self.num_segments: int = recording.get_num_segments()
        self.num_channels: int = recording.get_num_channels()
        self.sampling_frequency: float = recording.get_sampling_frequency()
        self._block = max(1, round(block_s * self.sampling_frequency))
        self._blocks: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        source = recording.get_parent() if isinstance(recording, ConditionedRecording) else recording
        self._may_be_not_finite = source.get_dtype().kind == "f"
        self._max_kept = self._least_kept = self.max_blocks
        self._blocks_lock = threading.Lock()
        self._reading: dict[tuple[int, int], threading.Lock] = {}
        self._ahead_thread: threading.Thread | None = None

    def with_blocks_of(self, block_s: float) -> TraceReader:
        """Return a reader of the same traces in blocks of another length, to read short parts."""
        return TraceReader(self._recording, block_s, self._repaired, self._still)

    @property
    def motion(self) -> MotionOfFrames | None:
        """The motion that is removed from the traces, if there is one."""
        if self._still is None:
            return None
        lengths = [self.num_samples(index) for index in range(self.num_segments)]
        return MotionOfFrames(self._still.motion, lengths, self.sampling_frequency)

    def num_samples(self, segment_index: int) -> int:
        """Return the number of frames of a segment."""
        return self._recording.get_num_samples(segment_index)

    def read(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Read the frames `start` to `stop` - 1; frames outside the segment are zeros.

        Parameters
        ----------
        segment_index : int
            Index of the segment.
        start, stop : int
            Frames; may lie before the segment's start or after its end.

        Returns
        -------
        ndarray of float32, shape (stop - start, num_channels)
            The samples of a channel are contiguous in memory. Do not write into the array: it may be a view
            of a block that is kept.

        Raises
        ------
        RecordingError
            If a block holds NaN or infinite values, or cannot be read.
        """
        first, last = max(0, start), min(stop, self.num_samples(segment_index))
        shape = (self.num_channels, max(0, stop - start))
        if first >= last:
            return np.zeros(shape, dtype=np.float32).T
        is_inside = start >= 0 and stop == last
        if is_inside and first // self._block == (last - 1) // self._block:
            offset = first // self._block * self._block
            return self._get_block(segment_index, first // self._block)[first - offset : last - offset]
        traces = (np.empty if is_inside else np.zeros)(shape, dtype=np.float32).T
        for block_index in range(first // self._block, -(-last // self._block)):
            offset = block_index * self._block
            low, high = max(first, offset), min(last, offset + self._block)
            block = self._get_block(segment_index, block_index)
            traces[low - start : high - start] = block[low - offset : high - offset]
        return traces

    def read_ahead(self, segment_index: int, start: int, stop: int) -> None:
        """Start to read the blocks of some frames in another thread; the next :meth:`read` waits for it.

        Nothing is started while the thread is still reading, or if PyTorch, and so Spikewise, is limited to
        one thread.
        """
        if num_threads() == 1 or (self._ahead_thread is not None and self._ahead_thread.is_alive()):
            return
        last = min(stop, self.num_samples(segment_index))
        numbers = range(max(0, start) // self._block, -(-last // self._block))
        ahead = len(numbers) if self._least_kept > self.max_blocks else 2
        self._max_kept = max(self._max_kept, self._least_kept + ahead)

        def run() -> None:
            # An error is raised by the next read(), which reads the block again.
            with contextlib.suppress(Exception):
                for number in numbers:
                    self._get_block(segment_index, number)

        self._ahead_thread = threading.Thread(target=run, name="spikewise-read-ahead", daemon=True)
        self._ahead_thread.start()

    def keep(self, num_samples: int) -> None:
        """Keep at least so many of the samples that were read last, so that they can be read once more."""
        self._least_kept = max(self._least_kept, -(-num_samples // self._block) + 1)
        self._max_kept = max(self._max_kept, self._least_kept)

    def allow_keeping(self) -> None:
        """Allow that all traces are kept in memory (:meth:`read_from`)."""
        self._may_keep = True

    def read_from(self, kept: KeptTraces) -> None:
        """Read from traces that are kept, all of the recording, from now on, if that is allowed."""
        if self._may_keep:
            self._kept = kept
            if self._moving is not None:
                self._moving._kept = None
                self._moving.release()

    def release(self) -> None:
        """Free the blocks that are kept in memory; they are read again when they are needed."""
        if self._ahead_thread is not None:
            self._ahead_thread.join()
        if self._moving is not None:
            self._moving.release()
        with self._blocks_lock:
            self._blocks.clear()

    def damage(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return the damaged stretches between two frames of a segment.

        Blocks that were not read before are examined now.

        Returns
        -------
        ndarray of STRETCH
            Clipped to the frames, in order of time, and cut where blocks end.
        """
        first, last = max(0, start), min(stop, self.num_samples(segment_index))
        if self._repaired is None or first >= last:
            return np.empty(0, STRETCH)
        if self._moving is not None:
            return self._moving.damage(segment_index, first, last)
        blocks = range(first // self._block, -(-last // self._block))
        parts = [self._damage_of(segment_index, block_index) for block_index in blocks]
        return clip_stretches(np.concatenate(parts), first, last)

    def _damage_of(self, segment_index: int, block_index: int) -> np.ndarray:
        key = (segment_index, block_index)
        if key not in self._damage and self._repaired is not None:
            start = block_index * self._block
            stop = min(start + self._block, self.num_samples(segment_index))
            with reading_errors(f"the recording from {start / self.sampling_frequency:.3f} s on"):
                self._damage[key] = self._repaired.damage(segment_index, start, stop)
        return self._damage[key]

    def _get_block(self, segment_index: int, block_index: int) -> np.ndarray:
        key = (segment_index, block_index)
        if (block := self._cached_block(key)) is not None:
            return block
        with self._blocks_lock:
            reading = self._reading.setdefault(key, threading.Lock())
        with reading:  # a second thread that wants the same block waits for it
            if (block := self._cached_block(key)) is not None:
                return block
            block = self._read_block(segment_index, block_index)
            with self._blocks_lock:
                self._reading.pop(key, None)
                self._blocks[key] = block
                while len(self._blocks) > self._max_kept:
                    self._blocks.popitem(last=False)
            return block

    def _cached_block(self, key: tuple[int, int]) -> np.ndarray | None:
        """Return a block if it is in memory, and mark it as the last used."""
        with self._blocks_lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def _read_block(self, segment_index: int, block_index: int) -> np.ndarray:
        start = block_index * self._block
        stop = min(start + self._block, self.num_samples(segment_index))
        if self._kept is not None:
            traces = self._kept.block(segment_index, start, stop)
        elif self._moving is None:
            traces = self._conditioned(segment_index, start, stop)
            if self._repaired is not None:
                self._damage_of(segment_index, block_index)
        else:
            traces = self._moving._get_block(segment_index, block_index)
        if self._still is not None and self._kept is None:
            traces = _rounded(self._still.apply(traces, segment_index, start), True)[0]
        traces.flags.writeable = False
        return traces

    def _conditioned(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return preprocessed traces of a block; raise if they are not finite."""
        with (
            reading_errors(f"the recording from {start / self.sampling_frequency:.3f} s on"),
            nullcontext() if isinstance(self._recording, ConditionedRecording) else READ_LOCK,
        ):
            traces = self._recording.get_traces(segment_index, start, stop).astype(np.float32, copy=False)
        if self._rounds:
            rounded, is_finite = _rounded(traces, isinstance(self._recording, ConditionedRecording))
        else:
            rounded, is_finite = traces, not self._may_be_not_finite or are_finite(traces)
        if not is_finite:
            raise self._not_finite_error(segment_index, start, stop)
        return rounded

    def _not_finite_error(self, segment_index: int, start: int, stop: int) -> RecordingError:
        """Return an error that names the bad channels: those not finite before filter and reference."""
        traces = self._recording.get_traces(segment_index, start, stop)
        source = self._recording
        while source is not None and not isinstance(source, SilencedRecording):
            source = source.get_parent()
        bad = ~np.isfinite(traces)
        if source is not None:
            low = max(0, start - self._block)
            raw = source.get_traces(
                segment_index, low, min(stop + self._block, self.num_samples(segment_index))
            )
            if not np.isfinite(raw).all():
                start, bad = low, ~np.isfinite(raw)
        time_s = (start + int(bad.any(axis=1).argmax())) / self.sampling_frequency
        names = {str(i): "" for i in self._recording.channel_ids[bad.any(axis=0)]}
        return RecordingError(
            f"the traces of {len(names)} channels are NaN or infinite at {time_s:.3f} s of segment "
            f"{segment_index}: {list_channels(names)}",
            "every sample must be a finite number",
            "cut this time out, or leave the channels out with --exclude-channels",
        )


def _rounded(traces: np.ndarray, in_place: bool) -> tuple[np.ndarray, bool]:
    """Return traces (num_samples, num_channels) rounded to multiples of STEP, and whether all are finite."""
    rows = traces.T
    rounded = rows if in_place else np.empty(rows.shape, np.float32)
    are_all_finite = []

    def run(first: int) -> None:
        channels = slice(first, first + _CHANNELS_AT_ONCE)
        are_all_finite.append(round_to_steps(rows[channels], rounded[channels]))

    on_all_cores(run, range(0, len(rows), _CHANNELS_AT_ONCE))
    return rounded.T, all(are_all_finite)


class Traces(Protocol):
    """Protocol of preprocessed traces, which are zero outside the recording."""

    @property
    def num_segments(self) -> int:
        """Number of segments."""

    @property
    def num_channels(self) -> int:
        """Number of channels."""

    @property
    def sampling_frequency(self) -> float:
        """Samples per second."""

    def num_samples(self, segment_index: int) -> int:
        """Return the length of a segment."""

    def read(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return float32 traces (stop - start, num_channels)."""
