"""Drift: units that move along a probe during a recording.

Conventions
-----------
A displacement is that of the units relative to the probe, in um along its depth (the second column of the
channels' positions); :mod:`displacement` draws it. It moves whole spikes, in steps of at most STEP_UM. Where
a drift is not rigid, the units at the lower end of the probe move by all of it, those at the upper end by
MIN_FACTOR of it. Moved templates have the shape (num_steps, num_units, num_samples, num_channels), in uV.

The moved waveforms of a unit come from one of two sources: simulated waveforms at several positions (a MEArec
file of drifting templates), interpolated linearly between these; or the waveforms at rest, interpolated
between the channels. Waveforms from beyond the outermost channels are unknown: they are the waveform of the
nearest channel, which decays by 1/e in FADE_UM. Interpolation between channels has an error: on the staggered
columns of a Neuropixels shank, generated units that moved by 10 um differ by 15 % (median) from the same
units generated there, and their amplitudes by 5 %. All moved templates are kept in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import CloughTocher2DInterpolator, CubicSpline
from scipy.spatial import KDTree
from spikeinterface.core import BaseRecording, NumpySorting
from spikeinterface.generation.drift_tools import DriftingTemplates, InjectDriftingTemplatesRecording

from spikewise.core.config import SimulationConfig
from spikewise.core.errors import SettingError
from spikewise.data.simulation.displacement import DRIFT_HZ, draw_displacement, drift_steps
from spikewise.data.simulation.synthesis import Units, inject_units

FADE_UM = 30.0
"""Distance beyond the outermost channels in which a waveform decays by 1/e; chosen by hand."""
SAME_POSITION_UM = 1e-3
"""Positions that are closer are one; chosen by hand."""
MIN_FACTOR = {"non-rigid": 0.5, "jump": 0.3}
"""Part of a drift that is not rigid by which the units at the upper end of the probe move: 0.5 was chosen by
hand, 0.3 is that of the scene `jump40`."""
MAX_SIDEWAYS_FRACTION = 0.2
"""Largest sideways movement of simulated cells, as a fraction of the shortest path; chosen by hand."""


@dataclass(frozen=True)
class Drift:
    """How the units of a recording moved.

    Attributes
    ----------
    times_s : numpy.ndarray, shape (num_times,)
    displacement_um : numpy.ndarray, shape (num_times,)
        From each time until the next, of a unit with the factor 1.
    unit_ids : tuple of str
    unit_factors : numpy.ndarray, shape (num_units,)
        Part of the displacement by which each unit moves.
    steps_um : numpy.ndarray, shape (num_steps,)
        The displacements with templates; a spike has the nearest one.
    peak_amplitudes_uV : numpy.ndarray, shape (num_steps, num_units)
        Depth of each unit's largest trough at each step; it falls if a unit leaves the probe.
    facts : dict
        Mode, range, and pace, in JSON types.
    """

    times_s: np.ndarray
    displacement_um: np.ndarray
    unit_ids: tuple[str, ...]
    unit_factors: np.ndarray
    steps_um: np.ndarray
    peak_amplitudes_uV: np.ndarray
    facts: dict[str, Any]

    @property
    def unit_displacements_um(self) -> np.ndarray:
        """Displacement of each unit, shape (num_times, num_units)."""
        return self.displacement_um[:, None] * self.unit_factors

    def save(self, path: Path) -> None:
        """Write the arrays as an ``.npz`` file, under the names of the attributes."""
        np.savez_compressed(
            path,
            times_s=self.times_s,
            displacement_um=self.displacement_um,
            unit_ids=np.asarray(self.unit_ids, dtype=np.str_),
            unit_factors=self.unit_factors,
            steps_um=self.steps_um,
            peak_amplitudes_uV=self.peak_amplitudes_uV,
        )


def move_templates(templates: np.ndarray, positions: np.ndarray, steps_um: np.ndarray) -> np.ndarray:
    """Move templates along the depth by interpolating them between channels.

    The method is that of SpikeInterface's ``move_dense_templates`` (cubic). Here it triangulates the channels
    once instead of for each sample, supports probes with one column, and decays beyond the ends. If a moved
    channel coincides with a channel, its waveform is copied and not interpolated.

    Parameters
    ----------
    templates : numpy.ndarray, shape (num_units, num_samples, num_channels)
        Waveforms at rest.
    positions : numpy.ndarray, shape (num_channels, 2)
        Of the channels, in um.
    steps_um : numpy.ndarray, shape (num_steps,)
        Displacements of the units.

    Returns
    -------
    numpy.ndarray of float32, shape (num_steps, num_units, num_samples, num_channels)

    Raises
    ------
    SettingError
        If the probe is shorter than twice the largest displacement, or its channels lie on a slanted line.
    """
    weights = move_weights(positions, steps_um)
    values = templates.reshape(-1, templates.shape[2]).T.astype(np.float64)
    moved = np.zeros((len(steps_um), *templates.shape), dtype=np.float32)
    for of_step, out in zip(weights, moved, strict=True):
        out[:] = (of_step @ values).T.reshape(templates.shape)
    return moved


def move_weights(positions: np.ndarray, steps_um: np.ndarray) -> np.ndarray:
    """Return the weights of the channels in each channel of a moved template; see :func:`move_templates`.

    Returns
    -------
    numpy.ndarray of float64, shape (num_steps, num_channels, num_channels)
    """
    _check_probe(positions, float(np.ptp(steps_um)))
    weights_at = _interpolator(positions)
    tree = KDTree(positions)
    alone = np.eye(len(positions))
    weights = np.empty((len(steps_um), *alone.shape))
    for step_um, out in zip(steps_um, weights, strict=True):
        shifted = positions - [0.0, step_um]
        distance, nearest = tree.query(shifted)
        found = weights_at(shifted)
        faded = alone[nearest] * np.exp(-distance / FADE_UM)[:, None]
        out[:] = np.where(np.isnan(found), faded, found)
        same = distance < SAME_POSITION_UM
        out[same] = alone[nearest[same]]
    return weights


def follow_paths(waveforms: np.ndarray, locations: np.ndarray, steps_um: np.ndarray) -> np.ndarray:
    """Return templates along the paths in a file of drifting templates.

    Parameters
    ----------
    waveforms : numpy.ndarray, shape (num_units, num_positions, num_samples, num_channels)
    locations : numpy.ndarray, shape (num_units, num_positions, 3)
        Where each was simulated, in um, with the depth in the second column; units start at the first.
    steps_um : numpy.ndarray, shape (num_steps,)
        Displacements from the first position.

    Returns
    -------
    numpy.ndarray of float32, shape (num_steps, num_units, num_samples, num_channels)

    Raises
    ------
    SettingError
        If a path is shorter than the largest displacement, or does not go along the probe.
    """
    _check_paths(locations, float(steps_um.max()))
    moved = np.zeros((len(steps_um), len(waveforms), *waveforms.shape[2:]), dtype=np.float32)
    for k, (path, location) in enumerate(zip(waveforms, locations, strict=True)):
        position = np.interp(steps_um, location[:, 1] - location[0, 1], np.arange(len(path)))
        before = np.minimum(position.astype(int), len(path) - 2)
        weight = (position - before)[:, None, None]
        moved[:, k] = (1 - weight) * path[before] + weight * path[before + 1]
    return moved


def inject_drifting_units(
    background: BaseRecording,
    sorting: NumpySorting,
    units: Units,
    config: SimulationConfig,
    seeds: dict[str, int],
    moved: np.ndarray | None = None,
) -> tuple[BaseRecording, Drift]:
    """Add the waveforms of moving units to the background, with the amplitude factors of units at rest.

    Parameters
    ----------
    background : BaseRecording
        One segment, one probe.
    sorting : NumpySorting
        The true spikes; the properties of the units at rest are added.
    units : Units
        The units at rest.
    config : SimulationConfig
    seeds : dict of str to int
    moved : numpy.ndarray, shape (num_steps, num_units, num_samples, num_channels), optional
        Their templates at each of :func:`drift_steps`; default: interpolate between the channels.

    Returns
    -------
    recording : BaseRecording
    drift : Drift

    Raises
    ------
    SettingError
        If the drift starts after the end, the recording has several probes, or its probe is too short.
    """
    if len(background.get_probes()) != 1:
        raise SettingError(
            f"drift is requested on {len(background.get_probes())} probes",
            "units drift along one probe",
            "simulate one probe at a time, or leave out drift",
        )
    times, displacement, facts = draw_displacement(config, background.get_duration(segment_index=0))
    steps = drift_steps(config)
    positions = background.get_channel_locations()[:, :2]
    factors = _unit_factors(config, units.locations[:, 1], positions[:, 1])
    if moved is None:
        moved = move_templates(units.templates, positions, steps)
    resting = inject_units(background, sorting, units, config, seeds)
    recording = InjectDriftingTemplatesRecording(
        sorting,
        DriftingTemplates.from_precomputed_templates(
            moved,
            np.column_stack([np.zeros_like(steps), steps]),
            background.sampling_frequency,
            units.num_before,
            background.get_probe(),
        ),
        [np.column_stack([np.zeros_like(displacement), displacement])[:, :, None]],
        DRIFT_HZ,
        factors[:, None],
        parent_recording=background,
        amplitude_factor=resting.segments[0].amplitude_vector,
    )
    peaks = -moved.min(axis=(2, 3))
    return recording, Drift(times, displacement, units.unit_ids, factors, steps, peaks, facts)


def _unit_factors(config: SimulationConfig, depths: np.ndarray, channel_depths: np.ndarray) -> np.ndarray:
    if config.drift not in MIN_FACTOR:
        return np.ones(len(depths))
    ends = channel_depths.min(), channel_depths.max()
    return np.interp(depths, ends, (1.0, MIN_FACTOR[config.drift]))


def _interpolator(positions: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from positions to channel weights (num_positions, num_channels), NaN outside.

    Interpolation is linear in the values at the channels. So the weights of a channel are the interpolation
    of values that are 1 at this channel and 0 at the others.
    """
    alone = np.eye(len(positions))
    middle = positions.mean(axis=0)
    if _is_column(positions):
        order = np.argsort(positions[:, 1])
        along = CubicSpline(positions[order, 1], alone[order], extrapolate=False)
        return lambda at: along(at[:, 1])
    between = CloughTocher2DInterpolator(positions, alone)
    # Rounding must not decide whether positions on the outline are inside: move them inside.
    return lambda at: between(at + [1e-6, 0.0] * np.sign(middle - at))


