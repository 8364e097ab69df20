"""Sorting one electrode: find the spikes of its signal, learn the units of some, classify all.

The units are learnt from the labels of a stretch, or else from clusters of the first stretch. Waveforms that
were cut before may take the place of a signal; without times, their result is a table alone.

Conventions: a signal is ``(num_samples,)``; a spike's ``sample_index`` is that of its peak, counted from 0.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from spikeinterface.core import BaseSorting, NumpyRecording, NumpySorting

from spikewise.core.config import RecordingConfig
from spikewise.core.errors import Interrupted, LabelsError, RecordingError, WaveformsError
from spikewise.core.files import save_json, writing
from spikewise.core.progress import ProgressCallback, silent
from spikewise.core.version import __version__
from spikewise.data.labels.label_files import load_labels
from spikewise.data.labels.label_set import check_labels
from spikewise.data.recordings.formats import load_recording
from spikewise.jobs.log import log_to
from spikewise.output.store import (
    MODEL_FILE,
    PROVENANCE_FILE,
    SPIKES_FILE,
    output_folder,
    save_sorting,
    spikes_hash,
)
from spikewise.single_channel.classifier import (
    Classification,
    WaveformClassifier,
    save_classifier,
    train_classifier,
)
from spikewise.single_channel.config import (
    ChannelSortingConfig,
    SnippetsConfig,
    SpikeDetectionConfig,
    WaveformTrainingConfig,
)
from spikewise.single_channel.files import RawChannel
from spikewise.single_channel.labelling import (
    ChannelLabels,
    is_unit,
    judge,
    label_spikes,
    labels_from_clusters,
)
from spikewise.single_channel.raw_channel import find_spikes, load_raw_channel
from spikewise.single_channel.snippets import Snippets, load_snippets

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "spikeinterface")
_ARRAY_FILES = (".mat", ".npz", ".npy", ".csv", ".tsv", ".txt")

Source = str | Path | RawChannel | Snippets


@dataclass(frozen=True)
class ChannelResult:
    """What sorting a single channel gives.

    Attributes
    ----------
    spikes : Snippets
        All spikes that were found, or the waveforms that were given.
    classification : Classification
        Of these, in their order.
    sorting : BaseSorting or None
        The spikes of the units; None where waveforms without times were given.
    model : WaveformClassifier
    provenance : dict
        Settings, versions, hashes, timings, and the comparison with the truth if the file holds it.
    """

    spikes: Snippets
    classification: Classification
    sorting: BaseSorting | None
    model: WaveformClassifier
    provenance: dict[str, Any]


def sort_channel(
    source: Source,
    *,
    labels: BaseSorting | str | Path | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    config: ChannelSortingConfig | None = None,
    detection: SpikeDetectionConfig | None = None,
    training: WaveformTrainingConfig | None = None,
    reading: RecordingConfig | None = None,
    progress: ProgressCallback = silent,
) -> ChannelResult:
    """Sort the signal of one electrode, or waveforms that were cut before.

    Parameters
    ----------
    source : str, Path, RawChannel or Snippets
        The signal: a simulation of Wave_Clus, an array, or a channel of any recording; or waveforms.
    labels : BaseSorting, str, Path or None
        Labelled spikes of a stretch; the path of the source itself stands for the spikes that it holds. None:
        the first stretch is clustered.
    output : str or Path, optional
        Folder to write the result into.
    overwrite : bool
        Whether an earlier result there may be replaced.
    config : ChannelSortingConfig, optional
    detection : SpikeDetectionConfig, optional
    training : WaveformTrainingConfig, optional
    reading : RecordingConfig, optional
        What the file does not tell by itself.
    progress : callable
        Told how far it is.

    Returns
    -------
    ChannelResult

    Raises
    ------
    SpikewiseError
        If something that was given cannot be used; the message says what to do.
    Interrupted
        If Ctrl-C ended the training; the model is in the output folder.
    """
    settings = _Settings(
        config or ChannelSortingConfig(),
        detection or SpikeDetectionConfig(),
        training or WaveformTrainingConfig(),
        reading or RecordingConfig(),
    )
    if output is None:
        return _sort(source, labels, settings, None, progress)
    with output_folder(Path(output), overwrite) as place, log_to(place):
        result = _sort(source, labels, settings, place, progress)
        _write_spikes(result, place / SPIKES_FILE)
        if result.sorting is not None:
            save_sorting(result.sorting, place)
        save_json(result.provenance, place / PROVENANCE_FILE)
    return result


@dataclass(frozen=True)
class _Settings:
    sorting: ChannelSortingConfig
    detection: SpikeDetectionConfig
    training: WaveformTrainingConfig
    reading: RecordingConfig

    def to_dict(self) -> dict[str, Any]:
        return {
            "sorting": self.sorting.to_dict(),
            "detection": self.detection.to_dict(),
            "training": self.training.resolved().to_dict(),
        }


def _sort(
    source: Source,
    labels: BaseSorting | str | Path | None,
    settings: _Settings,
    folder: Path | None,
    progress: ProgressCallback,
) -> ChannelResult:
    started = time.perf_counter()
    channel, spikes = _find(source, settings, progress)
    found_s = time.perf_counter() - started
    started = time.perf_counter()
    examples = _examples(source, labels, channel, spikes, settings)
    model = _learn(spikes, examples, settings.training, folder, progress)
    learning_s = time.perf_counter() - started
    started = time.perf_counter()
    classification = model.classify(spikes.waveforms, settings.sorting.min_probability)
    sorting = _sorting_of(spikes, classification)
    sorting_s = found_s + time.perf_counter() - started
    provenance: dict[str, Any] = {
        **_origin(source, channel, settings),
        "labels": examples.facts,
        "model": {"hash": model.hash(), "facts": model.facts},
        "result": _count(spikes, classification, sorting),
        "truth": None if channel is None else judge(channel, spikes, classification, examples),
        "seconds": {
            "learning": round(learning_s, 3),
            "sorting": round(sorting_s, 3),
            "total": round(learning_s + sorting_s, 3),
        },
    }
    if channel is not None:
        recorded_s = len(channel.signal) / channel.sampling_frequency
        provenance["seconds"]["recorded"] = round(recorded_s, 3)
        provenance["real_time_factor"] = round(recorded_s / sorting_s, 1)
    return ChannelResult(spikes, classification, sorting, model, provenance)


def _find(
    source: Source, settings: _Settings, progress: ProgressCallback
) -> tuple[RawChannel | None, Snippets]:
    """Return the signal, if that is what the source is, and its spikes."""
    progress("find spikes", 0, 1, "")
    opened = _open_source(source, settings)
    if isinstance(opened, Snippets):
        channel, spikes = None, opened
    else:
        channel, spikes = opened, find_spikes(opened.signal, opened.sampling_frequency, settings.detection)
    if not len(spikes):
        raise RecordingError(
            "no spike was found",
            f"peaks above {settings.detection.detection_threshold:g} standard deviations of the noise",
            "lower --detection-threshold, or choose another channel",
        )
    progress("find spikes", 1, 1, f"{len(spikes)} spikes")
    return channel, spikes


def _learn(
    spikes: Snippets,
    examples: ChannelLabels,
    config: WaveformTrainingConfig,
    folder: Path | None,
    progress: ProgressCallback,
) -> WaveformClassifier:
    """Train the classifier and keep it in the folder; raise if that was interrupted."""
    model = train_classifier(
        spikes.waveforms[examples.spike_index],
        examples.labels,
        config,
        sampling_frequency=spikes.sampling_frequency,
        background=spikes.waveforms[examples.background_index],
        progress=progress,
    )
    if folder is not None:
        save_classifier(model, folder / MODEL_FILE)
    if model.facts["interrupted"]:
        kept = "nothing is kept" if folder is None else f"the best model so far is {folder / MODEL_FILE}"
        raise Interrupted("training was interrupted", kept, "run the command again")
    return model


def _origin(source: Source, channel: RawChannel | None, settings: _Settings) -> dict[str, Any]:
    """Return what the provenance tells of the machine, the settings and the signal."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    facts: dict[str, Any] = {
        "spikewise_version": __version__,
        "versions": {"python": platform.python_version(), **versions},
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "device": "cpu",
            "threads": torch.get_num_threads(),
        },
        "source": str(source) if isinstance(source, str | Path) else type(source).__name__,
        "config": settings.to_dict(),
    }
    if channel is not None:
        facts["recording"] = {
            "sampling_frequency": channel.sampling_frequency,
            "num_channels": 1,
            "num_samples": [len(channel.signal)],
        }
        edges = f"{settings.detection.freq_min_hz:g} to {settings.detection.freq_max_hz:g} Hz"
        facts["preprocessing"] = {"0": [f"band-pass {edges}"]}
    return facts


