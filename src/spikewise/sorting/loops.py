"""Compiled loops of the sparse path: gates, and peaks among few samples.

:mod:`spikewise.sorting.sparse` explains what they compute and why. No loop takes a lock or depends on the
number of threads. Where a loop copies, its indices are unsigned: an index that may be negative, and then
counts from the end, keeps the compiler from copying many values at once.

Shapes: C channels, S samples, B blocks of a tile, N units, M channels of a unit, Q outputs of a block,
R rows.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from spikewise.core import vectors
from spikewise.core.compiling import compiled

_USUAL_BLOCK = 8
"""Samples of a block at 24 to 35 kHz."""
_BLOCKS_AT_ONCE = 16
"""Blocks whose extremes are computed together, as one vector."""


def _write_extremes(typing_context, values, lowest, highest):  # type: ignore[no-untyped-def]
    """Write the lowest and the highest values of 16 blocks of 8 values; all are addresses."""

    def write(context: Any, builder: ir.IRBuilder, signature: Any, arguments: list[ir.Value]) -> ir.Value:
        values, *targets = arguments
        kind = ir.VectorType(vectors.FLOAT, _BLOCKS_AT_ONCE)
        rows = [
            vectors.load(builder, vectors.after(builder, values, row, 4 * _BLOCKS_AT_ONCE), kind)
            for row in range(_USUAL_BLOCK)
        ]
        for join, target in zip((vectors.lower, vectors.higher), targets, strict=True):
            remaining = rows
            while len(remaining) > 1:
                remaining = vectors.paired(builder, remaining, functools.partial(join, builder))
            vectors.store(builder, remaining[0], target)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 3), write


_extremes: Any = intrinsic(_write_extremes)


@compiled(fastmath={"nnan", "nsz"})
def block_extremes(values: np.ndarray, step: int, begin: int, block: int, extremes: np.ndarray) -> None:
    """Fill `extremes` (C, 2, B) with the lowest and highest value of each block.

    Sample s of channel c is ``values[c * step + s]``. Block 0 begins at sample `begin`.
    """
    num_channels, _, num_blocks = extremes.shape
    for channel in range(num_channels):
        first = channel * step + begin
        if block == _USUAL_BLOCK and num_blocks >= _BLOCKS_AT_ONCE:
            for start in range(0, num_blocks, _BLOCKS_AT_ONCE):
                index = min(start, num_blocks - _BLOCKS_AT_ONCE)
                _extremes(
                    np.int64(values[first + index * block :].ctypes.data),
                    np.int64(extremes[channel, 0, index:].ctypes.data),
                    np.int64(extremes[channel, 1, index:].ctypes.data),
                )
            continue
        for index in range(num_blocks):
            sample = first + index * block
            lowest = values[sample]
            highest = lowest
            for offset in range(1, block):
                lowest = min(lowest, values[sample + offset])
                highest = max(highest, values[sample + offset])
            extremes[channel, 0, index] = lowest
            extremes[channel, 1, index] = highest


@compiled(fastmath={"contract"})
def open_gates(
    extremes: np.ndarray,
    channel_index: np.ndarray,
    weight: np.ndarray,
    level: np.ndarray,
    is_open: np.ndarray,
) -> None:
    """Find the blocks in which the gates of units, or their gates in a neighbouring block, are open.

    Parameters
    ----------
    extremes : ndarray
        (C, 2, B + 4): of two blocks before the first, the blocks, and two after.
    channel_index : ndarray
        (N, M)
    weight : ndarray
        (N, M, 2, 3)
    level : ndarray
        (N,)
    is_open : ndarray of bool
        (N, B), filled.
    """
    num_units, num_blocks = is_open.shape
    scores = np.empty(num_blocks + 2, np.float32)
    for unit in range(num_units):
        scores[:] = 0
        for near in range(channel_index.shape[1]):
            low, high = extremes[channel_index[unit, near], 0], extremes[channel_index[unit, near], 1]
            before, here, after = weight[unit, near, 0]
            before2, here2, after2 = weight[unit, near, 1]
            one, two = np.uint64(1), np.uint64(2)
            # All six products at once, so that a score is read and written once.
            for index in range(np.uint64(num_blocks + 2)):
                scores[index] += (
                    before * low[index]
                    + here * low[index + one]
                    + after * low[index + two]
                    + before2 * high[index]
                    + here2 * high[index + one]
                    + after2 * high[index + two]
                )
        for index in range(num_blocks):
            highest = max(scores[index], scores[index + 1], scores[index + 2])
            is_open[unit, index] = highest > level[unit]


@compiled()
def keep_promising(
    is_open: np.ndarray, is_known: np.ndarray, probabilities: np.ndarray, least: np.float32
) -> None:
    """Close the gates (N, B) of units where the first outputs show that there is no spike.

    A block is shorter than the plateau of a spike, so the plateau holds the first output of a block. A block
    stays open if its first output is above `least`, or that of one of the two blocks to either side, which is
    as far as a plateau reaches. The first outputs are `probabilities` (N, B), where they are computed
    (`is_known`). At the ends of the tile, whose neighbours are not seen, open blocks stay open.
    """
    num_units, num_blocks = is_open.shape
    seen = np.empty(num_blocks + 4, np.bool_)
    for unit in range(num_units):
        for index in range(num_blocks):
            seen[index + 2] = is_known[unit, index] and probabilities[unit, index] > least
        seen[:3] = True
        seen[-3:] = True
        for index in range(num_blocks):
            is_open[unit, index] &= (
                seen[index] | seen[index + 1] | seen[index + 2] | seen[index + 3] | seen[index + 4]
            )


class PeakRule(NamedTuple):
    """How probabilities become peaks.

    Attributes
    ----------
    block : int
        Samples of a block.
    levels : int
        Whole numbers that a probability of 1 becomes.
    label_radius, triangle_radius, merge_radius : int
        In samples.
    """

    block: int
    levels: int
    label_radius: int
    triangle_radius: int
    merge_radius: int


@compiled()
def peaks_of_units(
    first_entry: np.ndarray,
    blocks: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    limits: tuple[int, int],
    rule: PeakRule,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the peaks of all units; the probability is 0 in the blocks that are not listed.

    The arithmetic is that of :mod:`spikewise.sorting.peaks`: probabilities are interpolated linearly between
    the outputs, rounded to whole levels, and convolved with the triangle. Of the peaks within the merge
    radius the highest counts, of equal ones the first.

    Parameters
    ----------
    first_entry : ndarray
        (N + 1,) the entries of unit `n` are ``first_entry[n]`` to ``first_entry[n + 1]``.
    blocks : ndarray
        (R,) numbers of blocks, rising for each unit.
    probabilities : ndarray
        (R, Q)
    thresholds : ndarray
        (N,)
    limits : (int, int)
        First sample, and the sample after the last, of the stretch in which peaks are wanted.
    rule : PeakRule

    Returns
    -------
    sample_index, unit_index, response : ndarray
        In the order of unit, then time.
    """
    merge_radius, reach = rule.merge_radius, rule.triangle_radius + rule.merge_radius
    scale = _perfect_height(rule)
    together = 2 * reach // rule.block + 2  # blocks further apart do not meet
    capacity = 64 + len(blocks)
    sample_index = np.empty(capacity, np.int64)
    unit_index = np.empty(capacity, np.int64)
    response = np.empty(capacity, np.float32)
    found = 0
    for unit in range(len(first_entry) - 1):
        entry = first_entry[unit]
        while entry < first_entry[unit + 1]:
            last = entry
            while last + 1 < first_entry[unit + 1] and blocks[last + 1] - blocks[last] <= together:
                last += 1
            begin = blocks[entry] * rule.block - 2 * reach
            length = (blocks[last] - blocks[entry] + 1) * rule.block + 4 * reach
            level = np.zeros(length, np.int32)
            _fill_rows(level, begin, blocks[entry : last + 1], probabilities[entry : last + 1], rule)
            heights = _smoothed(level, rule.triangle_radius)
            lowest = thresholds[unit]
            for sample in range(merge_radius, len(heights) - merge_radius):
                height = np.float32(heights[sample]) / scale
                is_wanted = height > lowest and limits[0] <= begin + sample < limits[1]
                if not is_wanted or not _is_highest(heights, sample, merge_radius):
                    continue
                if found == len(sample_index):
                    sample_index = np.concatenate((sample_index, np.empty_like(sample_index)))
                    unit_index = np.concatenate((unit_index, np.empty_like(unit_index)))
                    response = np.concatenate((response, np.empty_like(response)))
                sample_index[found] = begin + sample
                unit_index[found] = unit
                response[found] = height
                found += 1
            entry = last + 1
    return sample_index[:found], unit_index[:found], response[:found]


