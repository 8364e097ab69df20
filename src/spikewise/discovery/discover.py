"""Find the units of a recording from nothing but its traces.

1. Events: peaks of matched filters, summed over time and near channels (:mod:`event_search`).
2. Clusters of events, channel by channel (:mod:`clustering`); clusters of one unit are joined
   (:mod:`merging`).
3. The events are explained by the clusters' mean waveforms, the largest first, and subtracted
   (:mod:`peeling`). What is left is searched again: overlapped spikes, and units that were missed.
4. All events are explained by all units. Units that nothing supports are dropped, and one unit that was
   found in parts is joined.

Nothing is drawn at random but the start of k-means within ISO-SPLIT, which has a seed.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikewise.core.threads import one_thread_each
from spikewise.data.recordings.reader import Traces
from spikewise.discovery.clustering import MIN_SPIKES, cluster_events
from spikewise.discovery.event_search import Events, EventSearch
from spikewise.discovery.held_traces import HeldTraces
from spikewise.discovery.merging import Clusters, Merger
from spikewise.discovery.neighbours import distances
from spikewise.discovery.peeling import Explained, Peeler
from spikewise.discovery.spike_shapes import load_shapes
from spikewise.discovery.unit_shapes import ShapeMeter, UnitShape

logger = logging.getLogger(__name__)

# Chosen by hand on the scenes `plain` and `tetrode` of seed 1, all of the following.
THRESHOLD = 5.0
"""Smallest response of an event, in noise standard deviations."""
MIN_NORM = 7.0
"""Smallest norm of a mean waveform, in noise standard deviations."""
MIN_AMPLITUDE = 0.85
"""Smallest median size of a unit's spikes relative to its mean waveform: others explain its spikes better."""
MAX_UNEXPLAINED = 0.5
"""Largest energy that a unit leaves at its spikes, relative to its own."""
MAX_FOLLOWED = 0.6
"""Largest fraction of a unit's spikes within FOLLOWED_MS of those of a larger unit: it is a part of that unit."""
FOLLOWED_MS = 1.0
MIN_RATE_HZ = 0.05
"""Smallest rate of a unit in the traces that are looked at."""


@dataclass(frozen=True)
class Discovered:
    """Units found in a recording.

    Attributes
    ----------
    trains : list of ndarray of int64
        Global frames of the spikes of each unit, ascending; units in order of their position.
    facts : dict
        Counts and seconds of each step; JSON types only.
    """

    trains: list[np.ndarray]
    facts: dict[str, Any] = field(default_factory=dict)


def discover_units(traces: Traces, positions: np.ndarray, seed: int) -> Discovered:
    """Find the units of preprocessed traces.

    Parameters
    ----------
    traces : Traces
        In noise standard deviations.
    positions : ndarray, shape (num_channels, 2 or 3)
        Positions of the contacts in um.
    seed : int
        Seed of the clustering.
    """
    with one_thread_each():
        return _Discovery(traces, positions, seed).run()


