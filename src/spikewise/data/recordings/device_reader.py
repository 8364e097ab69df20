"""Preprocessed traces on a GPU: raw samples are copied to it while the block before them is processed.

A separate thread reads the blocks of :class:`spikewise.data.recordings.reader.TraceReader`'s grid. Damage is
found and bridged as on the CPU. The raw samples are copied through page-locked memory on a separate CUDA
stream, and the filtered, referenced and scaled blocks stay on the device.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from spikeinterface.core import BaseRecording, get_chunk_with_margin
from torch import Tensor

from spikewise.core.threads import READ_LOCK
from spikewise.data.recordings.conditioning import ConditionedRecording
from spikewise.data.recordings.device_conditioning import NUMBERS, Conditioning, DeviceConditioner
from spikewise.data.recordings.formats import reading_errors
from spikewise.data.recordings.reader import TraceReader
from spikewise.data.recordings.repair import RepairedRecording

_KEPT_BLOCKS = 2
"""Blocks that stay on the device: a tile may need the end of one and the start of the next."""


@runtime_checkable
class DeviceTraces(Protocol):
    """Protocol of traces that can be read on a device."""

    def read_on_device(self, segment_index: int, start: int, stop: int, until: int) -> Tensor:
        """Return traces (num_channels, stop - start) float32 on the device, zero outside the segment.

        Frames before `until` will be requested next, and may be read ahead.
        """

    def settle(self) -> None:
        """Wait until reading ahead has ended; raise if the traces read so far are not finite."""

    def forget(self) -> None:
        """Free the memory of the device."""


@dataclass(frozen=True)
class _Sent:
    """Raw samples on their way to the device, with the lengths of their margins."""

    raw: Tensor
    arrived: torch.cuda.Event | None
    left: int
    right: int


class DeviceReader(TraceReader):
    """A :class:`TraceReader` that also returns traces on a device, filtered and scaled there.

    Parameters
    ----------
    recording : ConditionedRecording
    device : torch.device
    block_s : float
        Length of a block, s.
    repaired : RepairedRecording, optional
        The source of `recording`, which finds the damaged stretches.
    """

    def __init__(
        self,
        recording: ConditionedRecording,
        device: torch.device,
        block_s: float = 1.0,
        repaired: RepairedRecording | None = None,
    ):
        super().__init__(recording, block_s, repaired)
        self.device = device
        self._conditioning = Conditioning.of(recording)
        self._raw: BaseRecording = recording.get_parent()
        self._thread = ThreadPoolExecutor(1, "spikewise-reader")
        self._pending: dict[tuple[int, int], Future[_Sent]] = {}
        self._on_device: OrderedDict[tuple[int, int], Tensor] = OrderedDict()
        self._unchecked: list[tuple[int, int, Tensor]] = []
        self._kept_on_device = _KEPT_BLOCKS

    # Both use memory of the device, so they are made at first use.

    @cached_property
    def _conditioner(self) -> DeviceConditioner:
        return DeviceConditioner(self._conditioning, self._block, self.device)

    @cached_property
    def _sender(self) -> _Sender:
        return _Sender(self.device)

    def read_on_device(self, segment_index: int, start: int, stop: int, until: int) -> Tensor:
        """Return traces on the device, and read ahead.

        Parameters
        ----------
        segment_index : int
        start, stop : int
            Frames; may lie before the segment's start or after its end, where traces are zero.
        until : int
            Frames before it will be requested next.

        Returns
        -------
        Tensor
            (num_channels, stop - start) float32

        Raises
        ------
        RecordingError
            If the recording cannot be read.
        """
        traces = torch.zeros(self.num_channels, stop - start, device=self.device)
        length = self.num_samples(segment_index)
        first, last = max(0, start), min(stop, length)
        if first >= last:
            return traces
        last_block = (min(max(until, last), length) - 1) // self._block
        for index in range(first // self._block, (last - 1) // self._block + 1):
            begin = index * self._block
            low, high = max(first, begin), min(last, begin + self._block)
            block = self._block_on_device(segment_index, index, last_block)
            traces[:, low - start : high - start] = block[:, low - begin : high - begin]
        return traces

    def keep(self, num_samples: int) -> None:
        """Keep at least so many of the samples that were read last on the device."""
        self._kept_on_device = max(self._kept_on_device, -(-num_samples // self._block) + 1)

    def read_ahead(self, segment_index: int, start: int, stop: int) -> None:
        """Do nothing: :meth:`read_on_device` reads ahead by itself."""

    def settle(self) -> None:
        """Wait until reading ahead has ended; raise if the traces read so far are not finite.

        Raises
        ------
        RecordingError
            As in :meth:`read`.
        """
        for sent in self._pending.values():
            sent.exception()
        unchecked, self._unchecked = self._unchecked, []
        for segment_index, index, is_finite in unchecked:
            if not is_finite:
                self._get_block(segment_index, index)

    def forget(self) -> None:
        """Free the blocks on the device, after reading ahead has ended."""
        for sent in self._pending.values():
            sent.exception()
        self._pending, self._unchecked = {}, []
        self._on_device.clear()

    def release(self) -> None:
        """Free the blocks that are kept in memory and on the device."""
        super().release()
        self.forget()

    def _block_on_device(self, segment_index: int, index: int, last_block: int) -> Tensor:
        """Return a conditioned block (num_channels, num_samples), and start to send the next one."""
        key = (segment_index, index)
        if key not in self._on_device:
            block_sent = self._send(key)
            self._pending = {other: sent for other, sent in self._pending.items() if other[1] == index + 1}
            sent = block_sent.result()
            if index < last_block:
                self._send((segment_index, index + 1))
            if sent.arrived is not None:
                stream = torch.cuda.current_stream(self.device)
                stream.wait_event(sent.arrived)
                sent.raw.record_stream(stream)
            while len(self._on_device) >= self._kept_on_device:
                self._on_device.popitem(last=False)
            block = self._conditioner(sent.raw.to(self.device), sent.left, sent.right)
            if self._may_be_not_finite:
                self._unchecked.append((*key, torch.isfinite(block).all()))
            self._on_device[key] = block
        elif index < last_block and (segment_index, index + 1) not in self._on_device:
            self._send((segment_index, index + 1))
        return self._on_device[key]

    def _send(self, key: tuple[int, int]) -> Future[_Sent]:
        """Start to send the raw samples of a block to the device, unless this has started already."""
        if key not in self._pending:
            self._pending[key] = self._thread.submit(self._read_and_send, *key)
        return self._pending[key]

    def _read_and_send(self, segment_index: int, index: int) -> _Sent:
        """Read a block with the filter's margins, and start to copy it."""
        start = index * self._block
        stop = min(start + self._block, self.num_samples(segment_index))
        with READ_LOCK, reading_errors(f"the recording from {start / self.sampling_frequency:.3f} s on"):
            raw, left, right = get_chunk_with_margin(
                self._raw.segments[segment_index], start, stop, slice(None), self._conditioning.margin
            )
            if self._repaired is not None:
                self._damage_of(segment_index, index)  # uses the damage found while reading the block
        return _Sent(*self._sender(raw), left, right)


