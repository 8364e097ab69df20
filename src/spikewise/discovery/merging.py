"""Join clusters that are one unit.

Two clusters may be one unit if their mean waveforms are alike. Their events are aligned to the mean of both,
described by components of their waveforms, and projected on the direction that separates them best. If the
projections have no dip (the test of ISO-SPLIT: Magland & Barnett, arXiv 1508.04841), the clusters are joined,
the most alike first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from spikewise.core.constants import REFRACTORY_MS
from spikewise.core.threads import results_in_order
from spikewise.discovery.clustering import MOST_CHANNELS, RADIUS_UM, keep_isosplit_compiled
from spikewise.discovery.event_loops import align_events, describe_events
from spikewise.discovery.held_traces import UNIT, HeldTraces
from spikewise.discovery.neighbours import channels_within
from spikewise.discovery.spike_shapes import SpikeShapes
from spikewise.discovery.unit_shapes import ShapeMeter, UnitShape, similarity

# Chosen by hand on the scenes `plain` and `tetrode` of seed 1 (docs/discovery.md), all of the following.
MIN_SIMILARITY = 0.75
"""Cosine of mean waveforms from which two clusters are compared."""
MAX_DISTANCE_UM = 110.0
"""Distance of main channels up to which two clusters are compared."""
MAX_DIP = 2.0
"""Dip score of ISO-SPLIT below which two clusters are one."""
MIN_SEPARATION = 2.0
"""Clusters whose projections lie closer, in standard deviations, are one."""
SHIFT_MS = 0.8
"""Largest time shift of two mean waveforms."""
ALIGN_MS = 0.2
"""Largest time shift of an event."""
MAX_EVENTS = 400
"""Most events of a cluster that are compared."""
SHRINKAGE = 0.2
"""Weight of the mean variance in the covariance of the direction."""
MAX_ROUNDS = 8
MAX_COINCIDENT = 0.4
"""Clusters are different units if they have more pairs of spikes within the refractory period than this
fraction of the number by chance."""
MIN_EXPECTED_PAIRS = 8.0
"""Fewest such pairs by chance with which this can be judged."""
MAX_SHARED_MOTION = 0.4
"""Clusters share a motion if the overlap of their displacements is larger (0: none, 1: the same)."""
MIN_SIMILARITY_MOVED = 0.85
"""Cosine from which two clusters that fire at other displacements are one unit, whose waveform changes."""
MOTION_BIN_UM = 4.0
NEAREST_MS = 0.6
"""Pairs of spikes closer than this do not count: they may be one spike that was found twice."""


Pair = tuple[float, int, int, int]
"""Cosine, larger cluster, smaller cluster, and samples by which the smaller's events move."""


@dataclass(frozen=True)
class Template:
    """A waveform (P, L) on channels (P,)."""

    channels: np.ndarray
    waveform: np.ndarray


@dataclass
class Clusters:
    """Events with their clusters; changed in place.

    Attributes
    ----------
    columns : ndarray of float64, shape (num_events,)
    channels : ndarray of int64, shape (num_events,)
    labels : ndarray of int64, shape (num_events,)
        Cluster of each event, from 0 on without gaps; -1: none.
    """

    columns: np.ndarray
    channels: np.ndarray
    labels: np.ndarray

    def compact(self) -> None:
        """Count the clusters from 0 on without gaps."""
        used, index = np.unique(self.labels[self.labels >= 0], return_inverse=True)
        del used
        self.labels[self.labels >= 0] = index

    def members(self, count: int | None = None) -> list[np.ndarray]:
        """Return the events of each cluster, of `count` clusters if it is given."""
        order = np.argsort(self.labels, kind="stable")
        count = int(self.labels.max(initial=-1)) + 1 if count is None else count
        bounds = np.searchsorted(self.labels[order], np.arange(count + 1))
        return [order[low:high] for low, high in itertools.pairwise(bounds)]


