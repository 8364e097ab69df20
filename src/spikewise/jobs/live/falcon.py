"""The Falcon Output of the Open Ephys GUI: ZeroMQ messages, each one FlatBuffer with the samples of a block.

The address is that of the plugin, such as ``falcon://127.0.0.1:3335``. Samples are microvolts; messages are
numbered by their first sample, so a lost message is a gap.

Source: the plugin's schema ``channel.fbs``, whose fields are, in this order: samples [float], event_codes
[uint16], stream string, n_channels uint32, n_samples uint32, sample_num uint64, timestamp double, message_id
uint64, sample_rate uint32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

import numpy as np

from spikewise.core.config import StreamConfig
from spikewise.core.errors import MissingExtraError
from spikewise.core.untrusted import parsing
from spikewise.jobs.live.source import (
    MOST_CHANNELS,
    OPEN_S,
    POLL_S,
    Chunk,
    SampleCounter,
    StreamFacts,
    address_of,
    not_a_message,
    nothing_came,
    stream_changed,
    subscribe,
)

PORT = 3335
"""Usual port of the plugin."""
_MOST_WAITING = 2000
"""Most messages that wait here; where more come, ZeroMQ drops them, and they are a gap."""
_SAMPLES, _STREAM, _NUM_CHANNELS, _NUM_SAMPLES, _NUMBER, _RATE = 4, 8, 10, 12, 14, 20
"""Places of the fields in the table of offsets."""


@dataclass(frozen=True)
class FalconMessage:
    """One message.

    Attributes
    ----------
    samples : ndarray of float32
        (num_samples, num_channels), microvolts.
    number : int
        Number of its first sample.
    sampling_frequency : float
    stream : str
        Name of the stream that it belongs to.
    """

    samples: np.ndarray
    number: int
    sampling_frequency: float
    stream: str


class FalconSource:
    """Messages of the Falcon Output; with the setting `stream` only those of one stream."""

    def __init__(self, url: SplitResult, channel_ids: Sequence[str], config: StreamConfig):
        host, port = address_of(url, PORT)
        self._address, self._stream = f"tcp://{host}:{port}", config.stream
        self._socket: Any = None

    def open(self) -> StreamFacts:
        """Subscribe, and wait for the first message."""
        self._socket = subscribe(self._address, b"", _MOST_WAITING, "a Falcon source")
        first = self._receive(OPEN_S)
        if first is None:
            raise nothing_came(f"no message of {self._address}", "Falcon Output", self._stream)
        self._first: FalconMessage | None = first
        self._facts = StreamFacts(first.samples.shape[1], first.sampling_frequency, "float32", None, 1.0)
        self._counter = SampleCounter(first.sampling_frequency)
        return self._facts

    def chunks(self) -> Iterator[Chunk]:
        """Yield the samples of each message."""
        num_channels, rate = self._facts.num_channels, self._facts.sampling_frequency
        while True:
            message, self._first = self._first or self._receive(POLL_S), None
            if message is None:
                yield Chunk(np.empty((0, num_channels), np.float32))
                continue
            if message.samples.shape[1] != num_channels or message.sampling_frequency != rate:
                raise stream_changed(
                    f"{message.samples.shape[1]} channels at {message.sampling_frequency:g} Hz",
                    f"{num_channels} channels at {rate:g} Hz",
                )
            yield Chunk(message.samples, self._counter.gap_before(message.number, len(message.samples)))

    def close(self) -> None:
        """Close the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _receive(self, timeout_s: float) -> FalconMessage | None:
        """Return the next message of the stream; None if none came in time."""
        while self._socket.poll(round(1000 * timeout_s)):
            message = read_message(self._socket.recv())
            if self._stream in (None, message.stream):
                return message
        return None


def read_message(content: bytes) -> FalconMessage:
    """Read one message; nothing in it is trusted.

    Raises
    ------
    StreamError
        If it is no message of the Falcon Output.
    """
    try:
        from flatbuffers import encode, number_types, packer, table
    except ImportError as error:
        raise MissingExtraError("flatbuffers", "live", "a Falcon source") from error
    with parsing(lambda reason: not_a_message("the Falcon Output", reason)):
        content = bytes(content)
        if len(content) < 16:
            raise ValueError(f"it has {len(content)} bytes")
        fields = table.Table(content, encode.Get(packer.uoffset, content, 0))

        def number(place: int, flags: Any) -> int:
            offset = fields.Offset(place)
            return int(fields.Get(flags, offset + fields.Pos)) if offset else 0

        num_channels = number(_NUM_CHANNELS, number_types.Uint32Flags)
        num_samples = number(_NUM_SAMPLES, number_types.Uint32Flags)
        rate = number(_RATE, number_types.Uint32Flags)
        offset = fields.Offset(_SAMPLES)
        count = fields.VectorLen(offset) if offset else 0
        if not 0 < num_channels <= MOST_CHANNELS or not 0 < rate <= 10**7 or num_samples == 0:
            raise ValueError(f"it claims {num_samples} samples of {num_channels} channels at {rate} Hz")
        start = fields.Vector(offset) if offset else 0
        if count != num_channels * num_samples or start < 0 or start + 4 * count > len(content):
            raise ValueError(f"it claims {num_samples} x {num_channels} values and has {count}")
        values = np.frombuffer(content, "<f4", count, start)
        name = fields.Offset(_STREAM)
        stream = bytes(fields.String(name + fields.Pos)).decode("utf-8", "replace") if name else ""
        return FalconMessage(
            np.ascontiguousarray(values.reshape(num_channels, num_samples).T),
            number(_NUMBER, number_types.Uint64Flags),
            float(rate),
            stream,
        )
