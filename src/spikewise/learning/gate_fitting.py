"""Fitting the gates of units: where in a recording a unit is worth looking for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spikewise.models.gates import NUM_BLOCKS, OPEN

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
