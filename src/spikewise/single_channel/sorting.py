"""Sorting one electrode: find the spikes of its signal, train a classifier on some of them, classify all.

The classifier is trained on the labelled spikes of a stretch or, without labels, on clusters of the spikes of
the first stretch. Waveforms may be given instead of a signal; if they have no times, the result is only a
table.

Conventions: a signal is ``(num_samples,)``; the ``sample_index`` of a spike is that of its peak, counted from
0.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from spikeinterface.core import BaseSorting, NumpySorting

from spikewise.core.config import RecordingConfig
from spikewise.core.errors import Interrupted, LabelsError, RecordingError
from spikewise.core.files import save_json, writing
from spikewise.core.progress import ProgressCallback, silent
from spikewise.core.version import __version__
from spikewise.data.recordings.preprocessing import known_gains
from spikewise.jobs.state.log import log_to
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
)
from spikewise.single_channel.classifier_training import train_classifier
from spikewise.single_channel.config import (
    ChannelSortingConfig,
    SpikeDetectionConfig,
    WaveformTrainingConfig,
)
from spikewise.single_channel.files import RawChannel
from spikewise.single_channel.labelling import (
    ChannelLabels,
    label_spikes,
    labels_from_clusters,
    score_result,
)
from spikewise.single_channel.raw_channel import find_live_spikes, find_spikes
from spikewise.single_channel.snippets import Snippets
from spikewise.single_channel.sources import Source, open_source, read_labels

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn", "spikeinterface")
"""Packages whose versions the provenance holds."""


@dataclass(frozen=True)
class ChannelResult:
    """The result of sorting a single channel.

    Attributes
    ----------
    spikes : Snippets
        All spikes that were found, or the waveforms that were given.
    classification : Classification
        Units of these spikes, in their order.
    sorting : BaseSorting or None
        The spikes of the units; None if the waveforms have no times.
    model : WaveformClassifier
    provenance : dict
        Settings, versions, hashes, timings, and the scores if the file holds true spikes.
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
    """Sort the signal of one electrode, or waveforms.

    Parameters
    ----------
    source : str, Path, RawChannel or Snippets
        The signal: a simulation of Wave_Clus, an array, or a channel of any recording; or waveforms.
    labels : BaseSorting, str, Path or None
        Labelled spikes of a stretch of the signal. The path of the source itself means the spikes that it
        holds. None: the spikes of the first stretch are clustered.
    output : str or Path, optional
        Folder to write the result into.
    overwrite : bool
        Whether an earlier result there may be replaced.
    config : ChannelSortingConfig, optional
    detection : SpikeDetectionConfig, optional
    training : WaveformTrainingConfig, optional
    reading : RecordingConfig, optional
        What the file does not hold itself.
    progress : callable
        Called with the progress.

    Returns
    -------
    ChannelResult

    Raises
    ------
    SpikewiseError
        If an argument cannot be used; the message says what to do.
    Interrupted
        If Ctrl-C ended the training; the best model so far is in the output folder.
    """
    settings = _Settings(
        config or ChannelSortingConfig(),
        detection or SpikeDetectionConfig(),
        training or WaveformTrainingConfig(),
        reading or RecordingConfig(),
    )
    if output is None:
        return _sort(source, labels, settings, None, progress)
    with output_folder(Path(output), overwrite) as folder, log_to(folder):
        result = _sort(source, labels, settings, folder, progress)
        _write_spikes(result, folder / SPIKES_FILE)
        if result.sorting is not None:
            save_sorting(result.sorting, folder)
        save_json(result.provenance, folder / PROVENANCE_FILE)
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
    channel, spikes, live = _find_spikes(source, settings, progress)
    finding_s = time.perf_counter() - started
    started = time.perf_counter()
    examples = _labelled_spikes(source, labels, channel, spikes, settings)
    model = _train(spikes, examples, settings.training, folder, progress, live)
    learning_s = time.perf_counter() - started
    started = time.perf_counter()
    classification = model.classify(spikes.waveforms, settings.sorting.min_probability, bool(live))
    sorting = _make_sorting(spikes, classification)
    sorting_s = finding_s + time.perf_counter() - started
    provenance: dict[str, Any] = {
        **_describe_run(source, channel, settings),
        "labels": examples.facts,
        "model": {"hash": model.hash(), "facts": model.facts},
        "result": _count_spikes(spikes, classification, sorting),
        "truth": None if channel is None else score_result(channel, spikes, classification, examples),
        "seconds": {
            "learning": round(learning_s, 3),
            "sorting": round(sorting_s, 3),
            "total": round(learning_s + sorting_s, 3),
        },
    }
    if channel is not None:
        recorded_s = len(channel.signal) / channel.sampling_frequency
        provenance["seconds"]["recorded"] = round(recorded_s, 3)
        provenance["real_time_factor"] = round(recorded_s / (learning_s + sorting_s), 1)
    return ChannelResult(spikes, classification, sorting, model, provenance)


