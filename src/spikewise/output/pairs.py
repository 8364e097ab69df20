"""Pairs of units with similar waveforms, and whether both may be the same unit: found twice, or split.

Similarity is the cosine of two mean waveforms at the best lag, each on the channels where its unit is large
enough. (SpikeInterface's similarity takes ten seconds to compile, longer than all the rest of a report.) The
spike trains of each similar pair are compared. Spikes within ``COINCIDENCE_MS`` of a spike of the other unit
were found twice. Two parts of one unit respect each other's refractory period, as the spikes of one unit do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from spikeinterface.core import BaseSorting
from spikeinterface.postprocessing import compute_correlograms

from spikewise.core.constants import COINCIDENCE_MS, REFRACTORY_MS
from spikewise.output.measures import CORRELOGRAM_BIN_MS, CORRELOGRAM_MS, UnitMeasures

# All of these were chosen by hand.
MIN_SIMILARITY = 0.8
"""Smallest cosine of the mean waveforms of a similar pair."""
MAX_PAIRS = 60
"""Most pairs that are judged; the most similar ones are taken."""
MIN_SHARED = 0.2
"""Smallest shared fraction of the smaller unit's spikes, beyond chance, of a ``duplicate``."""
MIN_EXPECTED = 10
"""With fewer pairs of spikes expected by chance within the refractory period, no pair is a ``split``."""
MAX_REFRACTORY = 0.3
"""Largest number of pairs within the refractory period, relative to chance, of a ``split``."""
MIN_OF_PEAK = 0.1
"""A channel counts for a unit if it has at least this fraction of the unit's largest deflection."""
_MAX_LAG_MS = 0.2
"""Largest lag between two waveforms when they are compared."""
CORE_MS = (0.5, 1.0)
"""Window around the spike, before and after it, that is compared."""

Verdict = Literal["duplicate", "split", "alike"]


@dataclass(frozen=True)
class UnitPair:
    """Two units with similar waveforms.

    Attributes
    ----------
    first, second : int
        Unit indices.
    similarity : float
        Cosine of the mean waveforms, 0 to 1.
    shared : float
        Fraction of the smaller unit's spikes that the other unit has too, minus the fraction by chance.
    num_refractory : int
        Number of pairs of spikes between ``COINCIDENCE_MS`` and the refractory period apart.
    num_expected : float
        The same number, as chance alone would make it.
    verdict : str
        ``duplicate``: spikes are found twice; ``split``: probably parts of one unit; ``alike``: neither.
    correlogram : ndarray, shape (num_bins,)
        Number of spikes of the second unit at each lag from a spike of the first.
    """

    first: int
    second: int
    similarity: float
    shared: float
    num_refractory: int
    num_expected: float
    verdict: Verdict
    correlogram: np.ndarray

    @property
    def refractory(self) -> float | None:
        """`num_refractory` relative to chance; None if fewer than :data:`MIN_EXPECTED` are expected."""
        return self.num_refractory / self.num_expected if self.num_expected >= MIN_EXPECTED else None

    @property
    def reason(self) -> str:
        """Why the pair has its verdict, in two sentences at most."""
        shared = f"They share {100 * self.shared:.1f} % of the smaller unit's spikes beyond chance"
        limit = f"{100 * MIN_SHARED:.0f} %"
        if self.verdict == "duplicate":
            return f"{shared}, which is at least {limit}."
        apart = f"{shared}, which is less than {limit}."
        between = f"{COINCIDENCE_MS} to {REFRACTORY_MS} ms apart"
        if self.refractory is None:
            return (
                f"{apart} Too few spikes to tell whether they are parts of one unit: by chance "
                f"{self.num_expected:.1f} pairs of spikes would be {between}, and {MIN_EXPECTED} are needed."
            )
        counts = (
            f"{self.num_refractory} pairs of spikes are {between}, {self.refractory:.2f} times as many "
            f"as by chance ({self.num_expected:.0f})"
        )
        if self.verdict == "split":
            return f"{apart} Only {counts}, as between parts of one unit."
        return f"{apart} {counts}; parts of one unit would have at most {MAX_REFRACTORY} times."