def _is_column(positions: np.ndarray) -> bool:
    return bool(np.ptp(positions[:, 0]) < SAME_POSITION_UM)


def _check_probe(positions: np.ndarray, largest_um: float) -> None:
    length = float(np.ptp(positions[:, 1]))
    flat = np.linalg.matrix_rank(positions - positions.mean(axis=0), tol=SAME_POSITION_UM) < 2
    problem = None
    if length < 2 * largest_um:
        problem = (
            f"units should drift by {largest_um:g} um along a probe of {length:g} um",
            "choose a smaller drift_um, or a longer probe",
        )
    elif flat and not _is_column(positions):
        problem = ("units should drift along a probe whose channels lie on a slanted line", "turn the probe")
    elif KDTree(positions).query(positions, k=2)[0][:, 1].min() < SAME_POSITION_UM:
        problem = ("units should drift along a probe with two channels at one position", "correct the probe")
    if problem:
        raise SettingError(
            problem[0],
            "the probe must be twice as long as the drift, its channels apart, in columns along the depth",
            problem[1],
        )


def _check_paths(locations: np.ndarray, largest_um: float) -> None:
    path = locations - locations[:, :1]
    along = path[:, :, 1]
    sideways = np.abs(path[:, :, [0, 2]]).max()
    shortest = float(along[:, -1].min())
    problem = None
    if np.any(np.diff(along, axis=1) <= 0) or sideways > MAX_SIDEWAYS_FRACTION * shortest:
        problem = (
            "the cells of the template file do not drift up along the probe",
            "simulate the templates with a drift along the depth, or use a file without drift",
        )
    elif shortest < largest_um - SAME_POSITION_UM:
        problem = (
            f"units should drift by {largest_um:g} um",
            "choose a smaller drift_um, or simulate templates that drift further",
        )
    if problem:
        raise SettingError(
            problem[0], f"the template file allows a drift of {max(shortest, 0.0):g} um", problem[1]
        )
