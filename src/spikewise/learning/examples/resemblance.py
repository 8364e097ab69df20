"""Events that resemble a unit, labelled or not.

With few labels, most spikes of a unit are unlabelled, some of them from times when the unit had moved. As
examples of background they would teach the network to be silent at exactly these spikes. So events that
resemble a unit, at rest or moved, are not used as examples without it. The templates of other units teach the
difference to them.

An event is a trough on the unit's largest channel. It resembles the unit if the angle between its waveform
and a version of the unit's template, both on the channels near the unit, is small at some lag, and smaller
than that to any other unit.
"""

from __future__ import annotations

import numpy as np

from spikewise.core.compiling import compiled
from spikewise.core.threads import results_in_order
from spikewise.learning.examples.stored_traces import StoredTraces
from spikewise.learning.examples.unit_templates import UnitTemplates
from spikewise.sorting.kernels import LANES, ROWS, linear_layer, panels, product

LEAST_COSINE = 0.7
"""An event resembles a unit above this cosine. Chosen on seed 1 of simulated probes
(docs/design-notes.md)."""
_LEAST_TROUGH = 3.5
"""Least depth of an event, in noise standard deviations. Chosen by hand."""
_OF_OWN_TROUGH = 0.3
"""Least depth as a fraction of the unit's own trough; the larger of the two counts. Chosen by hand."""
_LENGTH_MS = (0.6, 0.9)
"""Parts of a waveform before and after the trough that are compared. Chosen by hand."""
_LAGS = 3
"""Largest lag, in samples, at which they are compared. Chosen by hand."""
_QUICK_LAGS, _LEAST_QUICK_COSINE = np.array([1, 3, 5]), 0.35
"""Only events whose cosine with the unit at rest is higher, at one of a few lags, are compared in full.
Chosen by hand: it is half of what is asked for, and motion and lags in between change the cosine by less."""
_LEAST_OTHER_COSINE = 0.2
"""Only vectors of other units are compared whose cosine with one of the unit's own is higher. Chosen by
hand."""
_COMPARED_HZ = 16_000.0
"""At a higher sampling frequency, cosines are computed on every second sample, or fewer: spikes hold little
above the half of it. Chosen by hand."""
_EVERY_LAG = np.arange(2 * _LAGS + 1)
_EVENTS_AT_ONCE = 2000
"""Events that are compared together; it limits the memory only."""


def resembling_columns(
    stored: StoredTraces,
    templates: UnitTemplates,
    channel_index: np.ndarray,
    moved: np.ndarray,
) -> list[np.ndarray]:
    """Return the columns, in order, of the events that resemble each unit.

    Parameters
    ----------
    stored : StoredTraces
    templates : UnitTemplates
    channel_index : ndarray
        (num_units, num_near) channels near each unit.
    moved : ndarray
        (num_versions, num_units, num_channels, num_samples) templates of units that have moved.
    """
    rate = stored.sampling_frequency
    before, after = (max(2, round(part * rate / 1000)) for part in _LENGTH_MS)
    versions = [templates.values, *moved]
    step = max(1, round(rate / _COMPARED_HZ))
    core = slice(templates.centre - before, templates.centre + after)

    def search(unit: int) -> np.ndarray:
        near = channel_index[unit]
        own = templates.values[unit, near, core]  # M, S
        peak = int(own.min(axis=1).argmin())
        trough = -float(own[peak].min())
        if trough <= 0:
            return np.empty(0, np.int64)
        others, _ = templates.seen_by(unit, near)
        units = np.r_[unit, others][:, None]
        shapes = np.stack([version[units, near, core] for version in versions])  # versions, units, M, S
        offset = int(own[peak].argmin()) - before
        events = _troughs(stored, int(near[peak]), max(_LEAST_TROUGH, _OF_OWN_TROUGH * trough)) - offset
        return _like(stored, events, near, shapes, (before, before + after, step))

    return list(results_in_order(search, range(len(channel_index))))


def _troughs(stored: StoredTraces, channel: int, depth: float) -> np.ndarray:
    """Return the usable columns of the local minima of a channel that are at least this deep."""
    bits = stored.bits[channel]
    # Of negative numbers of half precision, the larger ones have the larger bits.
    deep = np.flatnonzero(bits > np.float16(-depth).view(np.uint16))
    deep = deep[(deep > 0) & (deep < len(bits) - 1)]
    trace = stored.values[channel].numpy()
    columns = deep[(trace[deep] <= trace[deep - 1]) & (trace[deep] < trace[deep + 1])]
    return columns[stored.is_usable(columns)]


