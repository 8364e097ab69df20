"""Sort a live stream: from a source through a :class:`StreamSorter` to sinks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from spikeinterface.core import BaseRecording

from spikewise.core.config import Config, RecordingConfig, StreamConfig
from spikewise.core.errors import SettingError
from spikewise.core.progress import ProgressCallback, expect
from spikewise.core.progress_bars import shown
from spikewise.data.recordings.probes import load_probe
from spikewise.jobs.live.keeping import COLLECTING, KeptSource
from spikewise.jobs.live.loop import StreamLoop, StreamResult, describe_stream
from spikewise.jobs.live.registry import open_sinks, open_source
from spikewise.jobs.live.sinks import units_of
from spikewise.jobs.live.source import Source, StreamFacts, check_fits
from spikewise.jobs.live.view import show_view
from spikewise.jobs.sort import train
from spikewise.models.checkpoint import Model, load_model
from spikewise.sorting.live.stream_sorter import StreamSorter


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
            if model is not None:  # before samples wait: a gap in a source is told by when its messages come
                told("warming up", 0, 1, "")
                StreamSorter(model).warm_up("float32")
            told("connecting", 0, 1, "")
            facts = opened.open()
            if model is None:
                opened, model = _learn(opened, facts, config, reading, told)
            check_fits(facts, len(channel_ids), model.sampling_frequency)
            gain = config.gain_to_uV if config.gain_to_uV is not None else facts.gain_to_uV
            sorter = StreamSorter(
                model,
                channel_ids=facts.channel_ids,
                gain_to_uV=gain,
                threshold=config.threshold,
                explain=config.explain,
            )
            told("warming up", 0, 1, "")
            sorter.warm_up(facts.dtype)
            units = units_of(model, sorter.latency.look_ahead_samples, sorter.main_columns)
            receivers = open_sinks(names, units, overwrite)
            loop = StreamLoop(sorter, model.sampling_frequency, config, receivers, told)
            show_view(loop, units, config)
            return loop.run(opened, partial(_describe, model, str(source), facts.dtype, config))
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


def _describe(
    model: Model, name: str, dtype: str, config: StreamConfig, result: StreamResult
) -> dict[str, Any]:
    """Return how the spikes were found, as for a file."""
    seconds = result.num_samples / model.sampling_frequency
    channel_ids = {group.name: list(group.channel_ids) for group in model.groups}
    used = Config(preprocessing=model.preprocessing_config, detection=model.detection_config)
    return {
        **describe_stream(result, model.sampling_frequency, config),
        "recording": {
            "path": name,
            "sampling_frequency": model.sampling_frequency,
            "num_channels": sum(map(len, channel_ids.values())),
            "num_segments": 1,
            "num_samples": [result.num_samples],
            "dtype": dtype,
            "channel_ids": channel_ids,
        },
        "config": {
            **used.to_dict(),
            "network": model.network_config.to_dict(),
            "training": model.facts.get("training"),
        },
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
    }
