"""The groups of channels of a recording: one for each probe, shank or tetrode."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from spikeinterface.core import BaseRecording
from spikeinterface.core.motion import Motion

from spikewise.core.config import Config, NetworkConfig, PreprocessingConfig, SortingConfig
from spikewise.core.devices import choose_device
from spikewise.core.errors import RecordingError
from spikewise.data.recordings.channels import check_channel_names, ids_of, list_channels
from spikewise.data.recordings.conditioning import ConditionedRecording
from spikewise.data.recordings.device_reader import make_reader
from spikewise.data.recordings.preprocessing import (
    Preprocessed,
    known_gains,
    preprocess_recording,
    split_groups,
)
from spikewise.data.recordings.reader import TraceReader
from spikewise.data.spatial.still_traces import StillTraces
from spikewise.models.channel_noise import ODD_NOISE, ChannelNoise, noise_ratio
from spikewise.models.checkpoint import Model
from spikewise.models.esort import window_samples

logger = logging.getLogger(__name__)

_MOST_NAMED = 8
"""Most groups that a message names; the others are counted."""


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
    noise_ratio : float
        Noise of the traces as a multiple of that of the training; 1 without a model.
    note : str
        How the noise differs from that of the training, and what to do; empty if it does not.
    motion : Motion or None
        The motion that is removed from the traces.
    """

    name: str
    recording: BaseRecording
    preprocessed: Preprocessed
    reader: TraceReader
    noise_ratio: float = 1.0
    note: str = ""
    motion: Motion | None = None

    @property
    def is_live(self) -> bool:
        """Whether the traces are those of the live filter."""
        recording = self.preprocessed.recording
        return isinstance(recording, ConditionedRecording) and recording.is_live

    @property
    def is_silent(self) -> np.ndarray:
        """Which channels (num_channels,) are silenced."""
        return np.isin(self.recording.channel_ids.astype(str), self.preprocessed.silenced_channel_ids)

    def without_motion(self, motion: Motion) -> Group:
        """Return the group with traces as if the probe had stood still; they are read on the CPU."""
        recording = self.preprocessed.recording
        positions, rate = self.recording.get_channel_locations(), recording.get_sampling_frequency()
        still = StillTraces(motion, positions, rate, self.is_silent)
        moving = self.reader if type(self.reader) is TraceReader else None
        reader = TraceReader(recording, repaired=self.preprocessed.repaired, still=still, moving=moving)
        return replace(self, reader=reader, motion=motion)


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
        With a model: the noise of each of its groups, by which channels are divided.
    motions : dict of str to Motion, or None
        The motion of each group that is removed from its traces.
    """

    preprocessing: PreprocessingConfig
    network: NetworkConfig
    sorting: SortingConfig
    seed: int
    silenced: Mapping[str, tuple[int, ...]] | None = None
    noise: Mapping[str, ChannelNoise] | None = None
    motions: Mapping[str, Motion] | None = None

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
    unknown: list[str] = []
    excluded: list[str] = []
    parts = split_groups(recording, config.group_by)
    for name, part in parts.items():
        if silenced is not None and name not in silenced:
            unknown.append(name)
            continue
        if silenced is None and len(parts) > 1 and _is_excluded(part, config.exclude_channels):
            excluded.append(name)
            continue
        noise = (preparation.noise or {}).get(name)
        preprocessed = preprocess_recording(
            part,
            config,
            silenced_channel_ids=None if silenced is None else part.channel_ids[list(silenced[name])],
            seed=preparation.seed,
            damage=preparation.sorting,
            scale_of=None if noise is None else _scale(noise, part, config),
        )
        for step in preprocessed.steps:
            logger.info("group %s: %s", name, step)
        reader = make_reader(preprocessed.recording, device, preprocessed.repaired)
        if noise is None:
            groups.append(Group(name, part, preprocessed, reader))
        else:
            ratio = noise_ratio(preprocessed.measured_noise, preprocessed.noise_levels)
            groups.append(Group(name, part, preprocessed, reader, ratio, _note(noise, part, preprocessed)))
    if unknown:
        its = "its" if len(unknown) == 1 else "their"
        logger.warning("the model knows no %s: %s channels are not sorted", named_groups(unknown), its)
    if excluded:
        it = "it is" if len(excluded) == 1 else "they are"
        logger.warning("all channels of %s are excluded: %s not sorted", named_groups(excluded), it)
    if not groups:
        raise RecordingError(
            f"all {recording.get_num_channels()} channels are excluded",
            "at least one usable channel is needed",
            "exclude fewer channels",
        )
    motions = preparation.motions or {}
    return [group.without_motion(motions[group.name]) if group.name in motions else group for group in groups]


KEPT_BYTES = 2**31
"""Largest size of kept traces: 2 GiB are 93 s of 384 channels, or 280 s of 128, at 30 kHz. Chosen by hand."""


def keep_traces(groups: Sequence[Group]) -> bool:
    """Let the traces of all groups be kept in memory if they are small enough; return whether they are."""
    values = sum(group.recording.get_total_samples() * group.recording.get_num_channels() for group in groups)
    if 2 * values > KEPT_BYTES:
        return False
    for group in groups:
        group.reader.allow_keeping()
    return True


def _scale(
    noise: ChannelNoise, part: BaseRecording, config: PreprocessingConfig
) -> Callable[[np.ndarray], np.ndarray]:
    """Return what gives the scale of the channels from their noise, as the model wants it.

    With the live filter it is that of the training, whatever the noise: a stream cannot measure it before.
    """
    gains = known_gains(part)
    if config.filter == "live":
        return lambda measured: noise.in_units_of(gains)
    return partial(noise.scale_of, gains_to_uV=gains)


def _note(noise: ChannelNoise, part: BaseRecording, preprocessed: Preprocessed) -> str:
    """Return how the noise of a recording differs from that of the training, and what to do."""
    gains = known_gains(part)
    levels, measured = noise.in_units_of(gains), preprocessed.measured_noise
    ratio = noise_ratio(measured, levels)
    notes = []
    if not 1 / ODD_NOISE <= ratio <= ODD_NOISE:
        unknown = [
            name
            for name, known in (("the recording", gains), ("the training", noise.gains_to_uV))
            if known is None
        ]
        text = f"the noise is {ratio:.3g} times that of the training"
        if unknown:
            text += f", and the gain of {' and '.join(unknown)} is not known: give --gain-to-uv if it differs"
        if noise_ratio(measured, preprocessed.noise_levels) == 1:
            text += "; each channel is divided by its own noise, as if the gain differed"
        if ratio > ODD_NOISE:
            text += "; spikes that hardly stand out of it may be missed: a model of this recording finds more"
        notes.append(text)
    noisy = part.channel_ids[np.isfinite(preprocessed.noise_levels) & noise.noisy(measured, levels)]
    if len(noisy):
        names = list_channels(dict.fromkeys(noisy.astype(str), ""))
        notes.append(f"channels with much more noise than in training count less: {names}")
    return "; ".join(notes)


def named_groups(names: Sequence[str]) -> str:
    """Return groups as a message names them: ``group 3``, ``groups 3, 4, 5 and 27 more``."""
    if len(names) == 1:
        return f"group {names[0]}"
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"groups {', '.join(names[:_MOST_NAMED])}{more}"


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
