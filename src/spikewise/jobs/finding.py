"""Finding the spikes of a recording with a model: shard by shard, here or on a cluster.

A :class:`Finder` finds the spikes of any stretch, alone and in any order. The local loop and the workers of a
cluster both ask one, so that they find the same to the bit; what is found is written by this process alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording, load

from spikewise.core.config import Config
from spikewise.core.errors import ClusterError, RecordingError
from spikewise.core.progress import ProgressCallback
from spikewise.core.version import __version__
from spikewise.jobs.cluster import Cluster
from spikewise.jobs.fingerprint import FileWatch
from spikewise.jobs.shards import Shard, ShardStore
from spikewise.models.checkpoint import GroupModel, Model, load_model, save_model
from spikewise.sorting.batch import find_in_stretch
from spikewise.sorting.damaged import Found, drop_damaged_spikes
from spikewise.sorting.detect import Detector, make_detector
from spikewise.sorting.groups import Group, prepare_groups
from spikewise.sorting.sparse import Asked

logger = logging.getLogger(__name__)


class Finder:
    """Finds the spikes of stretches of a recording.

    Parameters
    ----------
    groups : sequence of Group
        The groups of the recording, preprocessed as for the model.
    model : Model
    config : Config
    """

    def __init__(self, groups: Sequence[Group], model: Model, config: Config):
        by_name = {group.name: group for group in groups}
        self._readers = [by_name[part.name].reader for part in model.groups]
        self._detectors = [_make_detector(part, model, config) for part in model.groups]
        self._chunk_s = config.sorting.chunk_s
        self._known: dict[int, Asked] = {}
        self._known_of: tuple[int, int] | None = None

    def find(self, shard: Shard, tell: Callable[[int, int], None]) -> Found:
        """Find the spikes of one shard, without those that damage may have made.

        What was found before only saves time.

        Parameters
        ----------
        shard : Shard
        tell : callable
            Told the samples and the spikes of each chunk.
        """
        if self._known_of != (shard.group_index, shard.segment_index):
            self._known, self._known_of = {}, (shard.group_index, shard.segment_index)
        detector, reader = self._detectors[shard.group_index], self._readers[shard.group_index]
        stretch = (shard.segment_index, shard.start, shard.stop)
        spikes = find_in_stretch(detector, reader, stretch, self._chunk_s, self._known, tell)
        return drop_damaged_spikes(spikes, reader, detector.network, stretch)


def _make_detector(part: GroupModel, model: Model, config: Config) -> Detector:
    thresholds = part.thresholds
    if config.detection.threshold is not None:
        thresholds = np.full_like(thresholds, config.detection.threshold)
    return make_detector(
        part.network, thresholds, model.sampling_frequency, model.detection_config, config.sorting
    )


class Told:
    """Tells the progress over all shards, those that were finished before included."""

    def __init__(self, shards: Sequence[Shard], store: ShardStore, rate: float, progress: ProgressCallback):
        self._rate, self._progress = rate, progress
        self._total = sum(shard.stop - shard.start for shard in shards)
        finished = [shard for shard in shards if shard in store]
        self._done = sum(shard.stop - shard.start for shard in finished)
        self._found = sum(map(store.num_spikes, finished))
        if finished:
            self("")

    def add(self, num_samples: int, num_spikes: int) -> None:
        """Tell that so many more samples are worked through."""
        self._done, self._found = self._done + num_samples, self._found + num_spikes
        self("")

    def __call__(self, note: str) -> None:
        """Tell how far it is, with a note."""
        told = f"{self._found} spikes{note}"
        self._progress("sort", self._done / self._rate, self._total / self._rate, told)


def find_here(
    finder: Finder,
    shards: Sequence[Shard],
    store: ShardStore,
    watch: FileWatch,
    told: Told,
) -> None:
    """Find the spikes of all shards that are not finished, in this process."""
    for shard in shards:
        if shard in store:
            continue
        started = time.perf_counter()
        try:
            found = finder.find(shard, told.add)
        finally:
            watch.check()  # a file that changed is the reason of many errors, and no spike of it is kept
        store.write(shard, found, time.perf_counter() - started)


# On a cluster


@dataclasses.dataclass(frozen=True)
class RemoteWork:
    """All that a worker needs to find spikes; it travels once to each worker.

    Attributes
    ----------
    key : str
        Tells one work from another.
    recording : dict
        As SpikeInterface writes a recording: its files are read by each worker.
    model : bytes
        The file of the model.
    config : Config
    version : str
        Of Spikewise.
    """

    key: str
    recording: dict[str, Any]
    model: bytes
    config: Config
    version: str


def make_remote_work(recording: BaseRecording, model: Model, config: Config) -> RemoteWork:
    """Pack what workers need.

    Raises
    ------
    RecordingError
        If the recording is in the memory of this process only.
    """
    if not recording.check_serializability("json"):
        raise RecordingError(
            "the recording is in the memory of this process",
            "with a cluster, one in files that all workers can read",
            "save it first: recording.save(folder=...)",
        )
    packed = recording.to_dict(include_annotations=True, include_properties=True, recursive=True)
    with tempfile.TemporaryDirectory(prefix="spikewise-") as folder:
        save_model(model, Path(folder) / "model.safetensors")
        content = (Path(folder) / "model.safetensors").read_bytes()
    plain = Config(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Config)})
    key = hashlib.sha256(content + pickle.dumps((packed, plain))).hexdigest()
    return RemoteWork(key, packed, content, plain, __version__)


_finders = threading.local()
"""Of each thread of a worker, the finder of the work that it did last."""


def find_remotely(work: RemoteWork, shard: Shard) -> tuple[Found, float]:
    """Find the spikes of one shard in a worker; return them, and the seconds that it took."""
    started = time.perf_counter()
    if work.version != __version__:
        raise ClusterError(
            f"a worker has Spikewise {__version__}",
            f"the version that sorts, {work.version}",
            "install the same version on all machines",
        )
    if getattr(_finders, "key", None) != work.key:
        with tempfile.TemporaryDirectory(prefix="spikewise-") as folder:
            file = Path(folder) / "model.safetensors"
            file.write_bytes(work.model)
            model = load_model(file)
        groups = prepare_groups(load(work.recording), work.config, model)
        _finders.finder, _finders.key = Finder(groups, model, work.config), work.key
    found = _finders.finder.find(shard, lambda num_samples, num_spikes: None)
    return found, time.perf_counter() - started


def find_on_cluster(
    cluster: Cluster,
    work: RemoteWork,
    shards: Sequence[Shard],
    store: ShardStore,
    watch: FileWatch,
    told: Told,
) -> None:
    """Find the spikes of all shards that are not finished on a cluster, and write them here."""
    missing = [shard for shard in shards if shard not in store]
    for shard, (found, seconds) in cluster.map(find_remotely, work, missing):
        watch.check()
        store.write(shard, found, seconds)
        told.add(shard.stop - shard.start, len(found.spikes))
        told(f", {cluster.num_workers} workers")
