"""Suggested changes become the curation of a result, as if they had been made by hand."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from spikeinterface.core import BaseSorting

from spikewise.core.errors import OutputError, SettingError
from spikewise.core.files import save_json, writing
from spikewise.data.labels.curation import CURATION_FILE, apply_curation_file, load_curation
from spikewise.output.result import load_result
from spikewise.output.unit_table import CHANGES, SUGGESTED_CURATION_FILE, read_suggestions

logger = logging.getLogger(__name__)

JOINING = ("merge", "remove")
"""Changes after which no neuron has two units."""
_FIELDS = {"merge": "merges", "remove": "removed", "split": "splits"}
"""Fields of a curation that hold the changes."""


def accept_suggestions(
    result: str | Path, changes: Sequence[str] = CHANGES, *, overwrite: bool = False
) -> pd.DataFrame:
    """Write suggested changes into ``curation.json`` of a result.

    Whatever reads the result as labels applies them, and so do :func:`curated` and the browser of
    ``spikewise gui``. The sorting itself does not change.

    Parameters
    ----------
    result : str or Path
        The output folder of a sort.
    changes : sequence of str
        Which are accepted: ``merge``, ``remove``, ``split``.
    overwrite : bool
        Whether an earlier curation may be replaced.

    Returns
    -------
    DataFrame
        The changes that were accepted; the columns are those of
        :data:`spikewise.output.unit_table.SUGGESTION_COLUMNS`.

    Raises
    ------
    SettingError
        If there is no such change.
    OutputError
        If the folder has no suggestions, or has a curation already.
    LabelsError
        If the suggestions are damaged.
    """
    folder = Path(result)
    unknown = [name for name in changes if name not in CHANGES]
    if unknown or not changes:
        raise SettingError(
            f"the changes are {', '.join(changes) or 'none'}",
            f"any of {', '.join(CHANGES)}",
            "choose among them",
        )
    table, source = read_suggestions(folder), folder / SUGGESTED_CURATION_FILE
    if table is None or not source.exists():
        raise OutputError(
            f"the result {folder} has no suggestions",
            "a result with units.csv, suggestions.csv and suggestions.json",
            "make them: spikewise validate OUT --recording RECORDING --overwrite",
        )
    file = folder / CURATION_FILE
    if file.exists() and not overwrite:
        raise OutputError(
            f"the result {folder} has a curation already",
            "a result without curation.json, so that no work by hand is lost",
            "move the file away, or give --overwrite",
        )
    curation = load_curation(source)
    left_out: dict[str, Any] = {field: [] for name, field in _FIELDS.items() if name not in changes}
    with writing(folder):
        save_json({**curation, **left_out}, file)
    accepted = table[table["change"].isin(changes)].reset_index(drop=True)
    logger.info("%d suggested changes were written to %s", len(accepted), file)
    return accepted


def curated(result: str | Path) -> BaseSorting:
    """Return the sorting of a result with its curation applied; without one, as it was sorted.

    Raises
    ------
    SpikewiseError
        If the folder is no result, or its curation does not fit.
    """
    folder = Path(result)
    sorting = load_result(folder, units=False).sorting
    file = folder / CURATION_FILE
    return apply_curation_file(sorting, file) if file.exists() else sorting
