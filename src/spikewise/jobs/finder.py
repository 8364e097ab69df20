"""Finding the spikes of shards in this process."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from spikewise.core.config import SortingConfig
from spikewise.core.progress import SORTING, ProgressCallback
from spikewise.jobs.state.fingerprint import FileWatch
from spikewise.jobs.state.shards import Shard, ShardStore
from spikewise.models.checkpoint import Model
from spikewise.sorting.batch import chunk_samples, find_in_stretch
from spikewise.sorting.damaged import Found, drop_damaged_spikes
from spikewise.sorting.detector import SegmentSearch
from spikewise.sorting.groups import Group
from spikewise.sorting.owner.group_finder import GroupFinder


class Finder:
    """Finds the spikes of stretches of a recording.

    Parameters
    ----------
    groups : sequence of Group
        The groups of the recording, prepared as for the model.
    model : Model
    sorting : SortingConfig
    threshold : float or None
        One threshold for all units in place of those of the model.
    """

    def __init__(
        self, groups: Sequence[Group], model: Model, sorting: SortingConfig, threshold: float | None = None
    ):
        by_name = {group.name: group for group in groups}
        self._readers = [by_name[part.name].reader for part in model.groups]
        self._finders = [GroupFinder(part, model, sorting, threshold) for part in model.groups]
        self._chunk = chunk_samples(sorting.chunk_s, model.sampling_frequency)
        self._search: SegmentSearch | None = None
        self._searched = (-1, -1)  # group and segment of the search

    def find(self, shard: Shard, report: Callable[[int, int], None]) -> Found:
        """Find the spikes of one shard, without those that damage may have made.

        Parameters
        ----------
        shard : Shard
            If it follows the previous shard, tiles that both need are computed once.
        report : callable
            Called with the samples and the spikes of each chunk.
        """
        finder, reader = self._finders[shard.group_index], self._readers[shard.group_index]
        if self._search is None or self._searched != (shard.group_index, shard.segment_index):
            self._search = finder.search(reader, shard.segment_index)
            self._searched = (shard.group_index, shard.segment_index)
        spikes = find_in_stretch(self._search, shard.start, shard.stop, self._chunk, report)
        stretch = (shard.segment_index, shard.start, shard.stop)
        return drop_damaged_spikes(spikes, reader, finder.detector.network, stretch)


class FindingProgress:
    """Reports the progress over all shards, finished ones included.

    Parameters
    ----------
    shards : sequence of Shard
    store : ShardStore
    rate : float
        Sampling frequency in Hz.
    progress : callable
        Called with the seconds done, the seconds in all, and the number of spikes.
    stage : str
        Name of the stage.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        store: ShardStore,
        rate: float,
        progress: ProgressCallback,
        stage: str = SORTING,
    ):
        self._rate, self._progress, self._stage = rate, progress, stage
        self._total = sum(shard.stop - shard.start for shard in shards)
        finished = [shard for shard in shards if shard in store]
        self._done = sum(shard.stop - shard.start for shard in finished)
        self._found = sum(map(store.num_spikes, finished))
        self.show()

    def add(self, num_samples: int, num_spikes: int, note: str = "") -> None:
        """Count samples that are searched and the spikes found in them; report with a note."""
        self._done, self._found = self._done + num_samples, self._found + num_spikes
        self.show(note)

    def show(self, note: str = "") -> None:
        """Report the progress, with a note."""
        self._progress(
            self._stage, self._done / self._rate, self._total / self._rate, f"{self._found} spikes{note}"
        )


def find_here(
    finder: Finder,
    shards: Sequence[Shard],
    store: ShardStore,
    watch: FileWatch,
    report: FindingProgress,
) -> None:
    """Find the spikes of all shards that are not finished, in this process."""
    for shard in shards:
        if shard in store:
            continue
        started = time.perf_counter()
        try:
            found = finder.find(shard, report.add)
        finally:
            watch.check()  # a changed file explains many errors, and its spikes are not kept
        store.write(shard, found, time.perf_counter() - started)
