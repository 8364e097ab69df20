"""Which spikes of a single channel train its classifier, and how good the result is.

Labels name times; spikes are peaks that a threshold found. Some sources name the first sample of a spike,
others its peak, so the usual distance of the two is found first: the one at which most labels meet a spike.

Conventions: times are samples, counted from 0. A label that is negative, an empty text or the text -1 names
no unit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spikewise.core.errors import LabelsError
from spikewise.data.labels.events import match_events
from spikewise.single_channel.classifier import Classification
from spikewise.single_channel.clusters import cluster_waveforms
from spikewise.single_channel.config import ChannelSortingConfig
from spikewise.single_channel.files import RawChannel
from spikewise.single_channel.scores import assign_clusters, classification_accuracy
from spikewise.single_channel.snippets import Snippets

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
        First sample of the time whose peaks train, and the one after its last.
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


def is_unit(labels: np.ndarray) -> np.ndarray:
    """Return which labels name a unit, (num_labels,) bool."""
    return ~np.isin(labels, ["", "-1"]) if labels.dtype.kind == "U" else labels >= 0


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
    tolerance = _MATCH_MS * rate / 1000
    pairs = match_events(sample_index + offset, spikes.sample_index, tolerance)
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
    margin = math.ceil(tolerance)
    interval = (start + offset - margin, stop + offset + margin)
    return ChannelLabels(pairs[:, 1], unit_ids[pairs[:, 0]], background, interval, facts)


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
        **clusters.facts,
    }
    return ChannelLabels(index[known], clusters.labels[known], index[:0], (0, stop), facts)


def typical_offset(sample_index: np.ndarray, peaks: np.ndarray, sampling_frequency: float) -> int:
    """Return how many samples after its label a spike's peak usually lies: the median of the fullest ms.

    Parameters
    ----------
    sample_index : ndarray
        (num_labels,)
    peaks : ndarray
        (num_spikes,) in order.
    sampling_frequency : float
        In Hz.

    Returns
    -------
    int
        0 where no peak lies within 2.5 ms of a label.
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
    """Compare with the spikes that the file holds outside of the time that trained; None if there are none.

    Returns
    -------
    dict or None
        ``detection_precision`` and ``detection_recall`` (within 0.5 ms of the usual place of the peak), and
        of the true spikes that were found and have a unit ``classification_accuracy``: the share given to
        it, None where there are none. Units are compared as text; clusters are assigned to units one to one
        first, by the best assignment.
    """
    if channel.sample_index is None or channel.labels is None or spikes.sample_index is None:
        return None
    rate = channel.sampling_frequency
    offset = typical_offset(channel.sample_index, spikes.sample_index, rate)
    times = channel.sample_index + offset
    start, stop = examples.interval
    if examples.are_clusters:
        start = stop = 0  # no true label was used, so all of the time tests
    is_test = (times < start) | (times >= stop)
    if not is_test.any():
        return None
    found = np.flatnonzero((spikes.sample_index < start) | (spikes.sample_index >= stop))
    pairs = match_events(times[is_test], spikes.sample_index[found], _MATCH_MS * rate / 1000)
    true, sorted_as = channel.labels[is_test][pairs[:, 0]], classification.labels[found][pairs[:, 1]]
    has_unit = is_unit(true)
    accuracy = _accuracy(true[has_unit], sorted_as[has_unit], examples.are_clusters)
    num_true = int(is_test.sum())
    return {
        "interval": "all" if examples.are_clusters else "outside of the label interval",
        "offset_ms": round(1000 * offset / rate, 4),
        "num_true_spikes": num_true,
        "num_spikes": len(found),
        "detection_precision": round(len(pairs) / max(len(found), 1), 4),
        "detection_recall": round(len(pairs) / num_true, 4),
        "classification_accuracy": accuracy,
    }


def _accuracy(true: np.ndarray, sorted_as: np.ndarray, are_clusters: bool) -> float | None:
    if not len(true):
        return None
    if are_clusters:
        _, true = np.unique(true, return_inverse=True)  # units may be text
        sorted_as = assign_clusters(true, sorted_as)
    return round(classification_accuracy(true.astype(str), sorted_as.astype(str)), 4)
