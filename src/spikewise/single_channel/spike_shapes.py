"""The spike shapes of simulated units, and their similarity.

Shapes come from a file of measured mean waveforms, or from the built-in data base. The more difficult a
simulation is, the more similar are the shapes that are drawn for its units.

Conventions: shapes are ``(num_shapes, num_samples)``, one per row.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from spikewise.core.errors import SettingError, WaveformsError
from spikewise.core.seeds import stage_generator
from spikewise.single_channel.files import load_arrays, reading

SIMILARITY_BANDS = {
    "easy1": (-1.0, 0.35),
    "easy2": (0.45, 0.63),
    "difficult2": (0.50, 0.66),
    "difficult1": (0.72, 0.84),
}
"""Lowest and highest similarity (:func:`shape_similarity`) of any pair of units, for each difficulty.

The bands were chosen so that clustering reaches the accuracies of the public sets. With three principal
components and fuzzy c-means the public sets give, at the noise levels 0.05, 0.1 and 0.2, in percent: Easy1
99, 100, 99; Easy2 98, 97, 85; Difficult2 99, 99, 85; and Difficult1 96, 90, 63 (Li et al. 2020, Brain Sci.
10:835). With these bands, 625 shapes measured in macaque cortex (WaveMAP) give 99, 99, 97; 99, 98, 84; 99,
98, 86; and 98, 94, 62 (means over 8 seeds). The similarities of the public units themselves are larger
(C_Easy1 0.10 to 0.34, C_Difficult2 0.80 to 0.97), since their shapes have more energy relative to their peak.
"""
NUM_BUILT_IN_SHAPES = 300
BUILT_IN_HZ = 100_000.0
SHAPES_KEYS = ("waves", "mean", "waveforms")
"""Names of the array that holds the shapes in a file."""
FREQUENCY_KEYS = ("fs", "sampling_frequency")
"""Names of the number that is their sampling frequency."""

_BUILT_IN_SEED = 2004
_LEAST_HZ = 100.0
"""Lowest sampling frequency that a file may hold; chosen by hand."""
_ATTEMPTS = 5_000
"""Groups of shapes that are drawn before none is said to exist; chosen by hand."""
_FEWEST_SAMPLES = 4
"""Shortest shape in samples: a cubic spline needs four points."""


def load_shapes(path: Path | str) -> tuple[np.ndarray, float | None]:
    """Read the mean waveforms that shapes are drawn from.

    Parameters
    ----------
    path : path
        An .npz with an array `waves`, `mean` or `waveforms` and a number `fs` or `sampling_frequency`, or an
        .npy. Pickled arrays are refused.

    Returns
    -------
    shapes : ndarray
        (num_shapes, num_samples) float64.
    sampling_frequency : float or None
        In Hz; None if the file does not hold it.

    Raises
    ------
    WaveformsError
        If the file cannot be read, or does not hold two or more shapes of finite numbers, one per row.
    """
    path = Path(path)
    allowed = f"an .npy, or an .npz with {' or '.join(SHAPES_KEYS)}, and {' or '.join(FREQUENCY_KEYS)}"
    if path.suffix.lower() not in (".npy", ".npz"):
        raise WaveformsError(f"the file of shapes is {path}", allowed, "convert the file")
    with reading(path):
        arrays = load_arrays(path)
    key = next((name for name in ("array", *SHAPES_KEYS) if name in arrays), None)
    if key is None:
        raise WaveformsError(
            f"the file {path} holds {', '.join(arrays) or 'nothing'}", allowed, "rename its array"
        )
    _check_shapes(arrays[key], f"{key} of {path}")
    return arrays[key].astype(float), _read_frequency(arrays, path)


def _check_shapes(shapes: np.ndarray, name: str) -> None:
    if shapes.ndim != 2 or shapes.dtype.kind not in "iuf" or min(shapes.shape) < 2:
        given = f"{name} is an array of {shapes.dtype} {shapes.shape}"
    elif shapes.shape[1] < _FEWEST_SAMPLES:
        given = f"{name} has {shapes.shape[1]} samples for each shape"
    elif not np.isfinite(shapes).all():
        given = f"row {np.flatnonzero(~np.isfinite(shapes).all(axis=1))[0]} of {name} is not finite"
    elif (np.ptp(shapes, axis=1) == 0).any():
        given = f"row {np.flatnonzero(np.ptp(shapes, axis=1) == 0)[0]} of {name} is constant"
    else:
        return
    allowed = f"two rows or more, each a waveform of {_FEWEST_SAMPLES} samples or more"
    raise WaveformsError(given, allowed, "correct the array, or leave out shapes for the built-in ones")


def _read_frequency(arrays: dict[str, np.ndarray], path: Path | str) -> float | None:
    key = next((name for name in FREQUENCY_KEYS if name in arrays), None)
    if key is None:
        return None
    value = arrays[key]
    if value.size != 1 or value.dtype.kind not in "iuf" or not _LEAST_HZ <= value.item() < np.inf:
        raise WaveformsError(
            f"{key} of {path} is {value}", f"one number of at least {_LEAST_HZ:g} Hz", "correct it"
        )
    return float(value.item())


def built_in_shapes() -> np.ndarray:
    """Return the built-in data base of shapes: (NUM_BUILT_IN_SHAPES, 500) at 100 kHz.

    Each shape is a peak with an after-potential and, in half of the shapes, a potential before the peak, as
    extracellular spikes have. All are Gaussians with two different flanks; their widths range from those of
    narrow interneurons to those of broad pyramidal cells. The data base is always the same.
    """
    rng = np.random.default_rng(_BUILT_IN_SEED)

    def draw(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (NUM_BUILT_IN_SHAPES, 1))

    time_ms = (np.arange(500) - 150) * 1000 / BUILT_IN_HZ
    rise = np.exp(draw(np.log(0.05), np.log(0.28)))
    fall = rise * draw(0.7, 1.6)
    after = fall * draw(2.0, 3.5) + draw(0.0, 0.15)
    shapes = _bump(time_ms, 0.0, rise, fall)
    shapes -= draw(0.05, 0.9) * _bump(time_ms, after, after / 3, draw(0.1, 0.6))
    before = draw(-0.5, 0.5).clip(0)
    return shapes - before * _bump(time_ms, -2.5 * rise, rise, rise * draw(0.6, 1.0))


def _bump(time: np.ndarray, centre: Any, rise: np.ndarray, fall: np.ndarray) -> np.ndarray:
    """Return a Gaussian of height 1 with one standard deviation for each flank."""
    distance = time - centre
    return np.exp(-0.5 * (distance / np.where(distance < 0, rise, fall)) ** 2)


def shape_similarity(shapes: np.ndarray) -> np.ndarray:
    """Return the similarity of each pair of shapes, without shifting them: 1 for identical, 0 for orthogonal.

    The similarity of a and b is 2 a.b / (a.a + b.b) = 1 - |a - b|^2 / (|a|^2 + |b|^2): unlike a correlation,
    it also falls if the sizes differ, which a sorter can use. Shapes should have their peaks at the same
    sample.

    Parameters
    ----------
    shapes : ndarray
        (num_units, num_samples), none of them all 0.

    Returns
    -------
    ndarray
        (num_units, num_units) in -1 to 1.
    """
    products = shapes @ shapes.T
    energy = np.diag(products)
    return 2 * products / (energy[:, None] + energy)


def choose_shapes(shapes: np.ndarray, num_units: int, difficulty: str | None, seed: int) -> np.ndarray:
    """Draw the shapes of the units; with a difficulty, the similarity of each pair lies in its band.

    The bands are those of :data:`SIMILARITY_BANDS`, on the measure of :func:`shape_similarity`.

    Parameters
    ----------
    shapes : ndarray
        (num_shapes, num_samples)
    num_units : int
    difficulty : str or None
        A name in SIMILARITY_BANDS; None for any shapes.
    seed : int

    Returns
    -------
    ndarray
        (num_units,) int64: different rows of `shapes`.

    Raises
    ------
    SettingError
        If there are fewer shapes than units, or no such group was found.
    """
    if len(shapes) < num_units:
        raise SettingError(
            f"num_units is {num_units}", f"at most {len(shapes)}, the number of shapes", "lower it"
        )
    rng = stage_generator(seed, "wave_clus shapes")
    if difficulty is None:
        return rng.choice(len(shapes), num_units, replace=False)
    low, high = SIMILARITY_BANDS[difficulty]
    similarity = shape_similarity(shapes)
    fits = (similarity >= low) & (similarity <= high)
    np.fill_diagonal(fits, False)
    for _ in range(_ATTEMPTS):
        chosen: list[int] = []
        candidates = np.arange(len(shapes))
        while len(candidates) and len(chosen) < num_units:
            chosen.append(int(rng.choice(candidates)))
            candidates = candidates[fits[chosen[-1], candidates]]
        if len(chosen) == num_units:
            return np.array(chosen)
    raise SettingError(
        f"no {num_units} of the {len(shapes)} shapes are {difficulty}",
        f"shapes of which each pair has a similarity from {low:g} to {high:g}",
        "lower num_units, choose another difficulty, or give other shapes",
    )
