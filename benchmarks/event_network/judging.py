"""The network on the events of a recording, and its place in the search for units.

The first filters of the network are interpolated to the sampling frequency and to quarters of a sample, so
they are computed by the compiled loop that describes events. Only events that the bank of shapes found are
judged: the network at every second sample of every channel would take hundreds of times as long.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from event_network.network import (
    BEFORE,
    LENGTH,
    NEAR,
    RADIUS_UM,
    RATE,
    EventNetwork,
    offsets_of,
)
from spikewise.core.progress import Tell
from spikewise.discovery import clustering, discover
from spikewise.discovery.event_loops import describe_events
from spikewise.discovery.event_search import Events, EventSearch
from spikewise.discovery.held_traces import UNIT, HeldTraces
from spikewise.discovery.neighbours import channels_within, distances
from spikewise.discovery.spike_shapes import NUM_FRACTIONS, SpikeShapes

WAYS = ("bank", "embed", "judge", "both")
LOW_THRESHOLD = 4.0
"""Response above which the network judges events; the bank alone finds those above 5."""
EVENTS_AT_ONCE = 512


class EventJudge:
    """The network with the weights of the contacts of one probe.

    Attributes
    ----------
    seconds : float
        CPU seconds that it took so far.
    """

    def __init__(self, network: EventNetwork, positions: np.ndarray):
        self.seconds = 0.0
        self._network = network
        self._near = channels_within(distances(positions), RADIUS_UM, NEAR)
        offsets, is_there = offsets_of(self._near, positions)
        with torch.inference_mode():
            self._weights = network.weights_of(torch.from_numpy(offsets), torch.from_numpy(is_there))
        self._basis: dict[float, tuple[np.ndarray, int]] = {}

    def __call__(
        self, held: HeldTraces, columns: np.ndarray, channels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the probability (N,) that a spike is centred at each event, and its embedding (N, D)."""
        started = time.process_time()
        rate = held.sampling_frequency
        if rate not in self._basis:
            self._basis[rate] = filters_at(self._network, rate)
        basis, before = self._basis[rate]
        parts: list[tuple[Tensor, Tensor]] = []
        with torch.inference_mode():
            for first in range(0, max(1, len(columns)), EVENTS_AT_ONCE):
                some = slice(first, first + EVENTS_AT_ONCE)
                near = self._near[channels[some]]
                filtered = np.empty((*near.shape, basis.shape[1]), np.float32)
                describe_events(held.values, columns[some], near, basis, before, filtered)
                responses = torch.from_numpy(filtered) * UNIT + self._network.filters.bias
                parts.append(self._network.from_filtered(responses, self._weights[channels[some]]))
        logits, embedded = (torch.cat(of_all) for of_all in zip(*parts, strict=True))
        self.seconds += time.process_time() - started
        return torch.sigmoid(logits).numpy(), embedded.numpy()


def filters_at(network: EventNetwork, rate: float) -> tuple[np.ndarray, int]:
    """Return the first filters (NUM_FRACTIONS, F, samples) at a sampling frequency, and the samples ahead."""
    before = max(4, round(BEFORE / RATE * rate))
    length = before + max(6, round((LENGTH - BEFORE) / RATE * rate)) + 1
    weight = network.filters.weight.detach().double().numpy()
    margin = 4
    spline = CubicSpline(np.arange(length + 2 * margin), np.eye(length + 2 * margin), axis=0)
    basis = []
    for part in range(NUM_FRACTIONS):
        at = (np.arange(LENGTH) - BEFORE) / RATE * rate + before + margin + part / NUM_FRACTIONS
        basis.append((weight @ spline(at))[:, margin : margin + length])
    return np.ascontiguousarray(np.stack(basis), np.float32), before


@contextmanager
def plugged_in(
    way: str, network: EventNetwork | None, positions: np.ndarray, least: float = 0.5
) -> Iterator[EventJudge | None]:
    """Let the search for units find or describe events in another way; yield what judges them.

    Events with a probability below `least` are dropped.
    """
    if way == "bank" or network is None:
        yield None
        return
    judge = EventJudge(network, positions)

    class JudgedSearch(EventSearch):
        """Events of the bank above a lower threshold that the network takes for spikes."""

        def find(
            self,
            threshold: float,
            tell: Tell | None = None,
            within: Sequence[tuple[int, int]] | None = None,
        ) -> Events:
            events = super().find(LOW_THRESHOLD, tell, within)
            probability, _ = judge(self._held, events.column, events.channel)
            kept = probability >= least
            return Events(events.column[kept], events.channel[kept], events.height[kept])

    def cluster(
        held: HeldTraces,
        columns: np.ndarray,
        channels: np.ndarray,
        distance: np.ndarray,
        shapes: SpikeShapes,
        limits: tuple[int, int],
        tell: Tell | None = None,
    ) -> np.ndarray:
        del distance, shapes, tell
        _, embedded = judge(held, columns, channels)
        return cluster_embedded(embedded, channels, held.num_channels, limits)

    replaced = {
        "embed": {"cluster_events": cluster},
        "judge": {"EventSearch": JudgedSearch},
        "both": {"cluster_events": cluster, "EventSearch": JudgedSearch},
    }[way]
    with patch.multiple(discover, **replaced):
        yield judge


def cluster_embedded(
    embedded: np.ndarray, channels: np.ndarray, num_channels: int, limits: tuple[int, int]
) -> np.ndarray:
    """Return the cluster of each event as :func:`spikewise.discovery.clustering.cluster_events` does."""
    fewest, seed = limits
    clustering.keep_isosplit_compiled()
    order = np.argsort(channels, kind="stable")
    bounds = np.searchsorted(channels[order], np.arange(num_channels + 1))
    labels, count = np.full(len(channels), -1), 0
    for low, high in itertools.pairwise(bounds):
        events = order[low:high]
        if len(events) < fewest:
            continue
        found = clustering._cluster_features(embedded[events], seed)
        for one in np.unique(found):
            members = events[found == one]
            if len(members) >= fewest:
                labels[members] = count
                count += 1
    return labels
