"""The displacement of drifting units over time.

It is that of the units relative to the probe, in um along its depth, DRIFT_HZ values per second. Units rest
at 0. Three modes are those of Han & Wang (arXiv 2409.13067), who simulate with MEArec. Units move to larger
depths and back, never below 0:

- slow: all units move up and down at a constant speed;
- fast: all units jump at regular times, by a third of the range or more;
- non-rigid: a sine, smaller at the upper end of the probe.

Two are those of SpikeInterface's generator, and of the benchmark of Garcia et al. 2024 (doi:
10.1523/ENEURO.0229-23.2023). Units rest in the middle of the range and move to both sides of it:

- zigzag: all units move at a constant speed up to one end of the range, down to the other, and so on;
- jump: units jump between both ends of the range at random times, less at the upper end of the probe.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from spikewise.core.config import SimulationConfig
from spikewise.core.errors import SettingError
from spikewise.core.seeds import stage_generator

DRIFT_HZ = 10.0
"""Displacements per second; chosen by hand."""
STEP_UM = 1.0
"""Largest distance between displacements with templates; chosen by hand."""
RANGE_UM = {"slow": 30.0, "fast": 15.0, "non-rigid": 10.0, "zigzag": 60.0, "jump": 40.0}
"""Default range of each mode: of the last two that of the scenes, of the others chosen by hand."""
SPEED_UM_PER_MIN = {"slow": 10.0, "non-rigid": 80.0, "zigzag": 37.5}
"""Default speed of each mode: of a zigzag that of the scene, of the others chosen by hand."""
PERIOD_S = {"fast": 60.0, "jump": 30.0}
"""Default time between two jumps, of the mode jump in the mean: that of the scene, or chosen by hand."""
JUMP_SPREAD = 1 / 3
"""Times between the jumps of the mode jump differ from their mean by up to this fraction, as in the scene."""
MIN_JUMPS = 5
"""Fewest jumps in a recording: in a short one the period is shorter; chosen by hand."""
_BOTH_WAYS = ("zigzag", "jump")


def drift_range(config: SimulationConfig) -> float:
    """Return the distance between the ends of the motion, in um."""
    return RANGE_UM[config.drift] if config.drift_um is None else config.drift_um


def drift_steps(config: SimulationConfig) -> np.ndarray:
    """Return the displacements for which templates are made, in um, from the smallest to the largest."""
    whole = drift_range(config)
    steps = np.linspace(0.0, whole, int(np.ceil(whole / STEP_UM)) + 1)
    return steps - whole / 2 if config.drift in _BOTH_WAYS else steps


def draw_displacement(
    config: SimulationConfig, duration_s: float
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Draw the displacement of the units over time.

    Parameters
    ----------
    config : SimulationConfig
        Its drift is not "none"; jumps have their own random stage.
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
    if config.drift in PERIOD_S:
        longest = (duration_s - config.drift_start_s) / (MIN_JUMPS + 1)
        period = config.drift_period_s or min(PERIOD_S[config.drift], longest)
        draw = _levels if config.drift == "fast" else _sides
        return times, draw(since_start, largest, period, config.seed), {**facts, "period_s": period}
    speed = config.drift_um_per_min or SPEED_UM_PER_MIN[config.drift]
    phase = 2 * np.pi * since_start * speed / 60 / (2 * largest)
    return times, _wave(config.drift, phase, largest), {**facts, "um_per_min": speed}


def _wave(drift: str, phase: np.ndarray, largest: float) -> np.ndarray:
    from scipy.signal import sawtooth  # only here: it takes a second

    if drift == "zigzag":  # from the middle to the upper end
        return largest / 2 * sawtooth(phase + np.pi / 2, width=0.5)
    wave = sawtooth(phase, width=0.5) if drift == "slow" else -np.cos(phase)
    return largest * (1 + wave) / 2


def _levels(since_start: np.ndarray, largest: float, period: float, seed: int) -> np.ndarray:
    """Draw displacements up to `largest`, starting at 0; each differs by at least a third of it."""
    rng = stage_generator(seed, "drift")
    # A multiple of the period may be rounded to a slightly smaller number.
    passed = ((since_start + 1e-9) // period).astype(int)
    least = largest / 3
    levels = np.zeros(passed[-1] + 1)
    for k in range(1, len(levels)):
        below = max(levels[k - 1] - least, 0.0)
        above = max(largest - levels[k - 1] - least, 0.0)
        drawn = rng.uniform(0.0, below + above)
        levels[k] = drawn if drawn < below else levels[k - 1] + least + drawn - below
    return levels[passed]


def _sides(since_start: np.ndarray, largest: float, period: float, seed: int) -> np.ndarray:
    """Draw the times of jumps: 0 before the first, then the upper and the lower end in turn."""
    rng = stage_generator(seed, "drift")
    most = int(since_start[-1] / (period * (1 - JUMP_SPREAD))) + 1
    jumps = np.cumsum(rng.uniform(period * (1 - JUMP_SPREAD), period * (1 + JUMP_SPREAD), most))
    passed = np.searchsorted(jumps, since_start, side="right")
    return np.where(passed == 0, 0.0, np.where(passed % 2 == 1, largest / 2, -largest / 2))