class _Discovery:
    """One search for units, with its seconds and counts."""

    def __init__(self, traces: Traces, positions: np.ndarray, seed: int):
        self._started = time.perf_counter()
        self.facts: dict[str, Any] = {"seconds": {}}
        self.seed = seed
        self.distance = distances(positions)
        self.positions = positions
        self.held = HeldTraces(traces)
        self.shapes = load_shapes(traces.sampling_frequency)
        self.meter = ShapeMeter(self.held, self.distance, self.shapes.before, self.shapes.bank.shape[1])
        self.merger = Merger(self.held, self.distance, self.shapes, self.meter)
        self.fewest = max(MIN_SPIKES, round(MIN_RATE_HZ * self.held.seconds))
        self._note("reading", looked_at_s=round(self.held.seconds, 3))

    def _note(self, step: str, **counts: float) -> None:
        now = time.perf_counter()
        self.facts["seconds"][step] = round(now - self._started, 3)
        self.facts |= counts
        self._started = now
        logger.info("units: %s took %.1f s %s", step, self.facts["seconds"][step], counts or "")

    def run(self) -> Discovered:
        search = EventSearch(self.held, self.distance, self.shapes)
        events = search.find(THRESHOLD)
        self._note("events", num_events=len(events))
        units = self._clusters(events, "")
        if units:
            peeler = self._peeler(units)
            first = peeler.explain(events.column, events.channel, events.height)
            self._note("first peeling", num_explained=int((first.unit >= 0).sum()))
            left = search.find(THRESHOLD)
            second = peeler.explain(left.column, left.channel, left.height)
            events, new = self._second_look(events, first, left, second)
            peeler.restore()
            units += new
        trains = self._final(units, events) if units else []
        return Discovered(trains, self.facts)

    def _clusters(self, events: Events, step: str) -> list[UnitShape]:
        """Cluster events, join clusters of one unit, and return the mean waveforms."""
        columns, channels = events.column.copy(), events.channel.copy()
        labels = cluster_events(self.held, columns, channels, self.distance, self.shapes, self.seed)
        self._note(step + "clustering", **{step.replace(" ", "_") + "num_clusters": int(labels.max(initial=-1) + 1)})
        clusters = Clusters(columns, channels, labels)
        merged = self.merger.merge(clusters)
        self._note(step + "merging", **{step.replace(" ", "_") + "num_merged": merged})
        if clusters.labels.max(initial=-1) < 0:
            return []
        return [unit for unit in self.merger.align(clusters) if unit.norm >= MIN_NORM]

    def _peeler(self, units: list[UnitShape]) -> Peeler:
        return Peeler(self.held, self.distance, units, self.shapes.before)

    def _second_look(
        self, events: Events, first: Explained, left: Events, second: Explained
    ) -> tuple[Events, list[UnitShape]]:
        """Return all events, and units among those that no unit explains; spikes are subtracted now."""
        rest = Events(*(array[second.unit < 0] for array in (left.column, left.channel, left.height)))
        new = self._clusters(rest, "second ")
        is_first, is_second = first.unit >= 0, second.unit >= 0
        column = np.concatenate([first.column[is_first], second.column[is_second], rest.column])
        channel = np.concatenate([events.channel[is_first], left.channel[is_second], rest.channel])
        height = np.concatenate([events.height[is_first], left.height[is_second], rest.height])
        order = np.lexsort((channel, column))
        self._note("second look", num_unexplained=len(rest), num_new_clusters=len(new))
        return Events(column[order], channel[order], height[order]), new

    def _final(self, units: list[UnitShape], events: Events) -> list[np.ndarray]:
        """Explain all events by all units, drop and join units, and return their spikes."""
        dropped: dict[str, int] = {}
        for _ in range(2):
            explained, units = self._explain_and_drop(units, events, dropped)
            clusters = Clusters(explained.column.copy(), events.channel.copy(), explained.unit.copy())
            joined = self.merger.merge(clusters)
            dropped["joined"] = dropped.get("joined", 0) + joined
            if clusters.labels.max(initial=-1) < 0:
                return []
            units = self.merger.align(clusters)
        explained, units = self._explain_and_drop(units, events, dropped)
        main = np.array([unit.main_channel for unit in units], int)
        trains = []
        order = np.lexsort((np.arange(len(units)), *np.round(self.positions[main].T, 3)))
        for unit in order:
            frames, inside = self.held.frames_of(np.rint(explained.column[explained.unit == unit]).astype(np.int64))
            trains.append(np.unique(frames[inside]))
        self._note("last peeling", num_units=len(trains), dropped=dropped)
        return trains

    def _explain_and_drop(
        self, units: list[UnitShape], events: Events, dropped: dict[str, int]
    ) -> tuple[Explained, list[UnitShape]]:
        """Explain the events by the units, and drop units that nothing supports, until all are kept."""
        while True:
            peeler = self._peeler(units)
            explained = peeler.explain(events.column, events.channel, events.height)
            peeler.restore()
            reasons = [self._reason(index, unit, explained) for index, unit in enumerate(units)]
            reasons = _with_parts(reasons, explained, FOLLOWED_MS * self.held.sampling_frequency / 1000)
            for reason in filter(None, reasons):
                dropped[reason] = dropped.get(reason, 0) + 1
            kept = [unit for unit, reason in zip(units, reasons, strict=True) if reason is None]
            if len(kept) == len(units) or not kept:
                return explained, kept
            units = kept

    def _reason(self, index: int, unit: UnitShape, explained: Explained) -> str | None:
        """Return why a unit is dropped, or None."""
        mine = explained.unit == index
        if mine.sum() < self.fewest:
            return "few spikes"
        if unit.norm < MIN_NORM:
            return "weak"
        if np.median(explained.amplitude[mine]) < MIN_AMPLITUDE:
            return "others explain it"
        if np.median(explained.unexplained[mine]) > MAX_UNEXPLAINED:
            return "unexplained energy"
        return None


def _with_parts(reasons: list[str | None], explained: Explained, within: float) -> list[str | None]:
    """Add the units most of whose spikes come with those of a larger unit."""
    order = np.argsort(explained.column, kind="stable")
    unit, column = explained.unit[order], explained.column[order]
    sizes = np.bincount(unit[unit >= 0], minlength=len(reasons))
    trains = [column[unit == index] for index in range(len(reasons))]
    reasons = list(reasons)
    for index in np.argsort(sizes, kind="stable"):
        train = trains[index]
        if reasons[index] is not None or not len(train):
            continue
        for other, theirs in enumerate(trains):
            if other == index or reasons[other] is not None or sizes[other] < sizes[index]:
                continue
            low = np.searchsorted(theirs, train - within)
            if (np.searchsorted(theirs, train + within) > low).mean() > MAX_FOLLOWED:
                reasons[index] = "part of another unit"
                break
    return reasons


