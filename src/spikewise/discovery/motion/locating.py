"""Depths of events: the centre of their sizes on the channels nearby."""

from __future__ import annotations

import numpy as np

from spikewise.core.compiling import compiled
from spikewise.discovery.event_search import Events
from spikewise.discovery.held_traces import UNIT, HeldTraces

WINDOW_MS = (0.27, 0.47)
"""Times before and after the trough in which the size on a channel is measured."""
NUM_NEAR = 16
"""Channels around that of the largest response."""
NOISE_SIZE = 3.5
"""About the size of noise alone in the window, in noise standard deviations; subtracted from each channel."""


def locate_events(
    held: HeldTraces, events: Events, distance: np.ndarray, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, depth (num_events,) in um, and the size (num_events,) in noise standard deviations.

    Parameters
    ----------
    held : HeldTraces
    events : Events
    distance : ndarray, shape (num_channels, num_channels)
        Distances of the channels in um.
    positions : ndarray, shape (num_channels, 2 or 3)
        Positions of the contacts in um.
    """
    near = np.argsort(distance, axis=1, kind="stable")[:, : min(NUM_NEAR, len(distance))]
    before, after = (round(part * held.sampling_frequency / 1000) for part in WINDOW_MS)
    columns = np.rint(events.column).astype(np.int64)
    columns = np.clip(columns, before, max(before, held.num_columns - after - 1))
    sizes = np.empty((len(events), near.shape[1]), np.float32)
    _fill_sizes(held.values, columns, near[events.channel], (before, after), sizes)
    sizes *= UNIT
    weights = np.maximum(sizes - NOISE_SIZE, 0) ** 2
    total = weights.sum(axis=1)
    weights[total == 0, 0] = 1
    weights /= weights.sum(axis=1, keepdims=True)
    places = (weights[:, :, None] * positions[near[events.channel], :2]).sum(axis=1)
    return places[:, 0], places[:, 1], sizes.max(axis=1)


@compiled()
def _fill_sizes(values, columns, channels, window, sizes):  # type: ignore[no-untyped-def]
    """Fill largest minus smallest value (num_events, K) around a column, in steps."""
    before, after = window
    for event in range(len(columns)):
        start, stop = columns[event] - before, columns[event] + after
        for place in range(channels.shape[1]):
            row = values[channels[event, place]]
            low = high = row[start]
            for index in range(start, stop):
                low, high = min(low, row[index]), max(high, row[index])
            sizes[event, place] = high - low
