"""The network on the next blocks of a stream, where gates are open: one compiled loop over the units.

It gives what :func:`spikewise.sorting.tiles.evaluate_tile` gives for the tiles of a recording, with the same
compiled functions. A tile decides by first outputs which blocks are promising, and looks two blocks to either
side, but not over the ends of the tile. So a block is decided two blocks later than its gates are known, and
this loop knows where the tiles of the recording would end.

Shapes: N units, B blocks of a call, with the two before them; Q outputs of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spikewise.core.compiling import compiled
from spikewise.sorting.kernels import Samples, close_gates
from spikewise.sorting.loops import block_extremes, open_gates
from spikewise.sorting.tiles import Grid, Space, Weights, evaluate_outputs

AHEAD = 2
"""Blocks after a block that decide whether it is promising."""


class Pending(NamedTuple):
    """What is known of the last blocks, units in the order of the weights.

    Attributes
    ----------
    is_seen : ndarray of bool
        (N, 4) whether the first output of each of the last four blocks is promising.
    is_open, is_known : ndarray of bool
        (N, 2) gates of the last two blocks, and whether their first outputs are computed.
    first : ndarray of float32
        (N, 2) these first outputs.
    """

    is_seen: np.ndarray
    is_open: np.ndarray
    is_known: np.ndarray
    first: np.ndarray

    @classmethod
    def none(cls, num_units: int) -> Pending:
        """Return what is known before the first block: nothing is open."""
        return cls(
            np.zeros((num_units, 4), np.bool_),
            np.zeros((num_units, 2), np.bool_),
            np.zeros((num_units, 2), np.bool_),
            np.zeros((num_units, 2), np.float32),
        )


@compiled()
def evaluate_blocks(
    samples: Samples, weights: Weights, grid: Grid, place: tuple[int, int], pending: Pending, space: Space
) -> None:
    """Compute the gates of the next blocks, and the probabilities of the blocks that they decide.

    Parameters
    ----------
    samples : Samples
        They begin with the window of the first output of the first pending block, which is column 0 of the
        space; the new blocks are the columns from 2 on.
    weights : Weights
    grid : Grid
    place : (int, int)
        Block of its tile that column 0 is, and the blocks of a tile.
    pending : Pending
        Of the two blocks before the new ones; updated to the last two of the new ones.
    space : Space
        For the blocks and the two before them. Filled: `is_open` and `probabilities` of the decided blocks,
        which are all columns but the last two.
    """
    num_units, num_blocks = space.is_open.shape
    shift = 2 * grid.block  # the new blocks begin there
    new = Samples(samples.values[shift:], samples.step)
    weight, level = weights.gate
    block_extremes(new.values, new.step, grid.begin, grid.block, space.extremes)
    open_gates(space.extremes, weights.channel_index, weight, level, space.is_open[:, 2:])
    is_seen = np.zeros(num_blocks + AHEAD, np.bool_)  # from two blocks before column 0 on
    for unit in range(num_units):
        is_any = False
        for block in range(2):
            space.is_open[unit, block] = pending.is_open[unit, block]
            space.is_known[0, block] = pending.is_known[unit, block]
            space.probabilities[0, unit, block] = pending.first[unit, block]
            is_any |= pending.is_open[unit, block]
        for block in range(4):
            is_seen[block] = pending.is_seen[unit, block]
        num_open = 0
        for block in range(2, num_blocks):
            is_open = space.is_open[unit, block]
            num_open += is_open
            space.is_known[0, block] = is_open and grid.promising >= 0
        if num_open and grid.promising >= 0:
            _compute_first_outputs(new, samples, weights, grid, unit, space)
        for block in range(2, num_blocks):
            first = space.probabilities[0, unit, block]
            is_seen[block + 2] = space.is_known[0, block] and first > grid.promising
        for block in range(2):
            last = num_blocks - 2 + block
            pending.is_open[unit, block] = space.is_open[unit, last]
            pending.is_known[unit, block] = space.is_known[0, last]
            pending.first[unit, block] = space.probabilities[0, unit, last]
            space.is_open[unit, last] = False
        for block in range(4):
            pending.is_seen[unit, block] = is_seen[num_blocks - 2 + block]
        if num_open or is_any:
            if grid.promising >= 0:
                _close_decided_blocks(space.is_open[unit], is_seen, place)
            _compute_decided_blocks(samples, weights, grid, unit, space)


@compiled()
def _compute_first_outputs(
    new: Samples, samples: Samples, weights: Weights, grid: Grid, unit: int, space: Space
) -> None:
    """Compute the first outputs of the new blocks of a unit whose second gates are open, too."""
    one = slice(unit, unit + 1)
    weight, level = weights.closer_gate
    channels, is_known = weights.channel_index[one], space.is_known[:, 2:]
    close_gates(new, grid.block, channels, weight[one], grid.window, level[one], is_known)
    count = 0
    for block in range(2, space.is_known.shape[1]):
        if space.is_known[0, block]:
            space.outputs[count, 0], space.outputs[count, 1] = 0, block
            count += 1
    if count:
        evaluate_outputs(samples, weights, grid, unit, space.outputs[:count], space)


@compiled()
def _close_decided_blocks(is_open: np.ndarray, is_seen: np.ndarray, place: tuple[int, int]) -> None:
    """Close the blocks that are not promising; :func:`spikewise.sorting.loops.keep_promising` has the rule.

    The first and the last block of a tile count as promising.
    """
    first, num_blocks = place
    for block in range(len(is_open) - 2):
        if not is_open[block]:
            continue
        at = (first + block) % num_blocks
        is_promising = at <= AHEAD or at >= num_blocks - 1 - AHEAD
        for index in range(block, block + 2 * AHEAD + 1):
            is_promising |= is_seen[index]
        is_open[block] = is_promising


@compiled()
def _compute_decided_blocks(samples: Samples, weights: Weights, grid: Grid, unit: int, space: Space) -> None:
    """Compute the missing outputs of the open blocks of a unit."""
    count = 0
    for block in range(space.is_open.shape[1]):
        if space.is_open[unit, block]:
            for output in range(space.probabilities.shape[0]):
                if output or not space.is_known[0, block]:
                    space.outputs[count, 0], space.outputs[count, 1] = output, block
                    count += 1
    if count:
        evaluate_outputs(samples, weights, grid, unit, space.outputs[:count], space)


@compiled()
def join_blocks(
    old: tuple[np.ndarray, np.ndarray, np.ndarray],
    new: tuple[np.ndarray, np.ndarray, np.ndarray],
    first_block: int,
    num_units: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Join the evaluated blocks of two stretches that follow one another, from a block on.

    Parameters
    ----------
    old, new : (ndarray, ndarray, ndarray)
        Unit (count,), number of the block (count,) and probabilities (count, Q), by unit, then block.
    first_block : int
        Old blocks before this one are left out.
    num_units : int

    Returns
    -------
    unit_index, block, probabilities : ndarray
        Likewise.
    first_entry : ndarray
        (num_units + 1,) the entries of unit `n` are ``first_entry[n]`` to ``first_entry[n + 1]``.
    """
    most = len(old[0]) + len(new[0])
    unit_index, block = np.empty(most, np.int64), np.empty(most, np.int64)
    probabilities = np.empty((most, new[2].shape[1]), np.float32)
    first_entry = np.empty(num_units + 1, np.int64)
    count, of_old, of_new = 0, 0, 0
    for unit in range(num_units):
        first_entry[unit] = count
        while of_old < len(old[0]) and old[0][of_old] == unit:
            if old[1][of_old] >= first_block:
                unit_index[count], block[count] = unit, old[1][of_old]
                probabilities[count] = old[2][of_old]
                count += 1
            of_old += 1
        while of_new < len(new[0]) and new[0][of_new] == unit:
            unit_index[count], block[count] = unit, new[1][of_new]
            probabilities[count] = new[2][of_new]
            count += 1
            of_new += 1
    first_entry[num_units] = count
    return unit_index[:count], block[:count], probabilities[:count], first_entry