def _like(
    stored: StoredTraces,
    columns: np.ndarray,
    near: np.ndarray,
    shapes: np.ndarray,
    part_compared: tuple[int, int, int],
) -> np.ndarray:
    """Return the columns at which, at some lag, the first unit of `shapes` fits better than any other.

    `part_compared` has the samples before a column, the samples in all, and the step from one to the next.
    """
    before, length, step = part_compared
    shapes = shapes[..., ::step]
    own, others = (_unit_vectors(part) for part in (shapes[:, :1], shapes[:, 1:]))
    others = others[:, _may_be_nearer(own, others, len(near), step)]
    span = before + _LAGS, -(-(length + 2 * _LAGS) // step) * step
    similar = []
    for first in range(0, len(columns), _EVENTS_AT_ONCE):
        part = columns[first : first + _EVENTS_AT_ONCE]
        windows = _by_phase(stored.windows(part, *span, near).numpy(), step)
        may_be_like = _best_cosines(windows, own[:, :1], _QUICK_LAGS) > _LEAST_QUICK_COSINE
        windows, part = windows[may_be_like], part[may_be_like]
        fit = _best_cosines(windows, own)
        is_like = fit > LEAST_COSINE
        # Few events resemble the unit at all: only these are compared with the others.
        fit, windows, part = fit[is_like], windows[is_like], part[is_like]
        similar.append(part[fit >= _best_cosines(windows, others)])
    return np.concatenate(similar) if similar else columns


def _unit_vectors(shapes: np.ndarray) -> np.ndarray:
    """Return shapes (versions, units, M, S) as vectors (M * S, versions * units) of length 1."""
    flat = shapes.reshape(-1, shapes.shape[2] * shapes.shape[3])
    return (flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)).T


def _by_phase(windows: np.ndarray, step: int) -> np.ndarray:
    """Return windows (P, M, S) with every `step`-th sample side by side: (P, M, step, S / step)."""
    return np.ascontiguousarray(windows.reshape(*windows.shape[:2], -1, step).swapaxes(2, 3))


def _may_be_nearer(own: np.ndarray, others: np.ndarray, num_near: int, step: int) -> np.ndarray:
    """Return which vectors (M * S, num_vectors) an event that resembles `own` may resemble more.

    Vectors that form nearly a right angle with `own`, at any lag, are too far from it.
    """
    best = np.zeros(others.shape[1], np.float32)
    by_channel = own.reshape(num_near, -1, own.shape[1])
    most = -(-2 * _LAGS // step)
    for lag in range(-most, most + 1, max(1, 2 // step)):
        moved = np.roll(by_channel, lag, axis=1).reshape(own.shape)
        best = np.maximum(best, (moved.T @ others).max(axis=0, initial=0))
    return best > _LEAST_OTHER_COSINE


def _best_cosines(windows: np.ndarray, vectors: np.ndarray, lags: np.ndarray = _EVERY_LAG) -> np.ndarray:
    """Return the largest cosine of each event with any vector, at any lag; -1 if there is none.

    Parameters
    ----------
    windows : ndarray
        (num_events, M, step, more than S): sample s of a window is ``[s % step, s // step]``.
    vectors : ndarray
        (M * S, num_vectors)
    lags : ndarray of int64
        Numbers of samples after the first one of the windows.
    """
    best = np.full(len(windows), -1, np.float32)
    if vectors.shape[1] == 1:
        _fill_cosines_with_one(windows, lags, np.ascontiguousarray(vectors[:, 0], np.float32), best)
    elif vectors.shape[1]:
        num_rows = -(-len(lags) // ROWS) * ROWS
        events = np.zeros((num_rows, len(vectors)), np.float32)
        weight = panels(vectors)
        products = np.empty((num_rows, weight.shape[0] * LANES), np.float32)
        no_bias = np.zeros((len(weight), LANES), np.float32)
        _fill_cosines(windows, lags, weight, no_bias, vectors.shape[1], events, products, best)
    return best


@compiled(error_model="numpy")
def _fill_cosines(
    windows: np.ndarray,
    lags: np.ndarray,
    weight: np.ndarray,
    no_bias: np.ndarray,
    num_vectors: int,
    events: np.ndarray,
    products: np.ndarray,
    best: np.ndarray,
) -> None:
    """Raise `best` (num_events,) to the cosines with the vectors of `weight` (panels, M * S, 16).

    `events` (rows, M * S) and `products` (rows, panels * 16) are memory for one event at all lags.
    """
    num_near, step, num_lags = windows.shape[1], windows.shape[2], len(lags)
    length = events.shape[1] // num_near
    sources, targets = np.empty(len(events), np.int64), np.empty(len(events), np.int64)
    for row in range(len(events)):
        sources[row] = np.int64(events.ctypes.data) + 4 * row * events.shape[1]
        targets[row] = np.int64(products.ctypes.data) + 4 * row * products.shape[1]
    for index in range(len(windows)):
        for lag in range(num_lags):
            for near in range(num_near):
                target = events[lag, near * length : (near + 1) * length]
                begin = lags[lag] // step
                target[:] = windows[index, near, lags[lag] % step, begin : begin + length]
        linear_layer(sources, targets, len(events), weight, no_bias)
        for lag in range(num_lags):
            largest = products[lag, 0]
            for vector in range(1, num_vectors):
                largest = max(largest, products[lag, vector])
            size = np.sqrt(product(events[lag], events[lag]))
            best[index] = max(best[index], largest / max(size, np.float32(1e-6)))


@compiled(error_model="numpy")
def _fill_cosines_with_one(
    windows: np.ndarray, lags: np.ndarray, vector: np.ndarray, best: np.ndarray
) -> None:
    """Raise `best` (num_events,) to the cosines with one vector (M * S,)."""
    num_near, step = windows.shape[1:3]
    length = len(vector) // num_near
    for index in range(len(windows)):
        for lag in lags:
            total, energy = np.float32(0), np.float32(0)
            for near in range(num_near):
                part = windows[index, near, lag % step, lag // step : lag // step + length]
                total += product(part, vector[near * length : (near + 1) * length])
                energy += product(part, part)
            best[index] = max(best[index], total / max(np.sqrt(energy), np.float32(1e-6)))
