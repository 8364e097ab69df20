"""A page in the browser that shows a stream while it is sorted: rates, raster, waveforms, delays, losses.

Tornado serves it from a thread of its own, at an address of this computer only. The page receives one message
every quarter of a second (server-sent events). Memory is bounded: old spikes are dropped.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
import webbrowser
from collections import deque
from importlib.resources import files
from typing import Any

import numpy as np

from spikewise.core.config import StreamConfig
from spikewise.core.errors import MissingExtraError
from spikewise.jobs.live.loop import StreamLoop, StreamResult
from spikewise.jobs.live.sinks import Emission, Units
from spikewise.jobs.live.source import StreamError

logger = logging.getLogger(__name__)

_ADDRESS = "127.0.0.1"
_EVERY_S = 0.25
"""Time between two messages."""
_MOST_SPIKES = 5000
"""Most spikes of a message; of more, every second, third and so on is shown. Chosen by hand."""
_RATE_S = 2.0
"""Time over which the shown rates are averaged; chosen by hand."""
_SHAPE_MS = (1.0, 1.5)
"""Length of a waveform before and after its peak."""
_NEW = 0.05
"""Weight of a new spike in the shown waveform of its unit; chosen by hand."""


class View:
    """Collects what the page shows; it is a sink of spikes.

    Parameters
    ----------
    units : Units
    result : StreamResult
        The numbers of the stream, which the loop updates.
    port : int
        0 chooses a free one.

    Attributes
    ----------
    url : str
    """

    def __init__(self, units: Units, result: StreamResult, port: int = 0):
        self._units, self._result, self._rate = units, result, units.sampling_frequency
        self._before, self._after = (round(ms * self._rate / 1000) for ms in _SHAPE_MS)
        self._lock = threading.Lock()
        self._spikes: deque[tuple[int, int]] = deque(maxlen=20 * _MOST_SPIKES)
        self._first = 0  # number of the first spike that is kept
        self._recent: deque[tuple[int, int]] = deque(maxlen=20 * _MOST_SPIKES)
        self._shapes = np.zeros((len(units.ids), self._before + self._after))
        self._counts = np.zeros(len(units.ids), np.int64)
        self._tail = np.empty((0, 0))
        self._num_samples = 0
        self._began_s = time.perf_counter()
        self._server = _Server(self, port)
        self.url = f"http://{_ADDRESS}:{self._server.port}/"

    def take(self, samples: np.ndarray, num_samples: int) -> None:
        """Keep the last samples, of which waveforms are cut; `num_samples` have come in all."""
        if not self._num_samples:
            self._began_s = time.perf_counter()
        keep = self._units.look_ahead + self._before + self._after
        fits = self._tail.shape[1:] == samples.shape[1:] and self._num_samples + len(samples) == num_samples
        joined = np.concatenate([self._tail, samples]) if fits else samples
        self._tail, self._num_samples = joined[-(keep + len(samples)) :], num_samples

    def send(self, emission: Emission) -> None:
        """Take spikes."""
        with self._lock:
            for sample, unit, _ in emission.spikes.tolist():
                if len(self._spikes) == self._spikes.maxlen:
                    self._first += 1
                self._spikes.append((sample, unit))
                self._recent.append((sample, unit))
                self._counts[unit] += 1
                self._add_shape(sample, unit)

    def advance(self, num_samples: int) -> None:
        """Nothing is left to do: the result tells how many samples have come."""

    def close(self, facts: dict[str, Any] | None) -> None:
        """End the server."""
        self._server.stop()

    def message(self, number: int) -> tuple[int, dict[str, Any]]:
        """Return what is new since a spike's number, and the next number."""
        with self._lock:
            start = max(0, number - self._first)
            new = [self._spikes[index] for index in range(start, len(self._spikes))]
            number = self._first + len(self._spikes)
            now = self._result.num_samples
            oldest = now - _RATE_S * self._rate
            while self._recent and self._recent[0][0] < oldest:
                self._recent.popleft()
            recent = np.bincount([unit for _, unit in self._recent], minlength=len(self._units.ids))
            shapes, counts = np.round(self._shapes, 2).tolist(), self._counts.tolist()
        step = -(-len(new) // _MOST_SPIKES) if new else 1
        seconds = min(_RATE_S, max(now / self._rate, 1e-9))
        summary = self._result.summary()
        return number, {
            "time_s": now / self._rate,
            "spikes": [[round(sample / self._rate, 4), unit] for sample, unit in new[::step]],
            "rates": np.round(recent / seconds, 2).tolist(),
            "counts": counts,
            "shapes": shapes,
            "delay": summary["delay"],
            "histogram": self._result.delays.histogram(),
            "num_spikes": summary["num_spikes"],
            "num_gaps": summary["num_gaps"],
            "num_missing": summary["num_missing"],
            "busy_share": min(1.0, self._result.busy_s / max(time.perf_counter() - self._began_s, 1e-9)),
        }

    def facts(self) -> dict[str, Any]:
        """Return what does not change."""
        return {"units": [str(unit_id) for unit_id in self._units.ids], "sampling_frequency": self._rate}

    def _add_shape(self, sample: int, unit: int) -> None:
        at = sample - (self._num_samples - len(self._tail))
        window = self._tail[max(0, at - self._before) : at + self._after]
        if len(window) < self._before + self._after or self._units.main_columns is None:
            return
        values = window[:, self._units.main_columns[unit]].astype(np.float64)
        weight = max(_NEW, 1 / self._counts[unit])
        self._shapes[unit] += weight * (values - np.median(values) - self._shapes[unit])


def show_view(loop: StreamLoop, units: Units, config: StreamConfig) -> None:
    """Add a view to a loop, if the settings ask for one."""
    if config.view:
        view = View(units, loop.result, config.view_port)
        loop.watch(view, view.take)
        logger.warning("the view is at %s", view.url)
        if config.view_show:
            webbrowser.open(view.url)


class _Server:
    """Serves the page of a view in a thread."""

    def __init__(self, view: View, port: int):
        try:
            from tornado.netutil import bind_sockets
        except ImportError as error:
            raise MissingExtraError("tornado", "live", "the view") from error
        try:
            sockets = bind_sockets(port, _ADDRESS)
        except OSError as error:
            raise StreamError(
                f"the view cannot listen at port {port}: {error.strerror}", "a free port", "choose another"
            ) from error
        self.port = sockets[0].getsockname()[1]
        self._view, self._sockets = view, sockets
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        self._thread = threading.Thread(target=self._work, name="spikewise-view", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(5)

    def _work(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    async def _serve(self) -> None:
        from tornado.httpserver import HTTPServer
        from tornado.iostream import StreamClosedError
        from tornado.web import Application, RequestHandler

        view, end = self._view, self._end
        page = files("spikewise.jobs.live").joinpath("view.html").read_text("utf-8")
        page = page.replace("/*FACTS*/", json.dumps(view.facts()).replace("<", "\\u003c"))

        class Page(RequestHandler):
            """The page itself."""

            def get(self) -> None:
                self.write(page)

        class Events(RequestHandler):
            """What is new, again and again."""

            async def get(self) -> None:
                self.set_header("Content-Type", "text/event-stream")
                self.set_header("Cache-Control", "no-store")
                number = 0
                try:
                    while not end.is_set():
                        number, message = view.message(number)
                        self.write(f"data: {json.dumps(message)}\n\n")
                        await self.flush()
                        await asyncio.sleep(_EVERY_S)
                except StreamClosedError:
                    return

        application = Application(log_function=lambda handler: None)
        # Only for pages of this computer: another site cannot read it under a name of its own.
        application.add_handlers(r"(127\.0\.0\.1|localhost)", [("/", Page), ("/events", Events)])
        server = HTTPServer(application)
        server.add_sockets(self._sockets)
        await end.wait()
        server.stop()
        await server.close_all_connections()
