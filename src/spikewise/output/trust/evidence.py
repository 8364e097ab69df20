"""Whether two sets of spikes are of one neuron: from their shapes, and from the refractory period.

Two parts of one neuron have the same shape, up to noise and to a factor: amplitudes vary, and shrink within
bursts. And the spikes of one part keep the refractory period of the other. What chance would give is counted
at lags of some milliseconds, so that units whose rates rise and fall together do not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikewise.core.constants import REFRACTORY_MS
from spikewise.output.trust.shapes import UnitShape

# All of these were chosen by hand.
CHANCE_LAGS_MS = (8.0, 14.0, 20.0, 26.0)
"""Lags, to either side, at which coincidences by chance are counted."""
_COINCIDENT_MS = 0.5
"""Spikes of two parts that are so near may be one spike found twice: they do not count as violations."""
_VIOLATIONS_OF_PARTS = 0.15
"""Pairs of spikes of two parts within the refractory period, as a fraction of those by chance."""
_CORE_MS = (0.5, 1.0)
"""Window before and after the spike in which shapes are compared."""
_OF_PEAK = 0.1
"""Channels on which a shape has at least this fraction of its largest deflection are compared."""
_MAX_LAG_MS, _LAG_STEP = 0.2, 2
"""Largest lag at which two shapes are compared, and its step in eighths of a sample."""
_SCALES = (0.6, 1.0 / 0.6)
"""Smallest and largest factor between the shapes of two parts of one neuron."""
_MEDIAN_NOISE = np.pi / 2
"""Variance of a median over that of a mean."""
_LOG_ODDS_OF_SAME_SHAPE = 3.0
"""Logarithm of the odds that two sets of spikes of the same shape are of one neuron, before their times are
compared: a sorter cannot tell two neurons of one shape apart."""
_PER_DISTANCE, _PER_ANGLE = 1.5, 20.0
"""How fast these fall with the distance of the shapes, and with 1 minus their cosine."""


@dataclass(frozen=True)
class Evidence:
    """What speaks for one neuron, or for two.

    Attributes
    ----------
    distance : float
        Between the shapes at the best lag and factor, in standard deviations of the noise.
    cosine : float
        Of the shapes.
    pairs : int
        Pairs of spikes within the refractory period.
    by_chance : float
        The same number, as two neurons would have it by chance.
    """

    distance: float
    cosine: float
    pairs: int
    by_chance: float

    @property
    def probability(self) -> float:
        """The probability that it is one neuron.

        Pairs within the refractory period are Poisson. Before they are counted, the odds are those of the
        shapes.
        """
        of_shapes = _LOG_ODDS_OF_SAME_SHAPE - _PER_DISTANCE * self.distance - _PER_ANGLE * (1 - self.cosine)
        of_times = self.pairs * np.log(_VIOLATIONS_OF_PARTS) + self.by_chance * (1 - _VIOLATIONS_OF_PARTS)
        return float(1 / (1 + np.exp(-np.clip(of_shapes + of_times, -50, 50))))


def weigh(
    a: UnitShape,
    b: UnitShape,
    own: Sequence[np.ndarray],
    other: Sequence[np.ndarray],
    sampling_frequency: float,
) -> Evidence:
    """Compare shapes and spike trains of two units, or of two parts of a unit.

    Parameters
    ----------
    a, b : UnitShape
    own, other : sequence of ndarray
        Frames of their spikes in each segment.
    sampling_frequency : float
    """
    distance, cosine = compare(a, b, sampling_frequency)
    return Evidence(distance, cosine, *_count_pairs(own, other, sampling_frequency))


def compare(a: UnitShape, b: UnitShape, sampling_frequency: float) -> tuple[float, float]:
    """Return the distance of two shapes, in standard deviations of the noise, and their cosine.

    Both are those at the best lag and factor, without what noise adds to them.
    """
    rate = sampling_frequency / 1000
    margin = round(_MAX_LAG_MS * rate) + 1
    channels = np.union1d(*(s.channels[s.peaks >= _OF_PEAK * s.peak] for s in (a, b)))
    first, second = (_core(shape, channels, rate, margin) for shape in (a, b))
    length = first.shape[1] - 2 * margin
    fixed = first[0, margin : margin + length].ravel()
    energy = float(fixed @ fixed)
    noise = [_MEDIAN_NOISE * fixed.size / shape.num_spikes for shape in (a, b)]
    nearest, cosine = np.inf, 0.0
    for start in range(2 * margin + 1):
        for phase in range(0, len(second), _LAG_STEP):
            moved = second[phase, start : start + length].ravel()
            product, own = float(fixed @ moved), float(moved @ moved)
            scale = float(np.clip(product / max(own, 1e-9), *_SCALES))
            nearest = min(nearest, energy - 2 * scale * product + scale**2 * own)
            cosine = max(cosine, product / max(np.sqrt(energy * own), 1e-9))
    energies = energy, float(np.square(second[0]).sum())
    signal = [max(1 - part / max(whole, 1e-9), 0.25) for part, whole in zip(noise, energies, strict=True)]
    distance = float(np.sqrt(max(nearest - sum(noise), 0.0)))
    return distance, min(1.0, cosine / float(np.sqrt(signal[0] * signal[1])))


def _core(shape: UnitShape, channels: np.ndarray, rate: float, margin: int) -> np.ndarray:
    """Return a shape around its spike on some channels (num_phases, num_samples, num_channels)."""
    low = shape.num_before - round(_CORE_MS[0] * rate) - margin
    high = shape.num_before + round(_CORE_MS[1] * rate) + margin
    core = np.zeros((len(shape.phases), high - low, len(channels)))
    inside = slice(max(low, 0), min(high, shape.phases.shape[1]))
    own, at = np.intersect1d(shape.channels, channels, return_indices=True)[1:]
    core[:, inside.start - low : inside.stop - low, at] = shape.phases[:, inside][:, :, own]
    return core


def _count_pairs(
    own: Sequence[np.ndarray], other: Sequence[np.ndarray], sampling_frequency: float
) -> tuple[int, float]:
    """Return the pairs of spikes within the refractory period, and their number by chance."""
    rate = sampling_frequency / 1000
    low, high = round(_COINCIDENT_MS * rate), round(REFRACTORY_MS * rate)
    far = (round(CHANCE_LAGS_MS[0] * rate), round(CHANCE_LAGS_MS[-1] * rate))
    width = (high - low + 1) / (far[1] - far[0] + 1)
    pairs, by_chance = 0, 0.0
    for a, b in zip(own, other, strict=True):
        pairs += _num_pairs(a, b, low, high)
        by_chance += _num_pairs(a, b, *far) * width
    return pairs, by_chance


def _num_pairs(own: np.ndarray, other: np.ndarray, low: int, high: int) -> int:
    """Return the number of pairs of frames from `low` to `high` samples apart, to either side."""
    after = np.searchsorted(other, own + high, side="right") - np.searchsorted(other, own + low, side="left")
    before = np.searchsorted(other, own - low, side="right") - np.searchsorted(other, own - high, side="left")
    return int(after.sum() + before.sum())
