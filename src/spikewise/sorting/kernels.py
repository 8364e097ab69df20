"""Products that the network is made of, compiled: layers of a few rows, and the sums of second gates.

All the arithmetic of the sparse path that counts is products of a few rows with a small matrix. It is written
here in vectors of sixteen numbers that stay in a processor's registers, straight from the traces, without
copies: a library's product of this size spends as much again on cutting out what goes into it. LLVM turns the
vectors into what a processor has. The loops take no lock, and a result depends on nothing but its inputs.

Shapes: C channels, B blocks of a tile, N units, M channels of a unit, W samples of a window. Features
come in panels of sixteen: weights (panels, inputs, 16), with zeros where there are fewer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from spikewise import vectors
from spikewise.compiling import compiled

LANES = 16
"""Numbers of a vector."""
ROWS = 4
"""Rows that are multiplied at once: as many chains of additions keep a processor busy."""
SUM_LANES = 8
_VECTOR = ir.VectorType(vectors.FLOAT, LANES)
_SUM_VECTOR = ir.VectorType(vectors.FLOAT, SUM_LANES)


def _write_positive_products(  # type: ignore[no-untyped-def]
    typing_context, one, two, three, four, to_one, to_two, to_three, to_four, length, weight, bias
):
    """Fill 16 features of each of four rows: the positive part of bias (16,) + row @ weight (length, 16).

    All but `length` are addresses.
    """
    signature = types.void(*[types.int64] * 11)

    def write(context: Any, builder: ir.IRBuilder, signature: Any, given: list[ir.Value]) -> ir.Value:
        rows, targets, (length, weight, bias) = given[:ROWS], given[ROWS : 2 * ROWS], given[2 * ROWS :]

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
        for target, total in zip(targets, vectors.count_up(builder, length, start, step), strict=True):
            is_positive = builder.fcmp_ordered(">", total, nothing)
            vectors.store(builder, builder.select(is_positive, total, nothing), target)
        return context.get_dummy_value()

    return signature, write


def _write_weighted_sum(  # type: ignore[no-untyped-def]
    typing_context, values, starts, num_rows, weight, num_vectors, overlap
):
    """Return the sum of rows of values times weight (num_rows, num_vectors, SUM_LANES).

    A row begins at so many values from `values` as `starts` (int64) tells. Its last vector begins `overlap`
    values earlier than the one before ends. All but the numbers are addresses.
    """
    signature = types.float32(*[types.int64] * 6)

    def write(context: Any, builder: ir.IRBuilder, signature: Any, given: list[ir.Value]) -> ir.Value:
        values, starts, num_rows, weight, num_vectors, overlap = given
        last = builder.sub(num_vectors, vectors.number(1))
        back = builder.mul(overlap, vectors.number(4))

        def row(number: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            start = vectors.load(builder, vectors.after(builder, starts, number, 8), vectors.INDEX)
            begin = vectors.after(builder, values, start, 4)
            factors = vectors.after(builder, weight, builder.mul(number, num_vectors), 4 * SUM_LANES)

            def vector(index: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
                place = vectors.after(builder, begin, index, 4 * SUM_LANES)
                is_last = builder.icmp_signed("==", index, last)
                place = builder.select(is_last, builder.sub(place, back), place)
                value = vectors.load(builder, place, _SUM_VECTOR)
                factor = vectors.load(
                    builder, vectors.after(builder, factors, index, 4 * SUM_LANES), _SUM_VECTOR
                )
                return [vectors.multiply_add(builder, value, factor, totals[0])]

            return vectors.count_up(builder, num_vectors, totals, vector)

        (total,) = vectors.count_up(builder, num_rows, [vectors.zeros(_SUM_VECTOR)], row)
        return vectors.folded(builder, total, builder.fadd)

    return signature, write


_positive_products: Any = intrinsic(_write_positive_products)
_weighted_sum: Any = intrinsic(_write_weighted_sum)


def panels(weight: np.ndarray) -> np.ndarray:
    """Return weights (..., inputs, features) as panels (..., panels, inputs, 16) of float32."""
    *outer, num_inputs, num_features = weight.shape
    num_panels = -(-num_features // LANES)
    padded = np.zeros((*outer, num_inputs, num_panels * LANES), np.float32)
    padded[..., :num_features] = weight
    split = padded.reshape(*outer, num_inputs, num_panels, LANES)
    return np.ascontiguousarray(np.moveaxis(split, -2, -3))


def overlapping(weight: np.ndarray) -> np.ndarray:
    """Return weights (..., W) in vectors (..., vectors, SUM_LANES) of which the last ends with the window.

    Where it overlaps the one before, its weights are 0.
    """
    *outer, window = weight.shape
    num_vectors = -(-window // SUM_LANES)
    vectors = np.zeros((*outer, num_vectors, SUM_LANES), np.float32)
    whole = (num_vectors - 1) * SUM_LANES
    vectors[..., :-1, :] = weight[..., :whole].reshape(*outer, -1, SUM_LANES)
    vectors[..., -1, num_vectors * SUM_LANES - window :] = weight[..., whole:]
    return vectors


@compiled()
def close_gates(
    values: np.ndarray,
    step: int,
    block: int,
    channel_index: np.ndarray,
    weight: np.ndarray,
    window: int,
    level: np.ndarray,
    is_open: np.ndarray,
) -> None:
    """Close the gates in the blocks at whose first output the second gate is closed.

    Parameters
    ----------
    values, step
        Sample s of channel c is ``values[c * step + s]``; the window of block b begins at sample b * block.
    channel_index : ndarray
        (N, M)
    weight : ndarray
        (N, M, vectors, SUM_LANES) see :func:`overlapping`.
    window : int
        Samples of a window, no fewer than SUM_LANES.
    level : ndarray
        (N,)
    is_open : ndarray of bool
        (N, B), changed.
    """
    num_units, num_near = channel_index.shape
    num_blocks = is_open.shape[1]
    num_vectors = weight.shape[2]
    overlap = num_vectors * SUM_LANES - window
    starts = np.empty(num_near, np.int64)
    for unit in range(num_units):
        for index in range(num_blocks):
            if is_open[unit, index]:
                for near in range(num_near):
                    starts[near] = channel_index[unit, near] * step + index * block
                score: np.float32 = _weighted_sum(
                    np.int64(values.ctypes.data),
                    np.int64(starts.ctypes.data),
                    np.int64(num_near),
                    np.int64(weight[unit].ctypes.data),
                    np.int64(num_vectors),
                    np.int64(overlap),
                )
                is_open[unit, index] = score > level[unit]


@compiled()
def layer(sources: np.ndarray, targets: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> None:
    """Fill the positive features of four rows, of whose inputs and outputs the addresses are given."""
    for panel in range(weight.shape[0]):
        offset = np.int64(4 * LANES * panel)
        _positive_products(
            sources[0],
            sources[1],
            sources[2],
            sources[3],
            targets[0] + offset,
            targets[1] + offset,
            targets[2] + offset,
            targets[3] + offset,
            np.int64(weight.shape[1]),
            np.int64(weight[panel].ctypes.data),
            np.int64(bias[panel].ctypes.data),
        )


@compiled(fastmath={"reassoc", "contract", "nsz"})
def product(one: np.ndarray, other: np.ndarray) -> np.float32:
    """Return the sum of products."""
    total = np.float32(0)
    for index in range(len(one)):
        total += one[index] * other[index]
    return total
