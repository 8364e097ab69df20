"""The loop of a live stream: chunks from a source, spikes from a sorter, to the sinks."""

from __future__ import annotations

import gc
import logging
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from spikewise.core.config import StreamConfig
from spikewise.core.devices import describe_device
from spikewise.core.progress import SORTING, ProgressCallback
from spikewise.core.version import __version__
from spikewise.jobs.live.latency import Delays
from spikewise.jobs.live.sinks import Emission, Sink
from spikewise.jobs.live.source import Chunk, Source
from spikewise.jobs.provenance import PACKAGES, package_versions

logger = logging.getLogger(__name__)

_PROGRESS_S = 0.5
"""Time between two reports of progress; chosen by hand."""
_MOST_GAPS = 10_000
"""Most gaps that are listed; all are counted. Chosen by hand."""
_NOISE_AT_S = 0.5
"""When the noise of a stream is compared with that of the training; chosen by hand."""
_ODD_NOISE = 2.0
"""A noise that differs by a larger factor is told; chosen by hand."""
_LATE_S = 1.0
"""If a stream of its own rate is later than this, a warning says so."""


@dataclass
class StreamResult:
    """What a stream gave.

    Attributes
    ----------
    num_samples, num_spikes : int
        Samples of the stream, missing ones included, and spikes.
    gaps : list of (int, int)
        First sample and length of each gap; the first 10 000.
    num_missing : int
        Samples that were missing.
    delays : Delays
        From the arrival of a spike's last needed sample until the sinks have it.
    peak_delays : Delays
        From the spike itself until the sinks have it; the last sample of a chunk counts as just recorded.
    busy_s, total_s : float
        Seconds of computing and sending, and seconds from the first chunk to the end.
    latest_s : float
        Largest time from the arrival of a chunk until it was worked through.
    """

    num_samples: int = 0
    num_spikes: int = 0
    gaps: list[tuple[int, int]] = field(default_factory=list)
    num_gaps: int = 0
    num_missing: int = 0
    delays: Delays = field(default_factory=Delays)
    peak_delays: Delays = field(default_factory=Delays)
    busy_s: float = 0.0
    total_s: float = 0.0
    latest_s: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Return the numbers as JSON types."""
        return {
            "num_samples": self.num_samples,
            "num_spikes": self.num_spikes,
            "num_gaps": self.num_gaps,
            "num_missing": self.num_missing,
            "delay": self.delays.summary_ms(),
            "delay_from_peak": self.peak_delays.summary_ms(),
            "busy_share": round(self.busy_s / self.total_s, 4) if self.total_s else 0.0,
            "latest_ms": round(1000 * self.latest_s, 3),
        }


class LiveSorter(Protocol):
    """What sorts a stream, such as :class:`spikewise.StreamSorter`."""

    @property
    def num_samples(self) -> int:
        """Samples so far, missing ones included."""

    def push(self, block: np.ndarray) -> np.ndarray:
        """Take the next samples; return the spikes that are certain now."""

    def gap(self, num_samples: int) -> np.ndarray:
        """Report that samples are missing; return the rest of the spikes before them."""

    def flush(self) -> np.ndarray:
        """Return the rest of the spikes."""

    def noise(self) -> float:
        """Return the noise of the last samples as a multiple of that of the training; NaN: not known."""


class StreamLoop:
    """Works through a stream.

    Parameters
    ----------
    sorter : LiveSorter
    sampling_frequency : float
        In Hz.
    config : StreamConfig
    sinks : list of Sink
    progress : callable
        Called with the seconds sorted.

    Attributes
    ----------
    result : StreamResult
        The numbers so far.
    """

    def __init__(
        self,
        sorter: LiveSorter,
        sampling_frequency: float,
        config: StreamConfig,
        sinks: list[Sink],
        progress: ProgressCallback,
    ):
        self._sorter, self._config, self._sinks, self._progress = sorter, config, sinks, progress
        self._rate = sampling_frequency
        self.result = self._result = StreamResult()
        self._watchers: list[Callable[[np.ndarray, int], None]] = []
        self._reported_s = 0.0
        self._is_late = self._has_noise = False

    def run(self, source: Source, describe: Callable[[StreamResult], dict[str, Any]]) -> StreamResult:
        """Work through all chunks of a source that is open, then end the sinks.

        Parameters
        ----------
        source : Source
        describe : callable
            Returns the provenance.
        """
        provenance = None
        gc.collect()
        gc.freeze()  # later collections, which stop everything, skip all that is there already
        try:
            self._work(source)
            provenance = describe(self._result)
        finally:
            gc.unfreeze()
            for sink in self._sinks:
                sink.close(provenance)
        return self._result

    def watch(self, sink: Sink, take: Callable[[np.ndarray, int], None]) -> None:
        """Add a sink that is also given the samples of each chunk, and their number so far."""
        self._sinks.append(sink)
        self._watchers.append(take)

    def _work(self, source: Source) -> None:
        result, config = self._result, self._config
        begin = last = None
        try:
            for chunk in source.chunks():
                now = time.perf_counter()
                begin = now if begin is None else begin
                last = now if len(chunk.samples) or last is None else last
                if len(chunk.samples):
                    self._take(chunk)
                elif now - last > config.wait_s:
                    logger.warning("no samples came for %g s: the stream is ended", config.wait_s)
                    break
                if config.duration_s is not None and result.num_samples >= config.duration_s * self._rate:
                    break
        except KeyboardInterrupt:
            logger.warning("interrupted: what has arrived is finished")
        started = time.perf_counter()
        rest = self._sorter.flush()
        result.num_samples = self._sorter.num_samples
        self._emit(rest, None)
        ended = time.perf_counter()
        result.busy_s += ended - started
        result.total_s = 0.0 if begin is None else ended - begin

    def _take(self, chunk: Chunk) -> None:
        """Sort one chunk and send its spikes."""
        result, started = self._result, time.perf_counter()
        if chunk.gap is not None:
            self._note_gap(chunk.gap)
            self._emit(self._sorter.gap(chunk.gap), None)
        spikes = self._sorter.push(chunk.samples)
        result.num_samples = self._sorter.num_samples
        for take in self._watchers:
            take(chunk.samples, result.num_samples)
        self._emit(spikes, chunk)
        for sink in self._sinks:
            sink.advance(result.num_samples)
        if not self._has_noise and result.num_samples > _NOISE_AT_S * self._rate:
            self._has_noise = True
            self._check_noise()
        ended = time.perf_counter()
        result.busy_s += ended - started
        late_s = ended - chunk.received_s
        result.latest_s = max(result.latest_s, late_s)
        if late_s > _LATE_S and not self._is_late:
            self._is_late = True
            logger.warning(
                "spikes come %.1f s late: this computer is too slow for this stream, or busy; use fewer "
                "channels or larger blocks",
                late_s,
            )
        if ended - self._reported_s > _PROGRESS_S:
            self._reported_s = ended
            seconds = result.num_samples / self._rate
            note = f"{result.num_spikes} spikes, {result.num_gaps} gaps, {1000 * late_s:.1f} ms late"
            self._progress(SORTING, seconds, self._config.duration_s or 0, note)  # 0: without an end

    def _check_noise(self) -> None:
        """Warn if the samples seem to have another unit than those of the training."""
        ratio = self._sorter.noise()
        if ratio > _ODD_NOISE or ratio < 1 / _ODD_NOISE:
            logger.warning(
                "the noise of the stream is %.3g times that of the training: if the samples have another "
                "unit, give --gain-to-uv; otherwise train a model on what is recorded now",
                ratio,
            )

    def _emit(self, spikes: Any, chunk: Chunk | None) -> None:
        """Send spikes to all sinks; with a chunk, their delays are counted."""
        if not len(spikes):
            return
        result = self._result
        emission = Emission(spikes, result.num_samples)
        for sink in self._sinks:
            sink.send(emission)
        result.num_spikes += len(spikes)
        if chunk is not None:
            delay = time.perf_counter() - chunk.received_s
            result.delays.add(delay, len(spikes))
            result.peak_delays.add(delay + (result.num_samples - 1 - spikes["sample_index"]) / self._rate)

    def _note_gap(self, gap: int) -> None:
        result = self._result
        if gap:
            result.num_gaps += 1
            result.num_missing += gap
            if len(result.gaps) < _MOST_GAPS:
                result.gaps.append((self._sorter.num_samples, gap))
            logger.warning(
                "%d samples (%.3f s) are missing at %.3f s",
                gap,
                gap / self._rate,
                self._sorter.num_samples / self._rate,
            )


def describe_stream(result: StreamResult, sampling_frequency: float, config: StreamConfig) -> dict[str, Any]:
    """Return the part of the provenance that all streams have: versions, machine, settings, gaps."""
    missing = [
        {
            "group": "all",
            "segment": 0,
            "start_s": round(start / sampling_frequency, 6),
            "stop_s": round((start + length) / sampling_frequency, 6),
            "kind": "gap",
            "channels": "all",
        }
        for start, length in result.gaps
    ]
    return {
        "spikewise_version": __version__,
        "versions": {"python": platform.python_version(), **package_versions(PACKAGES)},
        "machine": {"processor": platform.processor() or platform.machine(), **describe_device("cpu")},
        "stream": {**config.to_dict(), **result.summary()},
        "damage": {
            "seconds": round(result.num_missing / sampling_frequency, 6),
            "num_dropped": 0,
            "num_stretches": result.num_gaps,
            "stretches": missing,
        },
    }
