"""Learning the network of one unit, compiled: features of patches, forward and backward products, AdamW.

The networks are so small that a library spends more time on calling its operations than on computing them.
Here all steps of a unit are one compiled loop, which takes no lock. The weights, their gradients and some
rows of features stay in the inner caches of one core. Sums are added in a fixed order, so the result depends
on the inputs only, not on the number of threads.

Shapes: P patches, M channels of a unit, W samples of a window, K inputs of a unit's network (features of all
its channels), H hidden features; features and hidden features come in panels of sixteen
(:mod:`spikewise.sorting.kernels`), with zeros where there are fewer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from spikewise.core import vectors
from spikewise.core.compiling import compiled
from spikewise.sorting.kernels import LANES, ROWS, layer, linear_layer, product

ROWS_AT_ONCE = 64
"""Patches that go forward and backward together, and stay in the innermost caches: a multiple of ROWS. Chosen
by hand."""
_VECTOR = ir.VectorType(vectors.FLOAT, LANES)
_SLOPES = np.float32(0.9), np.float32(0.99)
"""Memory of AdamW for the means of the gradients and of their squares. Chosen by hand."""
_LEAST_ERROR = np.float32(0.005)
"""Patches whose probability is nearer to the truth add nothing to the gradient, and save its computation.
Chosen by hand."""
_LEAST_SLOPE = np.float32(1e-8)
"""Added to the denominator of AdamW."""


def _write_outer_sums(  # type: ignore[no-untyped-def]
    typing_context, rows, offset, count, deltas, sums
):
    """Add to `sums` (ROWS, 16) the products of ROWS neighbouring inputs with deltas (count, 16), summed.

    At `rows` lie the addresses of the rows of inputs; the inputs begin `offset` bytes after them. All but
    `offset` and `count` are addresses.
    """
    signature = types.void(*[types.int64] * 5)

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        rows, offset, count, deltas, sums = arguments
        targets = [vectors.after(builder, sums, row, 4 * LANES) for row in range(ROWS)]

        def step(index: ir.Value, totals: list[ir.Value]) -> list[ir.Value]:
            delta = vectors.load(builder, vectors.after(builder, deltas, index, 4 * LANES), _VECTOR)
            row = vectors.load(builder, vectors.after(builder, rows, index, 8), vectors.INDEX)
            first = builder.add(row, offset)
            values = [
                vectors.load(builder, vectors.after(builder, first, number, 4), vectors.FLOAT)
                for number in range(ROWS)
            ]
            return [
                vectors.multiply_add(builder, vectors.spread(builder, value, LANES), delta, total)
                for value, total in zip(values, totals, strict=True)
            ]

        start = [vectors.load(builder, target, _VECTOR) for target in targets]
        for target, total in zip(targets, vectors.count_up(builder, count, start, step), strict=True):
            vectors.store(builder, total, target)
        return context.get_dummy_value()

    return signature, write


_outer_sums: Any = intrinsic(_write_outer_sums)


class Filters(NamedTuple):
    """The two temporal filters: panels (panels, inputs, 16) and biases (panels, 16) of each."""

    first: tuple[np.ndarray, np.ndarray]
    second: tuple[np.ndarray, np.ndarray]


class Schedule(NamedTuple):
    """The steps of AdamW.

    Attributes
    ----------
    first : ndarray of int64
        (num_steps,) first patch of each batch.
    rate : ndarray of float32
        (num_steps,)
    batch_size : int
    decay : float
        Weight decay.
    """

    first: np.ndarray
    rate: np.ndarray
    batch_size: int
    decay: np.float32


class Weights(NamedTuple):
    """The network of one unit, or anything of its shape.

    Attributes
    ----------
    hidden : ndarray of float32
        (panels, K, 16)
    hidden_bias, last : ndarray of float32
        (panels, 16)
    bias : ndarray of float32
        (1,)
    """

    hidden: np.ndarray
    hidden_bias: np.ndarray
    last: np.ndarray
    bias: np.ndarray


class Rows(NamedTuple):
    """Memory for some rows: hidden features (rows, panels * 16), deltas (panels, rows, 16), addresses."""

    hidden: np.ndarray
    deltas: np.ndarray
    sources: np.ndarray
    targets: np.ndarray


def new_weights(num_panels: int, num_inputs: int) -> Weights:
    """Return weights that are 0."""
    return Weights(
        np.zeros((num_panels, num_inputs, LANES), np.float32),
        np.zeros((num_panels, LANES), np.float32),
        np.zeros((num_panels, LANES), np.float32),
        np.zeros(1, np.float32),
    )


def new_rows(num_panels: int) -> Rows:
    """Return memory for ROWS_AT_ONCE rows."""
    return Rows(
        np.zeros((ROWS_AT_ONCE, num_panels * LANES), np.float32),
        np.zeros((num_panels, ROWS_AT_ONCE, LANES), np.float32),
        np.zeros(ROWS_AT_ONCE, np.int64),
        np.zeros(ROWS_AT_ONCE, np.int64),
    )


@compiled()
def fill_features(
    windows: np.ndarray, slots: np.ndarray, filters: Filters, between: np.ndarray, features: np.ndarray
) -> None:
    """Compute the features of patches.

    Parameters
    ----------
    windows : ndarray of float32
        (P, M, W)
    slots : ndarray of int64
        (P,) row of the features of each patch.
    filters : Filters
    between : ndarray of float32
        (M rounded up to ROWS, features of the first filter in whole panels): memory.
    features : ndarray of float32
        (rows, M * F), F features of the second filter in whole panels; filled.
    """
    num_patches, num_near, num_rows = len(windows), windows.shape[1], len(between)
    of_between = np.empty(num_rows, np.int64)
    sources, targets = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
    for row in range(num_rows):
        of_between[row] = np.int64(between.ctypes.data) + 4 * row * between.shape[1]
    for patch in range(num_patches):
        _address_channels(windows[patch], sources)
        _address_channels(features[slots[patch]].reshape(num_near, -1), targets)
        layer(sources, of_between, num_rows, filters.first[0], filters.first[1])
        layer(of_between, targets, num_rows, filters.second[0], filters.second[1])


@compiled()
def fill_filtered(
    windows: np.ndarray, slots: np.ndarray, weight: np.ndarray, no_bias: np.ndarray, filtered: np.ndarray
) -> None:
    """Apply the first filter alone to patches (P, M, W): `filtered` (rows, M * F1), F1 in whole panels.

    `slots` (P,) holds the row of each patch; those beyond the last row are left out.
    """
    num_near = windows.shape[1]
    num_rows = -(-num_near // ROWS) * ROWS
    sources, targets = np.empty(num_rows, np.int64), np.empty(num_rows, np.int64)
    for patch in range(len(windows)):
        if slots[patch] >= len(filtered):
            continue
        _address_channels(windows[patch], sources)
        _address_channels(filtered[slots[patch]].reshape(num_near, -1), targets)
        linear_layer(sources, targets, num_rows, weight, no_bias)


@compiled()
def _address_channels(values: np.ndarray, addresses: np.ndarray) -> None:
    """Fill in the addresses of the rows of values, and that of the last row once more for the rest."""
    for row in range(len(addresses)):
        near = min(row, len(values) - 1)
        addresses[row] = np.int64(values.ctypes.data) + 4 * near * values.shape[1]


@compiled()
def _fill_hidden(features: np.ndarray, first: int, count: int, weights: Weights, rows: Rows) -> None:
    """Compute the hidden features of `count` patches from `first` on; rows up to whole ROWS are repeated."""
    width = rows.hidden.shape[1]
    whole = -(-count // ROWS) * ROWS
    for row in range(whole):
        patch = first + min(row, count - 1)
        rows.sources[row] = np.int64(features.ctypes.data) + 4 * patch * features.shape[1]
        rows.targets[row] = np.int64(rows.hidden.ctypes.data) + 4 * row * width
    layer(rows.sources, rows.targets, whole, weights.hidden, weights.hidden_bias)


@compiled(fastmath={"reassoc", "contract", "nsz"})
def fill_logits(features: np.ndarray, weights: Weights, rows: Rows, logits: np.ndarray) -> None:
    """Compute the logits (P,) of patches from their features (P, K)."""
    last = weights.last.ravel()
    for first in range(0, len(logits), ROWS_AT_ONCE):
        count = min(ROWS_AT_ONCE, len(logits) - first)
        _fill_hidden(features, first, count, weights, rows)
        for row in range(count):
            logits[first + row] = weights.bias[0] + product(rows.hidden[row], last)


@compiled(fastmath={"reassoc", "contract", "nsz"})
def _add_gradient(
    features: np.ndarray,
    targets: np.ndarray,
    importance: np.ndarray,
    span: tuple[int, int],
    weights: Weights,
    gradient: Weights,
    rows: Rows,
) -> np.float32:
    """Add the gradient of the loss of the patches of a span; return the loss, weighted by importance."""
    first, count = span[0], span[1] - span[0]
    _fill_hidden(features, first, count, weights, rows)
    num_panels, last, loss, used = len(weights.last), weights.last.ravel(), np.float32(0), 0
    for row in range(count):
        hidden, target, share = rows.hidden[row], targets[first + row], importance[first + row]
        logit = weights.bias[0] + product(hidden, last)
        decay = np.exp(-abs(logit))
        loss += share * (max(logit, np.float32(0)) - logit * target + np.log(np.float32(1) + decay))
        one = np.float32(1) if logit >= 0 else decay
        error = one / (np.float32(1) + decay) - target
        if abs(error) < _LEAST_ERROR:
            continue
        delta = share * error
        gradient.bias[0] += delta
        for panel in range(num_panels):
            for lane in range(LANES):
                value = hidden[panel * LANES + lane]
                gradient.last[panel, lane] += delta * value
                below = delta * weights.last[panel, lane] if value > 0 else np.float32(0)
                rows.deltas[panel, used, lane] = below
                gradient.hidden_bias[panel, lane] += below
        rows.sources[used] = rows.sources[row]
        used += 1
    if used:
        for begin in range(0, features.shape[1], ROWS):
            for panel in range(num_panels):
                _outer_sums(
                    np.int64(rows.sources.ctypes.data),
                    np.int64(4 * begin),
                    np.int64(used),
                    np.int64(rows.deltas[panel].ctypes.data),
                    np.int64(gradient.hidden[panel, begin:].ctypes.data),
                )
    return loss


@compiled(fastmath={"contract", "nsz"}, error_model="numpy")
def _adam(
    values: np.ndarray,
    gradient: np.ndarray,
    mean: np.ndarray,
    square: np.ndarray,
    scale: tuple[np.float32, np.float32, np.float32],
) -> None:
    """Do a step of AdamW with flat arrays and set the gradient to 0.

    `scale` holds what is left of the values after decay, the step, and the factor of the squares.
    """
    left, step, of_square = scale
    fast, slow = _SLOPES
    for index in range(len(values)):
        slope = gradient[index]
        gradient[index] = np.float32(0)
        mean[index] = fast * mean[index] + (np.float32(1) - fast) * slope
        square[index] = slow * square[index] + (np.float32(1) - slow) * slope * slope
        size = np.sqrt(square[index] * of_square) + _LEAST_SLOPE
        values[index] = left * values[index] - step * mean[index] / size


@compiled()
def train_unit(
    features: np.ndarray,
    targets: np.ndarray,
    importance: np.ndarray,
    schedule: Schedule,
    weights: Weights,
    memory: tuple[Weights, Weights, Weights],
    rows: Rows,
) -> np.float32:
    """Train the network of a unit in place; return the loss over the last tenth of the steps.

    Parameters
    ----------
    features : ndarray of float32
        (P, K); K is a multiple of ROWS.
    targets : ndarray of float32
        (P,)
    importance : ndarray of float32
        (P,) weight of the loss of each patch, divided by the size of a batch.
    schedule : Schedule
    weights : Weights
    memory : (Weights, Weights, Weights)
        Gradient and moments; all 0 before.
    rows : Rows
    """
    gradient, mean, square = memory
    num_steps = len(schedule.first)
    num_last, loss = max(1, num_steps // 10), np.float32(0)
    of_mean, of_square = np.float32(1), np.float32(1)
    for step in range(num_steps):
        begin, of_step = schedule.first[step], np.float32(0)
        end = begin + schedule.batch_size
        for first in range(begin, end, ROWS_AT_ONCE):
            span = (first, min(first + ROWS_AT_ONCE, end))
            of_step += _add_gradient(features, targets, importance, span, weights, gradient, rows)
        of_mean, of_square = of_mean * _SLOPES[0], of_square * _SLOPES[1]
        rate = schedule.rate[step]
        scale = (
            np.float32(np.float32(1) - rate * schedule.decay),
            np.float32(rate / (np.float32(1) - of_mean)),
            np.float32(np.float32(1) / (np.float32(1) - of_square)),
        )
        _adam(
            weights.hidden.ravel(), gradient.hidden.ravel(), mean.hidden.ravel(), square.hidden.ravel(), scale
        )
        _adam(
            weights.hidden_bias.ravel(),
            gradient.hidden_bias.ravel(),
            mean.hidden_bias.ravel(),
            square.hidden_bias.ravel(),
            scale,
        )
        _adam(weights.last.ravel(), gradient.last.ravel(), mean.last.ravel(), square.last.ravel(), scale)
        _adam(weights.bias, gradient.bias, mean.bias, square.bias, scale)
        if step >= num_steps - num_last:
            loss += of_step / np.float32(num_last)
    return loss
