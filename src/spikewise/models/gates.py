"""Gates: cheap tests that tell where a unit may fire.

Most units are silent most of the time, and this is cheap to see. The gate of a unit is a linear function of
the lowest and highest values of its channels over three short blocks of time. The unit's network is evaluated
only where the gate is open. A gate is fitted to the network itself, on the patches from which the unit was
learnt. Its threshold is set so that the gate closes on very few of the patches in which the network finds the
unit.

Where the first gate is open, a second gate tests the first output of the block. It is a linear function of
the window on the unit's channels, made of the first temporal filters. It helps with weak units: near the
noise, the first gate is open nearly always, and the second is not.

A block is a number of samples; block 0 of a patch is the one that holds its centre.
"""

from __future__ import annotations

BLOCK_MS = 0.25
"""Length of a block, shorter than the plateau of a spike. Chosen by hand."""
NUM_BLOCKS = 3
"""The block itself, the one before and the one after."""
EXTREMES = 2
"""The lowest and the highest value of a block."""
OPEN = -1e9
"""Threshold of a gate that is always open."""


def block_samples(sampling_frequency: float, stride: int) -> int:
    """Return the length of a block: a multiple of the stride."""
    return stride * max(1, round(BLOCK_MS * sampling_frequency / 1000 / stride))
