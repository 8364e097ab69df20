"""Compiled loops of the sparse path: gates, the stretches they let through, and peaks among few samples.

What they compute and why is told in :mod:`spikewise.sorting.sparse`. All loops are free of locks and of
anything that depends on the number of threads. Where a loop copies, its indices are unsigned: that a negative
one counts from the end would keep the compiler from copying many values at once.

Shapes: C channels, S samples, B blocks of a tile, N units, M channels of a unit, Q outputs of a block,
R rows.
"""

from __future__ import annotations

import numpy as np

from spikewise.compiling import compiled

_USUAL_BLOCK = 8
"""Samples of a block at 24 to 35 kHz."""


@compiled(fastmath={"nnan", "nsz"})
def block_extremes(
    values: np.ndarray, step: int, begin: int, block: int, first: int, stop: int, extremes: np.ndarray
) -> None:
    """Fill `extremes` (C, 2, B) with the lowest and highest value of each block, for some channels.

    Sample s of channel c is ``values[c * step + s]``. Block 0 begins at sample `begin`.
    """
    num_blocks = extremes.shape[2]
    for channel in range(first, stop):
        for index in range(num_blocks):
            at = channel * step + begin + index * block
            lowest = values[at]
            highest = lowest
            if block == _USUAL_BLOCK:  # unrolled: twice as fast
                for offset in range(1, _USUAL_BLOCK):
                    lowest = min(lowest, values[at + offset])
                    highest = max(highest, values[at + offset])
            else:
                for offset in range(1, block):
                    lowest = min(lowest, values[at + offset])
                    highest = max(highest, values[at + offset])
            extremes[channel, 0, index] = lowest
            extremes[channel, 1, index] = highest


