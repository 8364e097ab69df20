"""After a sort: the events that no unit explains, and on request the units among them.

A *second look* (:mod:`spikewise.discovery.unexplained`) at parts of the recording that depend on its length
only counts what no unit explains. If new units are asked for, those among these events are learnt, and the
recording is searched for them alone (:mod:`spikewise.jobs.adding`). What was found is kept in the output
folder, so that an interrupted sort continues with the same units.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from spikewise.core.config import Config
from spikewise.core.progress import ADDING, FINDING_UNITS, NEW_UNITS, READING, PartOf, ProgressCallback
from spikewise.core.seeds import stage_seed
from spikewise.data.opening import Inputs
from spikewise.discovery.held_traces import Part
from spikewise.discovery.unexplained import (
    SecondLook,
    SortedUnits,
    Unexplained,
    parts_to_count,
    parts_to_search,
)
from spikewise.jobs.adding import AddedFinder, Adding
from spikewise.jobs.finder import FindingProgress
from spikewise.jobs.finding import FoundShards
from spikewise.jobs.model.extending import extend_model
from spikewise.jobs.model.learn import known_file
from spikewise.jobs.model.start import OWN_DISCOVERY
from spikewise.jobs.remote import make_remote_work
from spikewise.jobs.state.fingerprint import FileWatch
from spikewise.jobs.state.shards import Shard, ShardStore
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.models.checkpoint import GroupModel, Model, load_model, save_model
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.models.unit_waveforms import UnitWaveforms
from spikewise.sorting.groups import Group

logger = logging.getLogger(__name__)

_KEPT = "unexplained.json"
"""Facts of the second look, in the folder of what is unfinished."""
_MODEL = "more-units.safetensors"
"""The model with the new units."""
_SHARDS = "shards-of-all"
_INNER = {READING: 1.0, FINDING_UNITS: 2.0}
"""Relative length of the stages of a second look at a group."""


@dataclass(frozen=True)
class SecondSort:
    """What is looked at after a sort.

    Attributes
    ----------
    groups : sequence of Group
        Prepared as for the model.
    inputs : Inputs
    config : Config
    state : Unfinished
        Keeps what is found.
    watch : FileWatch
    progress : callable
    is_moved : bool
        Whether the model was given, and the probe has moved since it was learnt: then no unit is added.
    """

    groups: Sequence[Group]
    inputs: Inputs
    config: Config
    state: Unfinished
    watch: FileWatch
    progress: ProgressCallback
    is_moved: bool = False

    def run(
        self, model: Model, found: FoundShards, is_given: bool
    ) -> tuple[Model, FoundShards, dict[str, Any]]:
        """Return the model and the spikes with new units, if there are any, and facts about what was found.

        Parameters
        ----------
        model : Model
        found : FoundShards
            All spikes of its units.
        is_given : bool
            Whether the model was given, and not learnt in this sort.
        """
        facts = self.state.read(_KEPT)
        file = self.state.folder / _MODEL
        if facts is None or (facts["num_new_units"] and not file.exists()):
            more, facts = self._looked(model, found, is_given)
            if facts["num_new_units"]:
                if not is_given:
                    save_model(model, known_file(self.state))
                save_model(more, file)
            self.state.save(facts, _KEPT)
        if not facts["num_new_units"]:
            return model, found, facts
        model_of_all = load_model(file)
        num_known = tuple(len(part.unit_ids) for part in model.groups)
        return model_of_all, self._added(model_of_all, num_known, found), facts

    def _looked(self, model: Model, found: FoundShards, is_given: bool) -> tuple[Model, dict[str, Any]]:
        """Look at each group; return the model with new units, and the facts."""
        asked = self.config.sorting.new_units
        is_unlabelled = not is_given and self.inputs.labels is None
        is_searched = is_unlabelled and self.config.bootstrap.bootstrap == OWN_DISCOVERY
        is_on = is_unlabelled if asked is None else asked
        looks, facts = {}, {}
        for index, part in enumerate(model.groups):
            reader = next(group for group in self.groups if group.name == part.name).reader
            parts = parts_to_search(reader, is_searched) if is_on else []
            reason = _reason(part, is_on, bool(parts))
            if self.is_moved and is_on:
                reason = "the probe has moved since the model was learnt"
            look = self._look(index, part, found, parts if reason is None else [])
            looks[part.name] = look
            facts[part.name] = _described(look, part, reason, reader.sampling_frequency)
        more = model
        if any(look.trains for look in looks.values()):
            more = extend_model(model, self.groups, looks, self.config, self.progress)
        for before, after in zip(model.groups, more.groups, strict=True):
            facts[after.name]["new_unit_ids"] = list(after.unit_ids[len(before.unit_ids) :])
        num_new = len(more.unit_ids) - len(model.unit_ids)
        return more, {"num_new_units": num_new, "groups": facts}

    def _look(self, index: int, part: GroupModel, found: FoundShards, parts: Sequence[Part]) -> Unexplained:
        """Look at some parts of a group for new units; without parts, only count in others."""
        group = next(one for one in self.groups if one.name == part.name)
        place = index, len({shard.group_index for shard in found.shards})
        progress = PartOf(self.progress, NEW_UNITS, place, f"group {part.name}", _INNER)
        positions = group.recording.get_channel_locations()
        seed = stage_seed(self.config.training.seed, f"new units of group {index}") % 2**31
        counted = parts or parts_to_count(group.reader)
        look = SecondLook(group.reader, positions, seed, progress, group.reader.motion, counted)
        return look.look(_spikes_in(found, index, counted, part.waveforms), bool(parts))

    def _added(self, model: Model, num_known: tuple[int, ...], found: FoundShards) -> FoundShards:
        """Search the recording for the new units, and return all spikes."""
        config = self.config
        store = ShardStore(self.state.folder / _SHARDS)
        earlier_s = found.earlier_s + store.seconds
        threshold = config.detection.threshold
        finder = AddedFinder(self.groups, model, num_known, config.sorting, threshold)
        report = FindingProgress(found.shards, store, model.sampling_frequency, self.progress, ADDING)
        adding = Adding(finder, (found.store, store), found.shards, self.watch, report)
        if config.sorting.cluster is None:
            adding.here()
        elif adding.missing():
            work = make_remote_work(self.inputs.recording, self.groups, model, config, num_known)
            adding.on_cluster(config.sorting.cluster, work)
        return replace(found, store=store, earlier_s=earlier_s)


def _reason(part: GroupModel, is_on: bool, has_parts: bool) -> str | None:
    """Return why new units are not searched, or None."""
    if not is_on:
        return "not asked for (new_units)"
    if not isinstance(part.network, NeighbourhoodNetwork):
        return "units cannot be added to a network of the design esort-paper"
    if not has_parts:
        return "the search for units looked at the whole recording"
    return None


def _spikes_in(
    found: FoundShards, index: int, parts: Sequence[Part], waveforms: UnitWaveforms | None
) -> SortedUnits:
    """Return the spikes of a group in some parts of the recording, in global frames."""
    frames, units = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    by_segment: dict[int, list[Shard]] = {}
    for shard in found.shards:
        if shard.group_index == index:
            by_segment.setdefault(shard.segment_index, []).append(shard)
    for segment, shards in by_segment.items():
        mine = [part for part in parts if part[0] == segment]
        for shard in sorted(shards):
            inside = [part for part in mine if part[1] < shard.stop and shard.start < part[2]]
            if not inside:
                continue
            table = found.store.read(shard)
            for _, start, stop, frame in inside:
                is_in = (table["sample_index"] >= start) & (table["sample_index"] < stop)
                frames.append(table["sample_index"][is_in].astype(np.int64) - start + frame)
                units.append(table["unit_index"][is_in].astype(np.int64))
    return SortedUnits(np.concatenate(frames), np.concatenate(units), waveforms)


def _described(look: Unexplained, part: GroupModel, reason: str | None, rate: float) -> dict[str, Any]:
    """Return the facts about the second look at a group: JSON types only."""
    edges = np.array(look.stretches, np.int64).reshape(-1, 2)
    starts = np.searchsorted(look.frames, edges)
    channels, counts = np.unique(look.channels, return_counts=True)
    seconds = look.facts["looked_at_s"]
    return {
        "looked_at_s": seconds,
        "num_unexplained": len(look.frames),
        "num_spikes": look.num_spikes,
        "parts_s": np.round(edges / rate, 3).tolist(),
        "num_of_parts": np.diff(starts, axis=1)[:, 0].tolist(),
        "num_of_channels": {
            part.channel_ids[channel]: int(count)
            for channel, count in zip(channels.tolist(), counts.tolist(), strict=True)
        },
        "new_units": {"searched": reason is None, "reason": reason, **_counts(look)},
    }


def _counts(look: Unexplained) -> dict[str, Any]:
    """Return what the search for new units counted."""
    left_out = ("looked_at_s", "num_new_units")
    counts = {name: value for name, value in look.facts.items() if name not in left_out}
    return {**counts, "num_spikes": [len(train) for train in look.trains]}
