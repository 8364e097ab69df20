"""From counts of added spikes to precision, recall and accuracy of each unit.

*Recall* is the fraction of added spikes that was found. A unit that is a part of a neuron finds only its
part.

*Precision* loses what other units add to a unit: the fraction of the added spikes of each other unit that it
took for its own, times the number of spikes that the other unit fired. A copy of another unit has only false
spikes. Of a unit whose spikes have the shapes of two neurons, those of the rarer shape are false. Where
intervals shorter than the refractory period show more false spikes than that, they count.

The numbers of counted spikes give the intervals. Added spikes are not quite like real ones: so no estimate
counts as more than :data:`MOST_WEIGHT` spikes, and few false spikes are always possible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2

from spikewise.core.constants import REFRACTORY_MS
from spikewise.output.trust.intervals import Fraction, combine
from spikewise.output.trust.relations import Relations
from spikewise.output.trust.stretches import TrainsOfGroup
from spikewise.output.trust.trial import Trial

# All of these were chosen by hand on the scenes of docs/trust.md that are named there.
MOST_WEIGHT = 150.0
"""Largest number of spikes as which a fraction counts."""
LEAST_RECALL = 0.1
"""Smallest recall by which a number of spikes is divided."""
_CLOSED_MS = 0.5
"""Two spikes of a unit are never closer: the detector keeps the higher one."""
_CERTAINTY = 0.95
"""Refractory violations count if they show more false spikes with this certainty."""


@dataclass(frozen=True)
class UnitEstimate:
    """What is expected of one unit.

    Attributes
    ----------
    recall, precision : Fraction
    accuracy : (float, float, float)
        Estimate, and ends of its interval.
    num_injected : int
        Added spikes.
    violations : int
        Intervals shorter than the refractory period.
    false_sources : list of (int, float)
        Other units whose spikes it takes, and what fraction of its own spikes they are, the largest first.
    lost_to : list of (int, float)
        Other units that take its spikes, and what fraction of its spikes, the largest first.
    """

    recall: Fraction
    precision: Fraction
    accuracy: tuple[float, float, float]
    num_injected: int
    violations: int
    false_sources: list[tuple[int, float]]
    lost_to: list[tuple[int, float]]


def estimate_units(
    trial: Trial, trains: TrainsOfGroup, relations: Relations, num_samples: Sequence[int]
) -> list[UnitEstimate | None]:
    """Estimate precision, recall and accuracy of the units of a group.

    Parameters
    ----------
    trial : Trial
    trains : TrainsOfGroup
        All spikes of the recording.
    relations : Relations
    num_samples : sequence of int
        Length of each segment.

    Returns
    -------
    list of UnitEstimate or None
        None for a unit of which no spike was added.
    """
    counts = trains.counts()
    added = np.bincount(trial.injected.unit_index, minlength=len(counts))
    found = np.bincount(trial.injected.unit_index[trial.is_found], minlength=len(counts))
    recall = found / np.maximum(added, 1)
    duration = sum(num_samples)
    weight = weights_of(trial, counts)
    estimates: list[UnitEstimate | None] = []
    for unit in range(len(counts)):
        if not added[unit]:
            estimates.append(None)
            continue
        unrelated = _unrelated(unit, relations)
        false = trial.takes[:, unit] * weight * unrelated
        typical = weight[unrelated & (relations.likeness[unit] > 0)]
        precision = _from_takes(false, weight, float(typical.mean()) if len(typical) else 1.0, counts[unit])
        violations = count_violations(trains.frames[unit], trains.sampling_frequency)
        of_mixture = relations.false_of_mixture(unit)
        if of_mixture > 1 - precision.value:  # it explains the violations better than their number does
            precision = Fraction.of(1 - of_mixture, min(MOST_WEIGHT, counts[unit]))
        else:
            precision = _with_violations(
                precision, violations, counts[unit], duration, trains.sampling_frequency
            )
        if relations.copy_of[unit] >= 0:
            shared = relations.shared[unit, relations.copy_of[unit]]
            precision = Fraction.of(precision.value * (1 - shared), min(MOST_WEIGHT, counts[unit]))
        part = _part_of_neuron(unit, counts, relations)
        own_recall = Fraction.of(recall[unit] * part, min(added[unit], MOST_WEIGHT))
        lost = trial.takes[unit] / added[unit]
        lost[unit] = 0
        estimates.append(
            UnitEstimate(
                own_recall,
                precision,
                combine(precision, own_recall),
                int(added[unit]),
                violations,
                _largest(false / max(1, counts[unit])),
                _largest(lost),
            )
        )
    return estimates


def weights_of(trial: Trial, counts: np.ndarray) -> np.ndarray:
    """Return the number of spikes of its neuron that one added spike of each unit stands for."""
    added = np.bincount(trial.injected.unit_index, minlength=len(counts))
    found = np.bincount(trial.injected.unit_index[trial.is_found], minlength=len(counts))
    fired = counts / np.maximum(found / np.maximum(added, 1), LEAST_RECALL)
    return fired / np.maximum(added, 1)


def _unrelated(unit: int, relations: Relations) -> np.ndarray:
    """Return the other units that are neither copies nor parts of the same neuron."""
    unrelated = relations.copy_of < 0
    unrelated[relations.partners(unit)] = False
    unrelated[unit] = False
    return unrelated


def _from_takes(false: np.ndarray, weight: np.ndarray, typical: float, count: int) -> Fraction:
    """Return the precision from the number of false spikes that each other unit gives.

    One added spike stands for `weight` spikes, so the false spikes count as their number over the weight.
    """
    count = max(1, count)
    total = float(false.sum())
    mean_weight = float((false * weight).sum() / total) if total > 0 else typical
    return Fraction.of(1 - total / max(count, total), min(MOST_WEIGHT, count / max(mean_weight, 1e-9)))


def count_violations(train: Sequence[np.ndarray], sampling_frequency: float) -> int:
    """Return the number of intervals of a train that are shorter than the refractory period."""
    limit = REFRACTORY_MS / 1000 * sampling_frequency
    return int(sum(np.count_nonzero(np.diff(frames) < limit) for frames in train))


def contamination(violations: float, count: int, duration: int, sampling_frequency: float) -> float:
    """Return the fraction of false spikes of one other neuron that explains refractory violations.

    Llobet, Wyngaard & Barbour (2022, bioRxiv 2022.02.08.479192); at most 0.5.
    """
    window = (REFRACTORY_MS - _CLOSED_MS) / 1000 * sampling_frequency
    inside = 1 - 2 * violations * duration / (max(count, 1) ** 2 * window)
    return 0.5 * (1 - float(np.sqrt(max(0.0, inside))))


def _with_violations(
    precision: Fraction, violations: int, count: int, duration: int, sampling_frequency: float
) -> Fraction:
    """Return the precision, lower if refractory violations show more false spikes."""
    if not violations:
        return precision
    surely = chi2.ppf(1 - _CERTAINTY, 2 * violations) / 2  # smallest number expected, of a Poisson count
    if contamination(surely, count, duration, sampling_frequency) <= 1 - precision.value:
        return precision
    value = 1 - contamination(violations, count, duration, sampling_frequency)
    return Fraction.of(value, min(MOST_WEIGHT, violations / max(1 - value, 1e-9)))


def _part_of_neuron(unit: int, counts: np.ndarray, relations: Relations) -> float:
    """Return the fraction of the spikes of a unit's neuron that the unit is expected to hold."""
    part = 1.0
    for other in relations.partners(unit):
        if relations.copy_of[other] == unit:
            continue
        others = counts[other] * (1 - relations.shared[other, unit])
        whole = counts[unit] + others
        part *= 1 - relations.parts[unit, other] * others / max(whole, 1)
    return part


def _largest(fractions: np.ndarray, most: int = 3) -> list[tuple[int, float]]:
    order = np.argsort(-fractions, kind="stable")[:most]
    return [(int(unit), float(fractions[unit])) for unit in order if fractions[unit] > 0]
