"""How far each unit of a result can be trusted, measured on its own recording: start reading here.

:func:`validate_units` takes some stretches of the recording (:mod:`.stretches`), measures the shape of each
unit (:mod:`.shapes`), adds known spikes (:mod:`.injection`), sorts the stretches again and counts
(:mod:`.trial`), compares the units with each other (:mod:`.relations`), and estimates precision, recall and
accuracy (:mod:`.estimates`), and of each spike the probability (:mod:`.probability`). It suggests units to
merge, remove and split (:mod:`.suggestions`). The same seed gives the same numbers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from spikewise.core.config import Config, SortingConfig
from spikewise.core.files import replacing
from spikewise.core.progress import TRUST, ProgressCallback, silent
from spikewise.core.seeds import stage_generator
from spikewise.data.recordings.reader import TraceReader
from spikewise.output.measures import UnitMeasures, measure_units, spike_trains
from spikewise.output.result import StoredResult
from spikewise.output.trust.estimates import UnitEstimate, estimate_units
from spikewise.output.trust.injection import plan_injection
from spikewise.output.trust.mixtures import find_mixtures
from spikewise.output.trust.probability import Calibration, calibrate
from spikewise.output.trust.relations import Relations, relate_units
from spikewise.output.trust.shapes import UnitShape, channels_near, measure_shapes
from spikewise.output.trust.stretches import Stretch, TrainsOfGroup, choose_stretches
from spikewise.output.trust.suggestions import Suggestion, as_curation, suggest, table_of
from spikewise.output.trust.trial import Trial, run_trial
from spikewise.output.trust.verdicts import judge
from spikewise.output.unit_table import COLUMNS, PROBABILITIES_FILE, store_suggestions, store_units
from spikewise.sorting.owner.group_finder import GroupFinder

logger = logging.getLogger(__name__)

_SPIKES_AT_ONCE = 2**20
"""Spikes whose probabilities are computed at once; it bounds the memory. Chosen by hand."""
FEWEST_IN_PART = 10
"""With fewer added spikes in a part of the recording, or of one size, no recall is given. Chosen by hand."""


@dataclass(frozen=True)
class Validation:
    """How far the units of a result can be trusted.

    Attributes
    ----------
    table : DataFrame
        A row for each unit, in the order of the sorting; the columns are those of
        :data:`spikewise.output.unit_table.COLUMNS`.
    calibrations : list of Calibration
        For each group of the model.
    suggestions : DataFrame
        Changes that would probably make the result better; the columns are those of
        :data:`spikewise.output.unit_table.SUGGESTION_COLUMNS`.
    curation : dict
        The same changes in SpikeInterface's format, in JSON types.
    """

    table: pd.DataFrame
    calibrations: list[Calibration]
    suggestions: pd.DataFrame
    curation: dict[str, Any]

    def probabilities(self, unit_index: np.ndarray, responses: np.ndarray) -> np.ndarray:
        """Return the probabilities (num_spikes,) that spikes are right; NaN for a unit without estimate."""
        found = np.full(len(unit_index), np.nan, dtype=np.float32)
        first = 0
        for calibration in self.calibrations:
            units = unit_index - first
            here = (units >= 0) & (units < len(calibration.thresholds))
            found[here] = calibration.of(units[here], responses[here])
            first += len(calibration.thresholds)
        return found


def validate_units(
    result: StoredResult,
    readers: Mapping[str, TraceReader],
    *,
    seed: int = 0,
    sorting: SortingConfig | None = None,
    progress: ProgressCallback = silent,
) -> Validation:
    """Estimate precision, recall and accuracy of each unit of a result.

    Parameters
    ----------
    result : StoredResult
    readers : mapping of str to TraceReader
        The preprocessed traces of each group of the model, as they were sorted.
    seed : int
        Seed of the added spikes.
    sorting : SortingConfig, optional
        Its `explain`, `device`, `sparse` and `precision`, as in the sort.
    progress : callable
        Called with the stretches that are done, and all of them.

    Returns
    -------
    Validation

    Raises
    ------
    RecordingError
        If the traces cannot be read.
    """
    measures, _ = measure_units(result, None)
    frames = spike_trains(result.sorting)
    stretches = choose_stretches(result.num_samples, result.sorting.sampling_frequency)
    rows: list[dict[str, Any]] = []
    calibrations: list[Calibration] = []
    suggestions: list[Suggestion] = []
    done, steps = 0, 2 * len(stretches) * len(result.model.groups)

    def report() -> None:
        nonlocal done
        done += 1
        progress(TRUST, done, steps, "")

    progress(TRUST, 0, steps, "")
    for group in result.model.groups:
        units = slice(len(rows), len(rows) + len(group.unit_ids))
        trains = TrainsOfGroup(frames[units], result.sorting.sampling_frequency)
        generator = stage_generator(seed, f"trust of group {group.name}")
        reader = readers[group.name]
        shapes = measure_shapes(reader, trains, stretches, channels_near(group), generator, report)
        injected = plan_injection(shapes, trains, stretches, generator)
        finder = GroupFinder(group, result.model, sorting or SortingConfig(), result.one_threshold)
        trial = run_trial(finder.find, reader, shapes, trains, injected, stretches, report)
        mixtures = find_mixtures(reader, trains, shapes, stretches, result.num_samples)
        relations = relate_units(shapes, trains, reader.num_channels, mixtures)
        estimates = estimate_units(trial, trains, relations, result.num_samples)
        calibrations.append(calibrate(trial, trains.counts(), finder.thresholds, estimates))
        found = suggest(estimates, trial, trains.counts(), relations, group.unit_ids)
        suggestions += [replace(one, units=tuple(units.start + unit for unit in one.units)) for one in found]
        for unit, (estimate, shape) in enumerate(zip(estimates, shapes, strict=True)):
            change = np.nan if shape is None else shape.change
            verdict, reason = judge(estimate, unit, group.unit_ids, relations, float(np.nan_to_num(change)))
            row = _row(measures[units][unit], estimate, shape, _parts(trial, unit, stretches))
            row |= _changes(unit, found, relations, group.unit_ids)
            rows.append({**row, "verdict": verdict, "reason": reason})
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    labels = result.num_labels_of_units
    if labels is not None:
        table = table.assign(num_labels=labels)
    ids = result.model.unit_ids
    return Validation(table, calibrations, table_of(suggestions, ids), as_curation(suggestions, ids))


def units_of_sort(
    result: StoredResult,
    readers: Mapping[str, TraceReader],
    responses: Path,
    folder: Path,
    config: Config,
    progress: ProgressCallback,
) -> Validation | None:
    """Estimate how good units and spikes of a sort are, and write it into its folder.

    `responses` is a .npy file of the responses of the spikes, in their order.

    The sort is finished, so an error only logs a warning, and Ctrl-C only skips the table.
    """
    started = time.perf_counter()
    try:
        found = validate_units(
            result, readers, seed=config.training.seed, sorting=config.sorting, progress=progress
        )
        store_units(found.table, folder)
        store_suggestions(found.suggestions, found.curation, folder)
        _store_probabilities(found, result, responses, folder)
    except (Exception, KeyboardInterrupt) as error:  # the finished sort must survive any error here
        logger.debug("the table of units failed", exc_info=True)
        logger.warning(
            "the table of units was left out: %s. The sort is complete; "
            "make the table with: spikewise validate OUT --recording RECORDING",
            "interrupted" if isinstance(error, KeyboardInterrupt) else str(error).rstrip("."),
        )
        return None
    logger.info("table of %d units: %.1f s", len(found.table), time.perf_counter() - started)
    return found


def _store_probabilities(found: Validation, result: StoredResult, responses: Path, folder: Path) -> None:
    """Write the probability of each spike, a part of the spikes at a time."""
    spikes = result.sorting.to_spike_vector()
    of_spikes = np.load(responses, mmap_mode="r", allow_pickle=False) if len(spikes) else np.empty(0)
    with replacing(folder / PROBABILITIES_FILE) as partial, partial.open("wb") as opened:
        header = {"descr": "<f4", "fortran_order": False, "shape": (len(spikes),)}
        np.lib.format.write_array_header_1_0(opened, header)
        for first in range(0, len(spikes), _SPIKES_AT_ONCE):
            part = slice(first, first + _SPIKES_AT_ONCE)
            units = spikes["unit_index"][part].astype(np.int64)
            opened.write(found.probabilities(units, np.asarray(of_spikes[part])).tobytes())


def _changes(
    unit: int, suggestions: Sequence[Suggestion], relations: Relations, unit_ids: Sequence[int | str]
) -> dict[str, Any]:
    """Return the columns of a unit that tell of merges and splits."""
    partners = [
        str(unit_ids[other])
        for one in suggestions
        if one.change == "merge" and unit in one.units
        for other in one.units
        if other != unit
    ]
    mixture = relations.mixtures.get(unit)
    return {
        "merge_with": " ".join(partners),
        "split_probability": 0.0 if mixture is None else mixture.probability,
    }


def _parts(trial: Trial, unit: int, stretches: Sequence[Stretch]) -> dict[str, float]:
    """Return the recall of small and large spikes, and of the first, second and last third of the recording.

    Small spikes are those with less than the median amplitude of the spikes that were added.
    """
    own = trial.injected.unit_index == unit
    amplitude, found = trial.injected.amplitude[own], trial.is_found[own]
    order = np.array([(s.segment_index, s.start) for s in stretches])
    thirds = [part[0] for part in np.array_split(order, 3) if len(part)]
    place = np.column_stack([trial.injected.segment_index[own], trial.injected.sample_index[own]])
    third = np.zeros(len(place), dtype=np.int64)
    for segment, start in thirds[1:]:
        third += (place[:, 0] > segment) | ((place[:, 0] == segment) & (place[:, 1] >= start))
    is_large = amplitude >= (np.median(amplitude) if len(amplitude) else 0)
    chosen = {"recall_small_spikes": ~is_large, "recall_large_spikes": is_large}
    chosen |= {f"recall_{name}": third == part for part, name in enumerate(("start", "middle", "end"))}
    return {
        name: float(found[part].mean()) if np.count_nonzero(part) >= FEWEST_IN_PART else np.nan
        for name, part in chosen.items()
    }


def _row(
    measures: UnitMeasures, estimate: UnitEstimate | None, shape: UnitShape | None, parts: dict[str, float]
) -> dict[str, Any]:
    """Return a row of the table, without the verdict."""
    row: dict[str, Any] = {
        "unit_id": measures.unit_id,
        "group": measures.group.name,
        "num_spikes": measures.num_spikes,
        "snr": None if shape is None else shape.peak,
        "amplitude_change": None if shape is None else shape.change,
        "rate_hz": measures.rate_hz,
        "presence_ratio": measures.presence_ratio,
        "violations_percent": measures.violations_percent,
        "violations_ratio": measures.violations_ratio,
        "threshold": measures.threshold,
        "num_added": 0 if estimate is None else estimate.num_injected,
        **parts,
    }
    if estimate is None:
        return row
    intervals = {
        "accuracy": estimate.accuracy,
        "precision": (estimate.precision.value, *estimate.precision.interval()),
        "recall": (estimate.recall.value, *estimate.recall.interval()),
    }
    for name, values in intervals.items():
        for end, value in zip(("", "_low", "_high"), values, strict=True):
            row[f"estimated_{name}{end}"] = value
    return row
