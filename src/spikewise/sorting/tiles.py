"""The network on one tile, where gates are open: one compiled loop over the units.

The loop does all steps for one unit, then for the next. Units that see the same channels follow each other,
so the samples that one unit has read are still in a processor's cache for the next. Nine in ten features of a
channel at one output are needed by one unit only (384 channels, 200 units). So each unit computes its own
features, in rows that stay in the innermost cache, instead of looking up what other units have computed.

Shapes: C channels, B blocks of a tile, N units, M channels of a unit, Q outputs of a block, F features.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spikewise.core.compiling import compiled
from spikewise.sorting.kernels import ROWS, Samples, close_gates, layer, product
from spikewise.sorting.loops import block_extremes, keep_promising, open_gates

AT_ONCE = 8
"""Outputs of a unit that are computed together: a multiple of ROWS. Chosen by hand."""
OPENED, SECOND_GATES, CHANNEL_OUTPUTS, UNIT_OUTPUTS = 0, 1, 2, 3
"""Indices of the counts: blocks with an open first gate, second gates computed, outputs of channels, outputs
of units."""


class Weights(NamedTuple):
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
        First sample that the first gates see: two blocks before the first block.
    block, stride, window : int
        Samples of a block, from one output to the next, and of a window.
    promising : float
        All outputs of a block are computed if its first output has a higher probability. If negative, all are
        always computed.
    """

    begin: int
    block: int
    stride: int
    window: int
    promising: np.float32


class Space(NamedTuple):
    """Memory for the results of a tile.

    Attributes
    ----------
    extremes : ndarray of float32
        (C, 2, B + 4)
    is_open : ndarray of bool
        (N, B) blocks in which the outputs of units are computed.
    probabilities : ndarray of float32
        (Q, N, B), filled in these blocks.
    between : ndarray of float32
        (AT_ONCE * M, ...) features of the first filter of a channel.
    inputs, hidden : ndarray of float32
        (AT_ONCE, ...) features of all channels that a unit sees, and its hidden features.
    is_seen : ndarray of bool
        (C,) channels whose extremes are computed.
    is_known, none : ndarray of bool
        (1, B) blocks whose first output is computed, and no blocks.
    outputs : ndarray of int64
        (Q * B, 2) outputs to compute: their number within the block, and the block.
    counts : ndarray of int64
        (4,) see :data:`OPENED`; added to.
    """

    extremes: np.ndarray
    is_open: np.ndarray
    probabilities: np.ndarray
    between: np.ndarray
    inputs: np.ndarray
    hidden: np.ndarray
    is_seen: np.ndarray
    is_known: np.ndarray
    none: np.ndarray
    outputs: np.ndarray
    counts: np.ndarray


@compiled()
def evaluate_tile(samples: Samples, weights: Weights, grid: Grid, space: Space) -> None:
    """Compute the probabilities of a tile in the blocks in which gates are open.

    Parameters
    ----------
    samples : Samples
    weights : Weights
    grid : Grid
    space : Space
        Filled: `is_open`, `probabilities` and `counts`.
    """
    space.is_seen[:] = False
    for unit in range(space.probabilities.shape[1]):
        if not open_blocks(samples, weights, grid, unit, space):
            continue
        if grid.promising >= 0:
            evaluate_outputs(samples, weights, grid, unit, first_outputs(space), space)
            close_blocks(unit, grid, space)
        evaluate_outputs(samples, weights, grid, unit, missing_outputs(unit, space), space)


@compiled()
def open_blocks(samples: Samples, weights: Weights, grid: Grid, unit: int, space: Space) -> int:
    """Find the blocks in which the gates of a unit are open; return their number.

    `is_known` marks the blocks whose second gate is open too, if first outputs are computed.
    """
    one = slice(unit, unit + 1)
    channels, is_open = weights.channel_index[one], space.is_open[one]
    for channel in channels[0]:
        if not space.is_seen[channel]:
            space.is_seen[channel] = True
            extremes = space.extremes[channel : channel + 1]
            block_extremes(
                samples.values[channel * samples.step :], samples.step, grid.begin, grid.block, extremes
            )
    weight, level = weights.gate
    open_gates(space.extremes, channels, weight[one], level[one], is_open)
    num_open = 0
    for index in range(is_open.shape[1]):
        num_open += is_open[0, index]
        space.is_known[0, index] = grid.promising >= 0 and is_open[0, index]
    space.counts[OPENED] += num_open
    if num_open and grid.promising >= 0:
        weight, level = weights.closer_gate
        close_gates(samples, grid.block, channels, weight[one], grid.window, level[one], space.is_known)
        space.counts[SECOND_GATES] += num_open
    return num_open


@compiled()
def close_blocks(unit: int, grid: Grid, space: Space) -> None:
    """Close the blocks of a unit whose first outputs, and those of the blocks around, are not promising."""
    one = slice(unit, unit + 1)
    keep_promising(space.is_open[one], space.is_known, space.probabilities[0, one], grid.promising)


