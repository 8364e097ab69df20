"""Spikes of units that were learnt after the others were sorted: shard by shard, here or on a cluster.

All shards of the other units are finished before. Each is read once more with what comes before and after it,
and written to a second store together with the spikes of the new units.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spikewise.core.config import SortingConfig
from spikewise.jobs.cluster import open_cluster
from spikewise.jobs.finder import FindingProgress
from spikewise.jobs.remote import RemoteWork, finder_of
from spikewise.jobs.state.fingerprint import FileWatch
from spikewise.jobs.state.shards import Shard, ShardStore
from spikewise.models.checkpoint import Model
from spikewise.sorting.damaged import Damage, Found
from spikewise.sorting.groups import Group
from spikewise.sorting.owner.adding import AddedUnits
from spikewise.sorting.spikes import Spikes


class AddedFinder:
    """Finds the spikes of the last units of each group, beside those of the others.

    Parameters
    ----------
    groups : sequence of Group
        The groups of the recording, prepared as for the model.
    model : Model
        With all units.
    num_known : sequence of int
        For each group of the model the number of units whose spikes are given.
    sorting : SortingConfig
    threshold : float or None
        One threshold for all units in place of those of the model.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        model: Model,
        num_known: Sequence[int],
        sorting: SortingConfig,
        threshold: float | None = None,
    ):
        by_name = {group.name: group for group in groups}
        self._readers = [by_name[part.name].reader for part in model.groups]
        self._added = [
            AddedUnits(part, known, model, sorting, threshold) if known < len(part.unit_ids) else None
            for part, known in zip(model.groups, num_known, strict=True)
        ]

    def has_new_units(self, group_index: int) -> bool:
        """Return whether a group has new units."""
        return self._added[group_index] is not None

    def margin(self, group_index: int) -> int:
        """Return the samples before and after a shard whose given spikes are needed."""
        added = self._added[group_index]
        return 0 if added is None else added.margin

    def find(self, shard: Shard, given: Spikes, report: Callable[[int, int], None]) -> tuple[Spikes, int]:
        """Return all spikes of a shard, and how many of the new units were dropped because of damage."""
        added = self._added[shard.group_index]
        if added is None:
            return given, 0
        stretch = shard.segment_index, shard.start, shard.stop
        return added.find(self._readers[shard.group_index], stretch, given, report)


@dataclass(frozen=True)
class ShardTask:
    """A shard that is searched by a worker.

    Only what is sent to the worker holds the given spikes, so this process never holds those of all shards.
    """

    shard: Shard
    given: Callable[[Shard], Spikes]

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the shard with its spikes."""
        return _Sent, (self.shard, self.given(self.shard))


@dataclass(frozen=True)
class _Sent:
    """What a worker receives of a :class:`ShardTask`."""

    shard: Shard
    spikes: Spikes


def add_remotely(work: RemoteWork, task: Any) -> tuple[Spikes, int, float]:
    """Find the spikes of one shard in a worker; also return the seconds that this took.

    `task` is a :class:`ShardTask` where it is submitted, and a :class:`_Sent` in the worker.
    """
    started = time.perf_counter()

    def make(groups: Sequence[Group], model: Model) -> AddedFinder:
        return AddedFinder(groups, model, work.num_known, work.sorting, work.threshold)

    finder = finder_of(work, make)
    spikes, dropped = finder.find(task.shard, task.spikes, lambda num_samples, num_spikes: None)
    return spikes, dropped, time.perf_counter() - started


class Adding:
    """Writes the shards of all units.

    Parameters
    ----------
    finder : AddedFinder
    stores : (ShardStore, ShardStore)
        The shards of the units that were sorted before, and those of all units.
    shards : sequence of Shard
        All shards.
    watch : FileWatch
    report : FindingProgress
    """

    def __init__(
        self,
        finder: AddedFinder,
        stores: tuple[ShardStore, ShardStore],
        shards: Sequence[Shard],
        watch: FileWatch,
        report: FindingProgress,
    ):
        self._finder, self._watch, self._report = finder, watch, report
        self._before, self._after = stores
        self._shards = shards

    def missing(self) -> list[Shard]:
        """Return the shards that are not finished."""
        return [shard for shard in self._shards if shard not in self._after]

    def given(self, shard: Shard) -> Spikes:
        """Return the spikes of a shard and around it, in order of time, then unit."""
        margin = self._finder.margin(shard.group_index)
        start, stop = shard.start - margin, shard.stop + margin
        near = sorted(
            one
            for one in self._shards
            if (one.group_index, one.segment_index) == (shard.group_index, shard.segment_index)
            and one.start < stop
            and start < one.stop
        )
        tables = np.concatenate([self._before.read(one) for one in near])
        table = tables[(tables["sample_index"] >= start) & (tables["sample_index"] < stop)]
        return Spikes(
            table["sample_index"].astype(np.int64), table["unit_index"].astype(np.int64), table["response"]
        )

    def here(self) -> None:
        """Find the spikes of all missing shards in this process."""
        for shard in self.missing():
            started = time.perf_counter()
            try:
                spikes, dropped = self._finder.find(shard, self.given(shard), self._report.add)
            finally:
                self._watch.check()
            self._write(shard, spikes, dropped, time.perf_counter() - started)

    def on_cluster(self, address: str, work: RemoteWork) -> None:
        """Find the spikes of all missing shards in the workers of a cluster."""
        missing = self.missing()
        if not missing:
            return
        with open_cluster(address) as cluster:
            tasks = [ShardTask(shard, self.given) for shard in missing]
            for task, (spikes, dropped, seconds) in cluster.map(add_remotely, work, tasks):
                self._watch.check()
                self._write(task.shard, spikes, dropped, seconds)
                samples = task.shard.stop - task.shard.start
                self._report.add(samples, len(spikes), f", {cluster.num_workers} workers")

    def _write(self, shard: Shard, spikes: Spikes, num_dropped: int, seconds: float) -> None:
        before = self._before.damage(shard)
        damage = Damage(before.stretches, before.num_dropped + num_dropped)
        self._after.write(shard, Found(spikes, damage), seconds)
