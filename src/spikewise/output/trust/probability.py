"""The probability that a spike is right, from the response of the network.

Added spikes that were found are right, and added spikes of other units that a unit took are false. Each
counts as the number of spikes that it stands for. Isotonic regression on all of a group gives the probability
for each response, counted from the threshold of its unit on, such that it never falls with the response. A
unit may be better or worse than the others: its odds are multiplied with a factor, so that the mean
probability of its spikes is its estimated precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from sklearn.isotonic import IsotonicRegression

from spikewise.output.trust.estimates import UnitEstimate, weights_of
from spikewise.output.trust.trial import Trial

# Chosen by hand.
_PRIOR_SPIKES = 5.0
"""Right and false spikes at every response, which are added so that no probability is 0 or 1."""
_NUM_KNOTS = 21
"""Responses at which these are added."""
_MOST_LOG_ODDS = 30.0
"""Largest factor of the odds of a unit, as a logarithm."""


@dataclass(frozen=True)
class Calibration:
    """Turns responses of the units of a group into probabilities.

    Attributes
    ----------
    heights, probabilities : ndarray
        Points of the curve: height of a response above the threshold, as a fraction of what is possible.
    thresholds : ndarray
        (num_units,)
    log_factors : ndarray
        (num_units,) logarithm of the factor of the odds of each unit; NaN if nothing is known of it.
    """

    heights: np.ndarray
    probabilities: np.ndarray
    thresholds: np.ndarray
    log_factors: np.ndarray

    def of(self, unit_index: np.ndarray, responses: np.ndarray) -> np.ndarray:
        """Return the probabilities (num_spikes,) that spikes are right; NaN for a unit without estimate."""
        height = height_of(responses, self.thresholds[unit_index])
        usual = np.interp(height, self.heights, self.probabilities)
        return _with_factor(usual, self.log_factors[unit_index]).astype(np.float32)


def height_of(responses: np.ndarray, threshold: float | np.ndarray) -> np.ndarray:
    """Return how high responses are above the threshold, as a fraction of 1 minus the threshold."""
    return (responses - threshold) / np.maximum(1 - threshold, 1e-6)


def calibrate(
    trial: Trial,
    counts: np.ndarray,
    thresholds: np.ndarray,
    estimates: Sequence[UnitEstimate | None],
) -> Calibration:
    """Fit the probability of a spike to the spikes that were added.

    Parameters
    ----------
    trial : Trial
    counts : ndarray
        (num_units,) number of spikes of each unit.
    thresholds : ndarray
        (num_units,) lowest response of a spike.
    estimates : sequence of UnitEstimate or None
        Their precision is the mean probability of the spikes of each unit.
    """
    found = trial.is_found
    right_unit = trial.injected.unit_index[found]
    right = height_of(trial.response[found], thresholds[right_unit])
    false = height_of(trial.take_response, thresholds[trial.take_unit])
    num_found = np.maximum(np.bincount(right_unit, minlength=len(counts)), 1)
    lowest = min(0.0, *right, *false)  # below the threshold where the traces decided
    knots = np.linspace(lowest, 1, _NUM_KNOTS)
    prior = np.full(_NUM_KNOTS, _PRIOR_SPIKES / _NUM_KNOTS)
    heights = np.concatenate([right, false, knots, knots])
    is_right = np.concatenate([np.ones(len(right)), np.zeros(len(false)), np.ones(_NUM_KNOTS), 0 * knots])
    stand_for = [(counts / num_found)[right_unit], weights_of(trial, counts)[trial.take_cause], prior, prior]
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    fitted.fit(heights, is_right, sample_weight=np.concatenate(stand_for))
    points = np.asarray(fitted.X_thresholds_), np.asarray(fitted.y_thresholds_)
    factors = np.full(len(counts), np.nan)
    for unit, estimate in enumerate(estimates):
        own = trial.real_response[trial.real_unit == unit]
        if estimate is not None:
            usual = np.interp(height_of(own, thresholds[unit]), *points) if len(own) else points[1][-1:]
            factors[unit] = _factor_for(usual, estimate.precision.value)
    return Calibration(*points, thresholds, factors)


def _with_factor(usual: np.ndarray, log_factor: np.ndarray | float) -> np.ndarray:
    """Return probabilities with all odds multiplied by a factor."""
    return np.asarray(expit(logit(np.clip(usual, 1e-6, 1 - 1e-6)) + log_factor))


def _factor_for(usual: np.ndarray, mean: float) -> float:
    """Return the logarithm of the factor of all odds with which the mean probability is as given."""
    wanted = float(np.clip(mean, 1e-4, 1 - 1e-4))

    def excess(log_factor: float) -> float:
        return float(_with_factor(usual, log_factor).mean()) - wanted

    return float(brentq(excess, -_MOST_LOG_ODDS, _MOST_LOG_ODDS))
