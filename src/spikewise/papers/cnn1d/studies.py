"""The studies of Li et al. 2020 on single sets: confusions, losses, few labels, few points, pairs of spikes.

Each study takes a set, the chosen methods and the seed, and returns a table in long form. Where nothing else
is said the network is that of E6, trained on the first division. Scores are in percent.
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
from spikewise.papers.cnn1d.methods import PRESETS, answer, train_preset
from spikewise.papers.cnn1d.runs import division_of, spread
from spikewise.papers.cnn1d.sets import PaperSet, Spikes, load_set, small_seed
from spikewise.single_channel.classifier import WaveformClassifier
from spikewise.single_channel.files import load_wave_clus_signal
from spikewise.single_channel.scores import classification_accuracy, confusion
from spikewise.single_channel.training_windows import shift_into_silence

STUDY_SETS = ("C_Easy1_noise015", "C_Difficult1_noise015")
"""The sets that the paper chose its network on, and shows figures of."""
_LABEL_COUNTS = (5, 10, 20, 40, 80, 160)
_POINTS = (64, 48, 32, 24, 16)
_PUBLISHED_POINTS = {
    ("C_Easy1_noise015", 64): 99.77,
    ("C_Easy1_noise015", 16): 99.14,
    ("C_Difficult1_noise015", 64): 99.42,
    ("C_Difficult1_noise015", 16): 87.91,
}
_FEW_LABEL_METHODS = ("default", "paper", "wmsorting_f10", "fusion_svm_f10")
_LAG_EDGES = tuple(range(0, 65, 8))
_RATIO_EDGES = (0.5, 0.75, 1.0)
_PAIRS_PER_CELL = 200


def run_studies(
    folder: Path, sets: list[PaperSet], methods: list[str], config: PapersConfig, progress: ProgressCallback
) -> dict[str, pd.DataFrame]:
    """Run the studies on the sets of :data:`STUDY_SETS` that were chosen; those that are there are read.

    Parameters
    ----------
    folder : Path
        Gets a CSV of each study.
    sets : list of PaperSet
    methods : list of str
        Of :data:`~spikewise.papers.cnn1d.methods.METHODS`.
    config : PapersConfig
    progress : callable
        Told how many studies are done, counted for each set.

    Returns
    -------
    dict of str to DataFrame
        By the names in :data:`STUDIES`, with the columns `set` and `source` in front; none without a row.

    Raises
    ------
    OutputError
        If the folder cannot be written.
    WaveformsError
        If a set holds no stretch without spikes.
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
    """Return the network of E6, first division, and the spikes that test it."""
    spikes, (train, test) = load_set(item), division_of(item, 6, 0, base_seed)
    seed = small_seed(base_seed, f"{preset} 0 {item.name}")
    return train_preset(preset, spikes.waveforms[train], spikes.labels[train], seed), test


