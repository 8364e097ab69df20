"""Cluster events channel by channel.

The events of a channel are described by components of their waveforms on the channels around it, reduced to
their principal components, and clustered by ISO-SPLIT (Magland & Barnett, arXiv 1508.04841; SpikeInterface's
version), which cuts only where the density has a dip. A unit between two channels gives a cluster on each;
:mod:`spikewise.discovery.merging` joins them.
"""

from __future__ import annotations

import itertools
import warnings

import numpy as np

from spikewise.core.compiling import keep_compiled
from spikewise.core.progress import Tell
from spikewise.core.threads import results_in_order
from spikewise.discovery.event_loops import describe_events
from spikewise.discovery.held_traces import UNIT, HeldTraces
from spikewise.discovery.neighbours import channels_within
from spikewise.discovery.spike_shapes import SpikeShapes

# Chosen by hand, all of the following.
RADIUS_UM = 70.0  # channels that describe an event
MOST_CHANNELS = 16  # on dense probes, evenly spread ones
NUM_COMPONENTS = 8  # principal components that are clustered
MAX_CLUSTERED = 2000  # events of a channel; the others go to the nearest cluster
NUM_STARTS = 40  # clusters that ISO-SPLIT starts from


def cluster_events(
    held: HeldTraces,
    columns: np.ndarray,
    channels: np.ndarray,
    distance: np.ndarray,
    shapes: SpikeShapes,
    limits: tuple[int, int],
    tell: Tell | None = None,
) -> np.ndarray:
    """Return the cluster of each event, counted over all channels; -1: none.

    `limits` are the fewest events of a cluster, and the seed of the clustering.
    """
    fewest, seed = limits
    from numba import NumbaPendingDeprecationWarning

    keep_isosplit_compiled()
    near = channels_within(distance, RADIUS_UM, MOST_CHANNELS)
    order = np.argsort(channels, kind="stable")
    bounds = np.searchsorted(channels[order], np.arange(held.num_channels + 1))
    groups = [order[low:high] for low, high in itertools.pairwise(bounds) if high - low >= fewest]

    def cluster(events: np.ndarray) -> np.ndarray:
        of = np.repeat(near[channels[events[0]]][None], len(events), axis=0)
        features = np.empty((len(events), near.shape[1], shapes.basis.shape[1]), np.float32)
        describe_events(held.values, columns[events], of, shapes.basis, shapes.before, features)
        return _cluster_features(features.reshape(len(events), -1) * np.float32(UNIT), seed)

    labels = np.full(len(columns), -1)
    count = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NumbaPendingDeprecationWarning)  # of SpikeInterface's own code
        warnings.simplefilter("ignore", UserWarning)  # few events: it starts from fewer clusters
        for events, found in zip(groups, results_in_order(cluster, groups, tell), strict=True):
            for one in np.unique(found):
                members = events[found == one]
                if len(members) >= fewest:
                    labels[members] = count
                    count += 1
    return labels


def keep_isosplit_compiled() -> None:
    """Cache the compiled functions of ISO-SPLIT on disk: compiling them takes 20 s in each process."""
    from spikeinterface.sortingcomponents.clustering import isosplit_isocut

    keep_compiled(isosplit_isocut)


def _cluster_features(features: np.ndarray, seed: int) -> np.ndarray:
    """Return the cluster of each row of features (num_events, num_features)."""
    from spikeinterface.sortingcomponents.clustering.isosplit_isocut import isosplit

    chosen = np.linspace(0, len(features) - 1, min(len(features), MAX_CLUSTERED)).round().astype(int)
    some = features[chosen].astype(np.float64)
    middle = some.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(some - middle, rowvar=False))
    reduced = (features - middle) @ axes[:, : -NUM_COMPONENTS - 1 : -1]
    clustered = np.ascontiguousarray(reduced[chosen])
    starts = max(1, min(NUM_STARTS, len(clustered) // 20))
    found = isosplit(clustered, n_init=starts, seed=seed)
    if len(chosen) == len(features):
        return found
    ids = np.unique(found)
    centres = np.stack([clustered[found == one].mean(axis=0) for one in ids])
    nearest = ((reduced[:, None] - centres[None]) ** 2).sum(axis=2).argmin(axis=1)
    labels = ids[nearest]
    labels[chosen] = found
    return labels
