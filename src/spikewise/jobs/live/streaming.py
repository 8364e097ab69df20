"""Sort a live stream: from a source through a :class:`StreamSorter` to sinks."""

from __future__ import annotations

import gc
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spikeinterface.core import BaseRecording

from spikewise.core.config import Config, RecordingConfig, StreamConfig
from spikewise.core.devices import describe_device
from spikewise.core.errors import SettingError
from spikewise.core.progress import SORTING, ProgressCallback, expect
from spikewise.core.progress_bars import shown
from spikewise.core.version import __version__
from spikewise.data.recordings.probes import load_probe
from spikewise.jobs.live.keeping import COLLECTING, KeptSource
from spikewise.jobs.live.latency import Delays
from spikewise.jobs.live.registry import open_source
from spikewise.jobs.live.sinks import Emission, Sink, open_sinks
from spikewise.jobs.live.source import Chunk, Source, StreamFacts, check_fits
from spikewise.jobs.provenance import PACKAGES, package_versions
from spikewise.jobs.sort import train
from spikewise.models.checkpoint import Model, load_model
from spikewise.sorting.live.stream_sorter import StreamSorter

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


def stream(
    source: str | Path | BaseRecording | Source,
    *,
    model: Model | str | Path | None = None,
    sinks: str | Path | Sequence[str | Path],
    overwrite: bool = False,
    config: StreamConfig | None = None,
    reading: RecordingConfig | None = None,
    progress: ProgressCallback | bool | None = None,
    **options: Any,
) -> StreamResult:
    """Sort a live stream until it ends, or until Ctrl-C.

    Parameters
    ----------
    source : str, Path, BaseRecording or Source
        A recording to replay, ``-`` for standard input, or an address such as ``falcon://127.0.0.1:3335``.
    model : Model, str, Path or None
        A model of the live filter, or its path. None: one is learnt from the stream; see ``learn_s``.
    sinks : str, Path or sequence of these
        Where the spikes go: folders, ``-`` for standard output, addresses such as ``zmq://127.0.0.1:5560``.
    overwrite : bool
        Whether a result in a folder may be replaced.
    config : StreamConfig, optional
        All settings; or give single ones as keyword options.
    reading : RecordingConfig, optional
        How a recording is read.
    progress : callable or bool, optional
        Called with the seconds that have come and are sorted. By default a terminal or a notebook shows
        bars; False: nothing is shown.

    Returns
    -------
    StreamResult

    Raises
    ------
    SpikewiseError
        If the stream does not fit the model, cannot be reached, or a sink cannot be opened.
    """
    if config is not None and options:
        raise SettingError("both config and options are given", "one of them", "leave one out")
    config = config or StreamConfig.from_dict(options)
    names = [str(name) for name in ([sinks] if isinstance(sinks, str | Path) else sinks)]
    if not names:
        raise SettingError("no sink is given", "a folder, - or an address", "name one")
    if (model is None) == (config.learn_s is None):
        raise SettingError(
            "neither a model nor learn_s is given" if model is None else "a model and learn_s are given",
            "a model, or the seconds from which one is learnt",
            "give one of them",
        )
    if isinstance(model, str | Path):
        model = load_model(model)
    channel_ids = (
        _channels_of_probe(config)
        if model is None
        else [i for group in model.groups for i in group.channel_ids]
    )
    opened = open_source(source, channel_ids, config, reading)
    try:
        with shown(progress) as told:
            told("connecting", 0, 1, "")
            facts = opened.open()
            if model is None:
                opened, model = _learn(opened, facts, config, reading, told)
            check_fits(facts, len(channel_ids), model.sampling_frequency)
            gain = config.gain_to_uV if config.gain_to_uV is not None else facts.gain_to_uV
            sorter = StreamSorter(
                model, channel_ids=facts.channel_ids, gain_to_uV=gain, threshold=config.threshold
            )
            told("warming up", 0, 1, "")
            sorter.warm_up(facts.dtype)
            run = _Run(sorter, config, open_sinks(names, model, overwrite), told)
            return run.all(opened, facts, str(source))
    finally:
        opened.close()


