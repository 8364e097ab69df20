"""A finished sort, read back from its folder and checked.

The folder is that of :mod:`spikewise.output.store`. Its sorting, model and provenance must come from the same
sort; otherwise a report could describe the wrong result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from spikeinterface.core import BaseSorting
from spikeinterface.core.motion import Motion

from spikewise.core.config import RecordingConfig
from spikewise.core.errors import OutputError
from spikewise.core.rates import is_same_rate
from spikewise.core.untrusted import read_json
from spikewise.data.labels.label_files import load_sorting
from spikewise.data.labels.label_set import with_rate
from spikewise.models.checkpoint import Model, load_model
from spikewise.output.motions import load_motions, load_uncertainty_um
from spikewise.output.store import MODEL_FILE, PROVENANCE_FILE, SORTING_FOLDER, spikes_hash
from spikewise.output.unit_table import read_suggestions, read_units

_NUMBER = (int, float)
_REQUIRED_FACTS: dict[str, type | tuple[type, ...]] = {
    "spikewise_version": str,
    "versions": dict,
    "machine": dict,
    "config.detection": dict,
    "preprocessing": dict,
    "recording.sampling_frequency": _NUMBER,
    "recording.num_channels": int,
    "recording.num_samples": list,
    "model.hash": str,
    "result.spikes_hash": str,
    "seconds.recorded": _NUMBER,
    "seconds.learning": _NUMBER,
    "seconds.sorting": _NUMBER,
    "real_time_factor": _NUMBER,
}
"""Entries that every provenance must have, and their types."""

_FINDERS = {
    "spikewise": "Spikewise",
    "lupin": "Lupin",
    "tridesclous2": "Tridesclous2",
    "spykingcircus2": "SpyKING CIRCUS 2",
    "kilosort4": "Kilosort4",
}
"""Names of the sorters that find units, as people write them."""


@dataclass(frozen=True)
class StoredResult:
    """A finished sort.

    Attributes
    ----------
    sorting : BaseSorting
        The spikes. Its units are those of the model, in the same order.
    model : Model
        The model that found the spikes.
    provenance : dict
        Settings, versions, hashes, seeds and timings; JSON types only.
    units : DataFrame or None
        How far each unit can be trusted, and its usual measures; None if it was not estimated.
    motions : dict of str to Motion
        The motion of each group that was removed from its traces.
    motion_uncertainty_um : dict of str to list of ndarray
        The uncertainty of these motions where it is known: for each segment, in the shape of the motion.
    suggestions : DataFrame or None
        Changes that would probably make the result better; None if they are not known.
    """

    sorting: BaseSorting
    model: Model
    provenance: dict[str, Any]
    units: pd.DataFrame | None = None
    motions: dict[str, Motion] = field(default_factory=dict)
    motion_uncertainty_um: dict[str, list[np.ndarray]] = field(default_factory=dict)
    suggestions: pd.DataFrame | None = None

    def with_motions_of(self, folder: Path | None) -> StoredResult:
        """Return the result with the motions that the folder of a sort holds."""
        if folder is None:
            return self
        names = [group.name for group in self.model.groups]
        motions = load_motions(folder, names, len(self.num_samples))
        return replace(self, motions=motions, motion_uncertainty_um=load_uncertainty_um(folder, motions))

    def with_parts_of(self, folder: Path | None) -> StoredResult:
        """Return the result with the motions and the tables that the folder of a sort holds.

        Raises
        ------
        OutputError
            If the table is damaged, or of another result.
        """
        if folder is None:
            return self
        units = read_units(folder, self.model.unit_ids)
        return replace(self.with_motions_of(folder), units=units, suggestions=read_suggestions(folder))

    def with_names_of_recording(self) -> StoredResult:
        """Return the result with a model that names the channels as the recording does.

        A model may have been learnt on another recording, which named the channels of its probe otherwise.
        """
        names = self.provenance["recording"].get("channel_ids")
        if not isinstance(names, dict) or not all(isinstance(ids, list) for ids in names.values()):
            return self  # of an earlier version
        return replace(self, model=self.model.with_channel_ids(names))

    @property
    def num_samples(self) -> list[int]:
        """Number of samples of each segment of the recording."""
        return self.provenance["recording"]["num_samples"]

    @property
    def model_was_given(self) -> bool:
        """Whether the sort used a model that was trained before; its labels are then of another recording."""
        return bool(self.provenance["model"].get("given", False))

    @property
    def label_interval_s(self) -> tuple[float, float] | None:
        """Start and end of the labels in this recording; None if they are of another recording or unknown."""
        if self.model_was_given:
            return None
        interval = (self.provenance.get("labels") or {}).get("interval_s")
        return None if interval is None else (float(interval[0]), float(interval[1]))

    @property
    def reading(self) -> RecordingConfig:
        """How the recording is opened again: with the clock that the sort used."""
        settings = self.provenance["config"].get("recording")
        used = settings.get("clock") if isinstance(settings, dict) else None
        return RecordingConfig(clock="ignore" if used == "ignore" else "auto")

    def noise_ratio(self, group: str) -> float:
        """Return the noise of the recording in a group, as a multiple of that of the model's training.

        The traces are in units of the noise of the training.
        """
        ratios = self.provenance.get("noise_ratio")
        ratio = ratios.get(group) if isinstance(ratios, dict) else None
        return float(ratio) if isinstance(ratio, int | float) and ratio > 0 else 1.0

    @property
    def one_threshold(self) -> float | None:
        """The threshold that the user set for all units; None if each unit has its own from the model."""
        return self.provenance["config"]["detection"].get("threshold")

    @property
    def num_labels_of_units(self) -> list[int] | None:
        """Number of labelled spikes that trained each unit, in the order of the units; None if unknown."""
        groups = self.model.facts.get("groups")
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            return None
        parts = [group.get("num_labels_of_units") for group in groups]
        counts = [count for part in parts if isinstance(part, list) for count in part]
        is_known = len(counts) == len(self.model.unit_ids) and all(_is_a(count, int) for count in counts)
        return counts if is_known else None

    @property
    def trainings(self) -> list[dict[str, Any]]:
        """Facts about the training of each group for which the model stores the losses."""
        groups = self.model.facts.get("groups")
        return [group for group in groups if _has_losses(group)] if isinstance(groups, list) else []


def finder_of(source: str) -> str | None:
    """Return the name of the sorter that found the units without labels, from the source of the labels.

    None if the labels were given.
    """
    kind, _, sorter = source.partition(" ")
    return _FINDERS.get(sorter, sorter) if kind == "bootstrap" else None


def load_result(folder: Path | str, *, units: bool = True) -> StoredResult:
    """Read what ``spikewise sort`` wrote.

    Parameters
    ----------
    folder : Path or str
        The output folder of a sort.
    units : bool
        Whether to read the table of units, if there is one.

    Returns
    -------
    StoredResult

    Raises
    ------
    OutputError
        If the folder is not a result, or a part of it is missing, damaged, or from another result. The table
        of units may be missing.
    LabelsError
        If its sorting cannot be read.
    CheckpointError
        If its model cannot be read.
    """
    folder = Path(folder)
    parts = (SORTING_FOLDER, MODEL_FILE, PROVENANCE_FILE)
    missing = [name for name in parts if not (folder / name).exists()]
    if missing:
        what = "does not exist" if not folder.exists() else f"has no {', '.join(missing)}"
        raise OutputError(
            f"the result {folder} {what}",
            f"the output folder of `spikewise sort`, which holds {', '.join(parts)}",
            "check the path, or sort again",
        )
    provenance = _read_provenance(folder / PROVENANCE_FILE)
    result = StoredResult(load_sorting(folder / SORTING_FOLDER), load_model(folder / MODEL_FILE), provenance)
    _check_together(result, folder)
    result = result.with_parts_of(folder) if units else result.with_motions_of(folder)
    rate = float(provenance["recording"]["sampling_frequency"])
    if result.sorting.sampling_frequency != rate:  # of an earlier version, which wrote the rate of the model
        return replace(result, sorting=with_rate(result.sorting, rate))
    return result


def _read_provenance(path: Path) -> dict[str, Any]:
    try:
        provenance = read_json(path)
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(provenance, dict):
        raise _damaged(path, f"it holds a {type(provenance).__name__}, not an object")
    for name, kind in _REQUIRED_FACTS.items():
        if not _is_a(_look_up(provenance, name), kind):
            raise _damaged(path, f"{name} is missing or of a wrong type")
    lengths = provenance["recording"]["num_samples"]
    if not lengths or not all(_is_a(length, int) and length > 0 for length in lengths):
        raise _damaged(path, f"recording.num_samples is {lengths!r}")
    threshold = provenance["config"]["detection"].get("threshold")
    if threshold is not None and not _is_a(threshold, _NUMBER):
        raise _damaged(path, f"config.detection.threshold is {threshold!r}")
    labels = provenance.get("labels")
    if labels is not None and not _are_labels(labels):
        raise _damaged(path, f"labels is {labels!r}")
    if not _is_damage(provenance.get("damage")):
        raise _damaged(path, "damage is of a wrong type")
    return provenance


def _look_up(facts: dict[str, Any], dotted: str) -> Any:
    """Return the value at a dotted name such as ``model.hash``; None if there is none."""
    value: Any = facts
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _is_a(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Return whether a JSON value has a type; booleans and non-finite numbers count as no type."""
    if isinstance(value, bool) or (isinstance(value, float) and not math.isfinite(value)):
        return False
    return isinstance(value, kind)


