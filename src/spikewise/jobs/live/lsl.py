"""A source of the lab streaming layer (LSL), such as ``lsl://amplifier``.

LSL numbers no samples: samples that were lost show in the time stamps only. A jump of the time stamps by more
than :data:`_JUMP_S` is a gap; a shorter one can be jitter of the sender.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import SplitResult, unquote

import numpy as np

from spikewise.core.config import StreamConfig
from spikewise.core.errors import MissingExtraError, SettingError
from spikewise.jobs.live.source import POLL_S, Chunk, StreamError, StreamFacts

_JUMP_S = 0.05
"""Chosen by hand."""
_RESOLVE_S = 5.0
"""How long a stream is looked for; chosen by hand."""
_KEPT_S = 60
"""Seconds of samples that LSL keeps for a slow receiver."""
_MOST_SAMPLES = 4096
"""Most samples of a chunk; chosen by hand."""


def import_lsl(what: str) -> Any:
    """Return the module pylsl; raise MissingExtraError if it is not installed."""
    try:
        import pylsl
    except (ImportError, RuntimeError) as error:  # RuntimeError: it does not find liblsl
        raise MissingExtraError("pylsl", "live", what) from error
    return pylsl


class LslSource:
    """The LSL stream of a name; without a name, the only one that has the model's channels and rate."""

    def __init__(self, url: SplitResult, channel_ids: Sequence[str], config: StreamConfig):
        self._lsl = import_lsl("an LSL source")
        self._name = unquote(url.netloc) or config.stream
        self._num_channels = len(channel_ids)
        self._inlet: Any = None
        self._last_s = 0.0

    def open(self) -> StreamFacts:
        """Find the stream and connect."""
        info = self._resolve(_RESOLVE_S)
        if info is None:
            others = sorted({one.name() for one in self._lsl.resolve_streams(1.0)})
            raise StreamError(
                f"there is no LSL stream {self._name!r}"
                if self._name
                else "there is no LSL stream that fits",
                f"streams in the network: {', '.join(others) or 'none'}",
                "start the program that sends it, or give its name as lsl://NAME",
            )
        if info.channel_format() == self._lsl.cf_string or not info.nominal_srate() > 0:
            raise StreamError(
                f"the LSL stream {info.name()!r} is no signal",
                "a stream of numbers with a sampling frequency",
                "give the name of the stream of the amplifier",
            )
        self._connect(info)
        self._rate = float(info.nominal_srate())
        self._dtype = np.dtype(self._inlet.np_dtype)
        self._facts = StreamFacts(info.channel_count(), self._rate, str(self._dtype))
        return self._facts

    def chunks(self) -> Iterator[Chunk]:
        """Yield what arrives."""
        while True:
            try:
                samples, stamps = self._pull()
            except self._lsl.util.LostError:
                self._reconnect()
                yield Chunk(self._none())
                continue
            if not len(stamps):
                yield Chunk(self._none())
                continue
            gap = None
            step = 1 / self._rate
            if self._last_s and stamps[0] - self._last_s - step > _JUMP_S:
                gap = max(0, round((stamps[0] - self._last_s) * self._rate) - 1)
            self._last_s = stamps[-1]
            yield Chunk(samples, gap)

    def close(self) -> None:
        """Disconnect."""
        if self._inlet is not None:
            self._inlet.close_stream()
            self._inlet = None

    def _none(self) -> np.ndarray:
        return np.empty((0, self._facts.num_channels), self._dtype)

    def _pull(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what has arrived; wait for the first sample."""
        samples, stamps = self._inlet.pull_chunk(
            timeout=POLL_S, max_samples=_MOST_SAMPLES, min_samples=1, as_numpy=True
        )
        return samples, stamps

    def _resolve(self, timeout_s: float) -> Any:
        ends = time.monotonic() + timeout_s
        while True:
            if self._name:
                found = self._lsl.resolve_byprop("name", self._name, minimum=1, timeout=0.5)
            else:
                found = [
                    one
                    for one in self._lsl.resolve_streams(0.5)
                    if one.channel_count() == self._num_channels
                    and one.channel_format() != self._lsl.cf_string
                ]
                if len(found) > 1:
                    raise SettingError(
                        f"{len(found)} LSL streams fit: {', '.join(one.name() for one in found)}",
                        "one stream",
                        "give its name as lsl://NAME",
                    )
            if found:
                return found[0]
            if time.monotonic() > ends:
                return None

    def _connect(self, info: Any) -> None:
        self._inlet = self._lsl.StreamInlet(info, max_buflen=_KEPT_S, recover=False)
        self._inlet.open_stream(timeout=_RESOLVE_S)

    def _reconnect(self) -> None:
        """Try once to find the stream again."""
        self._forget()
        info = self._resolve(0.5)
        if info is not None and info.channel_count() == self._facts.num_channels:
            self._connect(info)

    def _forget(self) -> None:
        self._inlet = _Nothing(self._lsl)


class _Nothing:
    """In place of an inlet while there is no stream."""

    def __init__(self, lsl: Any):
        self._lsl = lsl

    def pull_chunk(self, **options: Any) -> Any:
        raise self._lsl.util.LostError("there is no stream")

    def close_stream(self) -> None:
        """Nothing is open."""
