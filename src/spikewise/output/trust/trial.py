"""One trial: stretches with added spikes are sorted again by the ordinary detector, and spikes counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from spikewise.core.constants import COINCIDENCE_MS
from spikewise.data.labels.events import match_events
from spikewise.data.recordings.reader import Traces
from spikewise.output.trust.injection import InjectedSpikes, InjectedTraces
from spikewise.output.trust.shapes import UnitShape
from spikewise.output.trust.stretches import Stretch, TrainsOfGroup
from spikewise.sorting.spikes import Spikes

Find = Callable[[Traces, int, int, int], Spikes]
CAUSE_MS = 1.2
"""A false spike is due to an added spike at most so far away: the length of a spike. Chosen by hand."""


@dataclass(frozen=True)
class Trial:
    """What became of the spikes that were added.

    Attributes
    ----------
    injected : InjectedSpikes
    response : ndarray
        (num_injected,) response of the network to each added spike; 0 if its unit did not find it.
    takes : ndarray of int
        (num_units, num_units) added spikes of the unit of a row that the unit of a column took for its own.
    take_unit, take_cause, take_response : ndarray
        (num_takes,) unit and response of each such spike, and the unit whose added spike it took.
    real_unit, real_response : ndarray
        (num_real,) unit and response of the spikes that no added spike explains.
    """

    injected: InjectedSpikes
    response: np.ndarray
    takes: np.ndarray
    take_unit: np.ndarray
    take_cause: np.ndarray
    take_response: np.ndarray
    real_unit: np.ndarray
    real_response: np.ndarray

    @property
    def is_found(self) -> np.ndarray:
        """Whether each added spike was found."""
        return self.response > 0


def run_trial(
    find: Find,
    traces: Traces,
    shapes: Sequence[UnitShape | None],
    trains: TrainsOfGroup,
    injected: InjectedSpikes,
    stretches: Sequence[Stretch],
    report: Callable[[], None] = lambda: None,
) -> Trial:
    """Sort stretches with added spikes, and count which are found.

    Parameters
    ----------
    find : callable
        Finds the spikes of a stretch as they were found for the result: given traces, the index of a segment,
        and the first sample and that after the last.
    traces : Traces
        Preprocessed traces of the group, without added spikes.
    shapes : sequence of UnitShape or None
    trains : TrainsOfGroup
        The spikes of the result.
    injected : InjectedSpikes
    stretches : sequence of Stretch
        Where spikes were added.
    report : callable
        Called after each stretch.
    """
    with_spikes = InjectedTraces(traces, injected, shapes)
    delta = round(COINCIDENCE_MS * traces.sampling_frequency / 1000)
    reach = round(CAUSE_MS * traces.sampling_frequency / 1000)
    response = np.zeros(len(injected))
    num_units = trains.num_units
    takes = np.zeros((num_units, num_units), dtype=np.int64)
    real: list[Spikes] = []
    taken: list[Spikes] = []
    causes: list[np.ndarray] = []
    for stretch in stretches:
        spikes = find(with_spikes, stretch.segment_index, stretch.start, stretch.stop)
        here = np.flatnonzero(
            (injected.segment_index == stretch.segment_index)
            & (injected.sample_index >= stretch.start)
            & (injected.sample_index < stretch.stop)
        )
        is_hit = np.zeros(len(spikes), bool)
        for unit in range(num_units):
            own = here[injected.unit_index[here] == unit]
            found = np.flatnonzero(spikes.unit_index == unit)
            pairs = match_events(injected.sample_index[own], spikes.sample_index[found], delta)
            response[own[pairs[:, 0]]] = spikes.response[found[pairs[:, 1]]]
            is_hit[found[pairs[:, 1]]] = True
        is_new = ~is_hit & ~_was_there(spikes, trains, stretch, delta)
        cause = _cause(spikes, injected, here, reach)
        is_taken = is_new & (cause >= 0)
        np.add.at(takes, (cause[is_taken], spikes.unit_index[is_taken]), 1)
        taken.append(_some(spikes, is_taken))
        causes.append(cause[is_taken])
        real.append(_some(spikes, ~is_hit & ~is_taken))
        report()
    all_taken, all_real = Spikes.concatenate(taken), Spikes.concatenate(real)
    return Trial(
        injected,
        response,
        takes,
        all_taken.unit_index,
        np.concatenate([np.empty(0, np.int64), *causes]),
        all_taken.response,
        all_real.unit_index,
        all_real.response,
    )


def _some(spikes: Spikes, chosen: np.ndarray) -> Spikes:
    return Spikes(spikes.sample_index[chosen], spikes.unit_index[chosen], spikes.response[chosen])


def _was_there(spikes: Spikes, trains: TrainsOfGroup, stretch: Stretch, delta: int) -> np.ndarray:
    """Return whether each spike was found without the added spikes, too."""
    was = np.zeros(len(spikes), bool)
    for unit in range(trains.num_units):
        of_unit = np.flatnonzero(spikes.unit_index == unit)
        before = trains.within(unit, stretch, (-delta, -delta))
        matched = match_events(spikes.sample_index[of_unit], before, delta)
        was[of_unit[matched[:, 0]]] = True
    return was


def _cause(spikes: Spikes, injected: InjectedSpikes, here: np.ndarray, reach: int) -> np.ndarray:
    """Return for each spike the unit of the nearest added spike at most `reach` away, else -1."""
    cause = np.full(len(spikes), -1, dtype=np.int64)
    if not len(here):
        return cause
    samples = injected.sample_index[here]
    right = np.clip(np.searchsorted(samples, spikes.sample_index), 1, max(1, len(samples) - 1))
    near = np.stack([np.clip(right - 1, 0, len(samples) - 1), np.clip(right, 0, len(samples) - 1)])
    distance = np.abs(samples[near] - spikes.sample_index)
    best = near[distance.argmin(axis=0), np.arange(len(spikes))]
    is_near = distance.min(axis=0) <= reach
    cause[is_near] = injected.unit_index[here[best[is_near]]]
    return cause
