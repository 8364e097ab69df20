"""The tables of a result: how far each unit can be trusted, and changes that would make the result better.

``units.csv`` has a row for each unit, in the order of the sorting. Accuracy, precision and recall are
estimates (:mod:`spikewise.output.trust`) with the ends of their 90 % intervals; they are empty where nothing
could be measured. Accuracy is ``tp / (tp + fp + fn)``. ``suggestions.csv`` has a row for each change.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from spikeinterface.core import BaseSorting

from spikewise.core.errors import OutputError
from spikewise.core.files import check_output_file, replacing, save_json, writing
from spikewise.data.labels.label_set import make_ordered_sorting

UNITS_FILE = "units.csv"
SUGGESTIONS_FILE = "suggestions.csv"
"""Changes that would probably make the result better: units to merge, to remove and to split."""
SUGGESTED_CURATION_FILE = "suggestions.json"
"""The same as a curation in SpikeInterface's format."""
SUGGESTION_COLUMNS = (
    "change",
    "unit_ids",
    "probability",
    "accuracy_before",
    "accuracy_after",
    "gain",
    "reason",
)
CHANGES = ("merge", "remove", "split")
PROBABILITIES_FILE = "probabilities.npy"
"""The probability (num_spikes,) that each spike is right, in the order of the sorting's spike vector."""
_MARK = "provenance.json"
"""A folder that holds this file is a result of Spikewise."""
Keep = Literal["all", "usable", "good"]
"""Which units an export keeps; ``usable``: those that are good or usable."""
VERDICTS = ("good", "usable", "poor")
"""``good``: expected accuracy of 0.9 or more; ``usable``: of 0.6 or more; ``poor``: less, or unknown."""
GOOD_ACCURACY, USABLE_ACCURACY = 0.9, 0.6
_ESTIMATES = ("estimated_accuracy", "estimated_precision", "estimated_recall")
ESTIMATE_COLUMNS = tuple(name + end for name in _ESTIMATES for end in ("", "_low", "_high"))
NUMBER_COLUMNS = (
    *ESTIMATE_COLUMNS,
    "recall_small_spikes",
    "recall_large_spikes",
    "recall_start",
    "recall_middle",
    "recall_end",
    "amplitude_change",
    "snr",
    "rate_hz",
    "presence_ratio",
    "violations_percent",
    "violations_ratio",
    "num_labels",
    "threshold",
    "num_added",
    "split_probability",
)
"""Columns of numbers; fractions are 0 to 1."""
COLUMNS = ("unit_id", "group", "num_spikes", *NUMBER_COLUMNS, "merge_with", "verdict", "reason")
_LATER: dict[str, float | str] = {"split_probability": np.nan, "merge_with": ""}
"""Columns that tables of an earlier version lack, and what stands for them."""
PROPERTIES = (*ESTIMATE_COLUMNS, "verdict", "reason")
"""Columns that become properties of the units in SpikeInterface and its exports."""
MAX_BYTES = 100_000_000
"""Largest table that is read. Chosen by hand."""


def write_units(table: pd.DataFrame, file: Path) -> None:
    """Write a table of units, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    with writing(file), replacing(file) as partial:
        file.absolute().parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(partial, index=False, float_format="%.10g")


def store_units(table: pd.DataFrame, folder: Path) -> None:
    """Write the table into the folder of a result, and the estimates as properties of its sorting.

    ``spikeinterface.load(folder / "sorting")`` then has them, too.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    write_units(table, folder / UNITS_FILE)
    properties = folder / "sorting" / "properties"
    with writing(properties):
        properties.mkdir(parents=True, exist_ok=True)
    for name in PROPERTIES:
        with replacing(properties / f"{name}.npy") as partial, partial.open("wb") as opened:
            np.save(opened, _values(table, name), allow_pickle=False)


def store_suggestions(table: pd.DataFrame, curation: dict[str, Any], folder: Path) -> None:
    """Write the suggested changes into the folder of a result.

    Raises
    ------
    OutputError
        If they cannot be written.
    """
    write_units(table, folder / SUGGESTIONS_FILE)
    with writing(folder):
        save_json(curation, folder / SUGGESTED_CURATION_FILE)


