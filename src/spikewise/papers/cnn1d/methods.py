"""The methods that are compared: the two networks of Spikewise and the rivals, by their names.

``default`` is the default network of Spikewise; ``paper`` is the network built and trained as Li et al. 2020
describe; the rivals are :data:`spikewise.papers.cnn1d.baselines.BASELINES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from spikewise.core.errors import SettingError
from spikewise.papers.cnn1d.baselines import BASELINES
from spikewise.single_channel.classifier import WaveformClassifier
from spikewise.single_channel.classifier_training import train_classifier
from spikewise.single_channel.config import WaveformTrainingConfig

PRESETS: tuple[Literal["default", "paper"], ...] = ("default", "paper")
METHODS = (*PRESETS, *BASELINES)


def choose_methods(names: Iterable[str]) -> list[str]:
    """Return the named methods, our networks first; raise :class:`SettingError` if one is unknown."""
    names = list(names)
    unknown = [name for name in names if name not in ("all", *METHODS)]
    if unknown or not names:
        raise SettingError(
            f"methods is {', '.join(unknown) or 'empty'}",
            f"allowed: all, {', '.join(METHODS)}",
            "change methods",
        )
    return [method for method in METHODS if "all" in names or method in names]


def uses_labels(method: str) -> bool:
    """Return whether a method learns from labels; other methods are fitted once for each seed."""
    return method in PRESETS or BASELINES[method](2, 0).is_supervised


def classify(
    method: str, waveforms: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int
) -> np.ndarray:
    """Fit a method, and return the units that it assigns to some of the spikes.

    Parameters
    ----------
    method : str
        Name in :data:`METHODS`.
    waveforms : ndarray
        (num_spikes, num_samples)
    labels : ndarray
        (num_spikes,) from 0, -1 for a label hidden from the method; it may use the waveforms of all spikes.
    test : ndarray
        Indices of the spikes to classify.
    seed : int

    Returns
    -------
    ndarray
        (num_test,) units, or clusters if the method uses no labels.
    """
    known = labels >= 0
    if method in PRESETS:
        classifier = train_preset(method, waveforms[known], labels[known], seed)
        return classifier.classify(waveforms[test]).labels
    rival = BASELINES[method](len(np.unique(labels[known])), seed)
    return rival.fit(waveforms, labels).predict(waveforms[test])


def train_preset(preset: str, waveforms: np.ndarray, labels: np.ndarray, seed: int) -> WaveformClassifier:
    """Train one of our networks on labelled waveforms.

    Parameters
    ----------
    preset : str
        Name in :data:`PRESETS`.
    waveforms : ndarray
        (num_spikes, num_samples)
    labels : ndarray
        (num_spikes,) from 0.
    seed : int

    Raises
    ------
    KeyboardInterrupt
        If training was interrupted: the network is not fully trained, so its score has no meaning.
    """
    config = WaveformTrainingConfig.from_dict({"preset": preset, "seed": seed, "calibration_fraction": 0.0})
    classifier = train_classifier(waveforms, labels, config)
    if classifier.facts["interrupted"]:
        raise KeyboardInterrupt
    return classifier
