"""Units whose spikes have two shapes: where the spikes of a unit divide into two tight clusters.

The windows of a unit's spikes are projected on their largest principal components. Two clusters count as
shapes of their own if they are far apart in relation to their width: spikes that overlap with others, or vary
in amplitude, spread widely and do not. Whether both shapes are of one neuron is another question: see
:mod:`.evidence`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# All of these were chosen by hand.
_CORE_MS = (0.5, 1.0)
"""Window before and after the spike in which clusters are searched."""
_MAX_CHANNELS = 12
"""Channels on which they are searched, those with the largest deflections."""
_NUM_COMPONENTS = 4
_FEWEST_SPIKES = 50
"""With fewer windows no unit is divided."""
_LEAST_PART, _LEAST_SPIKES = 0.08, 10
"""Smallest part of a unit, as a fraction of its spikes and as their number."""
_LEAST_DISTANCE = 4.5
"""Smallest distance of two clusters, in relation to their standard deviations."""
_ROUNDS = 10
_MAD = 1.4826


@dataclass(frozen=True)
class Division:
    """How a spike is assigned to one of two shapes of its unit.

    Attributes
    ----------
    samples : slice
        The samples of a window that count.
    weights : ndarray of float32
        (num_samples, num_channels) direction in which the shapes differ most clearly.
    threshold : float
        A spike with a larger projection is of the second shape.
    is_second : ndarray of bool
        (num_windows,) which of the windows, on which it was found, are of the second shape.
    """

    samples: slice
    weights: np.ndarray
    threshold: float
    is_second: np.ndarray

    def assign(self, windows: np.ndarray) -> np.ndarray:
        """Return which windows (num_spikes, num_samples, num_channels) are of the second shape."""
        core = windows[:, self.samples, : self.weights.shape[1]]
        return core.reshape(len(windows), -1) @ self.weights.reshape(-1) > self.threshold


def find_division(windows: np.ndarray, num_before: int, sampling_frequency: float) -> Division | None:
    """Return how the spikes of a unit divide into two shapes; None if they do not.

    Parameters
    ----------
    windows : ndarray
        (num_spikes, num_samples, num_channels) aligned windows; the channels with the largest deflections
        first.
    num_before : int
        Samples before the spike.
    sampling_frequency : float
    """
    if len(windows) < _FEWEST_SPIKES:
        return None
    before, after = (round(side * sampling_frequency / 1000) for side in _CORE_MS)
    samples = slice(max(0, num_before - before), num_before + after)
    core = windows[:, samples, :_MAX_CHANNELS]
    flat = core.reshape(len(core), -1).astype(np.float64)
    middle = np.median(flat, axis=0)
    _, _, components = np.linalg.svd(flat - middle, full_matrices=False)
    components = components[:_NUM_COMPONENTS]
    scores = (flat - middle) @ components.T
    best: tuple[float, np.ndarray, float, np.ndarray] | None = None
    for one in range(scores.shape[1]):
        found = _two_clusters(scores, scores[:, one] > _start(scores[:, one]))
        if found is not None and (best is None or found[0] > best[0]):
            best = found
    if best is None or best[0] < _LEAST_DISTANCE:
        return None
    _, direction, threshold, is_second = best
    weights = direction @ components
    weights = weights.reshape(core.shape[1:]).astype(np.float32)
    return Division(samples, weights, threshold + float(middle @ weights.reshape(-1)), is_second)


def _start(values: np.ndarray) -> float:
    """Return the value in the middle of the widest gap that leaves enough on either side."""
    ordered = np.sort(values)
    least = _least(len(values))
    gaps = np.diff(ordered[least - 1 : len(ordered) - least + 1])
    at = int(gaps.argmax()) + least - 1
    return float(ordered[at] + ordered[at + 1]) / 2


def _two_clusters(
    scores: np.ndarray, is_second: np.ndarray
) -> tuple[float, np.ndarray, float, np.ndarray] | None:
    """Return distance over width of two clusters, direction between them, threshold, and parts."""
    least = _least(len(scores))
    for _ in range(_ROUNDS):
        if min(np.count_nonzero(is_second), np.count_nonzero(~is_second)) < least:
            return None
        middles = [np.median(scores[part], axis=0) for part in (~is_second, is_second)]
        direction = middles[1] - middles[0]
        size = float(np.linalg.norm(direction))
        if size == 0:
            return None
        along = scores @ (direction / size)
        ends = [float(np.median(along[part])) for part in (~is_second, is_second)]
        widths = [
            max(_MAD * float(np.median(np.abs(along[part] - end))), 1e-6)
            for part, end in zip((~is_second, is_second), ends, strict=True)
        ]
        threshold = (ends[0] * widths[1] + ends[1] * widths[0]) / sum(widths)
        previous, is_second = is_second, along > threshold
        if np.array_equal(previous, is_second):
            break
    if min(np.count_nonzero(is_second), np.count_nonzero(~is_second)) < least:
        return None
    return (
        (ends[1] - ends[0]) / math.sqrt((widths[0] ** 2 + widths[1] ** 2) / 2),
        direction / size,
        threshold,
        is_second,
    )


def _least(count: int) -> int:
    return max(_LEAST_SPIKES, round(_LEAST_PART * count))
