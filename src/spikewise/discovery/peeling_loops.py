"""Compiled loops that explain events by units: fit, subtract, and add again.

Shapes: U units, M channels of a unit, L samples of a window. Values and waveforms are in steps of
``held_traces.UNIT``.
"""

from __future__ import annotations

import numpy as np

from spikewise.core.compiling import compiled
from spikewise.discovery.event_loops import FAST

MOST_SHIFT = 0.6
"""Largest coefficient of the derivative, relative to the amplitude: a shift in samples."""

COARSE_CHANNELS = 6
"""Channels on which all units near an event are compared."""
FINALISTS = 3
"""Units that are compared on all their channels."""


@compiled(fastmath=FAST)
def _products(values, start, unit, num_channels, units, step, room):  # type: ignore[no-untyped-def]
    """Fill the products of a unit's waveform with the windows from `start` on, at every `step`-th lag."""
    waveforms, channels = units[0], units[3]
    row, fits = room
    length = waveforms.shape[2]
    span = length + (len(fits) - 1) * step
    fits[:] = 0
    for index in range(num_channels):
        source = values[channels[unit, index]]
        for at in range(span):
            row[at] = source[start + at]
        shape = waveforms[unit, index]
        for lag in range(len(fits)):
            total = np.float32(0)
            for at in range(length):
                total += shape[at] * row[lag * step + at]
            fits[lag] += total


@compiled(fastmath=FAST)
def _fit(values, middle, candidates, units, limits):  # type: ignore[no-untyped-def]
    """Return the unit, column, amplitude and gain that explain most energy around a column; -1: none does.

    First each candidate is tried on its COARSE_CHANNELS largest channels at every second lag, then the best
    ones on all channels, around the best lag.
    """
    waveforms, _, _, _, counts, energies, before, tail = units
    reach, smallest, largest = limits
    length = waveforms.shape[2]
    best_gain, best_unit, best_column, best_amplitude = np.float32(0), -1, middle, np.float32(0)
    start = middle - before - reach
    if start < tail + 2 or start + length + 2 * reach + tail + 2 > values.shape[1]:
        return best_unit, best_column, best_amplitude, best_gain
    row = np.empty(length + 2 * reach + 8, np.float32)
    coarse, fine = np.empty(reach + 1, np.float32), np.empty(5, np.float32)
    gains, lags = np.full(FINALISTS, -np.float32(1), np.float32), np.zeros(FINALISTS, np.int64)
    finalists = np.full(FINALISTS, -1, np.int64)
    for unit in candidates:
        if unit < 0:
            break
        few = min(counts[unit], COARSE_CHANNELS)
        _products(values, start, unit, few, units, 2, (row, coarse))
        lag = int(np.argmax(coarse))
        energy = np.float32(0)
        for index in range(few):
            for at in range(length):
                energy += waveforms[unit, index, at] * waveforms[unit, index, at]
        amplitude = coarse[lag] / max(energy, np.float32(1e-6))
        if amplitude < 0.5 * smallest:
            continue
        amplitude = min(amplitude, largest)
        gain = 2 * amplitude * coarse[lag] - amplitude * amplitude * energy
        at = FINALISTS - 1
        if gain <= gains[at]:
            continue
        while at > 0 and gains[at - 1] < gain:
            gains[at], lags[at], finalists[at] = gains[at - 1], lags[at - 1], finalists[at - 1]
            at -= 1
        gains[at], lags[at], finalists[at] = gain, 2 * lag, unit
    for rank in range(FINALISTS):
        unit, lag = finalists[rank], lags[rank]
        if unit < 0:
            break
        _products(values, start + lag - 2, unit, counts[unit], units, 1, (row, fine))
        best = int(np.argmax(fine))
        amplitude = fine[best] / energies[unit]
        if amplitude < smallest:
            continue
        amplitude = min(amplitude, largest)
        gain = 2 * amplitude * fine[best] - amplitude * amplitude * energies[unit]
        if gain > best_gain:
            best_gain, best_unit, best_amplitude = gain, unit, amplitude
            best_column = middle + lag - 2 + best - reach
    return best_unit, best_column, best_amplitude, best_gain


@compiled(fastmath=FAST)
def _add(values, column, amplitude, slope, unit, units, sign):  # type: ignore[no-untyped-def]
    """Add a unit's waveform and its derivative to the values, rounded: adding it again undoes it exactly."""
    _, long, slopes, channels, counts, _, before, tail = units
    start = column - before - tail
    for index in range(counts[unit]):
        target = values[channels[unit, index]]
        shape, bend = long[unit, index], slopes[unit, index]
        for at in range(long.shape[2]):
            target[start + at] += sign * np.int16(np.rint(amplitude * shape[at] + slope * bend[at]))


@compiled(fastmath=FAST)
def explain_events(values, order, columns, candidates, units, limits, result):  # type: ignore[no-untyped-def]
    """Explain events in an order, each by one unit that is subtracted at once.

    `candidates` (N, U') lists units near each event, `limits` are the largest shift in samples and the
    smallest and largest amplitude, `result` holds arrays to fill: unit (-1:
    none), whole column, amplitude, coefficient of the derivative, energy that is left per sample.
    """
    waveforms, _, slopes, channels, counts, _, before, tail = units
    found_unit, found_column, found_amplitude, found_slope, found_rest = result
    length = waveforms.shape[2]
    for event in order:
        middle = int(np.round(columns[event]))
        unit, column, amplitude, _ = _fit(values, middle, candidates[event], units, limits)
        found_unit[event], found_column[event], found_amplitude[event] = unit, column, amplitude
        if unit < 0:
            continue
        along, size, energy = np.float32(0), np.float32(1e-3), np.float32(0)
        start = column - before
        for index in range(counts[unit]):
            source = values[channels[unit, index]]
            shape, bend = waveforms[unit, index], slopes[unit, index]
            for at in range(length):
                rest = source[start + at] - amplitude * shape[at]
                along += rest * bend[tail + at]
                size += bend[tail + at] * bend[tail + at]
                energy += rest * rest
        slope = along / size
        slope = max(-np.float32(MOST_SHIFT) * amplitude, min(np.float32(MOST_SHIFT) * amplitude, slope))
        found_slope[event] = slope
        found_rest[event] = energy - slope * (2 * along - slope * size)
        _add(values, column, amplitude, slope, unit, units, np.int16(-1))


@compiled(fastmath=FAST)
def restore_events(values, order, units, result):  # type: ignore[no-untyped-def]
    """Add the spikes of events to the values again."""
    found_unit, found_column, found_amplitude, found_slope, _ = result
    for event in order:
        unit = found_unit[event]
        if unit >= 0:
            column, amplitude, slope = found_column[event], found_amplitude[event], found_slope[event]
            _add(values, column, amplitude, slope, unit, units, np.int16(1))
