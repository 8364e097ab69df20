"""Units relearnt while a long recording is sorted, from their own confident spikes.

Over hours a probe settles and neurons change, until labels of the first minute no longer show what the units
look like. With ``refresh_min`` the recording is sorted in periods of this many minutes. After each period the
units are relearnt from the confident spikes of its last minute, and the new model sorts the next period.
Units keep their ids; a unit with too few spikes is not relearnt. Each relearnt model is kept until the sort
is finished, so that an interrupted sort continues with the same units.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Sequence

import numpy as np
import torch
from spikeinterface.core import NumpySorting

from spikewise.core.config import Config
from spikewise.core.errors import Interrupted, SettingError
from spikewise.core.progress import ProgressCallback
from spikewise.core.seeds import stage_seed
from spikewise.data.labels.label_set import LabelSet, relabelled
from spikewise.jobs.state.shards import Shard, ShardStore
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.learning.group_learning import learn_group
from spikewise.learning.settings import LearningSettings
from spikewise.models.checkpoint import GroupModel, Model, load_model, save_model
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.sorting.groups import Group

logger = logging.getLogger(__name__)

WINDOW_S = 60.0
"""Units are relearnt from the last WINDOW_S seconds of each period. Chosen by hand."""
FEWEST_SPIKES = 10
"""A unit with fewer confident spikes in these seconds is not relearnt. Chosen by hand."""


class Refresher:
    """Gives the model of each period of a sort.

    Parameters
    ----------
    model : Model
        The model of the first period.
    groups : sequence of Group
        The groups of the recording, preprocessed as for the model.
    config : Config
        With ``sorting.refresh_min``.
    store : ShardStore
        Holds the spikes found. All spikes of a period must be there before the next model is requested.
    state : Unfinished
        Where refreshed models are kept.
    progress : callable
        Called with the progress of learning.

    Raises
    ------
    SettingError
        If the model has another design than neighbourhood.
    """

    def __init__(
        self,
        model: Model,
        groups: Sequence[Group],
        config: Config,
        store: ShardStore,
        state: Unfinished,
        progress: ProgressCallback,
    ):
        for part in model.groups:
            _network_of(part)
        self._models = [model]
        self._groups = {group.name: group for group in groups}
        self._config, self._store, self._state, self._progress = config, store, state, progress

    def model_of(self, period: int, shards: Sequence[Sequence[Shard]]) -> Model:
        """Return the model of a period; `shards` are those of each period, in order."""
        while len(self._models) <= period:
            number = len(self._models)
            file = self._state.folder / f"refreshed-{number}.safetensors"
            if not file.exists():
                save_model(self._refreshed(number, shards[number - 1]), file)
            self._models.append(load_model(file))
        return self._models[period]

    def _refreshed(self, number: int, shards: Sequence[Shard]) -> Model:
        before = self._models[-1]
        parts, num_learnt = [], {}
        for index, part in enumerate(before.groups):
            mine = [shard for shard in shards if shard.group_index == index]
            refreshed, num_learnt[part.name] = self._refresh(number, part, before, mine)
            parts.append(refreshed)
        logger.info("units relearnt after period %d: %s", number, num_learnt)
        facts = {**before.facts, "refreshed": [*before.facts.get("refreshed", []), num_learnt]}
        return dataclasses.replace(before, groups=tuple(parts), facts=facts)

    def _refresh(
        self, number: int, part: GroupModel, model: Model, shards: Sequence[Shard]
    ) -> tuple[GroupModel, int]:
        """Relearn the units of a group that have enough spikes; return the group's model and their number."""
        group = self._groups[part.name]
        label_set, units = self._own_spikes(group, len(part.unit_ids), shards)
        if not len(units):
            return part, 0
        network = _network_of(part)
        learnt, facts = learn_group(
            group,
            label_set,
            self._settings(number, model, network),
            self._progress,
            network.backbone,
        )
        if facts["interrupted"]:
            raise Interrupted(
                "relearning units was interrupted",
                "the spikes found so far are kept",
                "go on with --resume",
            )
        return _with_units(part, learnt, units), len(units)

    def _settings(self, number: int, model: Model, network: NeighbourhoodNetwork) -> LearningSettings:
        """Return settings that learn networks of the same sizes, from all spikes."""
        seed = stage_seed(self._config.training.seed, f"refresh {number}") % 2**31
        return LearningSettings(
            design="neighbourhood",
            network=model.network_config,
            detection=model.detection_config,
            sorting=self._config.sorting,
            labels_per_unit=None,
            units=dataclasses.replace(
                self._config.units,
                near_channels=network.channel_index.shape[1],
                hidden_features=network.units.hidden_weight.shape[2],
            ),
            training=dataclasses.replace(self._config.training, seed=seed),
        )

    def _own_spikes(
        self, group: Group, num_units: int, shards: Sequence[Shard]
    ) -> tuple[LabelSet, np.ndarray]:
        """Return the confident spikes of the end of a period as labels, and the indices of their units."""
        reader = group.reader
        rate = reader.sampling_frequency
        starts = np.cumsum([0, *(reader.num_samples(index) for index in range(reader.num_segments))])[:-1]
        firsts = [int(starts[shard.segment_index]) for shard in shards]
        stop = max(first + shard.stop for first, shard in zip(firsts, shards, strict=True))
        start = min(first + shard.start for first, shard in zip(firsts, shards, strict=True))
        start = max(start, stop - round(WINDOW_S * rate))
        tables = [
            (first, self._store.read(shard))
            for first, shard in zip(firsts, shards, strict=True)
            if first + shard.stop > start
        ]
        frames = np.concatenate([first + table["sample_index"] for first, table in tables])
        of_unit = np.concatenate([table["unit_index"] for _, table in tables])
        response = np.concatenate([table["response"] for _, table in tables])
        is_sure = (response > self._config.units.confident) & (frames >= start)
        counts = np.bincount(of_unit[is_sure], minlength=num_units)
        units = np.flatnonzero(counts >= FEWEST_SPIKES)
        empty = NumpySorting.from_unit_dict([{} for _ in starts], rate)
        where = LabelSet(empty, start, stop, "confident spikes", tuple(int(first) for first in starts))
        return relabelled(where, [np.sort(frames[is_sure & (of_unit == unit)]) for unit in units]), units


def _network_of(part: GroupModel) -> NeighbourhoodNetwork:
    """Return the network of a group, whose units can be learnt one by one."""
    if not isinstance(part.network, NeighbourhoodNetwork):
        raise SettingError(
            "refresh_min is given with a model of the design esort-paper",
            "a model of the design neighbourhood, whose units are learnt one by one",
            "leave refresh_min out, or train with the design neighbourhood",
        )
    return part.network


def _with_units(part: GroupModel, learnt: GroupModel, units: np.ndarray) -> GroupModel:
    """Return a group's model in which the relearnt units replace the old ones."""
    old, new = part.network.state_dict(), learnt.network.state_dict()
    rows = torch.from_numpy(units)
    merged = {
        name: tensor if name.startswith("backbone.") else tensor.index_copy(0, rows, new[name])
        for name, tensor in old.items()
    }
    network = copy.deepcopy(part.network)
    network.load_state_dict(merged)
    thresholds = part.thresholds.copy()
    thresholds[units] = learnt.thresholds
    waveforms = part.waveforms
    if waveforms is not None and learnt.waveforms is not None:
        waveforms = waveforms.with_units(learnt.waveforms, units)
    return dataclasses.replace(part, network=network.eval(), thresholds=thresholds, waveforms=waveforms)
