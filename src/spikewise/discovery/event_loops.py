"""Compiled loops over events: responses of the bank of shapes, their peaks, and windows around events.

Shapes: C channels, K shapes, W widths, P channels near one, N events, R components, L samples of a window.
Values are integers in steps of ``held_traces.UNIT``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from spikewise.core import vectors
from spikewise.core.compiling import compiled

FAST = {"contract", "reassoc", "nsz", "arcp"}
"""Permitted in sums: another order, and fused operations; the order is fixed when the loop is compiled."""
BLOCK = 256
"""Outputs that are computed together: their responses stay in a processor's cache."""
NUM_WIDTHS = 3
"""Spatial widths of the bank."""
TILE = 32
"""Outputs whose sums stay in a processor's registers."""
_TILE = ir.VectorType(vectors.FLOAT, TILE)
TAP_TILE = 16
"""Outputs of one channel whose sums, for five shapes, stay in a processor's registers."""
_TAP_TILE = ir.VectorType(vectors.FLOAT, TAP_TILE)


@compiled()
def fill_steps(traces, factor, steps):  # type: ignore[no-untyped-def]
    """Fill int16 steps (C, samples): traces times a factor, rounded and cut off."""
    largest = np.float32(32767)
    for channel in range(len(traces)):
        row, target = traces[channel], steps[channel]
        for index in range(len(row)):
            target[index] = np.int16(min(largest, max(-largest, np.rint(row[index] * factor))))


def _make_filter(num_shapes: int) -> Any:
    """Return a function that filters TAP_TILE outputs by so many shapes, whose sums stay in registers."""

    def write_filter(  # type: ignore[no-untyped-def]
        typing_context, row, bank, shape_bytes, taps, target, target_bytes
    ):
        signature = types.void(*[types.int64] * 6)

        def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
            row, bank, shape_bytes, taps, target, target_bytes = arguments
            shapes = [
                builder.add(bank, builder.mul(shape_bytes, vectors.number(index)))
                for index in range(num_shapes)
            ]

            def tap(index: ir.Value, sums: list[ir.Value]) -> list[ir.Value]:
                samples = vectors.load(builder, vectors.after(builder, row, index, 4), _TAP_TILE)
                factors = [
                    vectors.load(builder, vectors.after(builder, shape, index, 4), vectors.FLOAT)
                    for shape in shapes
                ]
                return [
                    vectors.multiply_add(builder, vectors.spread(builder, factor, TAP_TILE), samples, total)
                    for factor, total in zip(factors, sums, strict=True)
                ]

            sums = vectors.count_up(builder, taps, [vectors.zeros(_TAP_TILE)] * num_shapes, tap)
            for index, total in enumerate(sums):
                vectors.store(
                    builder, total, builder.add(target, builder.mul(target_bytes, vectors.number(index)))
                )
            return context.get_dummy_value()

        return signature, write

    return intrinsic(write_filter)


_filter_five, _filter_four, _filter_one = _make_filter(5), _make_filter(4), _make_filter(1)


@compiled()
def filter_channels(values, first, step, bank, filtered, num_outputs):  # type: ignore[no-untyped-def]
    """Fill (K, C, outputs): each channel filtered by each shape (K, taps), at every `step`-th column.

    `filtered` has room for BLOCK outputs; those beyond `num_outputs` hold anything.
    """
    num_shapes, taps = bank.shape
    row = np.zeros(BLOCK + taps + TAP_TILE, np.float32)
    shape_bytes, target_bytes = np.int64(bank[0].size * 4), np.int64(filtered[0].size * 4)
    for channel in range(len(values)):
        source = values[channel]
        for index in range(num_outputs + taps - 1):
            row[index] = source[first + index * step]
        shape = 0
        while shape < num_shapes:
            weights = np.int64(bank[shape:].ctypes.data)
            left = num_shapes - shape
            for begin in range(0, num_outputs, TAP_TILE):
                samples = np.int64(row[begin:].ctypes.data)
                target = np.int64(filtered[shape, channel, begin:].ctypes.data)
                if left >= 5:
                    _filter_five(samples, weights, shape_bytes, np.int64(taps), target, target_bytes)
                elif left == 4:
                    _filter_four(samples, weights, shape_bytes, np.int64(taps), target, target_bytes)
                else:
                    _filter_one(samples, weights, shape_bytes, np.int64(taps), target, target_bytes)
            shape += 5 if left >= 5 else 4 if left == 4 else 1
    row[0] = 0  # arrays live until the last line that names them


