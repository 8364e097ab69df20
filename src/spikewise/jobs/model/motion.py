"""The motion of each group: given, estimated, or none; and the groups without it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from spikeinterface.core.motion import Motion

from spikewise.core.config import Config
from spikewise.core.progress import ProgressCallback
from spikewise.data.spatial.motion import load_motion
from spikewise.discovery.motion.estimating import MotionEstimate, estimate_motion
from spikewise.jobs.state.unfinished import Unfinished
from spikewise.output.motions import load_motions, save_motion
from spikewise.sorting.groups import Group

logger = logging.getLogger(__name__)

NO_MOTION = "none"
AUTO = "auto"


def follow_motion(
    groups: Sequence[Group], config: Config, state: Unfinished, progress: ProgressCallback
) -> tuple[list[Group], dict[str, Any]]:
    """Return the groups with traces as if the probe had stood still, and facts about the motion of each.

    A group whose motion is not followed stays as it is. Estimates are kept in the output folder, so that a
    sort that is continued uses the same ones.

    Parameters
    ----------
    groups : sequence of Group
    config : Config
        Its setting `motion`.
    state : Unfinished
    progress : callable

    Raises
    ------
    SettingError
        If the given motion cannot be used.
    """
    still, facts = [], {}
    for index, group in enumerate(groups):
        motion, facts[group.name] = _motion_of(group, index, config.sorting.motion, state, progress)
        still.append(group if motion is None else group.without_motion(motion))
    return still, facts


def _motion_of(
    group: Group, index: int, asked: str, state: Unfinished, progress: ProgressCallback
) -> tuple[Motion | None, dict[str, Any]]:
    """Return the motion of a group, and where it comes from."""
    if asked == NO_MOTION:
        return None, {"followed": False, "reason": "switched off"}
    num_segments = group.recording.get_num_segments()
    name = f"motion-{index}.json"
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
        estimate = estimate_motion(group.reader, positions, group.is_silent, progress)
    if estimate.motion is not None:
        save_motion(estimate.motion, estimate.uncertainty_um, state.output, group.name)
    state.save(estimate.facts, name)
    return estimate.motion, estimate.facts
