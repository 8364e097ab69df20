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


@compiled(fastmath=FAST)
def _fit(values, middle, candidates, units, reach, limits):  # type: ignore[no-untyped-def]
    """Return the unit, column, amplitude and gain that explain most energy around a column; -1: none does."""
    waveforms, channels, counts, energies, before = units
    length = waveforms.shape[2]
    span = length + 2 * reach
    best_gain, best_unit, best_column, best_amplitude = np.float32(0), -1, middle, np.float32(0)
    start = middle - before - reach
    if start < 0 or start + span > values.shape[1]:
        return best_unit, best_column, best_amplitude, best_gain
    fits = np.empty(2 * reach + 1, np.float32)
    row = np.empty(span, np.float32)
    for unit in candidates:
        if unit < 0:
            break
        fits[:] = 0
        for index in range(counts[unit]):
            source = values[channels[unit, index]]
            for at in range(span):
                row[at] = source[start + at]
            shape = waveforms[unit, index]
            for lag in range(2 * reach + 1):
                total = np.float32(0)
                for at in range(length):
                    total += shape[at] * row[lag + at]
                fits[lag] += total
        lag = int(np.argmax(fits))
        amplitude = fits[lag] / energies[unit]
        if amplitude < limits[0]:
            continue
        amplitude = min(amplitude, limits[1])
        gain = 2 * amplitude * fits[lag] - amplitude * amplitude * energies[unit]
        if gain > best_gain:
            best_gain, best_unit, best_column, best_amplitude = gain, unit, middle + lag - reach, amplitude
    return best_unit, best_column, best_amplitude, best_gain


@compiled(fastmath=FAST)
def _add(values, column, amplitude, slope, unit, units, slopes, sign):  # type: ignore[no-untyped-def]
    """Add a unit's waveform and its derivative to the values, rounded: adding it again undoes it exactly."""
    waveforms, channels, counts, _, before = units
    for index in range(counts[unit]):
        target = values[channels[unit, index]]
        shape, bend = waveforms[unit, index], slopes[unit, index]
        for at in range(waveforms.shape[2]):
            part = np.int16(np.rint(amplitude * shape[at] + slope * bend[at]))
            target[column - before + at] += sign * part


@compiled(fastmath=FAST)
def explain_events(values, order, columns, candidates, units, slopes, reach, limits, result):  # type: ignore[no-untyped-def]
    """Explain events in an order, each by one unit that is subtracted at once.

    `candidates` (C', U') lists units for the channel of each event, `result` holds arrays to fill: unit (-1:
    none), whole column, amplitude, coefficient of the derivative, energy that is left per sample.
    """
    waveforms, channels, counts, energies, before = units
    found_unit, found_column, found_amplitude, found_slope, found_rest = result
    length = waveforms.shape[2]
    for event in order:
        middle = int(np.round(columns[event]))
        unit, column, amplitude, gain = _fit(values, middle, candidates[event], units, reach, limits)
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
                along += rest * bend[at]
                size += bend[at] * bend[at]
                energy += rest * rest
        slope = along / size
        slope = max(-np.float32(MOST_SHIFT) * amplitude, min(np.float32(MOST_SHIFT) * amplitude, slope))
        found_slope[event] = slope
        found_rest[event] = energy - slope * (2 * along - slope * size)
        _add(values, column, amplitude, slope, unit, units, slopes, np.int16(-1))


@compiled(fastmath=FAST)
def restore_events(values, order, units, slopes, result):  # type: ignore[no-untyped-def]
    """Add the spikes of events to the values again."""
    found_unit, found_column, found_amplitude, found_slope, _ = result
    for event in order:
        unit = found_unit[event]
        if unit >= 0:
            column, amplitude, slope = found_column[event], found_amplitude[event], found_slope[event]
            _add(values, column, amplitude, slope, unit, units, slopes, np.int16(1))
