"""The studies of Li et al. 2020 on single sets: confusions, losses, few labels, few points, pairs of spikes.

Each study takes a set, the chosen methods and the seed, and returns a table in long form. Unless stated
otherwise, the network is that of E6, trained on the first division. Scores are in percent.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.interpolate import CubicSpline

from spikewise.core.errors import WaveformsError
from spikewise.core.progress import ProgressCallback
from spikewise.core.seeds import stage_generator
from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.papers.cnn1d.folder import write_csv
from spikewise.papers.cnn1d.methods import PRESETS, classify, train_preset
from spikewise.papers.cnn1d.runs import division_of, spread
from spikewise.papers.cnn1d.sets import PaperSet, Spikes, load_set, small_seed
from spikewise.single_channel.classifier import WaveformClassifier
from spikewise.single_channel.files import load_wave_clus_signal
from spikewise.single_channel.scores import classification_accuracy, confusion
from spikewise.single_channel.training_windows import shift_with_zeros

STUDY_SETS = ("C_Easy1_noise015", "C_Difficult1_noise015")
"""The sets on which the paper chose its network and drew its figures."""
_LABEL_COUNTS = (5, 10, 20, 40, 80, 160)
"""Numbers of labels per unit that are compared."""
_POINTS = (64, 48, 32, 24, 16)
"""Numbers of sampling points that are compared."""
_PUBLISHED_POINTS = {
    ("C_Easy1_noise015", 64): 99.77,
    ("C_Easy1_noise015", 16): 99.14,
    ("C_Difficult1_noise015", 64): 99.42,
    ("C_Difficult1_noise015", 16): 87.91,
}
"""Accuracies in the paper, by set and number of sampling points."""
_FEW_LABEL_METHODS = ("default", "paper", "wmsorting_f10", "fusion_svm_f10")
_LAG_EDGES = tuple(range(0, 65, 8))
"""Edges of the ranges of lags between the two spikes of a pair, in samples."""
_RATIO_EDGES = (0.5, 0.75, 1.0)
"""Edges of the ranges of the size of the second spike, relative to the mean waveform of its unit."""
_PAIRS_PER_CELL = 200
"""Pairs for each range of lags and sizes."""


def run_studies(
    folder: Path, sets: list[PaperSet], methods: list[str], config: PapersConfig, progress: ProgressCallback
) -> dict[str, pd.DataFrame]:
    """Run the studies on the chosen sets of :data:`STUDY_SETS`; finished studies are read.

    Parameters
    ----------
    folder : Path
        Folder for a CSV of each study.
    sets : list of PaperSet
    methods : list of str
        Names in :data:`~spikewise.papers.cnn1d.methods.METHODS`.
    config : PapersConfig
    progress : callable
        Called with the number of finished studies, counted for each set.

    Returns
    -------
    dict of str to DataFrame
        By the names in :data:`STUDIES`, with the columns `set` and `source` in front; only those with rows.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    WaveformsError
        If a set has no part without spikes.
    """
    chosen = [item for name in STUDY_SETS for item in sets if item.name == name]
    missing = [name for name in STUDIES if chosen and not (folder / f"{name}.csv").exists()]
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in missing}
    calls = [(name, item, methods, config.seed) for name in missing for item in chosen]
    for count, (name, frame) in enumerate(spread(_run_study, calls, config.num_jobs), 1):
        path = folder / f"{name}.csv"
        parts[name].append(frame)
        if len(parts[name]) == len(chosen):
            frame = pd.concat(parts[name])
            write_csv(
                frame.sort_values("set", key=lambda names: names.map(STUDY_SETS.index), kind="stable"), path
            )
        progress("studies", count, len(calls), name.replace("_", " "))
    if not chosen:
        return {}
    found = {name: pd.read_csv(folder / f"{name}.csv") for name in STUDIES}
    return {name: frame for name, frame in found.items() if len(frame)}


def _run_study(name: str, item: PaperSet, methods: list[str], base_seed: int) -> tuple[str, pd.DataFrame]:
    frame = STUDIES[name](item, methods, base_seed)
    frame.insert(0, "set", item.name)
    frame.insert(1, "source", item.source)
    return name, frame


@lru_cache(maxsize=4)
def _trained_on_half(item: PaperSet, preset: str, base_seed: int) -> tuple[WaveformClassifier, np.ndarray]:
    """Return the network of E6, first division, and the indices of its test spikes."""
    spikes, (train, test) = load_set(item), division_of(item, 6, 0, base_seed)
    seed = small_seed(base_seed, f"{preset} 0 {item.name}")
    return train_preset(preset, spikes.waveforms[train], spikes.labels[train], seed), test


def study_confusion(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Return the confusion matrix of Spikewise's default network in E6."""
    rows: list[tuple] = []
    if "default" in methods:
        spikes = load_set(item)
        classifier, test = _trained_on_half(item, "default", base_seed)
        assigned = classifier.classify(spikes.waveforms[test]).labels
        counts = confusion(spikes.labels[test], assigned, np.unique(spikes.labels))
        rows = [(*true_and_said, count) for true_and_said, count in np.ndenumerate(counts)]
    return pd.DataFrame(rows, columns=["true_unit", "predicted_unit", "count"])


