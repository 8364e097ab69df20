"""Manual curation of a sorting: merges, splits, removals and labels of units.

The file is in SpikeInterface's curation format (JSON), which spikeinterface-gui and other tools write.
Units that are removed or labelled as noise are left out. Merged and split units get new ids.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from spikeinterface.core import BaseSorting

from spikewise.core.errors import LabelsError

logger = logging.getLogger(__name__)

CURATION_FILE = "curation.json"
NOISE_LABEL = "noise"


def load_curation(file: Path) -> dict[str, Any]:
    """Read a curation and check its format.

    Returns
    -------
    dict
        In JSON types, with the fields of :class:`spikeinterface.curation.curation_model.Curation`.

    Raises
    ------
    LabelsError
        If the file cannot be read or is no curation.
    """
    from spikeinterface.curation.curation_model import Curation

    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(facts, dict):
            raise ValueError(f"it holds a {type(facts).__name__}, not an object")
        return Curation(**facts).model_dump(mode="json", exclude={"supported_versions"})
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabelsError(
            f"the curation {file} cannot be read: {' '.join(str(error).split())}",
            "a curation in SpikeInterface's format, as `spikewise gui` saves it",
            "curate again, or move the file away to use the units as they were sorted",
        ) from error


def apply_curation_file(sorting: BaseSorting, file: Path) -> BaseSorting:
    """Return a sorting with a curation applied.

    Parameters
    ----------
    sorting : BaseSorting
        The units that were curated.
    file : Path
        The curation.

    Raises
    ------
    LabelsError
        If the file cannot be read, or belongs to other units or spikes.
    """
    from spikeinterface.curation import apply_curation

    curation = load_curation(file)
    changed = {unit for merge in curation["merges"] or [] for unit in merge["unit_ids"]}
    changed |= {split["unit_id"] for split in curation["splits"] or []}
    noise = [
        by_hand["unit_id"]
        for by_hand in curation["manual_labels"] or []
        if any(NOISE_LABEL in labels for labels in by_hand["labels"].values())
    ]
    left_out = [unit for unit in noise if unit not in changed]
    curation["removed"] = list(dict.fromkeys([*(curation["removed"] or []), *left_out]))
    try:
        curated = apply_curation(sorting, curation)
        curated.to_spike_vector()
    except (ValueError, LookupError, AssertionError, TypeError) as error:
        raise LabelsError(
            f"the curation {file} does not fit its sorting: {' '.join(str(error).split())}",
            "a curation of the same units and spikes",
            "curate this result again, or move the file away",
        ) from error
    logger.info(
        "curation %s: %d units became %d: %d merges, %d splits, %d left out",
        file,
        sorting.get_num_units(),
        curated.get_num_units(),
        len(curation["merges"] or []),
        len(curation["splits"] or []),
        len(curation["removed"]),
    )
    return curated
