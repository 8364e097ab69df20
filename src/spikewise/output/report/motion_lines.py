"""The motion of the probe as a report shows it: lines at several depths, and what is said of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from spikeinterface.core.motion import Motion

from spikewise.data.spatial.motion import MotionOfFrames, displacement_at
from spikewise.output.measures import UnitMeasures
from spikewise.output.result import StoredResult
from spikewise.output.samples import SpikeSamples

# Chosen by hand.
MAX_LINES = 6
"""Most lines, over all groups; each group has at least two."""
MAX_NAMED_GROUPS = 8
"""Most groups that a sentence names."""
_RANGE_PERCENTILES = 2, 98
"""The range of a motion lies between these percentiles over time, as where it is estimated."""


@dataclass(frozen=True)
class MotionPart:
    """The motion at one depth in one segment; arrays are (num_bins,).

    Attributes
    ----------
    times_s : ndarray
        Time from the start of the recording, segments laid end to end.
    moved_um : ndarray
        How far the tissue has moved along the probe.
    uncertainty_um : ndarray or None
        None if it is not known.
    """

    times_s: np.ndarray
    moved_um: np.ndarray
    uncertainty_um: np.ndarray | None


@dataclass(frozen=True)
class MotionLine:
    """The motion at one depth of a group, by segment."""

    group: str
    depth_um: float
    parts: list[MotionPart]


def motion_lines(result: StoredResult) -> list[MotionLine]:
    """Return the motion of each group that has one, at depths that are evenly spread over its channels."""
    groups = [group for group in result.model.groups if group.name in result.motions]
    lines = []
    for group in groups:
        depths = np.asarray(group.channel_positions_um, dtype=float)[:, 1]
        count = max(2, MAX_LINES // len(groups))
        rests = depths.min() + (np.arange(count) + 0.5) * np.ptp(depths) / count
        lines += [MotionLine(group.name, float(rest), _parts(result, group.name, rest)) for rest in rests]
    return lines


def _parts(result: StoredResult, group: str, depth_um: float) -> list[MotionPart]:
    motion, uncertainty = result.motions[group], result.motion_uncertainty_um.get(group)
    parts, start_s = [], 0.0
    for segment, length in enumerate(result.num_samples):
        times, at = motion.temporal_bins_s[segment], np.array([depth_um])
        spread = None
        if uncertainty is not None:
            like = Motion([uncertainty[segment]], [times], motion.spatial_bins_um, "y")
            spread = displacement_at(like, times, at, 0)[:, 0]
        moved = displacement_at(motion, times, at, segment)[:, 0]
        parts.append(MotionPart(start_s + np.asarray(times, dtype=float), moved, spread))
        start_s += length / result.sorting.sampling_frequency
    return parts


def moved_spikes(result: StoredResult, units: list[UnitMeasures], samples: SpikeSamples) -> np.ndarray | None:
    """Return how far the tissue had moved at each sampled spike, at the depth of its unit.

    Returns
    -------
    ndarray, shape (num_spikes,), or None
        In um, 0 where no motion was removed; None if it was removed nowhere.
    """
    if not result.motions:
        return None
    rate = result.sorting.sampling_frequency
    frames = np.rint(samples.time_s * rate).astype(np.int64)
    moved = np.zeros(len(frames))
    for unit in units:
        motion, rows = result.motions.get(unit.group.name), samples.of_unit(unit.unit_index)
        depths = samples.depth_um[rows]
        if motion is not None and np.isfinite(depths).any():
            depth_um = float(np.nanmedian(depths))
            moved[rows] = MotionOfFrames(motion, result.num_samples, rate).at(frames[rows], depth_um)
    return moved


def motion_notes(result: StoredResult) -> list[str]:
    """Return what was found of the motion, in one sentence or more for all groups of which the same is true.

    Empty for a result of an earlier version, which says nothing of motion.
    """
    of_groups = result.provenance.get("motion")
    groups_of: dict[str, list[str]] = {}
    for group in result.model.groups:
        facts = of_groups.get(group.name) if isinstance(of_groups, dict) else None
        if isinstance(facts, dict):
            groups_of.setdefault(_note(result, group.name, facts), []).append(group.name)
    if len(result.model.groups) == 1:
        return list(groups_of)
    return [f"{_named(names)}: {note}" for note, names in groups_of.items()]


def _named(groups: list[str]) -> str:
    more = len(groups) - MAX_NAMED_GROUPS
    listed = ", ".join(groups[:MAX_NAMED_GROUPS]) + (f" and {more} more" if more > 0 else "")
    return f"Group {listed}" if len(groups) == 1 else f"Groups {listed}"


def _note(result: StoredResult, group: str, facts: dict[str, Any]) -> str:
    reason = str(facts.get("reason") or "no reason was kept").replace(" um", " \N{MICRO SIGN}m")
    motion = result.motions.get(group)
    if motion is None and facts.get("followed"):
        return "motion was removed from the traces, but its files cannot be read."
    if motion is None:
        return f"no motion was removed from the traces: {reason}."
    low, high = np.percentile(np.concatenate(motion.displacement), _RANGE_PERCENTILES, axis=0)
    source = "A given motion" if reason == "given" else "Motion of the probe"
    note = (
        f"{source} was removed from the traces: "
        f"the tissue moved along the probe, over a range of {(high - low).max():.1f} \N{MICRO SIGN}m."
    )
    uncertainty = result.motion_uncertainty_um.get(group)
    if uncertainty is None:
        return note
    median = float(np.median(np.concatenate(uncertainty)))
    return (
        f"{note} The uncertainty is {median:.1f} \N{MICRO SIGN}m (median): "
        "half of the difference between two halves of the events."
    )
