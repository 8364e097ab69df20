"""Fractions with their uncertainty, and how they combine to an accuracy.

A fraction is described by a beta distribution: a number of hits and misses, as if so many spikes had been
counted. The accuracy follows from precision and recall: ``1 / accuracy = 1 / precision + 1 / recall - 1``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import beta

LEVEL = 0.9
"""Fraction of the units whose truth lies within the interval."""
_ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_PRIOR = 0.5
"""Hits and misses that every fraction starts with (Jeffreys)."""
SYSTEMATIC = 0.005
"""Error that no number of added spikes removes, because they are not quite like real ones: every interval
reaches so far to either side. Chosen by hand on the scenes that docs/trust.md names."""
_NUM_QUANTILES = 64
"""Quantiles of precision and recall that are combined. Chosen by hand."""


@dataclass(frozen=True)
class Fraction:
    """A fraction of spikes, with the numbers it was counted from.

    Attributes
    ----------
    value : float
        Best estimate.
    hits, misses : float
        Parameters of the beta distribution, without the prior.
    """

    value: float
    hits: float
    misses: float

    @classmethod
    def of(cls, value: float, weight: float) -> Fraction:
        """Return a fraction that counts as much as `weight` spikes."""
        value = float(np.clip(value, 0, 1))
        return cls(value, weight * value, weight * (1 - value))

    def quantiles(self, levels: np.ndarray) -> np.ndarray:
        """Return quantiles of the fraction."""
        return np.asarray(beta.ppf(levels, self.hits + _PRIOR, self.misses + _PRIOR))

    def interval(self) -> tuple[float, float]:
        """Return the interval of :data:`LEVEL`; it always holds the estimate."""
        return _around(self.value, self.quantiles(np.array(_ENDS)))


def accuracy_of(precision: float, recall: float) -> float:
    """Return the accuracy, ``tp / (tp + fp + fn)``; 0 if precision or recall is 0."""
    if precision <= 0 or recall <= 0:
        return 0.0
    return 1 / (1 / precision + 1 / recall - 1)


def combine(precision: Fraction, recall: Fraction) -> tuple[float, float, float]:
    """Return the accuracy and its interval; precision and recall vary independently."""
    levels = (np.arange(_NUM_QUANTILES) + 0.5) / _NUM_QUANTILES
    p, r = (np.maximum(one.quantiles(levels), 1e-6) for one in (precision, recall))
    values = np.sort((1 / (1 / p[:, None] + 1 / r[None, :] - 1)).ravel())
    value = accuracy_of(precision.value, recall.value)
    return value, *_around(value, np.quantile(values, _ENDS))


def _around(value: float, ends: np.ndarray) -> tuple[float, float]:
    """Return the interval between two quantiles, with the systematic error; it holds the value."""
    low, high = min(float(ends[0]), value), max(float(ends[1]), value)
    return max(low - SYSTEMATIC, 0.0), min(high + SYSTEMATIC, 1.0)
