"""How the spikes of a result were found: settings, versions, machine, damage and seconds, as JSON types."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spikeinterface.core import BaseRecording, BaseSorting

from spikewise.core.config import Config
from spikewise.core.devices import describe_device
from spikewise.core.version import __version__
from spikewise.data.opening import Inputs
from spikewise.data.recordings.preprocessing import split_groups
from spikewise.jobs.finding import FoundShards
from spikewise.models.checkpoint import Model
from spikewise.output.store import spikes_hash
from spikewise.sorting.damaged import Damage, describe_damage, join_damage

PACKAGES = ("spikeinterface", "torch", "numpy", "scipy", "probeinterface", "neo")


@dataclass(frozen=True)
class Seconds:
    """How long the parts of a sort took; all but `preparing` over all processes.

    Attributes
    ----------
    preparing : float
        From the start to the prepared groups: opening, noise and damage.
    learning : float
        Finding units and learning them; 0 if the model was given.
    sorting : float
        Finding the spikes and writing them.
    """

    preparing: float
    learning: float
    sorting: float

    @property
    def total(self) -> float:
        """All together: from the file to the result, but for the report."""
        return self.preparing + self.learning + self.sorting


def describe_sort(
    inputs: Inputs,
    config: Config,
    model: Model,
    is_given: bool,
    found: FoundShards,
    sorting: BaseSorting,
    seconds: Seconds,
) -> dict[str, Any]:
    """Return how the spikes of a sorting were found; `is_given` says that the model was not learnt here."""
    recorded_s = inputs.recording.get_total_duration()
    groups = split_groups(inputs.recording, model.preprocessing_config.group_by)
    channel_ids = {part.name: groups[part.name].channel_ids for part in model.groups}
    versions = package_versions(PACKAGES)
    processor = platform.processor() or platform.machine()
    facts = {
        "spikewise_version": __version__,
        "versions": {"python": platform.python_version(), **versions},
        "machine": {"processor": processor, **describe_device(config.sorting.device)},
        "recording": {
            **describe_recording(inputs.recording, inputs.path),
            "channel_ids": {name: list(map(str, ids)) for name, ids in channel_ids.items()},
        },
        "config": _effective_config(config, model),
        "labels": model.facts.get("labels"),
        "model": {"hash": model.hash(), "facts": model.facts, "given": is_given},
        "result": {
            "num_units": sorting.get_num_units(),
            "num_spikes": int(sorting.count_total_num_spikes()),
            "spikes_hash": spikes_hash(sorting),
        },
        "seconds": {
            "recorded": round(recorded_s, 3),
            "preparing": round(seconds.preparing, 3),
            "learning": round(seconds.learning, 3),
            "sorting": round(seconds.sorting, 3),
            "total": round(seconds.total, 3),
        },
        "real_time_factor": round(recorded_s / seconds.total, 3),
        "damage": _damage(model, found, inputs.recording, channel_ids),
    }
    if config.sorting.refresh_min is not None:
        facts["refreshed"] = found.refreshed
    return facts


def add_seconds(provenance: dict[str, Any], name: str, seconds: float) -> None:
    """Add the time of a step after the sort, such as its report, to the seconds of the sort, in place."""
    taken = provenance["seconds"]
    taken[name] = round(seconds, 3)
    taken["total"] = round(taken["total"] + seconds, 3)
    provenance["real_time_factor"] = round(taken["recorded"] / taken["total"], 3)


def package_versions(names: Sequence[str]) -> dict[str, str]:
    """Return the versions of installed packages."""
    return {name: importlib.metadata.version(name) for name in names}


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


def _effective_config(config: Config, model: Model) -> dict[str, Any]:
    """Return the settings that were used: those of network and preprocessing are the model's own."""
    return {
        **config.to_dict(),
        "network": model.network_config.to_dict(),
        "preprocessing": model.preprocessing_config.to_dict(),
        "training": model.facts.get("training"),
    }


def _damage(
    model: Model, found: FoundShards, recording: BaseRecording, channel_ids: Mapping[str, Sequence[Any]]
) -> dict[str, Any]:
    """Return the damage of all groups."""
    num_segments = recording.get_num_segments()
    parts: dict[str, list[tuple[int, Damage]]] = {name: [] for name in channel_ids}
    for shard in found.shards:
        name = model.groups[shard.group_index].name
        parts[name].append((shard.segment_index, found.store.damage(shard)))
    damage = {name: join_damage(part, num_segments) for name, part in parts.items()}
    return describe_damage(damage, channel_ids, recording.sampling_frequency)
