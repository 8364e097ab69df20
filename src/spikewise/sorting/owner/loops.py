"""Compiled loops that decide which of the candidates are spikes; :mod:`search` explains the rule.

All sums over candidates are in a fixed order, and each candidate looks only at those within a fixed time. So
the decisions do not depend on how a recording is cut.

Shapes: N candidates in order of time, U units, M channels of a unit, S samples of a waveform, L of its
middle, K temporal shapes, P pairs of units, D time shifts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spikewise.core.compiling import compiled

FAST = {"reassoc", "contract", "nsz"}
MAX_EVIDENCE = np.float64(0.9999)
"""Largest response whose odds count."""


class Waveforms(NamedTuple):
    """Mean waveforms as the loops need them.

    Attributes
    ----------
    channel_index : ndarray of int64
        (U, M); then -1.
    counts : ndarray of int64
        (U,) channels of each unit.
    middles : ndarray of float32
        (U, M, L) middle parts, which are compared with the traces.
    before : int
        Samples of a middle part ahead of the spike.
    """

    channel_index: np.ndarray
    counts: np.ndarray
    middles: np.ndarray
    before: int


class Overlaps(NamedTuple):
    """Products of the middle part of one unit with the shifted waveform of another.

    Attributes
    ----------
    pair : ndarray of int32
        (U, U) row of two units in `products`; -1: they share no channel.
    products : ndarray of float32
        (P, D): the second unit's spike comes ``index - D // 2`` samples after the first's.
    energy : ndarray of float64
        (U,) product of each unit with itself.
    """

    pair: np.ndarray
    products: np.ndarray
    energy: np.ndarray


class Rule(NamedTuple):
    """Numbers of the decision; :mod:`search` explains them. Times are in samples.

    Of two weights and prices, the second is for spikes that the network found by itself. `reach` and `rivals`
    are those before and after a candidate.
    """

    lags: int
    reach: tuple[int, int]
    rivals: tuple[int, int]
    rounds: int
    least: float
    least_alone: float
    weight: tuple[float, float]
    price: tuple[float, float]
    spread: float
    smallest: float
    largest: float


class Candidates(NamedTuple):
    """Possible spikes, in order of time, then unit; all arrays have N rows.

    `odds` are the logarithms of the network's odds relative to those at the threshold, `is_found` says
    whether the network found the spike by itself, `products` (N, 2 * lags + 1) belong to time shifts.
    """

    sample_index: np.ndarray
    unit_index: np.ndarray
    odds: np.ndarray
    is_found: np.ndarray
    products: np.ndarray


@compiled(fastmath=FAST)
def fill_products(
    traces: tuple[np.ndarray, int],
    samples: np.ndarray,
    units: np.ndarray,
    waveforms: Waveforms,
    products: np.ndarray,
) -> None:
    """Fill the products (N, 2 * lags + 1) of the traces with units' middle parts around samples.

    `traces` are values and a step: sample s of channel c is ``values[c * step + s]``.
    """
    values, step = traces
    num_lags, length = products.shape[1], waveforms.middles.shape[2]
    row = np.empty(length + num_lags - 1, np.float32)
    for index in range(len(samples)):
        unit = units[index]
        start = samples[index] - waveforms.before - num_lags // 2
        products[index] = 0
        for near in range(waveforms.counts[unit]):
            first = waveforms.channel_index[unit, near] * step + start
            middle = waveforms.middles[unit, near]
            for at in range(len(row)):
                row[at] = values[first + at]
            for lag in range(num_lags):
                total = np.float32(0)
                for at in range(length):
                    total += middle[at] * row[lag + at]
                products[index, lag] += total


@compiled(fastmath=FAST)
def fill_waveforms(weights: np.ndarray, shapes: np.ndarray, waveforms: np.ndarray) -> None:
    """Fill (U, M, S) with weights (U, M, K) times shapes (K, S)."""
    for unit in range(weights.shape[0]):
        for near in range(weights.shape[1]):
            row = waveforms[unit, near]
            row[:] = 0
            for shape in range(len(shapes)):
                for at in range(len(row)):
                    row[at] += weights[unit, near, shape] * shapes[shape, at]


@compiled(fastmath=FAST)
def fill_shape_products(shapes: np.ndarray, skipped: int, length: int, products: np.ndarray) -> None:
    """Fill (D, K, K): the middle of one shape times another, whose spike comes ``index - D // 2`` later.

    The middle begins `skipped` samples after a shape's start and has `length` samples.
    """
    num_shifts, num_shapes, _ = products.shape
    for index in range(num_shifts):
        shift = index - num_shifts // 2
        first, stop = max(skipped, shift), min(skipped + length, shapes.shape[1] + shift)
        for one in range(num_shapes):
            for other in range(num_shapes):
                total = np.float32(0)
                for at in range(first, stop):
                    total += shapes[one, at] * shapes[other, at - shift]
                products[index, one, other] = total


@compiled(fastmath=FAST)
def fill_overlaps(
    pairs: np.ndarray,
    channel_index: np.ndarray,
    weights: np.ndarray,
    shape_products: np.ndarray,
    overlaps: np.ndarray,
) -> None:
    """Fill the overlaps (P, D) of pairs (P, 2) of units, from the products of the shapes (D, K, K)."""
    num_shapes = weights.shape[2]
    both = np.empty((num_shapes, num_shapes), np.float32)
    for row in range(len(pairs)):
        one, other = pairs[row]
        both[:] = 0
        for near in range(channel_index.shape[1]):
            for far in range(channel_index.shape[1]):
                if channel_index[one, near] < 0 or channel_index[one, near] != channel_index[other, far]:
                    continue
                for first in range(num_shapes):
                    for second in range(num_shapes):
                        both[first, second] += weights[one, near, first] * weights[other, far, second]
        for index in range(overlaps.shape[1]):
            total = np.float32(0)
            for first in range(num_shapes):
                for second in range(num_shapes):
                    total += both[first, second] * shape_products[index, first, second]
            overlaps[row, index] = total


@compiled()
def decide(
    candidates: Candidates, overlaps: Overlaps, rule: Rule
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which candidates are spikes (N,) bool, their amplitudes (N,), and time shifts (N,)."""
    count = len(candidates.sample_index)
    is_spike = candidates.is_found.copy()
    amplitude, shift, score = np.ones(count), np.zeros(count), np.zeros(count)
    rest = np.empty(candidates.products.shape[1])
    for index in range(count):
        rest[:] = candidates.products[index]
        shift[index] = _fit(rest, overlaps.energy[candidates.unit_index[index]], rule)[0]
    for _ in range(rule.rounds):
        next_amplitude, next_shift = amplitude.copy(), shift.copy()
        for index in range(count):
            energy = overlaps.energy[candidates.unit_index[index]]
            if energy <= 0:  # its waveform is not known: the network decides
                score[index] = 1.0 if candidates.is_found[index] else -1.0
                continue
            _fill_rest(index, candidates, (is_spike, amplitude, shift), overlaps, rule, rest)
            shift_now, amplitude_now, gain = _fit(rest, energy, rule)
            part = 0.5 if is_spike[index] else 1.0  # two spikes that take from each other would alternate
            next_shift[index] += part * (shift_now - shift[index])
            next_amplitude[index] += part * (amplitude_now - amplitude[index])
            least = rule.least * energy
            if candidates.is_found[index]:
                rest[:] = candidates.products[index]
                alone = _fit(rest, energy, rule)[2]
                least = min(least, max(2 * rule.least * alone, rule.least_alone * energy))
            known = int(candidates.is_found[index])
            evidence = rule.weight[known] * candidates.odds[index]
            score[index] = gain - least + evidence - rule.price[known]
        is_spike = _changed(is_spike, score, candidates, overlaps, rule)
        amplitude, shift = next_amplitude, next_shift
    return is_spike, amplitude, shift


