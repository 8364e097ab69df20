"""The methods that are compared: the two networks of Spikewise and the rivals, by their names.

``default`` is Spikewise as it comes, ``paper`` the network built and trained as Li et al. 2020 tell; the rest
is :data:`spikewise.papers.cnn1d.baselines.BASELINES`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import numpy as np

from spikewise.core.errors import SettingError
from spikewise.papers.cnn1d.baselines import BASELINES
from spikewise.single_channel.classifier import WaveformClassifier, train_classifier
from spikewise.single_channel.config import WaveformTrainingConfig

PRESETS: tuple[Literal["default", "paper"], ...] = ("default", "paper")
METHODS = (*PRESETS, *BASELINES)


def choose_methods(names: Iterable[str]) -> list[str]:
    """Return the methods that are named, ours first; raise :class:`SettingError` if one is unknown."""
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
    """Tell whether a method learns from labels; those that do not are fitted once for each seed."""
    return method in PRESETS or BASELINES[method](2, 0).is_supervised


def answer(method: str, waveforms: np.ndarray, labels: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
    """Let a method learn, and return what it says of some of the spikes.

    Parameters
    ----------
    method : str
        Of :data:`METHODS`.
    waveforms : ndarray
        (num_spikes, num_samples)
    labels : ndarray
        (num_spikes,) from 0, -1 where the method may not know; it may use the waveforms of all spikes.
    test : ndarray
        Indices of the spikes to answer for.
    seed : int

    Returns
    -------
    ndarray
        (num_test,) units, or numbers of clusters.
    """
    known = labels >= 0
    if method in PRESETS:
        classifier = train_preset(method, waveforms[known], labels[known], seed)
        return classifier.classify(waveforms[test]).labels
    rival = BASELINES[method](len(np.unique(labels[known])), seed)
    return rival.fit(waveforms, labels).predict(waveforms[test])


def train_preset(preset: str, waveforms: np.ndarray, labels: np.ndarray, seed: int) -> WaveformClassifier:
    """Train one of our networks on all labels that it is given.

    Parameters
    ----------
    preset : str
        Of :data:`PRESETS`.
    waveforms : ndarray
        (num_spikes, num_samples)
    labels : ndarray
        (num_spikes,) from 0.
    seed : int

    Raises
    ------
    KeyboardInterrupt
        If training was interrupted: it ends early then, and its score would be none.
    """
    config = WaveformTrainingConfig.from_dict({"preset": preset, "seed": seed, "calibration_fraction": 0.0})
    classifier = train_classifier(waveforms, labels, config)
    if classifier.facts["interrupted"]:
        raise KeyboardInterrupt
    return classifier
