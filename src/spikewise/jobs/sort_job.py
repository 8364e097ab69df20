"""One sort from beginning to end: learn if there is no model, find the spikes, join them, tell how.

Each stage keeps what it finished in the output folder (:mod:`spikewise.jobs.unfinished`) and takes up what
an earlier process kept there, so that a sort ends with the same spikes however often it was ended.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging
import platform
import time
from dataclasses import dataclass
from typing import Any

from spikeinterface.core import BaseRecording, BaseSorting

from spikewise.core.config import Config
from spikewise.core.devices import threads_and_device
from spikewise.core.errors import Interrupted
from spikewise.core.progress import ProgressCallback
from spikewise.core.version import __version__
from spikewise.jobs.cluster import open_cluster
from spikewise.jobs.finding import Finder, Told, find_here, find_on_cluster, make_remote_work
from spikewise.jobs.fingerprint import FileWatch
from spikewise.jobs.merge import merge_shards
from spikewise.jobs.refreshing import Refresher
from spikewise.jobs.shards import Shard, ShardStore, plan_shards
from spikewise.jobs.start import label_groups
from spikewise.jobs.unfinished import Unfinished
from spikewise.learning.group_learning import learn_group
from spikewise.learning.transfer import open_pretrained, start_from
from spikewise.models.checkpoint import Model, load_model, save_model
from spikewise.output.store import MODEL_FILE, spikes_hash
from spikewise.sorting.damaged import Damage, describe_damage, join_damage, tell_damage
from spikewise.sorting.groups import Group, prepare_groups

logger = logging.getLogger(__name__)

PACKAGES = ("spikeinterface", "torch", "numpy", "scipy", "probeinterface", "neo")


@dataclass(frozen=True)
class Work:
    """What a sort is asked to do.

    `job` tells all that its spikes depend on, `watch` notices when its files change, `facts` go to the
    provenance.
    """

    recording: BaseRecording
    labels: BaseSorting | None
    label_source: str
    model: Model | None
    config: Config
    job: dict[str, Any]
    watch: FileWatch
    facts: dict[str, Any]
    progress: ProgressCallback


def learn_model(
    recording: BaseRecording,
    labels: BaseSorting | None,
    source: str,
    config: Config,
    state: Unfinished,
    progress: ProgressCallback,
) -> tuple[Model, list[Group]]:
    """Prepare all groups, label them, and train a network for each that has units, after what is done."""
    started = time.perf_counter()
    groups = prepare_groups(recording, config)
    pretrained = open_pretrained(config)
    starts = {} if pretrained is None else start_from(pretrained, groups, config)
    label_sets, label_facts = label_groups(groups, recording, labels, source, config, state)
    labels_s = time.perf_counter() - started
    common: dict[str, Any] = {
        "sampling_frequency": float(recording.get_sampling_frequency()),
        "network_config": dataclasses.replace(config.network, design=config.design),
        "preprocessing_config": config.preprocessing,
        "detection_config": config.detection,
    }
    models, facts = [], []
    for index, group in enumerate(groups):
        if group.name not in label_sets:
            logger.warning("group %s has no units and is not sorted", group.name)
            continue
        file = state.group_file(index)
        if file.exists():
            kept = load_model(file)
            model, group_facts = kept.groups[0], kept.facts
        else:
            start, checkpoint = starts.get(group.name), state.training_file(index)
            model, group_facts = learn_group(
                group, label_sets[group.name], config, progress, start, checkpoint
            )
        models.append(model)
        facts.append(group_facts)
        if group_facts["interrupted"]:
            break
        if len(label_sets) > 1 and not file.exists():  # the model of one group is saved at once
            save_model(Model(groups=(model,), facts=group_facts, **common), file)
    return Model(
        groups=tuple(models),
        **common,
        facts={
            "labels": {**label_facts, "labels_per_unit": config.labels.labels_per_unit},
            "labels_s": round(labels_s, 3),
            "training": config.training.resolved().to_dict(),
            "units": config.units.to_dict(),
            "transfer": config.transfer.to_dict(),
            "pretrained_hash": None if pretrained is None else pretrained.hash(),
            "groups": facts,
            "interrupted": any(group_facts["interrupted"] for group_facts in facts),
        },
    ), groups


def run_sort(work: Work, state: Unfinished) -> tuple[BaseSorting, Model, dict[str, Any]]:
    """Learn a model if there is none, find the spikes of each group, and join them."""
    started, config, is_given = time.perf_counter(), work.config, work.model is not None
    model, groups = _ready(work, state)
    learning_s = time.perf_counter() - started if is_given else _learning_seconds(model)
    started = time.perf_counter()
    store = state.shards()
    earlier_s = store.seconds
    num_samples = work.facts["recording"]["num_samples"]
    periods = _plan(model, num_samples, config)
    last = _find(work, model, groups, periods, store, state)
    preprocessing = {group.name: list(group.preprocessed.steps) for group in groups}
    del groups  # and with them the traces that they hold: the result is mapped into memory where those were
    shards = [shard for period in periods for shard in period]
    sorting = merge_shards(store, periods, model, len(num_samples), state.folder / "spikes.npy")
    sorting_s = earlier_s + time.perf_counter() - started
    damage = _damage(model, shards, store, len(num_samples))
    if note := tell_damage(damage):
        logger.warning(note)
    if is_given:  # only now, since an error before leaves nothing that is worth keeping
        save_model(model, state.output / MODEL_FILE)
    provenance = _provenance(work, model, preprocessing, sorting, (learning_s, sorting_s))
    if config.sorting.refresh_min is not None:
        provenance["refreshed"] = last.facts.get("refreshed", [])
    return sorting, model, {**provenance, "damage": damage}


def _plan(model: Model, num_samples: list[int], config: Config) -> list[list[Shard]]:
    """Cut the recording into shards, those of each period of the same units."""
    rate, refresh_min = model.sampling_frequency, config.sorting.refresh_min
    period = None if refresh_min is None else max(1, round(60 * refresh_min * rate))
    return plan_shards(len(model.groups), num_samples, max(1, round(config.sorting.shard_s * rate)), period)


def _damage(model: Model, shards: list[Shard], store: ShardStore, num_segments: int) -> dict[str, Any]:
    """Return the damage of all groups for the provenance."""
    channel_ids = {part.name: part.channel_ids for part in model.groups}
    parts: dict[str, list[tuple[int, Damage]]] = {name: [] for name in channel_ids}
    for shard in shards:
        parts[model.groups[shard.group_index].name].append((shard.segment_index, store.damage(shard)))
    damage = {name: join_damage(part, num_segments) for name, part in parts.items()}
    return describe_damage(damage, channel_ids, model.sampling_frequency)


def _provenance(
    work: Work,
    model: Model,
    preprocessing: dict[str, list[str]],
    sorting: BaseSorting,
    seconds: tuple[float, float],
) -> dict[str, Any]:
    """Return how the spikes were found; `seconds` are those of learning and of sorting."""
    recorded_s, (learning_s, sorting_s) = work.recording.get_total_duration(), seconds
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    processor = platform.processor() or platform.machine()
    return {
        "spikewise_version": __version__,
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"processor": processor, **threads_and_device(work.config)},
        **work.facts,
        "job": work.job,
        "config": _effective_config(work.config, model),
        "preprocessing": preprocessing,
        "labels": model.facts.get("labels"),
        "model": {"given": work.model is not None, "hash": model.hash(), "facts": model.facts},
        "result": {
            "num_units": sorting.get_num_units(),
            "num_spikes": int(sorting.count_total_num_spikes()),
            "spikes_hash": spikes_hash(sorting),
        },
        "seconds": {
            "recorded": round(recorded_s, 3),
            "learning": round(learning_s, 3),
            "sorting": round(sorting_s, 3),
            "total": round(learning_s + sorting_s, 3),
        },
        "real_time_factor": round(recorded_s / sorting_s, 3),
    }


def _ready(work: Work, state: Unfinished) -> tuple[Model, list[Group]]:
    """Return the model that is given, or was learnt before, or is learnt now; and the groups made ready."""
    if work.model is not None:
        return work.model, prepare_groups(work.recording, work.config, work.model)
    file = state.output / MODEL_FILE
    if file.exists() and not (kept := load_model(file)).facts["interrupted"]:
        return kept, prepare_groups(work.recording, work.config)
    model, groups = learn_model(
        work.recording, work.labels, work.label_source, work.config, state, work.progress
    )
    save_model(model, file)
    if model.facts["interrupted"]:
        raise Interrupted(
            "training was interrupted",
            f"the best model so far is {file}",
            "sort with --model and that file, or go on training with --resume",
        )
    return model, groups


def _learning_seconds(model: Model) -> float:
    """Return how long learning took, in whatever process."""
    groups = model.facts["groups"]
    return model.facts["labels_s"] + sum(group["training_s"] + group["thresholds_s"] for group in groups)


def _find(
    work: Work,
    model: Model,
    groups: list[Group],
    periods: list[list[Shard]],
    store: ShardStore,
    state: Unfinished,
) -> Model:
    """Find the spikes of all shards that are not finished; return the model of the last period."""
    every = [shard for period in periods for shard in period]
    told = Told(every, store, model.sampling_frequency, work.progress)
    if work.config.sorting.refresh_min is None:
        _find_period(work, model, groups, every, store, told)
        return model
    refresher = Refresher(model, groups, work.config, store, state, work.progress)
    for number, shards in enumerate(periods):
        model = refresher.model_of(number, periods)
        _find_period(work, model, groups, shards, store, told)
    return model


def _find_period(
    work: Work, model: Model, groups: list[Group], shards: list[Shard], store: ShardStore, told: Told
) -> None:
    """Find the spikes of shards that are not finished, here or on a cluster."""
    config = work.config
    if all(shard in store for shard in shards):
        return
    if config.sorting.cluster is None:
        find_here(Finder(groups, model, config), shards, store, work.watch, told)
    else:
        remote = make_remote_work(work.recording, model, config)
        with open_cluster(config.sorting.cluster) as cluster:
            find_on_cluster(cluster, remote, shards, store, work.watch, told)


def _effective_config(config: Config, model: Model) -> dict[str, Any]:
    """Return the settings that were in force: a model brings its own for the network and the traces."""
    return {
        **config.to_dict(),
        "network": model.network_config.to_dict(),
        "preprocessing": model.preprocessing_config.to_dict(),
        "training": model.facts.get("training"),
    }


def describe_recording(recording: BaseRecording, path: str | None) -> dict[str, Any]:
    """Return what a recording is, for the provenance."""
    return {
        "path": path,
        "sampling_frequency": float(recording.get_sampling_frequency()),
        "num_channels": recording.get_num_channels(),
        "num_segments": recording.get_num_segments(),
        "num_samples": [recording.get_num_samples(index) for index in range(recording.get_num_segments())],
        "dtype": str(recording.get_dtype()),
    }
