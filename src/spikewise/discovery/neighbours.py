"""Which channels of a probe are near each other."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist


def distances(positions: np.ndarray) -> np.ndarray:
    """Return the distances (num_channels, num_channels) between contacts in um."""
    return cdist(positions, positions)


def channels_within(distance: np.ndarray, radius_um: float, most: int) -> np.ndarray:
    """Return the channels (num_channels, P) within a radius of each channel, the nearest first; then -1.

    If more than `most` lie within the radius, as on dense probes, evenly spread ones are taken.
    """
    order = np.argsort(distance, axis=1, kind="stable")
    counts = (distance <= radius_um).sum(axis=1)
    near = np.full((len(distance), min(most, int(counts.max()))), -1, np.int64)
    for channel, count in enumerate(counts):
        chosen = np.linspace(0, count - 1, min(count, near.shape[1])).round().astype(int)
        near[channel, : len(chosen)] = order[channel, chosen]
    return near
