"""Labels: spikes of known units, from which the network learns.

Labels are a SpikeInterface sorting, with spike times in samples of each segment and unit ids as in their
source, and the interval in which they are complete.

Conventions: a global frame counts the samples of all segments, one after the other, from 0. Global seconds
are global frames divided by the sampling frequency. Intervals are half open.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from spikeinterface.core import (
    BaseRecording,
    BaseSorting,
    NumpySorting,
    SpikeVectorSortingSegment,
)
from spikeinterface.core.base import minimum_spike_dtype

from spikewise.core.config import LabelsConfig
from spikewise.core.errors import LabelsError
from spikewise.core.rates import is_same_rate, show_rate
from spikewise.data.recordings.reader import Traces

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelSet:
    """Labels, and the interval in which they are complete.

    Attributes
    ----------
    sorting : BaseSorting
        All labels, also those outside the interval.
    start_frame, stop_frame : int
        The interval, in global frames, half open.
    source : str
        Where the labels came from.
    segment_starts : tuple of int
        First global frame of each segment.
    stretches : tuple of (int, int) or None
        Parts of the interval that are used, in global frames, half open; None: all of it.
    """

    sorting: BaseSorting
    start_frame: int
    stop_frame: int
    source: str
    segment_starts: tuple[int, ...] = (0,)
    stretches: tuple[tuple[int, int], ...] | None = None

    def parts(self) -> tuple[tuple[int, int], ...]:
        """Return the stretches that are used: all of the interval if none are given."""
        return self.stretches or ((self.start_frame, self.stop_frame),)

    def seconds(self, sampling_frequency: float | None = None) -> tuple[float, float]:
        """Return start and end of the interval in global seconds; by default at the sorting's frequency."""
        frequency = sampling_frequency or self.sorting.sampling_frequency
        return self.start_frame / frequency, self.stop_frame / frequency


@dataclass(frozen=True)
class KeptSpikes:
    """Spikes inside the interval in order of time, then unit; the arrays are (num_spikes,).

    Attributes
    ----------
    global_frame, unit_index : ndarray of int64
    is_positive : ndarray of bool
        True for the first K spikes of each unit: the positive examples of training.
    unit_ids : ndarray
        (num_units,) id of each unit index.
    """

    global_frame: np.ndarray
    unit_index: np.ndarray
    is_positive: np.ndarray
    unit_ids: np.ndarray


def make_sorting(
    spikes: np.ndarray, sampling_frequency: float, unit_ids: np.ndarray, num_segments: int
) -> BaseSorting:
    """Return a sorting in memory of spikes in any order; segments without spikes are kept."""
    order = np.lexsort((spikes["unit_index"], spikes["sample_index"], spikes["segment_index"]))
    return make_ordered_sorting(spikes[order], sampling_frequency, unit_ids, num_segments)


def make_ordered_sorting(
    spikes: np.ndarray, sampling_frequency: float, unit_ids: np.ndarray, num_segments: int
) -> BaseSorting:
    """Return a sorting of ordered spikes, without a copy; segments without spikes are kept."""
    sorting = NumpySorting(spikes, sampling_frequency, unit_ids)
    # NumpySorting ends with the last segment that has a spike.
    for segment_index in range(sorting.get_num_segments(), num_segments):
        sorting.add_sorting_segment(SpikeVectorSortingSegment(spikes[:0], segment_index, unit_ids))
    return sorting


def with_rate(sorting: BaseSorting, sampling_frequency: float) -> BaseSorting:
    """Return a sorting in memory with the same samples, units and properties, but another rate in Hz."""
    copied = make_ordered_sorting(
        np.array(sorting.to_spike_vector()), sampling_frequency, sorting.unit_ids, sorting.get_num_segments()
    )
    sorting.copy_metadata(copied)
    return copied


def check_labels(sorting: BaseSorting, recording: BaseRecording) -> BaseSorting:
    """Check that labels fit the recording, and remove labels that repeat the unit and sample of another.

    Parameters
    ----------
    sorting : BaseSorting
        The labels.
    recording : BaseRecording
        The recording that they belong to.

    Returns
    -------
    BaseSorting
        The labels in memory, in order of time, at the recording's sampling frequency.

    Raises
    ------
    LabelsError
        If the sampling frequency or the number of segments differs, if there are fewer than two labels, or
        if a label lies outside the recording.
    """
    frequency, expected = sorting.sampling_frequency, recording.sampling_frequency
    if not is_same_rate(frequency, expected):
        raise LabelsError(
            f"the labels have a sampling frequency of {show_rate(frequency)}",
            f"that of the recording, {show_rate(expected)}",
            "give the labels of this recording, or give spike times in seconds (CSV with time_s)",
        )
    num_segments = recording.get_num_segments()
    if sorting.get_num_segments() != num_segments:
        raise LabelsError(
            f"the labels have {sorting.get_num_segments()} segments",
            f"as many as the recording, which has {num_segments}",
            "give the labels of this recording, or a CSV with segment_index",
        )
    spikes = sorting.to_spike_vector()
    if len(spikes) < 2:
        raise LabelsError(
            "there is only one label" if len(spikes) else "there are no labels",
            "at least two labelled spikes, better 30 for each unit",
            "label more spikes, or leave the labels out: then the units are found in the recording",
        )
    _check_inside(spikes, sorting.unit_ids, recording)
    distinct = np.unique(spikes)
    if len(distinct) < len(spikes):
        logger.warning("%d labels repeat unit and sample of another: left out", len(spikes) - len(distinct))
    return make_sorting(distinct, expected, sorting.unit_ids, num_segments)