@compiled()
def _perfect_height(rule: PeakRule) -> np.float32:
    """Return the height of the peak of a perfect spike, in levels times weights of the triangle."""
    plateau = np.float32(0)
    for offset in range(-rule.label_radius, rule.label_radius + 1):
        plateau += np.float32(rule.triangle_radius + 1 - abs(offset))
    return np.float32(plateau * np.float32(rule.levels))


@compiled()
def _fill_rows(
    level: np.ndarray, begin: int, blocks: np.ndarray, probabilities: np.ndarray, rule: PeakRule
) -> None:
    """Write the levels of blocks (R,) with outputs (R, Q), interpolated; `level` begins at sample `begin`."""
    num_outputs = probabilities.shape[1]
    stride = rule.block // num_outputs
    for row in range(len(blocks)):
        _fill_levels(level, blocks[row] * rule.block - begin, probabilities, row, stride, rule.levels)
        if row + 1 < len(blocks) and blocks[row + 1] == blocks[row] + 1:
            after = probabilities[row + 1, 0]
        else:
            after = np.float32(0)
        end = probabilities[row, num_outputs - 1]
        sample = (blocks[row] + 1) * rule.block - stride - begin
        for offset in range(1, stride):
            level[sample + offset] = _between(end, after, offset, stride, rule.levels)


