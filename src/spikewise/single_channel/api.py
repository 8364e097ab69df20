"""The Python interface of single-channel waveforms: train, classify, sort a raw channel.

Each function takes files or arrays, and its settings as dataclasses of
:mod:`spikewise.single_channel.config`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from spikewise.core.errors import LabelsError, OutputError, WaveformsError
from spikewise.core.files import check_output_file
from spikewise.core.progress import ProgressCallback, silent
from spikewise.core.rates import is_same_rate, show_rate
from spikewise.single_channel.classifier import (
    Classification,
    WaveformClassifier,
    load_classifier,
    save_classifier,
)
from spikewise.single_channel.classifier_training import train_classifier
from spikewise.single_channel.config import (
    ChannelSortingConfig,
    SnippetsConfig,
    WaveClusConfig,
    WaveformTrainingConfig,
)
from spikewise.single_channel.labelling import is_unit
from spikewise.single_channel.snippets import Snippets, load_snippets
from spikewise.single_channel.sorting import ChannelResult, sort_channel, write_table
from spikewise.single_channel.wave_clus import WaveClusSimulation, save_wave_clus, simulate_wave_clus

__all__ = ["ChannelResult", "classify_waveforms", "simulate_channel", "sort_channel", "train_waveforms"]


def train_waveforms(
    waveforms: Snippets | str | Path,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    config: WaveformTrainingConfig | None = None,
    reading: SnippetsConfig | None = None,
    progress: ProgressCallback = silent,
) -> WaveformClassifier:
    """Train a classifier on labelled waveforms.

    Parameters
    ----------
    waveforms : Snippets, str or Path
        Waveforms with labels, or the file that holds them. Waveforms without a label are ignored.
    output : str or Path, optional
        File to write the classifier to.
    overwrite : bool
        Whether a file there may be replaced.
    config : WaveformTrainingConfig, optional
    reading : SnippetsConfig, optional
        How the file is read.
    progress : callable
        Called with the progress.

    Returns
    -------
    WaveformClassifier
        Ctrl-C ends training early and returns the best network so far; ``facts["interrupted"]`` is then True.

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
            f"the source {snippets.name} holds waveforms without labels",
            "waveforms with the unit of each",
            "add an array or column of labels, name it with --labels-key, or use: spikewise waveforms sort",
        )
    labelled = snippets.select(is_unit(snippets.labels))
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
    """Assign each waveform to a unit.

    Parameters
    ----------
    waveforms : Snippets, str or Path
        Waveforms as long as those the model was trained on, or the file that holds them.
    model : WaveformClassifier, str or Path
        The classifier, or its file.
    output : str or Path, optional
        CSV to write: a row for each waveform in order, with its index, label and probability.
    overwrite : bool
        Whether a file there may be replaced.
    min_probability : float
        Leave a waveform unsorted (label -1) if its unit is less probable than this.
    second_units : bool
        Whether the CSV has a column ``second_label``: another unit in the same waveform, -1 for none.
    reading : SnippetsConfig, optional
        How the file is read.

    Returns
    -------
    Classification

    Raises
    ------
    SpikewiseError
        If an argument cannot be used; the message says what to do.
    """
    limits = ChannelSortingConfig(min_probability=min_probability)
    if output is not None:
        output = check_output_file(output, overwrite, ending=".csv")
    classifier = model if isinstance(model, WaveformClassifier) else load_classifier(model)
    snippets = _open_snippets(waveforms, reading)
    if output is not None:
        _check_is_other_file(output, waveforms)
    _check_frequency(snippets, classifier)
    found = classifier.classify(snippets.waveforms, limits.min_probability)
    if output is not None:
        table = {"label": found.labels, "probability": found.probability}
        if second_units:
            table["second_label"] = found.second_labels
        write_table(pd.DataFrame(table).rename_axis("index"), output)
    return found


def simulate_channel(
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    config: WaveClusConfig | None = None,
) -> WaveClusSimulation:
    """Simulate a single-channel signal with known spikes, like those of Wave_Clus (Quiroga et al. 2004).

    Parameters
    ----------
    output : str or Path, optional
        File to write the simulation to, in the layout of the public .mat files.
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
        if output.suffix.lower() != ".mat":
            raise OutputError(
                f"the output file of the simulation is {output}",
                "a name that ends in .mat",
                "change the name",
            )
    simulation = simulate_wave_clus(config or WaveClusConfig())
    if output is not None:
        save_wave_clus(simulation, output)
    return simulation


def _open_snippets(waveforms: Snippets | str | Path, reading: SnippetsConfig | None) -> Snippets:
    return waveforms if isinstance(waveforms, Snippets) else load_snippets(waveforms, reading)


def _check_is_other_file(output: Path, waveforms: Snippets | str | Path) -> None:
    if not isinstance(waveforms, Snippets) and output.exists() and output.samefile(waveforms):
        raise OutputError(
            f"the output {output} is the file of the waveforms",
            "another file, since the waveforms would be lost",
            "choose another name",
        )


def _check_frequency(snippets: Snippets, classifier: WaveformClassifier) -> None:
    given, known = snippets.sampling_frequency, classifier.sampling_frequency
    if given is not None and known is not None and not is_same_rate(given, known):
        raise WaveformsError(
            f"the waveforms are sampled at {show_rate(given)}",
            f"the model was trained at {show_rate(known)}",
            "resample them, or train a model on waveforms of this rate",
        )
