"""Trained models and their files: safetensors with JSON facts in the header, never a pickle.

One file holds a network for each group of channels (probe, shank or tetrode), and all else that sorting
needs: channels and their positions, unit ids, thresholds, sampling frequency and settings.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spikewise.core.config import DetectionConfig, NetworkConfig, PreprocessingConfig
from spikewise.core.errors import CheckpointError, SettingError
from spikewise.core.rates import is_same_rate, show_rate
from spikewise.core.untrusted import parsing
from spikewise.models.channel_noise import ChannelNoise
from spikewise.models.esort import EsortNetwork, window_samples
from spikewise.models.neighbourhood import Backbone, NeighbourhoodNetwork
from spikewise.models.tensor_file import damaged, fill, read_tensors, write_tensors
from spikewise.models.unit_waveforms import UnitWaveforms, take_waveforms
from spikewise.models.windowed import WindowedNetwork

FORMAT_VERSION = 1
SILENT = 1e6
"""Threshold of a unit that is not there and stays silent: no response reaches it."""
_POSITION_TOLERANCE_UM = 1.0
"""Largest difference between the channel positions of model and recording. Chosen by hand."""


@dataclass(frozen=True)
class GroupModel:
    """The network of one group of channels.

    Attributes
    ----------
    name : str
        Name of the group.
    network : WindowedNetwork
    channel_ids : tuple of str
        Channels, in the order in which the network takes them.
    channel_positions_um : ndarray
        (num_channels, num_dimensions)
    silenced_channel_ids : tuple of str
        Channels that were zero in training, and are set to zero in sorting.
    unit_ids : tuple of int or str
        Ids of the labels, in the order of the network's outputs.
    thresholds : ndarray
        (num_units,) lowest response of a spike, as a fraction of the response to a perfect spike. SILENT: the
        unit is not there.
    noise : ChannelNoise or None
        The noise by which the channels are divided; None for a model of an earlier version, which divides the
        channels of each recording by their own noise.
    waveforms : UnitWaveforms or None
        Mean waveforms of the units; None in models of earlier versions and of the design esort-paper.
    residual_noise : float or None
        Only of a model that is used at another place: mean energy of noise in a projection of the traces on a
        temporal shape. Spikes of which the units leave much more unexplained are those of other neurons.
    """

    name: str
    network: WindowedNetwork
    channel_ids: tuple[str, ...]
    channel_positions_um: np.ndarray
    silenced_channel_ids: tuple[str, ...]
    unit_ids: tuple[int | str, ...]
    thresholds: np.ndarray
    noise: ChannelNoise | None = None
    waveforms: UnitWaveforms | None = None
    residual_noise: float | None = None


@dataclass(frozen=True)
class Model:
    """A trained sorter.

    Attributes
    ----------
    groups : tuple of GroupModel
    sampling_frequency : float
        In Hz.
    network_config, preprocessing_config, detection_config
        The settings of training, which sorting uses too.
    facts : dict
        How it was trained: labels, interval, seeds, losses, versions; JSON types only.
    """

    groups: tuple[GroupModel, ...]
    sampling_frequency: float
    network_config: NetworkConfig
    preprocessing_config: PreprocessingConfig
    detection_config: DetectionConfig
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def unit_ids(self) -> list[int | str]:
        """Ids of all units, group after group."""
        return [unit_id for group in self.groups for unit_id in group.unit_ids]

    def with_channel_ids(self, channel_ids: Mapping[str, Sequence[str]]) -> Model:
        """Return the model with other names of the channels of some groups, as many as they have."""
        groups = []
        for group in self.groups:
            names = tuple(map(str, channel_ids.get(group.name, group.channel_ids)))
            if len(names) == len(group.channel_ids):
                silenced = [names[group.channel_ids.index(name)] for name in group.silenced_channel_ids]
                group = replace(group, channel_ids=names, silenced_channel_ids=tuple(silenced))
            groups.append(group)
        return replace(self, groups=tuple(groups))

    def hash(self) -> str:
        """Return the SHA-256 of the weights, thresholds and settings, without the facts."""
        digest = hashlib.sha256(json.dumps({**_describe(self), "facts": {}}, sort_keys=True).encode())
        for name, tensor in sorted(_tensors(self).items()):
            digest.update(name.encode() + tensor.numpy().tobytes())
        return digest.hexdigest()


def save_model(model: Model, path: Path | str) -> None:
    """Write a model to one file, whole or not at all.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    write_tensors(path, _tensors(model), _describe(model))


