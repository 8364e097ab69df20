"""A verdict on each unit, good, usable or poor, and the reason in words."""

from __future__ import annotations

from collections.abc import Sequence

from spikewise.core.constants import REFRACTORY_MS
from spikewise.output.trust.estimates import UnitEstimate
from spikewise.output.trust.relations import Relations
from spikewise.output.unit_table import GOOD_ACCURACY, USABLE_ACCURACY

# Chosen by hand.
_WORTH_SAYING = 0.01
"""Smallest fraction of spikes that goes to, or comes from, another unit and is named."""
_OF_SOURCES = 2.0
"""Violations are named if they show so many times more false spikes than other units explain."""
_LARGE_CHANGE = 0.3
"""Change of the amplitude from the first to the last third of the spikes that is named."""


def judge(
    estimate: UnitEstimate | None,
    unit: int,
    names: Sequence[int | str],
    relations: Relations,
    amplitude_change: float,
) -> tuple[str, str]:
    """Return the verdict on a unit and the reason in words.

    Parameters
    ----------
    estimate : UnitEstimate or None
        None if nothing could be measured.
    unit : int
        Index of the unit in its group.
    names : sequence of int or str
        Ids of the units of the group.
    relations : Relations
    amplitude_change : float
        Amplitude of the last third of its spikes over that of the first, minus 1.
    """
    if estimate is None:
        return "poor", "it has too few spikes to be measured"
    accuracy = estimate.accuracy[0]
    verdict = "good" if accuracy >= GOOD_ACCURACY else "usable" if accuracy >= USABLE_ACCURACY else "poor"
    reasons = [*_false_spikes(estimate, unit, names, relations), *_missed(estimate, unit, names, relations)]
    if abs(amplitude_change) > _LARGE_CHANGE:
        word = "shrink" if amplitude_change < 0 else "grow"
        reasons.append(f"its spikes {word} by {abs(amplitude_change):.0%} over the recording")
    return verdict, "; ".join(reasons)


def _false_spikes(
    estimate: UnitEstimate, unit: int, names: Sequence[int | str], relations: Relations
) -> list[str]:
    if relations.copy_of[unit] >= 0:
        other = int(relations.copy_of[unit])
        return [f"{relations.shared[unit, other]:.0%} of its spikes are those of unit {names[other]}"]
    false = 1 - estimate.precision.value
    if false < _WORTH_SAYING:
        return ["hardly any false spikes"]
    sources = [f"unit {names[u]}" for u, part in estimate.false_sources if part >= _WORTH_SAYING]
    said = f"{false:.0%} false spikes"
    if sources and _OF_SOURCES * sum(part for _, part in estimate.false_sources) > false:
        return [said + f", most from {' and '.join(sources[:2])}"]
    if estimate.violations and _OF_SOURCES * sum(part for _, part in estimate.false_sources) <= false:
        return [said + f": {estimate.violations} intervals are shorter than {REFRACTORY_MS:g} ms"]
    return [said]


def _missed(estimate: UnitEstimate, unit: int, names: Sequence[int | str], relations: Relations) -> list[str]:
    parts = [u for u in relations.partners(unit) if relations.copy_of[u] != unit]
    if parts and relations.copy_of[unit] < 0:
        return [f"probably one neuron with unit {' and '.join(str(names[u]) for u in parts[:3])}"]
    missed = 1 - estimate.recall.value
    if missed < _WORTH_SAYING:
        return ["hardly any missed spikes"]
    takers = [f"{part:.0%} go to unit {names[u]}" for u, part in estimate.lost_to if part >= _WORTH_SAYING]
    return [f"{missed:.0%} missed spikes" + (f", of which {takers[0]}" if takers else "")]
