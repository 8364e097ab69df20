"""Fitting the gates of units (:mod:`spikewise.models.gates`) to their networks."""

from __future__ import annotations

import torch
from torch import Tensor

from spikewise.models.gates import OPEN

ANSWER = 0.2
"""A patch counts as positive if the network gives it a higher probability. Chosen by hand."""
LOST = 0.007
"""Fraction of the positive patches on which the first gate may be closed. In recordings the loss is smaller:
patches hold far more overlapping spikes, and a spike also opens the gate from the blocks beside it. The tests
lose less than one in a thousand of the spikes that the dense path finds."""
LOST_CLOSER = 0.003
"""The same for the second gate, which sees a spike at one or two outputs. If the network finds the spike at
one of them, the blocks beside it are evaluated too."""
GATE_PATCHES = 4000
"""Largest number of patches of a unit to which its gates are fitted. Chosen by hand."""
_FEWEST = 50
"""With fewer positive or negative patches no gate is fitted: it stays open. Chosen by hand."""
_RIDGE = 0.01
"""Added to the variances, as a fraction of their mean, to keep the solution stable. Chosen by hand."""


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
    positive, negative = inputs[is_positive], inputs[~is_positive]
    within = (_covariance(positive) + _covariance(negative)) / 2
    within.diagonal().add_(_RIDGE * within.diagonal().mean())
    difference = positive.mean(0) - negative.mean(0)
    weight = torch.linalg.solve(within.double(), difference.double()).float()
    scores = positive @ weight
    return weight, torch.quantile(scores, lost).item()


def _covariance(rows: Tensor) -> Tensor:
    """Return the covariance of rows; its sums are in float32, which is enough beside the ridge."""
    centred = rows - rows.mean(0)
    return centred.T @ centred / (len(rows) - 1)
