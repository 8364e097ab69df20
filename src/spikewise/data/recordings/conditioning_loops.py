"""Compiled loops of band-pass, median and scaling, with vectors in a processor's registers.

The recursion of the filter runs over time for LANES channels at once, in double precision; the state of all
sections stays in registers. The median of a row is found by counting the values below a limit. LANES rows of
LANES channels are transposed at once. The loops release Python's lock.

Shapes: traces are (num_samples, num_channels).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from spikewise.core import vectors
from spikewise.core.compiling import compiled

LANES = 16
"""Channels, or values, in one vector."""
SECTIONS = 5
"""Sections of the filter that run in one pass: those of a band-pass of order 5."""
STEP = 1 / 128
"""Traces are multiples of this, in noise standard deviations: sizes up to 255 fit into 16 bits. The rounding
adds a four hundredth of the noise."""
LARGEST_STEP = 32767
"""Largest multiple of STEP: larger values are cut off."""
_BLOCK_SAMPLES = 64
"""Samples that are referenced, then transposed: four lines of a processor's cache for each channel."""
_FIRST_VALUES = 256
"""Values of a long row whose median is the first guess for that of the row; chosen by hand."""
_HUGE = np.float32(1e30)
"""Larger than any value of traces."""
_VECTOR = ir.VectorType(vectors.FLOAT, LANES)
_LONG_VECTOR = ir.VectorType(vectors.DOUBLE, LANES)
_COUNTS = ir.VectorType(ir.IntType(32), LANES)


@compiled(fastmath={"reassoc"}, error_model="numpy")
def _sum_of_nothing(values: np.ndarray) -> np.ndarray:
    """Return the sum of each row times 0: NaN where a value is NaN or infinite."""
    sums = np.zeros(len(values), values.dtype)
    for row in range(len(values)):
        total = sums[row]
        for index in range(values.shape[1]):
            total += values[row, index] * values.dtype.type(0)
        sums[row] = total
    return sums


@compiled(error_model="numpy")
def round_to_steps(values: np.ndarray, rounded: np.ndarray) -> bool:
    """Fill float32 rows rounded to multiples of STEP, and cut off; return whether all values are finite.

    `rounded` may be `values`.
    """
    is_finite = True
    inverse, size, largest = np.float32(1 / STEP), np.float32(STEP), np.float32(LARGEST_STEP)
    for row in range(len(values)):
        total = np.float32(0)
        for index in range(values.shape[1]):
            value = values[row, index]
            total += value * np.float32(0)
            steps = np.rint(value * inverse)
            rounded[row, index] = min(largest, max(-largest, steps)) * size
        is_finite &= total == 0
    return is_finite


@compiled()
def fill_from_steps(steps: np.ndarray, values: np.ndarray) -> None:
    """Fill float32 rows from rows of int16 multiples of STEP."""
    for row in range(len(steps)):
        for index in range(steps.shape[1]):
            values[row, index] = steps[row, index] * np.float32(STEP)


def are_finite(traces: np.ndarray) -> bool:
    """Return whether no value of traces (num_samples, num_channels) is NaN or infinite."""
    if traces.dtype not in (np.float32, np.float64):
        return bool(np.isfinite(traces).all())
    rows = traces if abs(traces.strides[0]) > abs(traces.strides[1]) else traces.T
    return bool((_sum_of_nothing(rows) == 0).all())