def _examples(
    source: Source,
    labels: BaseSorting | str | Path | None,
    channel: RawChannel | None,
    spikes: Snippets,
    settings: _Settings,
) -> ChannelLabels:
    """Return which spikes train."""
    if labels is None:
        return labels_from_clusters(spikes, settings.sorting, settings.training.seed)
    if channel is None:
        raise LabelsError(
            "labels are given for waveforms without a signal",
            "labels belong to the signal of a channel",
            "put the labels into the file of the waveforms and use: spikewise waveforms train",
        )
    sample_index, unit_ids = _label_times(source, labels, channel)
    return label_spikes(spikes, sample_index, unit_ids, channel, settings.sorting)


def _label_times(
    source: Source, labels: BaseSorting | str | Path, channel: RawChannel
) -> tuple[np.ndarray, np.ndarray]:
    """Return sample and unit of each label."""
    is_source = isinstance(labels, str | Path) and isinstance(source, str | Path)
    if is_source and Path(str(labels)).absolute() == Path(str(source)).absolute():
        if channel.sample_index is None or channel.labels is None:
            raise LabelsError(
                f"{source} holds a signal without spikes",
                "a file that holds both",
                "give labels of their own",
            )
        known = is_unit(channel.labels)
        return channel.sample_index[known], channel.labels[known]
    recording = NumpyRecording([channel.signal[:, None]], channel.sampling_frequency)
    sorting = (
        check_labels(labels, recording) if isinstance(labels, BaseSorting) else load_labels(labels, recording)
    )
    vector = sorting.to_spike_vector()
    return vector["sample_index"].astype(np.int64), np.asarray(sorting.unit_ids)[vector["unit_index"]]


