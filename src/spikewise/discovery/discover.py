"""Find the units of a recording from nothing but its traces.

1. Events: peaks of matched filters, summed over time and near channels (:mod:`event_search`).
2. Clusters of events, channel by channel (:mod:`clustering`); clusters of one unit are joined
   (:mod:`merging`).
3. The events are explained by the clusters' mean waveforms, the largest first, and subtracted
   (:mod:`peeling`). What is left is searched again: overlapped spikes, and units that were missed.
4. All events are explained by all units. Units that nothing supports are dropped, and one unit that was
   found in parts is joined.
5. In the parts from which networks learn, spikes that are still missing are searched with the units' own
   mean waveforms.

Nothing is drawn at random but the start of k-means within ISO-SPLIT, which has a seed.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikewise.core.progress import FINDING_UNITS, READING, ProgressCallback, Steps, Tell, silent
from spikewise.core.threads import one_thread_each
from spikewise.data.recordings.reader import Traces
from spikewise.data.spatial.motion import MotionOfFrames
from spikewise.discovery.clustering import cluster_events
from spikewise.discovery.event_search import THRESHOLD, Events, EventSearch, FirstLook, UnitSearch
from spikewise.discovery.held_traces import HeldTraces, Part, spread_parts, whitening_of
from spikewise.discovery.merging import Clusters, Merger
from spikewise.discovery.neighbours import distances
from spikewise.discovery.peeling import Explained, Peeler
from spikewise.discovery.spike_shapes import load_shapes
from spikewise.discovery.unit_shapes import ShapeMeter, UnitShape, are_sums

logger = logging.getLogger(__name__)

# Chosen by hand on the scenes `plain` and `tetrode` of seed 1, all of the following.
UNIT_THRESHOLD = 4.5
"""Smallest response to a unit's own mean waveform of a spike that was missed."""
MIN_NORM = 7.0
"""Smallest norm of a mean waveform, in noise standard deviations."""
MIN_AMPLITUDE = 0.85
"""Smallest median size of a unit's spikes relative to its mean waveform: others explain its spikes better."""
MANY_MORE = 3.0
"""A unit that explains so many times the spikes of its cluster is measured again."""
MAX_UNEXPLAINED = 0.5
"""Largest energy that a unit leaves at its spikes, relative to its own."""
MAX_FOLLOWED = 0.6
"""Largest fraction of a unit's spikes within FOLLOWED_MS of those of a unit with a larger waveform: it is a
part of that unit."""
FOLLOWED_MS = 2.5
SUM_REACH_MS = 0.4
"""Largest time shift between the spikes of two units that fire together so often that their sum is found."""
MAX_PERIODIC = 0.5
"""Largest fraction of a unit's intervals that are multiples of one period."""
PERIOD_MS = 5.0
"""Shortest such period."""
LEARNT_S = 60.0
"""Longest duration from which units are learnt."""
MIN_SPIKES = (10, 20)
"""Fewest spikes of a unit in a very short recording, and in others."""
MIN_RATES_HZ = (0.1, 0.05)
"""Smallest rate of a unit in a short recording, and in a long one."""


STEPS = {
    "events": 13.0,
    "clustering": 6.0,
    "merging": 13.0,
    "peeling": 17.0,
    "second events": 12.0,
    "second clustering": 1.0,
    "second merging": 1.0,
    "second peeling": 2.0,
    "dropping": 18.0,
    "last peeling": 17.0,
}
"""Percent of the seconds of each step, for the progress: means over `plain` and `tetrode` of seed 1."""


@dataclass(frozen=True)
class Discovered:
    """Units found in a recording.

    Attributes
    ----------
    trains : list of ndarray of int64
        Global frames of the spikes of each unit, ascending; units in order of their position.
    stretches : tuple of (int, int)
        Parts of the recording from which units are learnt, in global frames: at most LEARNT_S, evenly spread.
    facts : dict
        Counts and seconds of each step; JSON types only.
    """

    trains: list[np.ndarray]
    stretches: tuple[tuple[int, int], ...]
    facts: dict[str, Any]


def discover_units(
    traces: Traces,
    positions: np.ndarray,
    seed: int,
    progress: ProgressCallback = silent,
    motion: MotionOfFrames | None = None,
    look: FirstLook | None = None,
) -> Discovered:
    """Find the units of preprocessed traces.

    Parameters
    ----------
    traces : Traces
        In noise standard deviations.
    positions : ndarray, shape (num_channels, 2 or 3)
        Positions of the contacts in um.
    seed : int
        Seed of the clustering.
    progress : callable
        Called with the progress of reading, and of finding units.
    motion : MotionOfFrames, optional
        The motion that was removed from the traces.
    look : FirstLook, optional
        The traces as they are now, and their events; the traces change. Default: they are read and searched.
    """
    with one_thread_each():
        return Discovery(traces, positions, seed, progress, motion, look).run()


