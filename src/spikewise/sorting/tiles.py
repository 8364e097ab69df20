"""The network on one tile, where gates are open: one compiled loop over the units.

Unit after unit goes through all the steps. Units come in an order in which those that see the same channels
follow each other, so that the samples that one has read are still in a processor's cache for the next. Of the
features of a channel at a moment nine in ten are asked for by one unit only (384 channels, 200 units): each
computes its own, in rows that stay in the innermost cache, instead of looking up what others have computed.

Shapes: C channels, B blocks of a tile, N units, M channels of a unit, Q outputs of a block, F features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from spikewise.core import vectors
from spikewise.core.compiling import compiled
from spikewise.sorting.kernels import ROWS, close_gates, layer, product
from spikewise.sorting.loops import block_extremes, keep_promising, open_gates

AT_ONCE = 8
"""Moments of a unit that are computed together, whole ROWS."""
GATES, TEMPORAL, ALL = 0, 1, 2
"""What is timed, in ticks of the processor: gates, features of channels, and the whole."""
OPENED, LOOKED_CLOSER, CHANNEL_OUTPUTS, UNIT_OUTPUTS = 0, 1, 2, 3
"""What is counted: blocks behind first gates, behind them second gates, and what is computed."""


class Network(NamedTuple):
    """Weights of a network as the loop reads them.

    Attributes
    ----------
    channel_index : ndarray
        (N, M)
    gate : (ndarray, ndarray)
        Weights (N, M, 2, 3) and levels (N,) of the first gates.
    closer_gate : (ndarray, ndarray)
        Weights (N, rows, vectors, 8), see :func:`spikewise.sorting.kernels.overlapping`, and levels (N,).
    first, second : (ndarray, ndarray)
        Panels of the two filters, (panels, inputs, 16), and their biases (panels, 16).
    hidden : (ndarray, ndarray)
        Panels (N, panels, M * F, 16) of the hidden features of units, and their biases (N, panels, 16).
    last : (ndarray, ndarray)
        Weights (N, panels * 16) and biases (N,) of the logits.
    """

    channel_index: np.ndarray
    gate: tuple[np.ndarray, np.ndarray]
    closer_gate: tuple[np.ndarray, np.ndarray]
    first: tuple[np.ndarray, np.ndarray]
    second: tuple[np.ndarray, np.ndarray]
    hidden: tuple[np.ndarray, np.ndarray]
    last: tuple[np.ndarray, np.ndarray]


class Grid(NamedTuple):
    """Where the outputs of a tile lie, in samples.

    Attributes
    ----------
    begin : int
        Sample at which begins what the first gates look at: two blocks before the first.
    block, stride, window : int
        Samples of a block, from one output to the next, and of a window.
    """

    begin: int
    block: int
    stride: int
    window: int


class Space(NamedTuple):
    """Memory to work in.

    Attributes
    ----------
    extremes : ndarray of float32
        (C, 2, B + 4)
    is_open : ndarray of bool
        (N, B) where units are asked, in the end.
    probabilities : ndarray of float32
        (Q, N, B), filled where they are.
    between : ndarray of float32
        (AT_ONCE * M, ...) features of the first filter of a channel.
    inputs, made : ndarray of float32
        (AT_ONCE, ...) features of all channels that a unit sees, and its hidden features.
    """

    extremes: np.ndarray
    is_open: np.ndarray
    probabilities: np.ndarray
    between: np.ndarray
    inputs: np.ndarray
    made: np.ndarray


def _write_ticks(typing_context):  # type: ignore[no-untyped-def]
    """Return a clock of the processor."""

    def write(context: Any, builder: ir.IRBuilder, signature: Any, given: list[ir.Value]) -> ir.Value:
        return vectors.ticks(builder)

    return types.int64(), write


_ticks: Any = intrinsic(_write_ticks)


@compiled()
def answer_tile(
    values: np.ndarray,
    step: int,
    network: Network,
    grid: Grid,
    glimpse: np.float32,
    space: Space,
    counts: np.ndarray,
    ticks: np.ndarray,
) -> None:
    """Compute the probabilities of a tile in the blocks in which its units are asked.

    Parameters
    ----------
    values, step
        Sample s of channel c is ``values[c * step + s]``.
    network, grid, space
    glimpse : float
        Probability at the first moment of a block from which on all its moments are looked at; below 0 where
        all are looked at anyway.
    counts : ndarray of int64
        (4,) see :data:`OPENED`; added to.
    ticks : ndarray of int64
        (3,) see :data:`GATES`, added to; or none, where it is not timed.
    """
    num_outputs, num_units, num_blocks = space.probabilities.shape
    is_timed = len(ticks) > 0
    begun = _now(is_timed)
    is_seen = np.zeros(len(space.extremes), np.bool_)
    is_known, is_none = np.empty((1, num_blocks), np.bool_), np.zeros(num_blocks, np.bool_)
    moments = np.empty((num_outputs * num_blocks, 2), np.int64)
    for unit in range(num_units):
        started = _now(is_timed)
        one = slice(unit, unit + 1)
        channels, is_open = network.channel_index[one], space.is_open[one]
        for channel in channels[0]:
            if not is_seen[channel]:
                is_seen[channel] = True
                extremes = space.extremes[channel : channel + 1]
                block_extremes(values[channel * step :], step, grid.begin, grid.block, extremes)
        weight, level = network.gate
        open_gates(space.extremes, channels, weight[one], level[one], is_open)
        num_open = 0
        for index in range(num_blocks):
            num_open += is_open[0, index]
            is_known[0, index] = glimpse >= 0 and is_open[0, index]
        counts[OPENED] += num_open
        if num_open and glimpse >= 0:
            weight, level = network.closer_gate
            close_gates(values, step, grid.block, channels, weight[one], grid.window, level[one], is_known)
            counts[LOOKED_CLOSER] += num_open
        if is_timed:
            ticks[GATES] += _now(is_timed) - started
        if num_open == 0:
            continue
        if glimpse >= 0:
            count = _add_moments(is_known[0], is_none, 0, moments, 0)
            _answer(values, step, network, grid, unit, moments[:count], space, counts, ticks)
            keep_promising(is_open, is_known, space.probabilities[0, one], glimpse)
        count = _add_moments(is_open[0], is_known[0], 0, moments, 0)
        for output in range(1, num_outputs):
            count = _add_moments(is_open[0], is_none, output, moments, count)
        _answer(values, step, network, grid, unit, moments[:count], space, counts, ticks)
    if is_timed:
        ticks[ALL] += _now(is_timed) - begun


@compiled()
def _now(is_timed: bool) -> int:
    return int(_ticks()) if is_timed else 0


@compiled()
def _add_moments(
    is_asked: np.ndarray, is_known: np.ndarray, output: int, moments: np.ndarray, count: int
) -> int:
    """Add an output of the blocks (B,) asked and not known after `count` moments; return their number."""
    for block in range(len(is_asked)):
        if is_asked[block] and not is_known[block]:
            moments[count, 0], moments[count, 1] = output, block
            count += 1
    return count


@compiled()
def _answer(
    values: np.ndarray,
    step: int,
    network: Network,
    grid: Grid,
    unit: int,
    moments: np.ndarray,
    space: Space,
    counts: np.ndarray,
    ticks: np.ndarray,
) -> None:
    """Compute the probabilities of a unit at moments (count, 2): output and block."""
    is_timed = len(ticks) > 0
    channels = network.channel_index[unit]
    num_near, num_features = len(channels), network.second[1].size
    weight, bias = network.last[0][unit], network.last[1][unit]
    sources, targets = np.empty(AT_ONCE * num_near, np.int64), np.empty(AT_ONCE * num_near, np.int64)
    of_between = _addresses(space.between)
    of_inputs, of_made = _addresses(space.inputs), _addresses(space.made)
    for begin in range(0, len(moments), AT_ONCE):
        started = _now(is_timed)
        together = min(AT_ONCE, len(moments) - begin)
        for row in range(together):
            output, block = moments[begin + row, 0], moments[begin + row, 1]
            start = np.int64(values.ctypes.data) + 4 * (output * grid.stride + block * grid.block)
            for near in range(num_near):
                sources[row * num_near + near] = start + 4 * channels[near] * step
                targets[row * num_near + near] = of_inputs[row] + 4 * near * num_features
        num_rows = together * num_near
        while num_rows % ROWS:  # the last once more
            sources[num_rows], targets[num_rows] = sources[num_rows - 1], targets[num_rows - 1]
            num_rows += 1
        layer(sources, of_between, num_rows, network.first[0], network.first[1])
        layer(of_between, targets, num_rows, network.second[0], network.second[1])
        if is_timed:
            ticks[TEMPORAL] += _now(is_timed) - started
        whole = -(-together // ROWS) * ROWS  # of those that are too many the answer is left
        layer(of_inputs, of_made, whole, network.hidden[0][unit], network.hidden[1][unit])
        for row in range(together):
            logit = bias + product(space.made[row], weight)
            output, block = moments[begin + row, 0], moments[begin + row, 1]
            space.probabilities[output, unit, block] = np.float32(1) / (np.float32(1) + np.exp(-logit))
    counts[CHANNEL_OUTPUTS] += len(moments) * num_near
    counts[UNIT_OUTPUTS] += len(moments)


@compiled()
def _addresses(rows: np.ndarray) -> np.ndarray:
    """Return the address of each row."""
    addresses = np.empty(len(rows), np.int64)
    for row in range(len(rows)):
        addresses[row] = np.int64(rows.ctypes.data) + 4 * row * rows.shape[1]
    return addresses


@compiled()
def asked_of(
    is_open: np.ndarray, probabilities: np.ndarray, place: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit, block and probabilities (count, Q) where units are asked, by unit, then block.

    `place` (N,) tells which row of `is_open` (N, B) and `probabilities` (Q, N, B) is a unit's.
    """
    count = 0
    for row in range(len(is_open)):
        for index in range(is_open.shape[1]):
            count += is_open[row, index]
    unit_index, block = np.empty(count, np.int64), np.empty(count, np.int64)
    found = np.empty((count, len(probabilities)), np.float32)
    at = 0
    for unit in range(len(place)):
        row = place[unit]
        for index in range(is_open.shape[1]):
            if is_open[row, index]:
                unit_index[at], block[at] = unit, index
                for output in range(len(probabilities)):
                    found[at, output] = probabilities[output, row, index]
                at += 1
    return unit_index, block, found
