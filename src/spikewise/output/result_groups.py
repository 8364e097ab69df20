"""The groups of channels of the recording that a result is of."""

from __future__ import annotations

from spikeinterface.core import BaseRecording

from spikewise.core.config import Config
from spikewise.core.errors import RecordingError
from spikewise.data.recordings.preprocessing import split_groups
from spikewise.models.checkpoint import check_model_fits
from spikewise.output.result import StoredResult
from spikewise.sorting.groups import Group, prepare_groups


def groups_of(result: StoredResult, recording: BaseRecording) -> list[Group]:
    """Return the groups of the recording that was sorted, preprocessed as for the result's model.

    Raises
    ------
    RecordingError, CheckpointError
        If it is another recording: of another length, or with other channels.
    """
    lengths = [recording.get_num_samples(index) for index in range(recording.get_num_segments())]
    if lengths != result.num_samples:
        raise RecordingError(
            f"the recording has segments of {lengths} samples",
            f"the result is of a recording with segments of {result.num_samples}",
            "give the recording that was sorted",
        )
    check_model_fits(result.model, split_groups(recording, result.model.preprocessing_config.group_by))
    return prepare_groups(recording, Config(), result.model)
