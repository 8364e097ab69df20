"""Compares two sortings: matches their spikes and units, and scores a sorting against the truth.

Conventions
-----------
These are the conventions of SpikeInterface's ground-truth comparison (Buccino et al. 2020, eLife 9:e61834),
so that the numbers can be compared with its own:

- Two spikes can match if they lie at most ``int(delta_time_ms / 1000 * sampling_frequency)`` frames
  apart.
- ``agreement = tp / (num_truth + num_tested - tp)`` for each pair of units. Units are paired one to one
  by the Hungarian method, which maximises the sum of the agreements. Pairs below ``match_score`` and pairs
  without a common spike are left out.
- ``accuracy = tp / (tp + fp + fn)``, ``precision = tp / (tp + fp)``, ``recall = tp / (tp + fn)``. They are 0
  if nothing matches, and NaN if the true unit has no spike in the time compared. Pooled values are
  computed from the sums of tp, fp and fn over the true units.

There is one difference. Here every spike of a pair of units matches at most once, and as many spikes match
as possible. SpikeInterface remembers only the last match. If three or more spikes of one unit are close
enough to match the same spikes of the other unit, it can count one of them twice. Its count is then higher
(it is never lower). If no unit fires three times within twice that distance, both counts are equal.

An interval is given in seconds from the start of the recording, with segments laid end to end, and is half
open. Spikes are matched before the interval is applied, so that a matched pair across an edge is never an
error: a match counts if the true spike is inside, and a detected spike inside whose true spike is outside is
left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from spikeinterface.core import BaseSorting

from spikewise.core.config import EvaluationConfig
from spikewise.core.errors import LabelsError, SettingError
from spikewise.core.rates import is_same_rate, show_rate
from spikewise.core.settings import check_interval
from spikewise.data.labels.events import SpikeTrains, match_spike_trains


@dataclass(frozen=True)
class Performance:
    """How well a tested sorting finds the units and spikes of a true one.

    Attributes
    ----------
    units : pandas.DataFrame
        One row for each true unit (the index); columns ``tested_unit`` (None without a partner),
        ``num_truth``, ``num_tested``, ``tp``, ``fp``, ``fn``, ``accuracy``, ``precision``, ``recall``.
        ``num_tested`` is ``tp + fp``.
    unmatched_units : tuple
        Ids of the tested units without a partner.
    num_unmatched_spikes : int
        Number of their spikes in the time compared.
    accuracy, precision, recall : float
        Pooled: computed from the sums of tp, fp and fn over the true units.
    accuracy_all_spikes : float
        As `accuracy`, but the spikes of the unmatched tested units count as false positives too.
    common : pandas.DataFrame
        The confusion matrix: number of matched spikes of each true unit (the index) and each tested unit (the
        columns), whether or not the two are partners.
    """

    units: pd.DataFrame
    unmatched_units: tuple
    num_unmatched_spikes: int
    accuracy: float
    precision: float
    recall: float
    accuracy_all_spikes: float
    common: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the confusion matrix as a dictionary of JSON types; NaN becomes None."""
        rows = self.units.reset_index().to_dict(orient="records")
        return {
            "accuracy": self.accuracy,
            "precision": self.precision,
            "recall": self.recall,
            "accuracy_all_spikes": self.accuracy_all_spikes,
            "unmatched_units": [_plain(unit_id) for unit_id in self.unmatched_units],
            "num_unmatched_spikes": self.num_unmatched_spikes,
            "units": [{str(key): _plain(value) for key, value in row.items()} for row in rows],
        }


@dataclass(frozen=True)
class Agreement:
    """How well two sortings agree. The measure is symmetric.

    Attributes
    ----------
    units : pandas.DataFrame
        One row for each pair of partners; columns ``unit_a``, ``unit_b``, ``num_a``, ``num_b``,
        ``num_common``, ``agreement``.
    fraction_units : float
        Units with a partner in either sorting, as a fraction of all units of both.
    fraction_spikes : float
        Common spikes of the partners, as a fraction of the distinct spikes of both sortings.
    """

    units: pd.DataFrame
    fraction_units: float
    fraction_spikes: float


def compare_sortings(
    truth: BaseSorting,
    tested: BaseSorting,
    config: EvaluationConfig | None = None,
    num_samples: Sequence[int] | None = None,
) -> Performance:
    """Match a tested sorting with the truth and score it.

    Parameters
    ----------
    truth : BaseSorting
        The true units, with at least one spike in the time compared.
    tested : BaseSorting
        The units to score; it may be empty.
    config : EvaluationConfig, optional
        Largest distance of a match, smallest agreement of partners, and interval.
    num_samples : sequence of int, optional
        Length of each segment in frames; needed only for an interval in several segments.

    Returns
    -------
    Performance

    Raises
    ------
    LabelsError
        If the sortings do not fit each other, or the truth has no spike in the time compared.
    SettingError
        If the interval cannot be used.
    """
    config = config or EvaluationConfig()
    counts = _count_matches(truth, tested, config, num_samples)
    if counts.num_a.sum() == 0:
        when = "at all" if config.interval is None else "between {:g} and {:g} s".format(*config.interval)
        raise LabelsError(
            f"the true sorting has no spike {when}",
            "a comparison needs at least one true spike",
            "check the true sorting, or choose another interval",
        )
    num_truth, tp = counts.num_a, counts.pairs_in_a
    fn = num_truth[:, None] - tp
    fp = counts.num_b[None, :] - counts.pairs_in_b
    partner = _pair_units(tp, tp + fn + fp, config.match_score)
    return _performance(truth.unit_ids, tested.unit_ids, partner, counts)


