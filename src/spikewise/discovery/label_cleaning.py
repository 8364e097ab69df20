"""Split units that another sorter merged and merge units that it split, before they become labels.

A unit is split if its waveforms fall into clusters. The waveforms are projected on their own principal
components and clustered by ISO-SPLIT (Magland & Barnett, arXiv 1508.04841; SpikeInterface's version), which
cuts only where the density has a dip. Two clusters stay together if they are one neuron with a varying
waveform: if each avoids the refractory period of the other, or, with too few spikes to test this, if their
mean waveforms are alike. Two units are merged by the same test, if their mean waveforms are alike.

A neuron that jumps along the probe, or away from it, is cut into units that take turns: each fires while the
other is silent. The number of runs in the common order of two trains shows this (Wald & Wolfowitz, Ann. Math.
Stat. 1940). Units that take turns are merged at a lower similarity, the most similar pair first, so that the
parts of two neurons that jump together are not mixed.

The numbers below without another source were chosen by hand, those of the clustering on two tetrodes
(docs/design-notes.md, "Labels from another sorter").

Conventions: spikes are global frames, one array for each unit; `rate` is the sampling frequency in Hz and
`duration` the length of the label interval in samples.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

import numpy as np
from scipy.sparse.csgraph import connected_components

from spikewise.core.compiling import keep_compiled
from spikewise.core.constants import COINCIDENCE_MS, MIN_ARRAY_CHANNELS, REFRACTORY_MS
from spikewise.data.labels.label_set import LabelSet, kept_spikes, relabelled
from spikewise.data.recordings.reader import Traces
from spikewise.learning.examples.stored_traces import StoredTraces
from spikewise.learning.examples.training_set import split_interval

NUM_COMPONENTS = (3, 6, 10)
"""Principal components that are clustered; the result with the most clusters counts."""
MIN_SPIKES = 20
"""Fewest spikes of a cluster that is a separate unit."""
MIN_FRACTION = 0.05
"""Smallest fraction of a unit's spikes in such a cluster."""
MAX_REFRACTORY_RATIO = 0.3
"""Two trains are one neuron below this ratio of pairs of spikes within the refractory period to the number by
chance."""
MIN_EXPECTED_PAIRS = 6.0
"""Fewest such pairs by chance with which two trains can be judged."""
MIN_SIMILARITY = 0.96
"""Cosine of two mean waveforms above which two units may be one."""
MAX_SHAPE_DIFFERENCE = 0.03
"""Parts of a unit with too few spikes for the test above stay together below this fraction of the energy of a
mean waveform. Chosen on a hybrid recording and three tetrodes (the same section)."""
MAX_RUNS_RATIO = {0.9: 0.6, 0.8: 0.4}
"""Units take turns with fewer runs than this ratio to the number by chance; the key is the smallest cosine of
their mean waveforms. Chosen on nine recordings (the same section)."""
MAX_RUNS_DEVIATION = -4.0
"""The number of runs must also be so many standard deviations below chance; chosen with MAX_RUNS_RATIO."""
NUM_WAVEFORM_SPIKES = 200
"""Most spikes of which a mean waveform is taken."""
_SEED = 0
"""Seed of the k-means that starts ISO-SPLIT: the same spikes give the same units."""
_MAX_CLUSTERED = 1500
"""Most spikes of a unit that are clustered; the others go to the nearest cluster."""
_NEAR_CHANNELS = 12
"""Channels with the largest peak-to-peak amplitude, on which a unit is clustered."""
_WAVEFORM_MS = (0.75, 1.25)
"""Length of a waveform before and after the spike."""
_MAX_DEPTH = 3
"""How often the parts of a unit are split again."""


