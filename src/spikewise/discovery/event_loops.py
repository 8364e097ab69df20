"""Compiled loops over events: responses of the bank of shapes, their peaks, and windows around events.

Shapes: C channels, K shapes, W widths, P channels near one, N events, R components, L samples of a window.
Values are integers in steps of ``held_traces.UNIT``.
"""

from __future__ import annotations

import numpy as np

from spikewise.core.compiling import compiled

FAST = {"contract", "reassoc", "nsz", "arcp"}
"""Permitted in sums: another order, and fused operations; the order is fixed when the loop is compiled."""
BLOCK = 256
"""Outputs that are computed together: their responses stay in a processor's cache."""


@compiled(fastmath=FAST)
def filter_channels(values, first, step, bank, filtered, num_outputs):  # type: ignore[no-untyped-def]
    """Fill (K, C, outputs): each channel filtered by each shape (K, taps), at every `step`-th column."""
    num_shapes, taps = bank.shape
    row = np.empty(BLOCK + taps + 4, np.float32)
    for channel in range(len(values)):
        for index in range(num_outputs + taps - 1):
            row[index] = values[channel, first + index * step]
        for shape in range(num_shapes):
            target = filtered[shape, channel]
            for index in range(num_outputs):
                target[index] = 0
            tap = 0
            while tap + 8 <= taps:
                a, b, c, d = (
                    bank[shape, tap],
                    bank[shape, tap + 1],
                    bank[shape, tap + 2],
                    bank[shape, tap + 3],
                )
                e, f, g, h = (
                    bank[shape, tap + 4],
                    bank[shape, tap + 5],
                    bank[shape, tap + 6],
                    bank[shape, tap + 7],
                )
                for index in range(num_outputs):
                    at = index + tap
                    early = a * row[at] + b * row[at + 1] + c * row[at + 2] + d * row[at + 3]
                    late = e * row[at + 4] + f * row[at + 5] + g * row[at + 6] + h * row[at + 7]
                    target[index] += early + late
                tap += 8
            while tap < taps:
                a = bank[shape, tap]
                for index in range(num_outputs):
                    target[index] += a * row[index + tap]
                tap += 1


@compiled(fastmath=FAST)
def largest_responses(filtered, near, weights, scale, best, num_outputs):  # type: ignore[no-untyped-def]
    """Fill (C, outputs): the largest response over shapes and widths, in its own noise standard deviations.

    `near` (C, P) lists channels, `weights` (C, W, P) their weights in each width (0: left out), `scale`
    (C, K, W) the inverse of the noise.
    """
    num_channels, num_widths, num_near = weights.shape
    total = np.empty(BLOCK, np.float32)
    for channel in range(num_channels):
        target = best[channel]
        for index in range(num_outputs):
            target[index] = -np.float32(1e30)
        for shape in range(len(filtered)):
            for width in range(num_widths):
                for index in range(num_outputs):
                    total[index] = 0
                for near_index in range(num_near):
                    weight = weights[channel, width, near_index]
                    if weight == 0:
                        continue
                    source = filtered[shape, near[channel, near_index]]
                    for index in range(num_outputs):
                        total[index] += weight * source[index]
                factor = scale[channel, shape, width]
                for index in range(num_outputs):
                    target[index] = max(target[index], total[index] * factor)


@compiled()
def find_peaks(response, rivals, threshold, reach, outputs, found):  # type: ignore[no-untyped-def]
    """Write the peaks of (C, outputs) from the first to the last of `outputs`; return their number.

    A peak is above the threshold, and the largest response within `reach` outputs on the channels of
    `rivals` (C, P), which end with -1. Equal responses: the first output, the first channel. `found`
    holds arrays for channels, positions (in outputs, interpolated by a parabola) and heights.
    """
    channels, positions, heights = found
    first, last = outputs
    count = 0
    num_outputs = response.shape[1]
    for channel in range(len(response)):
        row = response[channel]
        for index in range(first, last):
            value = row[index]
            if value < threshold or row[index - 1] >= value or row[index + 1] > value:
                continue
            low, high = max(0, index - reach), min(num_outputs, index + reach + 1)
            is_largest = True
            for other in rivals[channel]:
                if other < 0 or not is_largest:
                    break
                for at in range(low, high):
                    rival = response[other, at]
                    if rival > value or (
                        rival == value and (at < index or (at == index and other < channel))
                    ):
                        is_largest = False
                        break
            if is_largest and count < len(channels):
                before, after = row[index - 1], row[index + 1]
                bend = before - 2 * value + after
                offset = 0.5 * (before - after) / bend if bend < 0 else 0.0
                channels[count], heights[count] = channel, value
                positions[count] = index + min(0.5, max(-0.5, offset))
                count += 1
    return count