def load_model(path: Path | str) -> Model:
    """Read a model from a file that :func:`save_model` wrote.

    Raises
    ------
    CheckpointError
        If the file is missing, damaged, not a Spikewise checkpoint, or of a later version.
    """
    path = Path(path)
    if os.path.isdir(path):
        path = path / "model.safetensors"
    description, tensors = read_tensors(path, "recording", FORMAT_VERSION)
    with parsing(lambda reason: damaged(path, reason)):
        try:
            return _rebuild(description, tensors)
        except SettingError as error:
            raise damaged(path, str(error)) from error


def check_model_fits(model: Model, groups: dict[str, Any]) -> None:
    """Raise unless the model can sort a recording.

    Parameters
    ----------
    model : Model
    groups : dict of str to BaseRecording
        The recording, split into groups as the model's settings say.

    Raises
    ------
    CheckpointError
        If sampling frequency, groups, number of channels or channel positions differ.
    """
    names = [group.name for group in model.groups]
    missing = [name for name in names if name not in groups]
    if missing:
        raise CheckpointError(
            f"the recording has the channel groups {', '.join(groups)}",
            f"the checkpoint was trained on {', '.join(names)}",
            "sort a recording of the same probes, or train again on this one",
        )
    for group in model.groups:
        recording = groups[group.name]
        rate = recording.get_sampling_frequency()
        if not is_same_rate(rate, model.sampling_frequency):
            raise CheckpointError(
                f"the recording is sampled at {show_rate(rate)}",
                f"the checkpoint was trained at {show_rate(model.sampling_frequency)}",
                "resample the recording (spikeinterface.preprocessing.resample) or train again on it",
            )
        if recording.get_num_channels() != len(group.channel_ids):
            raise CheckpointError(
                f"the recording has {recording.get_num_channels()} channels in group {group.name!r}",
                f"the checkpoint was trained on {len(group.channel_ids)}",
                "sort a recording of the same probe, or train again on this one",
            )
        shift = np.abs(recording.get_channel_locations() - group.channel_positions_um).max()
        if shift > _POSITION_TOLERANCE_UM:
            raise CheckpointError(
                f"channels of the recording lie up to {shift:.1f} um from those of the checkpoint",
                f"the same positions within {_POSITION_TOLERANCE_UM:g} um, in the same order",
                "sort a recording of the same probe, or train again on this one",
            )


def _describe(model: Model) -> dict[str, Any]:
    from spikewise.core.version import __version__

    return {
        "kind": "recording",
        "format_version": FORMAT_VERSION,
        "spikewise_version": __version__,
        "sampling_frequency": model.sampling_frequency,
        "network": model.network_config.to_dict(),
        "preprocessing": model.preprocessing_config.to_dict(),
        "detection": model.detection_config.to_dict(),
        "groups": [
            {
                "name": group.name,
                "channel_ids": list(group.channel_ids),
                "channel_positions_um": np.asarray(group.channel_positions_um, float).tolist(),
                "silenced_channel_ids": list(group.silenced_channel_ids),
                "unit_ids": list(group.unit_ids),
                **({} if group.noise is None else group.noise.to_dict()),
                **({} if group.waveforms is None else {"waveform_before": group.waveforms.before}),
                **({} if group.residual_noise is None else {"residual_noise": group.residual_noise}),
            }
            for group in model.groups
        ],
        "facts": model.facts,
    }


def _tensors(model: Model) -> dict[str, torch.Tensor]:
    tensors = {}
    for index, group in enumerate(model.groups):
        for name, tensor in group.network.state_dict().items():
            tensors[f"{index}.{name}"] = tensor.detach().cpu().contiguous()
        tensors[f"{index}.thresholds"] = torch.as_tensor(group.thresholds, dtype=torch.float32)
        if group.waveforms is not None:
            tensors |= {f"{index}.{name}": tensor for name, tensor in group.waveforms.tensors().items()}
    return tensors