def _write_largest_sums(  # type: ignore[no-untyped-def]
    typing_context, rows, offset, counts, weights, scale, shapes, target
):
    """Fill 32 outputs with the largest of the scaled sums of rows, over shapes and NUM_WIDTHS widths.

    `rows` holds the addresses of the rows of the first shape, to which `offset` bytes are added. The sum of
    the first width is the first row alone. Rows before the first of `counts` are in the sums of the other
    widths, those before the second in the sum of the last width only. At `weights` lie (rows, NUM_WIDTHS), at
    `scale` (shapes, NUM_WIDTHS), at `shapes` the number of shapes and the bytes from one to the next. All but
    `offset` are addresses.
    """
    signature = types.void(*[types.int64] * 7)

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        rows, offset, counts, weights, scale, shapes, target = arguments
        of_all, in_last, num_shapes, shape_bytes = (
            vectors.load(builder, vectors.after(builder, address, at, 8), vectors.INDEX)
            for address in (counts, shapes)
            for at in range(2)
        )
        alone = builder.sub(in_last, of_all)

        def add(row: ir.Value, begin: ir.Value, widths: range, totals: list[ir.Value]) -> list[ir.Value]:
            address = vectors.load(builder, vectors.after(builder, rows, row, 8), vectors.INDEX)
            source = vectors.load(builder, builder.add(address, begin), _TILE)
            of_row = vectors.after(builder, weights, row, 4 * NUM_WIDTHS)
            factors = [
                vectors.load(builder, vectors.after(builder, of_row, width, 4), vectors.FLOAT)
                for width in widths
            ]
            return [
                vectors.multiply_add(builder, vectors.spread(builder, factor, TILE), source, total)
                for factor, total in zip(factors, totals, strict=True)
            ]

        def shape(index: ir.Value, best: list[ir.Value]) -> list[ir.Value]:
            begin = builder.add(offset, builder.mul(index, shape_bytes))
            alone_sum = add(vectors.number(0), begin, range(1), [vectors.zeros(_TILE)])
            sums = vectors.count_up(
                builder,
                of_all,
                [vectors.zeros(_TILE)] * (NUM_WIDTHS - 1),
                lambda row, sums: add(row, begin, range(1, NUM_WIDTHS), sums),
            )
            totals = alone_sum + sums
            last = range(NUM_WIDTHS - 1, NUM_WIDTHS)
            totals[-1:] = vectors.count_up(
                builder,
                alone,
                totals[-1:],
                lambda row, sums: add(builder.add(row, of_all), begin, last, sums),
            )
            of_shape = vectors.after(builder, scale, index, 4 * NUM_WIDTHS)
            for width, total in enumerate(totals):
                factor = vectors.load(builder, vectors.after(builder, of_shape, width, 4), vectors.FLOAT)
                scaled = builder.fmul(total, vectors.spread(builder, factor, TILE))
                best = [vectors.higher(builder, best[0], scaled)]
            return best

        smallest = ir.Constant(_TILE, [-1e30] * TILE)
        vectors.store(builder, vectors.count_up(builder, num_shapes, [smallest], shape)[0], target)
        return context.get_dummy_value()

    return signature, write


_largest_sums: Any = intrinsic(_write_largest_sums)


@compiled()
def largest_responses(filtered, near, counts, weights, scale, best, num_outputs):  # type: ignore[no-untyped-def]
    """Fill (C, outputs): the largest response over shapes and widths, in its own noise standard deviations.

    `near` (C, P) lists channels. Those before the first of `counts` (C, 2) are in the sums of all widths,
    those before the second, which is larger, in the last one only. `weights` (C, P, NUM_WIDTHS) are theirs in
    each width, `scale` (C, K, NUM_WIDTHS) is the inverse of the noise.
    """
    num_channels, num_near = near.shape
    rows, row = np.empty(num_near, np.int64), np.empty(BLOCK, np.float32)
    shapes = np.array([len(filtered), filtered[0].size * 4])
    for channel in range(num_channels):
        for index in range(num_near):
            rows[index] = np.int64(filtered[0, near[channel, index]].ctypes.data)
        for first in range(0, num_outputs, TILE):
            _largest_sums(
                np.int64(rows.ctypes.data),
                np.int64(4 * first),
                np.int64(counts[channel].ctypes.data),
                np.int64(weights[channel].ctypes.data),
                np.int64(scale[channel].ctypes.data),
                np.int64(shapes.ctypes.data),
                np.int64(row[first:].ctypes.data),
            )
        best[channel, :num_outputs] = row[:num_outputs]
    rows[0], shapes[0] = 0, 0  # arrays live until the last line that names them


@compiled(fastmath=FAST)
def unit_responses(filtered, channels, counts, weights, scale, best, num_outputs):  # type: ignore[no-untyped-def]
    """Fill (U, outputs): the response of each unit, in its own noise standard deviations.

    `channels` (U, M) lists the channels of each unit, the first `counts` of them, `weights` (U, M, 4) their
    weights with each of four shapes, `scale` (U,) the inverse of the noise.
    """
    for unit in range(len(channels)):
        target = best[unit]
        for index in range(num_outputs):
            target[index] = 0
        for at in range(counts[unit]):
            channel = channels[unit, at]
            one, two, three, four = (
                filtered[0, channel],
                filtered[1, channel],
                filtered[2, channel],
                filtered[3, channel],
            )
            factor = scale[unit]
            a, b, c, d = (
                factor * weights[unit, at, 0],
                factor * weights[unit, at, 1],
                factor * weights[unit, at, 2],
                factor * weights[unit, at, 3],
            )
            for index in range(num_outputs):
                target[index] += a * one[index] + b * two[index] + c * three[index] + d * four[index]


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


@compiled()
def mark_clean(columns, channels, heights, distance, limits, is_clean):  # type: ignore[no-untyped-def]
    """Mark the events, in order of time, near which there is no much larger one.

    `limits` are columns, um, and how many times larger the other event is.
    """
    reach, far, ratio = limits
    for index in range(len(columns)):
        is_clean[index] = True
        for step in (-1, 1):
            other = index + step
            while is_clean[index] and 0 <= other < len(columns):
                if abs(columns[other] - columns[index]) > reach:
                    break
                if heights[other] > ratio * heights[index]:
                    is_clean[index] = distance[channels[index], channels[other]] > far
                other += step
