"""The threshold of each unit, chosen on held-out labelled time.

Peaks are found once with a low threshold; every candidate threshold is then scored by counting. A unit with
few held-out spikes cannot choose alone. So the counts of all units together, weighted as :data:`PRIOR_SPIKES`
spikes, are added to the counts of each unit: a unit with many spikes decides for itself, a unit with few
follows the rest. If all units together have few spikes, every threshold in a wide range looks perfect. So
typical curves of missed and false spikes from other recordings are added too; they count as
:data:`USUAL_SPIKES` spikes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from spikewise.core.constants import COINCIDENCE_MS
from spikewise.core.progress import THRESHOLDS, ProgressCallback, silent
from spikewise.data.labels.label_set import KeptSpikes
from spikewise.data.recordings.reader import Traces
from spikewise.learning.examples.training_set import Block
from spikewise.sorting.detector import Detector
from spikewise.sorting.spikes import Spikes

CANDIDATES = np.arange(0.10, 0.96, 0.025)
"""Thresholds that are compared, as fractions of the response to a perfect spike. Chosen by hand."""
DEFAULT_THRESHOLD = 0.5
"""Threshold where no held-out time can choose one. Chosen by hand."""
PRIOR_SPIKES = 20.0
"""Weight of the counts of all units in the counts of one, in spikes. Chosen by hand."""
USUAL_SPIKES = 200.0
"""Weight of the typical curves below, in spikes. Chosen by hand; why they are used: docs/design-notes.md."""
USUALLY_MISSED = 0.075 * CANDIDATES**1.6
"""Fraction of the true spikes below each candidate: rough means over simulated tetrodes and a dense probe
with 10 and 30 labels for each unit, whose best thresholds were 0.4 to 0.7."""
USUALLY_FALSE = 0.55 * np.exp(-7.7 * CANDIDATES)
"""False spikes above each candidate, for each true one, from the same recordings."""
_MAX_HELD_OUT_S = 30.0
"""Longest held-out time that is searched for thresholds. Chosen by hand."""


def lowest_thresholds(num_units: int) -> np.ndarray:
    """Return thresholds (num_units,) with which a detector finds the peaks that all candidates keep."""
    return np.full(num_units, CANDIDATES[0], dtype=np.float32)


def choose_thresholds(
    detector: Detector,
    traces: Traces,
    spikes: KeptSpikes,
    held_out: Sequence[Block],
    progress: ProgressCallback = silent,
) -> np.ndarray:
    """Choose the threshold of each unit that gives the highest accuracy on held-out time.

    A peak near a spike that is neither positive nor noise cannot be scored. If it is no hit, the number of
    false peaks elsewhere is scaled up to account for it.

    Parameters
    ----------
    detector : Detector
        With :func:`lowest_thresholds`, so that it finds all peaks that a candidate may keep.
    traces : Traces
    spikes : KeptSpikes
    held_out : sequence of Block
        Time that did not train. At most 30 s of it, evenly spread, is used.
    progress : callable

    Returns
    -------
    ndarray
        (num_units,); 0.5, which is best for the usual curves, for all if no positive spike is held out.
    """
    if not np.array_equal(detector.thresholds, lowest_thresholds(len(spikes.unit_ids))):
        raise ValueError("the detector must have the lowest thresholds: see lowest_thresholds")
    delta = round(COINCIDENCE_MS * traces.sampling_frequency / 1000)
    hits: list[list[np.ndarray]] = [[] for _ in range(len(spikes.unit_ids))]
    false: list[list[np.ndarray]] = [[] for _ in range(len(spikes.unit_ids))]
    num_true = np.zeros(len(spikes.unit_ids))
    num_judged = 0
    blocks = _spread(held_out, traces.sampling_frequency)
    for done, block in enumerate(blocks):
        progress(THRESHOLDS, done, len(blocks), "")
        peaks = find_in_block(detector, traces, block)
        inside = (spikes.global_frame >= block.start) & (spikes.global_frame < block.stop)
        unknown = spikes.global_frame[inside & ~spikes.is_positive]
        positive = spikes.global_frame[inside & spikes.is_positive]
        num_judged += int(np.count_nonzero(~near_any(unknown, positive, delta)))
        for unit_index in range(len(spikes.unit_ids)):
            of_unit = peaks.unit_index == unit_index
            frames, responses = peaks.sample_index[of_unit], peaks.response[of_unit]
            true = spikes.global_frame[inside & spikes.is_positive & (spikes.unit_index == unit_index)]
            hit, missed = _score_peaks(frames, responses, true, unknown, delta)
            hits[unit_index].append(hit)
            false[unit_index].append(missed)
            num_true[unit_index] += len(true)
    progress(THRESHOLDS, len(blocks), len(blocks), "")
    if not num_true.sum():
        return np.full(len(spikes.unit_ids), DEFAULT_THRESHOLD, dtype=np.float32)
    share_judged = max(num_judged, 1) / num_true.sum()
    return _best_thresholds(_count_above(hits), _count_above(false) / share_judged, num_true)


def _spread(held_out: Sequence[Block], sampling_frequency: float) -> list[Block]:
    """Take blocks evenly until they last 30 s."""
    length = sum(block.stop - block.start for block in held_out)
    share = min(1.0, _MAX_HELD_OUT_S * sampling_frequency / max(1, length))
    count = max(1, int(len(held_out) * share))
    chosen = np.linspace(0, len(held_out) - 1, count).round().astype(int) if held_out else np.empty(0, int)
    return [held_out[index] for index in chosen]


def _score_peaks(
    frames: np.ndarray, responses: np.ndarray, true: np.ndarray, unknown: np.ndarray, delta: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the responses of peaks that hit a true spike (the highest for each), and of false ones."""
    is_hit = np.zeros(len(frames), dtype=bool)
    for spike in true:
        low, high = np.searchsorted(frames, [spike - delta, spike + delta + 1])
        free = np.flatnonzero(~is_hit[low:high]) + low
        if len(free):
            is_hit[free[np.argmax(responses[free])]] = True
    return responses[is_hit], responses[~is_hit & ~near_any(unknown, frames, delta)]