def study_confusion(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Count how often each unit is taken for each: our default in E6."""
    rows: list[tuple] = []
    if "default" in methods:
        spikes = load_set(item)
        classifier, test = _trained_on_half(item, "default", base_seed)
        said = classifier.classify(spikes.waveforms[test]).labels
        counts = confusion(spikes.labels[test], said, np.unique(spikes.labels))
        rows = [(*true_and_said, count) for true_and_said, count in np.ndenumerate(counts)]
    return pd.DataFrame(rows, columns=["true_unit", "predicted_unit", "count"])


def study_misclassified(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Collect the spikes that our default gets wrong in E6, and the mean waveform of each unit.

    `kind` is "mean" or "wrong"; the waveform is in the columns ``sample_0`` and so on.
    """
    spikes = load_set(item)
    rows: list[tuple] = []
    if "default" in methods:
        classifier, test = _trained_on_half(item, "default", base_seed)
        said = classifier.classify(spikes.waveforms[test]).labels
        rows = [("mean", unit, unit, False, *mean) for unit, mean in enumerate(_unit_means(spikes))]
        rows += [
            ("wrong", spikes.labels[spike], unit, spikes.is_overlap[spike], *spikes.waveforms[spike])
            for spike, unit in zip(test, said, strict=True)
            if spikes.labels[spike] != unit
        ]
    samples = [f"sample_{sample}" for sample in range(spikes.waveforms.shape[1])]
    return pd.DataFrame(rows, columns=["kind", "true_unit", "predicted_unit", "is_overlap", *samples])


def study_losses(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Tell the training loss of each epoch in E6. The default's loss has a second part, so levels differ."""
    rows = [
        (preset, epoch, loss)
        for preset in PRESETS
        if preset in methods
        for epoch, loss in enumerate(_trained_on_half(item, preset, base_seed)[0].facts["train_loss"], 1)
    ]
    return pd.DataFrame(rows, columns=["method", "epoch", "loss"])


def study_labels(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Measure accuracy against the number of labelled spikes of each unit.

    The labelled spikes are the first of each unit in a random order. Those that any number could take are
    left out of the test, so that all numbers are tested on the same spikes; numbers above half of the
    smallest unit are left out.
    """
    waveforms, labels, _ = load_set(item)
    counts = [count for count in _LABEL_COUNTS if count <= np.bincount(labels).min() // 2]
    place = _place_in_unit(labels, stage_generator(base_seed, f"labels of {item.name}"))
    test = np.flatnonzero(place >= max(counts, default=0))
    rows = []
    for method in (name for name in _FEW_LABEL_METHODS if name in methods):
        for count in counts:
            seed = small_seed(base_seed, f"{method} with {count} labels of {item.name}")
            said = answer(method, waveforms, np.where(place < count, labels, -1), test, seed)
            rows.append((method, count, len(test), 100 * classification_accuracy(labels[test], said)))
    return pd.DataFrame(rows, columns=["method", "labels_per_unit", "num_test", "accuracy"])


def _place_in_unit(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return the place of each spike among those of its unit, in a random order: (num_spikes,) from 0."""
    order = generator.permutation(len(labels))
    place = np.empty(len(labels), dtype=np.int64)
    for unit in np.unique(labels):
        mine = order[labels[order] == unit]
        place[mine] = np.arange(len(mine))
    return place


def study_points(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Measure accuracy in E6 with fewer sampling points, beside what is published for 64 and 16."""
    waveforms, labels, _ = load_set(item)
    train, test = division_of(item, 6, 0, base_seed)
    rows = []
    for preset in (preset for preset in PRESETS if preset in methods):
        for num_points in _POINTS:
            fewer = take_points(waveforms, num_points)
            seed = small_seed(base_seed, f"{preset} at {num_points} points of {item.name}")
            said = train_preset(preset, fewer[train], labels[train], seed).classify(fewer[test]).labels
            accuracy = 100 * classification_accuracy(labels[test], said)
            rows.append((preset, num_points, accuracy, _PUBLISHED_POINTS.get((item.name, num_points))))
    return pd.DataFrame(rows, columns=["method", "num_points", "accuracy", "published"])


def take_points(waveforms: np.ndarray, num_points: int) -> np.ndarray:
    """Return waveforms at fewer, evenly spaced points: every second, every fourth, or by a cubic spline."""
    num_samples = waveforms.shape[1]
    places = np.arange(num_points) * (num_samples / num_points)
    if num_samples % num_points == 0:
        return waveforms[:, places.astype(np.int64)]
    return CubicSpline(np.arange(num_samples), waveforms, axis=1)(places).astype(np.float32)


def study_pairs(item: PaperSet, methods: list[str], base_seed: int) -> pd.DataFrame:
    """Measure what is said of two spikes in one waveform, by lag and size of the second.

    Pairs are two mean waveforms on noise from where the signal has no spikes; a row with the ratio 0 tells of
    single spikes. `both_right` is the share in which unit and second unit are the two, in either order;
    `one_right` that in which the unit is one of the two; `second_named` that in which a second unit is named
    at all. The paper's network has one answer, so that it never gets both.
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
        said = _trained_on_half(item, preset, base_seed)[0].classify(waveforms)
        is_one = (said.labels == first) | ((said.labels == second) & (ratio > 0))
        is_same = np.sort([said.labels, said.second_labels], axis=0) == np.sort([first, second], axis=0)
        answers = np.stack([is_same.all(axis=0) & (ratio > 0), is_one, said.second_labels >= 0])
        shares = 100 * answers.reshape(3, len(cells), _PAIRS_PER_CELL).mean(axis=2)
        rows += [(preset, *cell, _PAIRS_PER_CELL, *of) for cell, of in zip(cells, shares.T, strict=True)]
    columns = ["method", "lag_from", "lag_to", "ratio_from", "ratio_to", "num_pairs"]
    return pd.DataFrame(rows, columns=[*columns, "both_right", "one_right", "second_named"])


def _unit_means(spikes: Spikes) -> np.ndarray:
    """Return the mean waveform of each unit's spikes that overlap no other: (num_units, num_samples)."""
    means = []
    for unit in np.unique(spikes.labels):
        mine = spikes.labels == unit
        alone = mine & ~spikes.is_overlap
        means.append(spikes.waveforms[alone if alone.any() else mine].mean(axis=0))
    return np.stack(means)


def draw_noise(
    signal: np.ndarray, sample_index: np.ndarray, num_samples: int, count: int, generator: np.random.Generator
) -> np.ndarray:
    """Draw stretches of a signal that share no sample with a spike.

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
        (count, num_samples); a stretch may be drawn more than once.

    Raises
    ------
    WaveformsError
        If the signal has no such stretch.
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
    """Make waveforms in which a second spike follows the first.

    Parameters
    ----------
    means : ndarray
        (num_units, num_samples), two units or more.
    noise : ndarray
        (num_pairs, num_samples)
    lag, ratio : ndarray
        (num_pairs,) how many samples the second spike is later, and the factor of its mean waveform.
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
    later = shift_into_silence(means[second], lag)
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
