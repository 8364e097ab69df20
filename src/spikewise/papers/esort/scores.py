"""The two ways to score a sorting on the test interval: corrected, and as the authors' published code does.

Their way, told as facts and computed here anew: the index of a peak is 7 samples late, a match may be 29
samples away, the threshold is the best of 0.5, 0.6, ... 0.9 on the test interval itself, and samples at the
seams of chunks of 10,000 windows are not examined, 9 to either side (8 of the triangle, 1 of the neighbour
that a peak is compared with). These are samples at 32 kHz, the rate of their recordings. Accuracies are in
percent, and pooled: TP / (TP + FP + FN) over the spikes of all units.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from spikeinterface.core import BaseSorting, NumpySorting

from spikewise.core.config import EvaluationConfig
from spikewise.output.matching import compare_sortings
from spikewise.sorting.detect import Spikes

SHIFT_SAMPLES = 7
TOLERANCE_SAMPLES = 29
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
CHUNK_WINDOWS = 10_000
UNSEEN_SAMPLES = 9


@dataclass(frozen=True)
class Score:
    """How good a sorting is on the test interval, in percent; `threshold` is the one that was swept."""

    accuracy: float
    precision: float
    recall: float
    accuracy_all_spikes: float
    num_units_found: int
    threshold: float | None = None


def score_sorting(
    truth: BaseSorting, sorting: BaseSorting, interval: tuple[float, float], as_published: bool = False
) -> Score:
    """Score spikes that are final.

    Parameters
    ----------
    truth, sorting : BaseSorting
    interval : tuple of float
        Start and end of the test, in seconds.
    as_published : bool
        Let matches be 29 samples apart, and units match however little they agree.

    Returns
    -------
    Score
        Units count as found from an accuracy of 50 % on.

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
        All peaks of the test interval above the lowest of :data:`THRESHOLDS`; a response is a fraction of
        that to a perfect spike.
    unit_ids : sequence
        Ids of the units that the peaks count.
    interval : tuple of float
        Start and end of the test, in seconds.

    Returns
    -------
    Score
        That of the threshold with the highest accuracy, the lowest of equals.
    """
    rate = truth.sampling_frequency
    place = (peaks.sample_index - round(interval[0] * rate)) % CHUNK_WINDOWS
    is_seen = (place >= UNSEEN_SAMPLES) & (place < CHUNK_WINDOWS - UNSEEN_SAMPLES)
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
