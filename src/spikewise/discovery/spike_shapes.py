"""Shapes of spikes that come with the package: the search for units starts from them.

They were learnt from simulations (models/weights/MODEL_CARD.md) by ``benchmarks/spike_shapes.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline

from spikewise.models.tensor_file import read_tensors

KIND, FORMAT_VERSION, SHIPPED = "shapes", 1, "spike_shapes.safetensors"
NUM_FRACTIONS = 4
"""Events are described at quarters of a sample."""


@dataclass(frozen=True)
class SpikeShapes:
    """Shapes at one sampling frequency; K shapes, R components, L samples.

    Attributes
    ----------
    bank : ndarray of float32, shape (K, L)
        Waveforms with an energy of 1.
    basis : ndarray of float32, shape (NUM_FRACTIONS, R, L + 1)
        Components of a waveform, shifted by each fraction of a sample.
    before : int
        Samples ahead of the trough.
    """

    bank: np.ndarray
    basis: np.ndarray
    before: int


def load_shapes(sampling_frequency: float) -> SpikeShapes:
    """Return the shapes of the package, interpolated to a sampling frequency in Hz."""
    with resources.as_file(resources.files("spikewise.models") / "weights" / SHIPPED) as file:
        description, tensors = read_tensors(Path(file), KIND, FORMAT_VERSION)
    rate, before = float(description["sampling_frequency"]), int(description["before"])
    bank, basis = tensors["bank"].numpy(), tensors["basis"].numpy()
    ratio = sampling_frequency / rate
    ahead = max(4, round(before * ratio))
    length = ahead + max(6, round((bank.shape[1] - before) * ratio))
    times = (np.arange(bank.shape[1]) - before) / rate

    def interpolate(rows: np.ndarray, shift: float, count: int) -> np.ndarray:
        wanted = (np.arange(count) - ahead - shift) / sampling_frequency
        values = CubicSpline(times, rows, axis=1)(wanted)
        return np.where((wanted >= times[0]) & (wanted <= times[-1]), values, 0.0)

    shapes = interpolate(bank, 0.0, length)
    shapes /= np.linalg.norm(shapes, axis=1, keepdims=True)
    mixing = np.linalg.inv(np.linalg.qr(interpolate(basis, 0.0, length).T)[1]).T  # components of unit energy
    fractions = [
        mixing @ interpolate(basis, part / NUM_FRACTIONS, length + 1) for part in range(NUM_FRACTIONS)
    ]
    return SpikeShapes(shapes.astype(np.float32), np.stack(fractions).astype(np.float32), ahead)
