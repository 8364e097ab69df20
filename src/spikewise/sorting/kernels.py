"""Products that the network is made of, compiled: layers of a few rows, and the sums of second gates.

Most of the arithmetic of the sparse path is products of a few rows with a small matrix. They are written here
with vectors of sixteen numbers that stay in a processor's registers. They read the traces without copies: a
library's product of this size spends as much time again on cutting out its inputs. LLVM translates the
vectors into the instructions of the processor. The loops take no lock, and a result depends on its inputs
only.

Shapes: C channels, B blocks of a tile, N units, M channels of a unit, W samples of a window. Features
come in panels of sixteen: weights (panels, inputs, 16), with zeros where there are fewer.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from spikewise.core import vectors
from spikewise.core.compiling import compiled

LANES = 16
"""Numbers of a vector."""
ROWS = 4
"""Rows that are multiplied at once: as many chains of additions keep a processor busy."""
SUM_LANES = 8
"""Numbers of a vector in the sums of second gates."""
_VECTOR = ir.VectorType(vectors.FLOAT, LANES)
_SUM_VECTOR = ir.VectorType(vectors.FLOAT, SUM_LANES)


def _write_products(is_positive_part: bool) -> Callable[..., Any]:
    """Write products of rows: all of them, or their positive parts."""

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        sources, targets, offset, length, weight, bias = arguments
        rows, targets_of_rows = (
            [
                vectors.load(builder, vectors.after(builder, addresses, row, 8), vectors.INDEX)
                for row in range(ROWS)
            ]
            for addresses in (sources, targets)
        )

        def step(index: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            factor = vectors.load(builder, vectors.after(builder, weight, index, 4 * LANES), _VECTOR)
            values = [
                vectors.load(builder, vectors.after(builder, row, index, 4), vectors.FLOAT) for row in rows
            ]
            return [
                vectors.multiply_add(builder, vectors.spread(builder, value, LANES), factor, total)
                for value, total in zip(values, totals, strict=True)
            ]

        start = [vectors.load(builder, bias, _VECTOR)] * ROWS
        nothing = vectors.zeros(_VECTOR)
        for address, total in zip(
            targets_of_rows, vectors.count_up(builder, length, start, step), strict=True
        ):
            target = builder.add(address, offset)
            if is_positive_part:
                total = builder.select(builder.fcmp_ordered(">", total, nothing), total, nothing)
            vectors.store(builder, total, target)
        return context.get_dummy_value()

    return write


def _write_positive_products(  # type: ignore[no-untyped-def]
    typing_context, sources, targets, offset, length, weight, bias
):
    """Fill 16 features of each of ROWS rows: the positive part of bias (16,) + row @ weight (length, 16).

    At `sources` and `targets` lie the addresses of the rows; features go `offset` bytes after a target.
    All but `offset` and `length` are addresses.
    """
    return types.void(*[types.int64] * 6), _write_products(True)


def _write_linear_products(  # type: ignore[no-untyped-def]
    typing_context, sources, targets, offset, length, weight, bias
):
    """Fill 16 features of each of ROWS rows as above, with their negative parts."""
    return types.void(*[types.int64] * 6), _write_products(False)


def _write_weighted_sum(  # type: ignore[no-untyped-def]
    typing_context, values, starts, num_rows, weight, num_vectors, overlap
):
    """Return the sum of rows of values times weight (num_rows, num_vectors, SUM_LANES).

    `starts` (int64) holds the first value of each row, counted from `values`. Its last vector begins
    `overlap` values earlier than the one before ends. All but the numbers are addresses; rows are whole ROWS.
    """
    signature = types.float32(*[types.int64] * 6)

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        values, starts, num_rows, weight, num_vectors, overlap = arguments
        last = builder.sub(num_vectors, vectors.number(1))
        back = builder.mul(overlap, vectors.number(4))
        row_bytes = builder.mul(num_vectors, vectors.number(4 * SUM_LANES))

        def rows(number: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            first = builder.mul(number, vectors.number(ROWS))
            begins, factors = [], []
            for row in range(ROWS):
                index = builder.add(first, vectors.number(row))
                start = vectors.load(builder, vectors.after(builder, starts, index, 8), vectors.INDEX)
                begins.append(vectors.after(builder, values, start, 4))
                factors.append(builder.add(weight, builder.mul(index, row_bytes)))

            def vector(index: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
                is_last = builder.icmp_signed("==", index, last)
                along = vectors.after(builder, vectors.number(0), index, 4 * SUM_LANES)
                of_row = builder.select(is_last, builder.sub(along, back), along)
                return [
                    vectors.multiply_add(
                        builder,
                        vectors.load(builder, builder.add(begin, of_row), _SUM_VECTOR),
                        vectors.load(builder, builder.add(factor, along), _SUM_VECTOR),
                        total,
                    )
                    for begin, factor, total in zip(begins, factors, totals, strict=True)
                ]

            return vectors.count_up(builder, num_vectors, totals, vector)

        start = [vectors.zeros(_SUM_VECTOR)] * ROWS
        groups = builder.sdiv(num_rows, vectors.number(ROWS))
        total = functools.reduce(builder.fadd, vectors.count_up(builder, groups, start, rows))
        return vectors.folded(builder, total, builder.fadd)

    return signature, write


_positive_products: Any = intrinsic(_write_positive_products)
_linear_products: Any = intrinsic(_write_linear_products)
_weighted_sum: Any = intrinsic(_write_weighted_sum)


class Samples(NamedTuple):
    """Samples of some channels: sample s of channel c is ``values[c * step + s]``.

    Attributes
    ----------
    values : ndarray of float32
        One-dimensional.
    step : int
        Values from one channel to the next.
    """

    values: np.ndarray
    step: int


def panels(weight: np.ndarray) -> np.ndarray:
    """Return weights (..., inputs, features) as panels (..., panels, inputs, 16) of float32."""
    *outer, num_inputs, num_features = weight.shape
    num_panels = -(-num_features // LANES)
    padded = np.zeros((*outer, num_inputs, num_panels * LANES), np.float32)
    padded[..., :num_features] = weight
    split = padded.reshape(*outer, num_inputs, num_panels, LANES)
    return np.ascontiguousarray(np.moveaxis(split, -2, -3))


def overlapping(weight: np.ndarray) -> np.ndarray:
    """Return weights (N, M, W) in vectors (N, rows, vectors, SUM_LANES), the last of which ends the window.

    Where it overlaps the one before, its weights are 0, as they are in the rows after M, up to whole ROWS.
    """
    num_units, num_near, window = weight.shape
    num_vectors = -(-window // SUM_LANES)
    split = np.zeros((num_units, -(-num_near // ROWS) * ROWS, num_vectors, SUM_LANES), np.float32)
    whole = (num_vectors - 1) * SUM_LANES
    split[:, :num_near, :-1] = weight[:, :, :whole].reshape(num_units, num_near, -1, SUM_LANES)
    split[:, :num_near, -1, num_vectors * SUM_LANES - window :] = weight[:, :, whole:]
    return split


@compiled()
def close_gates(
    samples: Samples,
    block: int,
    channel_index: np.ndarray,
    weight: np.ndarray,
    window: int,
    level: np.ndarray,
    is_open: np.ndarray,
) -> None:
    """Close the gates in the blocks where the second gate is closed at the first output.

    Parameters
    ----------
    samples : Samples
        The window of block b begins at sample b * block.
    channel_index : ndarray
        (N, M)
    weight : ndarray
        (N, rows, vectors, SUM_LANES) see :func:`overlapping`.
    window : int
        Samples of a window, no fewer than SUM_LANES.
    level : ndarray
        (N,)
    is_open : ndarray of bool
        (N, B), changed.
    """
    num_units, num_near = channel_index.shape
    num_blocks = is_open.shape[1]
    num_rows, num_vectors = weight.shape[1:3]
    overlap = num_vectors * SUM_LANES - window
    starts = np.empty(num_rows, np.int64)
    for unit in range(num_units):
        for index in range(num_blocks):
            if is_open[unit, index]:
                for row in range(num_rows):
                    near = row if row < num_near else 0
                    starts[row] = channel_index[unit, near] * samples.step + index * block
                score: np.float32 = _weighted_sum(
                    np.int64(samples.values.ctypes.data),
                    np.int64(starts.ctypes.data),
                    np.int64(num_rows),
                    np.int64(weight[unit].ctypes.data),
                    np.int64(num_vectors),
                    np.int64(overlap),
                )
                is_open[unit, index] = score > level[unit]


@compiled()
def layer(
    sources: np.ndarray, targets: np.ndarray, num_rows: int, weight: np.ndarray, bias: np.ndarray
) -> None:
    """Fill the positive features of rows, whole ROWS, whose inputs and outputs lie at the given addresses.

    The calling loop must not allocate the arrays at these addresses itself: it frees an array after the last
    line that names it.
    """
    for panel in range(weight.shape[0]):
        offset, length = np.int64(4 * LANES * panel), np.int64(weight.shape[1])
        of_weight, of_bias = np.int64(weight[panel].ctypes.data), np.int64(bias[panel].ctypes.data)
        for row in range(0, num_rows, ROWS):
            _positive_products(
                np.int64(sources[row:].ctypes.data),
                np.int64(targets[row:].ctypes.data),
                offset,
                length,
                of_weight,
                of_bias,
            )


@compiled()
def linear_layer(
    sources: np.ndarray, targets: np.ndarray, num_rows: int, weight: np.ndarray, bias: np.ndarray
) -> None:
    """Fill the features of rows as :func:`layer` does, with their negative parts."""
    for panel in range(weight.shape[0]):
        offset, length = np.int64(4 * LANES * panel), np.int64(weight.shape[1])
        of_weight, of_bias = np.int64(weight[panel].ctypes.data), np.int64(bias[panel].ctypes.data)
        for row in range(0, num_rows, ROWS):
            _linear_products(
                np.int64(sources[row:].ctypes.data),
                np.int64(targets[row:].ctypes.data),
                offset,
                length,
                of_weight,
                of_bias,
            )


@compiled(fastmath={"reassoc", "contract", "nsz"})
def product(one: np.ndarray, other: np.ndarray) -> np.float32:
    """Return the sum of products."""
    total = np.float32(0)
    for index in range(len(one)):
        total += one[index] * other[index]
    return total
