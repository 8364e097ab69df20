"""Match the events of two series one to one, as many as possible.

Two events can match if they are at most `delta` apart, the limit included. Each event matches at most once.
For trains of several units this holds within every pair of units: a spike may match one spike of each unit
of the other sorting.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from spikewise.core.errors import SettingError

CANDIDATES_PER_BLOCK = 4_000_000
"""A block ends after the unit that reaches this number of candidate pairs: it bounds the memory."""


@dataclass(frozen=True)
class SpikeTrains:
    """The spikes of one segment in order of time: frame and unit index, both (num_spikes,)."""

    frame: np.ndarray
    unit_index: np.ndarray


def match_events(times_a: np.ndarray, times_b: np.ndarray, delta: float) -> np.ndarray:
    """Match the events of two series one to one.

    As many events as possible are matched. Of several such matchings, the result is the one in which each
    event of the first series, in order of time, takes the earliest free event of the second.

    Parameters
    ----------
    times_a, times_b : numpy.ndarray
        Times, shapes (num_a,) and (num_b,), in any order and one unit.
    delta : float
        Largest distance of a match, inclusive.

    Returns
    -------
    numpy.ndarray of int64, shape (num_matches, 2)
        Index into `times_a` and index into `times_b` of each match, in order of time.

    Raises
    ------
    SettingError
        If the times are not one-dimensional finite numbers, or `delta` is negative.
    """
    times_a, times_b = np.asarray(times_a), np.asarray(times_b)
    for name, times in (("times_a", times_a), ("times_b", times_b)):
        if times.ndim != 1 or times.dtype.kind not in "iuf" or not np.isfinite(times).all():
            raise SettingError(
                f"{name} is an array of shape {times.shape} and type {times.dtype}",
                "it must hold finite numbers in one dimension",
                "give the times of one series of events",
            )
    if not delta >= 0:
        raise SettingError(f"delta is {delta!r}", "it must be at least 0", "change it")
    # Unsigned times would wrap around when delta is subtracted.
    times_a, times_b = (t.astype(np.int64) if t.dtype.kind == "u" else t for t in (times_a, times_b))
    order_a, order_b = np.argsort(times_a, kind="stable"), np.argsort(times_b, kind="stable")
    low = np.searchsorted(times_b[order_b], times_a[order_a] - delta, side="left")
    high = np.searchsorted(times_b[order_b], times_a[order_a] + delta, side="right")
    index_a, index_b = _expand_ranges(low, high)
    kept = _select_one_to_one(np.zeros(index_a.size, dtype=np.int64), index_a, index_b)
    return np.column_stack([order_a[index_a[kept]], order_b[index_b[kept]]]).astype(np.int64)


def match_spike_trains(a: SpikeTrains, b: SpikeTrains, delta: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the matched spikes of every pair of units, a block of units of `a` at a time.

    A spike may match several units, but only once within a pair of units. Both arrays hold indices of the
    segment's spikes.
    """
    low = np.searchsorted(b.frame, a.frame - delta, side="left")
    high = np.searchsorted(b.frame, a.frame + delta, side="right")
    by_unit = np.argsort(a.unit_index, kind="stable")
    by_unit = by_unit[high[by_unit] > low[by_unit]]
    candidates = np.cumsum(high[by_unit] - low[by_unit])
    last_of_unit = np.flatnonzero(np.diff(a.unit_index[by_unit], append=-1))
    num_units_b = int(b.unit_index.max(initial=-1)) + 1
    start = done = 0
    for position, last in enumerate(last_of_unit):
        full = candidates[last] - done >= CANDIDATES_PER_BLOCK
        if not full and position + 1 < last_of_unit.size:
            continue
        block = by_unit[start : last + 1]
        which, index_b = _expand_ranges(low[block], high[block])
        index_a = block[which]
        key = a.unit_index[index_a] * num_units_b + b.unit_index[index_b]
        order = np.argsort(key, kind="stable")
        key, index_a, index_b = key[order], index_a[order], index_b[order]
        kept = _select_one_to_one(key, index_a, index_b)
        yield index_a[kept], index_b[kept]
        start, done = int(last) + 1, int(candidates[last])


def _expand_ranges(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (k, i) for every index i of the ranges ``low[k]:high[k]``, in order."""
    length = high - low
    which = np.repeat(np.arange(low.size), length)
    first = np.repeat(low - (np.cumsum(length) - length), length)
    return which, first + np.arange(which.size)


def _select_one_to_one(key: np.ndarray, index_a: np.ndarray, index_b: np.ndarray) -> np.ndarray:
    """Select as many candidate pairs as possible that share no spike; return a mask.

    Candidates are sorted by `key` (the pair of units), then `index_a`, then `index_b`, both in order of time.
    The candidates of one spike are a range of the other train, and both ends of that range grow with time.
    So the earliest free candidate of each spike is the best choice. Candidates that share no spike with a
    neighbour are taken at once; only runs of three and more are processed one by one.
    """
    kept = np.zeros(key.size, dtype=bool)
    if key.size == 0:
        return kept
    new_run = np.ones(key.size, dtype=bool)
    new_run[1:] = (key[1:] != key[:-1]) | ((index_a[1:] != index_a[:-1]) & (index_b[1:] > index_b[:-1]))
    start = np.flatnonzero(new_run)
    stop = np.append(start[1:], key.size)
    kept[start] = True
    for first, end in zip(start[stop - start > 2].tolist(), stop[stop - start > 2].tolist(), strict=True):
        last_a = last_b = -1
        run = zip(index_a[first:end].tolist(), index_b[first:end].tolist(), strict=True)
        for position, (a, b) in enumerate(run, start=first):
            take = a != last_a and b > last_b
            kept[position] = take
            if take:
                last_a, last_b = a, b
    return kept