def study_misclassified(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Collect the spikes that the default network assigns wrongly in E6, and the mean waveform of each unit.

    `kind` is "mean" or "wrong"; the waveform is in the columns ``sample_0`` and so on.
    """
    spikes = load_set(item)
    rows: list[tuple] = []
    if "default" in methods:
        classifier, test = _trained_on_half(item, "default", base_seed)
        assigned = classifier.classify(spikes.waveforms[test]).labels
        rows = [("mean", unit, unit, False, *mean) for unit, mean in enumerate(_unit_means(spikes))]
        rows += [
            ("wrong", spikes.labels[spike], unit, spikes.is_overlap[spike], *spikes.waveforms[spike])
            for spike, unit in zip(test, assigned, strict=True)
            if spikes.labels[spike] != unit
        ]
    samples = [f"sample_{sample}" for sample in range(spikes.waveforms.shape[1])]
    return pd.DataFrame(rows, columns=["kind", "true_unit", "predicted_unit", "is_overlap", *samples])


def study_losses(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Return the training loss of each epoch in E6; the default's has a second term, so levels differ."""
    rows = [
        (preset, epoch, loss)
        for preset in PRESETS
        if preset in methods
        for epoch, loss in enumerate(_trained_on_half(item, preset, base_seed)[0].facts["train_loss"], 1)
    ]
    return pd.DataFrame(rows, columns=["method", "epoch", "loss"])


def study_labels(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Measure accuracy against the number of labelled spikes of each unit.

    The labelled spikes are the first of each unit in a random order. All numbers of labels are tested on the
    same spikes: those that are never labelled. Numbers above half of the spikes of the smallest unit are
    left out.
    """
    waveforms, labels, _ = load_set(item)
    counts = [count for count in _LABEL_COUNTS if count <= np.bincount(labels).min() // 2]
    rank = _rank_in_unit(labels, stage_generator(base_seed, f"labels of {item.name}"))
    test = np.flatnonzero(rank >= max(counts, default=0))
    rows = []
    for method in (name for name in _FEW_LABEL_METHODS if name in methods):
        for count in counts:
            seed = small_seed(base_seed, f"{method} with {count} labels of {item.name}")
            assigned = classify(method, waveforms, np.where(rank < count, labels, -1), test, seed)
            rows.append((method, count, len(test), 100 * classification_accuracy(labels[test], assigned)))
    return pd.DataFrame(rows, columns=["method", "labels_per_unit", "num_test", "accuracy"])


def _rank_in_unit(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the rank of each spike in a random order of the spikes of its unit: (num_spikes,) from 0."""
    order = generator.permutation(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)
    for unit in np.unique(labels):
        mine = order[labels[order] == unit]
        rank[mine] = np.arange(len(mine))
    return rank


def study_points(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Measure accuracy in E6 with fewer sampling points, and add the published accuracy for 64 and 16."""
    waveforms, labels, _ = load_set(item)
    train, test = division_of(item, 6, 0, base_seed)
    rows = []
    for preset in (preset for preset in PRESETS if preset in methods):
        for num_points in _POINTS:
            fewer = take_points(waveforms, num_points)
            seed = small_seed(base_seed, f"{preset} at {num_points} points of {item.name}")
            assigned = train_preset(preset, fewer[train], labels[train], seed).classify(fewer[test]).labels
            accuracy = 100 * classification_accuracy(labels[test], assigned)
            rows.append((preset, num_points, accuracy, _PUBLISHED_POINTS.get((item.name, num_points))))
    return pd.DataFrame(rows, columns=["method", "num_points", "accuracy", "published"])


def take_points(waveforms: np.ndarray, num_points: int) -> np.ndarray:
    """Return waveforms at fewer, evenly spaced points: every n-th sample, or by a cubic spline."""
    num_samples = waveforms.shape[1]
    points = np.arange(num_points) * (num_samples / num_points)
    if num_samples % num_points == 0:
        return waveforms[:, points.astype(np.int64)]
    return CubicSpline(np.arange(num_samples), waveforms, axis=1)(points).astype(np.float32)


def study_pairs(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Measure the assignment of two spikes in one waveform, by lag and size of the second.

    A pair is the sum of two mean waveforms and noise from parts of the signal without spikes. Rows with the
    ratio 0 are single spikes. `both_right` is the percentage of pairs in which unit and second unit are the
    two, in either order; `one_right` that in which the unit is one of the two; `second_named` that in which a
    second unit is returned. The paper's network returns only one unit, so it never has both right.
    """
    means = _unit_means(load_set(item))
    channel = load_wave_clus_signal(item.path)
    assert channel.sample_index is not None
    generator = stage_generator(base_seed, f"pairs of {item.name}")
    ratios = [*itertools.pairwise(_RATIO_EDGES), (0.0, 0.0)]
    cells = [(*lags, *ratio) for ratio in ratios for lags in itertools.pairwise(_LAG_EDGES)]
    low, high, least, most = np.repeat(np.array(cells), _PAIRS_PER_CELL, axis=0).T
    noise = draw_noise(channel.signal, channel.sample_index, means.shape[1], len(low), generator)
    lag, ratio = generator.uniform(low, high), generator.uniform(least, most)
    waveforms, first, second = make_pairs(means, noise, lag, ratio, generator)
    rows = []
    for preset in (preset for preset in PRESETS if preset in methods):
        assigned = _trained_on_half(item, preset, base_seed)[0].classify(waveforms)
        is_one = (assigned.labels == first) | ((assigned.labels == second) & (ratio > 0))
        is_same = np.sort([assigned.labels, assigned.second_labels], axis=0) == np.sort(
            [first, second], axis=0
        )
        outcomes = np.stack([is_same.all(axis=0) & (ratio > 0), is_one, assigned.second_labels >= 0])
        shares = 100 * outcomes.reshape(3, len(cells), _PAIRS_PER_CELL).mean(axis=2)
        rows += [(preset, *cell, _PAIRS_PER_CELL, *of) for cell, of in zip(cells, shares.T, strict=True)]
    columns = ["method", "lag_from", "lag_to", "ratio_from", "ratio_to", "num_pairs"]
    return pd.DataFrame(rows, columns=[*columns, "both_right", "one_right", "second_named"])


def _unit_means(spikes: Spikes) -> np.ndarray:
    """Return the mean waveform of each unit over its spikes without overlap: (num_units, num_samples)."""
    means = []
    for unit in np.unique(spikes.labels):
        mine = spikes.labels == unit
        alone = mine & ~spikes.is_overlap
        means.append(spikes.waveforms[alone if alone.any() else mine].mean(axis=0))
    return np.stack(means)


def draw_noise(
    signal: np.ndarray, sample_index: np.ndarray, num_samples: int, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw parts of a signal that share no sample with a spike.

    Parameters
    ----------
    signal : ndarray
        (num_samples_of_signal,)
    sample_index : ndarray
        (num_spikes,) first samples of the spikes, which are `num_samples` long.
    num_samples, count : int
    generator : Generator

    Returns
    -------
    ndarray
        (count, num_samples); a part may be drawn more than once.

    Raises
    ------
    WaveformsError
        If the signal has no such part.
    """
    is_open = np.ones(len(signal) - num_samples + 1, dtype=bool)
    reach = np.arange(1 - num_samples, num_samples)
    taken = (np.asarray(sample_index)[:, None] + reach).ravel()
    is_open[taken[(taken >= 0) & (taken < len(is_open))]] = False
    starts = np.flatnonzero(is_open)
    if not len(starts):
        raise WaveformsError(
            f"the signal has no {num_samples} samples without a spike", "one at least", "take another signal"
        )
    return signal[generator.choice(starts, count)[:, None] + np.arange(num_samples)]


def make_pairs(
    means: np.ndarray, noise: np.ndarray, lag: np.ndarray, ratio: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return waveforms in which a second spike follows the first.

    Parameters
    ----------
    means : ndarray
        (num_units, num_samples), two units or more.
    noise : ndarray
        (num_pairs, num_samples)
    lag, ratio : ndarray
        (num_pairs,) lag of the second spike in samples, and the factor of its mean waveform.
    generator : Generator
        Draws the units, which differ.

    Returns
    -------
    waveforms : ndarray
        (num_pairs, num_samples) float32
    first, second : ndarray
        (num_pairs,) units from 0.
    """
    first = generator.integers(len(means), size=len(lag))
    second = (first + generator.integers(1, len(means), size=len(lag))) % len(means)
    later = shift_with_zeros(means[second], lag)
    return (means[first] + ratio[:, None] * later + noise).astype(np.float32), first, second


STUDIES: dict[str, Callable[[PaperSet, list[str], int], pd.DataFrame]] = {
    "confusion": study_confusion,
    "losses": study_losses,
    "misclassified": study_misclassified,
    "labels_per_unit": study_labels,
    "sampling_points": study_points,
    "overlapping_pairs": study_pairs,
}
"""The studies, by the names of their files; each takes a set, the chosen methods and the seed."""
