"""The groups of channels of a recording: one for each probe, shank or tetrode."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from spikeinterface.core import BaseRecording

from spikewise.core.config import Config, NetworkConfig, PreprocessingConfig, SortingConfig
from spikewise.core.devices import choose_device
from spikewise.core.errors import RecordingError
from spikewise.data.recordings.channels import check_channel_names, ids_of
from spikewise.data.recordings.conditioning import ConditionedRecording
from spikewise.data.recordings.device_reader import make_reader
from spikewise.data.recordings.preprocessing import Preprocessed, preprocess_recording, split_groups
from spikewise.data.recordings.reader import TraceReader
from spikewise.models.checkpoint import ChannelNoise, Model
from spikewise.models.esort import window_samples

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Group:
    """The channels of one probe, shank or tetrode, ready to be read.

    Attributes
    ----------
    name : str
    recording : BaseRecording
        The raw recording of these channels.
    preprocessed : Preprocessed
    reader : TraceReader
        Preprocessed traces.
    """

    name: str
    recording: BaseRecording
    preprocessed: Preprocessed
    reader: TraceReader

    @property
    def is_live(self) -> bool:
        """Whether the traces are those of the live filter."""
        recording = self.preprocessed.recording
        return isinstance(recording, ConditionedRecording) and recording.is_live


@dataclass(frozen=True)
class Preparation:
    """How the groups of a recording are prepared.

    Attributes
    ----------
    preprocessing : PreprocessingConfig
    network : NetworkConfig
        Its window must fit into the recording.
    sorting : SortingConfig
        Its `damage`, `artefact_noise` and `device`.
    seed : int
        Seed of the pieces of the recording on which noise and damage are measured.
    silenced : dict of str to tuple of int, or None
        With a model: the indices of the silenced channels of each of its groups, since another recording
        may name its channels otherwise. Other groups are left out.
    noise : dict of str to ChannelNoise, or None
        With a model of the live filter: the noise of each of its groups, by which channels are divided.
    """

    preprocessing: PreprocessingConfig
    network: NetworkConfig
    sorting: SortingConfig
    seed: int
    silenced: Mapping[str, tuple[int, ...]] | None = None
    noise: Mapping[str, ChannelNoise] | None = None

    @classmethod
    def of(cls, config: Config, model: Model | None = None) -> Preparation:
        """Return the preparation of the settings; with a model, the one it was trained with."""
        if model is None:
            return cls(config.preprocessing, config.network, config.sorting, config.training.seed)
        return cls.of_model(model, config.sorting, config.training.seed)

    @classmethod
    def of_model(cls, model: Model, sorting: SortingConfig, seed: int) -> Preparation:
        """Return the preparation with which a model was trained."""
        silenced = {
            group.name: tuple(group.channel_ids.index(name) for name in group.silenced_channel_ids)
            for group in model.groups
        }
        noise = {group.name: group.noise for group in model.groups if group.noise is not None}
        return cls(model.preprocessing_config, model.network_config, sorting, seed, silenced, noise)


def prepare_groups(recording: BaseRecording, preparation: Preparation) -> list[Group]:
    """Split a recording into groups and preprocess each.

    A group of which all channels are excluded is left out.

    Raises
    ------
    RecordingError
        If the recording is too short, or its channels cannot be used, or an excluded channel does not exist.
    """
    _check_length(recording, preparation.network)
    silenced, config = preparation.silenced, preparation.preprocessing
    if silenced is None:
        check_channel_names(recording, config.exclude_channels)
    device = choose_device(preparation.sorting.device)
    groups: list[Group] = []
    parts = split_groups(recording, config.group_by)
    for name, part in parts.items():
        if silenced is not None and name not in silenced:
            logger.warning("the model knows no group %s: its channels are not sorted", name)
            continue
        if silenced is None and len(parts) > 1 and _is_excluded(part, config.exclude_channels):
            logger.warning("all channels of group %s are excluded: it is not sorted", name)
            continue
        noise = (preparation.noise or {}).get(name)
        preprocessed = preprocess_recording(
            part,
            config,
            silenced_channel_ids=None if silenced is None else part.channel_ids[list(silenced[name])],
            seed=preparation.seed,
            damage=preparation.sorting,
            noise_levels=None if noise is None else noise.in_units_of(known_gains(part)),
        )
        for step in preprocessed.steps:
            logger.info("group %s: %s", name, step)
        reader = make_reader(preprocessed.recording, device, preprocessed.repaired)
        groups.append(Group(name, part, preprocessed, reader))
    if not groups:
        raise RecordingError(
            f"all {recording.get_num_channels()} channels are excluded",
            "at least one usable channel is needed",
            "exclude fewer channels",
        )
    return groups


def known_gains(recording: BaseRecording) -> np.ndarray | None:
    """Return the microvolts (num_channels,) for each step of the channels; None if they are not known."""
    gains = recording.get_property("gain_to_uV")
    if gains is None or not np.isfinite(gains.astype(float)).all() or not (gains > 0).all():
        return None
    return np.asarray(gains, float)


def _is_excluded(part: BaseRecording, names: Sequence[str]) -> bool:
    return not ids_of(part, names, others=True)


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