def agreement(
    sorting_a: BaseSorting,
    sorting_b: BaseSorting,
    config: EvaluationConfig | None = None,
    num_samples: Sequence[int] | None = None,
) -> Agreement:
    """Summarise how well two sortings agree, neither of which is the truth.

    A matched pair of spikes counts if either spike lies in the interval.

    Parameters
    ----------
    sorting_a, sorting_b : BaseSorting
        The two sortings; either may be empty.
    config : EvaluationConfig, optional
        Largest distance of a match, smallest agreement of partners, and interval.
    num_samples : sequence of int, optional
        Length of each segment in frames; needed only for an interval in several segments.

    Returns
    -------
    Agreement
        The fractions are NaN if both sortings are empty.

    Raises
    ------
    LabelsError
        If the sortings do not fit each other.
    SettingError
        If the interval cannot be used.
    """
    config = config or EvaluationConfig()
    counts = _count_matches(sorting_a, sorting_b, config, num_samples)
    common = counts.pairs_in_either
    num_a = counts.num_a[:, None] + common - counts.pairs_in_a
    num_b = counts.num_b[None, :] + common - counts.pairs_in_b
    distinct = num_a + num_b - common
    partner = _pair_units(common, distinct, config.match_score)
    index_a = np.flatnonzero(partner >= 0)
    index_b = partner[index_a]
    pair = (index_a, index_b)
    units = pd.DataFrame(
        {
            "unit_a": np.asarray(sorting_a.unit_ids)[index_a],
            "unit_b": np.asarray(sorting_b.unit_ids)[index_b],
            "num_a": num_a[pair],
            "num_b": num_b[pair],
            "num_common": common[pair],
            "agreement": common[pair] / distinct[pair],
        }
    )
    crossing = int((num_a + num_b)[pair].sum() - counts.num_a[index_a].sum() - counts.num_b[index_b].sum())
    num_common = int(common[pair].sum())
    num_distinct = int(counts.num_a.sum() + counts.num_b.sum()) + crossing - num_common
    num_units = counts.num_a.size + counts.num_b.size
    return Agreement(units, _ratio(2 * len(units), num_units), _ratio(num_common, num_distinct))


@dataclass
class _Counts:
    """Numbers of spikes and of matched pairs of spikes in the time compared.

    Attributes
    ----------
    num_a, num_b : ndarray
        (num_units_a,) and (num_units_b,) number of spikes of each unit.
    pairs_in_a, pairs_in_b, pairs_in_either : ndarray
        (num_units_a, num_units_b) number of matched pairs of which the spike of a, the spike of b, or at
        least one of the two lies in the time compared.
    """

    num_a: np.ndarray
    num_b: np.ndarray
    pairs_in_a: np.ndarray
    pairs_in_b: np.ndarray
    pairs_in_either: np.ndarray


def _count_matches(
    sorting_a: BaseSorting,
    sorting_b: BaseSorting,
    config: EvaluationConfig,
    num_samples: Sequence[int] | None,
) -> _Counts:
    """Count the spikes and matched pairs of all units over all segments."""
    _check_sortings(sorting_a, sorting_b)
    delta = int(config.delta_time_ms / 1000 * sorting_a.sampling_frequency)
    windows = _segment_windows(sorting_a, config.interval, num_samples)
    shape = (len(sorting_a.unit_ids), len(sorting_b.unit_ids))
    counts = _Counts(
        np.zeros(shape[0], dtype=np.int64),
        np.zeros(shape[1], dtype=np.int64),
        *(np.zeros(shape, dtype=np.int64) for _ in range(3)),
    )
    for segment_index, (start, stop) in enumerate(windows):
        a, b = (_segment_spikes(sorting, segment_index) for sorting in (sorting_a, sorting_b))
        inside_a = (a.frame >= start) & (a.frame < stop)
        inside_b = (b.frame >= start) & (b.frame < stop)
        counts.num_a += np.bincount(a.unit_index[inside_a], minlength=shape[0])
        counts.num_b += np.bincount(b.unit_index[inside_b], minlength=shape[1])
        for index_a, index_b in match_spike_trains(a, b, delta):
            pair = a.unit_index[index_a] * shape[1] + b.unit_index[index_b]
            in_a, in_b = inside_a[index_a], inside_b[index_b]
            for total, counted in (
                (counts.pairs_in_a, in_a),
                (counts.pairs_in_b, in_b),
                (counts.pairs_in_either, in_a | in_b),
            ):
                total += np.bincount(pair[counted], minlength=total.size).reshape(shape)
    return counts


