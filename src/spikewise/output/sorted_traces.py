"""The traces of a whole recording as they were sorted, in the recording's own unit, for other tools.

They are filtered and referenced by SpikeInterface, and without damage need nothing of Spikewise, so that an
analyzer in a folder opens without it. Where the recording is damaged, the damage is bridged as for the sort:
else the filter would spread it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import spikeinterface.preprocessing as spre
from spikeinterface.core import BaseRecording

from spikewise.core.config import PreprocessingConfig
from spikewise.core.constants import MIN_ARRAY_CHANNELS
from spikewise.data.recordings.channels import SilencedRecording, ids_of
from spikewise.data.recordings.preprocessing import MAX_OF_SAMPLING_FREQUENCY, as_signed
from spikewise.data.recordings.repair import BridgedRecording
from spikewise.output.result import StoredResult
from spikewise.sorting.groups import Group


def traces_as_sorted(
    result: StoredResult, recording: BaseRecording, groups: Sequence[Group]
) -> BaseRecording:
    """Return a recording bridged, filtered and referenced as for sorting, in its own unit.

    Parameters
    ----------
    result : StoredResult
    recording : BaseRecording
        The raw recording.
    groups : sequence of Group
        Its groups, as from :func:`spikewise.output.result_groups.groups_of`. Channels that were silenced for
        sorting are zero here, too.
    """
    config: PreprocessingConfig = result.model.preprocessing_config
    names = [name for group in groups for name in group.preprocessed.silenced_channel_ids]
    bad = ids_of(recording, names)
    if bad:
        recording = SilencedRecording(recording, bad)
    repaired = {group.name: group.preprocessed.repaired for group in groups}
    if _is_damaged(result) and any(part is not None for part in repaired.values()):
        parts = [part.as_part() for part in repaired.values() if part is not None]
        recording = BridgedRecording(as_signed(recording), parts)
    if config.bandpass:
        limit = MAX_OF_SAMPLING_FREQUENCY * recording.get_sampling_frequency()
        recording = spre.bandpass_filter(
            recording, config.freq_min_hz, min(config.freq_max_hz, limit), dtype="float32"
        )
    return _referenced(recording, groups, config, np.array(bad))


def _is_damaged(result: StoredResult) -> bool:
    damage = result.provenance.get("damage")
    return damage is None or damage["num_stretches"] > 0


def _referenced(
    recording: BaseRecording, groups: Sequence[Group], config: PreprocessingConfig, bad: np.ndarray
) -> BaseRecording:
    """Subtract the common median of each group, as for sorting."""
    referenced = []
    for group in groups:
        ids = group.recording.channel_ids
        large = len(ids) >= MIN_ARRAY_CHANNELS if config.common_reference == "auto" else len(ids) > 1
        good = [channel_id for channel_id in ids if channel_id not in bad]
        if config.common_reference != "none" and large and len(good) > 1:
            referenced.append(good)
    if referenced == [list(recording.channel_ids)]:
        return spre.common_reference(recording, operator="median")
    return spre.common_reference(recording, operator="median", groups=referenced) if referenced else recording