def _rebuild(description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Model:
    """Build the model that the header describes; any mismatch raises ValueError, KeyError or RuntimeError."""
    network_config = NetworkConfig.from_dict({"design": "esort-paper", **description["network"]})
    sampling_frequency = float(description["sampling_frequency"])
    if not 0 < sampling_frequency < 1e9:
        raise ValueError(f"its sampling frequency is {sampling_frequency} Hz")
    groups = []
    for index, facts in enumerate(description["groups"]):
        prefix = f"{index}."
        state = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        thresholds = state.pop("thresholds").numpy()
        _check_counts(facts, state, thresholds)
        waveforms = take_waveforms(state, facts, len(facts["channel_ids"]))
        window = window_samples(network_config, sampling_frequency)
        network: WindowedNetwork
        if network_config.design == "neighbourhood":
            network = _neighbourhood(len(facts["channel_ids"]), state, window)
        else:
            sizes = (len(facts["channel_ids"]), len(facts["unit_ids"]), window)
            features = (network_config.temporal_features, network_config.spatial_features)
            network = fill(partial(EsortNetwork, *sizes, *features), state)
        positions = _positions(facts)
        groups.append(
            GroupModel(
                name=str(facts["name"]),
                network=network,
                channel_ids=_ids(facts, "channel_ids", str),
                channel_positions_um=positions,
                silenced_channel_ids=_silenced(facts),
                unit_ids=_ids(facts, "unit_ids", int | str),
                thresholds=thresholds,
                noise=ChannelNoise.from_dict(facts, len(facts["channel_ids"])),
                waveforms=waveforms,
                residual_noise=_residual_noise(facts),
            )
        )
    return Model(
        groups=tuple(groups),
        sampling_frequency=sampling_frequency,
        network_config=network_config,
        preprocessing_config=PreprocessingConfig.from_dict(description["preprocessing"]),
        detection_config=DetectionConfig.from_dict(description["detection"]),
        facts=dict(description["facts"]),
    )


def _neighbourhood(num_channels: int, state: dict[str, torch.Tensor], window: int) -> NeighbourhoodNetwork:
    """Build a network from its weights, after a check that they fit together."""
    first, found_window = state["backbone.filter1.weight"].shape
    second, _ = state["backbone.filter2.weight"].shape
    near, hidden = state["channel_index"], state["units.hidden_bias"].shape[2]
    if found_window != window:
        raise ValueError(f"its filters take {found_window} samples, its window has {window}")
    if near.ndim != 2 or near.dtype != torch.int64 or not 0 < near.shape[1] <= num_channels:
        raise ValueError("its channels of the units are not numbers of channels")
    if near.numel() and not 0 <= int(near.min()) <= int(near.max()) < num_channels:
        raise ValueError("its units lie on channels that it does not have")

    def make() -> NeighbourhoodNetwork:
        return NeighbourhoodNetwork(Backbone(window, (first, second)), num_channels, near, hidden)

    return fill(make, state)


def _positions(facts: dict[str, Any]) -> np.ndarray:
    positions = np.asarray(facts["channel_positions_um"], dtype=float)
    if positions.ndim != 2 or not np.isfinite(positions).all():
        raise ValueError("its channel positions are not rows of finite numbers")
    return positions


def _residual_noise(facts: dict[str, Any]) -> float | None:
    noise = facts.get("residual_noise")
    if noise is not None and not (isinstance(noise, int | float) and 0 < noise < 1e9):
        raise ValueError(f"its residual noise is {noise!r}")
    return noise


def _ids(facts: dict[str, Any], name: str, kind: Any) -> tuple[Any, ...]:
    """Return a list of ids as a tuple; raise if it is no list of ids, or an id repeats or is too large."""
    ids = facts[name]
    if not isinstance(ids, list) or not all(isinstance(i, kind) and not isinstance(i, bool) for i in ids):
        raise ValueError(f"its {name} are not a list of numbers or text")
    if len(set(map(str, ids))) < len(ids) or any(isinstance(i, int) and abs(i) >= 2**63 for i in ids):
        raise ValueError(f"its {name} are not unique, or are too large")
    return tuple(ids)


def _silenced(facts: dict[str, Any]) -> tuple[str, ...]:
    silenced = _ids(facts, "silenced_channel_ids", str)
    if not set(silenced) <= set(facts["channel_ids"]):
        raise ValueError("its silenced channels are not among its channels")
    return silenced


def _check_counts(facts: dict[str, Any], state: dict[str, torch.Tensor], thresholds: np.ndarray) -> None:
    """Compare the header with the tensors before a network of the header's size is allocated."""
    num_channels, num_units = len(facts["channel_ids"]), len(facts["unit_ids"])
    found = {}
    if "temporal_norm1.weight" in state:
        found["channels"] = state["temporal_norm1.weight"].shape[0]
    found["channel positions"] = len(facts["channel_positions_um"])
    wrong = [
        f"{name} ({count}, not {num_channels})" for name, count in found.items() if count != num_channels
    ]
    of_units = state["units.bias" if "units.bias" in state else "classifier.weight"]
    if of_units.shape[0] != num_units or thresholds.shape != (num_units,):
        wrong.append("units")
    if wrong:
        raise ValueError(f"its header and its weights disagree about {', '.join(wrong)}")
