"""Choice of the spikes that train the classifier of a single channel, and the score of its result.

Labels hold times; spikes are peaks above a threshold. Some files give the first sample of a spike as its
time, others its peak. So the typical offset from label to peak is measured first: the one at which most
labels match a spike.

Conventions: times are samples, counted from 0. A label that is negative, an empty text or the text -1 means
"no unit".
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
"""Largest distance from a label to the peak of its spike that is searched; chosen by hand."""
_MATCH_MS = 0.5
"""Largest distance at which a label, moved by the typical offset, matches a peak; chosen by hand."""
_MIN_BACKGROUND = 20
"""Fewest background spikes that are trained on; with fewer there is no background. Chosen by hand."""


@dataclass(frozen=True)
class ChannelLabels:
    """The labelled spikes of a channel, from which its classifier is trained.

    Attributes
    ----------
    spike_index : ndarray
        (num_examples,) index of each labelled spike.
    labels : ndarray
        (num_examples,) unit id of each labelled spike.
    background_index : ndarray
        (num_background,) index of spikes that belong to no unit.
    interval : tuple of int
        First sample of the training interval, and the one after its last.
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
        """Whether the units come from clustering, so that their ids have no meaning outside."""
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
    """Label the spikes that were found within the label interval.

    Parameters
    ----------
    spikes : Snippets
        All spikes found in the signal.
    sample_index, unit_ids : ndarray
        (num_labels,) time and unit of each label.
    channel : RawChannel
    config : ChannelSortingConfig

    Returns
    -------
    ChannelLabels
        Spikes within the interval that match no label are background, if there are 20 or more of them.

    Raises
    ------
    LabelsError
        If no label lies in the interval, or none matches a spike.
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
            f"none of the {len(sample_index)} labels matches a spike that was found",
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
    """Make labels by clustering the spikes of the first stretch of the signal.

    Parameters
    ----------
    spikes : Snippets
        Spikes without times are all clustered.
    config : ChannelSortingConfig
    seed : int

    Returns
    -------
    ChannelLabels

    Raises
    ------
    LabelsError
        If clustering finds fewer than two units.
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
            "two units or more, since a classifier separates units",
            "lower --detection-threshold, lengthen --stretch-s, or give labels",
        )
    known = clusters.labels >= 0
    facts = {"source": "clusters", **clusters.facts}
    return ChannelLabels(index[known], clusters.labels[known], index[:0], (0, stop), facts)


def typical_offset(sample_index: np.ndarray, peaks: np.ndarray, sampling_frequency: float) -> int:
    """Return the typical offset from a label to the peak of its spike, in samples.

    Of all offsets up to 2.5 ms, the interval of 1 ms that holds the most is found; its median is returned.

    Parameters
    ----------
    sample_index : ndarray
        (num_labels,)
    peaks : ndarray
        (num_spikes,) ascending.
    sampling_frequency : float
        In Hz.

    Returns
    -------
    int
        Positive if the peak is later than its label; 0 if no peak lies within 2.5 ms of a label.
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


def score_result(
    channel: RawChannel, spikes: Snippets, classification: Classification, examples: ChannelLabels
) -> dict[str, Any] | None:
    """Compare the result with the true spikes of the file outside the training interval.

    Returns
    -------
    dict or None
        None if the file holds no such spikes. Otherwise ``detection_precision`` and ``detection_recall``
        (within 0.5 ms of the true time plus the typical offset), and ``classification_accuracy``: the
        fraction of the found true spikes with a unit that were assigned to it, None if there are none. Units
        are compared as text; clusters are first assigned to units one to one, by the best assignment.
    """
    if channel.sample_index is None or channel.labels is None or spikes.sample_index is None:
        return None
    rate = channel.sampling_frequency
    offset = typical_offset(channel.sample_index, spikes.sample_index, rate)
    times = channel.sample_index + offset
    start, stop = examples.interval
    if examples.are_clusters:
        start = stop = 0  # no true label was used for training, so the whole signal is tested
    is_test = (times < start) | (times >= stop)
    if not is_test.any():
        return None
    found = np.flatnonzero((spikes.sample_index < start) | (spikes.sample_index >= stop))
    pairs = match_events(times[is_test], spikes.sample_index[found], _MATCH_MS * rate / 1000)
    true, assigned = channel.labels[is_test][pairs[:, 0]], classification.labels[found][pairs[:, 1]]
    has_unit = is_unit(true)
    accuracy = _accuracy(true[has_unit], assigned[has_unit], examples.are_clusters)
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


def _accuracy(true: np.ndarray, assigned: np.ndarray, are_clusters: bool) -> float | None:
    if not len(true):
        return None
    if are_clusters:
        _, true = np.unique(true, return_inverse=True)  # units may be text
        assigned = assign_clusters(true, assigned)
    return round(classification_accuracy(true.astype(str), assigned.astype(str)), 4)
