"""The Python interface of single-channel waveforms: train, classify, sort a raw channel.

Each function takes files or arrays, and its settings as the dataclasses of :mod:`spikewise.waveform_config`.
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
from spikeinterface.core import BaseSorting, NumpyRecording, NumpySorting

from spikewise import __version__
from spikewise.channel_learning import ChannelLabels, judge, label_spikes, labels_from_clusters
from spikewise.config import RecordingConfig
from spikewise.data.label_files import load_labels
from spikewise.data.raw_channel import find_spikes, load_raw_channel
from spikewise.data.recordings import load_recording
from spikewise.data.wave_clus import WaveClusSimulation, save_wave_clus, simulate_wave_clus
from spikewise.data.waveform_files import RawChannel
from spikewise.data.waveforms import Snippets, load_snippets
from spikewise.errors import Interrupted, LabelsError, RecordingError, WaveformsError
from spikewise.models.waveform_classifier import (
    Classification,
    WaveformClassifier,
    load_classifier,
    save_classifier,
    train_classifier,
)
from spikewise.progress import ProgressCallback, silent
from spikewise.sorting.log import log_to
from spikewise.sorting.store import (
    MODEL_FILE,
    PROVENANCE_FILE,
    SPIKES_FILE,
    check_output,
    check_output_file,
    output_folder,
    save_json,
    save_sorting,
    spikes_hash,
    writing,
)
from spikewise.waveform_config import (
    ChannelSortingConfig,
    SnippetsConfig,
    SpikeDetectionConfig,
    WaveClusConfig,
    WaveformTrainingConfig,
)

_PACKAGES = ("torch", "numpy", "scipy", "scikit-learn")
_ARRAY_FILES = (".mat", ".npz", ".npy", ".csv", ".tsv", ".txt")


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


def train_waveforms(
    waveforms: Snippets | str | Path,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    config: WaveformTrainingConfig | None = None,
    reading: SnippetsConfig | None = None,
    progress: ProgressCallback = silent,
) -> WaveformClassifier:
    """Learn the units of labelled waveforms.

    Parameters
    ----------
    waveforms : Snippets, str or Path
        Waveforms with labels, or the file that holds them. Those without label do not train.
    output : str or Path, optional
        File to write the classifier to.
    overwrite : bool
        Whether a file there may be replaced.
    config : WaveformTrainingConfig, optional
    reading : SnippetsConfig, optional
        How the file is read.
    progress : callable
        Told how far it is.

    Returns
    -------
    WaveformClassifier
        Ctrl-C ends training early and gives the best network so far; ``facts["interrupted"]`` tells.

    Raises
    ------
    SpikewiseError
        If waveforms, labels or settings cannot be used; the message says what to do.
    """
    if output is not None:
        output = check_output_file(output, overwrite, ending=".safetensors")
    snippets = _open_snippets(waveforms, reading)
    if snippets.labels is None:
        raise LabelsError(
            f"{snippets.name} holds waveforms without labels",
            "waveforms with the unit of each",
            "add an array or column of labels, name it with --labels-key, or use: spikewise waveforms sort",
        )
    labelled = snippets.select(snippets.is_labelled)
    assert labelled.labels is not None
    classifier = train_classifier(
        labelled.waveforms,
        labelled.labels,
        config,
        sampling_frequency=snippets.sampling_frequency,
        progress=progress,
    )
    if output is not None:
        save_classifier(classifier, output)
    return classifier


def classify_waveforms(
    waveforms: Snippets | str | Path,
    model: WaveformClassifier | str | Path,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    min_probability: float = 0.0,
    second_units: bool = False,
    reading: SnippetsConfig | None = None,
) -> Classification:
    """Give each waveform to a unit.

    Parameters
    ----------
    waveforms : Snippets, str or Path
        Waveforms as long as those the model learnt from, or the file that holds them.
    model : WaveformClassifier, str or Path
        The classifier, or where it is.
    output : str or Path, optional
        CSV to write: a row for each waveform in order, with its index, label and probability.
    overwrite : bool
        Whether a file there may be replaced.
    min_probability : float
        Leave a waveform unsorted (label -1) whose unit is less probable.
    second_units : bool
        Whether the CSV gets a column ``second_label`` too: another unit in the same waveform, -1 for none.
    reading : SnippetsConfig, optional
        How the file is read.

    Returns
    -------
    Classification

    Raises
    ------
    SpikewiseError
        If something that was given cannot be used; the message says what to do.
    """
    if output is not None:
        output = check_output_file(output, overwrite, ending=".csv")
    classifier = model if isinstance(model, WaveformClassifier) else load_classifier(model)
    snippets = _open_snippets(waveforms, reading)
    _check_frequency(snippets, classifier)
    found = classifier.classify(snippets.waveforms, min_probability)
    if output is not None:
        table = {"label": found.labels, "probability": found.probability}
        if second_units:
            table["second_label"] = found.second_labels
        _write_table(pd.DataFrame(table).rename_axis("index"), output)
    return found


def sort_channel(
    source: str | Path | RawChannel | Snippets,
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
    check_output(output, overwrite)
    with output_folder(Path(output), overwrite) as place, log_to(place):
        result = _sort(source, labels, settings, place, progress)
        _write_spikes(result, place / SPIKES_FILE)
        if result.sorting is not None:
            save_sorting(result.sorting, place)
        save_json(result.provenance, place / PROVENANCE_FILE)
    return result


def simulate_channel(
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    config: WaveClusConfig | None = None,
) -> WaveClusSimulation:
    """Make a single-channel signal with known spikes, in the manner of Wave_Clus (Quiroga et al. 2004).

    Parameters
    ----------
    output : str or Path, optional
        File to write it to, in the layout of the public .mat files.
    overwrite : bool
        Whether a file there may be replaced.
    config : WaveClusConfig, optional

    Returns
    -------
    WaveClusSimulation

    Raises
    ------
    SpikewiseError
        If a setting or the file of shapes cannot be used.
    """
    if output is not None:
        output = check_output_file(output, overwrite, ending=".mat")
    made = simulate_wave_clus(config or WaveClusConfig())
    if output is not None:
        save_wave_clus(made, output)
    return made


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
    source: str | Path | RawChannel | Snippets,
    labels: BaseSorting | str | Path | None,
    settings: _Settings,
    folder: Path | None,
    progress: ProgressCallback,
) -> ChannelResult:
    started = time.perf_counter()
    channel, spikes = _open_source(source, settings)
    progress("find spikes", 0, 1, "")
    if channel is not None:
        spikes = find_spikes(channel.signal, channel.sampling_frequency, settings.detection)
    if spikes is None or not len(spikes):
        raise RecordingError(
            "no spike was found",
            f"peaks above {settings.detection.detection_threshold:g} standard deviations of the noise",
            "lower --detection-threshold, or choose another channel",
        )
    progress("find spikes", 1, 1, f"{len(spikes)} spikes")
    found_s = time.perf_counter() - started
    examples = _examples(source, labels, channel, spikes, settings)
    started = time.perf_counter()
    model = train_classifier(
        spikes.waveforms[examples.spike_index],
        examples.labels,
        settings.training,
        sampling_frequency=spikes.sampling_frequency,
        background=spikes.waveforms[examples.background_index],
        progress=progress,
    )
    if folder is not None:
        save_classifier(model, folder / MODEL_FILE)
    if model.facts["interrupted"]:
        raise Interrupted(
            "training was interrupted",
            "the best model so far is kept"
            if folder is not None
            else "nothing is kept without an output folder",
            "run the command again",
        )
    trained_s = time.perf_counter() - started
    started = time.perf_counter()
    classification = model.classify(spikes.waveforms, settings.sorting.min_probability)
    sorting = _sorting_of(spikes, classification)
    seconds = {
        "finding": round(found_s, 3),
        "training": round(trained_s, 3),
        "classifying": round(time.perf_counter() - started, 3),
    }
    provenance: dict[str, Any] = {
        "spikewise_version": __version__,
        "versions": {
            "python": platform.python_version(),
            **{
                name: importlib.metadata.version(name) for name in ("torch", "numpy", "scipy", "scikit-learn")
            },
        },
        "source": str(source) if isinstance(source, str | Path) else type(source).__name__,
        "config": settings.to_dict(),
        "labels": examples.facts,
        "model": {"hash": model.hash(), "facts": model.facts},
        "result": _count(spikes, classification, sorting),
        "truth": None if channel is None else judge(channel, spikes, classification, examples),
        "seconds": seconds,
    }
    if channel is not None:
        recorded_s = len(channel.signal) / channel.sampling_frequency
        provenance["seconds"] |= {"recorded": round(recorded_s, 3)}
        provenance["real_time_factor"] = round(recorded_s / (seconds["finding"] + seconds["classifying"]), 1)
    return ChannelResult(spikes, classification, sorting, model, provenance)


def _examples(
    source: str | Path | RawChannel | Snippets,
    labels: BaseSorting | str | Path | None,
    channel: RawChannel | None,
    spikes: Snippets,
    settings: _Settings,
) -> ChannelLabels:
    """Return which spikes train, from labels or from clusters."""
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
    source: str | Path | RawChannel | Snippets, labels: BaseSorting | str | Path, channel: RawChannel
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
        known = np.array([str(label) not in ("-1", "") for label in channel.labels])
        return channel.sample_index[known], channel.labels[known]
    if not isinstance(labels, BaseSorting):
        recording = NumpyRecording([channel.signal[:, None]], channel.sampling_frequency)
        labels = load_labels(labels, recording)
    vector = labels.to_spike_vector()
    return vector["sample_index"].astype(np.int64), np.asarray(labels.unit_ids)[vector["unit_index"]]


def _open_source(
    source: str | Path | RawChannel | Snippets, settings: _Settings
) -> tuple[RawChannel | None, Snippets | None]:
    """Return a signal, or waveforms."""
    if isinstance(source, RawChannel):
        return source, None
    if isinstance(source, Snippets):
        return None, source
    path = Path(source)
    arrays = SnippetsConfig(sampling_frequency=settings.reading.sampling_frequency)
    if path.is_file() and path.suffix.lower() in _ARRAY_FILES and settings.sorting.channel is None:
        try:
            return load_raw_channel(path, arrays), None
        except WaveformsError as not_a_channel:
            try:
                return None, load_snippets(path, arrays)
            except WaveformsError:
                if path.suffix.lower() not in (".npz", ".npy"):
                    raise not_a_channel from None
    recording = load_recording(path, settings.reading)
    names = [str(channel_id) for channel_id in recording.channel_ids]
    chosen = settings.sorting.channel
    if (
        recording.get_num_segments() > 1
        or (chosen is None and len(names) > 1)
        or chosen not in (None, *names)
    ):
        asked = "" if chosen is None else f", and channel {chosen!r} was asked for"
        raise RecordingError(
            f"the recording has {recording.get_num_segments()} segments and the channels "
            f"{', '.join(names[:20])}{' ...' if len(names) > 20 else ''}{asked}",
            "one segment, and one of its channels",
            "name one with --channel, or sort them together with: spikewise sort",
        )
    channel_id = recording.channel_ids[0 if chosen is None else names.index(chosen)]
    signal = recording.get_traces(channel_ids=[channel_id])[:, 0].astype(np.float32)
    return RawChannel(signal, float(recording.get_sampling_frequency()), None, None, None), None


def _open_snippets(waveforms: Snippets | str | Path, reading: SnippetsConfig | None) -> Snippets:
    return waveforms if isinstance(waveforms, Snippets) else load_snippets(waveforms, reading)


def _check_frequency(snippets: Snippets, classifier: WaveformClassifier) -> None:
    given, known = snippets.sampling_frequency, classifier.sampling_frequency
    if given is not None and known is not None and abs(given - known) > 1e-3 * known:
        raise WaveformsError(
            f"the waveforms are sampled at {given:g} Hz",
            f"the model was trained at {known:g} Hz",
            "resample them, or train a model on waveforms of this rate",
        )


def _sorting_of(spikes: Snippets, classification: Classification) -> BaseSorting | None:
    if spikes.sample_index is None or spikes.sampling_frequency is None:
        return None
    kept = classification.unit_index >= 0
    order = np.argsort(spikes.sample_index[kept], kind="stable")
    return NumpySorting.from_samples_and_labels(
        [spikes.sample_index[kept][order]],
        [classification.unit_index[kept][order]],
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
    _write_table(pd.DataFrame(table).rename_axis("index"), path)


def _write_table(table: pd.DataFrame, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        table.round({"probability": 6}).to_csv(partial)
        partial.replace(path)