def _check_inside(spikes: np.ndarray, unit_ids: np.ndarray, recording: BaseRecording) -> None:
    lengths = np.array([recording.get_num_samples(index) for index in range(recording.get_num_segments())])
    outside = (spikes["sample_index"] < 0) | (spikes["sample_index"] >= lengths[spikes["segment_index"]])
    if not outside.any():
        return
    first = spikes[outside][0]
    length = lengths[first["segment_index"]]
    raise LabelsError(
        f"{outside.sum()} of {len(spikes)} labels lie outside the recording, the first at sample "
        f"{first['sample_index']} of segment {first['segment_index']} (unit {unit_ids[first['unit_index']]})",
        f"samples 0 to {length - 1}, since the segment lasts {length / recording.sampling_frequency:.3f} s",
        "give the labels of this recording, or remove these labels",
    )


def segment_starts(recording: BaseRecording) -> tuple[int, ...]:
    """Return the first global frame of each segment."""
    lengths = [recording.get_num_samples(index) for index in range(recording.get_num_segments())]
    return tuple(int(start) for start in np.cumsum([0, *lengths[:-1]]))


def make_label_set(
    sorting: BaseSorting, recording: BaseRecording, config: LabelsConfig, source: str
) -> LabelSet:
    """Check labels and set the interval in which they are complete.

    The interval is ``config.label_interval``, or reaches from the first label to the last.

    Raises
    ------
    LabelsError
        What :func:`check_labels` raises; if the interval leaves the recording or has no label; if a unit has
        no label in it: the network could not learn it, and its spikes would count as noise.
    """
    sorting = check_labels(sorting, recording)
    whole = LabelSet(sorting, 0, recording.get_total_samples(), source, segment_starts(recording))
    frames = kept_spikes(whole, None).global_frame
    start_frame, stop_frame = int(frames[0]), int(frames[-1]) + 1
    if config.label_interval is not None:
        start_frame, stop_frame = _frames_of(config.label_interval, whole)
    label_set = replace(whole, start_frame=start_frame, stop_frame=stop_frame)
    _check_units(label_set)
    return label_set


def _frames_of(interval_s: tuple[float, float], whole: LabelSet) -> tuple[int, int]:
    frames = [second * whole.sorting.sampling_frequency for second in interval_s]
    start, stop = (round(min(frame, whole.stop_frame + 1)) for frame in frames)  # infinity is allowed
    if stop > whole.stop_frame or start >= stop:
        raise LabelsError(
            f"the label interval is {interval_s[0]:g} to {interval_s[1]:g} s",
            f"at least one sample between 0 and the end of the recording, {whole.seconds()[1]:.6f} s",
            "change label_interval",
        )
    return start, stop


def _check_units(label_set: LabelSet) -> None:
    """Raise unless each unit has a label in the interval."""
    start_s, stop_s = label_set.seconds()
    kept = kept_spikes(label_set, None)
    counts = np.bincount(kept.unit_index, minlength=len(kept.unit_ids))
    if not counts.any():
        raise LabelsError(
            f"no label lies in the label interval, {start_s:g} to {stop_s:g} s",
            "an interval with labels of every unit",
            "change label_interval, or leave it out",
        )
    absent = [str(unit_id) for unit_id in kept.unit_ids[counts == 0]]
    if absent:
        more = f" and {len(absent) - 10} more" if len(absent) > 10 else ""
        raise LabelsError(
            f"the units {', '.join(absent[:10])}{more} have no label in the label interval, "
            f"{start_s:g} to {stop_s:g} s",
            "at least one label of each unit in it",
            "widen label_interval, or remove these units from the labels",
        )


