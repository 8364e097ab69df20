"""Which spikes of a single channel train its classifier, and how good the result is.

Labels name times; spikes are peaks that a threshold found. Some sources name the first sample of a spike,
others its peak, so the usual distance of the two is found first: the one at which most labels meet a spike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikewise.data.waveform_clusters import cluster_waveforms
from spikewise.data.waveform_files import RawChannel
from spikewise.data.waveforms import Snippets
from spikewise.errors import LabelsError
from spikewise.evaluation.classification import assign_clusters
from spikewise.evaluation.events import match_events
from spikewise.models.waveform_classifier import Classification
from spikewise.waveform_config import ChannelSortingConfig

_REACH_MS = 2.5
"""Largest distance of a label and its spike's peak that is looked for."""
_MATCH_MS = 0.5
_MIN_BACKGROUND = 20


@dataclass(frozen=True)
class ChannelLabels:
    """The examples of a channel.

    Attributes
    ----------
    spike_index : ndarray
        (num_examples,) index of each labelled spike.
    labels : ndarray
        (num_examples,) unit id of each.
    background_index : ndarray
        (num_background,) index of spikes that belong to no unit.
    interval : tuple of int
        First sample of the time that trains, and the one after its last.
    facts : dict
        JSON types only.
    """

    spike_index: np.ndarray
    labels: np.ndarray
    background_index: np.ndarray
    interval: tuple[int, int]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def are_clusters(self) -> bool:
        """Whether the units were found by clustering, so that their ids mean nothing."""
        return self.facts["source"] == "clusters"


def label_spikes(
    spikes: Snippets,
    sample_index: np.ndarray,
    unit_ids: np.ndarray,
    channel: RawChannel,
    config: ChannelSortingConfig,
) -> ChannelLabels:
    """Give labels to the spikes that were found within the label interval.

    Parameters
    ----------
    spikes : Snippets
        Found in the whole signal.
    sample_index, unit_ids : ndarray
        (num_labels,) time and unit of each label.
    channel : RawChannel
    config : ChannelSortingConfig

    Returns
    -------
    ChannelLabels
        Spikes within the interval that meet no label are background, where there are 20 or more.

    Raises
    ------
    LabelsError
        If no label lies in the interval, or none meets a spike.
    """
    rate = channel.sampling_frequency
    if config.label_interval is not None:
        start, stop = (round(edge * rate) for edge in config.label_interval)
    else:
        start, stop = (int(sample_index.min()), int(sample_index.max()) + 1) if len(sample_index) else (0, 0)
    inside = (sample_index >= start) & (sample_index < stop)
    if not inside.any():
        raise LabelsError(
            f"none of the {len(sample_index)} labels lies between {start / rate:g} and {stop / rate:g} s",
            "labels inside the label interval",
            "widen --label-interval, or give labels of this recording",
        )
    sample_index, unit_ids = sample_index[inside], unit_ids[inside]
    assert spikes.sample_index is not None
    offset = typical_offset(sample_index, spikes.sample_index, rate)
    pairs = match_events(sample_index + offset, spikes.sample_index, _MATCH_MS * rate / 1000)
    if not len(pairs):
        raise LabelsError(
            f"none of the {len(sample_index)} labels lies at a spike that was found",
            f"labels within {_REACH_MS:g} ms of peaks",
            "lower --detection-threshold, or check that labels and signal belong together",
        )
    within = (spikes.sample_index >= start + offset) & (spikes.sample_index < stop + offset)
    within[pairs[:, 1]] = False
    background = np.flatnonzero(within)
    if len(background) < _MIN_BACKGROUND:
        background = background[:0]
    facts = {
        "source": "labels",
        "interval_s": [round(start / rate, 6), round(stop / rate, 6)],
        "num_labels": len(sample_index),
        "num_labels_found": len(pairs),
        "offset_ms": round(1000 * offset / rate, 4),
        "num_background": len(background),
    }
    return ChannelLabels(pairs[:, 1], unit_ids[pairs[:, 0]], background, (start, stop), facts)