def near_any(sorted_frames: np.ndarray, frames: np.ndarray, delta: int) -> np.ndarray:
    """Return for each frame whether one of the sorted frames lies within `delta`."""
    first = np.searchsorted(sorted_frames, frames - delta, side="left")
    return np.searchsorted(sorted_frames, frames + delta, side="right") > first


def _count_above(responses: list[list[np.ndarray]]) -> np.ndarray:
    """Count, for each unit and candidate threshold, the responses above it: (num_units, num_candidates)."""
    return np.array(
        [(np.concatenate(parts)[:, None] > CANDIDATES).sum(axis=0) for parts in responses], dtype=float
    )


def _best_thresholds(tp: np.ndarray, fp: np.ndarray, num_true: np.ndarray) -> np.ndarray:
    """Maximise accuracy with the pooled counts as prior; of a run of equals, take the middle."""
    total = num_true.sum() + USUAL_SPIKES
    pooled_tp = tp.sum(axis=0) + USUAL_SPIKES * (1 - USUALLY_MISSED)
    pooled_fp = fp.sum(axis=0) + USUAL_SPIKES * USUALLY_FALSE
    joined_tp = tp + PRIOR_SPIKES * pooled_tp / total
    joined_all = num_true[:, None] + fp + PRIOR_SPIKES * (1 + pooled_fp / total)
    accuracy = joined_tp / joined_all
    is_best = accuracy >= accuracy.max(axis=1, keepdims=True) - 1e-9
    return np.array([np.median(CANDIDATES[row]) for row in is_best], dtype=np.float32)


def find_in_block(detector: Detector, traces: Traces, block: Block) -> Spikes:
    """Find the spikes of a block of the label interval, in global frames."""
    offset = sum(traces.num_samples(index) for index in range(block.segment_index))
    spikes = detector.find(traces, block.segment_index, block.start - offset, block.stop - offset)
    return Spikes(spikes.sample_index + offset, spikes.unit_index, spikes.response)