def _channels_of_probe(config: StreamConfig) -> list[str]:
    """Return the names of the channels of a stream from which a model is learnt."""
    if config.probe is None:
        raise SettingError(
            "learn_s is given without a probe", "the probe of the stream", "name it with --probe"
        )
    return [str(index) for index in range(load_probe(config.probe).get_contact_count())]


def _learn(
    source: Source,
    facts: StreamFacts,
    config: StreamConfig,
    reading: RecordingConfig | None,
    progress: ProgressCallback,
) -> tuple[KeptSource, Model]:
    """Learn a model from the first seconds of a stream; return it, and the stream from its beginning."""
    rate = facts.sampling_frequency or (reading or RecordingConfig()).sampling_frequency
    if rate is None:
        raise SettingError(
            "the source does not tell its sampling frequency", "the frequency in Hz", "use another source"
        )
    kept = KeptSource(source, facts, rate)
    try:
        seconds = config.learn_s or 0.0
        expect(progress, {COLLECTING: seconds})
        recording = kept.wait_for(seconds, config.wait_s, progress)
        learning = Config.from_options(filter="live", probe=config.probe, device="cpu", damage="keep")
        return kept, train(recording, config=learning, progress=progress)
    except BaseException:
        kept.close()
        raise


class _Run:
    """The loop of a stream; see :func:`stream`."""

    def __init__(
        self, sorter: StreamSorter, config: StreamConfig, sinks: list[Sink], progress: ProgressCallback
    ):
        self._sorter, self._config, self._sinks, self._progress = sorter, config, sinks, progress
        self._rate = sorter.model.sampling_frequency
        self._result = StreamResult()
        self._reported_s = 0.0
        self._is_late = self._has_noise = False

    def all(self, source: Source, facts: StreamFacts, name: str) -> StreamResult:
        """Work through all chunks, then end the sinks."""
        provenance = None
        gc.collect()
        gc.freeze()  # later collections, which stop everything, skip all that is there already
        try:
            self._work(source)
            provenance = self._provenance(facts, name)
        finally:
            gc.unfreeze()
            for sink in self._sinks:
                sink.close(provenance)
        return self._result

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
        self._emit(spikes, chunk)
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

    def _provenance(self, facts: StreamFacts, name: str) -> dict[str, Any]:
        """Return how the spikes were found, as for a file."""
        model, result, rate = self._sorter.model, self._result, self._rate
        seconds = result.num_samples / rate
        channel_ids = {group.name: list(group.channel_ids) for group in model.groups}
        missing = [
            {
                "group": "all",
                "segment": 0,
                "start_s": round(start / rate, 6),
                "stop_s": round((start + length) / rate, 6),
                "kind": "gap",
                "channels": "all",
            }
            for start, length in result.gaps
        ]
        config = Config(preprocessing=model.preprocessing_config, detection=model.detection_config)
        return {
            "spikewise_version": __version__,
            "versions": {"python": platform.python_version(), **package_versions(PACKAGES)},
            "machine": {"processor": platform.processor() or platform.machine(), **describe_device("cpu")},
            "recording": {
                "path": name,
                "sampling_frequency": rate,
                "num_channels": sum(map(len, channel_ids.values())),
                "num_segments": 1,
                "num_samples": [result.num_samples],
                "dtype": facts.dtype,
                "channel_ids": channel_ids,
            },
            "config": {
                **config.to_dict(),
                "network": model.network_config.to_dict(),
                "training": model.facts.get("training"),
            },
            "stream": {**self._config.to_dict(), **result.summary()},
            "labels": model.facts.get("labels"),
            "model": {"hash": model.hash(), "facts": model.facts, "given": True},
            "preprocessing": {
                group["name"]: group.get("preprocessing", []) for group in model.facts.get("groups", [])
            },
            "seconds": {
                "recorded": round(seconds, 3),
                "learning": 0.0,
                "sorting": round(result.total_s, 3),
                "total": round(result.total_s, 3),
            },
            "real_time_factor": round(seconds / result.total_s, 3) if result.total_s else 0.0,
            "damage": {
                "seconds": round(result.num_missing / rate, 6),
                "num_dropped": 0,
                "num_stretches": result.num_gaps,
                "stretches": missing,
            },
        }