def clean_labels(label_set: LabelSet, traces: Traces) -> tuple[LabelSet, dict[str, int]]:
    """Split merged units and merge split ones.

    Parameters
    ----------
    label_set : LabelSet
        Labels that another sorter made.
    traces : Traces
        Preprocessed traces of their group of channels.

    Returns
    -------
    LabelSet
        With new unit ids, counted from 0.
    dict
        How many units were ``split`` and ``merged``.
    """
    spikes = kept_spikes(label_set, None)
    rate = traces.sampling_frequency
    before, after = (round(part * rate / 1000) for part in _WAVEFORM_MS)
    blocks = split_interval(traces, label_set.parts(), spikes, 0.2)
    stored = StoredTraces(traces, blocks, before + after)
    cutter = _Cutter(stored, before, before + after)
    duration = label_set.stop_frame - label_set.start_frame
    trains: list[np.ndarray] = []
    num_split = 0
    for unit in range(len(spikes.unit_ids)):
        parts = _split(spikes.global_frame[spikes.unit_index == unit], cutter, rate, duration, _MAX_DEPTH)
        num_split += len(parts) > 1
        trains += parts
    merged = _merge(trains, cutter, rate, duration)
    facts = {"split": num_split, "merged": len(trains) - len(merged)}
    return relabelled(label_set, merged), facts


