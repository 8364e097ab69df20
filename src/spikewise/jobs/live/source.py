"""What all sources of live samples have in common: their facts, their chunks, counters, connections.

A source opens a stream and yields chunks. It never waits for long: where no samples come, it yields empty
chunks, so that the loop can be ended. A connection that breaks is opened again by the source itself; what was
missed stands as a gap in the next chunk.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import SplitResult

import numpy as np

from spikewise.core.errors import MissingExtraError, SpikewiseError
from spikewise.core.rates import is_same_rate, show_rate

POLL_S = 0.1
"""How long a source waits for samples before it yields an empty chunk; chosen by hand."""
MOST_BYTES = 2**26
"""Largest message of a source; larger ones are refused. Chosen by hand."""
OPEN_S = 10.0
"""How long the first messages of the Open Ephys GUI are waited for; chosen by hand."""
MOST_CHANNELS = 2**16
"""Most channels that a message may claim; chosen by hand."""


class StreamError(SpikewiseError, RuntimeError):
    """A stream cannot be reached, does not fit the model, or sends what is no message of its protocol."""


class ConnectionLost(Exception):
    """The connection broke; the source tries to open it again."""


@dataclass(frozen=True)
class StreamFacts:
    """What is known of a stream when it is open.

    Attributes
    ----------
    num_channels : int
    sampling_frequency : float or None
        In Hz; None: the source cannot tell.
    dtype : str
        Type of the samples.
    channel_ids : tuple of str or None
        Names of the columns, if they are known and are those of the recording of the training.
    gain_to_uV : float or None
        Microvolts for one unit of the samples, if it is known.
    """

    num_channels: int
    sampling_frequency: float | None
    dtype: str
    channel_ids: tuple[str, ...] | None = None
    gain_to_uV: float | None = None


@dataclass(frozen=True)
class Chunk:
    """Samples that arrived together.

    Attributes
    ----------
    samples : ndarray
        (num_samples, num_channels); empty where nothing came for a while.
    gap : int or None
        Samples that are missing before these; 0 begins a new stretch where none is missing. None: they
        follow the samples before.
    received_s : float
        When they had arrived, by :func:`time.perf_counter`.
    """

    samples: np.ndarray
    gap: int | None = None
    received_s: float = field(default_factory=time.perf_counter)


class Source(Protocol):
    """A source of live samples."""

    def open(self) -> StreamFacts:
        """Connect, and return the facts of the stream."""

    def chunks(self) -> Iterator[Chunk]:
        """Yield the samples as they come; the end of the iteration is the end of the stream."""

    def close(self) -> None:
        """Free everything; may be called at any time."""


class SampleCounter:
    """Finds gaps from the running numbers of samples.

    Where a number is lower than expected, the source was started again. Then the gap is the time since the
    last sample.

    Parameters
    ----------
    sampling_frequency : float
        In Hz.
    """

    def __init__(self, sampling_frequency: float):
        self._rate = sampling_frequency
        self._expected: int | None = None
        self._last_s = time.perf_counter()

    def gap_before(self, number: int, num_samples: int) -> int | None:
        """Return the gap before a chunk whose first sample has a number; see :class:`Chunk`."""
        now = time.perf_counter()
        gap = None
        if self._expected is not None and number != self._expected:
            gap = number - self._expected
            if gap < 0:
                gap = max(0, round((now - self._last_s) * self._rate) - num_samples)
        self._expected, self._last_s = number + num_samples, now
        return gap


def connect(address: tuple[str, int], what: str, timeout_s: float = 5.0) -> socket.socket:
    """Open a TCP connection.

    Raises
    ------
    StreamError
        If nothing answers at the address.
    """
    try:
        connection = socket.create_connection(address, timeout_s)
    except OSError as error:
        raise StreamError(
            f"{what} cannot be reached at {address[0]}:{address[1]}: {error.strerror or error}",
            "the address and port of the program that sends the samples",
            "start it, switch its output on, or correct the address",
        ) from error
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def receive_exactly(connection: socket.socket, buffer: memoryview) -> None:
    """Fill a buffer from a connection; raise ConnectionLost if it ends before."""
    done = 0
    while done < len(buffer):
        try:
            count = connection.recv_into(buffer[done:])
        except OSError as error:
            raise ConnectionLost from error
        if count == 0:
            raise ConnectionLost
        done += count


def subscribe(address: str, topic: bytes, most_waiting: int, what: str) -> Any:
    """Return a socket of ZeroMQ that receives the messages of a publisher, also of one that starts later.

    Parameters
    ----------
    address : str
        Such as ``tcp://127.0.0.1:3335``.
    topic : bytes
        How its messages begin.
    most_waiting : int
        Most messages that wait here; where more come, ZeroMQ drops them.
    what : str
        For the error if pyzmq is not installed.
    """
    try:
        import zmq
    except ImportError as error:
        raise MissingExtraError("pyzmq", "live", what) from error
    subscriber: Any = zmq.Context.instance().socket(zmq.SUB)
    for option, value in (
        (zmq.RCVHWM, most_waiting),
        (zmq.MAXMSGSIZE, MOST_BYTES),
        (zmq.RECONNECT_IVL, 100),
        (zmq.LINGER, 0),
        (zmq.SUBSCRIBE, topic),
    ):
        subscriber.setsockopt(option, value)
    subscriber.connect(address)
    return subscriber


def nothing_came(what: str, sender: str, stream: str | None) -> StreamError:
    """Return the error for a sender of the Open Ephys GUI that is silent; `what` says what did not come."""
    return StreamError(
        f"{what} came in {OPEN_S:g} s" + (f" for the stream {stream!r}" if stream else ""),
        f"the address of a {sender} while the GUI acquires",
        "start the acquisition, or correct the address or the stream",
    )


def stream_changed(now: str, expected: str) -> StreamError:
    """Return the error for a stream whose channels or rate are others than at its beginning."""
    return StreamError(
        f"the stream has changed: {now}",
        f"{expected} until its end",
        "start again, with a model for the new stream; or name one of several streams",
    )


def address_of(url: SplitResult, port: int) -> tuple[str, int]:
    """Return host and port of a source; by default this computer and the usual port of the program."""
    try:
        return url.hostname or "127.0.0.1", url.port or port
    except ValueError as error:
        raise StreamError(
            f"the address {url.netloc} has no port that can be used", "HOST:PORT", "correct it"
        ) from error


def check_fits(facts: StreamFacts, num_channels: int, sampling_frequency: float) -> None:
    """Raise unless a stream has the channels and the sampling frequency of a model.

    Raises
    ------
    StreamError
        It says what to change.
    """
    if facts.channel_ids is None and facts.num_channels != num_channels:
        raise StreamError(
            f"the stream has {facts.num_channels} channels",
            f"the model was trained on {num_channels}",
            "send these channels, in the order of the training, or train a model on what is sent",
        )
    rate = facts.sampling_frequency
    if rate is not None and not is_same_rate(rate, sampling_frequency):
        raise StreamError(
            f"the stream is sampled at {show_rate(rate)}",
            f"the model was trained at {show_rate(sampling_frequency)}",
            "set the sampling frequency of the acquisition, or train a model at this one",
        )


def not_a_message(what: str, reason: str) -> StreamError:
    """Return the error for bytes that are no message of a protocol."""
    return StreamError(
        f"{what} sent a message that cannot be read: {reason}",
        "messages of its protocol",
        "check that the address is that of the program, and that both are up to date",
    )
