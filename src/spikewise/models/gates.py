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

import numpy as np
import torch
from torch import Tensor

BLOCK_MS = 0.25
NUM_BLOCKS = 3
"""The block itself, the one before and the one after."""
EXTREMES = 2
OPEN = -1e9
"""Level of a gate that is always open."""
ANSWER = 0.2
"""Probability from which on the network says that there is something."""
LOST = 0.01
"""Fraction of such patches that may be kept from the network. Patches hold far more overlapping spikes than
recordings, and a spike opens the gate in its own block or in one beside it: of the spikes that the dense path
finds in recordings, less than a thousandth is lost."""
LOST_CLOSER = 0.005
"""The same of the second gate. A spike reaches over one or two moments that it sees, and where the network
says yes at one of them, the blocks beside it are asked, too."""
CLOSER_PATCHES = 8000
"""Patches of a unit that are enough to fit its second gate."""
_FEWEST = 50
_RIDGE = 0.01


def block_samples(sampling_frequency: float, stride: int) -> int:
    """Return the length of a block: a multiple of the stride."""
    return stride * max(1, round(BLOCK_MS * sampling_frequency / 1000 / stride))


def gate_inputs(patches: Tensor, block: int, random: np.random.Generator) -> Tensor:
    """Return what the gate sees of patches, whose centres lie anywhere within their blocks.

    Parameters
    ----------
    patches : Tensor
        (num_patches, num_near, window_samples)
    block : int
        Samples of a block.

    Returns
    -------
    Tensor
        (num_patches, num_near * EXTREMES * NUM_BLOCKS): for each channel the lowest values of the blocks,
        then the highest.
    """
    num_patches, _, window = patches.shape
    centre = (window - 1) // 2
    first = centre - torch.from_numpy(random.integers(block, size=num_patches)) - block
    at = (first[:, None] + torch.arange(NUM_BLOCKS * block)).clamp(0, window - 1)
    around = patches.gather(2, at[:, None].expand(-1, patches.shape[1], -1)).unflatten(2, (NUM_BLOCKS, block))
    return torch.stack([around.amin(3), around.amax(3)], dim=2).flatten(1)


def fit_gate(inputs: Tensor, probabilities: Tensor, lost: float = LOST) -> tuple[Tensor, float]:
    """Fit a gate of one unit.

    Parameters
    ----------
    inputs : Tensor
        (num_patches, num_inputs)
    probabilities : Tensor
        (num_patches,) what the network says.
    lost : float
        Fraction of the patches to which it says yes that may be kept from it.

    Returns
    -------
    weight : Tensor
        (num_inputs,)
    level : float
        The gate is open where ``inputs @ weight > level``; always, where the network says yes to too few
        patches to fit anything.
    """
    answered = probabilities > ANSWER
    if answered.sum() < _FEWEST or (~answered).sum() < _FEWEST:
        return torch.zeros(inputs.shape[1]), OPEN
    yes, no = inputs[answered].double(), inputs[~answered].double()
    within = (torch.cov(yes.T) + torch.cov(no.T)) / 2
    within.diagonal().add_(_RIDGE * within.diagonal().mean())
    weight = torch.linalg.solve(within, yes.mean(0) - no.mean(0)).float()
    scores = inputs[answered] @ weight
    return weight, torch.quantile(scores, lost).item()
