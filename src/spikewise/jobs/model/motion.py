"""The motion of each group: given, estimated, or none; and the groups without it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spikeinterface.core.motion import Motion

from spikewise.core.config import Config
from spikewise.core.progress import MOTION, READING, ProgressCallback
from spikewise.core.threads import one_thread_each
from spikewise.data.spatial.motion import load_motion
from spikewise.discovery.event_search import FirstLook, look_at
from spikewise.discovery.motion.estimating import MotionEstimate, estimate_motion, may_move
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.output.motions import load_motions, save_motion
from spikewise.sorting.groups import Group

logger = logging.getLogger(__name__)

NO_MOTION = "none"
AUTO = "auto"


@dataclass(frozen=True)
class Followed:
    """The groups with traces as if the probe had stood still.

    Attributes
    ----------
    groups : list of Group
    facts : dict
        Of each group where its motion comes from; JSON types only.
    looks : dict of str to FirstLook
        Traces of groups, without motion, in which units can be searched.
    """

    groups: list[Group]
    facts: dict[str, Any]
    looks: dict[str, FirstLook]


def follow_motion(
    groups: Sequence[Group],
    config: Config,
    state: Unfinished,
    progress: ProgressCallback,
    finds_units: bool = False,
) -> Followed:
    """Estimate the motion of each group, and remove it.

    A group whose motion is not followed stays as it is. Estimates are kept in the output folder, so that a
    sort that is continued uses the same ones.

    Parameters
    ----------
    groups : sequence of Group
    config : Config
        Its setting `motion`.
    state : Unfinished
    progress : callable
    finds_units : bool
        Whether units will be searched in traces that are all kept in memory: then motion is measured on all
        of them, too.

    Raises
    ------
    SettingError
        If the given motion cannot be used.
    """
    followed = Followed([], {}, {})
    for index, group in enumerate(groups):
        look = None
        if finds_units and not _is_known(index, group, config.sorting.motion, state):
            look = _first_look(group, progress)
        motion, facts = _motion_of(group, index, config.sorting.motion, state, progress, look)
        followed.facts[group.name] = facts
        still = group if motion is None else group.without_motion(motion)
        followed.groups.append(still)
        if look is not None:
            followed.looks[group.name] = look if motion is None else look.still(still.reader)
    return followed


def _is_known(index: int, group: Group, asked: str, state: Unfinished) -> bool:
    """Return whether the motion of a group is not to be estimated."""
    return asked != AUTO or group.is_live or state.read(_name(index)) is not None


def _name(index: int) -> str:
    return f"motion-{index}.json"


def _first_look(group: Group, progress: ProgressCallback) -> FirstLook | None:
    """Return all traces of a group and their events; None if they cannot show motion."""
    positions = group.recording.get_channel_locations()
    if may_move(group.reader, positions, group.is_silent):
        return None
    progress(READING, 0, 1, "")
    with one_thread_each():
        return look_at(
            group.reader,
            positions,
            lambda done, total: progress(READING, done, total, ""),
            lambda done, total: progress(MOTION, done, total, "searching events"),
        )


def _motion_of(
    group: Group,
    index: int,
    asked: str,
    state: Unfinished,
    progress: ProgressCallback,
    look: FirstLook | None,
) -> tuple[Motion | None, dict[str, Any]]:
    """Return the motion of a group, and where it comes from."""
    if asked == NO_MOTION:
        return None, {"followed": False, "reason": "switched off"}
    num_segments = group.recording.get_num_segments()
    name = _name(index)
    facts = state.read(name)
    if facts is not None:  # also of a given motion, whose folder may have changed since
        return load_motions(state.output, [group.name], num_segments).get(group.name), facts
    if asked != AUTO:
        given = {"followed": True, "reason": "given"}
        estimate = MotionEstimate(load_motion(asked, num_segments), [], given)
    elif group.is_live:
        return None, {"followed": False, "reason": "a running stream has no motion before it ends"}
    else:
        positions = group.recording.get_channel_locations()
        estimate = estimate_motion(group.reader, positions, group.is_silent, progress, look)
    if estimate.motion is not None:
        save_motion(estimate.motion, estimate.uncertainty_um, state.output, group.name)
    state.save(estimate.facts, name)
    return estimate.motion, estimate.facts