@dataclass(frozen=True)
class Found:
    """Units with their mean waveforms, what comes before and after each, and the sizes of their clusters."""

    units: list[UnitShape]
    tails: list[np.ndarray]
    sizes: list[int]

    def chosen(self, kept: Sequence[bool]) -> Found:
        """Return the units that are kept."""
        chosen = [index for index, is_kept in enumerate(kept) if is_kept]
        return Found(
            [self.units[index] for index in chosen],
            [self.tails[index] for index in chosen],
            [self.sizes[index] for index in chosen],
        )

    def with_others(self, others: Found) -> Found:
        """Return these units and others."""
        return Found(self.units + others.units, self.tails + others.tails, self.sizes + others.sizes)


class Discovery:
    """One search for units, with its seconds and counts.

    Parameters
    ----------
    traces, positions, seed, progress, motion
        See :func:`discover_units`.
    parts : list of Part, optional
        The parts of the recording that are searched; default: all, or as many as fit into memory.
    """

    def __init__(
        self,
        traces: Traces,
        positions: np.ndarray,
        seed: int,
        progress: ProgressCallback,
        motion: MotionOfFrames | None,
        look: FirstLook | None = None,
        parts: Sequence[Part] | None = None,
    ):
        self._motion = motion
        self.num_known = 0  # units, the first ones, that are kept whatever their spikes are
        self._started = time.perf_counter()
        self._steps = Steps(progress, FINDING_UNITS, STEPS)
        self.facts: dict[str, Any] = {"seconds_of_steps": {}}
        self.seed = seed
        self.dropped: dict[str, int] = {}
        self.distance = distances(positions)
        self.positions = positions
        # What is left of the motion counts more after whitening, so moving traces stay as they are.
        distance = self.distance if motion is None else None
        if look is not None and distance is not None and whitening_of(traces, spread_parts(traces), distance):
            look = None  # whitened traces are others
        self._look = look
        if look is None:
            progress(READING, 0, 1, "")
            tell: Tell = lambda done, total: progress(READING, done, total, "")  # noqa: E731
            serves = parts is None  # what is subtracted is added again at the end
            self.held = HeldTraces(traces, parts=parts, distance=distance, tell=tell, serves=serves)
        else:
            self.held = look.held
        self.shapes = load_shapes(traces.sampling_frequency)
        self.meter = ShapeMeter(self.held, self.distance, self.shapes.before, self.shapes.bank.shape[1])
        moved = None if motion is None else self._moved
        self.merger = Merger(self.held, self.distance, self.shapes, self.meter, moved)
        self.fewest = fewest_spikes(self.held.seconds)
        self._note("reading", looked_at_s=round(self.held.seconds, 3), whitened=self.held.is_whitened)

    def _moved(self, columns: np.ndarray, channel: int) -> np.ndarray:
        """Return the displacements in um at some columns and the depth of a channel."""
        frames, _ = self.held.frames_of(np.rint(columns).astype(np.int64))
        return self._motion.at(frames, self.positions[channel, 1]) if self._motion else np.zeros(len(frames))

    def _note(self, step: str, **counts: Any) -> None:
        """Keep the seconds and the counts of a step that is finished."""
        now = time.perf_counter()
        self.facts["seconds_of_steps"][step] = round(now - self._started, 3)
        self.facts |= counts
        self._started = now
        logger.info("units: %s took %.1f s %s", step, self.facts["seconds_of_steps"][step], counts or "")

    def _begin(self, step: str) -> Callable[[float, float], None]:
        """Begin a step; return what its loops call with the work done and the whole."""
        self._steps.begin(step)
        return self._steps.tell

    def run(self) -> Discovered:
        """Find the units: see the top of this module."""
        tell = self._begin("events")
        if self._look is None or self._look.search is None:
            search = EventSearch(self.held, self.distance, self.shapes)
            events = search.find(THRESHOLD, tell)
        else:
            search, events = self._look.search, self._look.events
        self._note("events", num_events=len(events))
        found = self._clusters(events, "")
        if not found.units:
            self._steps.end("none found")
            return Discovered([], (), self.facts)
        tell = self._begin("peeling")
        peeler = self._peeler(found)
        first = peeler.explain(events.column, events.channel, events.height, tell)
        self._note("peeling", num_explained=int((first.unit >= 0).sum()))
        left = search.find(THRESHOLD, self._begin("second events"))
        self._note("second events", num_second_events=len(left))
        second = peeler.explain(left.column, left.channel, left.height)
        rest = Events(*(array[second.unit < 0] for array in (left.column, left.channel, left.height)))
        new = self._clusters(rest, "second ")
        self._begin("second peeling")
        peeler.restore()
        self._note("second peeling", num_unexplained=len(rest), num_new_clusters=len(new.units))
        found = self._measured_again(found, first)
        supported = found.chosen(self._supported(first, found.units))
        events = _joined(events, first, left, second, rest)
        trains = self._final(supported.with_others(new), events)
        self._steps.end(f"{len(trains)} units")
        return Discovered(trains, self.held.spread(LEARNT_S), self.facts)

    def _clusters(self, events: Events, step: str) -> Found:
        """Cluster events, join clusters of one unit, and return the mean waveforms."""
        clean = events.clean(self.distance, self.held.sampling_frequency)
        columns, channels = clean.column.copy(), clean.channel.copy()
        limits = self.fewest, self.seed
        tell = self._begin(step + "clustering")
        labels = cluster_events(self.held, columns, channels, self.distance, self.shapes, limits, tell)
        name = step.replace(" ", "_")
        self._note(step + "clustering", **{name + "num_clusters": int(labels.max(initial=-1) + 1)})
        clusters = Clusters(columns, channels, labels)
        merged = self.merger.merge(clusters, self._begin(step + "merging"))
        self._note(step + "merging", **{name + "num_merged": merged})
        return self._measured(clusters)

    def _measured(self, clusters: Clusters) -> Found:
        """Return the mean waveforms of clusters, without those that are too small."""
        if clusters.labels.max(initial=-1) < 0:
            return Found([], [], [])
        units = self.merger.align(clusters)
        members = clusters.members(len(units))
        tails = [
            self.meter.tails(unit, clusters.columns[events])
            for unit, events in zip(units, members, strict=True)
        ]
        return Found(units, tails, [len(events) for events in members]).chosen(
            [unit.norm >= MIN_NORM for unit in units]
        )

    def _measured_again(self, found: Found, explained: Explained) -> Found:
        """Return units with the mean waveforms of the spikes that they explain, where these are others.

        A small cluster may hold the largest spikes of a unit beside those of a larger one that looks like it.
        """
        units, tails = list(found.units), list(found.tails)
        for index, unit in enumerate(units):
            mine = explained.unit == index
            if mine.sum() > MANY_MORE * found.sizes[index]:
                columns = explained.column[mine]
                units[index] = self.meter.measure(columns, unit.main_channel)
                tails[index] = self.meter.tails(units[index], columns)
                explained.amplitude[mine] *= unit.norm / units[index].norm
        return Found(units, tails, found.sizes)

    def _peeler(self, found: Found) -> Peeler:
        return Peeler(self.held, self.distance, found.units, found.tails, self.shapes.before)

    def _explained(self, found: Found, events: Events, tell: Tell) -> Explained:
        """Explain events by units; the traces stay as they are."""
        peeler = self._peeler(found)
        explained = peeler.explain(events.column, events.channel, events.height, tell)
        peeler.restore()
        return explained

    def _final(self, found: Found, events: Events) -> list[np.ndarray]:
        """Explain all events by all units, drop and join units, and return their spikes."""
        if not found.units:
            return []
        tell = self._begin("dropping")
        explained = self._explained(found, events, lambda done, total: tell(done, 3 * total))
        kept = self._supported(explained, found.units)
        labels = np.where(np.append(kept, False)[explained.unit], explained.unit, -1)
        clusters = Clusters(explained.column.copy(), events.channel.copy(), labels)
        self.dropped["joined"] = self.merger.merge(
            clusters, lambda done, total: tell(done + total, 3 * total)
        )
        found = self._measured(clusters)
        self._note("dropping", num_kept=len(found.units))
        if found.units:
            explained = self._explained(found, events, lambda done, total: tell(done + 2 * total, 3 * total))
            found = found.chosen(self._no_sums(explained, found.units))
        if not found.units:
            return []
        tell = self._begin("last peeling")
        peeler = self._peeler(found)
        first = peeler.explain(
            events.column, events.channel, events.height, lambda done, total: tell(done, 2 * total)
        )
        search = UnitSearch(self.held, self.distance, peeler.units)
        learnt = self.held.columns_of(self.held.spread(LEARNT_S))  # the networks find spikes elsewhere
        missed = search.find(UNIT_THRESHOLD, lambda done, total: tell(done + total, 2 * total), learnt)
        second = peeler.explain(missed.column, missed.channel, missed.height)
        main = np.array([unit.main_channel for unit in found.units], int)
        order = np.lexsort((np.arange(len(main)), *np.round(self.positions[main].T, 3)))
        found_at = []
        for unit in order:
            columns = np.concatenate([spikes.column[spikes.unit == unit] for spikes in (first, second)])
            found_at.append(np.rint(columns).astype(np.int64))
        peeler.restore()
        trains = []
        for unit, columns in zip(order, found_at, strict=True):
            moved = columns + self.meter.far_trough(found.units[unit], columns)
            frames, inside = self.held.frames_of(moved)
            trains.append(np.unique(frames[inside]))
        num_missed = int((second.unit >= 0).sum())
        self._note("last peeling", num_units=len(trains), num_missed=num_missed, dropped=self.dropped)
        return trains

    def _supported(self, explained: Explained, units: list[UnitShape]) -> list[bool]:
        """Return whether each unit is kept, and count the reasons of the others."""
        reasons = [self._reason(index, unit, explained) for index, unit in enumerate(units)]
        within = FOLLOWED_MS * self.held.sampling_frequency / 1000
        reasons = _with_parts(reasons, units, explained, within)
        reasons[: self.num_known] = [None] * self.num_known
        for reason in filter(None, reasons):
            self.dropped[reason] = self.dropped.get(reason, 0) + 1
        return [reason is None for reason in reasons]

    def _no_sums(self, explained: Explained, units: list[UnitShape]) -> list[bool]:
        """Return whether each unit is kept: those that are supported, and no sum of two such units."""
        kept = np.array(self._supported(explained, units))
        counts = np.bincount(explained.unit[explained.unit >= 0], minlength=len(units))
        reach = round(SUM_REACH_MS * self.held.sampling_frequency / 1000)
        is_sum = np.zeros(len(units), bool)
        is_sum[kept] = are_sums(
            [unit for unit, is_kept in zip(units, kept, strict=True) if is_kept], counts[kept], reach
        )
        self.dropped["sum of two units"] = int(is_sum[self.num_known :].sum())
        return (kept & ~is_sum).tolist()

    def _reason(self, index: int, unit: UnitShape, explained: Explained) -> str | None:
        """Return why a unit is dropped, or None."""
        mine = explained.unit == index
        if mine.sum() < self.fewest:
            return "few spikes"
        if unit.norm < MIN_NORM:
            return "weak"
        if is_periodic(explained.column[mine], self.held.sampling_frequency):
            return "periodic"
        if np.median(explained.amplitude[mine]) < MIN_AMPLITUDE:
            return "others explain it"
        if np.median(explained.unexplained[mine]) > MAX_UNEXPLAINED:
            return "unexplained energy"
        return None


