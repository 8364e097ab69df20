"""Fitting the gates of units (:mod:`spikewise.models.gates`) to their networks."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from spikewise.models.gates import NUM_BLOCKS, OPEN

ANSWER = 0.2
"""A patch counts as positive if the network gives it a higher probability. Chosen by hand."""
LOST = 0.01
"""Fraction of the positive patches on which the first gate may be closed. In recordings the loss is smaller:
patches hold far more overlapping spikes, and a spike also opens the gate from the blocks beside it. The tests
lose less than one in a thousand of the spikes that the dense path finds."""
LOST_CLOSER = 0.005
"""The same for the second gate, which sees a spike at one or two outputs. If the network finds the spike at
one of them, the blocks beside it are evaluated too."""
CLOSER_PATCHES = 8000
"""Largest number of patches of a unit to which its second gate is fitted. Chosen by hand."""
_FEWEST = 50
"""With fewer positive or negative patches no gate is fitted: it stays open. Chosen by hand."""
_RIDGE = 0.01
"""Added to the variances, as a fraction of their mean, to keep the solution stable. Chosen by hand."""


def gate_inputs(patches: Tensor, block: int, random: np.random.Generator) -> Tensor:
    """Return the inputs of the gate for patches; the centre of each lies at a random sample of its block.

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
    index = (first[:, None] + torch.arange(NUM_BLOCKS * block)).clamp(0, window - 1)
    around = patches.gather(2, index[:, None].expand(-1, patches.shape[1], -1)).unflatten(
        2, (NUM_BLOCKS, block)
    )
    return torch.stack([around.amin(3), around.amax(3)], dim=2).flatten(1)


def fit_gate(inputs: Tensor, probabilities: Tensor, lost: float = LOST) -> tuple[Tensor, float]:
    """Fit a gate of one unit.

    Parameters
    ----------
    inputs : Tensor
        (num_patches, num_inputs)
    probabilities : Tensor
        (num_patches,) output of the network.
    lost : float
        Fraction of the positive patches on which the gate may be closed.

    Returns
    -------
    weight : Tensor
        (num_inputs,)
    level : float
        The gate is open where ``inputs @ weight > level``. It is always open if there are too few positive or
        negative patches for a fit.
    """
    is_positive = probabilities > ANSWER
    if is_positive.sum() < _FEWEST or (~is_positive).sum() < _FEWEST:
        return torch.zeros(inputs.shape[1]), OPEN
    positive, negative = inputs[is_positive].double(), inputs[~is_positive].double()
    within = (torch.cov(positive.T) + torch.cov(negative.T)) / 2
    within.diagonal().add_(_RIDGE * within.diagonal().mean())
    weight = torch.linalg.solve(within, positive.mean(0) - negative.mean(0)).float()
    scores = inputs[is_positive] @ weight
    return weight, torch.quantile(scores, lost).item()
