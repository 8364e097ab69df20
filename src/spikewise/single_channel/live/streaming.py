"""Sort the single channels of a live stream: from a source through a ChannelStreamSorter to sinks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording, NumpyRecording
from threadpoolctl import threadpool_limits

from spikewise.core.config import RecordingConfig, StreamConfig
from spikewise.core.errors import SettingError
from spikewise.core.progress import ProgressCallback, silent
from spikewise.data.recordings.formats import load_recording
from spikewise.jobs.live.loop import StreamLoop, StreamResult, describe_stream
from spikewise.jobs.live.registry import open_sinks, open_source
from spikewise.jobs.live.sinks import Units
from spikewise.jobs.live.source import StreamFacts, check_fits
from spikewise.jobs.live.view import show_view
from spikewise.output.store import MODEL_FILE
from spikewise.single_channel.classifier import WaveformClassifier, save_classifier
from spikewise.single_channel.files import RawChannel
from spikewise.single_channel.live.stream_sorter import ChannelStreamSorter
from spikewise.single_channel.snippets import Snippets
from spikewise.single_channel.sources import open_source as open_signal


def stream_channels(
    source: Any,
    *,
    models: WaveformClassifier | str | Path | Sequence[WaveformClassifier | str | Path],
    sinks: str | Path | Sequence[str | Path],
    columns: Sequence[int] | None = None,
    num_columns: int | None = None,
    min_probability: float = 0.0,
    overwrite: bool = False,
    config: StreamConfig | None = None,
    reading: RecordingConfig | None = None,
    progress: ProgressCallback = silent,
) -> StreamResult:
    """Sort single channels of a live stream until it ends, or until Ctrl-C.

    Parameters
    ----------
    source : str, Path, BaseRecording or Source
        A signal or recording to replay, ``-`` for standard input, or an address, as for
        :func:`spikewise.stream`.
    models : WaveformClassifier, str, Path or sequence of these
        Classifiers that were trained with the live filter, one for each channel that is sorted.
    sinks : str, Path or sequence of these
        Where the spikes go, as for :func:`spikewise.stream`.
    columns : sequence of int, optional
        The channel of the stream, counted from 0, of each model. Default: the first ones.
    num_columns : int, optional
        Channels of standard input. Default: up to the last one that has a model.
    min_probability : float
        Leave out spikes whose unit is less probable than this.
    overwrite : bool
        Whether a result in a folder may be replaced.
    config : StreamConfig, optional
    reading : RecordingConfig, optional
        How a recording is read.
    progress : callable, optional
        Called with the seconds sorted.

    Returns
    -------
    StreamResult

    Raises
    ------
    SpikewiseError
        If a model or the stream cannot be used, or a sink cannot be opened.
    """
    config, reading = config or StreamConfig(), reading or RecordingConfig()
    of_probes = config.learn_s, config.probe, config.threshold
    if of_probes != (None, None, None) or not config.explain:
        raise SettingError(
            "learn_s, probe, threshold or explain is given for single channels",
            "these are settings of streams of a probe",
            "leave them out; min_probability leaves out spikes",
        )
    given = [models] if isinstance(models, WaveformClassifier | str | Path) else list(models)
    places = list(range(len(given)) if columns is None else columns)
    if len(places) != len(given) or len(set(places)) < len(places):
        raise SettingError(
            f"{len(given)} models and the columns {places} are given",
            "one column for each model",
            "name as many different columns as models",
        )
    by_column = dict(zip(places, given, strict=True))
    names = [str(name) for name in ([sinks] if isinstance(sinks, str | Path) else sinks)]
    if not names:
        raise SettingError("no sink is given", "a folder, - or an address", "name one")
    rate = ChannelStreamSorter(by_column, num_columns=num_columns).sampling_frequency
    width = max(places) + 1 if num_columns is None else num_columns
    opened = open_source(_replayed(source, reading), [str(index) for index in range(width)], config, reading)
    try:
        facts = opened.open()
        gain = config.gain_to_uV if config.gain_to_uV is not None else facts.gain_to_uV
        check_fits(facts, facts.num_channels if facts.num_channels > max(places) else width, rate)
        sorter = ChannelStreamSorter(
            by_column,
            num_columns=facts.num_channels,
            gain_to_uV=gain,
            min_probability=min_probability,
        )
        sorter.warm_up(facts.dtype)
        units = _units(sorter)
        receivers = open_sinks(names, units, overwrite)
        loop = StreamLoop(sorter, sorter.sampling_frequency, config, receivers, progress)
        show_view(loop, units, config)
        with threadpool_limits(1):  # threads that wait for each other make single spikes late
            return loop.run(opened, partial(_describe, sorter, str(source), facts, config))
    finally:
        opened.close()


def _replayed(source: Any, reading: RecordingConfig) -> Any:
    """Return a signal or a recording in a file as a recording that needs no probe; else the source."""
    is_file = isinstance(source, str | Path) and str(source) != "-" and "://" not in str(source)
    if is_file and Path(source).suffix.lower() in (".mat", ".npz", ".npy"):
        signal = open_signal(source, reading, None)
        if isinstance(signal, Snippets):
            raise SettingError(
                f"the source {source} holds waveforms", "a signal", "classify them: waveforms classify"
            )
        source = NumpyRecording([signal.signal[:, np.newaxis]], signal.sampling_frequency)
    elif isinstance(source, RawChannel):
        source = NumpyRecording([source.signal[:, np.newaxis]], source.sampling_frequency)
    elif is_file:
        source = load_recording(source, reading)
    if isinstance(source, BaseRecording) and not source.has_probe():
        places = np.column_stack([np.zeros(source.get_num_channels()), np.arange(source.get_num_channels())])
        source.set_dummy_probe_from_locations(100.0 * places)
    return source


def _units(sorter: ChannelStreamSorter) -> Units:
    """Return the units of all channels, as sinks need them."""
    of_unit = [str(column) for column, model in sorter.models.items() for _ in model.unit_ids]

    def save(folder: Path) -> None:
        for column, model in sorter.models.items():
            name = MODEL_FILE if len(sorter.models) == 1 else f"column{column}_{MODEL_FILE}"
            save_classifier(model, folder / name)

    return Units(
        sorter.unit_ids,
        sorter.sampling_frequency,
        sorter.hash(),
        save,
        {"group": np.array(of_unit)},
        sorter.latency.look_ahead_samples,
        sorter.main_columns,
    )


def _describe(
    sorter: ChannelStreamSorter, name: str, facts: StreamFacts, config: StreamConfig, result: StreamResult
) -> dict[str, Any]:
    """Return how the spikes were found."""
    rate = sorter.sampling_frequency
    recorded = result.num_samples / rate
    return {
        **describe_stream(result, rate, config),
        "source": name,
        "recording": {
            "sampling_frequency": rate,
            "num_channels": facts.num_channels,
            "num_samples": [result.num_samples],
            "dtype": facts.dtype,
        },
        "model": {
            "hash": sorter.hash(),
            "facts": {str(column): model.facts for column, model in sorter.models.items()},
        },
        "seconds": {"recorded": round(recorded, 3), "learning": 0.0, "sorting": round(result.total_s, 3)},
        "real_time_factor": round(recorded / result.total_s, 3) if result.total_s else 0.0,
    }
