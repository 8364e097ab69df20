"""The two ways to score a sorting on the test interval: corrected, and as the authors' published code does.

The published code, whose method is computed here independently: the index of a peak is 7 samples late; a
match may be 29 samples away; the threshold is the best of 0.5, 0.6, ... 0.9 on the test interval itself;
samples at the seams of chunks of 10,000 windows are not examined, 9 on either side (8 because of the
triangle, 1 because a peak is compared with its neighbour). These are samples at 32 kHz, the rate of their
recordings. Accuracies are in percent, and pooled: TP / (TP + FP + FN) over the spikes of all units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from spikeinterface.core import BaseSorting, NumpySorting

from spikewise.core.config import EvaluationConfig
from spikewise.output.matching import compare_sortings
from spikewise.sorting.spikes import Spikes

SHIFT_SAMPLES = 7
"""How late the published code reports a peak."""
TOLERANCE_SAMPLES = 29
"""Largest distance of a match in the published code."""
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds that the published code tries on the test interval."""
CHUNK_WINDOWS = 10_000
"""Windows of a chunk in the published code."""
UNSEEN_SAMPLES = 9
"""Samples on either side of a seam that the published code does not examine."""


@dataclass(frozen=True)
class Score:
    """Scores of a sorting on the test interval, in percent; `threshold` is the best one of the sweep."""

    accuracy: float
    precision: float
    recall: float
    accuracy_all_spikes: float
    num_units_found: int
    threshold: float | None = None


def score_sorting(
    truth: BaseSorting, sorting: BaseSorting, interval: tuple[float, float], as_published: bool = False
) -> Score:
    """Score the spikes of a finished sorting.

    Parameters
    ----------
    truth, sorting : BaseSorting
    interval : tuple of float
        Start and end of the test, in seconds.
    as_published : bool
        Accept matches up to 29 samples apart, and match units regardless of their agreement.

    Returns
    -------
    Score
        A unit counts as found if its accuracy is above 50 %.

    Raises
    ------
    LabelsError
        If the truth has no spike in the interval.
    """
    reach = {"delta_time_ms": 1000 * (TOLERANCE_SAMPLES + 0.5) / truth.sampling_frequency, "match_score": 0.0}
    settings: dict[str, Any] = reach if as_published else {}
    found = compare_sortings(truth, sorting, EvaluationConfig(interval=interval, **settings))
    return Score(
        accuracy=100 * found.accuracy,
        precision=100 * found.precision,
        recall=100 * found.recall,
        accuracy_all_spikes=100 * found.accuracy_all_spikes,
        num_units_found=int((found.units["accuracy"] > 0.5).sum()),
    )


def score_as_published(
    truth: BaseSorting, peaks: Spikes, unit_ids: Sequence[Any], interval: tuple[float, float]
) -> Score:
    """Score the peaks of a network as the authors' published code does.

    Parameters
    ----------
    truth : BaseSorting
    peaks : Spikes
        All peaks of the test interval above the lowest of :data:`THRESHOLDS`; responses are relative to that
        of a perfect spike.
    unit_ids : sequence
        Ids of the units that the unit index of the peaks refers to.
    interval : tuple of float
        Start and end of the test, in seconds.

    Returns
    -------
    Score
        Score of the threshold with the highest accuracy; of equal ones, the lowest threshold.
    """
    rate = truth.sampling_frequency
    position = (peaks.sample_index - round(interval[0] * rate)) % CHUNK_WINDOWS
    is_seen = (position >= UNSEEN_SAMPLES) & (position < CHUNK_WINDOWS - UNSEEN_SAMPLES)
    scores = []
    for threshold in THRESHOLDS:
        kept = is_seen & (peaks.response > threshold)
        sorting = NumpySorting.from_samples_and_labels(
            [peaks.sample_index[kept] + SHIFT_SAMPLES],
            [peaks.unit_index[kept]],
            rate,
            unit_ids=np.arange(len(unit_ids)),
        ).rename_units(list(unit_ids))
        score = score_sorting(truth, sorting, interval, as_published=True)
        scores.append(Score(**{**vars(score), "threshold": threshold}))
    return max(scores, key=lambda score: score.accuracy)