class Merger:
    """Joins clusters.

    Parameters
    ----------
    held : HeldTraces
    distance : ndarray, shape (num_channels, num_channels)
        Distances of the channels in um.
    shapes : SpikeShapes
    meter : ShapeMeter
    moved : callable, optional
        Returns the displacements in um of columns at a channel, where the probe moved.
    """

    def __init__(
        self,
        held: HeldTraces,
        distance: np.ndarray,
        shapes: SpikeShapes,
        meter: ShapeMeter,
        moved: Callable[[np.ndarray, int], np.ndarray] | None = None,
    ):
        self._moved = moved
        self._held, self._distance, self._shapes, self._meter = held, distance, shapes, meter
        self._near = channels_within(distance, RADIUS_UM, MOST_CHANNELS)
        keep_isosplit_compiled()
        self._shift = max(2, round(SHIFT_MS * held.sampling_frequency / 1000))
        self._align = max(1, round(ALIGN_MS * held.sampling_frequency / 1000))

    def align(self, clusters: Clusters) -> list[UnitShape]:
        """Move the events of each cluster to the trough of its mean waveform; return the mean waveforms."""
        meter = self._meter
        units = meter.measure_all(clusters.columns, clusters.labels, clusters.channels)
        for unit, events in zip(units, clusters.members(), strict=True):
            if abs(unit.trough) < 0.75 * meter.before:
                clusters.columns[events] += unit.trough
            clusters.channels[events] = unit.main_channel
        return meter.measure_all(clusters.columns, clusters.labels, clusters.channels)

    def merge(self, clusters: Clusters, tell: Callable[[float, float], None] | None = None) -> int:
        """Join clusters that are one unit; return how many were joined to another."""
        clusters.compact()
        if clusters.labels.max(initial=-1) < 1:
            return 0
        units = self.align(clusters)
        rejected: set[tuple[int, int]] = set()
        known: dict[tuple[int, int], tuple[float, int]] = {}
        num_merged = 0
        for number in range(MAX_ROUNDS):
            pairs = [pair for pair in self._pairs(units, clusters, known) if pair[1:3] not in rejected]
            members = clusters.members(len(units))
            told = None if tell is None else partial(_tell_in_round, tell, number)
            verdicts = results_in_order(partial(self._is_one, units, members, clusters.columns), pairs, told)
            taken: set[int] = set()
            for (_, one, other, lag), is_one in zip(pairs, list(verdicts), strict=True):
                if not is_one:
                    rejected.add((one, other))
                elif one not in taken and other not in taken:
                    taken |= {one, other}
                    clusters.columns[members[other]] += lag
                    clusters.labels[members[other]] = one
                    rejected = {pair for pair in rejected if one not in pair}
                    num_merged += 1
            if not taken:
                break
            known = {pair: found for pair, found in known.items() if not taken & set(pair)}
            units = self._measure_again(units, clusters, taken)
        clusters.compact()
        return num_merged

    def _measure_again(
        self, units: list[UnitShape], clusters: Clusters, changed: set[int]
    ) -> list[UnitShape]:
        """Return the mean waveforms; those of changed clusters are measured again."""
        members = clusters.members(len(units))
        return [
            self._meter.measure(clusters.columns[members[index]], unit.main_channel)
            if index in changed and len(members[index])
            else unit
            for index, unit in enumerate(units)
        ]

    def _pairs(
        self,
        units: list[UnitShape],
        clusters: Clusters,
        known: dict[tuple[int, int], tuple[float, int]],
    ) -> list[Pair]:
        """Return pairs of like clusters, the most alike first; `known` keeps what was computed."""
        sizes = np.bincount(clusters.labels[clusters.labels >= 0], minlength=len(units))
        main = np.array([unit.main_channel for unit in units])
        near = np.triu(self._distance[main[:, None], main] <= MAX_DISTANCE_UM, 1)
        near &= (sizes > 0)[:, None] & (sizes > 0)[None]
        ordered = [
            (int(one), int(other)) if sizes[one] >= sizes[other] else (int(other), int(one))
            for one, other in zip(*np.nonzero(near), strict=True)
        ]
        new = [pair for pair in ordered if pair not in known]

        def compare(pair: tuple[int, int]) -> tuple[float, int]:
            larger, smaller = (units[index] for index in pair)
            return similarity(larger, smaller, self._shift)

        known.update(zip(new, results_in_order(compare, new), strict=True))
        pairs = [
            (known[pair][0], *pair, known[pair][1]) for pair in ordered if known[pair][0] > MIN_SIMILARITY
        ]
        return sorted(pairs, key=lambda pair: (-pair[0], pair[1], pair[2]))

    def _fire_independently(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Return whether two trains ignore each other's refractory period."""
        rate = self._held.sampling_frequency / 1000
        near, far = NEAREST_MS * rate, REFRACTORY_MS * rate
        expected = len(first) * len(second) * 2 * (far - near) / self._held.num_columns
        if expected < MIN_EXPECTED_PAIRS:
            return False
        one, other = np.sort(first), np.sort(second)
        pairs = sum(
            sign * int((np.searchsorted(other, one + reach) - np.searchsorted(other, one - reach)).sum())
            for sign, reach in ((1, far), (-1, near))
        )
        return pairs > MAX_COINCIDENT * expected

    def _mean(self, one: UnitShape, other: UnitShape, pair: Pair, members: list[np.ndarray]) -> Template:
        """Return the mean waveform of two clusters, on the channels that describe events of the larger."""
        channels = self._near[one.main_channel]
        channels = channels[np.isin(channels, one.channels)]
        mine = one.waveform[_index_of(channels, one.channels)] * len(members[pair[1]])
        lag, length = pair[3], mine.shape[1]
        known = np.isin(channels, other.channels)
        theirs = other.waveform[_index_of(channels[known], other.channels)] * len(members[pair[2]])
        low, high = max(0, -lag), min(length, length - lag)
        total = mine.copy()
        if low < high:
            total[known, low:high] += theirs[:, low + lag : high + lag]
        return Template(channels, total)

    def _is_one(
        self, units: list[UnitShape], members: list[np.ndarray], columns: np.ndarray, pair: Pair
    ) -> bool:
        """Return whether two clusters are one unit: no dip between them, and one refractory period."""
        alike, one, other, lag = pair
        if self._moved is not None and alike > MIN_SIMILARITY_MOVED:
            channel = units[one].main_channel
            moved = (self._moved(columns[members[index]], channel) for index in (one, other))
            if _overlap(*moved) < MAX_SHARED_MOTION:
                return True
        if self._fire_independently(columns[members[one]], columns[members[other]] + lag):
            return False
        first, second = columns[_some(members[one])], columns[_some(members[other])] + lag
        return self._has_no_dip(first, second, self._mean(units[one], units[other], pair, members))

    def _has_no_dip(self, first: np.ndarray, second: np.ndarray, template: Template) -> bool:
        """Return whether the projections of events of two clusters have no dip, or hardly differ.

        Parameters
        ----------
        first, second : ndarray of float64
            Columns of the events of each.
        template : Template
            The mean waveform of both.
        """
        from spikeinterface.sortingcomponents.clustering import isosplit_isocut

        values, shapes, meter = self._held.values, self._shapes, self._meter
        columns = np.concatenate([first, second])
        aligned = np.empty(len(columns))
        align_events(
            values, columns, template.channels, template.waveform, meter.before, self._align, aligned
        )
        features = np.empty((len(columns), len(template.channels), shapes.basis.shape[1]), np.float32)
        of = np.repeat(template.channels[None], len(columns), axis=0)
        describe_events(values, aligned, of, shapes.basis, shapes.before, features)
        rows = features.reshape(len(columns), -1) * np.float32(UNIT)
        count = len(first)
        means = rows[:count].mean(axis=0), rows[count:].mean(axis=0)
        rest = np.concatenate([rows[:count] - means[0], rows[count:] - means[1]])
        covariance = rest.T @ rest / len(rest)
        covariance += SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        projected = (rows @ np.linalg.solve(covariance, means[1] - means[0])).astype(np.float64)
        spread = np.sqrt(0.5 * (projected[:count].var() + projected[count:].var()))
        separation = projected[count:].mean() - projected[:count].mean()
        return bool(separation < MIN_SEPARATION * spread or isosplit_isocut.isocut(projected)[0] < MAX_DIP)


def _tell_in_round(tell: Callable[[float, float], None], number: int, done: int, total: int) -> None:
    """Tell the progress of a round, each of which takes about half of the time that is left."""
    tell(1 - 0.5**number * (1 - 0.5 * done / total), 1)


def _overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the overlap (Bhattacharyya) of the displacements at which two clusters fire."""
    low = min(one.min(), other.min())
    bins = [np.floor((values - low) / MOTION_BIN_UM).astype(int) for values in (one, other)]
    count = max(values.max() for values in bins) + 1
    first, second = (np.bincount(values, minlength=count) / len(values) for values in bins)
    return float(np.sqrt(first * second).sum())


def _some(events: np.ndarray) -> np.ndarray:
    """Return at most MAX_EVENTS events, evenly spread."""
    return events[np.linspace(0, len(events) - 1, min(len(events), MAX_EVENTS)).round().astype(int)]


def _index_of(channels: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Return where each channel stands in a list that holds it."""
    order = np.argsort(among, kind="stable")
    return order[np.searchsorted(among[order], channels)]
