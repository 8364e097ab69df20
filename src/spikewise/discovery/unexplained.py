"""Look at a sorted recording again: events that no unit explains, and the units among them.

1. The mean waveforms of the sorted units are measured from their spikes, and these are subtracted. If new
   units are asked for, the spikes are clustered before: a network may claim the spikes of a neuron that it
   never learnt, and then has two clusters. The one that is most like the unit stays, the other may be a unit.
2. What is left is searched for events, as in the first search (:mod:`discover`). Events that a unit explains
   after all are subtracted, too. The others are *unexplained*.
3. On request, they are clustered. A cluster is a new unit if a unit of the first search would be kept with
   these spikes, and if it is not a part of a unit that is known.

The parts that are looked at depend on the length of the recording only, so the result does not depend on how
the recording was sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from spikewise.core.progress import ProgressCallback
from spikewise.core.threads import one_thread_each, results_in_order
from spikewise.data.recordings.reader import Traces
from spikewise.data.spatial.motion import MotionOfFrames
from spikewise.discovery.clustering import cluster_events
from spikewise.discovery.discover import THRESHOLD, UNIT_THRESHOLD, Discovery, Found
from spikewise.discovery.event_search import Events, EventSearch, UnitSearch
from spikewise.discovery.held_traces import MEMORY_BYTES, STRETCH_S, Part, cut_traces, spread_parts
from spikewise.discovery.merging import MAX_DISTANCE_UM, Clusters
from spikewise.discovery.peeling import Explained
from spikewise.discovery.unit_shapes import UnitShape, similarity
from spikewise.models.unit_waveforms import UnitWaveforms

# Chosen by hand, all of the following.
COUNTED_S = 20.0
"""Most seconds in which unexplained events are counted."""
COUNTED_BYTES = 2**28
"""Most memory for counting them: 35 s of 128 channels."""
_SHIFT_MS = 0.8
"""Largest time shift between a unit as it was learnt and its spikes."""
_MAIN_SPIKES = 30
"""Spikes that choose the main channel of a unit."""
REMAINDER_MS = 1.5
"""Time around the spike of a unit in which smaller events are a remainder of it."""
REMAINDER_UM = 250.0
"""Distance from a unit's main channel within which they are."""
REMAINDER = 0.3
"""Largest height of a remainder, relative to the spike."""


@dataclass(frozen=True)
class SortedUnits:
    """The spikes of the sorted units of a group, in any order.

    Attributes
    ----------
    frames, units : ndarray of int64, shape (num_spikes,)
        Global frames, and indices of the units.
    waveforms : UnitWaveforms or None
        Mean waveforms of the units as they were learnt, if they are known.
    """

    frames: np.ndarray
    units: np.ndarray
    waveforms: UnitWaveforms | None = None


@dataclass(frozen=True)
class Unexplained:
    """Events that no unit explains; the arrays are (num_events,), in order of time.

    Attributes
    ----------
    frames : ndarray of int64
        Global frames.
    channels : ndarray of int64
    num_spikes : int
        Spikes of the sorted units in the parts that were looked at.
    stretches : tuple of (int, int)
        These parts, in global frames (half open).
    trains : list of ndarray of int64
        Global frames of the spikes of each new unit, ascending.
    facts : dict
        Counts and seconds of each step; JSON types only.
    """

    frames: np.ndarray
    channels: np.ndarray
    num_spikes: int
    stretches: tuple[tuple[int, int], ...]
    trains: list[np.ndarray]
    facts: dict[str, Any]


class _Parts(NamedTuple):
    """Clusters of the spikes of sorted units: for each unit the columns of the one that is most like it.

    `others` are the other clusters.
    """

    typical: list[np.ndarray]
    others: Found


def parts_to_count(traces: Traces) -> list[Part]:
    """Return the evenly spread parts in which unexplained events are counted: at most COUNTED_S."""
    whole = cut_traces(traces, max(1, round(STRETCH_S * traces.sampling_frequency)))
    most = min(COUNTED_S / STRETCH_S, len(spread_parts(traces, COUNTED_BYTES)))
    return _spread(whole, max(1, round(most)))


