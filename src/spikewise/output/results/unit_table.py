"""The table of the units of a result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from spikewise.core.errors import OutputError
from spikewise.output.measures import measure_units
from spikewise.output.result import StoredResult

UNITS_FILE = "units.csv"
"""Table of the units in the output folder of a sort."""


def unit_table(result: StoredResult, folder: Path | None) -> pd.DataFrame:
    """Return a table with a row for each unit, in the order of the sorting.

    Parameters
    ----------
    result : StoredResult
    folder : Path or None
        Its output folder. If that holds ``units.csv``, its columns are used.

    Raises
    ------
    OutputError
        If ``units.csv`` cannot be read, or has other units.
    """
    if folder is not None and (folder / UNITS_FILE).is_file():
        return _read_table(folder / UNITS_FILE, result.sorting.unit_ids.tolist())
    units, _ = measure_units(result, None)
    labels: Sequence[int | None] = result.num_labels_of_units or [None] * len(units)
    rows = [
        {
            "group": unit.group.name,
            "num_spikes": unit.num_spikes,
            "rate_hz": unit.rate_hz,
            "violations_percent": unit.violations_percent,
            "violations_ratio": unit.violations_ratio,
            "presence_ratio": unit.presence_ratio,
            "num_labels": count,
            "threshold": unit.threshold,
        }
        for unit, count in zip(units, labels, strict=True)
    ]
    return pd.DataFrame(rows, index=_index([unit.unit_id for unit in units]))


def _read_table(file: Path, unit_ids: list[Any]) -> pd.DataFrame:
    try:
        table = pd.read_csv(file, dtype={"unit_id": str})
        names = table.pop("unit_id").tolist()
    except (OSError, ValueError, KeyError) as error:
        raise _unusable(file, f"it cannot be read ({error})") from error
    if names != [str(unit_id) for unit_id in unit_ids]:
        raise _unusable(file, "its units are not those of the sorting")
    table.index = _index(unit_ids)
    return table


def _index(unit_ids: list[Any]) -> pd.Index:
    return pd.Index(unit_ids, name="unit_id")


def _unusable(file: Path, reason: str) -> OutputError:
    return OutputError(
        f"the table {file} is of no use: {reason}",
        "the table that `spikewise sort` wrote, with a column unit_id",
        "move it away: then the measures are computed again",
    )
