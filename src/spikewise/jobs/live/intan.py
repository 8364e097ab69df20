"""The TCP output of the Intan RHX software, such as ``intan://127.0.0.1:5000``.

RHX listens at two ports: commands (5000) and waveforms (the next one, 5001); both must be set to listen in
its window. This source chooses the channels and starts the acquisition. It never stops one: at the beginning
RHX must be stopped; after a broken connection, an acquisition that still runs is gone on with.

A block of waveforms is little endian: the number 0x2ef07a08, then 128 times a uint32, the number of the
sample, and a uint16 for each chosen channel, in the order of RHX. The voltage is 0.195 uV times the number
minus 32768. Source: Intan RHX user guide, "Remote TCP control".
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Iterator, Sequence
from urllib.parse import SplitResult

import numpy as np

from spikewise.core.config import StreamConfig
from spikewise.jobs.live.source import (
    POLL_S,
    Chunk,
    ConnectionLost,
    SampleCounter,
    StreamError,
    StreamFacts,
    address_of,
    connect,
    not_a_message,
    receive_exactly,
)

PORT = 5000
"""Usual port of the commands; that of the waveforms is the next one."""
MAGIC = 0x2EF07A08
SAMPLES_OF_BLOCK = 128
_GAIN_UV, _MIDDLE = 0.195, 32768
_ANSWER_S = 2.0
_MOST_ANSWER = 2**16
"""Most bytes of an answer; chosen by hand."""


class IntanSource:
    """Waveforms of RHX; the channels are those of the model, by the native names of RHX, such as A-000."""

    def __init__(self, url: SplitResult, channel_ids: Sequence[str], config: StreamConfig):
        host, port = address_of(url, PORT)
        self._commands_at, self._waveforms_at = (host, port), (host, port + 1)
        self._names = list(channel_ids)
        self._commands: socket.socket | None = None
        self._waveforms: socket.socket | None = None
        self._is_known = False

    def open(self) -> StreamFacts:
        """Choose the channels, and start."""
        for name in self._names:
            if not re.fullmatch(r"[A-H]-\d{3}", name):
                raise StreamError(
                    f"the model has a channel {name!r}",
                    "channels that are named as in RHX, such as A-000",
                    "train the model on a recording of RHX",
                )
        rate = self._connect()
        self._counter = SampleCounter(rate)
        self._block = np.dtype(
            [
                ("magic", "<u4"),
                ("samples", [("number", "<i4"), ("values", "<u2", len(self._names))], SAMPLES_OF_BLOCK),
            ]
        )
        # RHX sends the channels in its own order, by port and number.
        self._order = np.argsort(np.argsort(self._names))
        return StreamFacts(len(self._names), rate, "int16", None, _GAIN_UV)

    def chunks(self) -> Iterator[Chunk]:
        """Yield the samples of each block; connect again if the connection breaks."""
        buffer = memoryview(bytearray(self._block.itemsize))
        nothing = np.empty((0, len(self._names)), np.int16)
        while True:
            try:
                if self._waveforms is None:
                    self._connect()
                if not self._is_ready():
                    yield Chunk(nothing)
                    continue
                receive_exactly(self._socket(), buffer)
            except (ConnectionLost, StreamError):
                self.close()
                time.sleep(POLL_S)
                yield Chunk(nothing)
                continue
            block = np.frombuffer(buffer, self._block)[0]
            if block["magic"] != MAGIC:
                raise not_a_message("Intan RHX", f"a block begins with {int(block['magic']):#010x}")
            yield from self._parts(block["samples"])

    def close(self) -> None:
        """Close both connections; RHX goes on."""
        for connection in (self._commands, self._waveforms):
            if connection is not None:
                connection.close()
        self._commands = self._waveforms = None

    def _parts(self, samples: np.ndarray) -> Iterator[Chunk]:
        """Yield the samples of a block, cut where their numbers jump."""
        numbers = samples["number"].astype(np.int64)
        values = (samples["values"][:, self._order].astype(np.int32) - _MIDDLE).astype(np.int16)
        for part in np.split(np.arange(len(numbers)), np.flatnonzero(np.diff(numbers) != 1) + 1):
            gap = self._counter.gap_before(int(numbers[part[0]]), len(part))
            yield Chunk(values[part], gap)

    def _socket(self) -> socket.socket:
        if self._waveforms is None:
            raise ConnectionLost
        return self._waveforms

    def _is_ready(self) -> bool:
        """Wait a little for the first byte."""
        connection = self._socket()
        connection.settimeout(POLL_S)
        try:
            is_open = bool(connection.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return False
        except OSError as error:
            raise ConnectionLost from error
        finally:
            connection.settimeout(_ANSWER_S)
        if not is_open:
            raise ConnectionLost
        return True

    def _connect(self) -> float:
        """Connect, choose the channels, and run; return the sampling frequency."""
        self._commands = connect(self._commands_at, "the commands of Intan RHX", _ANSWER_S)
        rate = self._ask_number("get SampleRateHertz")
        is_stopped = self._ask("get RunMode").rsplit(" ", 1)[-1].lower() == "stop"
        if not is_stopped and not self._is_known:
            raise StreamError(
                "Intan RHX is running", "RHX must be stopped, to choose the channels", "stop it in its window"
            )
        if is_stopped:
            self._tell("execute ClearAllDataOutputs", "set TCPNumberDataBlocksPerWrite 1")
            self._tell(*(f"set {name}.TCPDataOutputEnabled true" for name in self._names))
        self._waveforms = connect(self._waveforms_at, "the waveforms of Intan RHX", _ANSWER_S)
        if is_stopped:
            self._tell("set RunMode Run")
        self._is_known = True
        return rate

    def _tell(self, *commands: str) -> None:
        """Send commands that have no answer."""
        if self._commands is None:
            raise ConnectionLost
        try:
            for command in commands:
                self._commands.sendall(command.encode() + b";")
        except OSError as error:
            raise ConnectionLost from error

    def _ask(self, command: str) -> str:
        """Send a command, and return its answer, such as ``Return: SampleRateHertz 30000``."""
        self._tell(command)
        answer = b""
        if self._commands is not None:
            with contextlib.suppress(TimeoutError):
                while b"Return:" not in answer and len(answer) < _MOST_ANSWER:
                    received = self._commands.recv(4096)
                    if not received:
                        raise ConnectionLost
                    answer += received
        if b"Return:" not in answer:
            raise not_a_message("Intan RHX", f"no answer to {command!r}")
        return answer.decode("ascii", "replace").strip()

    def _ask_number(self, command: str) -> float:
        answer = self._ask(command)
        try:
            return float(answer.rsplit(" ", 1)[-1])
        except ValueError as error:
            raise not_a_message("Intan RHX", f"{answer[:100]!r} is no answer to {command!r}") from error