@compiled(fastmath=FAST)
def describe_events(values, columns, channels, basis, before, features):  # type: ignore[no-untyped-def]
    """Fill (N, P, R): components of the window around each event on its channels (N, P); -1: zeros.

    `columns` are fractional; `basis` (fractions, R, L + 1) holds the components at each fraction.
    """
    num_fractions, num_components, length = basis.shape
    row = np.empty(length, np.float32)
    for event in range(len(columns)):
        in_fractions = int(np.round(columns[event] * num_fractions))
        whole = in_fractions // num_fractions
        components = basis[in_fractions - whole * num_fractions]
        start = whole - before
        is_inside = start >= 0 and start + length <= values.shape[1]
        for near_index in range(channels.shape[1]):
            channel = channels[event, near_index]
            if channel < 0 or not is_inside:
                features[event, near_index] = 0
                continue
            for index in range(length):
                row[index] = values[channel, start + index]
            for component in range(num_components):
                total = np.float32(0)
                for index in range(length):
                    total += components[component, index] * row[index]
                features[event, near_index, component] = total


@compiled()
def cut_windows(values, columns, channels, before, windows):  # type: ignore[no-untyped-def]
    """Fill (N, P, L) with the windows around whole columns on the same channels (P,); outside: zeros."""
    length = windows.shape[2]
    for event in range(len(columns)):
        start = columns[event] - before
        is_inside = start >= 0 and start + length <= values.shape[1]
        for near_index in range(len(channels)):
            for index in range(length):
                windows[event, near_index, index] = (
                    values[channels[near_index], start + index] if is_inside else 0
                )


@compiled()
def add_windows(values, columns, channels, before, total):  # type: ignore[no-untyped-def]
    """Fill (P, L) with the sum of the windows around whole columns on channels (P,)."""
    length = total.shape[1]
    total[:] = 0
    for column in columns:
        start = column - before
        if start < 0 or start + length > values.shape[1]:
            continue
        for near_index in range(len(channels)):
            source = values[channels[near_index]]
            for index in range(length):
                total[near_index, index] += source[start + index]


@compiled(fastmath=FAST)
def align_events(values, columns, channels, template, before, reach, aligned):  # type: ignore[no-untyped-def]
    """Fill the fractional column within `reach` of each event at which a template (P, L) fits best."""
    length = template.shape[1]
    fits = np.empty(2 * reach + 1, np.float32)
    span = length + 2 * reach
    row = np.empty(span, np.float32)
    for event in range(len(columns)):
        middle = int(np.round(columns[event]))
        start = middle - before - reach
        if start < 0 or start + span > values.shape[1]:
            aligned[event] = columns[event]
            continue
        fits[:] = 0
        for near_index in range(len(channels)):
            for index in range(span):
                row[index] = values[channels[near_index], start + index]
            for lag in range(2 * reach + 1):
                total = np.float32(0)
                for index in range(length):
                    total += template[near_index, index] * row[lag + index]
                fits[lag] += total
        best = int(np.argmax(fits))
        offset = np.float32(0)
        if 0 < best < 2 * reach:
            bend = fits[best - 1] - 2 * fits[best] + fits[best + 1]
            if bend < 0:
                offset = np.float32(0.5) * (fits[best - 1] - fits[best + 1]) / bend
        aligned[event] = middle + best - reach + offset


@compiled(fastmath=FAST)
def best_lag(one, other, reach):  # type: ignore[no-untyped-def]
    """Return the largest product of two templates (P, L) over lags, and the lag of the other's window."""
    length = one.shape[1]
    best, at = -np.float32(1e30), 0
    for lag in range(-reach, reach + 1):
        total = np.float32(0)
        low, high = max(0, -lag), min(length, length - lag)
        for channel in range(len(one)):
            for index in range(low, high):
                total += one[channel, index] * other[channel, index + lag]
        if total > best:
            best, at = total, lag
    return best, at
