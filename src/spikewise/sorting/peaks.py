"""From probabilities to spikes: triangle, local maxima, threshold. Tensor in, tensor out.

The network says "this unit" for every sample near a spike, so a perfect spike is a plateau of
``2 * label_radius + 1`` ones. Convolved with a triangle, a plateau becomes one peak at its middle (Han &
Wang, arXiv 2409.13067: 17 points for a plateau of 11). The triangle here is scaled so that the peak of a
perfect plateau is exactly 1, which makes a threshold a fraction of the response to a perfect spike.

The triangle is symmetric and the network's output stands at the centre of its window, so a peak needs no
shift: the authors' published code adds 16 samples where its kernel needs 9, and is 7 samples off.

Conventions: probabilities and responses are (num_samples, num_units).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 4096
"""Whole numbers that a probability of 1 becomes; sums of them are exact in float32. Chosen by hand."""


def triangle_radius(label_radius: int) -> int:
    """Return the triangle's reach to either side: 8 (17 points) for the paper's label radius of 5."""
    return max(1, round(1.6 * label_radius))


def triangle_kernel(label_radius: int) -> Tensor:
    """Return the triangle in whole numbers: 1 2 .. 9 .. 2 1 for the paper's label radius of 5."""
    radius = triangle_radius(label_radius)
    return (radius + 1 - torch.arange(-radius, radius + 1).abs()).float()


def smooth_probabilities(probabilities: Tensor, label_radius: int) -> Tensor:
    """Convolve each unit's probability with the triangle; a perfect plateau responds with 1 at its middle.

    Probabilities are rounded to whole :data:`LEVELS` first, so that all sums are of whole numbers and exact:
    the response does not depend on the order of the additions.

    Parameters
    ----------
    probabilities : Tensor
        (num_samples, num_units)
    label_radius : int
        Half the plateau's length, in samples.

    Returns
    -------
    Tensor
        (num_samples - 2 * triangle_radius, num_units): only where the triangle fits.
    """
    radius = triangle_radius(label_radius)
    plateau = triangle_kernel(label_radius)[radius - label_radius : radius + label_radius + 1].sum().item()
    levels = (probabilities.float() * LEVELS).round_()
    # A triangle is a box convolved with itself; sums of boxes are exact on every device.
    sums = levels.T[:, None, None]
    for _ in range(2):
        sums = functional.avg_pool2d(sums, (1, radius + 1), stride=1, divisor_override=1)
    return sums[:, 0, 0].T / (plateau * LEVELS)


def find_peaks(responses: Tensor, thresholds: Tensor, merge_radius: int) -> tuple[Tensor, Tensor]:
    """Find the samples that exceed the unit's threshold and are the highest within the merge radius.

    A peak is the highest of its unit within `merge_radius` samples to either side; of equals, the first.
    The rule looks no further than that, so it gives the same peaks however a recording is cut.

    Parameters
    ----------
    responses : Tensor
        (num_samples, num_units); the first and last `merge_radius` samples are context only.
    thresholds : Tensor
        (num_units,)
    merge_radius : int
        At least 1.

    Returns
    -------
    sample_index, unit_index : Tensor
        Peaks in order of time, then unit; sample 0 is the first after the leading context.
    """
    by_unit = responses.T  # N, S
    candidates = by_unit[:, merge_radius:-merge_radius]  # N, T
    num_candidates = candidates.shape[1]
    # Maxima of the merge_radius samples before, and of those after, each candidate.
    maxima = functional.max_pool1d(by_unit, merge_radius, stride=1)
    before, after = maxima[:, :num_candidates], maxima[:, merge_radius + 1 :][:, :num_candidates]
    is_peak = (candidates > thresholds[:, None]) & (candidates > before) & (candidates >= after)
    sample_index, unit_index = torch.nonzero(is_peak.T, as_tuple=True)
    return sample_index, unit_index