def _find_spikes(
    source: Source, settings: _Settings, progress: ProgressCallback
) -> tuple[RawChannel | None, Snippets, dict[str, Any]]:
    """Return the signal, None if the source holds waveforms, the spikes, and what a stream must know."""
    progress("find spikes", 0, 1, "")
    opened = open_source(source, settings.reading, settings.sorting.channel)
    channel, live = (None if isinstance(opened, Snippets) else opened), {}
    if isinstance(opened, Snippets):
        spikes = opened
    elif settings.detection.filter == "live":
        spikes, rule = find_live_spikes(opened.signal, opened.sampling_frequency, settings.detection)
        gain = None if opened.recording is None else known_gains(opened.recording)
        rule["gain_to_uV"] = None if gain is None or len(set(gain)) > 1 else float(gain[0])
        live = {"live": {**rule, "detection": settings.detection.to_dict()}}
    else:
        spikes = find_spikes(opened.signal, opened.sampling_frequency, settings.detection)
    if not len(spikes):
        raise RecordingError(
            "no spike was found",
            f"peaks above {settings.detection.detection_threshold:g} standard deviations of the noise",
            "lower --detection-threshold, or choose another channel",
        )
    progress("find spikes", 1, 1, f"{len(spikes)} spikes")
    return channel, spikes, live


def _train(
    spikes: Snippets,
    examples: ChannelLabels,
    config: WaveformTrainingConfig,
    folder: Path | None,
    progress: ProgressCallback,
    facts: dict[str, Any],
) -> WaveformClassifier:
    """Train the classifier, add facts to it, and save it in the folder; raise if training was interrupted."""
    model = train_classifier(
        spikes.waveforms[examples.spike_index],
        examples.labels,
        config,
        sampling_frequency=spikes.sampling_frequency,
        background=spikes.waveforms[examples.background_index],
        progress=progress,
    )
    model = replace(model, facts={**model.facts, **facts})
    if folder is not None:
        save_classifier(model, folder / MODEL_FILE)
    if model.facts["interrupted"]:
        kept = "nothing was saved" if folder is None else f"the best model so far is {folder / MODEL_FILE}"
        raise Interrupted("training was interrupted", kept, "run the command again")
    return model


def _describe_run(source: Source, channel: RawChannel | None, settings: _Settings) -> dict[str, Any]:
    """Return the part of the provenance about the machine, the settings and the signal."""
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


def _labelled_spikes(
    source: Source,
    labels: BaseSorting | str | Path | None,
    channel: RawChannel | None,
    spikes: Snippets,
    settings: _Settings,
) -> ChannelLabels:
    """Return the spikes that train the classifier, with their labels."""
    if labels is None:
        return labels_from_clusters(spikes, settings.sorting, settings.training.seed)
    if channel is None:
        raise LabelsError(
            "labels are given for waveforms without a signal",
            "labels of the signal of a channel",
            "put the labels into the file of the waveforms and use: spikewise waveforms train",
        )
    sample_index, unit_ids = read_labels(source, labels, channel)
    return label_spikes(spikes, sample_index, unit_ids, channel, settings.sorting)


def _make_sorting(spikes: Snippets, classification: Classification) -> BaseSorting | None:
    if spikes.sample_index is None or spikes.sampling_frequency is None:
        return None
    kept = classification.unit_index >= 0
    return NumpySorting.from_samples_and_labels(
        [spikes.sample_index[kept]],
        [classification.unit_index[kept]],
        spikes.sampling_frequency,
        unit_ids=np.arange(len(classification.unit_ids)),
    ).rename_units(list(classification.unit_ids))


def _count_spikes(
    spikes: Snippets, classification: Classification, sorting: BaseSorting | None
) -> dict[str, Any]:
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
    """Write a row for each spike: index, sample_index if known, label, probability, second_label."""
    found = result.classification
    table = {"label": found.labels, "probability": found.probability, "second_label": found.second_labels}
    if result.spikes.sample_index is not None:
        table = {"sample_index": result.spikes.sample_index, **table}
    write_table(pd.DataFrame(table).rename_axis("index"), path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table of spikes as CSV, completely or not at all; probabilities have six digits.

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
