"""The network on one tile, where gates are open: one compiled loop over the units.

Unit after unit goes through all the steps. Units come in an order in which those that see the same channels
follow each other, so that what one has read or computed is still in a processor's cache for the next: the
samples of a channel are looked at when the first unit needs them, and its features are computed when they are
first asked for, into memory that is filled from its start.

Shapes: C channels, B blocks of a tile, N units, M channels of a unit, Q outputs of a block, F features.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from spikewise import vectors
from spikewise.compiling import compiled
from spikewise.sorting.compiled import block_extremes, keep_promising, open_gates
from spikewise.sorting.kernels import ROWS, close_gates, layer, product

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
    features : ndarray of float32
        (Q * C * B, F)
    row : ndarray of int32
        (Q, C, B) row of `features`; -1 where none is computed.
    is_open : ndarray of bool
        (N, B) where units are asked, in the end.
    probabilities : ndarray of float32
        (Q, N, B), filled where they are.
    """

    extremes: np.ndarray
    features: np.ndarray
    row: np.ndarray
    is_open: np.ndarray
    probabilities: np.ndarray


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
    is_known, is_asked = np.empty((1, num_blocks), np.bool_), np.empty(num_blocks, np.bool_)
    num_rows = 0
    for unit in range(num_units):
        started = _now(is_timed)
        one = slice(unit, unit + 1)
        channels, is_open = network.channel_index[one], space.is_open[one]
        for channel in channels[0]:
            if not is_seen[channel]:
                is_seen[channel] = True
                space.row[:, channel] = -1
                extremes = space.extremes[channel : channel + 1]
                block_extremes(values[channel * step :], step, grid.begin, grid.block, extremes)
        weight, level = network.gate
        open_gates(space.extremes, channels, weight[one], level[one], is_open)
        num_open = np.sum(is_open)
        counts[OPENED] += num_open
        is_known[:] = False
        if num_open and glimpse >= 0:
            is_known[:] = is_open
            weight, level = network.closer_gate
            close_gates(values, step, grid.block, channels, weight[one], grid.window, level[one], is_known)
            counts[LOOKED_CLOSER] += num_open
        if is_timed:
            ticks[GATES] += _now(is_timed) - started
        if num_open == 0:
            continue
        if glimpse >= 0:
            num_rows = _answer(
                values, step, network, grid, unit, 0, is_known[0], num_rows, space, counts, ticks
            )
            keep_promising(is_open, is_known, space.probabilities[0, one], glimpse)
        for output in range(num_outputs):
            is_asked[:] = is_open[0]
            if output == 0:
                is_asked &= ~is_known[0]
            num_rows = _answer(
                values, step, network, grid, unit, output, is_asked, num_rows, space, counts, ticks
            )
    if is_timed:
        ticks[ALL] += _now(is_timed) - begun


@compiled()
def _now(is_timed: bool) -> int:
    return int(_ticks()) if is_timed else 0


@compiled()
def _answer(
    values: np.ndarray,
    step: int,
    network: Network,
    grid: Grid,
    unit: int,
    output: int,
    is_asked: np.ndarray,
    num_rows: int,
    space: Space,
    counts: np.ndarray,
    ticks: np.ndarray,
) -> int:
    """Compute one output of a unit in the blocks (B,) in which it is asked; return the rows there are."""
    blocks = np.flatnonzero(is_asked)
    if len(blocks) == 0:
        return num_rows
    is_timed = len(ticks) > 0
    started = _now(is_timed)
    begin, row = output * grid.stride, space.row[output]
    channels = network.channel_index[unit]
    after = _make_features(
        values, step, begin, grid.block, channels, blocks, network, row, num_rows, space.features
    )
    if is_timed:
        ticks[TEMPORAL] += _now(is_timed) - started
    _answer_unit(network, unit, channels, blocks, row, space.features, space.probabilities[output, unit])
    counts[CHANNEL_OUTPUTS] += after - num_rows
    counts[UNIT_OUTPUTS] += len(blocks)
    return after


@compiled()
def _make_features(
    values: np.ndarray,
    step: int,
    begin: int,
    block: int,
    channels: np.ndarray,
    blocks: np.ndarray,
    network: Network,
    row: np.ndarray,
    num_rows: int,
    features: np.ndarray,
) -> int:
    """Compute the features of channels at blocks that have none yet; return how many rows there are then.

    The window of block b begins at sample ``begin + b * block``.
    """
    first, second = network.first, network.second
    size = np.int64(4 * features.shape[1])
    target = np.int64(features.ctypes.data)
    hidden = np.empty((ROWS, first[1].size), np.float32)
    between = np.int64(hidden.ctypes.data) + np.arange(ROWS) * np.int64(4 * hidden.shape[1])
    spare = np.empty(features.shape[1], np.float32)
    sources, targets = np.empty(ROWS, np.int64), np.empty(ROWS, np.int64)
    waiting = 0
    for channel in channels:
        source = np.int64(values.ctypes.data) + 4 * (channel * step + begin)
        of_channel = row[channel]
        for index in blocks:
            if of_channel[index] < 0:
                of_channel[index] = num_rows
                sources[waiting] = source + 4 * index * block
                targets[waiting] = target + size * num_rows
                num_rows += 1
                waiting += 1
                if waiting == ROWS:
                    layer(sources, between, first[0], first[1])
                    layer(between, targets, second[0], second[1])
                    waiting = 0
    if waiting:
        sources[waiting:] = sources[0]
        targets[waiting:] = np.int64(spare.ctypes.data)
        layer(sources, between, first[0], first[1])
        layer(between, targets, second[0], second[1])
    return num_rows


@compiled()
def _answer_unit(
    network: Network,
    unit: int,
    channels: np.ndarray,
    blocks: np.ndarray,
    row: np.ndarray,
    features: np.ndarray,
    probabilities: np.ndarray,
) -> None:
    """Compute the probabilities (B,) of a unit at some blocks from the features of its channels."""
    num_features = np.uint64(features.shape[1])
    hidden, hidden_bias = network.hidden[0][unit], network.hidden[1][unit]
    weight, bias = network.last[0][unit], network.last[1][unit]
    inputs = np.empty((ROWS, len(channels) * features.shape[1]), np.float32)
    made = np.empty((ROWS, hidden_bias.size), np.float32)
    sources = np.int64(inputs.ctypes.data) + np.arange(ROWS) * np.int64(4 * inputs.shape[1])
    targets = np.int64(made.ctypes.data) + np.arange(ROWS) * np.int64(4 * made.shape[1])
    for begin in range(0, len(blocks), ROWS):
        together = blocks[begin : begin + ROWS]
        for number in range(len(together)):
            for near in range(len(channels)):
                of_channel = features[row[channels[near], together[number]]]
                at = np.uint64(near) * num_features
                for feature in range(num_features):
                    inputs[number, at + feature] = of_channel[feature]
        layer(sources, targets, hidden, hidden_bias)
        for number in range(len(together)):
            logit = bias + product(made[number], weight)
            probabilities[together[number]] = np.float32(1) / (np.float32(1) + np.exp(-logit))
