"""The command server of SpikeGLX, such as ``spikeglx://127.0.0.1:4142/0`` for the first imec probe.

The server answers lines of text. ``FETCH js ip start most channels every`` is answered by a line
``BINARY_DATA channels samples uint64(first)``, the samples as int16, and a line ``OK``. Here js is 2 (imec),
ip the number of the probe, and the channels are the first ones of the stream, those of the action potentials.
The samples are fetched as soon as they are there. SpikeGLX keeps the last seconds, so a slow moment loses
nothing.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Sequence
from urllib.parse import SplitResult

import numpy as np

from spikewise.core.config import StreamConfig
from spikewise.jobs.live.source import (
    MOST_BYTES,
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

PORT = 4142
_IMEC = 2
_TIMEOUT_S = 5.0
_PAUSE_S = 0.0005
"""Pause before the next question where no new samples are there; chosen by hand."""
_MOST_S = 0.5
"""Most seconds of samples of one question; chosen by hand."""
_LONGEST_LINE = 4096


class SpikeglxSource:
    """Samples that are fetched from SpikeGLX: the first channels of a probe, as many as the model has."""

    def __init__(self, url: SplitResult, channel_ids: Sequence[str], config: StreamConfig):
        self._address = address_of(url, PORT)
        probe = url.path.strip("/") or "0"
        if not probe.isdigit():
            raise StreamError(
                f"the probe of the source is {probe!r}",
                "a number, as in spikeglx://HOST:PORT/0",
                "correct it",
            )
        self._probe = int(probe)
        self._num_channels = len(channel_ids)
        self._connection: socket.socket | None = None
        self._rest = b""

    def open(self) -> StreamFacts:
        """Connect, and ask for the sampling frequency."""
        try:
            self._connect()
            rate = self._number(f"GETSTREAMSAMPLERATE {_IMEC} {self._probe}")
            self._next = int(self._number(f"GETSTREAMSAMPLECOUNT {_IMEC} {self._probe}"))
        except ConnectionLost as error:
            raise not_a_message("SpikeGLX", "it closed the connection") from error
        self._rate = rate
        self._counter = SampleCounter(rate)
        return StreamFacts(self._num_channels, rate, "int16")

    def chunks(self) -> Iterator[Chunk]:
        """Yield what is new; connect again if the connection breaks."""
        nothing = np.empty((0, self._num_channels), np.int16)
        waited_since = time.perf_counter()
        while True:
            try:
                if self._connection is None:
                    self._connect()
                first, samples = self._fetch()
            except (ConnectionLost, StreamError) as error:
                if isinstance(error, StreamError) and self._connection is not None:
                    raise
                self.close()
                time.sleep(POLL_S)
                yield Chunk(nothing)
                continue
            if len(samples):
                waited_since = time.perf_counter()
                yield Chunk(samples, self._counter.gap_before(first, len(samples)))
            else:
                time.sleep(_PAUSE_S)
                if time.perf_counter() - waited_since > POLL_S:
                    waited_since = time.perf_counter()
                    yield Chunk(nothing)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._rest = None, b""

    def _connect(self) -> None:
        self._connection = connect(self._address, "SpikeGLX", _TIMEOUT_S)
        self._rest = b""

    def _fetch(self) -> tuple[int, np.ndarray]:
        """Return the new samples and the number of the first."""
        count = int(self._number(f"GETSTREAMSAMPLECOUNT {_IMEC} {self._probe}"))
        if count < self._next:  # a new run, which counts from 0
            self._next = 0
        most = min(count - self._next, max(1, round(_MOST_S * self._rate)))
        if most <= 0:
            return self._next, np.empty((0, self._num_channels), np.int16)
        channels = "#".join(map(str, range(self._num_channels)))
        self._send(f"FETCH {_IMEC} {self._probe} {self._next} {most} {channels} 1")
        answer = self._line()
        if answer.startswith("ERROR"):
            # The samples are no longer kept, or the run has ended: go on with the newest.
            self._next = count
            return self._next, np.empty((0, self._num_channels), np.int16)
        header = re.fullmatch(r"BINARY_DATA (\d{1,6}) (\d{1,9}) uint64\((\d{1,19})\)", answer)
        num_channels, num_samples, first = map(int, header.groups()) if header else (0, 0, 0)
        size = 2 * num_channels * num_samples
        if num_channels != self._num_channels or size > MOST_BYTES:
            raise not_a_message("SpikeGLX", f"the answer to FETCH is {answer[:100]!r}")
        content = bytearray(size)
        self._read_into(memoryview(content))
        self._expect_ok()
        self._next = first + num_samples
        return first, np.frombuffer(content, "<i2").reshape(num_samples, num_channels)

    def _number(self, question: str) -> float:
        """Ask for a number."""
        self._send(question)
        answer = self._line()
        try:
            number = float(answer)
        except ValueError as error:
            raise not_a_message("SpikeGLX", f"the answer to {question!r} is {answer[:100]!r}") from error
        self._expect_ok()
        return number

    def _expect_ok(self) -> None:
        answer = self._line()
        if answer != "OK":
            raise not_a_message("SpikeGLX", f"{answer[:100]!r} in the place of OK")

    def _send(self, line: str) -> None:
        if self._connection is None:
            raise ConnectionLost
        try:
            self._connection.sendall(line.encode() + b"\n")
        except OSError as error:
            raise ConnectionLost from error

    def _line(self) -> str:
        """Return the next line."""
        while b"\n" not in self._rest:
            if len(self._rest) > _LONGEST_LINE:
                raise not_a_message("SpikeGLX", "a line without an end")
            self._rest += self._receive()
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode("ascii", "replace").strip()

    def _receive(self) -> bytes:
        if self._connection is None:
            raise ConnectionLost
        try:
            received = self._connection.recv(65536)
        except OSError as error:
            raise ConnectionLost from error
        if not received:
            raise ConnectionLost
        return received

    def _read_into(self, buffer: memoryview) -> None:
        held = min(len(buffer), len(self._rest))
        buffer[:held], self._rest = self._rest[:held], self._rest[held:]
        if self._connection is None:
            raise ConnectionLost
        receive_exactly(self._connection, buffer[held:])
