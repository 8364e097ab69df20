"""Changes that would probably make a result better: units to merge, to remove, and to split.

Units that are probably parts of one neuron (:mod:`.evidence`) are merged, copies of other units removed, and
units that are probably two neurons (:mod:`.mixtures`) split. The gain of a change is what it adds to the mean
expected accuracy of the units concerned. The changes are also written as a curation in SpikeInterface's
format, so that other tools apply them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse.csgraph import connected_components

from spikewise.core.constants import REFRACTORY_MS
from spikewise.output.trust.estimates import UnitEstimate
from spikewise.output.trust.evidence import Evidence
from spikewise.output.trust.intervals import accuracy_of
from spikewise.output.trust.mixtures import Mixture
from spikewise.output.trust.relations import Relations
from spikewise.output.trust.trial import Trial
from spikewise.output.unit_table import SUGGESTION_COLUMNS

_LEAST_PROBABILITY = 0.5
"""Changes are suggested from this probability on."""
_CLEAR_DISTANCE = 0.1
"""A smaller distance of two waveforms, in standard deviations of the noise, is not told. Chosen by hand."""
_FEW_BY_CHANCE = 1.0
"""With fewer pairs of spikes by chance, two units hardly fire at the same time. Chosen by hand."""


@dataclass(frozen=True)
class Suggestion:
    """A change of a result.

    Attributes
    ----------
    change : str
        ``merge``, ``remove`` or ``split``.
    units : tuple of int
        Units that it concerns, the one with most spikes first; of ``remove`` the copy first, then the unit
        whose copy it is.
    probability : float
        That it is right.
    accuracy_before, accuracy_after : float
        Mean expected accuracy of the units concerned, and of the units that it leaves.
    reason : str
        Why, in words.
    second_spikes : ndarray or None
        Of a split, the spikes that become the second unit: their indices within the unit, over all segments.
    """

    change: str
    units: tuple[int, ...]
    probability: float
    accuracy_before: float
    accuracy_after: float
    reason: str
    second_spikes: np.ndarray | None = None

    def row(self, unit_ids: Sequence[int | str]) -> dict[str, Any]:
        """Return the row of the table, with the ids of the units."""
        return {
            "change": self.change,
            "unit_ids": " ".join(str(unit_ids[unit]) for unit in self.units),
            "probability": self.probability,
            "accuracy_before": self.accuracy_before,
            "accuracy_after": self.accuracy_after,
            "gain": self.accuracy_after - self.accuracy_before,
            "reason": self.reason,
        }


def suggest(
    estimates: Sequence[UnitEstimate | None],
    trial: Trial,
    counts: np.ndarray,
    relations: Relations,
    unit_ids: Sequence[int | str],
) -> list[Suggestion]:
    """Return the changes that are probably right, those of the units of one group.

    Parameters
    ----------
    estimates : sequence of UnitEstimate or None
    trial : Trial
    counts : ndarray
        (num_units,) number of spikes of each unit.
    relations : Relations
    unit_ids : sequence of int or str
        Ids of the units, for the reasons.
    """
    accuracies = np.array([0.0 if one is None else one.accuracy[0] for one in estimates])
    found = [
        _removal(unit, int(relations.copy_of[unit]), accuracies, relations, unit_ids)
        for unit in np.flatnonzero(relations.copy_of >= 0).tolist()
    ]
    merged = _sets_of_parts(relations)
    found += [_merge(units, estimates, trial, counts, relations) for units in merged]
    changed = {unit for units in merged for unit in units}
    changed.update(np.flatnonzero(relations.copy_of >= 0).tolist())
    for unit, mixture in relations.mixtures.items():
        if mixture.probability >= _LEAST_PROBABILITY and unit not in changed:
            found.append(_split(unit, mixture, estimates[unit]))
    return found


def _sets_of_parts(relations: Relations) -> list[tuple[int, ...]]:
    """Return the sets of units that are probably one neuron; copies are left out."""
    linked = relations.parts >= _LEAST_PROBABILITY
    is_copy = relations.copy_of >= 0
    linked[is_copy] = linked[:, is_copy] = False
    _, of_unit = connected_components(linked, directed=False)
    sets = [tuple(np.flatnonzero(of_unit == one).tolist()) for one in range(of_unit.max(initial=-1) + 1)]
    return [units for units in sets if len(units) > 1]


def _removal(
    unit: int,
    original: int,
    accuracies: np.ndarray,
    relations: Relations,
    unit_ids: Sequence[int | str],
) -> Suggestion:
    shared = float(relations.shared[unit, original])
    reason = f"{shared:.0%} of its spikes are those of unit {unit_ids[original]}, found twice"
    before, after = float(accuracies[[unit, original]].mean()), float(accuracies[original])
    return Suggestion("remove", (unit, original), shared, before, after, reason)


def _merge(
    units: tuple[int, ...],
    estimates: Sequence[UnitEstimate | None],
    trial: Trial,
    counts: np.ndarray,
    relations: Relations,
) -> Suggestion:
    """Return the merge of some units. If they are two neurons, spikes of the smaller ones become false."""
    ordered = tuple(sorted(units, key=lambda unit: (-counts[unit], unit)))
    evidence = [
        relations.evidence[pair]
        for pair in ((a, b) for a in sorted(units) for b in sorted(units) if a < b)
        if relations.parts[pair] >= _LEAST_PROBABILITY
    ]
    probability = min(one.probability for one in evidence)
    precision = np.array([1.0 if (one := estimates[u]) is None else one.precision.value for u in ordered])
    right = float((precision * counts[list(ordered)]).sum())
    total = max(float(counts[list(ordered)].sum()), 1.0)
    recall = _common_recall(ordered, trial)
    as_one = accuracy_of(right / total, recall)
    as_two = accuracy_of(float(precision[0] * counts[ordered[0]]) / total, recall)
    before = float(np.mean([0.0 if (one := estimates[u]) is None else one.accuracy[0] for u in units]))
    after = probability * as_one + (1 - probability) * as_two
    weakest = min(evidence, key=lambda one: one.probability)
    return Suggestion("merge", ordered, probability, before, after, _why_one(weakest))


def _common_recall(units: tuple[int, ...], trial: Trial) -> float:
    """Return the fraction of the added spikes of some units that any of them found."""
    added = np.isin(trial.injected.unit_index, units)
    found = int(np.count_nonzero(trial.is_found & added))
    chosen = list(units)
    taken = int(trial.takes[np.ix_(chosen, chosen)].sum())
    return min(1.0, (found + taken) / max(1, int(np.count_nonzero(added))))


def _why_one(evidence: Evidence) -> str:
    shapes = "their waveforms are the same within the noise"
    if evidence.distance >= _CLEAR_DISTANCE:
        shapes = (
            f"their waveforms are the same but for {evidence.distance:.1f} standard deviations of the noise"
        )
    if evidence.by_chance < _FEW_BY_CHANCE:
        return f"{shapes}; they hardly fire at the same time"
    return f"{shapes}; {_pairs(evidence)}"


def _pairs(evidence: Evidence) -> str:
    are = "pair of their spikes is" if evidence.pairs == 1 else "pairs of their spikes are"
    return (
        f"{evidence.pairs} {are} closer than {REFRACTORY_MS:g} ms, "
        f"{evidence.by_chance:.1f} would be by chance if they were two neurons"
    )


def _split(unit: int, mixture: Mixture, estimate: UnitEstimate | None) -> Suggestion:
    """Return the split of a unit; if it is one neuron, each part would have only a share of its spikes."""
    precision = 1.0 if estimate is None else estimate.precision.value
    recall = 1.0 if estimate is None else estimate.recall.value
    larger, smaller = 1 - mixture.smaller_share, mixture.smaller_share
    pure = min(1.0, precision / max(1 - mixture.probability * smaller, 1e-9))
    as_one = float(np.mean([accuracy_of(pure, recall * share) for share in (larger, smaller)]))
    after = mixture.probability * accuracy_of(pure, recall) + (1 - mixture.probability) * as_one
    before = accuracy_of(precision, recall)
    reason = (
        f"its spikes have two shapes, {larger:.0%} and {smaller:.0%} of them, "
        f"{mixture.evidence.distance:.1f} standard deviations of the noise apart; {_pairs(mixture.evidence)}"
    )
    second = np.flatnonzero(np.concatenate(mixture.is_second)) if mixture.is_whole else None
    return Suggestion("split", (unit,), mixture.probability, before, after, reason, second)


def table_of(suggestions: Sequence[Suggestion], unit_ids: Sequence[int | str]) -> pd.DataFrame:
    """Return the table of the changes, the largest gain first; `unit_ids` are those of the result."""
    ordered = sorted(suggestions, key=lambda one: (one.accuracy_before - one.accuracy_after, one.units))
    return pd.DataFrame([one.row(unit_ids) for one in ordered], columns=list(SUGGESTION_COLUMNS))


def as_curation(suggestions: Sequence[Suggestion], unit_ids: Sequence[int | str]) -> dict[str, Any]:
    """Return the changes as a curation in SpikeInterface's format, in JSON types.

    A split of a recording too long to be read as a whole is left out.

    Parameters
    ----------
    suggestions : sequence of Suggestion
    unit_ids : sequence of int or str
        Ids of all units of the result; the suggestions index them.
    """
    ids = [unit_id if isinstance(unit_id, str) else int(unit_id) for unit_id in unit_ids]
    splits = [
        {"unit_id": ids[one.units[0]], "mode": "indices", "indices": [one.second_spikes.tolist()]}
        for one in suggestions
        if one.second_spikes is not None
    ]
    return {
        "format_version": "2",
        "unit_ids": ids,
        "label_definitions": {"quality": {"label_options": ["good", "noise", "MUA"], "exclusive": True}},
        "manual_labels": [],
        "removed": [ids[one.units[0]] for one in suggestions if one.change == "remove"],
        "merges": [{"unit_ids": [ids[u] for u in one.units]} for one in suggestions if one.change == "merge"],
        "splits": splits,
    }