@compiled(fastmath={"contract"})
def open_gates(
    extremes: np.ndarray,
    channel_index: np.ndarray,
    weight: np.ndarray,
    level: np.ndarray,
    first: int,
    stop: int,
    is_open: np.ndarray,
) -> None:
    """Tell in which blocks the gates of some units are open, or are in a block beside.

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
    num_blocks = is_open.shape[1]
    scores = np.empty(num_blocks + 2, np.float32)
    for unit in range(first, stop):
        scores[:] = 0
        for near in range(channel_index.shape[1]):
            for kind in range(2):
                row = extremes[channel_index[unit, near], kind]
                for shift in range(3):
                    factor = weight[unit, near, kind, shift]
                    for index in range(num_blocks + 2):
                        scores[index] += factor * row[index + shift]
        for index in range(num_blocks):
            highest = max(scores[index], scores[index + 1], scores[index + 2])
            is_open[unit, index] = highest > level[unit]


@compiled(fastmath={"contract", "reassoc", "nsz"})
def close_gates(
    values: np.ndarray,
    step: int,
    block: int,
    channel_index: np.ndarray,
    weight: np.ndarray,
    level: np.ndarray,
    first: int,
    stop: int,
    is_open: np.ndarray,
) -> None:
    """Close the gates of some units in the blocks at whose first output the second gate is closed.

    Parameters
    ----------
    values, step
        Sample s of channel c is ``values[c * step + s]``; the window of block b begins at sample b * block.
    channel_index : ndarray
        (N, M)
    weight : ndarray
        (N, M, window)
    level : ndarray
        (N,)
    is_open : ndarray of bool
        (N, B), changed.
    """
    window = np.uint64(weight.shape[2])
    for unit in range(first, stop):
        for index in range(is_open.shape[1]):
            if not is_open[unit, index]:
                continue
            score = np.float32(0)
            for near in range(channel_index.shape[1]):
                begin = np.uint64(channel_index[unit, near] * step + index * block)
                row = weight[unit, near]
                for sample in range(window):
                    score += row[sample] * values[begin + sample]
            is_open[unit, index] = score > level[unit]


@compiled()
def mark_channels(is_open: np.ndarray, channel_index: np.ndarray, is_needed: np.ndarray) -> None:
    """Mark the blocks (C, B) of the channels of units whose gates (N, B) are open."""
    for unit in range(is_open.shape[0]):
        for near in range(channel_index.shape[1]):
            channel = channel_index[unit, near]
            for index in range(is_open.shape[1]):
                is_needed[channel, index] |= is_open[unit, index]


@compiled()
def cut_stretches(
    values: np.ndarray,
    step: int,
    places: np.ndarray,
    num_blocks: int,
    block: int,
    cut: np.ndarray,
) -> None:
    """Copy what the outputs of some blocks depend on: row by row of `cut` (R, length).

    A place is ``channel * num_blocks + block``; sample s of channel c is ``values[c * step + s]``.
    """
    length = np.uint64(cut.shape[1])
    for row in range(len(places)):
        channel, index = divmod(places[row], num_blocks)
        begin, target = np.uint64(channel * step + index * block), np.uint64(row)
        for sample in range(length):
            cut[target, sample] = values[begin + sample]


@compiled()
def rows_of_inputs(
    units: np.ndarray, blocks: np.ndarray, channel_index: np.ndarray, row_of: np.ndarray, rows: np.ndarray
) -> None:
    """Fill `rows` (R, Q, M) with the rows of features that a unit in a block takes.

    `row_of` (C, B) numbers the blocks of channels that have features, Q rows each.
    """
    num_outputs, num_near = rows.shape[1:]
    for entry in range(len(units)):
        for near in range(num_near):
            row = row_of[channel_index[units[entry], near], blocks[entry]] * num_outputs
            for output in range(num_outputs):
                rows[entry, output, near] = row + output


@compiled()
def peaks_of_units(
    first_entry: np.ndarray,
    blocks: np.ndarray,
    probabilities: np.ndarray,
    thresholds: np.ndarray,
    limits: tuple[int, int],
    block: int,
    levels: int,
    label_radius: int,
    triangle_radius: int,
    merge_radius: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the peaks of all units; the probability is 0 in the blocks that are not listed.

    The same arithmetic as in :mod:`spikewise.sorting.postprocess`: linear between the outputs, in whole
    `levels`, convolved with the triangle, the highest within the merge radius, of equals the first.

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
        Samples from which and up to before which peaks are wanted.

    Returns
    -------
    sample_index, unit_index, response : ndarray
        In the order of unit, then time.
    """
    stride = block // probabilities.shape[1]
    plateau = np.float32(0)
    for offset in range(-label_radius, label_radius + 1):
        plateau += np.float32(triangle_radius + 1 - abs(offset))
    scale = np.float32(plateau * np.float32(levels))
    reach = triangle_radius + merge_radius
    together = 2 * reach // block + 2  # blocks further apart do not meet
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
            begin = blocks[entry] * block - 2 * reach
            length = (blocks[last] - blocks[entry] + 1) * block + 4 * reach
            level = np.zeros(length, np.int32)
            for row in range(entry, last + 1):
                _fill_levels(level, blocks[row] * block - begin, probabilities, row, stride, levels)
                if row < last and blocks[row + 1] == blocks[row] + 1:
                    after = probabilities[row + 1, 0]
                else:
                    after = np.float32(0)
                end = probabilities[row, probabilities.shape[1] - 1]
                at = (blocks[row] + 1) * block - stride - begin
                for offset in range(1, stride):
                    level[at + offset] = _between(end, after, offset, stride, levels)
            heights = _smoothed(level, triangle_radius)
            lowest = thresholds[unit]
            for at in range(merge_radius, len(heights) - merge_radius):
                height = np.float32(heights[at]) / scale
                is_wanted = height > lowest and limits[0] <= begin + at < limits[1]
                if not is_wanted or not _is_highest(heights, at, merge_radius):
                    continue
                if found == len(sample_index):
                    sample_index = np.concatenate((sample_index, np.empty_like(sample_index)))
                    unit_index = np.concatenate((unit_index, np.empty_like(unit_index)))
                    response = np.concatenate((response, np.empty_like(response)))
                sample_index[found] = begin + at
                unit_index[found] = unit
                response[found] = height
                found += 1
            entry = last + 1
    return sample_index[:found], unit_index[:found], response[:found]


@compiled()
def _fill_levels(
    level: np.ndarray, at: int, probabilities: np.ndarray, row: int, stride: int, levels: int
) -> None:
    """Write the outputs of a block, and what lies between them, from sample `at` on."""
    num_outputs = probabilities.shape[1]
    for output in range(num_outputs):
        here = probabilities[row, output]
        level[at + output * stride] = np.int32(np.rint(here * np.float32(levels)))
        if output + 1 < num_outputs:
            for offset in range(1, stride):
                after = probabilities[row, output + 1]
                level[at + output * stride + offset] = _between(here, after, offset, stride, levels)


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
    """Convolve with the triangle, as two running sums: whole numbers, exact."""
    return _running_sum(_running_sum(level, radius + 1), radius + 1)[radius:]


@compiled()
def _running_sum(values: np.ndarray, width: int) -> np.ndarray:
    """Return the sums over the last `width` values."""
    sums = np.zeros(len(values), np.int32)
    total = np.int64(0)
    for at in range(len(values)):
        total += values[at]
        if at >= width:
            total -= values[at - width]
        sums[at] = total
    return sums


@compiled()
def _is_highest(heights: np.ndarray, at: int, radius: int) -> bool:
    """Tell whether a sample is higher than those before and not lower than those after, within a radius."""
    height = heights[at]
    for offset in range(1, radius + 1):
        if heights[at - offset] >= height or heights[at + offset] > height:
            return False
    return True
