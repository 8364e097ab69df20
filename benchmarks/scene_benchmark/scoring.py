"""What is counted of a result, against the true spikes of all of the recording.

Conventions
-----------
Spikes match, and units are partners, as in :mod:`spikewise.output.matching` (0.4 ms, agreement of at least
0.5, one to one); these are SpikeInterface's conventions. Reported units without a spike are left out.

- ``accuracy``: tp / (tp + fp + fn), summed over the true units; ``mean_accuracy``: the mean over the units.
- ``units_above_0.8``: true units with an accuracy above 0.8.
- ``units_found``: reported units. ``spurious_units``: those that agree with every true unit by less than 0.2.
- ``twice_percent``: reports of a spike that another unit reports too, in percent of all reports
  (see :func:`count_twice`).
- ``both_found_percent``: of the pairs of true spikes of two units that fire together (scene ``pairs``, at
  most 0.3 ms apart), those of which both spikes are found, each by the partner of its unit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from spikeinterface.core import BaseSorting

from spikewise.core.constants import COINCIDENCE_MS
from spikewise.data.labels.events import match_events
from spikewise.output.matching import Performance, compare_sortings

WELL_FOUND = 0.8
MIN_AGREEMENT = 0.2
"""A reported unit below this agreement with every true unit is spurious."""
BEYOND_CHANCE, MIN_COMMON = 3.0, 3
"""Unexplained spikes of a unit count as reports of another's spikes if they coincide at least so many times,
and so many standard deviations more often than by chance."""


def score(
    truth: BaseSorting, found: BaseSorting, num_samples: int, pairs: list[list[str]], pair_ms: float
) -> dict[str, Any]:
    """Score a result.

    Parameters
    ----------
    truth, found : BaseSorting
        True and reported units.
    num_samples : int
        Length of the recording.
    pairs : list of [str, str]
        Ids of true units that fire together; may be empty.
    pair_ms : float
        Largest distance of two spikes that fire together.

    Returns
    -------
    dict
        The numbers of the head of this module, in JSON types; None for what cannot be said.
    """
    found = found.remove_empty_units()
    performance = compare_sortings(truth, found)
    accuracy = performance.units["accuracy"].dropna()
    agreement = agreements(performance, found)
    best = agreement.max(axis=0, initial=0.0)
    delta = int(COINCIDENCE_MS / 1000 * truth.sampling_frequency)
    true_trains = [truth.get_unit_spike_train(unit_id) for unit_id in truth.unit_ids]
    trains = [found.get_unit_spike_train(unit_id) for unit_id in found.unit_ids]
    owners = np.where(best >= MIN_AGREEMENT, agreement.argmax(axis=0), -1)
    num_reports = sum(map(len, trains))
    twice = count_twice(true_trains, trains, owners, delta, num_samples)
    reach = int(pair_ms / 1000 * truth.sampling_frequency)
    return {
        "accuracy": round(performance.accuracy, 5),
        "mean_accuracy": round(float(accuracy.mean()), 5),
        "units_above_0.8": int((accuracy > WELL_FOUND).sum()),
        "true_units": len(accuracy),
        "units_found": len(found.unit_ids),
        "spurious_units": int((best < MIN_AGREEMENT).sum()),
        "twice_percent": round(100 * twice / num_reports, 4) if num_reports else None,
        "both_found_percent": _both_found(performance, truth, found, pairs, (reach, delta)),
    }


def agreements(performance: Performance, found: BaseSorting) -> np.ndarray:
    """Return tp / (tp + fp + fn) of every true and every reported unit, shape (num_true, num_found)."""
    common = performance.common.to_numpy()
    num_true = performance.units["num_truth"].to_numpy()[:, None]
    counts = found.count_num_spikes_per_unit(outputs="array")
    return common / np.maximum(num_true + counts[None, :] - common, 1)


def count_twice(
    true_trains: list[np.ndarray],
    trains: list[np.ndarray],
    owners: np.ndarray,
    delta: int,
    num_samples: int,
) -> float:
    """Count the reports of spikes that another unit reports too.

    There are two kinds. Two or more units of the same owner report a true spike: all reports but the first
    count. Or a report is no spike of its unit's owner, but coincides with a right report of another unit: so
    look-alikes claim each other's spikes. On many channels such reports also coincide by chance; what chance
    explains does not count.

    Parameters
    ----------
    true_trains, trains : list of ndarray
        Spikes of each true and each reported unit, in samples.
    owners : ndarray of int, shape (num_found,)
        The true unit that each reported unit agrees with best; -1 if it agrees with none.
    delta : int
        Largest distance of a match in samples.
    num_samples : int
        Length of the recording.
    """
    reports = [np.zeros(len(train), dtype=int) for train in true_trains]
    right = [np.zeros(len(train), dtype=bool) for train in trains]
    for train, owner, is_right in zip(trains, owners, right, strict=True):
        if owner >= 0:
            matches = match_events(true_trains[owner], train, delta)
            reports[owner][matches[:, 0]] += 1
            is_right[matches[:, 1]] = True
    twice = float(sum(np.maximum(count - 1, 0).sum() for count in reports))
    explained = [train[is_right] for train, is_right in zip(trains, right, strict=True)]
    for unit, (train, is_right) in enumerate(zip(trains, right, strict=True)):
        wrong = train[~is_right]
        claimed, by_chance = np.zeros(len(wrong), dtype=bool), 0.0
        for other, other_train in enumerate(explained):
            if other == unit or not len(wrong) or not len(other_train):
                continue
            near = match_events(wrong, other_train, delta)[:, 0]
            expected = len(wrong) * len(other_train) * (2 * delta + 1) / num_samples
            if len(near) >= max(MIN_COMMON, expected + BEYOND_CHANCE * np.sqrt(expected)):
                claimed[near] = True
                by_chance += expected
        twice += max(0.0, claimed.sum() - by_chance)
    return twice


def _both_found(
    performance: Performance,
    truth: BaseSorting,
    found: BaseSorting,
    pairs: list[list[str]],
    within: tuple[int, int],
) -> float | None:
    """Return the percentage of synchronous pairs of spikes of which both are found; None without pairs.

    `within` is the largest distance of two synchronous spikes, and that of a match, in samples.
    """
    reach, delta = within
    ids = {str(unit_id): unit_id for unit_id in truth.unit_ids}
    num_events = num_found = 0
    for pair in pairs:
        masks, trains = [], []
        for unit_id in (ids[name] for name in pair):
            train = truth.get_unit_spike_train(unit_id)
            mask = np.zeros(len(train), dtype=bool)
            partner = performance.units.loc[unit_id, "tested_unit"]
            if partner is not None:
                mask[match_events(train, found.get_unit_spike_train(partner), delta)[:, 0]] = True
            masks.append(mask)
            trains.append(train)
        events = match_events(*trains, reach)
        num_events += len(events)
        num_found += int((masks[0][events[:, 0]] & masks[1][events[:, 1]]).sum())
    return round(100 * num_found / num_events, 4) if num_events else None