def read_suggestions(folder: Path) -> pd.DataFrame | None:
    """Read the suggested changes of a result.

    Returns
    -------
    DataFrame or None
        With the columns :data:`SUGGESTION_COLUMNS`; None if the result has none.

    Raises
    ------
    OutputError
        If the file is damaged.
    """
    file = folder / SUGGESTIONS_FILE
    if not file.exists():
        return None
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        texts = dict.fromkeys(("change", "unit_ids", "reason"), str)
        table = pd.read_csv(file, dtype=texts, keep_default_na=False, na_values=[""])
        missing = [name for name in SUGGESTION_COLUMNS if name not in table]
        if missing:
            raise ValueError(f"it has no column {missing[0]}")
        for name in ("probability", "accuracy_before", "accuracy_after", "gain"):
            table[name] = table[name].astype(float)
        if not set(table["change"]) <= set(CHANGES):
            raise ValueError(f"a change is not one of {', '.join(CHANGES)}")
    except (OSError, ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise OutputError(
            f"the table {file} is damaged or not from Spikewise: {error}",
            "the table that `spikewise sort` or `spikewise validate` wrote",
            "make it again: spikewise validate OUT --recording RECORDING --overwrite",
        ) from error
    return table[list(SUGGESTION_COLUMNS)]


def set_properties(sorting: BaseSorting, table: pd.DataFrame) -> None:
    """Set the estimates as properties of the units of a sorting, which are those of the table."""
    for name in PROPERTIES:
        sorting.set_property(name, _values(table, name))


def _values(table: pd.DataFrame, name: str) -> np.ndarray:
    """Return a column as an array of numbers or text, never of objects."""
    return table[name].to_numpy(dtype=float) if name in ESTIMATE_COLUMNS else table[name].to_numpy(dtype=str)


def check_units_file(result: Path, output: Path | None, overwrite: bool) -> Path:
    """Return the file for the table of a result: `output`, or by default the one in the result's folder.

    Raises
    ------
    OutputError
        If the file exists and `overwrite` is not set, or no file is named for a result of another sorter.
    """
    if output is None and not (result / _MARK).exists():
        raise OutputError(
            f"no file is named for the table of {result}",
            "a file ending in .csv, for the result of another sorter",
            "name it with --output",
        )
    file = result / UNITS_FILE if output is None else output
    return check_output_file(file, overwrite, ending=".csv")


def read_units(folder: Path, unit_ids: Sequence[Any]) -> pd.DataFrame | None:
    """Read the table of units of a result.

    Parameters
    ----------
    folder : Path
    unit_ids : sequence of int or str
        Units of the sorting; the table must have the same, in the same order.

    Returns
    -------
    DataFrame or None
        With the columns :data:`COLUMNS`; None if the result has no table.

    Raises
    ------
    OutputError
        If the file is damaged, or of another result.
    """
    file = folder / UNITS_FILE
    if not file.exists():
        return None
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        texts = ("unit_id", "group", "merge_with", "verdict", "reason")
        table = pd.read_csv(file, dtype=dict.fromkeys(texts, str), keep_default_na=False, na_values=[""])
        for name in [name for name in _LATER if name not in table]:
            table[name] = _LATER[name]
        missing = [name for name in COLUMNS if name not in table]
        if missing:
            raise ValueError(f"it has no column {missing[0]}")
        for name in NUMBER_COLUMNS:
            table[name] = table[name].astype(float)
        table["num_spikes"] = table["num_spikes"].astype(np.int64)
        if list(table["unit_id"]) != list(map(str, unit_ids)):
            raise ValueError("its units are not those of the sorting")
        if not set(table["verdict"]) <= set(VERDICTS):
            raise ValueError(f"a verdict is not one of {', '.join(VERDICTS)}")
    except (OSError, ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise OutputError(
            f"the table {file} is damaged or not from Spikewise: {error}",
            "the table that `spikewise sort` or `spikewise validate` wrote",
            "make it again: spikewise validate OUT --recording RECORDING --overwrite",
        ) from error
    table["unit_id"] = list(unit_ids)
    return table[list(COLUMNS)].fillna({"reason": "", "group": "", "merge_with": ""})


def spikes_of(sorting: BaseSorting, table: pd.DataFrame | None, keep: Keep) -> BaseSorting:
    """Return a sorting in which only the units that are good enough have spikes; all units keep their ids.

    Raises
    ------
    OutputError
        If units are to be chosen and there is no table.
    """
    if keep == "all":
        return sorting
    if table is None:
        raise OutputError(
            f"the result has no {UNITS_FILE}, which tells which units are good",
            "a result with it, to keep some units",
            "make it: spikewise validate OUT --recording RECORDING",
        )
    kept = table["verdict"].isin(("good",) if keep == "good" else ("good", "usable")).to_numpy()
    spikes = sorting.to_spike_vector()
    chosen = make_ordered_sorting(
        np.array(spikes[kept[spikes["unit_index"]]]),
        sorting.sampling_frequency,
        sorting.unit_ids,
        sorting.get_num_segments(),
    )
    sorting.copy_metadata(chosen)
    return chosen


def trust_of_unit(table: pd.DataFrame | None, unit_index: int) -> dict[str, Any] | None:
    """Return how far a unit can be trusted, in JSON types; None without a table.

    The keys are ``accuracy``, ``low`` and ``high`` (None if nothing could be measured), ``verdict`` and
    ``reason``.
    """
    if table is None:
        return None
    row = table.iloc[unit_index]
    names = {"accuracy": "", "low": "_low", "high": "_high"}
    numbers = {key: float(row[f"estimated_accuracy{end}"]) for key, end in names.items()}
    known = {key: None if np.isnan(number) else number for key, number in numbers.items()}
    return {**known, "verdict": str(row["verdict"]), "reason": str(row["reason"])}


def summarise_suggestions(table: pd.DataFrame) -> str:
    """Return one line such as ``suggested changes: 2 merge, 1 split``."""
    counts = [(name, int((table["change"] == name).sum())) for name in CHANGES]
    told = ", ".join(f"{count} {name}" for name, count in counts if count)
    return f"suggested changes: {told or 'none'}"


def summarise_units(table: pd.DataFrame) -> str:
    """Return one line such as ``41 units, 33 expected above 0.9``."""
    num_good = int((table["estimated_accuracy"] >= GOOD_ACCURACY).sum())
    return f"{len(table)} units, {num_good} expected above {GOOD_ACCURACY:g}"
