"""Gates: where in a recording a unit is worth looking for.

Most of the time most units are silent, and that is cheap to see: for each unit a linear function of the
lowest and the highest value of its channels over a few short blocks of time says whether the unit's network
could answer there at all. The network is asked only where the gate is open. A gate is fitted to the network
itself, on the patches that the unit was learnt on, and its level is set such that hardly a patch to which the
network says yes is kept from it.

Where the gate of a unit is open, a second one looks closer, at one moment of the block: a linear function of
the window on the unit's channels, made of the first temporal filters. A unit that hardly stands out of the
noise has a first gate that is open nearly always, and a second one that is not.

A block is a number of samples; block 0 of a patch is the one that holds its centre.
"""

from __future__ import annotations

BLOCK_MS = 0.25
NUM_BLOCKS = 3
"""The block itself, the one before and the one after."""
EXTREMES = 2
OPEN = -1e9
"""Level of a gate that is always open."""


def block_samples(sampling_frequency: float, stride: int) -> int:
    """Return the length of a block: a multiple of the stride."""
    return stride * max(1, round(BLOCK_MS * sampling_frequency / 1000 / stride))
