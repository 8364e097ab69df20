"""The channel groups of a recording that was sorted, prepared in the same way as for the sort."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from spikeinterface.core import BaseRecording

from spikewise.core.config import SortingConfig, TrainingConfig
from spikewise.core.devices import choose_device
from spikewise.core.errors import RecordingError, SettingError
from spikewise.data.recordings.preprocessing import split_groups
from spikewise.models.checkpoint import check_model_fits
from spikewise.output.result import StoredResult
from spikewise.sorting.groups import Group, Preparation, prepare_groups

logger = logging.getLogger(__name__)

_SETTINGS = ("damage", "artefact_noise", "device")
"""Settings of the sort that affect the prepared traces."""


def groups_of(result: StoredResult, recording: BaseRecording) -> list[Group]:
    """Return the groups of the recording that was sorted, with the same traces as in the sort.

    Raises
    ------
    RecordingError, CheckpointError
        If it is a different recording: its length or its channels differ.
    """
    lengths = [recording.get_num_samples(index) for index in range(recording.get_num_segments())]
    if lengths != result.num_samples:
        raise RecordingError(
            f"the recording has segments of {lengths} samples",
            f"the result is of a recording with segments of {result.num_samples}",
            "give the recording that was sorted",
        )
    check_model_fits(result.model, split_groups(recording, result.model.preprocessing_config.group_by))
    return prepare_groups(recording, preparation_of(result))


def preparation_of(result: StoredResult) -> Preparation:
    """Return how the recording of a result was prepared, from its model and the settings of the sort."""
    job = result.provenance.get("job") or {}
    settings = job.get("settings") or result.provenance.get("config") or {}
    sorting = _known(settings.get("sorting"))
    seed = (settings.get("training") or {}).get("seed", TrainingConfig().seed)
    return replace(Preparation.of_model(result.model, sorting, seed), motions=result.motions)


def _known(settings: dict[str, Any] | None) -> SortingConfig:
    """Return the settings of sorting from a provenance, without a device that this computer lacks."""
    settings = settings or {}
    known = {name: settings[name] for name in _SETTINGS if name in settings}
    try:
        choose_device(known.get("device", "auto"))
    except SettingError:
        logger.info("the result was made on %s, which is not here", known.pop("device"))
    return SortingConfig.from_dict(known)
