"""Units that resemble each other, and whether two of them may be one: found twice, or split.

Similarity is the cosine of two mean waveforms at the best lag, each on the channels that see it. (That of
SpikeInterface takes ten seconds to compile, longer than all the rest of a report.) Of each pair that is alike
the spikes are compared: those that lie within :data:`SHARED_MS` of a spike of the other are found twice; and
where two units are parts of one, they keep out of each other's refractory period as one unit does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from spikeinterface.core import BaseSorting
from spikeinterface.postprocessing import compute_correlograms

from spikewise.output.measures import CORRELOGRAM_BIN_MS, CORRELOGRAM_MS, REFRACTORY_MS, UnitMeasures

LEAST_SIMILARITY = 0.8
MAX_PAIRS = 60
SHARED_MS = 0.4
LEAST_SHARED = 0.2
"""Fraction of the spikes of the smaller unit, beyond those by chance, that makes a pair doubtful."""
LEAST_EXPECTED = 10
"""Pairs of spikes within the refractory period that chance must give before their absence says anything."""
MOST_REFRACTORY = 0.3
"""Of the pairs of spikes that chance gives within the refractory period, what parts of one unit may have."""
LEAST_OF_PEAK = 0.1
"""Of the largest deflection of a unit, what it must have on a channel for that to count."""
_LAG_MS = 0.2
_CORE_MS = (0.5, 1.0)

Verdict = Literal["duplicate", "split", "alike"]


@dataclass(frozen=True)
class UnitPair:
    """Two units with waveforms that are alike.

    Attributes
    ----------
    first, second : int
        Unit indices.
    similarity : float
    shared : float
        Fraction of the spikes of the smaller unit that the other has too, less what chance gives.
    refractory : float or None
        Pairs of spikes between :data:`SHARED_MS` and the refractory period apart, over those that chance
        gives; None where chance gives too few.
    verdict : str
        ``duplicate``: spikes are found twice; ``split``: probably parts of one unit; ``alike``: neither.
    correlogram : ndarray, shape (num_bins,)
        Numbers of spikes of the second at each lag from a spike of the first.
    """

    first: int
    second: int
    similarity: float
    shared: float
    refractory: float | None
    verdict: Verdict
    correlogram: np.ndarray


def unit_similarity(units: list[UnitMeasures]) -> np.ndarray:
    """Return the cosine of the mean waveforms of all pairs of units; 0 between groups and without waveform.

    Returns
    -------
    ndarray, shape (num_units, num_units)
    """
    similarity = np.zeros((len(units), len(units)))
    for name in dict.fromkeys(unit.group.name for unit in units):
        mine = [u for u in units if u.group.name == name and u.main_channel is not None]
        if not mine:
            continue
        rate = mine[0].sampling_frequency
        before, after = (round(side / 1000 * rate) for side in _CORE_MS)
        waveforms = [unit.waveform for unit in mine if unit.waveform is not None]
        core = np.stack([w.values[w.num_before - before : w.num_before + after] for w in waveforms])
        near = np.stack([w.peaks >= LEAST_OF_PEAK * w.peaks.max() for w in waveforms])
        cosine = _cosine(core * near[:, None, :], min(round(_LAG_MS / 1000 * rate), core.shape[1] // 2 - 1))
        index = [unit.unit_index for unit in mine]
        similarity[np.ix_(index, index)] = cosine
    return similarity


def _cosine(waveforms: np.ndarray, max_lag: int) -> np.ndarray:
    """Return the largest cosine over the lags of all pairs, from (num_units, num_samples, num_channels)."""
    length = waveforms.shape[1] - 2 * max_lag

    def unit_vectors(first: int) -> np.ndarray:
        flat = waveforms[:, first : first + length].reshape(len(waveforms), -1).astype(np.float32)
        return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)

    middle = unit_vectors(max_lag)
    best = np.zeros((len(waveforms), len(waveforms)), dtype=np.float32)
    for first in range(2 * max_lag + 1):
        best = np.maximum(best, middle @ unit_vectors(first).T)
    return np.clip(np.maximum(best, best.T), 0, 1)


def likely_pairs(
    sorting: BaseSorting, trains: list[list[np.ndarray]], num_samples: list[int], similarity: np.ndarray
) -> list[UnitPair]:
    """Judge the pairs of units that are alike.

    Parameters
    ----------
    sorting : BaseSorting
    trains : list of lists of ndarray
        Frames of the spikes of each unit in each segment.
    num_samples : list of int
        Length of each segment.
    similarity : ndarray
        (num_units, num_units)

    Returns
    -------
    list of UnitPair
        At most :data:`MAX_PAIRS`, duplicates first, then splits, each by similarity.
    """
    first, second = np.nonzero(np.triu(similarity >= LEAST_SIMILARITY, k=1))
    order = np.argsort(-similarity[first, second], kind="stable")[:MAX_PAIRS]
    pairs = [
        _judge(sorting, trains, num_samples, (int(a), int(b)), float(similarity[a, b]))
        for a, b in zip(first[order], second[order], strict=True)
        if all(sum(map(len, trains[unit])) for unit in (a, b))
    ]
    rank = {"duplicate": 0, "split": 1, "alike": 2}
    return sorted(pairs, key=lambda pair: (rank[pair.verdict], -pair.similarity))


def _judge(
    sorting: BaseSorting,
    trains: list[list[np.ndarray]],
    num_samples: list[int],
    pair: tuple[int, int],
    similarity: float,
) -> UnitPair:
    rate = sorting.sampling_frequency
    small, large = sorted(pair, key=lambda unit: sum(map(len, trains[unit])))
    reach, refractory = (round(limit / 1000 * rate) for limit in (SHARED_MS, REFRACTORY_MS))
    total = sum(map(len, trains[small]))
    within_reach = within_refractory = 0
    expected = 0.0  # spikes of the large unit that chance puts within a frame's width of all of the small one
    num_shared = 0
    for a, b, length in zip(trains[small], trains[large], num_samples, strict=False):
        near, wide = _count_within(a, b, reach), _count_within(a, b, refractory)
        num_shared += int(np.count_nonzero(near))
        within_reach, within_refractory = within_reach + int(near.sum()), within_refractory + int(wide.sum())
        expected += len(a) * len(b) / length
    by_chance = expected * (2 * reach + 1)
    shared = max(0.0, (num_shared - by_chance) / total)
    expected *= 2 * (refractory - reach)
    ratio = (within_refractory - within_reach) / expected if expected >= LEAST_EXPECTED else None
    verdict: Verdict = "alike"
    if shared >= LEAST_SHARED:
        verdict = "duplicate"
    elif ratio is not None and ratio <= MOST_REFRACTORY:
        verdict = "split"
    both = sorting.select_units(np.asarray(sorting.unit_ids)[list(pair)])
    correlograms, _ = compute_correlograms(
        both, window_ms=2 * CORRELOGRAM_MS, bin_ms=CORRELOGRAM_BIN_MS, method="numpy"
    )
    return UnitPair(pair[0], pair[1], similarity, shared, ratio, verdict, correlograms[0, 1])


def _count_within(a: np.ndarray, b: np.ndarray, reach: int) -> np.ndarray:
    """Return for each frame of `a` how many of `b` lie at most `reach` from it."""
    return np.searchsorted(b, a + reach, side="right") - np.searchsorted(b, a - reach, side="left")
