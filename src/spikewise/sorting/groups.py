"""The groups of channels of a recording, each of one probe, shank or tetrode: prepared once, then handed on."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from spikeinterface.core import BaseRecording

from spikewise.core.config import Config, NetworkConfig
from spikewise.core.devices import choose_device
from spikewise.core.errors import RecordingError
from spikewise.data.recordings.device_reader import make_reader
from spikewise.data.recordings.preprocessing import Preprocessed, preprocess_recording, split_groups
from spikewise.data.recordings.reader import TraceReader
from spikewise.models.checkpoint import Model
from spikewise.models.esort import window_samples

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """The channels of one probe, shank or tetrode, ready to be read.

    Attributes
    ----------
    name : str
    recording : BaseRecording
        As it came in.
    preprocessed : Preprocessed
    reader : TraceReader
        Preprocessed traces.
    """

    name: str
    recording: BaseRecording
    preprocessed: Preprocessed
    reader: TraceReader


def prepare_groups(recording: BaseRecording, config: Config, model: Model | None = None) -> list[Group]:
    """Split a recording into groups and preprocess each, as a model was trained if one is given."""
    settings = config.preprocessing if model is None else model.preprocessing_config
    _check_length(recording, config.network if model is None else model.network_config)
    recordings = split_groups(recording, settings.group_by)
    known = {} if model is None else {group.name: group for group in model.groups}
    device = choose_device(config.sorting.device)
    groups = []
    for name, part in recordings.items():
        if model is not None and name not in known:
            logger.warning("the model knows no group %s: its channels are not sorted", name)
            continue
        silenced = known[name].silenced_channel_ids if model is not None else None
        preprocessed = preprocess_recording(
            part,
            settings,
            silenced_channel_ids=silenced,
            seed=config.training.seed,
            damage=config.sorting,
        )
        for step in preprocessed.steps:
            logger.info("group %s: %s", name, step)
        reader = make_reader(preprocessed.recording, device, preprocessed.repaired)
        groups.append(Group(name, part, preprocessed, reader))
    return groups


def _check_length(recording: BaseRecording, network: NetworkConfig) -> None:
    """Raise where no segment is as long as a window of the network."""
    window = window_samples(network, recording.get_sampling_frequency())
    longest = max(recording.get_num_samples(index) for index in range(recording.get_num_segments()))
    if longest < window:
        raise RecordingError(
            f"the recording has {longest} samples"
            + (" in its longest segment" if recording.get_num_segments() > 1 else ""),
            f"at least {window}, since the network's window lasts {network.window_ms:g} ms",
            "give a longer recording",
        )