def _write_run_sections(  # type: ignore[no-untyped-def]
    typing_context, rows, num_rows, row_step, coefficients, settled
):
    """Run rows of LANES float32 through SECTIONS sections, in place (transposed direct form II).

    `row_step` is the number of bytes from one row to the next; `coefficients` (SECTIONS, 5) float64 are b0,
    b1, b2, -a1 and -a2. The filter starts as if all earlier rows were equal to the first: `settled`
    (SECTIONS, 2) float64 is its state after a constant input of 1. All but `num_rows` and `row_step` are
    addresses.
    """
    signature = types.void(*[types.int64] * 5)

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        rows, num_rows, row_step, coefficients, settled = arguments

        def factor(table: ir.Value, index: int) -> ir.Value:
            value = vectors.load(builder, vectors.after(builder, table, index, 8), vectors.DOUBLE)
            return vectors.spread(builder, value, LANES)

        def step(index: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
            address = builder.add(rows, builder.mul(index, row_step))
            return _sections(builder, address, coefficients, state)

        beginning = builder.fpext(vectors.load(builder, rows, _VECTOR), _LONG_VECTOR)
        state = [builder.fmul(factor(settled, index), beginning) for index in range(2 * SECTIONS)]
        vectors.count_up(builder, num_rows, state, step)
        return context.get_dummy_value()

    return signature, write


def _write_run_sections_on(  # type: ignore[no-untyped-def]
    typing_context, rows, num_rows, coefficients, state
):
    """Run rows of LANES float32 through SECTIONS sections, in place, from a state on, which is updated.

    The arithmetic is that of :func:`_write_run_sections`. `state` (2 * SECTIONS, LANES) is float64; all but
    `num_rows` are addresses.
    """
    signature = types.void(*[types.int64] * 4)

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        rows, num_rows, coefficients, state = arguments
        addresses = [vectors.after(builder, state, index, 8 * LANES) for index in range(2 * SECTIONS)]
        before = [vectors.load(builder, address, _LONG_VECTOR) for address in addresses]

        def step(index: ir.Value, state: list[ir.Value]) -> list[ir.Value]:
            return _sections(builder, vectors.after(builder, rows, index, 4 * LANES), coefficients, state)

        following = vectors.count_up(builder, num_rows, before, step)
        for address, value in zip(addresses, following, strict=True):
            vectors.store(builder, value, address)
        return context.get_dummy_value()

    return signature, write


def _sections(
    builder: ir.IRBuilder, address: ir.Value, coefficients: ir.Value, state: list[ir.Value]
) -> list[ir.Value]:
    """Filter one row of LANES float32 in place; return the state after it."""

    def factor(index: int) -> ir.Value:
        value = vectors.load(builder, vectors.after(builder, coefficients, index, 8), vectors.DOUBLE)
        return vectors.spread(builder, value, LANES)

    value = builder.fpext(vectors.load(builder, address, _VECTOR), _LONG_VECTOR)
    following = []
    for section in range(SECTIONS):
        first, second = state[2 * section : 2 * section + 2]
        b0, b1, b2, a1, a2 = (factor(5 * section + index) for index in range(5))
        output = vectors.multiply_add(builder, b0, value, first)
        first = vectors.multiply_add(builder, b1, value, second)
        following.append(vectors.multiply_add(builder, a1, output, first))
        following.append(vectors.multiply_add(builder, a2, output, builder.fmul(b2, value)))
        value = output
    vectors.store(builder, builder.fptrunc(value, _VECTOR), address)
    return following


def _write_count_below(typing_context, values, num_vectors, limit):  # type: ignore[no-untyped-def]
    """Return how many of LANES * `num_vectors` float32 at the address `values` are below `limit`."""
    signature = types.int32(types.int64, types.int64, types.float32)

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        values, num_vectors, limit = arguments
        limits, one = vectors.spread(builder, limit, LANES), ir.Constant(_COUNTS, [1] * LANES)

        def step(index: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            vector = vectors.load(builder, vectors.after(builder, values, index, 4 * LANES), _VECTOR)
            is_below = builder.fcmp_ordered("<", vector, limits)
            return [builder.select(is_below, builder.add(totals[0], one), totals[0])]

        (total,) = vectors.count_up(builder, num_vectors, [vectors.zeros(_COUNTS)], step)
        return vectors.folded(builder, total, builder.add)

    return signature, write


def _write_nearest(typing_context, values, num_vectors, limit, is_below):  # type: ignore[no-untyped-def]
    """Return the largest value below `limit`, or the smallest of the others; _HUGE if there is none.

    `values` is the address of LANES * `num_vectors` float32.
    """
    signature = types.float32(types.int64, types.int64, types.float32, types.boolean)

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        values, num_vectors, limit, is_below = arguments
        limits = vectors.spread(builder, limit, LANES)
        huge = ir.Constant(_VECTOR, [float(_HUGE)] * LANES)

        def less(one: ir.Value, other: ir.Value) -> ir.Value:
            return builder.select(builder.fcmp_ordered("<", one, other), one, other)

        def step(index: ir.Value, nearest: list[ir.Value]) -> list[ir.Value]:
            vector = vectors.load(builder, vectors.after(builder, values, index, 4 * LANES), _VECTOR)
            is_low = builder.fcmp_ordered("<", vector, limits)
            is_high = builder.fcmp_ordered(">=", vector, limits)
            return [
                less(builder.select(is_low, builder.fneg(vector), huge), nearest[0]),
                less(builder.select(is_high, vector, huge), nearest[1]),
            ]

        below, others = vectors.count_up(builder, num_vectors, [huge, huge], step)
        greatest = builder.fneg(vectors.folded(builder, below, less))
        return builder.select(is_below, greatest, vectors.folded(builder, others, less))

    return signature, write


def _write_transpose_and_scale(  # type: ignore[no-untyped-def]
    typing_context, rows, row_step, middles, gains, offsets, out, out_step
):
    """Write LANES rows of LANES channels as LANES channels: (row - its median) * gain + offset.

    `row_step` and `out_step` are the numbers of bytes from one row to the next and from one channel of the
    result to the next; all others are addresses of float32. `middles` are the medians.
    """
    signature = types.void(*[types.int64] * 7)

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        rows, row_step, middles, gains, offsets, out, out_step = arguments

        def one(table: ir.Value, index: int) -> ir.Value:
            value = vectors.load(builder, vectors.after(builder, table, index, 4), vectors.FLOAT)
            return vectors.spread(builder, value, LANES)

        read = []
        for index in range(LANES):
            address = builder.add(rows, builder.mul(row_step, vectors.number(index)))
            read.append(builder.fsub(vectors.load(builder, address, _VECTOR), one(middles, index)))
        for index, channel in enumerate(vectors.transposed(builder, read)):
            scaled = builder.fadd(builder.fmul(channel, one(gains, index)), one(offsets, index))
            vectors.store(builder, scaled, builder.add(out, builder.mul(out_step, vectors.number(index))))
        return context.get_dummy_value()

    return signature, write


_run_sections: Any = intrinsic(_write_run_sections)
_run_sections_on: Any = intrinsic(_write_run_sections_on)
_count_below: Any = intrinsic(_write_count_below)
_nearest: Any = intrinsic(_write_nearest)
_transpose_and_scale: Any = intrinsic(_write_transpose_and_scale)


@compiled()
def fill_panel(traces: np.ndarray, first: int, padding: int, is_centered: bool, panel: np.ndarray) -> None:
    """Fill a panel with LANES channels, from `first` on.

    Parameters
    ----------
    traces : ndarray
        Of any real type.
    padding : int
        Number of samples that are mirrored at either end.
    is_centered : bool
        Subtract the first sample of each channel, which a band-pass removes anyway: large values keep their
        precision.
    panel : ndarray of float32
        (num_samples + 2 * padding, LANES) or longer; filled, with zeros for missing channels.
    """
    num_samples, end = traces.shape[0], traces.shape[0] - 1
    width, origin = np.uint64(min(LANES, traces.shape[1] - first)), np.uint64(first)
    base = np.zeros(LANES)
    if is_centered:
        for channel in range(width):
            base[channel] = traces[0, origin + channel]
    for sample in range(-padding, num_samples + padding):
        row = np.uint64(sample + padding)
        if width < LANES:
            panel[row] = 0
        if 0 <= sample <= end:
            inside = np.uint64(sample)
            if width == LANES:  # a constant for the compiler
                for lane in range(np.uint64(LANES)):
                    panel[row, lane] = np.float64(traces[inside, origin + lane]) - base[lane]
            else:
                for channel in range(width):
                    panel[row, channel] = np.float64(traces[inside, origin + channel]) - base[channel]
        else:  # the value at the end plus its difference to the mirrored sample
            edge = np.uint64(0 if sample < 0 else end)
            mirrored = np.uint64(-sample if sample < 0 else 2 * end - sample)
            for channel in range(width):
                outer = 2 * np.float64(traces[edge, origin + channel]) - base[channel]
                panel[row, channel] = outer - np.float64(traces[mirrored, origin + channel])


@compiled()
def bandpass_panel(panel: np.ndarray, num_rows: int, coefficients: np.ndarray, settled: np.ndarray) -> None:
    """Filter the first rows of a panel (num_rows or more, LANES) forward and backward, in place.

    Parameters
    ----------
    coefficients : ndarray of float64
        (SECTIONS, 5): b0, b1, b2, -a1, -a2 of each section.
    settled : ndarray of float64
        (SECTIONS, 2): state of the sections after a constant input of 1.
    """
    begin, count, step = np.int64(panel.ctypes.data), np.int64(num_rows), np.int64(4 * LANES)
    factors, state = np.int64(coefficients.ctypes.data), np.int64(settled.ctypes.data)
    _run_sections(begin, count, step, factors, state)
    _run_sections(begin + step * (count - 1), count, -step, factors, state)


@compiled()
def live_bandpass_panel(
    panel: np.ndarray, num_rows: int, coefficients: np.ndarray, state: np.ndarray
) -> None:
    """Filter the first rows, at least one, of a panel (num_rows or more, LANES) forward only, in place.

    `coefficients` as for :func:`bandpass_panel`; `state` (2 * SECTIONS, LANES) float64 is updated, so that
    the next call goes on with the following rows.
    """
    _run_sections_on(
        np.int64(panel.ctypes.data),
        np.int64(num_rows),
        np.int64(coefficients.ctypes.data),
        np.int64(state.ctypes.data),
    )


@compiled()
def reference_and_scale_panels(
    panels: np.ndarray,
    first_row: int,
    num_samples: int,
    left_out: np.ndarray,
    gains: np.ndarray,
    offsets: np.ndarray,
    by_channel: np.ndarray,
) -> None:
    """Subtract the median of each sample over some channels, if any, and scale each channel.

    Parameters
    ----------
    panels : ndarray of float32
        (num_panels, num_rows, LANES); the first sample is in row `first_row`.
    left_out : ndarray of float32
        (num_panels, LANES): 0 for channels of the median, and infinity for others.
    gains, offsets : ndarray of float32
        (num_panels * LANES,)
    by_channel : ndarray of float32
        (num_panels * LANES, num_samples in whole LANES), with contiguous samples; filled.
    """
    count = np.sum(left_out == 0)
    row = np.empty((len(panels), LANES), np.float32)
    middles = np.zeros(_BLOCK_SAMPLES, np.float32)
    middle, step = np.float32(0), np.float32(1)
    for begin in range(0, num_samples, _BLOCK_SAMPLES):
        length = min(_BLOCK_SAMPLES, num_samples - begin)
        if count:
            for at in range(length):
                source = np.uint64(first_row + begin + at)
                for panel in range(np.uint64(len(panels))):
                    for lane in range(np.uint64(LANES)):
                        row[panel, lane] = panels[panel, source, lane] + left_out[panel, lane]
                previous = middle
                middle = _median(row.ravel(), count, previous, step)
                step = np.float32(0.9) * step + np.float32(0.1) * abs(middle - previous)
                if not step < _HUGE:  # NaN or infinite: start again
                    middle, step = np.float32(0), np.float32(1)
                middles[at] = middle
        for panel in range(len(panels)):
            channel = panel * LANES
            for at in range(0, length, LANES):
                _transpose_and_scale(
                    np.int64(panels[panel, first_row + begin + at :].ctypes.data),
                    np.int64(4 * LANES),
                    np.int64(middles[at:].ctypes.data),
                    np.int64(gains[channel:].ctypes.data),
                    np.int64(offsets[channel:].ctypes.data),
                    np.int64(by_channel[channel:, begin + at :].ctypes.data),
                    np.int64(by_channel.strides[0]),
                )


@compiled()
def medians_of_rows(rows: np.ndarray, first: int, stop: int, found: np.ndarray) -> None:
    """Fill `found` with the medians of rows `first` to `stop` of float32."""
    count = rows.shape[1]
    row = np.full(LANES * (-(-count // LANES)), np.inf, np.float32)
    some = np.empty(_FIRST_VALUES, np.float32)
    for index in range(first, stop):
        for at in range(count):
            row[at] = rows[index, at]
        guess, step = row[0], np.float32(1)
        if count > _FIRST_VALUES * LANES:  # the median of a few values is near that of all
            for at in range(_FIRST_VALUES):
                some[at] = row[at * (count // _FIRST_VALUES)]
            guess = _median(some, _FIRST_VALUES, guess, step)
            for at in range(_FIRST_VALUES):
                some[at] = abs(some[at] - guess)
            step = np.float32(0.1) * _median(some, _FIRST_VALUES, np.float32(0), np.float32(1))
            step = max(step, np.float32(1e-30))
            if not (abs(guess) < _HUGE and step < _HUGE):
                guess, step = row[0], np.float32(1)
        found[index] = _median(row, count, guess, step)


@compiled()
def _median(row: np.ndarray, count: int, guess: np.float32, step: np.float32) -> np.float32:
    """Return the median of the first `count` values; it is expected about `step` from `guess`.

    The rest of `row` is infinite, up to whole vectors. An interval around the guess is widened until it
    contains the median, then narrowed to a limit between the lower half of the values and the others. Values
    are only counted, many at once.
    """
    half = count // 2
    low, below = _edge(row, guess, -step, (count - 1) // 2)
    high, within = _edge(row, guess, step, half)
    for attempt in range(200):
        share = np.float32((half - below) / (within - below)) if attempt < 4 else np.float32(0.5)
        limit = np.float32(low + (high - low) * min(max(share, np.float32(0.05)), np.float32(0.95)))
        if not low < limit < high:
            limit = np.float32(low + (high - low) * np.float32(0.5))
            if not low < limit < high:
                return low  # no float lies between: all values left are equal
        number = _below(row, limit)
        if number == half:
            upper = _next_to(row, limit, False)
            return upper if count % 2 else np.float32(0.5) * (_next_to(row, limit, True) + upper)
        if number < half:
            low, below = limit, number
        else:
            high, within = limit, number
    return np.float32(np.nan)  # the row has NaN


@compiled()
def _edge(row: np.ndarray, guess: np.float32, step: np.float32, rank: int) -> tuple[np.float32, int]:
    """Return a limit beyond the value of a rank, on the side of `step`, and the number of values below it."""
    step = step if step != 0 else np.float32(1e-30)
    limit = np.float32(guess + step)
    number = _below(row, limit)
    for _ in range(300):
        if (number <= rank) if step < 0 else (number > rank):
            break
        step = np.float32(2) * step
        limit = np.float32(guess + step)
        number = _below(row, limit)
    return limit, number


@compiled()
def _below(row: np.ndarray, limit: np.float32) -> int:
    return int(_count_below(np.int64(row.ctypes.data), np.int64(len(row) // LANES), np.float32(limit)))


@compiled()
def _next_to(row: np.ndarray, limit: np.float32, is_below: bool) -> np.float32:
    return np.float32(_nearest(np.int64(row.ctypes.data), np.int64(len(row) // LANES), limit, is_below))