def labels_from_clusters(spikes: Snippets, config: ChannelSortingConfig, seed: int) -> ChannelLabels:
    """Cluster the spikes of the first stretch.

    Parameters
    ----------
    spikes : Snippets
        Where they have no times, all are the first stretch.
    config : ChannelSortingConfig
    seed : int

    Returns
    -------
    ChannelLabels

    Raises
    ------
    LabelsError
        If there is one unit only, or none.
    """
    index, stop = np.arange(len(spikes)), 0
    if spikes.sample_index is not None and spikes.sampling_frequency is not None:
        stop = round(config.stretch_s * spikes.sampling_frequency)
        index = np.flatnonzero(spikes.sample_index < stop)
    clusters = cluster_waveforms(spikes.waveforms[index], seed, config.max_units)
    if clusters.num_units < 2:
        raise LabelsError(
            f"the {len(index)} spikes of the first stretch make {clusters.num_units} "
            f"unit{'s' * (clusters.num_units != 1)}",
            "two units or more, since a classifier tells units apart",
            "lower --detection-threshold, lengthen --stretch-s, or give labels",
        )
    known = clusters.labels >= 0
    facts = {
        "source": "clusters",
        "num_spikes": len(index),
        "num_units": clusters.num_units,
        "num_outliers": int((~known).sum()),
        **{key: value for key, value in clusters.facts.items() if key not in ("num_units", "num_spikes")},
    }
    return ChannelLabels(index[known], clusters.labels[known], index[:0], (0, stop), facts)


def typical_offset(sample_index: np.ndarray, peaks: np.ndarray, sampling_frequency: float) -> int:
    """Return how many samples after its label a spike's peak usually lies, by the fullest millisecond.

    Parameters
    ----------
    sample_index : ndarray
        (num_labels,)
    peaks : ndarray
        (num_spikes,) in order.
    sampling_frequency : float
        In Hz.
    """
    reach = int(_REACH_MS * sampling_frequency / 1000)
    low = np.searchsorted(peaks, sample_index - reach)
    high = np.searchsorted(peaks, sample_index + reach, side="right")
    counts = high - low
    if counts.sum() == 0:
        return 0
    first = np.repeat(low - np.cumsum(counts) + counts, counts)
    distance = peaks[first + np.arange(counts.sum())] - np.repeat(sample_index, counts)
    histogram = np.bincount(distance + reach, minlength=2 * reach + 1)
    width = max(1, round(2 * _MATCH_MS * sampling_frequency / 1000))
    start = int(np.convolve(histogram, np.ones(width, int), mode="valid").argmax())
    nearest = np.flatnonzero((distance + reach >= start) & (distance + reach < start + width))
    return int(np.median(distance[nearest]))


def judge(
    channel: RawChannel, spikes: Snippets, classification: Classification, examples: ChannelLabels
) -> dict[str, Any] | None:
    """Compare with the spikes that the file holds, outside of the time that trained; None if it holds none.

    Returns
    -------
    dict or None
        ``detection_precision`` and ``detection_recall`` (within 0.5 ms of the usual place of the peak), and
        of the true spikes that were found ``classification_accuracy``: the share given to their unit;
        clusters are assigned to units one to one first, by the best assignment.
    """
    if channel.sample_index is None or channel.labels is None or spikes.sample_index is None:
        return None
    rate = channel.sampling_frequency
    offset = typical_offset(channel.sample_index, spikes.sample_index, rate)
    times, true = channel.sample_index + offset, np.asarray(channel.labels)
    start, stop = (edge + offset for edge in examples.interval)
    if examples.are_clusters:
        start = stop = -1  # no true label was used, so all of the time tests
    is_test = (times < start) | (times >= stop)
    found = np.flatnonzero((spikes.sample_index < start) | (spikes.sample_index >= stop))
    pairs = match_events(times[is_test], spikes.sample_index[found], _MATCH_MS * rate / 1000)
    true, sorted_as = true[is_test][pairs[:, 0]], classification.labels[found][pairs[:, 1]]
    if examples.are_clusters:
        sorted_as = assign_clusters(true, sorted_as)
    num_true = int(is_test.sum())
    return {
        "interval": "all" if examples.are_clusters else "outside of the label interval",
        "offset_ms": round(1000 * offset / rate, 4),
        "num_true_spikes": num_true,
        "num_spikes": len(found),
        "detection_precision": round(len(pairs) / max(len(found), 1), 4),
        "detection_recall": round(len(pairs) / max(num_true, 1), 4),
        "classification_accuracy": round(float(np.mean(sorted_as == true)), 4) if len(pairs) else None,
    }