class _Sender:
    """Copies raw samples to a device; on CUDA through page-locked memory, on a separate stream.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._turn = 0
        self._locked: list[Tensor | None] = [None, None]
        self._copied: list[torch.cuda.Event | None] = [None, None]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, raw: np.ndarray) -> tuple[Tensor, torch.cuda.Event | None]:
        """Start to copy (num_samples, num_channels); return the copy and the event that ends the copying.

        Without CUDA the samples are copied at once, and the event is None.
        """
        native = raw.dtype.newbyteorder("=")
        if self._stream is None:
            return torch.from_numpy(np.array(raw, dtype=native, order="C")), None
        self._turn = 1 - self._turn
        before = self._copied[self._turn]
        if before is not None:
            before.synchronize()  # the previous content has been copied
        locked = self._locked_memory(raw.size * raw.itemsize)
        values = locked[: raw.size * raw.itemsize].view(torch.from_numpy(np.empty(0, native)).dtype)
        values = values.view(raw.shape)
        np.copyto(values.numpy(), raw)
        with torch.cuda.stream(self._stream):
            sent = values.to(self._device, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        self._copied[self._turn] = arrived
        return sent, arrived

    def _locked_memory(self, num_bytes: int) -> Tensor:
        """Return page-locked memory of at least so many bytes."""
        locked = self._locked[self._turn]
        if locked is None or len(locked) < num_bytes:
            locked = torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)
            self._locked[self._turn] = locked
        return locked


def make_reader(
    recording: BaseRecording, device: torch.device, repaired: RepairedRecording | None = None
) -> TraceReader:
    """Return a reader of preprocessed traces, which filters and scales them on the device if it can.

    Parameters
    ----------
    recording : BaseRecording
        Preprocessed recording.
    device : torch.device
        Device for the traces.
    repaired : RepairedRecording, optional
        The source of `recording`.
    """
    fits = (
        isinstance(recording, ConditionedRecording)
        and not recording.is_live
        and recording.get_parent().get_dtype().newbyteorder("=") in NUMBERS
    )
    if device.type == "cpu" or not fits:
        return TraceReader(recording, repaired=repaired)
    return DeviceReader(recording, device, repaired=repaired)