def _are_labels(labels: Any) -> bool:
    """Return whether this is a valid record of labels: a source, and an interval with start before end."""
    if not isinstance(labels, dict) or not isinstance(labels.get("source", ""), str):
        return False
    interval = labels.get("interval_s")
    if interval is None:
        return True
    is_pair = isinstance(interval, list) and len(interval) == 2 and all(_is_a(t, _NUMBER) for t in interval)
    return is_pair and interval[0] < interval[1]


def _is_damage(damage: Any) -> bool:
    """Return whether this is a valid record of damaged stretches, or None."""
    if damage is None:
        return True
    if not isinstance(damage, dict) or not isinstance(damage.get("stretches"), list):
        return False
    counts = all(_is_a(damage.get(name), int) for name in ("num_stretches", "num_dropped"))
    kinds = (one.get("kind") if isinstance(one, dict) else None for one in damage["stretches"])
    return counts and _is_a(damage.get("seconds"), _NUMBER) and all(isinstance(kind, str) for kind in kinds)


def _has_losses(group: Any) -> bool:
    """Return whether this is a valid record of a training: a loss or None of each epoch, and the best one."""
    if not isinstance(group, dict):
        return False
    train, held_out, best = group.get("train_loss"), group.get("held_out_loss"), group.get("best_epoch")
    if not isinstance(train, list) or not isinstance(held_out, list) or not isinstance(best, int):
        return False
    return 0 <= best < len(held_out) and all(v is None or _is_a(v, _NUMBER) for v in train + held_out)


