"""Patches and their extremes, compiled."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from spikewise.core import vectors
from spikewise.core.compiling import compiled

_FROM_HALF, _TO_HALF = np.float32(2.0**112), np.float32(2.0**-112)
"""Ratio of the exponents' offsets of half and single precision."""
LANES = 16
"""Numbers of a vector."""
_AHEAD, _LINE = 3, 64
"""The lines of the cache, of so many bytes, of the window so many patches later are brought near."""
_LARGEST_HALF = np.float32(65504)
_AT_ONCE = 512
"""Samples that are rounded together: they stay in the innermost cache. Chosen by hand."""


def _write_widening(typing_context, halves, singles, count):  # type: ignore[no-untyped-def]
    """Turn `count` vectors in half precision at one address into single precision at another one."""

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        halves, singles, count = arguments
        narrow, wide = (ir.VectorType(ir.IntType(size), LANES) for size in (16, 32))
        single = ir.VectorType(vectors.FLOAT, LANES)

        def constant(value: int) -> ir.Constant:
            return ir.Constant(wide, [value] * LANES)

        def step(index: ir.Value, carried: list[ir.Value]) -> list[ir.Value]:
            half = builder.load(
                builder.inttoptr(vectors.after(builder, halves, index, 2 * LANES), narrow.as_pointer()),
                align=2,
            )
            half = builder.zext(half, wide)
            sign = builder.shl(builder.and_(half, constant(0x8000)), constant(16))
            size = builder.shl(builder.and_(half, constant(0x7FFF)), constant(13))
            scaled = builder.bitcast(builder.or_(sign, size), single)
            value = builder.fmul(scaled, ir.Constant(single, [float(_FROM_HALF)] * LANES))
            vectors.store(builder, value, vectors.after(builder, singles, index, 4 * LANES))
            return carried

        vectors.count_up(builder, count, [], step)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), write


def _write_prefetch(typing_context, address):  # type: ignore[no-untyped-def]
    """Begin to bring the line of the cache at an address near the processor."""

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        pointer, kind = ir.IntType(8).as_pointer(), ir.IntType(32)
        function = builder.module.declare_intrinsic(
            "llvm.prefetch", [pointer], ir.FunctionType(ir.VoidType(), [pointer, kind, kind, kind])
        )
        to_read, soon, of_data = (ir.Constant(kind, value) for value in (0, 3, 1))
        builder.call(function, [builder.inttoptr(arguments[0], pointer), to_read, soon, of_data])
        return context.get_dummy_value()

    return types.void(types.int64), write


_widen: Any = intrinsic(_write_widening)
_prefetch: Any = intrinsic(_write_prefetch)


class Additions(NamedTuple):
    """Templates that are added to patches; each patch has a few places for them.

    Attributes
    ----------
    templates : ndarray of float32
        (num_templates, M, num_samples)
    which : ndarray of int64
        (places, P) the template; -1 for none.
    begin : ndarray of int64
        (places, P) sample of the template that falls on the first sample of the patch.
    amplitude : ndarray of float32
        (places, P)
    """

    templates: np.ndarray
    which: np.ndarray
    begin: np.ndarray
    amplitude: np.ndarray


@compiled()
def fill_halves(values: np.ndarray, halves: np.ndarray) -> None:
    """Round traces to half precision; numbers too large for it become the largest one.

    Parameters
    ----------
    values : ndarray of float32
        (num_channels, num_samples)
    halves : ndarray of uint16
        (num_channels, num_samples) the bits; filled.
    """
    scaled = np.empty(_AT_ONCE, np.float32)
    bits = scaled.view(np.int32)
    for channel in range(len(values)):
        for first in range(0, values.shape[1], _AT_ONCE):
            source = values[channel, first : first + _AT_ONCE]
            target = halves[channel, first : first + _AT_ONCE]
            for sample in range(len(source)):
                limited = max(min(source[sample], _LARGEST_HALF), -_LARGEST_HALF)
                scaled[sample] = limited * _TO_HALF
            for sample in range(len(source)):
                whole = bits[sample]
                to_even = np.int32(0xFFF) + ((whole >> 13) & np.int32(1))
                size = ((whole & np.int32(0x7FFFFFFF)) + to_even) >> 13
                target[sample] = np.uint16(((whole >> 16) & np.int32(0x8000)) | size)


