"""The motion of a result: a folder for each group, in SpikeInterface's format, with its uncertainty."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from spikeinterface.core.motion import Motion

from spikewise.core.errors import SettingError
from spikewise.core.files import sync_tree, writing
from spikewise.core.untrusted import load_npy, safe_name
from spikewise.data.spatial.motion import load_motion
from spikewise.output.store import MOTION_FOLDER

logger = logging.getLogger(__name__)


def motion_folder(result: Path, group: str) -> Path:
    """Return the folder of a group's motion; the name of a group may come from an untrusted file."""
    return result / MOTION_FOLDER / safe_name(group)


def save_motion(motion: Motion, uncertainty_um: Sequence[np.ndarray], result: Path, group: str) -> None:
    """Write the motion of a group, whole or not at all.

    Parameters
    ----------
    motion : Motion
    uncertainty_um : sequence of ndarray
        For each segment the uncertainty of its displacements; empty if it is not known.
    result : Path
        The folder of the result.
    group : str
    """
    folder = motion_folder(result, group)
    partial = folder.with_name(f"{folder.name}.partial")
    with writing(result):
        for left in (partial, folder):
            shutil.rmtree(left, ignore_errors=True)
        motion.save(partial)
        for segment, values in enumerate(uncertainty_um):
            np.save(partial / _uncertainty_file(segment), values)
        sync_tree(partial)
        partial.rename(folder)


def load_motions(result: Path, groups: Sequence[str], num_segments: int) -> dict[str, Motion]:
    """Return the motion of each group that has one."""
    motions = {}
    for group in groups:
        folder = motion_folder(result, group)
        if folder.is_dir():
            try:
                motions[group] = load_motion(folder, num_segments)
            except SettingError as error:
                logger.warning("the motion of group %s is left out: %s", group, error)
    return motions


def load_uncertainty_um(result: Path, motions: Mapping[str, Motion]) -> dict[str, list[np.ndarray]]:
    """Return the uncertainty of each motion whose folder holds one.

    Returns
    -------
    dict of str to list of ndarray
        For each segment an array of the shape of the displacement, in um.
    """
    found = {}
    for group, motion in motions.items():
        folder = motion_folder(result, group)
        files = [folder / _uncertainty_file(segment) for segment in range(motion.num_segments)]
        if not all(file.is_file() for file in files):
            continue
        try:
            values = [load_npy(file) for file in files]
        except (OSError, ValueError) as error:
            logger.warning("the uncertainty of the motion of group %s is left out: %s", group, error)
            continue
        if all(map(_fits, values, motion.displacement)):
            found[group] = values
        else:
            logger.warning("the uncertainty of the motion of group %s is left out: it does not fit", group)
    return found


def _uncertainty_file(segment: int) -> str:
    return f"uncertainty_um_seg{segment}.npy"


def _fits(uncertainty: np.ndarray, displacement: np.ndarray) -> bool:
    """Return whether these are as many numbers as displacements, none of them negative."""
    is_number = np.issubdtype(uncertainty.dtype, np.floating) and uncertainty.shape == displacement.shape
    return is_number and bool(np.isfinite(uncertainty).all() and (uncertainty >= 0).all())
