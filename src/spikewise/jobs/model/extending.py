"""Units that are learnt after the others: a model with more units, whose first ones stay as they are."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from spikeinterface.core import NumpySorting

from spikewise.core.config import Config
from spikewise.core.errors import Interrupted, LabelsError
from spikewise.core.progress import ProgressCallback
from spikewise.core.seeds import stage_seed
from spikewise.data.labels.label_set import LabelSet, relabelled, segment_starts
from spikewise.discovery.discover import LEARNT_S
from spikewise.discovery.unexplained import Unexplained
from spikewise.learning.group_learning import learn_group
from spikewise.learning.settings import LearningSettings
from spikewise.models.checkpoint import GroupModel, Model
from spikewise.models.more_units import with_more_units
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.sorting.groups import Group

logger = logging.getLogger(__name__)


def extend_model(
    model: Model,
    groups: Sequence[Group],
    looks: Mapping[str, Unexplained],
    config: Config,
    progress: ProgressCallback,
) -> Model:
    """Return the model with the new units of each group behind its own, with the ids that come next.

    Parameters
    ----------
    model : Model
    groups : sequence of Group
        Prepared as for the model.
    looks : mapping of str to Unexplained
        The new units of groups, by their names.
    config : Config
    progress : callable
        Called with the progress of learning.

    Raises
    ------
    Interrupted
        If Ctrl-C ended the learning.
    """
    by_name = {group.name: group for group in groups}
    known = list(model.unit_ids)
    facts: list[Any] = [dict(of_group) for of_group in model.facts.get("groups", [])]
    parts = []
    for index, part in enumerate(model.groups):
        look = looks.get(part.name)
        learnt = None
        if look is not None and look.trains:
            learnt = _learn(by_name[part.name], part, look, model, config, progress)
        if learnt is None:
            parts.append(part)
            continue
        more, more_facts = learnt
        ids = next_ids(known, len(more.unit_ids))
        known += ids
        parts.append(with_more_units(part, more, tuple(ids)))
        if index < len(facts):
            facts[index] = _joined(facts[index], more_facts)
    return dataclasses.replace(model, groups=tuple(parts), facts={**model.facts, "groups": facts})


def next_ids(known: Sequence[int | str], count: int) -> list[int | str]:
    """Return the ids that come after those that are known: numbers, as text if any of these is text."""
    numbers = [int(one) for one in known if re.fullmatch(r"\d{1,18}", str(one))]
    first = max(numbers, default=-1) + 1
    is_text = any(isinstance(one, str) for one in known)
    return [str(one) if is_text else one for one in range(first, first + count)]


def _learn(
    group: Group,
    part: GroupModel,
    look: Unexplained,
    model: Model,
    config: Config,
    progress: ProgressCallback,
) -> tuple[GroupModel, dict[str, Any]] | None:
    """Learn the new units of a group with the filters of its model; None if no spike can be learnt from."""
    network = part.network
    if not isinstance(network, NeighbourhoodNetwork):
        return None
    settings = LearningSettings(
        design="neighbourhood",
        network=model.network_config,
        detection=model.detection_config,
        sorting=config.sorting,
        labels_per_unit=None,
        units=dataclasses.replace(
            config.units,
            near_channels=network.channel_index.shape[1],
            hidden_features=network.units.hidden_weight.shape[2],
        ),
        training=dataclasses.replace(
            config.training, seed=stage_seed(config.training.seed, "new units") % 2**31
        ),
    )
    try:
        learnt, facts = learn_group(group, _labels(group, look), settings, progress, network.backbone)
    except LabelsError as error:
        logger.warning("new units of group %s are left out: %s", group.name, error)
        return None
    if facts["interrupted"]:
        raise Interrupted(
            "learning new units was interrupted", "the spikes found so far are kept", "go on with --resume"
        )
    return learnt, facts


def _labels(group: Group, look: Unexplained) -> LabelSet:
    """Return the spikes of new units as labels, in the parts that hold most of them."""
    rate = group.recording.get_sampling_frequency()
    nothing = NumpySorting.from_unit_dict({}, rate)
    stretches = most_spikes(look.stretches, look.trains, LEARNT_S * rate)
    source = "events that no unit explained"
    total = group.recording.get_total_samples()
    whole = LabelSet(nothing, 0, total, source, segment_starts(group.recording), stretches)
    return relabelled(whole, look.trains)


def most_spikes(
    stretches: Sequence[tuple[int, int]], trains: Sequence[np.ndarray], samples: float
) -> tuple[tuple[int, int], ...]:
    """Return the parts, of so many samples at most, that hold most spikes; each unit counts the same.

    Parameters
    ----------
    stretches : sequence of (int, int)
        Parts in global frames (half open), in order of time.
    trains : sequence of ndarray
        Global frames of the spikes of each unit, ascending.
    samples : float
    """
    edges = np.array(stretches, np.int64).reshape(-1, 2)
    score = np.zeros(len(edges))
    for train in trains:
        inside = np.searchsorted(train, edges[:, 1]) - np.searchsorted(train, edges[:, 0])
        score += inside / max(1, len(train))
    order = np.argsort(-score, kind="stable")
    lengths = np.cumsum(np.diff(edges, axis=1)[order, 0])
    chosen = np.sort(order[: max(1, int((lengths <= samples).sum()))])
    return tuple((int(start), int(stop)) for start, stop in edges[chosen])


def _joined(before: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Return the facts about the training of a group with those of its new units."""
    joined = {**before, "new_units": more}
    for name in ("num_units", "num_labels", "num_labels_of_units"):
        if name in before:
            joined[name] = before[name] + more[name]
    return joined