def parts_to_search(traces: Traces, is_searched: bool) -> list[Part]:
    """Return the evenly spread parts in which new units are searched, as many as fit into memory.

    Parameters
    ----------
    traces : Traces
    is_searched : bool
        Whether the units were found by the first search in these traces: its parts are left out.
    """
    whole = cut_traces(traces, max(1, round(STRETCH_S * traces.sampling_frequency)))
    fitting = spread_parts(traces, MEMORY_BYTES)
    if not is_searched:
        return fitting
    seen = set(fitting)
    return _spread([part for part in whole if part not in seen], len(fitting))


def _spread(parts: list[Part], most: int) -> list[Part]:
    """Return at most so many parts, evenly spread."""
    chosen = np.linspace(0, len(parts) - 1, min(len(parts), most)).round().astype(int)
    return [parts[index] for index in chosen]


class SecondLook(Discovery):
    """A search of traces whose units are sorted already.

    Parameters
    ----------
    traces : Traces
        In noise standard deviations.
    positions : ndarray, shape (num_channels, 2 or 3)
        Positions of the contacts in um.
    seed : int
        Seed of the clustering.
    progress : callable
    motion : MotionOfFrames or None
        The motion that was removed from the traces.
    parts : sequence of Part
        What is looked at.
    """

    def __init__(
        self,
        traces: Traces,
        positions: np.ndarray,
        seed: int,
        progress: ProgressCallback,
        motion: MotionOfFrames | None,
        parts: Sequence[Part],
    ):
        with one_thread_each():
            super().__init__(traces, positions, seed, progress, motion, parts=parts)

    def look(self, spikes: SortedUnits, find_units: bool) -> Unexplained:
        """Return the unexplained events and, on request, the units among them.

        Parameters
        ----------
        spikes : SortedUnits
            At least all spikes in the parts that are looked at.
        find_units : bool
        """
        with one_thread_each():
            return self._search_again(spikes, find_units)

    def _search_again(self, spikes: SortedUnits, find_units: bool) -> Unexplained:
        tell = self._begin("second events")
        columns, units = self._columns(spikes)
        parts = self._split(columns, units, spikes.waveforms) if find_units and len(units) else None
        known, explained = self._known(columns, parts)
        search = EventSearch(self.held, self.distance, self.shapes)
        peeler = self._peeler(known) if known.units else None
        if peeler is not None:
            peeler.explain(explained.column, explained.channel, explained.height)
        left = search.find(THRESHOLD, tell)
        is_rest = np.ones(len(left), bool)
        if peeler is not None:
            is_rest = peeler.explain(left.column, left.channel, left.height).unit < 0
        is_rest &= ~self._are_remainders(left, explained)
        rest = _chosen(left, is_rest)
        self._note("second events", num_left=len(left), num_unexplained=len(rest))
        trains: list[np.ndarray] = []
        new = Found([], [], [])
        if find_units:
            new = self._clusters(rest, "")
            new = new if parts is None else parts.others.with_others(new)
        if peeler is not None:
            peeler.restore()  # the traces may be those that all others read
        if new.units:
            trains = self._new_units(known, new, _in_order(explained, left))
        self._steps.end(f"{len(trains)} new units")
        frames, inside = self.held.frames_of(np.rint(rest.column).astype(np.int64))
        facts = self.facts | {"looked_at_s": round(self.held.seconds, 3), "num_new_units": len(trains)}
        stretches = self.held.stretches
        return Unexplained(frames[inside], rest.channel[inside], len(explained), stretches, trains, facts)

    def _columns(self, spikes: SortedUnits) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the columns of the spikes of each unit that fires in the parts, and the units' indices."""
        order = np.lexsort((spikes.frames, spikes.units))
        units, bounds = np.unique(spikes.units[order], return_index=True)
        trains = np.split(spikes.frames[order], bounds[1:]) if len(units) else []
        columns = [self.held.held_columns(train).astype(np.float64) for train in trains]
        fires = np.array([len(of_unit) > 0 for of_unit in columns], bool)
        return [of_unit for of_unit in columns if len(of_unit)], units[fires]

    def _main_channel(self, columns: np.ndarray) -> int:
        """Return the channel with the most energy of the mean waveform of spikes."""
        few = columns[:: max(1, len(columns) // _MAIN_SPIKES)]
        every = np.arange(self.held.num_channels)
        return int((self.meter.whole(few, every) ** 2).sum(axis=1).argmax())

    def _known(self, columns: list[np.ndarray], parts: _Parts | None) -> tuple[Found, Events]:
        """Return the mean waveforms of units that fire, and their spikes; `parts` are clusters of these."""
        typical = columns if parts is None else parts.typical

        def measure(of_unit: np.ndarray) -> tuple[UnitShape, np.ndarray]:
            unit = self.meter.measure(of_unit, self._main_channel(of_unit))
            return unit, self.meter.tails(unit, of_unit)

        measured = list(results_in_order(measure, typical))
        sizes = [len(of_unit) for of_unit in columns]
        found = Found([unit for unit, _ in measured], [tails for _, tails in measured], sizes)
        return found, _in_order(
            Events(
                np.concatenate([np.empty(0), *columns]),
                np.repeat(np.array([unit.main_channel for unit in found.units], np.int64), sizes),
                np.repeat(np.array([unit.norm for unit in found.units], np.float32), sizes),
            )
        )

    def _split(self, columns: list[np.ndarray], units: np.ndarray, waveforms: UnitWaveforms | None) -> _Parts:
        """Cluster the spikes of each unit; see the top of this module."""
        sizes = [len(of_unit) for of_unit in columns]
        of_unit = np.repeat(np.arange(len(columns)), sizes)
        main = list(results_in_order(self._main_channel, columns))
        at, channels = np.concatenate(columns), np.repeat(np.array(main, np.int64), sizes)
        limits = self.fewest, self.seed
        tell = self._begin("clustering")
        labels = cluster_events(self.held, at, channels, self.distance, self.shapes, limits, tell)
        clusters = Clusters(at.copy(), channels, labels)
        merged = self.merger.merge(clusters, self._begin("merging"))
        found = self.merger.align(clusters) if clusters.labels.max(initial=-1) >= 0 else []
        members = clusters.members(len(found))
        owners = [int(np.bincount(of_unit[events]).argmax()) for events in members]
        typical, is_other = list(columns), np.ones(len(found), bool)
        for unit in range(len(columns)):
            mine = [index for index, owner in enumerate(owners) if owner == unit]
            if mine:
                learnt = None if waveforms is None else self._learnt(waveforms, int(units[unit]))
                best = max(mine, key=lambda index: self._likeness(found[index], members[index], learnt))
                is_other[best] = False
                typical[unit] = clusters.columns[members[best]]
        clusters.labels[~np.append(is_other, False)[clusters.labels]] = -1
        clusters.compact()
        others = self._measured(clusters)
        self._note(
            "clustering known spikes", num_parts=len(found), num_joined=merged, num_others=len(others.units)
        )
        return _Parts(typical, others)

    def _likeness(self, shape: UnitShape, events: np.ndarray, learnt: UnitShape | None) -> tuple[float, int]:
        """Return how like a cluster is to a unit: by its mean waveform, or by its size."""
        reach = round(_SHIFT_MS * self.held.sampling_frequency / 1000)
        alike = 0.0 if learnt is None else similarity(learnt, shape, reach)[0]
        return alike, len(events)

    def _learnt(self, waveforms: UnitWaveforms, unit: int) -> UnitShape | None:
        """Return the mean waveform of a unit as it was learnt, in the traces that are held."""
        channels = waveforms.channel_index[unit]
        channels = channels[channels >= 0]
        if not len(channels):
            return None
        whole = np.zeros((self.held.num_channels, self.meter.length), np.float32)
        long = waveforms.weights[unit, : len(channels)] @ waveforms.shapes
        skipped = waveforms.before - self.meter.before
        first, length = max(0, skipped), self.meter.length
        middle = long[:, first : max(0, skipped + length)]
        whole[channels, max(0, -skipped) : max(0, -skipped) + middle.shape[1]] = middle
        whole = self.held.whitened(whole)
        main = int((whole**2).sum(axis=1).argmax())
        near = self.meter.near[main][self.meter.near[main] >= 0]
        return UnitShape(main, near, whole[near], 0)

    def _are_remainders(self, events: Events, spikes: Events) -> np.ndarray:
        """Return which events are what the subtraction of a much larger spike left."""
        reach = REMAINDER_MS * self.held.sampling_frequency / 1000
        low = np.searchsorted(spikes.column, events.column - reach)
        high = np.searchsorted(spikes.column, events.column + reach)
        found = np.zeros(len(events), bool)
        for index, (first, last) in enumerate(zip(low, high, strict=True)):
            is_near = self.distance[events.channel[index], spikes.channel[first:last]] <= REMAINDER_UM
            largest = spikes.height[first:last][is_near].max(initial=0)
            found[index] = events.height[index] < REMAINDER * largest
        return found

    def _new_units(self, known: Found, new: Found, events: Events) -> list[np.ndarray]:
        """Return the spikes of the new units that are kept, in order of the units' positions."""
        self.num_known = len(known.units)
        tell = self._begin("dropping")
        explained = self._explained(known.with_others(new), events, tell)
        new = self._distinct(known, new, explained, events)
        self._note("dropping", num_distinct=len(new.units))
        if new.units:
            both = known.with_others(new)
            explained = self._explained(both, events, tell)
            new = new.chosen(self._no_sums(explained, both.units)[len(known.units) :])
        trains = self._placed(known, new, events) if new.units else []
        self._note("last peeling", dropped=self.dropped)
        return trains

    def _distinct(self, known: Found, new: Found, explained: Explained, events: Events) -> Found:
        """Return the new units that their spikes support, without those that are a unit that is known."""
        count = len(known.units)
        both = known.with_others(new)
        kept = np.array(self._supported(explained, both.units))
        main = np.array([unit.main_channel for unit in both.units])
        is_near = self.distance[main[:, None], main[count:]].min(axis=1, initial=np.inf) <= MAX_DISTANCE_UM
        labels = np.where(np.append(kept & is_near, False)[explained.unit], explained.unit, -1)
        is_old = (labels >= 0) & (labels < count)
        clusters = Clusters(explained.column.copy(), events.channel.copy(), labels)
        self.dropped["joined"] = self.merger.merge(clusters)
        old = np.unique(clusters.labels[is_old])
        clusters.labels[np.isin(clusters.labels, old)] = -1
        clusters.compact()
        return self._measured(clusters)

    def _placed(self, known: Found, new: Found, events: Events) -> list[np.ndarray]:
        """Return the spikes of new units: those of the events, and those that only their waveforms find."""
        tell = self._begin("last peeling")
        peeler = self._peeler(known.with_others(new))
        first = peeler.explain(events.column, events.channel, events.height, tell)
        search = UnitSearch(self.held, self.distance, self._peeler(new).units)
        missed = search.find(UNIT_THRESHOLD)
        second = peeler.explain(missed.column, missed.channel, missed.height)
        peeler.restore()
        main = np.array([unit.main_channel for unit in new.units], int)
        trains = []
        for unit in np.lexsort((np.arange(len(main)), *np.round(self.positions[main].T, 3))):
            index = unit + len(known.units)
            columns = np.concatenate([spikes.column[spikes.unit == index] for spikes in (first, second)])
            frames, inside = self.held.frames_of(np.rint(columns).astype(np.int64))
            trains.append(np.unique(frames[inside]))
        return trains


def _chosen(events: Events, kept: np.ndarray) -> Events:
    return Events(events.column[kept], events.channel[kept], events.height[kept])


def _in_order(*parts: Events) -> Events:
    """Return events of several lists in order of time."""
    column, channel, height = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("column", "channel", "height")
    )
    order = np.lexsort((channel, column))
    return Events(column[order], channel[order], height[order])
