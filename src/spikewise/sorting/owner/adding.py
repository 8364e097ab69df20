"""Spikes of units that were learnt after the others were sorted: only these are searched.

The spikes of the other units are given. They stay as they are, with one exception: where a new unit has a
spike, the traces decide between it and the spikes of other units near it (:mod:`search`). A given spike is
dropped only if a new unit's spike is within `RIVALS_MS` of it, on channels that both units see.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spikewise.core.config import SortingConfig
from spikewise.data.recordings.reader import TraceReader
from spikewise.models.checkpoint import GroupModel, Model
from spikewise.models.more_units import last_units
from spikewise.sorting.damaged import drop_damaged_spikes
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.owner.group_finder import decision_of
from spikewise.sorting.owner.search import reading_of, samples_at_once
from spikewise.sorting.spikes import Spikes


class AddedUnits:
    """Finds the spikes of the last units of a group.

    Parameters
    ----------
    part : GroupModel
        The group, with all units.
    num_known : int
        Units, the first ones, whose spikes are given.
    model : Model
        The model that the group is of.
    sorting : SortingConfig
    threshold : float or None
        One threshold for all units in place of those of the model.

    Attributes
    ----------
    margin : int
        Samples before and after a stretch whose spikes decide about those within it.
    """

    def __init__(
        self,
        part: GroupModel,
        num_known: int,
        model: Model,
        sorting: SortingConfig,
        threshold: float | None = None,
    ):
        rate, self._num_known = model.sampling_frequency, num_known
        _, self._rule, lowest = decision_of(part, model, sorting.explain, threshold)
        network = last_units(part, num_known).network
        self._detector = make_detector(network, lowest[num_known:], rate, model.detection_config, sorting)
        rivals = 0 if self._rule is None else max(self._rule.rule.rivals)
        self.margin = rivals if self._rule is None else rivals + max(self._rule.margins)
        self._rivals = rivals

    def find(
        self,
        traces: TraceReader,
        stretch: tuple[int, int, int],
        given: Spikes,
        report: Callable[[int, int], None],
    ) -> tuple[Spikes, int]:
        """Find all spikes of one stretch: the given ones that stay, and those of the new units.

        Parameters
        ----------
        traces : TraceReader
        stretch : (int, int, int)
            Segment, first sample, and the sample after the last.
        given : Spikes
            Those of the other units, from `margin` samples before the stretch to `margin` after it.
        report : callable
            Called with the samples and the new spikes of each chunk.

        Returns
        -------
        Spikes
        int
            Spikes of new units that were dropped because of damage.
        """
        segment_index, start, stop = stretch
        parts, num_dropped = [], 0
        at_once = samples_at_once(traces)
        if self._rule is not None:
            self._rule.keep_read(traces)
        search = self._detector.search(traces, segment_index)
        for begin in range(start, stop, at_once):
            end = min(begin + at_once, stop)
            low = max(0, begin - self.margin)
            high = min(traces.num_samples(segment_index), end + self.margin)
            new = search.find(low, high)
            new = Spikes(new.sample_index, new.unit_index + self._num_known, new.response)
            both = _in_order(_between(given, low, high), new)
            spikes, dropped = self._decided(traces, (segment_index, begin, end), both)
            parts.append(spikes)
            num_dropped += dropped
            report(end - begin, int((spikes.unit_index >= self._num_known).sum()))
        return Spikes.concatenate(parts), num_dropped

    def _decided(
        self, traces: TraceReader, stretch: tuple[int, int, int], candidates: Spikes
    ) -> tuple[Spikes, int]:
        """Return the spikes of a stretch from given spikes and candidates around it, and what was dropped."""
        segment_index, start, stop = stretch
        first = self._num_known
        is_given = candidates.unit_index < first
        is_spike = np.ones(len(candidates), bool)
        if self._rule is not None and not is_given.all():
            read = reading_of(traces, segment_index)
            is_spike = self._rule.decisions(candidates, read, is_given)
        around = segment_index, max(0, start - self._rivals), stop + self._rivals
        new = _between(candidates.chosen(is_spike & ~is_given), *around[1:])
        of_network = Spikes(new.sample_index, new.unit_index - first, new.response)
        good = drop_damaged_spikes(of_network, traces, self._detector.network, around).spikes
        good = Spikes(good.sample_index, good.unit_index + first, good.response)
        stays = is_given.copy()
        for index in np.flatnonzero(is_given & ~is_spike):
            stays[index] = not self._has_rival(candidates, int(index), good)
        spikes = _between(_in_order(candidates.chosen(stays), good), start, stop)
        return spikes, len(_between(new, start, stop)) - len(_between(good, start, stop))

    def _has_rival(self, spikes: Spikes, index: int, others: Spikes) -> bool:
        """Return whether a spike has another one within `RIVALS_MS` on channels that it shares."""
        if self._rule is None:
            return False
        sample, unit = spikes.sample_index[index], spikes.unit_index[index]
        low, high = np.searchsorted(others.sample_index, [sample - self._rivals, sample + self._rivals + 1])
        return bool((self._rule.overlaps.pair[unit, others.unit_index[low:high]] >= 0).any())


def _between(spikes: Spikes, start: int, stop: int) -> Spikes:
    return spikes.chosen((spikes.sample_index >= start) & (spikes.sample_index < stop))


def _in_order(*parts: Spikes) -> Spikes:
    """Return spikes of several lists in order of time, then unit."""
    joined = Spikes.concatenate(list(parts))
    return joined.chosen(np.lexsort((joined.unit_index, joined.sample_index)))
