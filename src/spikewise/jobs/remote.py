"""Finding the spikes of shards in the workers of a cluster."""

from __future__ import annotations

import dataclasses
import hashlib
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spikeinterface.core import BaseRecording, load
from spikeinterface.core.motion import Motion

from spikewise.core.config import Config, SortingConfig
from spikewise.core.errors import ClusterError, RecordingError
from spikewise.core.version import __version__
from spikewise.jobs.cluster import Cluster
from spikewise.jobs.finder import Finder
from spikewise.jobs.state.fingerprint import FileWatch
from spikewise.jobs.state.shards import Shard, ShardStore
from spikewise.models.checkpoint import Model, load_model, save_model
from spikewise.sorting.damaged import Found
from spikewise.sorting.groups import Group, Preparation, prepare_groups


@dataclasses.dataclass(frozen=True)
class RemoteWork:
    """All that a worker needs to find spikes; it is sent once to each worker.

    Attributes
    ----------
    key : str
        Hash of model, recording and settings: it differs for different work.
    recording : dict
        The recording as a dictionary of SpikeInterface; each worker reads its files.
    model : bytes
        Content of the model's file.
    sorting : SortingConfig
    threshold : float or None
        One threshold for all units in place of those of the model.
    motions : dict of str to Motion
        The motion of each group that is removed from its traces.
    seed : int
        Chooses the pieces of the recording on which noise and damage are measured.
    version : str
        Version of Spikewise.
    num_known : tuple of int
        For each group the number of units whose spikes are given; empty: none are.
    """

    key: str
    recording: dict[str, Any]
    model: bytes
    sorting: SortingConfig
    threshold: float | None
    seed: int
    motions: dict[str, Motion]
    version: str
    num_known: tuple[int, ...] = ()


def make_remote_work(
    recording: BaseRecording,
    groups: Sequence[Group],
    model: Model,
    config: Config,
    num_known: tuple[int, ...] = (),
) -> RemoteWork:
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
    settings = config.sorting, config.detection.threshold, config.training.seed
    motions = {group.name: group.motion for group in groups if group.motion is not None}
    moved = {name: motion.to_dict() for name, motion in motions.items()}
    key = hashlib.sha256(content + pickle.dumps((packed, settings, moved, num_known))).hexdigest()
    return RemoteWork(key, packed, content, *settings, motions, __version__, num_known)


_finders = threading.local()
"""For each thread of a worker, the finder and the key of its last work."""


def find_remotely(work: RemoteWork, shard: Shard) -> tuple[Found, float]:
    """Find the spikes of one shard in a worker; return them and the seconds that this took."""
    started = time.perf_counter()
    finder = finder_of(work, lambda groups, model: Finder(groups, model, work.sorting, work.threshold))
    found = finder.find(shard, lambda num_samples, num_spikes: None)
    return found, time.perf_counter() - started


def finder_of(work: RemoteWork, make: Callable[[Sequence[Group], Model], Any]) -> Any:
    """Return this worker's finder for some work; `make` makes it from groups and model.

    Raises
    ------
    ClusterError
        If the worker has another version of Spikewise.
    """
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
        preparation = Preparation.of_model(model, work.sorting, work.seed)
        preparation = dataclasses.replace(preparation, motions=work.motions)
        groups = prepare_groups(load(work.recording), preparation)
        _finders.finder = make(groups, model)
        _finders.key = work.key
    return _finders.finder


def find_on_cluster(
    cluster: Cluster,
    work: RemoteWork,
    shards: Sequence[Shard],
    store: ShardStore,
    watch: FileWatch,
    report: Callable[[int, int, str], None],
) -> None:
    """Find the spikes of all shards that are not finished on a cluster, and let this process write them."""
    missing = [shard for shard in shards if shard not in store]
    for shard, (found, seconds) in cluster.map(find_remotely, work, missing):
        watch.check()
        store.write(shard, found, seconds)
        report(shard.stop - shard.start, len(found.spikes), f", {cluster.num_workers} workers")