@compiled()
def fill_from_halves(halves: np.ndarray, values: np.ndarray) -> None:
    """Fill `values` (num_channels, num_samples) with traces in half precision, given as their bits."""
    scaled = np.empty(_AT_ONCE, np.float32)
    bits = scaled.view(np.int32)
    for channel in range(len(halves)):
        for first in range(0, halves.shape[1], _AT_ONCE):
            source = halves[channel, first : first + _AT_ONCE]
            target = values[channel, first : first + _AT_ONCE]
            for sample in range(len(source)):
                half = np.int32(source[sample])
                bits[sample] = ((half & np.int32(0x8000)) << 16) | ((half & np.int32(0x7FFF)) << 13)
            for sample in range(len(source)):
                target[sample] = scaled[sample] * _FROM_HALF


@compiled()
def fill_windows(values: np.ndarray, columns: np.ndarray, channels: np.ndarray, windows: np.ndarray) -> None:
    """Cut windows from traces in half precision.

    Parameters
    ----------
    values : ndarray of uint16
        (num_channels, num_columns) the bits of the traces.
    columns : ndarray of int64
        (P,) first column of each window.
    channels : ndarray of int64
        (M,)
    windows : ndarray of float32
        (P, M, W) filled.
    """
    num_near, window = windows.shape[1:]
    if window < LANES:
        for patch in range(len(columns)):
            for near in range(num_near):
                begin = columns[patch]
                source = values[channels[near] : channels[near] + 1, begin : begin + window]
                fill_from_halves(source, windows[patch, near : near + 1])
        return
    first, target = np.int64(values.ctypes.data), np.int64(windows.ctypes.data)
    for patch in range(len(columns)):
        ahead = 2 * (columns[min(patch + _AHEAD, len(columns) - 1)] - columns[patch])
        for near in range(num_near):
            source = first + 2 * (channels[near] * values.shape[1] + columns[patch])
            for line in range(0, 2 * window + _LINE, _LINE):
                _prefetch(source + ahead + min(line, 2 * window - 2))
            _widen(source, target, window // LANES)
            if window % LANES:  # the last vector ends with the window
                _widen(source + 2 * (window - LANES), target + 4 * (window - LANES), 1)
            target += 4 * window


@compiled(fastmath={"contract"})
def add_templates(additions: Additions, first: int, windows: np.ndarray) -> None:
    """Add templates to the patches from `first` on: windows (P, M, W), changed."""
    window, num_samples = windows.shape[2], additions.templates.shape[2]
    for place in range(len(additions.which)):
        for patch in range(len(windows)):
            which = additions.which[place, first + patch]
            if which < 0:
                continue
            begin = additions.begin[place, first + patch]
            low, high = max(0, -begin), min(window, num_samples - begin)
            if low >= high:
                continue
            amplitude = additions.amplitude[place, first + patch]
            for near in range(windows.shape[1]):
                source = additions.templates[which, near, begin + low : begin + high]
                target = windows[patch, near, low:high]
                for sample in range(len(target)):
                    target[sample] += amplitude * source[sample]


@compiled()
def fill_extremes(
    windows: np.ndarray, slots: np.ndarray, first: np.ndarray, block: int, extremes: np.ndarray
) -> None:
    """Find the lowest and the highest values of blocks.

    Parameters
    ----------
    windows : ndarray of float32
        (P, M, W)
    slots : ndarray of int64
        (P,) row of the extremes of each patch; patches beyond the last row are left out.
    first : ndarray of int64
        (rows,) first sample of the first block; samples outside of the window count as its first or last.
    block : int
        Samples of a block.
    extremes : ndarray of float32
        (rows, M, 2, num_blocks), filled.
    """
    window = windows.shape[2]
    for patch in range(len(windows)):
        row = slots[patch]
        if row >= len(extremes):
            continue
        for near in range(windows.shape[1]):
            samples = windows[patch, near]
            for index in range(extremes.shape[3]):
                begin = first[row] + index * block
                low = high = samples[min(max(begin, 0), window - 1)]
                for sample in range(begin, begin + block):
                    value = samples[min(max(sample, 0), window - 1)]
                    low, high = min(low, value), max(high, value)
                extremes[row, near, 0, index] = low
                extremes[row, near, 1, index] = high