def _check_together(result: StoredResult, folder: Path) -> None:
    """Raise unless sorting, model and provenance come from the same sort."""
    facts = result.provenance
    sorted_ids, model_ids = (list(map(str, part.unit_ids)) for part in (result.sorting, result.model))
    if sorted_ids != model_ids:
        different = "units of the sorting are not those of the model"
    elif spikes_hash(result.sorting) != facts["result"]["spikes_hash"]:
        different = f"spikes are not those that {PROVENANCE_FILE} describes"
    elif not is_same_rate(result.sorting.sampling_frequency, facts["recording"]["sampling_frequency"]):
        different = f"sampling frequency of the sorting is not that of {PROVENANCE_FILE}"
    elif result.sorting.get_num_segments() != len(result.num_samples):
        different = f"number of segments of the sorting is not that of {PROVENANCE_FILE}"
    else:
        return
    raise OutputError(
        f"the parts of the result {folder} do not belong together: the {different}",
        "a folder as `spikewise sort` wrote it",
        "copy the original folder again, or sort again",
    )


def _damaged(path: Path, reason: str) -> OutputError:
    return OutputError(
        f"the file {path} is damaged or not from Spikewise: {reason}",
        "the provenance that `spikewise sort` wrote",
        "copy the original result again, or sort again",
    )
