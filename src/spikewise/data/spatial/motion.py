"""Estimates of motion: SpikeInterface's class and its files, checked.

A displacement is how far the tissue has moved along the probe at a time and a depth, in um: a neuron at depth
y is then seen at y + displacement. Depth is the second coordinate of the contacts. Times are in seconds from
the start of a segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from spikeinterface.core.motion import Motion

from spikewise.core.errors import SettingError
from spikewise.core.untrusted import load_npy, parsing

INFO_FILE = "spikeinterface_info.json"
"""File that marks a folder of SpikeInterface."""
_LARGEST_UM = 1000.0
"""Largest displacement that is believed."""


def load_motion(path: str | Path, num_segments: int) -> Motion:
    """Load an estimate of motion that SpikeInterface saved, and check it.

    Parameters
    ----------
    path : str or Path
        Folder of ``Motion.save``, or of ``save_motion_info``, which holds one named ``motion``.
    num_segments : int
        Segments of the recording.

    Returns
    -------
    Motion

    Raises
    ------
    SettingError
        If there is no such folder, or its content is no motion along the probe for so many segments.
    """
    folder = Path(path)
    if not (folder / INFO_FILE).is_file() and (folder / "motion" / INFO_FILE).is_file():
        folder = folder / "motion"
    if not (folder / INFO_FILE).is_file():
        raise _wrong(path, f"there is no {INFO_FILE}")
    with parsing(lambda reason: _wrong(path, f"it cannot be read: {reason}")):
        for file in folder.glob("*.npy"):
            load_npy(file, "r")  # refuses a header that claims more than the file has
        motion = Motion.load(folder)
    if motion.direction != "y":
        raise _wrong(path, f"its direction is {motion.direction!r}")
    if motion.num_segments != num_segments:
        raise _wrong(path, f"it has {motion.num_segments} segments, the recording {num_segments}")
    for times, displacement in zip(motion.temporal_bins_s, motion.displacement, strict=True):
        if displacement.shape != (len(times), len(motion.spatial_bins_um)) or not displacement.size:
            raise _wrong(path, f"its displacement has the shape {displacement.shape}")
        values = (times, displacement, motion.spatial_bins_um)
        if not all(np.issubdtype(value.dtype, np.number) and np.isfinite(value).all() for value in values):
            raise _wrong(path, "it has values that are no finite numbers")
        if np.abs(displacement).max() > _LARGEST_UM:
            raise _wrong(path, f"its largest displacement is {np.abs(displacement).max():g} um")
        if len(times) > 1 and not (np.diff(times) > 0).all():
            raise _wrong(path, "its times do not ascend")
    return motion


def _wrong(path: str | Path, found: str) -> SettingError:
    return SettingError(
        f"{path} is no motion of this recording: {found}",
        "a folder that SpikeInterface's Motion.save wrote, with finite displacements along y in um for each "
        "segment",
        "save the estimate again with motion.save(folder), or leave out --motion",
    )


def displacement_at(motion: Motion, times_s: np.ndarray, depths_um: np.ndarray, segment: int) -> np.ndarray:
    """Return the displacements (num_times, num_depths) in um; outside the bins that of the nearest bin."""
    times, values = motion.temporal_bins_s[segment], motion.displacement[segment]
    at_bins = np.stack([np.interp(times_s, times, column) for column in values.T], axis=1)
    if at_bins.shape[1] == 1:
        return np.repeat(at_bins, len(depths_um), axis=1)
    bins = motion.spatial_bins_um
    upper = np.clip(np.searchsorted(bins, depths_um), 1, len(bins) - 1)
    part = np.clip((depths_um - bins[upper - 1]) / (bins[upper] - bins[upper - 1]), 0, 1)
    return at_bins[:, upper - 1] * (1 - part) + at_bins[:, upper] * part


def with_offset(motion: Motion | None, offset_um: float, num_segments: int) -> Motion:
    """Return the motion with all displacements larger by an offset; without a motion the offset alone."""
    if motion is None:
        one = np.full((1, 1), offset_um)
        return Motion([one] * num_segments, [np.zeros(1)] * num_segments, np.zeros(1), "y")
    moved = [values + offset_um for values in motion.displacement]
    return Motion(moved, motion.temporal_bins_s, motion.spatial_bins_um, "y")


class MotionOfFrames:
    """The displacement at global frames, which count through all segments.

    Parameters
    ----------
    motion : Motion
    num_samples : sequence of int
        Length of each segment.
    sampling_frequency : float
    """

    def __init__(self, motion: Motion, num_samples: Sequence[int], sampling_frequency: float):
        self._motion, self._rate = motion, sampling_frequency
        self._starts = np.concatenate([[0], np.cumsum(num_samples)])

    def at(self, frames: np.ndarray, depth_um: float) -> np.ndarray:
        """Return the displacements (num_frames,) in um at one depth."""
        moved = np.zeros(len(frames))
        for segment in range(len(self._starts) - 1):
            inside = (frames >= self._starts[segment]) & (frames < self._starts[segment + 1])
            times_s = (frames[inside] - self._starts[segment]) / self._rate
            moved[inside] = displacement_at(self._motion, times_s, np.array([depth_um]), segment)[:, 0]
        return moved