@compiled()
def first_outputs(space: Space) -> np.ndarray:
    """Return the first outputs (count, 2) of the blocks in which both gates are open."""
    return space.outputs[: _add_outputs(space.is_known[0], space.none[0], 0, space.outputs, 0)]


@compiled()
def missing_outputs(unit: int, space: Space) -> np.ndarray:
    """Return the outputs (count, 2) of the open blocks of a unit that are not computed yet."""
    is_open = space.is_open[unit]
    count = _add_outputs(is_open, space.is_known[0], 0, space.outputs, 0)
    for output in range(1, space.probabilities.shape[0]):
        count = _add_outputs(is_open, space.none[0], output, space.outputs, count)
    return space.outputs[:count]


@compiled()
def _add_outputs(
    is_open: np.ndarray, is_known: np.ndarray, output: int, outputs: np.ndarray, count: int
) -> int:
    """Append one output of the blocks (B,) that are open and not known; return the new `count`."""
    for block in range(len(is_open)):
        if is_open[block] and not is_known[block]:
            outputs[count, 0], outputs[count, 1] = output, block
            count += 1
    return count


@compiled()
def evaluate_outputs(
    samples: Samples, weights: Weights, grid: Grid, unit: int, outputs: np.ndarray, space: Space
) -> None:
    """Compute the probabilities of a unit at some outputs (count, 2)."""
    for begin in range(0, len(outputs), AT_ONCE):
        together = outputs[begin : begin + AT_ONCE]
        fill_features(samples, weights, grid, unit, together, space)
        fill_probabilities(weights, unit, together, space)


@compiled()
def fill_features(
    samples: Samples, weights: Weights, grid: Grid, unit: int, outputs: np.ndarray, space: Space
) -> None:
    """Compute the features of the channels of a unit at no more than AT_ONCE outputs."""
    channels = weights.channel_index[unit]
    num_near, num_features = len(channels), weights.second[1].size
    sources, targets = np.empty(AT_ONCE * num_near, np.int64), np.empty(AT_ONCE * num_near, np.int64)
    of_between, of_inputs = _addresses(space.between), _addresses(space.inputs)
    for row in range(len(outputs)):
        output, block = outputs[row, 0], outputs[row, 1]
        start = np.int64(samples.values.ctypes.data) + 4 * (output * grid.stride + block * grid.block)
        for near in range(num_near):
            sources[row * num_near + near] = start + 4 * channels[near] * samples.step
            targets[row * num_near + near] = of_inputs[row] + 4 * near * num_features
    num_rows = len(outputs) * num_near
    while num_rows % ROWS:  # the last row once more
        sources[num_rows], targets[num_rows] = sources[num_rows - 1], targets[num_rows - 1]
        num_rows += 1
    layer(sources, of_between, num_rows, weights.first[0], weights.first[1])
    layer(of_between, targets, num_rows, weights.second[0], weights.second[1])
    space.counts[CHANNEL_OUTPUTS] += len(outputs) * num_near


@compiled()
def fill_probabilities(weights: Weights, unit: int, outputs: np.ndarray, space: Space) -> None:
    """Compute the probabilities of a unit at up to AT_ONCE outputs from the features of its channels."""
    weight, bias = weights.last[0][unit], weights.last[1][unit]
    whole = -(-len(outputs) // ROWS) * ROWS  # rows after the last output are computed and not used
    of_inputs, of_hidden = _addresses(space.inputs), _addresses(space.hidden)
    layer(of_inputs, of_hidden, whole, weights.hidden[0][unit], weights.hidden[1][unit])
    for row in range(len(outputs)):
        logit = bias + product(space.hidden[row], weight)
        output, block = outputs[row, 0], outputs[row, 1]
        space.probabilities[output, unit, block] = np.float32(1) / (np.float32(1) + np.exp(-logit))
    space.counts[UNIT_OUTPUTS] += len(outputs)


@compiled()
def _addresses(rows: np.ndarray) -> np.ndarray:
    """Return the address of each row."""
    addresses = np.empty(len(rows), np.int64)
    for row in range(len(rows)):
        addresses[row] = np.int64(rows.ctypes.data) + 4 * row * rows.shape[1]
    return addresses


@compiled()
def evaluated_of(
    is_open: np.ndarray, probabilities: np.ndarray, row_of_unit: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit, block and probabilities (count, Q) of the open blocks, by unit, then block.

    `row_of_unit` (N,) holds the row of each unit in `is_open` (N, B) and `probabilities` (Q, N, B).
    """
    count = 0
    for row in range(len(is_open)):
        for index in range(is_open.shape[1]):
            count += is_open[row, index]
    unit_index, block = np.empty(count, np.int64), np.empty(count, np.int64)
    found = np.empty((count, len(probabilities)), np.float32)
    entry = 0
    for unit in range(len(row_of_unit)):
        row = row_of_unit[unit]
        for index in range(is_open.shape[1]):
            if is_open[row, index]:
                unit_index[entry], block[entry] = unit, index
                for output in range(len(probabilities)):
                    found[entry, output] = probabilities[output, row, index]
                entry += 1
    return unit_index, block, found
