"""Mending what another sorter merged or split, before its spikes become labels.

A merged unit is one in whose waveforms two shapes can be told apart: they are projected on their own
principal components and clustered by ISO-SPLIT (Magland & Barnett, arXiv 1508.04841; here SpikeInterface's),
which cuts only where a density has a dip. Two parts of a unit that keep out of each other's refractory period
are one neuron whose shape varies, and stay together; where they have too few spikes to tell, those stay
together that are alike. In the same way two units whose mean waveforms are alike
and that keep out of each other's refractory period are one.

A neuron that jumps along the probe, or away from it, is cut into units that take turns: where one fires, the
other does not. Whether two trains take turns is told by the number of runs in their common order (Wald &
Wolfowitz, Ann. Math. Stat. 1940). Units that take turns and are less alike than the above are one, the most
alike first, so that what two neurons became while the probe jumped is put together as it was.

Conventions: spikes are global frames, one array for each unit.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from scipy.sparse.csgraph import connected_components

from spikewise.core.compiling import keep_compiled
from spikewise.data.labels.label_set import LabelSet, kept_spikes, relabelled
from spikewise.data.recordings.reader import Traces
from spikewise.learning.examples.stored_traces import StoredTraces
from spikewise.learning.examples.training_set import split_interval

NUM_COMPONENTS = (3, 6, 10)
LEAST_SPIKES = 20
LEAST_FRACTION = 0.05
REFRACTORY_MS = 1.5
DUPLICATE_MS = 0.4
SAME_NEURON = 0.3
"""Of the spikes that would fall into each other's refractory period by chance: below, two parts are one."""
LEAST_EXPECTED = 6.0
ALIKE = 0.96
"""Cosine of two mean waveforms from which on two units may be one."""
SAME_SHAPE = 0.03
"""Fraction of a mean waveform's energy: what differs by less is one neuron, where trains are too short."""
TURNS = {0.9: 0.6, 0.8: 0.4}
"""Units with a larger cosine take turns if there are fewer runs than this share of what chance makes."""
RUNS_DEVIATION = -4.0
"""And fewer by so many standard deviations."""
FEWEST_CHANNELS = 16
"""On fewer, different neurons are that much alike too: jumps are not looked for."""
_SEED = 0
"""Of the k-means with which ISO-SPLIT begins: the same spikes give the same units."""
_MAX_SPIKES = 1500
_NEAR_CHANNELS = 12
_WAVEFORM_MS = (0.75, 1.25)
_MAX_DEPTH = 3


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
    blocks = split_interval(traces, label_set.start_frame, label_set.stop_frame, spikes, 0.2)
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
        """Return waveforms (num_spikes, num_channels, num_samples) and which spikes they are of."""
        columns, which = self.stored.columns_of(frames)
        chosen = np.linspace(0, len(columns) - 1, min(len(columns), _MAX_SPIKES)).round().astype(int)
        near = None if channels is None else torch.from_numpy(channels)
        cut = self.stored.windows(columns[chosen], self.before, self.length, near).numpy()
        return cut, which[chosen]

    def mean(self, frames: np.ndarray) -> np.ndarray:
        """Return the mean waveform (num_channels, num_samples) over at most 200 spikes."""
        spread = frames[np.linspace(0, len(frames) - 1, min(len(frames), 200)).round().astype(int)]
        cut, _ = self.waveforms(spread)
        return cut.mean(axis=0) if len(cut) else np.zeros((len(self.stored.values), self.length), np.float32)


def _split(frames: np.ndarray, cutter: _Cutter, rate: float, duration: int, depth: int) -> list[np.ndarray]:
    """Split a unit where its waveforms have a dip, again and again."""
    if depth == 0 or len(frames) < 2 * LEAST_SPIKES:
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
    if len(waveforms) < 2 * LEAST_SPIKES:
        return [frames]
    rows = waveforms.reshape(len(waveforms), -1).astype(np.float64)
    _, _, axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)
    features = (rows - rows.mean(axis=0)) @ axes[: max(NUM_COMPONENTS)].T
    least = max(LEAST_SPIKES, LEAST_FRACTION * len(rows))
    best = np.zeros(len(rows), dtype=int)
    for count in NUM_COMPONENTS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NumbaPendingDeprecationWarning)  # of SpikeInterface's own code
            found = isosplit_isocut.isosplit(np.ascontiguousarray(features[:, :count]), seed=_SEED)
        ids, sizes = np.unique(found, return_counts=True)
        large = ids[sizes >= least]
        if len(large) > best.max() + 1:
            centres = np.stack([features[found == k].mean(axis=0) for k in large])
            distance = np.linalg.norm(features[:, None] - centres[None], axis=2)
            best = np.where(np.isin(found, large), np.searchsorted(large, found), distance.argmin(axis=1))
    if best.max() == 0:
        return [frames]
    return _share_out(frames, cutter, np.sort(channels), which, best, rows, axes)