@compiled()
def _fill_rest(index, candidates, state, overlaps, rule, rest):  # type: ignore[no-untyped-def]
    """Fill a candidate's products with what the other spikes leave of the traces."""
    is_spike, amplitude, shift = state
    samples, units = candidates.sample_index, candidates.unit_index
    half, num_shifts = overlaps.products.shape[1] // 2, overlaps.products.shape[1]
    rest[:] = candidates.products[index]
    for step in (-1, 1):
        other, reach = index + step, rule.reach[int(step > 0)]
        while 0 <= other < len(samples) and abs(samples[other] - samples[index]) <= reach:
            row = overlaps.pair[units[index], units[other]]
            if is_spike[other] and row >= 0:
                after = np.float64(samples[other] - samples[index]) + shift[other] + rule.lags + half
                for lag in range(len(rest)):
                    whole = int(np.floor(after - lag))
                    if 0 <= whole < num_shifts - 1:
                        part = after - lag - whole
                        low, high = overlaps.products[row, whole], overlaps.products[row, whole + 1]
                        rest[lag] -= amplitude[other] * ((1 - part) * low + part * high)
            other += step


@compiled()
def _fit(rest, energy, rule):  # type: ignore[no-untyped-def]
    """Return the time shift, the amplitude, and the energy that a spike explains, in noise variances / 2."""
    best = 1
    for lag in range(2, len(rest) - 1):
        if rest[lag] > rest[best]:
            best = lag
    before, here, after = rest[best - 1], rest[best], rest[best + 1]
    bend, shift = before - 2 * here + after, 0.0
    if bend < 0:
        shift = min(0.5, max(-0.5, 0.5 * (before - after) / bend))
    height = here - 0.25 * (before - after) * shift
    prior = 1 / rule.spread**2
    amplitude = min(rule.largest, max(rule.smallest, (height + prior) / (energy + prior)))
    gain = amplitude * height - 0.5 * amplitude**2 * energy - 0.5 * prior * (amplitude - 1) ** 2
    return best - len(rest) // 2 + shift, amplitude, gain


@compiled()
def _changed(is_spike, score, candidates, overlaps, rule):  # type: ignore[no-untyped-def]
    """Return the decisions after a round: of rivals that should change, the one with the most to win does."""
    samples, units = candidates.sample_index, candidates.unit_index
    changed = is_spike.copy()
    for index in range(len(samples)):
        if (score[index] > 0) == is_spike[index]:
            continue
        is_first = True
        for step in (-1, 1):
            other, rivals = index + step, rule.rivals[int(step > 0)]
            while is_first and 0 <= other < len(samples):
                if abs(samples[other] - samples[index]) > rivals:
                    break
                if (score[other] > 0) != is_spike[other] and overlaps.pair[units[index], units[other]] >= 0:
                    difference = abs(score[other]) - abs(score[index])
                    is_first = difference < 0 or (difference == 0 and step > 0)
                other += step
        if is_first:
            changed[index] = not is_spike[index]
    return changed