class _Cutter:
    """Cuts the waveforms of spikes from stored traces."""

    def __init__(self, stored: StoredTraces, before: int, length: int):
        self.stored = stored
        self.before = before
        self.length = length

    def waveforms(
        self, frames: np.ndarray, channels: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the waveforms (num_spikes, num_channels, num_samples) and the indices of their spikes."""
        columns, which = self.stored.columns_of(frames)
        chosen = np.linspace(0, len(columns) - 1, min(len(columns), _MAX_CLUSTERED)).round().astype(int)
        cut = self.stored.windows(columns[chosen], self.before, self.length, channels).numpy()
        return cut, which[chosen]

    def mean(self, frames: np.ndarray) -> np.ndarray:
        """Return the mean waveform (num_channels, num_samples) over at most NUM_WAVEFORM_SPIKES spikes."""
        count = min(len(frames), NUM_WAVEFORM_SPIKES)
        cut, _ = self.waveforms(frames[np.linspace(0, len(frames) - 1, count).round().astype(int)])
        return cut.mean(axis=0) if len(cut) else np.zeros((len(self.stored.values), self.length), np.float32)


def _split(frames: np.ndarray, cutter: _Cutter, rate: float, duration: int, depth: int) -> list[np.ndarray]:
    """Split a unit into its clusters, and these again at most `depth` - 1 times."""
    if depth == 0 or len(frames) < 2 * MIN_SPIKES:
        return [frames]
    parts = _clusters(frames, cutter)
    together = np.eye(len(parts), dtype=bool)
    for one, other in itertools.combinations(range(len(parts)), 2):
        together[one, other] = _stay_together(parts[one], parts[other], cutter, rate, duration)
    count, group = connected_components(together, directed=False)
    if count == 1:
        return [frames]
    parts = [
        np.sort(np.concatenate([part for part, of in zip(parts, group, strict=True) if of == k]))
        for k in range(count)
    ]
    return [piece for part in parts for piece in _split(part, cutter, rate, duration, depth - 1)]


def _clusters(frames: np.ndarray, cutter: _Cutter) -> list[np.ndarray]:
    """Cluster the spikes of a unit; spikes of clusters too small to be a unit go to the nearest large one."""
    from numba import NumbaPendingDeprecationWarning
    from spikeinterface.sortingcomponents.clustering import isosplit_isocut

    keep_compiled(isosplit_isocut)
    channels = np.argsort(-np.ptp(cutter.mean(frames), axis=1), kind="stable")[:_NEAR_CHANNELS]
    waveforms, which = cutter.waveforms(frames, np.sort(channels))
    if len(waveforms) < 2 * MIN_SPIKES:
        return [frames]
    rows = waveforms.reshape(len(waveforms), -1).astype(np.float64)
    _, _, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    features = (rows - rows.mean(axis=0)) @ axes[: max(NUM_COMPONENTS)].T
    smallest = max(MIN_SPIKES, MIN_FRACTION * len(rows))
    best = np.zeros(len(rows), dtype=int)
    for count in NUM_COMPONENTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaPendingDeprecationWarning)  # of SpikeInterface's own code
            found = isosplit_isocut.isosplit(np.ascontiguousarray(features[:, :count]), seed=_SEED)
        ids, sizes = np.unique(found, return_counts=True)
        large = ids[sizes >= smallest]
        if len(large) > best.max() + 1:
            centres = np.stack([features[found == k].mean(axis=0) for k in large])
            distance = np.linalg.norm(features[:, None] - centres[None], axis=2)
            best = np.where(np.isin(found, large), np.searchsorted(large, found), distance.argmin(axis=1))
    if best.max() == 0:
        return [frames]
    return _assign_all(frames, cutter, np.sort(channels), which, best, rows, axes)


def _assign_all(
    frames: np.ndarray,
    cutter: _Cutter,
    channels: np.ndarray,
    which: np.ndarray,
    cluster: np.ndarray,
    rows: np.ndarray,
    axes: np.ndarray,
) -> list[np.ndarray]:
    """Assign the spikes that were not clustered to the nearest cluster; return the spikes of each cluster."""
    kept = axes[: max(NUM_COMPONENTS)]
    middle = rows.mean(axis=0)
    centres = np.stack(
        [((rows[cluster == k] - middle) @ kept.T).mean(axis=0) for k in range(cluster.max() + 1)]
    )
    assigned = np.full(len(frames), -1)
    assigned[which] = cluster
    rest = np.flatnonzero(assigned < 0)
    for part in np.array_split(rest, -(-len(rest) // _MAX_CLUSTERED)) if len(rest) else ():
        cut, found = cutter.waveforms(frames[part], channels)
        features = (cut.reshape(len(cut), middle.size) - middle) @ kept.T
        nearest = np.linalg.norm(features[:, None] - centres[None], axis=2).argmin(axis=1)
        assigned[part[found]] = nearest
    return [frames[assigned == k] for k in range(len(centres))]


def _stay_together(one: np.ndarray, other: np.ndarray, cutter: _Cutter, rate: float, duration: int) -> bool:
    """Return whether two parts of a unit are one neuron: by their trains, or by shape if these are short."""
    means = np.stack([cutter.mean(one), cutter.mean(other)])
    if _is_jumping_neuron(one, other, float(_cosines(means[:1], means[1:])[0, 0]), means.shape[1]):
        return True
    if _expected_pairs(one, other, rate, duration) < MIN_EXPECTED_PAIRS:
        return _shape_difference(one, other, cutter) < MAX_SHAPE_DIFFERENCE
    return _is_one_neuron(one, other, rate, duration)


def _shape_difference(one: np.ndarray, other: np.ndarray, cutter: _Cutter) -> float:
    """Return the fraction of a mean waveform's energy that another does not explain by size and time shift.

    The waveforms of a neuron far above the noise also form clusters by the position of the spike between two
    samples. The means of such clusters differ by a multiple of their derivatives.
    """
    mean, like = cutter.mean(one), cutter.mean(other)
    slope = np.gradient(like, axis=1)
    shapes = np.stack([like, slope, np.gradient(slope, axis=1)]).reshape(3, -1)
    rest = mean.ravel() - np.linalg.lstsq(shapes.T, mean.ravel(), rcond=None)[0] @ shapes
    num_one, num_other = (max(1, min(len(train), NUM_WAVEFORM_SPIKES)) for train in (one, other))
    noise = mean.size * (1 / num_one + 1 / num_other)
    return float(max(0.0, rest @ rest - noise) / max(float((mean**2).sum()), 1e-9))


def _expected_pairs(one: np.ndarray, other: np.ndarray, rate: float, duration: int) -> float:
    """Return how many pairs of spikes of two trains lie within the refractory period by chance.

    Pairs within COINCIDENCE_MS are left out: they may be one spike that was found twice.
    """
    within = (REFRACTORY_MS - COINCIDENCE_MS) * rate / 1000
    return len(one) * len(other) * 2 * within / max(1, duration)


def _is_one_neuron(one: np.ndarray, other: np.ndarray, rate: float, duration: int) -> bool:
    """Return whether two trains avoid each other's refractory period more than chance allows."""
    refractory, coincidence = REFRACTORY_MS * rate / 1000, COINCIDENCE_MS * rate / 1000
    expected = _expected_pairs(one, other, rate, duration)
    if expected < MIN_EXPECTED_PAIRS:
        return False
    within = np.searchsorted(other, one + refractory) - np.searchsorted(other, one - refractory)
    same = np.searchsorted(other, one + coincidence) - np.searchsorted(other, one - coincidence)
    return (within - same).sum() < MAX_REFRACTORY_RATIO * expected


def take_turns(one: np.ndarray, other: np.ndarray, cosine: float) -> bool:
    """Return whether two trains have far fewer runs than two independent trains.

    Parameters
    ----------
    one, other : ndarray of int, shape (num_spikes,)
        Times of spikes, ascending.
    cosine : float
        Cosine of their mean waveforms; the higher it is, the more runs are allowed.
    """
    num_one, num_other = len(one), len(other)
    ratio = next((ratio for similar, ratio in MAX_RUNS_RATIO.items() if cosine > similar), None)
    if ratio is None or min(num_one, num_other) < 2:
        return False
    of_other = np.repeat([False, True], [num_one, num_other])
    in_order = of_other[np.argsort(np.concatenate([one, other]), kind="stable")]
    runs = 1 + np.count_nonzero(np.diff(in_order))
    expected = 1 + 2 * num_one * num_other / (num_one + num_other)
    deviation = np.sqrt((expected - 1) * (expected - 2) / (num_one + num_other - 1))
    return bool(runs < ratio * expected and runs - expected < MAX_RUNS_DEVIATION * deviation)


def _is_jumping_neuron(one: np.ndarray, other: np.ndarray, cosine: float, num_channels: int) -> bool:
    """Return whether two trains are one neuron before and after jumps; `cosine` is of their waveforms.

    On few channels different neurons are as similar, so no jumps are looked for.
    """
    return num_channels >= MIN_ARRAY_CHANNELS and take_turns(one, other, cosine)


def _merge(trains: Sequence[np.ndarray], cutter: _Cutter, rate: float, duration: int) -> list[np.ndarray]:
    """Merge similar units that avoid each other's refractory period, and units that take turns."""
    merged = [np.asarray(train) for train in trains]
    means = np.stack([cutter.mean(train) for train in merged])
    similarity = _cosines(means, means)
    while pair := _best_pair(merged, similarity, means.shape[1], rate, duration):
        kept, removed = sorted(pair)
        merged[kept] = np.union1d(merged[kept], merged.pop(removed))
        means, similarity = (np.delete(array, removed, axis=0) for array in (means, similarity))
        similarity = np.delete(similarity, removed, axis=1)
        means[kept] = cutter.mean(merged[kept])
        similarity[kept] = similarity[:, kept] = _cosines(means[kept : kept + 1], means)[0]
    return merged


def _best_pair(
    trains: list[np.ndarray], similarity: np.ndarray, num_channels: int, rate: float, duration: int
) -> tuple[int, int] | None:
    """Return the most similar pair of units that are one neuron; None if there is none."""
    ones, others = np.nonzero(np.triu(similarity > min(MAX_RUNS_RATIO), 1))
    for pair in np.argsort(-similarity[ones, others], kind="stable"):
        one, other = int(ones[pair]), int(others[pair])
        cosine = similarity[one, other]
        if cosine > MIN_SIMILARITY and _is_one_neuron(trains[one], trains[other], rate, duration):
            return one, other
        if _is_jumping_neuron(trains[one], trains[other], cosine, num_channels):
            return one, other
    return None


def _cosines(some: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Return the cosines of mean waveforms at the best lag within a quarter of a millisecond.

    Parameters
    ----------
    some, means : ndarray, shape (num_some or num_units, num_channels, num_samples)

    Returns
    -------
    ndarray, shape (num_some, num_units)
        0 where a mean waveform is 0 throughout.
    """
    reach = max(1, means.shape[2] // 8)
    of_units = means.reshape(len(means), -1).T
    products = [
        np.roll(some, lag, axis=2).reshape(len(some), -1) @ of_units for lag in range(-reach, reach + 1)
    ]
    sizes = np.linalg.norm(some, axis=(1, 2))[:, None] * np.linalg.norm(means, axis=(1, 2))[None]
    return np.max(products, axis=0) / np.where(sizes > 0, sizes, np.inf)