def unit_similarity(units: list[UnitMeasures]) -> np.ndarray:
    """Return the cosine of the mean waveforms of all pairs of units.

    Returns
    -------
    ndarray, shape (num_units, num_units)
        0 for units of different groups, and for units without a waveform.
    """
    similarity = np.zeros((len(units), len(units)))
    for name in dict.fromkeys(unit.group.name for unit in units):
        of_group = [u for u in units if u.group.name == name and u.main_channel is not None]
        if not of_group:
            continue
        rate = of_group[0].sampling_frequency
        before, after = (round(side / 1000 * rate) for side in CORE_MS)
        waveforms = [unit.waveform for unit in of_group if unit.waveform is not None]
        core = np.stack([w.values[w.num_before - before : w.num_before + after] for w in waveforms])
        near = np.stack([w.peaks >= MIN_OF_PEAK * w.peaks.max() for w in waveforms])
        max_lag = min(round(_MAX_LAG_MS / 1000 * rate), core.shape[1] // 2 - 1)
        cosine = _cosine(core * near[:, None, :], max_lag)
        index = [unit.unit_index for unit in of_group]
        similarity[np.ix_(index, index)] = cosine
    return similarity


def _cosine(waveforms: np.ndarray, max_lag: int) -> np.ndarray:
    """Return the largest cosines over lags (num_units, num_units) of all pairs of waveforms."""
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
    """Judge the pairs of units with similar waveforms.

    Parameters
    ----------
    sorting : BaseSorting
    trains : list of lists of ndarray
        Frames of the spikes of each unit in each segment.
    num_samples : list of int
        Length of each segment.
    similarity : ndarray
        (num_units, num_units) as from :func:`unit_similarity`.

    Returns
    -------
    list of UnitPair
        At most :data:`MAX_PAIRS`: duplicates first, then splits, then the others; each kind by similarity.
    """
    first, second = np.nonzero(np.triu(similarity >= MIN_SIMILARITY, k=1))
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
    """Compare the spike trains of two units, and judge whether they may be the same unit."""
    rate = sorting.sampling_frequency
    small, large = sorted(pair, key=lambda unit: sum(map(len, trains[unit])))
    reach, refractory = (round(limit / 1000 * rate) for limit in (COINCIDENCE_MS, REFRACTORY_MS))
    total = sum(map(len, trains[small]))
    within_reach = within_refractory = 0
    expected = 0.0  # pairs of spikes that chance puts on the same frame
    num_shared = 0
    for a, b, length in zip(trains[small], trains[large], num_samples, strict=False):
        near, wide = _count_within(a, b, reach), _count_within(a, b, refractory)
        num_shared += int(np.count_nonzero(near))
        within_reach, within_refractory = within_reach + int(near.sum()), within_refractory + int(wide.sum())
        expected += len(a) * len(b) / length
    by_chance = expected * (2 * reach + 1)
    shared = max(0.0, (num_shared - by_chance) / total)
    expected *= 2 * (refractory - reach)
    num_refractory = within_refractory - within_reach
    verdict: Verdict = "alike"
    if shared >= MIN_SHARED:
        verdict = "duplicate"
    elif expected >= MIN_EXPECTED and num_refractory <= MAX_REFRACTORY * expected:
        verdict = "split"
    both = sorting.select_units(np.asarray(sorting.unit_ids)[list(pair)])
    correlograms, _ = compute_correlograms(
        both, window_ms=2 * CORRELOGRAM_MS, bin_ms=CORRELOGRAM_BIN_MS, method="numpy"
    )
    return UnitPair(
        pair[0], pair[1], similarity, shared, num_refractory, expected, verdict, correlograms[0, 1]
    )


def _count_within(a: np.ndarray, b: np.ndarray, reach: int) -> np.ndarray:
    """Return for each frame of `a` how many frames of `b` are at most `reach` away."""
    return np.searchsorted(b, a + reach, side="right") - np.searchsorted(b, a - reach, side="left")
