"""How far the units of a finished result can be trusted: of Spikewise, or of any other sorter.

The units of another sorter are learnt from its spikes, and the recording is sorted with this model. What is
expected of the model's units follows from added spikes; the spikes that both have then tell how good the
other sorter is. With ``both`` spikes in common, and ``p`` and ``r`` the precision and recall of the model::

    recall = both / (spikes of the model * p)        precision = both / (spikes of the sorter * r)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from spikeinterface.core import BaseRecording, BaseSorting

from spikewise.core.config import Config, RecordingConfig
from spikewise.core.constants import COINCIDENCE_MS
from spikewise.core.errors import SettingError
from spikewise.core.progress import ProgressCallback, silent
from spikewise.data.labels.events import match_events
from spikewise.data.opening import open_labels, open_recording
from spikewise.jobs.sort import sort
from spikewise.output.result import StoredResult, load_result
from spikewise.output.result_groups import groups_of, preparation_of
from spikewise.output.results.sorting_result import SortingResult
from spikewise.output.store import PROVENANCE_FILE
from spikewise.output.trust.intervals import Fraction, combine
from spikewise.output.trust.validating import Validation, validate_units
from spikewise.output.unit_table import ESTIMATE_COLUMNS, GOOD_ACCURACY, USABLE_ACCURACY


@dataclass(frozen=True)
class _Both:
    """Numbers of spikes of a unit: of the other sorter, of the model, and in both."""

    sorter: int
    model: int
    both: int


def validate(
    result: SortingResult | BaseSorting | str | Path,
    recording: BaseRecording | str | Path,
    *,
    seed: int | None = None,
    progress: ProgressCallback = silent,
    **options: Any,
) -> pd.DataFrame:
    """Estimate precision, recall and accuracy of each unit, without any truth.

    Parameters
    ----------
    result : SortingResult, BaseSorting, str or Path
        A result of Spikewise or its output folder; or the sorting of another sorter: an object of
        SpikeInterface, or a path in any format of ``sort(labels=...)``.
    recording : BaseRecording, str or Path
        The recording that was sorted.
    seed : int, optional
        Seed of the added spikes; default: that of the sort.
    progress : callable, optional
        Called with the progress.
    **options
        Settings with which the units of another sorter are learnt, as those of :func:`spikewise.sort`.

    Returns
    -------
    DataFrame
        A row for each unit, in the order of the sorting, with the columns of
        :data:`spikewise.output.unit_table.COLUMNS`.

    Raises
    ------
    SpikewiseError
        If an argument cannot be used; the message says what to do.
    """
    return run_validation(result, recording, seed, progress, options).table


def run_validation(
    result: SortingResult | BaseSorting | str | Path,
    recording: BaseRecording | str | Path,
    seed: int | None,
    progress: ProgressCallback,
    options: dict[str, Any],
) -> Validation:
    """Return all that :func:`validate` finds out: also the suggested changes.

    Those of another sorter have no splits in the curation, since they are of the spikes of the model.
    """
    stored = stored_result(result)
    if stored is None:
        return _validate_other(result, recording, seed or 0, progress, options)
    if options:
        raise SettingError(
            f"the settings {', '.join(options)} are given for a result of Spikewise",
            "settings of learning, for the result of another sorter",
            "leave them out",
        )
    opened, _ = open_recording(recording, stored.reading)
    used = seed_of(stored) if seed is None else seed
    return _validation(stored, opened, used, progress)


def stored_result(result: SortingResult | BaseSorting | str | Path) -> StoredResult | None:
    """Return a result of Spikewise; None if it is of another sorter."""
    if isinstance(result, str | Path):
        return load_result(result, units=False) if (Path(result) / PROVENANCE_FILE).exists() else None
    if isinstance(result, BaseSorting):
        return None
    stored = StoredResult(result.sorting, result.model, result.provenance, motions=result.motions)
    return stored.with_motions_of(result.folder)


def seed_of(stored: StoredResult) -> int:
    """Return the seed of a sort; 0 if its provenance does not tell."""
    settings = (stored.provenance.get("job") or {}).get("settings") or {}
    seed = (settings.get("training") or {}).get("seed", 0)
    return seed if isinstance(seed, int) and seed >= 0 else 0


def _validation(
    stored: StoredResult, recording: BaseRecording, seed: int, progress: ProgressCallback
) -> Validation:
    """Return the validation of a result, whose spikes are found again as in the sort."""
    readers = {group.name: group.reader for group in groups_of(stored, recording)}
    sorting = preparation_of(stored).sorting
    return validate_units(stored, readers, seed=seed, sorting=sorting, progress=progress)


def _validate_other(
    sorting: Any,
    recording: BaseRecording | str | Path,
    seed: int,
    progress: ProgressCallback,
    options: dict[str, Any],
) -> Validation:
    """Return the validation of the units of another sorter."""
    config = Config.from_options(**{"seed": seed, **options})
    opened, _ = open_recording(recording, config.recording if options else RecordingConfig())
    labels, _ = open_labels(sorting, opened)
    if labels is None:
        raise SettingError("there is no result", "a result of Spikewise or of another sorter", "give one")
    learnt = sort(opened, labels=labels, config=config, progress=progress)
    stored = StoredResult(learnt.sorting, learnt.model, learnt.provenance, motions=learnt.motions)
    learnt_units = _validation(stored, opened, seed, progress)
    rows = learnt_units.table.set_index("unit_id")
    found = [
        _of_other(rows.loc[unit_id], _count_both(labels, learnt.sorting, unit_id))
        for unit_id in labels.unit_ids
    ]
    table = pd.DataFrame(found, columns=list(learnt_units.table.columns))
    return replace(learnt_units, table=table, curation={**learnt_units.curation, "splits": []})


def _count_both(sorting: BaseSorting, learnt: BaseSorting, unit_id: int | str) -> _Both:
    """Count the spikes of a unit in both sortings."""
    delta = round(COINCIDENCE_MS * sorting.sampling_frequency / 1000)
    counts = np.zeros(3, dtype=np.int64)
    for segment in range(sorting.get_num_segments()):
        own = sorting.get_unit_spike_train(unit_id, segment_index=segment)
        other = learnt.get_unit_spike_train(unit_id, segment_index=segment)
        counts += len(own), len(other), len(match_events(own, other, delta))
    return _Both(*counts.tolist())


def _of_other(row: pd.Series, counts: _Both) -> dict[str, Any]:
    """Return the row of a unit of another sorter, from that of the model's unit."""
    found: dict[str, Any] = {"unit_id": row.name}
    found |= {str(name): value for name, value in row.items()} | {"num_spikes": counts.sorter}
    own_precision, own_recall = row["estimated_precision"], row["estimated_recall"]
    if not (own_precision > 0 and own_recall > 0 and counts.model and counts.sorter):
        found |= dict.fromkeys(ESTIMATE_COLUMNS, np.nan)
        return {**found, "verdict": "poor", "reason": "it could not be learnt"}
    weight = max(1.0, float(min(row["num_added"], counts.sorter)))
    recall = Fraction.of(min(1.0, counts.both / (counts.model * own_precision)), weight)
    precision = Fraction.of(min(1.0, counts.both / (counts.sorter * own_recall)), weight)
    values = {
        "accuracy": combine(precision, recall),
        "precision": (precision.value, *precision.interval()),
        "recall": (recall.value, *recall.interval()),
    }
    for name, numbers in values.items():
        for end, number in zip(("", "_low", "_high"), numbers, strict=True):
            found[f"estimated_{name}{end}"] = number
    accuracy = values["accuracy"][0]
    verdict = "good" if accuracy >= GOOD_ACCURACY else "usable" if accuracy >= USABLE_ACCURACY else "poor"
    reason = f"{1 - precision.value:.0%} false spikes; {1 - recall.value:.0%} missed spikes"
    return {**found, "verdict": verdict, "reason": reason}