def is_periodic(columns: np.ndarray, sampling_frequency: float) -> bool:
    """Return whether most intervals are multiples of one period: an artefact, no neuron."""
    intervals = np.rint(np.diff(np.sort(columns))).astype(np.int64)
    intervals = intervals[intervals > PERIOD_MS * sampling_frequency / 1000]
    if len(intervals) < MIN_SPIKES[0] - 1:
        return False
    values, counts = np.unique(intervals, return_counts=True)
    for period in values[np.argsort(-counts, kind="stable")[:3]]:
        rest = (intervals + 1) % period  # 0, 1 or 2: within one sample of a multiple
        if (rest <= 2).mean() > MAX_PERIODIC:
            return True
    return False


def fewest_spikes(seconds: float) -> int:
    """Return the fewest spikes of a unit in so many seconds of traces: 10 in 5 s, 18 in 180 s, 30 in 600."""
    short, long = MIN_RATES_HZ
    return max(MIN_SPIKES[0], min(MIN_SPIKES[1], round(short * seconds)), round(long * seconds))


def _with_parts(
    reasons: list[str | None], units: list[UnitShape], explained: Explained, within: float
) -> list[str | None]:
    """Add the units most of whose spikes come with those of a larger unit."""
    order = np.argsort(explained.column, kind="stable")
    unit, column = explained.unit[order], explained.column[order]
    sizes = [one.norm for one in units]
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


def _joined(events: Events, first: Explained, left: Events, second: Explained, rest: Events) -> Events:
    """Return the events that units explain, where their spikes are, and those that nothing explains."""
    is_first, is_second = first.unit >= 0, second.unit >= 0
    column = np.concatenate([first.column[is_first], second.column[is_second], rest.column])
    channel = np.concatenate([events.channel[is_first], left.channel[is_second], rest.channel])
    height = np.concatenate([events.height[is_first], left.height[is_second], rest.height])
    order = np.lexsort((channel, column))
    return Events(column[order], channel[order], height[order])
