"""The times of spikes in seconds of the recording's clock, for formats that have one axis of time."""

from __future__ import annotations

from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording, BaseSorting, BaseSortingSegment

from spikewise.data.labels.label_set import segment_starts
from spikewise.data.recordings.clock import has_clock, read_times, times_at


def has_own_times(recording: BaseRecording) -> bool:
    """Return whether a spike's time is anything but its frame divided by the sampling frequency."""
    segments = range(recording.get_num_segments())
    return any(has_clock(recording, k) or recording.get_start_time(k) != 0 for k in segments)


def times_of_spikes(sorting: BaseSorting, recording: BaseRecording) -> np.ndarray:
    """Return the time of each spike of a sorting's spike vector.

    Parameters
    ----------
    sorting : BaseSorting
    recording : BaseRecording
        The recording that was sorted.

    Returns
    -------
    ndarray
        (num_spikes,) in seconds of the recording's clock. Segments whose clocks overlap, as where none tells
        when it began, are laid end to end, from the start of the first.
    """
    spikes = sorting.to_spike_vector()
    rate = recording.get_sampling_frequency()
    lengths = [recording.get_num_samples(k) for k in range(recording.get_num_segments())]
    first = [read_times(recording, k, 0, 1)[0] for k in range(len(lengths))]
    last = [read_times(recording, k, length - 1, length)[0] for k, length in enumerate(lengths)]
    if any(np.less_equal(first[1:], last[:-1])):
        frames = spikes["sample_index"] + np.array(segment_starts(recording))[spikes["segment_index"]]
        return frames / rate + first[0]
    times = np.empty(len(spikes))
    for segment_index in range(len(lengths)):
        here = spikes["segment_index"] == segment_index
        times[here] = times_at(recording, spikes["sample_index"][here], segment_index)
    return times


class TimedSorting(BaseSorting):
    """A sorting of one segment that tells the times of its spikes.

    Parameters
    ----------
    sorting : BaseSorting
        Its units and their properties are taken.
    recording : BaseRecording
        The recording that was sorted; its clock gives the times.
    """

    def __init__(self, sorting: BaseSorting, recording: BaseRecording):
        super().__init__(sorting.get_sampling_frequency(), sorting.unit_ids)
        spikes = sorting.to_spike_vector()
        frames = spikes["sample_index"] + np.array(segment_starts(recording))[spikes["segment_index"]]
        times = times_of_spikes(sorting, recording)
        of_unit = [spikes["unit_index"] == index for index in range(len(sorting.unit_ids))]
        trains = {
            unit_id: (frames[own], times[own])
            for unit_id, own in zip(sorting.unit_ids.tolist(), of_unit, strict=True)
        }
        self.add_sorting_segment(_TimedSegment(trains))
        sorting.copy_metadata(self)


class _TimedSegment(BaseSortingSegment):
    def __init__(self, trains: dict[Any, tuple[np.ndarray, np.ndarray]]):
        super().__init__()
        self._trains = trains

    def get_unit_spike_train(
        self, unit_id: Any, start_frame: int | None = None, end_frame: int | None = None
    ) -> np.ndarray:
        """Return the frames of a unit's spikes."""
        return _between(self._trains[unit_id][0], start_frame, end_frame)

    def get_unit_spike_train_in_seconds(
        self, unit_id: Any, start_time: float | None = None, end_time: float | None = None
    ) -> np.ndarray:
        """Return the times of a unit's spikes, s."""
        return _between(self._trains[unit_id][1], start_time, end_time)


def _between(values: np.ndarray, start: float | None, stop: float | None) -> np.ndarray:
    low, high = -np.inf if start is None else start, np.inf if stop is None else stop
    return values[(values >= low) & (values < high)]
