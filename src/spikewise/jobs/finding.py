"""Finding the spikes of a recording, shard by shard and period by period, here or on a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from spikeinterface.core import BaseRecording

from spikewise.core.config import Config, SortingConfig
from spikewise.core.progress import ProgressCallback
from spikewise.jobs.cluster import open_cluster
from spikewise.jobs.finder import Finder, FindingProgress, find_here
from spikewise.jobs.refreshing import Refresher
from spikewise.jobs.remote import find_on_cluster, make_remote_work
from spikewise.jobs.state.fingerprint import FileWatch
from spikewise.jobs.state.shards import Shard, ShardStore, plan_shards
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.models.checkpoint import Model
from spikewise.sorting.groups import Group


@dataclass(frozen=True)
class FoundShards:
    """The spikes that were found in a recording.

    Attributes
    ----------
    store : ShardStore
        Holds the spikes.
    periods : sequence of sequences of Shard
        All shards; one model found the spikes of one period.
    earlier_s : float
        Seconds that earlier processes spent on finished shards.
    refreshed : list
        For each group the units that were relearnt after each period.
    """

    store: ShardStore
    periods: Sequence[Sequence[Shard]]
    earlier_s: float
    refreshed: list[Any] = field(default_factory=list)

    @property
    def shards(self) -> list[Shard]:
        """The shards of all periods."""
        return [shard for period in self.periods for shard in period]


def find_spikes(
    groups: Sequence[Group],
    model: Model,
    recording: BaseRecording,
    config: Config,
    state: Unfinished,
    watch: FileWatch,
    progress: ProgressCallback,
) -> FoundShards:
    """Find the spikes of all shards that are not finished.

    Parameters
    ----------
    groups : sequence of Group
        The groups of the recording, prepared as for the model.
    model : Model
        With ``refresh_min`` its units are relearnt after each period.
    recording : BaseRecording
        The recording before preprocessing; workers of a cluster open it again.
    config : Config
    state : Unfinished
        Keeps the shards that are finished.
    watch : FileWatch
    progress : callable
    """
    store = state.shards()
    earlier_s = store.seconds
    lengths = [recording.get_num_samples(index) for index in range(recording.get_num_segments())]
    periods = _plan(model, lengths, config.sorting)
    found = FoundShards(store, periods, earlier_s)
    work = _Work(groups, recording, config, store, watch)
    report = FindingProgress(found.shards, store, model.sampling_frequency, progress)
    if config.sorting.refresh_min is None:
        work.find(model, found.shards, report)
        return found
    refresher = Refresher(model, groups, config, store, state, progress)
    for number, shards in enumerate(periods):
        model = refresher.model_of(number, periods)
        work.find(model, shards, report)
    return FoundShards(store, periods, earlier_s, model.facts.get("refreshed", []))


def _plan(model: Model, num_samples: list[int], sorting: SortingConfig) -> list[list[Shard]]:
    """Cut the recording into shards, period by period."""
    rate, refresh_min = model.sampling_frequency, sorting.refresh_min
    period = None if refresh_min is None else max(1, round(60 * refresh_min * rate))
    return plan_shards(len(model.groups), num_samples, max(1, round(sorting.shard_s * rate)), period)


@dataclass(frozen=True)
class _Work:
    """All that is needed to find the spikes of a shard; see :func:`find_spikes`."""

    groups: Sequence[Group]
    recording: BaseRecording
    config: Config
    store: ShardStore
    watch: FileWatch

    def find(self, model: Model, shards: Sequence[Shard], report: FindingProgress) -> None:
        """Find the spikes of the shards that are not finished, here or on a cluster."""
        sorting, threshold = self.config.sorting, self.config.detection.threshold
        if all(shard in self.store for shard in shards):
            return
        if sorting.cluster is None:
            find_here(Finder(self.groups, model, sorting, threshold), shards, self.store, self.watch, report)
            return
        remote = make_remote_work(self.recording, self.groups, model, self.config)
        with open_cluster(sorting.cluster) as cluster:
            find_on_cluster(cluster, remote, shards, self.store, self.watch, report.add)
