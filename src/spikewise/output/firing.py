"""How units fire: their inter-spike intervals, their rate over time, and spike times to compare pairs with.

Intervals and rates use all spikes. The spike times are a bounded part: whole stretches of the recording,
evenly spread, with all spikes in them, so that a cross-correlogram of any two units is right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spikewise.output.measures import CORRELOGRAM_MS, spread
from spikewise.output.result import StoredResult

# All of these were chosen by hand.
MAX_INTERVAL_MS = 50.0
"""Longest interval of the histogram of intervals."""
INTERVAL_BIN_MS = 0.5
"""Width of its bins; the refractory period is a whole number of bins."""
MAX_RATE_BINS = 120
"""Most bins of the rate over time; a bin has at least :data:`MIN_RATE_BIN_S`."""
MIN_RATE_BIN_S = 1.0
"""Shortest bin of the rate over time, unless the recording is shorter."""
MAX_COMPARED_SPIKES = 150_000
"""Most spikes whose times are kept for cross-correlograms."""
STRETCH_S = 10.0
"""Length of the stretches from which these spikes come, if not all are kept."""
_GAP_MS = 2 * CORRELOGRAM_MS
"""Gap between two stretches, so that no pair of spikes of two stretches is counted."""


@dataclass(frozen=True)
class Firing:
    """Intervals, rates and spike times of all units.

    Attributes
    ----------
    intervals : ndarray of int
        (num_units, num_bins) number of inter-spike intervals in bins of :data:`INTERVAL_BIN_MS` from 0.
    counts : ndarray of int
        (num_units, num_bins) number of spikes in bins of time, segments laid end to end.
    rate_bin_s : float
        Width of the bins of `counts`.
    compared_frames, compared_units : ndarray of int64
        (num_compared,) frames and unit indices of spikes in order of time. Stretches follow each other with
        gaps in between, so that the frames are not those of the recording.
    compared_s : float
        Length of these stretches together.
    """

    intervals: np.ndarray
    counts: np.ndarray
    rate_bin_s: float
    compared_frames: np.ndarray
    compared_units: np.ndarray
    compared_s: float


def measure_firing(result: StoredResult, trains: list[list[np.ndarray]]) -> Firing:
    """Measure how the units of a result fire.

    Parameters
    ----------
    result : StoredResult
    trains : list of lists of ndarray
        Frames of the spikes of each unit in each segment, as from
        :func:`spikewise.output.measures.spike_trains`.

    Returns
    -------
    Firing
    """
    rate = float(result.sorting.sampling_frequency)
    starts = np.cumsum([0, *result.num_samples])
    duration_s = starts[-1] / rate
    num_bins = int(np.clip(duration_s / MIN_RATE_BIN_S, 1, MAX_RATE_BINS))
    rate_edges = np.linspace(0, starts[-1], num_bins + 1)
    interval_edges = np.arange(round(MAX_INTERVAL_MS / INTERVAL_BIN_MS) + 1) * INTERVAL_BIN_MS * rate / 1000
    intervals = np.zeros((len(trains), len(interval_edges) - 1), dtype=np.int64)
    counts = np.zeros((len(trains), num_bins), dtype=np.int64)
    for unit, train in enumerate(trains):
        for frames, start in zip(train, starts, strict=False):
            intervals[unit] += _count(np.sort(np.diff(frames)), interval_edges)
            counts[unit] += _count(frames + start, rate_edges)
    frames, units, num_compared = _compared_spikes(result)
    return Firing(intervals, counts, duration_s / num_bins, frames, units, num_compared / rate)


def _count(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Count ordered values in bins that include their lower edge and not their upper one."""
    return np.diff(np.searchsorted(values, edges, side="left"))


def _compared_spikes(result: StoredResult) -> tuple[np.ndarray, np.ndarray, int]:
    """Return frames and units of spikes in evenly spread stretches, and the samples of the stretches."""
    spikes = result.sorting.to_spike_vector()
    rate = float(result.sorting.sampling_frequency)
    length = max(result.num_samples) if len(spikes) <= MAX_COMPARED_SPIKES else round(STRETCH_S * rate)
    stretches = [
        (segment, start, min(start + length, total))
        for segment, total in enumerate(result.num_samples)
        for start in range(0, total, length)
    ]
    bounds = np.searchsorted(spikes["segment_index"], np.arange(len(result.num_samples) + 1))
    rows = np.array(
        [
            bounds[segment]
            + np.searchsorted(spikes["sample_index"][bounds[segment] : bounds[segment + 1]], [start, stop])
            for segment, start, stop in stretches
        ]
    )
    chosen = spread(len(stretches), len(stretches))
    while len(chosen) > 1 and (total := np.diff(rows[chosen]).sum()) > MAX_COMPARED_SPIKES:
        chosen = spread(len(stretches), max(1, int((len(chosen) - 1) * MAX_COMPARED_SPIKES / total)))
    frames, units, now, gap = [], [], 0, round(_GAP_MS / 1000 * rate)
    for index in chosen:
        (_, start, stop), (first, end) = stretches[index], rows[index]
        part = spikes[first : min(end, first + MAX_COMPARED_SPIKES)]
        frames.append(part["sample_index"].astype(np.int64) - start + now)
        units.append(part["unit_index"].astype(np.int64))
        now += stop - start + gap
    return np.concatenate(frames), np.concatenate(units), now - gap * len(chosen)