@compiled()
def _fill_levels(
    level: np.ndarray, first: int, probabilities: np.ndarray, row: int, stride: int, levels: int
) -> None:
    """Write the outputs of a block, and the values interpolated between them, from sample `first` on."""
    num_outputs = probabilities.shape[1]
    for output in range(num_outputs):
        here = probabilities[row, output]
        level[first + output * stride] = np.int32(np.rint(here * np.float32(levels)))
        if output + 1 < num_outputs:
            for offset in range(1, stride):
                after = probabilities[row, output + 1]
                level[first + output * stride + offset] = _between(here, after, offset, stride, levels)


@compiled()
def _between(here: np.float32, after: np.float32, offset: int, stride: int, levels: int) -> int:
    """Interpolate as ``torch.lerp`` does."""
    share = np.float32(offset / stride)
    if share < np.float32(0.5):
        value = here + share * (after - here)
    else:
        value = after - (after - here) * (np.float32(1) - share)
    return int(np.int32(np.rint(value * np.float32(levels))))


@compiled()
def _smoothed(level: np.ndarray, radius: int) -> np.ndarray:
    """Convolve with the triangle, as two running sums of whole numbers, which are exact."""
    return _running_sum(_running_sum(level, radius + 1), radius + 1)[radius:]


@compiled()
def _running_sum(values: np.ndarray, width: int) -> np.ndarray:
    """Return the sums over the last `width` values."""
    sums = np.zeros(len(values), np.int32)
    total = np.int64(0)
    for index in range(len(values)):
        total += values[index]
        if index >= width:
            total -= values[index - width]
        sums[index] = total
    return sums


@compiled()
def _is_highest(heights: np.ndarray, sample: int, radius: int) -> bool:
    """Return whether a sample is higher than those before and not lower than those after, within a radius."""
    height = heights[sample]
    for offset in range(1, radius + 1):
        if heights[sample - offset] >= height or heights[sample + offset] > height:
            return False
    return True