def _open_source(source: Source, settings: _Settings) -> RawChannel | Snippets:
    """Return a signal, or waveforms."""
    if isinstance(source, RawChannel | Snippets):
        return source
    path = Path(source)
    arrays = SnippetsConfig(sampling_frequency=settings.reading.sampling_frequency)
    if path.is_file() and path.suffix.lower() in _ARRAY_FILES and settings.sorting.channel is None:
        try:
            return load_raw_channel(path, arrays)
        except WaveformsError as not_a_channel:
            try:
                return load_snippets(path, arrays)
            except WaveformsError:
                if path.suffix.lower() not in (".npz", ".npy"):
                    raise not_a_channel from None
    return _channel_of_recording(path, settings.reading, settings.sorting.channel)


def _channel_of_recording(path: Path, reading: RecordingConfig, chosen: str | None) -> RawChannel:
    """Return the chosen channel of a recording, or its only one."""
    recording = load_recording(path, reading)
    names = [str(channel_id) for channel_id in recording.channel_ids]
    is_only = chosen is None and len(names) == 1
    if recording.get_num_segments() > 1 or not (is_only or chosen in names):
        asked = "" if chosen is None else f", and channel {chosen!r} was asked for"
        raise RecordingError(
            f"the recording has {recording.get_num_segments()} segments and the channels "
            f"{', '.join(names[:20])}{' ...' if len(names) > 20 else ''}{asked}",
            "one segment, and one of its channels",
            "name one with --channel, or sort them together with: spikewise sort",
        )
    channel_id = recording.channel_ids[0 if chosen is None else names.index(chosen)]
    signal = recording.get_traces(channel_ids=[channel_id])[:, 0].astype(np.float32)
    return RawChannel(signal, float(recording.get_sampling_frequency()))


def _sorting_of(spikes: Snippets, classification: Classification) -> BaseSorting | None:
    if spikes.sample_index is None or spikes.sampling_frequency is None:
        return None
    kept = classification.unit_index >= 0
    return NumpySorting.from_samples_and_labels(
        [spikes.sample_index[kept]],
        [classification.unit_index[kept]],
        spikes.sampling_frequency,
        unit_ids=np.arange(len(classification.unit_ids)),
    ).rename_units(list(classification.unit_ids))


def _count(spikes: Snippets, classification: Classification, sorting: BaseSorting | None) -> dict[str, Any]:
    return {
        "num_units": len(classification.unit_ids),
        "num_spikes": int((classification.unit_index >= 0).sum()),
        "num_unsorted": int((classification.unit_index < 0).sum()),
        "num_detected": len(spikes),
        "spikes_by_unit": {
            str(unit_id): int((classification.unit_index == index).sum())
            for index, unit_id in enumerate(classification.unit_ids)
        },
        "spikes_hash": None if sorting is None else spikes_hash(sorting),
    }


def _write_spikes(result: ChannelResult, path: Path) -> None:
    """Write a row for each spike: index, sample_index where it is known, label, probability, second_label."""
    found = result.classification
    table = {"label": found.labels, "probability": found.probability, "second_label": found.second_labels}
    if result.spikes.sample_index is not None:
        table = {"sample_index": result.spikes.sample_index, **table}
    write_table(pd.DataFrame(table).rename_axis("index"), path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table of spikes as CSV, whole or not at all; probabilities to six digits.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            table.round({"probability": 6}).to_csv(partial)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise
