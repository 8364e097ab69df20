"""A sink for the Network Events plugin of the Open Ephys GUI: a pulse on a line for each spike of some units.

The name is that of the plugin's address with the line of each unit, such as
``openephys-events://127.0.0.1:5556?unit7=1&unit9=2``. The plugin answers each message, and takes the next one
only then. So the messages are sent by a thread of their own.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from spikewise.core.errors import MissingExtraError, SettingError
from spikewise.jobs.live.sinks import Emission, PlainSink, Units
from spikewise.jobs.live.source import address_of

logger = logging.getLogger(__name__)

PORT = 5556
"""Usual port of the plugin."""
_MOST_WAITING = 1000
"""Most spikes that wait for the plugin; later ones are left out, and counted. Chosen by hand."""
_ANSWER_MS = 1000
"""How long an answer is waited for; chosen by hand."""


class NetworkEventsSink(PlainSink):
    """Switches a line on and off for each spike of some units."""

    def __init__(self, name: str, units: Units):
        try:
            import zmq
        except ImportError as error:
            raise MissingExtraError("pyzmq", "live", f"the sink {name}") from error
        url = urlsplit(name)
        self._lines = _lines(name, url.query, units)
        self._zmq = zmq
        host, port = address_of(url, PORT)
        self._address = f"tcp://{host}:{port}"
        self._waiting: queue.Queue[int | None] = queue.Queue(_MOST_WAITING)
        self._num_lost = 0
        self._thread = threading.Thread(target=self._work, name="spikewise-events", daemon=True)
        self._thread.start()

    def send(self, emission: Emission) -> None:
        """Hand the lines of spikes to the thread."""
        for unit in emission.spikes["unit_index"].tolist():
            if unit in self._lines:
                try:
                    self._waiting.put_nowait(self._lines[unit])
                except queue.Full:
                    self._note_lost("events wait: the plugin is too slow")

    def close(self, facts: dict[str, Any] | None) -> None:
        """Send what waits, and end."""
        try:
            self._waiting.put(None, timeout=1.0)
        except queue.Full:
            logger.warning("the Network Events plugin is too slow: %d events were not sent", _MOST_WAITING)
        self._thread.join(2 * _ANSWER_MS / 1000)
        if self._num_lost:
            logger.warning("%d events did not reach the Network Events plugin", self._num_lost)

    def _work(self) -> None:
        socket: Any = self._open()
        while (line := self._waiting.get()) is not None:
            for state in (1, 0):
                socket.send(f"TTL Line={line} State={state}".encode())
                if not socket.poll(_ANSWER_MS):
                    self._note_lost(f"no answer comes from {self._address}")
                    socket.close()
                    socket = self._open()  # a request without an answer blocks the next one
                    break
                socket.recv()
        socket.close()

    def _open(self) -> Any:
        socket: Any = self._zmq.Context.instance().socket(self._zmq.REQ)
        socket.setsockopt(self._zmq.LINGER, 0)
        socket.connect(self._address)
        return socket

    def _note_lost(self, reason: str) -> None:
        if not self._num_lost:
            logger.warning("an event did not reach the Network Events plugin: %s", reason)
        self._num_lost += 1


def _lines(name: str, query: str, units: Units) -> dict[int, int]:
    """Return the line of each chosen unit, by the index of the unit."""
    places = {str(unit_id): index for index, unit_id in enumerate(units.ids)}
    lines = {}
    for unit_id, text in parse_qsl(query, keep_blank_values=True):
        if unit_id not in places or not text.isdecimal() or not 1 <= int(text) <= 256:
            raise SettingError(
                f"the sink {name} asks for {unit_id}={text}",
                f"UNIT=LINE, with a unit of the model ({', '.join(list(places)[:20])}) and a line, 1 to 256",
                "correct it",
            )
        lines[places[unit_id]] = int(text)
    if not lines:
        raise SettingError(
            f"the sink {name} names no unit",
            "at least one UNIT=LINE",
            "write it as in openephys-events://127.0.0.1:5556?3=1, for unit 3 on line 1",
        )
    return lines