def _pair_units(common: np.ndarray, distinct: np.ndarray, match_score: float) -> np.ndarray:
    """Return for each unit of the first sorting the index of its partner, or -1; shape (num_units_a,)."""
    score = np.divide(common, distinct, out=np.zeros(common.shape), where=distinct > 0)
    score[score < match_score] = 0
    partner = np.full(common.shape[0], -1, dtype=np.int64)
    rows, columns = linear_sum_assignment(score, maximize=True)
    matched = score[rows, columns] > 0
    partner[rows[matched]] = columns[matched]
    return partner


def _performance(
    truth_ids: np.ndarray, tested_ids: np.ndarray, partner: np.ndarray, counts: _Counts
) -> Performance:
    """Score the true units with their partners."""
    rows = np.flatnonzero(partner >= 0)
    columns = partner[rows]
    tp = np.zeros(partner.size, dtype=np.int64)
    fp = np.zeros(partner.size, dtype=np.int64)
    tp[rows] = counts.pairs_in_a[rows, columns]
    fp[rows] = counts.num_b[columns] - counts.pairs_in_b[rows, columns]
    fn = counts.num_a - tp
    unmatched = np.setdiff1d(np.arange(counts.num_b.size), columns)
    num_unmatched = int(counts.num_b[unmatched].sum())
    fires = counts.num_a > 0
    units = pd.DataFrame(
        {
            "tested_unit": pd.Series([tested_ids[k] if k >= 0 else None for k in partner], dtype=object),
            "num_truth": counts.num_a,
            "num_tested": tp + fp,
            "tp": tp,
            "fp": fp,
            "fn": fn,
            "accuracy": np.where(fires, tp / np.maximum(tp + fp + fn, 1), np.nan),
            "precision": np.where(fires, tp / np.maximum(tp + fp, 1), np.nan),
            "recall": np.where(fires, tp / np.maximum(tp + fn, 1), np.nan),
        }
    )
    units.index = pd.Index(truth_ids, name="truth_unit")
    num_tp, num_fp, num_fn = int(tp.sum()), int(fp.sum()), int(fn.sum())
    return Performance(
        units=units,
        unmatched_units=tuple(_plain(tested_ids[k]) for k in unmatched),
        num_unmatched_spikes=num_unmatched,
        accuracy=num_tp / (num_tp + num_fp + num_fn),
        precision=num_tp / max(num_tp + num_fp, 1),
        recall=num_tp / (num_tp + num_fn),
        accuracy_all_spikes=num_tp / (num_tp + num_fp + num_fn + num_unmatched),
        common=pd.DataFrame(counts.pairs_in_a, units.index, pd.Index(tested_ids, name="tested_unit")),
    )


def _segment_spikes(sorting: BaseSorting, segment_index: int) -> SpikeTrains:
    """Return the spikes of one segment in order of time."""
    spikes = sorting.to_spike_vector(concatenated=False)[segment_index]
    frame = spikes["sample_index"].astype(np.int64)
    unit_index = spikes["unit_index"].astype(np.int64)
    if np.any(frame[1:] < frame[:-1]):
        order = np.argsort(frame, kind="stable")
        frame, unit_index = frame[order], unit_index[order]
    return SpikeTrains(frame, unit_index)


def _check_sortings(sorting_a: BaseSorting, sorting_b: BaseSorting) -> None:
    """Raise unless both sortings have the same sampling frequency and number of segments."""
    rates = [sorting.sampling_frequency for sorting in (sorting_a, sorting_b)]
    segments = [sorting.get_num_segments() for sorting in (sorting_a, sorting_b)]
    different = None
    if not is_same_rate(*rates):
        different = "sampling frequencies", *map(show_rate, rates)
    elif segments[0] != segments[1]:
        different = "numbers of segments", *map(str, segments)
    if different is not None:
        raise LabelsError(
            f"the two sortings have different {different[0]}: {different[1]} and {different[2]}",
            "they must be of the same recording",
            "check that both come from the recording that is evaluated",
        )


def _segment_windows(
    sorting: BaseSorting, interval: tuple[float, float] | None, num_samples: Sequence[int] | None
) -> list[tuple[float, float]]:
    """Return for each segment the first frame compared and the frame after the last."""
    num_segments = sorting.get_num_segments()
    if interval is None:
        return [(-math.inf, math.inf)] * num_segments
    check_interval(interval, "interval")
    if num_segments > 1 and (num_samples is None or len(num_samples) != num_segments):
        given = "no lengths" if num_samples is None else f"{len(num_samples)} lengths"
        raise SettingError(
            f"an interval in {num_segments} segments needs their lengths, and {given} are given",
            f"num_samples must hold the {num_segments} lengths in frames",
            "pass num_samples, or compare without an interval",
        )
    offsets = np.cumsum([0, *list(num_samples or [])[: num_segments - 1]])
    start, stop = (round(edge * sorting.sampling_frequency) for edge in interval)
    return [(start - int(offset), stop - int(offset)) for offset in offsets[:num_segments]]


def _ratio(numerator: int, denominator: int) -> float:
    return numerator / denominator if denominator else math.nan


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as a Python scalar, and NaN as None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and math.isnan(value) else value