def _share_out(
    frames: np.ndarray,
    cutter: _Cutter,
    channels: np.ndarray,
    which: np.ndarray,
    cluster: np.ndarray,
    rows: np.ndarray,
    axes: np.ndarray,
) -> list[np.ndarray]:
    """Give the spikes that were not clustered to the nearest cluster."""
    kept = axes[: max(NUM_COMPONENTS)]
    middle = rows.mean(axis=0)
    centres = np.stack(
        [((rows[cluster == k] - middle) @ kept.T).mean(axis=0) for k in range(cluster.max() + 1)]
    )
    assigned = np.full(len(frames), -1)
    assigned[which] = cluster
    rest = np.flatnonzero(assigned < 0)
    for part in np.array_split(rest, -(-len(rest) // _MAX_SPIKES)) if len(rest) else ():
        cut, found = cutter.waveforms(frames[part], channels)
        features = (cut.reshape(len(cut), middle.size) - middle) @ kept.T
        nearest = np.linalg.norm(features[:, None] - centres[None], axis=2).argmin(axis=1)
        assigned[part[found]] = nearest
    return [frames[assigned == k] for k in range(len(centres))]


def _stay_together(one: np.ndarray, other: np.ndarray, cutter: _Cutter, rate: float, duration: int) -> bool:
    """Tell whether two parts of a unit are one neuron: by their trains, or where too short, by shape."""
    means = np.stack([cutter.mean(one), cutter.mean(other)])
    if _jumped(one, other, float(_cosines(means[:1], means[1:])[0, 0]), means.shape[1]):
        return True
    if _expected(one, other, rate, duration) < LEAST_EXPECTED:
        return _differ_by(one, other, cutter) < SAME_SHAPE
    return _is_one_neuron(one, other, rate, duration)


def _differ_by(one: np.ndarray, other: np.ndarray, cutter: _Cutter) -> float:
    """Return the fraction of a mean waveform's energy that size and time do not make of another's.

    The waveforms of one neuron that stands far above the noise fall into clusters too, by where between two
    samples its spikes were: their means differ by a multiple of their derivatives.
    """
    mean, like = cutter.mean(one), cutter.mean(other)
    slope = np.gradient(like, axis=1)
    shapes = np.stack([like, slope, np.gradient(slope, axis=1)]).reshape(3, -1)
    rest = mean.ravel() - np.linalg.lstsq(shapes.T, mean.ravel(), rcond=None)[0] @ shapes
    noise = mean.size * (1 / max(1, min(len(one), 200)) + 1 / max(1, min(len(other), 200)))
    return float(max(0.0, rest @ rest - noise) / max(float((mean**2).sum()), 1e-9))


def _expected(one: np.ndarray, other: np.ndarray, rate: float, duration: int) -> float:
    """Return how many spikes would fall into each other's refractory period by chance."""
    within = (REFRACTORY_MS - DUPLICATE_MS) * rate / 1000
    return len(one) * len(other) * 2 * within / max(1, duration)


def _is_one_neuron(one: np.ndarray, other: np.ndarray, rate: float, duration: int) -> bool:
    """Tell whether two trains keep out of each other's refractory period, where chance would not."""
    refractory, duplicate = REFRACTORY_MS * rate / 1000, DUPLICATE_MS * rate / 1000
    expected = _expected(one, other, rate, duration)
    if expected < LEAST_EXPECTED:
        return False
    within = np.searchsorted(other, one + refractory) - np.searchsorted(other, one - refractory)
    same = np.searchsorted(other, one + duplicate) - np.searchsorted(other, one - duplicate)
    return (within - same).sum() < SAME_NEURON * expected


def take_turns(one: np.ndarray, other: np.ndarray, cosine: float) -> bool:
    """Tell whether two trains have far fewer runs than two that know nothing of each other.

    Parameters
    ----------
    one, other : ndarray of int, shape (num_spikes,)
        Times of spikes, ascending.
    cosine : float
        Of their mean waveforms: the more alike they are, the more runs may be left.
    """
    num_one, num_other = len(one), len(other)
    share = next((share for alike, share in TURNS.items() if cosine > alike), None)
    if share is None or min(num_one, num_other) < 2:
        return False
    of_other = np.repeat([False, True], [num_one, num_other])
    in_order = of_other[np.argsort(np.concatenate([one, other]), kind="stable")]
    runs = 1 + np.count_nonzero(np.diff(in_order))
    expected = 1 + 2 * num_one * num_other / (num_one + num_other)
    deviation = np.sqrt((expected - 1) * (expected - 2) / (num_one + num_other - 1))
    return bool(runs < share * expected and runs - expected < RUNS_DEVIATION * deviation)


def _jumped(one: np.ndarray, other: np.ndarray, cosine: float, num_channels: int) -> bool:
    """Tell whether two trains are of one neuron before and after jumps; `cosine` is of their waveforms."""
    return num_channels >= FEWEST_CHANNELS and take_turns(one, other, cosine)


def _merge(trains: Sequence[np.ndarray], cutter: _Cutter, rate: float, duration: int) -> list[np.ndarray]:
    """Merge units that are alike and keep out of each other's refractory period, or that take turns."""
    merged = [np.asarray(train) for train in trains]
    means = np.stack([cutter.mean(train) for train in merged])
    alike = _cosines(means, means)
    while pair := _most_alike(merged, alike, means.shape[1], rate, duration):
        kept, gone = sorted(pair)
        merged[kept] = np.union1d(merged[kept], merged.pop(gone))
        means, alike = (np.delete(array, gone, axis=0) for array in (means, alike))
        alike = np.delete(alike, gone, axis=1)
        means[kept] = cutter.mean(merged[kept])
        alike[kept] = alike[:, kept] = _cosines(means[kept : kept + 1], means)[0]
    return merged


def _most_alike(
    trains: list[np.ndarray], alike: np.ndarray, num_channels: int, rate: float, duration: int
) -> tuple[int, int] | None:
    """Return of all pairs of units that are one neuron the most alike, by their cosines; None if none is."""
    ones, others = np.nonzero(np.triu(alike > min(TURNS), 1))
    for pair in np.argsort(-alike[ones, others], kind="stable"):
        one, other = int(ones[pair]), int(others[pair])
        if alike[one, other] > ALIKE and _is_one_neuron(trains[one], trains[other], rate, duration):
            return one, other
        if _jumped(trains[one], trains[other], alike[one, other], num_channels):
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
