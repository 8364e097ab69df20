"""The ZMQ Interface of the Open Ephys GUI: one message for each channel of each block.

The address is that of the plugin, such as ``openephys://127.0.0.1:5556``. A message has three frames:
``DATA``, a JSON object with the stream, the channel, the number of the first sample and the rate, and the
samples as float32 in microvolts. A block is complete when all channels have come; one that stays incomplete
is a gap. At the next port the plugin takes a sign of life every two seconds.

The Falcon Output sends all channels in one message, which takes less time.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

import numpy as np

from spikewise.core.config import StreamConfig
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

PORT = 5556
"""Usual port of the plugin; the next one takes the signs of life."""
_LIFE_S = 2.0
"""Time between two signs of life."""
_MOST_WAITING = 50_000
"""Most messages that wait here; where more come, ZeroMQ drops them, and they are a gap."""
_MOST_OPEN = 4
"""Blocks that wait for more channels; where more begin, the first is given up. Chosen by hand."""


@dataclass(frozen=True)
class ChannelMessage:
    """The samples of one channel of a block.

    Attributes
    ----------
    samples : ndarray of float32
        (num_samples,), microvolts.
    number : int
        Number of the first sample.
    sampling_frequency : float
    stream, name : str
        Names of the stream and of the channel.
    channel : int
        Number of the channel.
    """

    samples: np.ndarray
    number: int
    sampling_frequency: float
    stream: str
    name: str
    channel: int


class OpenEphysSource:
    """Messages of the ZMQ Interface; with the setting `stream` only those of one stream."""

    def __init__(self, url: SplitResult, channel_ids: Sequence[str], config: StreamConfig):
        host, port = address_of(url, PORT)
        self._address, self._life_address = f"tcp://{host}:{port}", f"tcp://{host}:{port + 1}"
        self._wanted, self._stream = [str(name) for name in channel_ids], config.stream
        self._socket: Any = None
        self._life: Any = None
        self._life_s = 0.0
        self._uuid = str(uuid.uuid4())
        self._open: dict[int, dict[int, np.ndarray]] = {}

    def open(self) -> StreamFacts:
        """Subscribe, and learn from the first blocks which channels there are."""
        self._socket = subscribe(self._address, b"DATA", _MOST_WAITING, "an Open Ephys source")
        import zmq

        self._life = zmq.Context.instance().socket(zmq.REQ)
        for option, value in ((zmq.REQ_RELAXED, 1), (zmq.REQ_CORRELATE, 1), (zmq.LINGER, 0)):
            self._life.setsockopt(option, value)
        self._life.connect(self._life_address)
        names = self._find_channels()
        self._columns = {channel: column for column, channel in enumerate(sorted(names))}
        ordered = [names[channel] for channel in sorted(names)]
        is_named = len(set(ordered)) == len(ordered) and set(self._wanted) <= set(ordered)
        return StreamFacts(len(names), self._rate, "float32", tuple(ordered) if is_named else None, 1.0)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the samples of each block that is complete."""
        counter = SampleCounter(self._rate)
        while True:
            message = self._receive(POLL_S)
            if message is None:
                yield Chunk(np.empty((0, len(self._columns)), np.float32))
                continue
            if message.channel not in self._columns or message.sampling_frequency != self._rate:
                raise stream_changed(
                    f"channel {message.channel} at {message.sampling_frequency:g} Hz",
                    f"the same {len(self._columns)} channels at {self._rate:g} Hz",
                )
            block = self._add(message)
            if block is not None:
                yield Chunk(block, counter.gap_before(message.number, len(block)))

    def close(self) -> None:
        """Close the sockets."""
        for one in (self._socket, self._life):
            if one is not None:
                one.close()
        self._socket = self._life = None

    def _find_channels(self) -> dict[int, str]:
        """Return the names of the channels by their numbers: those of one block that was sent as a whole."""
        end = time.perf_counter() + OPEN_S
        blocks: dict[int, dict[int, str]] = {}
        while (message := self._receive(max(0.0, end - time.perf_counter()))) is not None:
            if message.number not in blocks:
                if len(blocks) == 2:  # the second is whole: the first may have begun before
                    break
                blocks[message.number] = {}
            blocks[message.number][message.channel] = message.name
            self._rate = message.sampling_frequency
        if message is None or not blocks:
            raise nothing_came(f"no two blocks of samples of {self._address}", "ZMQ Interface", self._stream)
        self._open[message.number] = {message.channel: message.samples}
        return list(blocks.values())[-1]

    def _add(self, message: ChannelMessage) -> np.ndarray | None:
        """Add a channel to its block; return the block if that makes it complete."""
        block = self._open.setdefault(message.number, {})
        block[message.channel] = message.samples
        if len(block) < len(self._columns):
            while len(self._open) > _MOST_OPEN:
                del self._open[next(iter(self._open))]
            return None
        del self._open[message.number]
        if len({len(samples) for samples in block.values()}) > 1:
            raise not_a_message("the ZMQ Interface", "the channels of a block have different lengths")
        return np.column_stack([block[channel] for channel in self._columns])

    def _receive(self, timeout_s: float) -> ChannelMessage | None:
        """Return the next message of the stream; None if none came in time."""
        while self._socket.poll(round(1000 * timeout_s)):
            self._sign_of_life()
            message = read_channel_message(self._socket.recv_multipart())
            if self._stream in (None, message.stream):
                return message
        self._sign_of_life()
        return None

    def _sign_of_life(self) -> None:
        """Tell the plugin that we are there, if it is time; its answers are not needed."""
        import zmq

        now = time.perf_counter()
        if now - self._life_s < _LIFE_S:
            return
        self._life_s = now
        while self._life.poll(0):
            self._life.recv()
        text = {"application": "Spikewise", "uuid": self._uuid, "type": "heartbeat"}
        try:
            self._life.send(json.dumps(text).encode(), zmq.NOBLOCK)
        except zmq.ZMQError:  # nobody listens there: the samples come without it too
            self._life_s = now


def read_channel_message(frames: list[bytes]) -> ChannelMessage:
    """Read one message; nothing in it is trusted.

    Raises
    ------
    StreamError
        If it is no message of the ZMQ Interface.
    """
    with parsing(lambda reason: not_a_message("the ZMQ Interface", reason)):
        if len(frames) != 3:
            raise ValueError(f"it has {len(frames)} frames")
        content = json.loads(frames[1].rstrip(b"\0").decode("utf-8"))["content"]
        channel, count, number = (int(content[name]) for name in ("channel_num", "num_samples", "sample_num"))
        rate = float(content["sample_rate"])
        if not 0 <= channel < MOST_CHANNELS or not 0 < rate <= 1e7 or not 0 <= number < 2**62:
            raise ValueError(f"it claims sample {number} of channel {channel} at {rate} Hz")
        if count <= 0 or len(frames[2]) != 4 * count:
            raise ValueError(f"it claims {count} samples and has {len(frames[2])} bytes")
        return ChannelMessage(
            np.frombuffer(frames[2], "<f4"),
            number,
            rate,
            str(content["stream"]),
            str(content["channel_name"]),
            channel,
        )
