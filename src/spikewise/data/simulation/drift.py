"""Drift: units that move along a probe during a recording.

Conventions
-----------
A displacement is that of the units relative to the probe, in um along its depth (the second column of the
channels' positions). Units rest at 0 and move to larger depths and back, never below 0. The displacement has
DRIFT_HZ values per second and moves whole spikes, in steps of at most STEP_UM. Moved templates have the shape
(num_steps, num_units, num_samples, num_channels), in uV.

The three modes are those of Han & Wang (arXiv 2409.13067), who simulate with MEArec:

- slow: all units move up and down at a constant speed;
- fast: all units jump at regular times, by a third of the range or more;
- non-rigid: a sine; the units at the lower end of the probe move by all of it, those at the upper end by
  MIN_FACTOR of it (MEArec's gradient).

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
from spikewise.core.seeds import stage_generator
from spikewise.data.simulation.synthesis import Units, inject_units

DRIFT_HZ = 10.0
"""Displacements per second; chosen by hand."""
STEP_UM = 1.0
"""Largest distance between displacements with templates; chosen by hand."""
FADE_UM = 30.0
"""Distance beyond the outermost channels in which a waveform decays by 1/e; chosen by hand."""
SAME_POSITION_UM = 1e-3
"""Positions that are closer are one; chosen by hand."""
MIN_FACTOR = 0.5
"""Part of a non-rigid drift by which the units at the upper end of the probe move; chosen by hand."""
MAX_SIDEWAYS_FRACTION = 0.2
"""Largest sideways movement of simulated cells, as a fraction of the shortest path; chosen by hand."""
RANGE_UM = {"slow": 30.0, "fast": 15.0, "non-rigid": 10.0}
"""Default range of each mode; chosen by hand."""
SPEED_UM_PER_MIN = {"slow": 10.0, "non-rigid": 80.0}
"""Default speed of each mode; chosen by hand."""
PERIOD_S = 60.0
"""Default time between two jumps; chosen by hand."""
MIN_JUMPS = 5
"""Fewest jumps in a recording: in a short one the period is shorter; chosen by hand."""


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


def drift_range(config: SimulationConfig) -> float:
    """Return the largest displacement that the settings allow, in um."""
    return RANGE_UM[config.drift] if config.drift_um is None else config.drift_um


def drift_steps(config: SimulationConfig) -> np.ndarray:
    """Return the displacements for which templates are made, in um, from 0 to the largest."""
    largest = drift_range(config)
    return np.linspace(0.0, largest, int(np.ceil(largest / STEP_UM)) + 1)


def draw_displacement(
    config: SimulationConfig, duration_s: float
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Draw the displacement of the units over time.

    Parameters
    ----------
    config : SimulationConfig
        Its drift is not "none"; the jumps of a fast drift have their own random stage.
    duration_s : float
        Length of the recording.

    Returns
    -------
    times_s, displacement_um : numpy.ndarray, shape (num_times,)
    facts : dict
        The mode, range, start and pace, in JSON types.

    Raises
    ------
    SettingError
        If the drift starts after the end.
    """
    if config.drift_start_s >= duration_s:
        raise SettingError(
            f"the drift starts at {config.drift_start_s:g} s",
            f"the recording ends at {duration_s:g} s",
            "start it earlier, or make the recording longer",
        )
    largest = drift_range(config)
    times = np.arange(int(np.ceil(duration_s * DRIFT_HZ)) + 1) / DRIFT_HZ
    since_start = np.maximum(times - config.drift_start_s, 0.0)
    facts: dict[str, Any] = {"mode": config.drift, "range_um": largest, "start_s": config.drift_start_s}
    if config.drift == "fast":
        longest = (duration_s - config.drift_start_s) / (MIN_JUMPS + 1)
        period = config.drift_period_s or min(PERIOD_S, longest)
        # A multiple of the period may be rounded to a slightly smaller number.
        levels_passed = ((since_start + 1e-9) // period).astype(int)
        levels = _levels(levels_passed[-1] + 1, largest, stage_generator(config.seed, "drift"))
        return times, levels[levels_passed], {**facts, "period_s": period}
    speed = config.drift_um_per_min or SPEED_UM_PER_MIN[config.drift]
    phase = 2 * np.pi * since_start * speed / 60 / (2 * largest)
    from scipy.signal import sawtooth  # only here: it takes a second

    wave = sawtooth(phase, width=0.5) if config.drift == "slow" else -np.cos(phase)
    return times, largest * (1 + wave) / 2, {**facts, "um_per_min": speed}


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
    _check_probe(positions, float(steps_um.max()))
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


def _levels(num_levels: int, largest: float, rng: np.random.Generator) -> np.ndarray:
    """Draw displacements up to `largest`, starting at 0; each differs by at least a third of it."""
    least = largest / 3
    levels = np.zeros(num_levels)
    for k in range(1, num_levels):
        below = max(levels[k - 1] - least, 0.0)
        above = max(largest - levels[k - 1] - least, 0.0)
        drawn = rng.uniform(0.0, below + above)
        levels[k] = drawn if drawn < below else levels[k - 1] + least + drawn - below
    return levels


def _unit_factors(config: SimulationConfig, depths: np.ndarray, channel_depths: np.ndarray) -> np.ndarray:
    if config.drift != "non-rigid":
        return np.ones(len(depths))
    ends = channel_depths.min(), channel_depths.max()
    return np.interp(depths, ends, (1.0, MIN_FACTOR))


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
