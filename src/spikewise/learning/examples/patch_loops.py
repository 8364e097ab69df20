"""Patches and their extremes, compiled."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spikewise.core.compiling import compiled

_FROM_HALF = np.float32(2.0**112)
"""Ratio of the exponents' offsets of half and single precision."""


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
def fill_windows(
    values: np.ndarray, columns: np.ndarray, channels: np.ndarray, windows: np.ndarray, bits: np.ndarray
) -> None:
    """Cut windows from traces in half precision.

    Parameters
    ----------
    values : ndarray of uint16
        (num_channels, num_columns) the bits of the traces.
    columns : ndarray of int64
        (P,) first column of each window.
    channels : ndarray of int64
        (M,)
    windows, bits : ndarray of float32 and of int32
        (P, M, W) the same memory; filled.
    """
    window = windows.shape[2]
    for patch in range(len(columns)):
        for near in range(len(channels)):
            source = values[channels[near], columns[patch] : columns[patch] + window]
            to_bits, target = bits[patch, near], windows[patch, near]
            for sample in range(window):
                half = np.int32(source[sample])
                to_bits[sample] = ((half & np.int32(0x8000)) << 16) | ((half & np.int32(0x7FFF)) << 13)
            for sample in range(window):
                target[sample] *= _FROM_HALF


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