def kept_spikes(label_set: LabelSet, labels_per_unit: int | None) -> KeptSpikes:
    """Return the spikes inside the interval; the first `labels_per_unit` of each unit are positive.

    With None, all spikes are positive.
    """
    spikes = label_set.sorting.to_spike_vector()
    frames = spikes["sample_index"] + np.array(label_set.segment_starts)[spikes["segment_index"]]
    inside = (frames >= label_set.start_frame) & (frames < label_set.stop_frame)
    frames, units = frames[inside], spikes["unit_index"][inside].astype(np.int64)
    order = np.lexsort((units, frames))
    frames, units = frames[order], units[order]
    is_positive = np.ones(len(frames), dtype=bool)
    if labels_per_unit is not None:
        for unit_index in range(len(label_set.sorting.unit_ids)):
            is_positive[np.flatnonzero(units == unit_index)[labels_per_unit:]] = False
    return KeptSpikes(frames, units, is_positive, label_set.sorting.unit_ids)


def segments_of(frames: np.ndarray, starts: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the segment index of global frames; `starts` are the first global frames of the segments."""
    return np.searchsorted(starts, frames, side="right") - 1


def sorting_of_frames(
    frames: np.ndarray,
    unit_index: np.ndarray,
    unit_ids: np.ndarray,
    starts: Sequence[int],
    sampling_frequency: float,
) -> BaseSorting:
    """Return a sorting of spikes at global frames.

    Parameters
    ----------
    frames, unit_index : ndarray of int, shape (num_spikes,)
        In any order.
    unit_ids : ndarray, shape (num_units,)
    starts : sequence of int
        First global frame of each segment.
    sampling_frequency : float
        In Hz.
    """
    spikes = np.zeros(len(frames), dtype=minimum_spike_dtype)
    spikes["segment_index"] = segments_of(frames, starts)
    spikes["sample_index"] = frames - np.asarray(starts)[spikes["segment_index"]]
    spikes["unit_index"] = unit_index
    return make_sorting(spikes, sampling_frequency, unit_ids, len(starts))


def relabelled(label_set: LabelSet, trains: Sequence[np.ndarray]) -> LabelSet:
    """Return the label set with other units: the global frames of each; ids count from 0."""
    frames = np.concatenate(trains) if len(trains) else np.empty(0, np.int64)
    unit_ids = np.arange(len(trains))
    units = np.repeat(unit_ids, [len(train) for train in trains])
    rate = label_set.sorting.sampling_frequency
    return replace(
        label_set, sorting=sorting_of_frames(frames, units, unit_ids, label_set.segment_starts, rate)
    )


def mean_waveforms(label_set: LabelSet, traces: Traces, max_spikes: int, radius_ms: float) -> np.ndarray:
    """Return the mean waveform of each unit over at most `max_spikes` labels, spread over the interval.

    Parameters
    ----------
    label_set : LabelSet
        The units and their spikes.
    traces : Traces
        Preprocessed traces, which are read in order of time.
    max_spikes : int
        Most spikes of a unit that are read.
    radius_ms : float
        Length of the waveform before and after the spike.

    Returns
    -------
    ndarray of float32
        (num_units, num_samples, num_channels), zeros for a unit without spikes; the spike is in the middle.
    """
    kept = kept_spikes(label_set, None)
    num_units = len(kept.unit_ids)
    chosen = []
    for unit_index in range(num_units):
        own = np.flatnonzero(kept.unit_index == unit_index)
        spread = np.linspace(0, len(own) - 1, min(len(own), max_spikes))
        chosen.append(own[np.rint(spread).astype(np.int64)])
    starts = label_set.segment_starts
    radius = max(1, round(radius_ms * traces.sampling_frequency / 1000))
    sums: list[np.ndarray | int] = [0] * num_units
    for spike in np.sort(np.concatenate(chosen)):
        frame, unit_index = kept.global_frame[spike], kept.unit_index[spike]
        segment_index = int(segments_of(frame, starts))
        sample = int(frame - starts[segment_index])
        sums[unit_index] = sums[unit_index] + traces.read(segment_index, sample - radius, sample + radius + 1)
    return np.stack([total / max(1, len(spikes)) for total, spikes in zip(sums, chosen, strict=True)])


def split_labels_by_group(label_set: LabelSet, readers: Mapping[str, Traces]) -> dict[str, LabelSet]:
    """Assign each unit to the group on which its mean waveform has the largest peak.

    Parameters
    ----------
    label_set : LabelSet
        Labels of the whole recording.
    readers : mapping of str to Traces
        Preprocessed traces, in noise units, of each group (probe, shank or tetrode).

    Returns
    -------
    dict of str to LabelSet
        The labels of each group that has any. With one group, no traces are read.
    """
    if len(readers) == 1:
        return {name: label_set for name in readers}
    peaks = np.stack(
        [abs(mean_waveforms(label_set, traces, 50, 0.5)).max(axis=(1, 2)) for traces in readers.values()]
    )
    group_of_unit = peaks.argmax(axis=0)
    unit_ids = label_set.sorting.unit_ids
    return {
        name: replace(label_set, sorting=label_set.sorting.select_units(unit_ids[group_of_unit == group]))
        for group, name in enumerate(readers)
        if (group_of_unit == group).any()
    }
