"""A model of another day: where its units are now, and which of them are there."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from spikewise.core.config import Config
from spikewise.core.progress import ProgressCallback
from spikewise.core.threads import one_thread_each
from spikewise.data.spatial.motion import with_offset
from spikewise.discovery.motion.estimating import sees_motion
from spikewise.discovery.motion.offset import find_offset
from spikewise.discovery.motion.placing import Placed, at_place, place_units
from spikewise.jobs.model.motion import NO_MOTION, place_file
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.models.checkpoint import GroupModel, Model
from spikewise.output.motions import load_uncertainty, save_motion
from spikewise.sorting.groups import Group

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PlacedModel:
    """A model where its units are now.

    Attributes
    ----------
    model : Model
        The given one, where no offset is used.
    groups : list of Group
        With traces from which the offset is removed, too.
    facts : dict
        Of each group its offset, and why; JSON types only.
    """

    model: Model
    groups: list[Group]
    facts: dict[str, dict[str, Any]]


def place_model(
    model: Model,
    groups: Sequence[Group],
    still: Sequence[Group],
    config: Config,
    state: Unfinished,
    progress: ProgressCallback,
) -> PlacedModel:
    """Find the offset between the recording and the model's place, and use the model where its units are now.

    What is found is kept in the output folder, so that a sort that is continued uses the same.

    Parameters
    ----------
    model : Model
        That was given.
    groups : sequence of Group
        With traces as they are.
    still : sequence of Group
        The same with traces whose motion within the recording is removed.
    config : Config
    state : Unfinished
    progress : callable
    """
    parts = {part.name: part for part in model.groups}
    placed, facts = list(still), {}
    for index, group in enumerate(groups):
        part = parts.get(group.name)
        if part is None or (why := _unfit(part, group, config)) is not None:
            if part is not None and why is not None:
                facts[group.name] = {"used": False, "reason": why}
            continue
        known = _find(part, model, index, (group, still[index]), config, state, progress)
        facts[group.name] = known
        if known["used"]:
            placed[index] = _moved(group, still[index], known["offset_um"])
            uncertainty = load_uncertainty(state.folder, group.name)
            save_motion(placed[index].motion, uncertainty, state.output, group.name)
            there = Placed(known["residual_noise"], tuple(known["absent"]))
            parts[group.name] = at_place(part, known["offset_um"], there)
    if not any(known["used"] for known in facts.values()):
        return PlacedModel(model, placed, facts)
    at_places = replace(model, groups=tuple(parts[part.name] for part in model.groups))
    return PlacedModel(at_places, placed, facts)


def _unfit(part: GroupModel, group: Group, config: Config) -> str | None:
    """Return why no offset can be found; None if one can."""
    if config.sorting.motion == NO_MOTION:
        return "switched off"
    if group.is_live:
        return "a running stream is not shifted"
    if part.waveforms is None:
        return "the model has no mean waveforms"
    return sees_motion(group.recording.get_channel_locations(), group.is_silent)


def _moved(group: Group, still: Group, offset_um: float) -> Group:
    """Return a group with traces from which its motion and an offset are removed."""
    motion = with_offset(still.motion, offset_um, group.recording.get_num_segments())
    return group.without_motion(motion)


def _find(
    part: GroupModel,
    model: Model,
    index: int,
    of_group: tuple[Group, Group],
    config: Config,
    state: Unfinished,
    progress: ProgressCallback,
) -> dict[str, Any]:
    """Return the offset of a group and which units are there; what an earlier process found counts."""
    known = state.read(place_file(index))
    if known is not None:
        return known
    group, still = of_group
    assert part.waveforms is not None
    positions = group.recording.get_channel_locations()
    with one_thread_each():
        estimate = find_offset(still.reader, positions, part.waveforms, progress)
    known = dict(estimate.facts)
    if known["used"]:
        moved = _moved(group, still, estimate.offset_um)
        placed = place_units(part, model, estimate.offset_um, moved.reader, config.sorting, progress)
        known |= {
            "offset_um": estimate.offset_um,
            "residual_noise": placed.residual_noise,
            "absent": list(placed.absent),
            "absent_ids": [str(part.unit_ids[unit]) for unit in placed.absent],
        }
        if still.motion is not None:  # a sort that is continued begins with the motion within the recording
            uncertainty = load_uncertainty(state.output, group.name)
            save_motion(still.motion, uncertainty, state.folder, group.name)
    state.save(known, place_file(index))
    return known
