"""Training that starts from filters learnt from another recording (Han & Wang, arXiv 2409.13067).

The backbone (temporal filters and spatial filter) is taken from a model. The classifier is not, since it
belongs to the units of that model. Then the whole network is tuned on the labels of the new recording. The
spatial filter depends on the number and the order of the channels, so the two probes must be alike.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from spikewise.core.config import Design, NetworkConfig, TransferConfig
from spikewise.core.errors import CheckpointError
from spikewise.core.rates import is_same_rate, show_rate
from spikewise.learning.training_loop import Start
from spikewise.models.backbone_file import Pretrained, load_pretrained
from spikewise.models.checkpoint import GroupModel, Model, load_model
from spikewise.models.esort import EsortNetwork, window_samples
from spikewise.models.neighbourhood import Backbone
from spikewise.sorting.groups import Group

logger = logging.getLogger(__name__)

_POSITION_TOLERANCE_UM = 1.0
"""Channel positions, relative to their mean, that differ by more give a warning. Chosen by hand."""


def open_pretrained(transfer: TransferConfig, design: Design) -> Model | Pretrained | None:
    """Return the model or the filters that the settings name, None if training starts from scratch.

    Raises
    ------
    CheckpointError
        If it cannot be read.
    """
    path = transfer.pretrained
    if path == "none":
        return None
    if design == "neighbourhood":
        return load_pretrained(path)
    return None if path is None else load_model(path)


def start_from(
    model: Model | Pretrained, groups: Sequence[Group], network: NetworkConfig, transfer: TransferConfig
) -> dict[str, Start] | dict[str, Backbone]:
    """Return what the training of each group starts from.

    Parameters
    ----------
    model : Model or Pretrained
        Filters for any probe, or a dense model. Among the groups of a dense model with as many channels, the
        one with the same name is used, or else the first.
    groups : sequence of Group
        The groups of the new recording.
    network : NetworkConfig
        The settings of the new network.
    transfer : TransferConfig
        Which filters are frozen, and how fast the others are tuned.

    Returns
    -------
    dict of str to Start or Backbone

    Raises
    ------
    CheckpointError
        If the window or the sizes of its network differ, or no group has as many channels.
    """
    if isinstance(model, Pretrained):
        return {
            group.name: model.for_window(
                window_samples(network, group.reader.sampling_frequency),
                network.window_ms,
                group.reader.num_channels,
            )
            for group in groups
        }
    for group in groups:
        _check_window(model, group, network)
    return {group.name: _start(_counterpart(model, group), group, transfer) for group in groups}


def _check_window(model: Model, group: Group, network: NetworkConfig) -> None:
    """Raise unless the filters of the model have the length and number of those to be trained."""
    rate = group.reader.sampling_frequency
    theirs = _filters(model.network_config, model.sampling_frequency)
    ours = _filters(network, rate)
    wrong = [name for name in ours if theirs[name] != ours[name]]
    if is_same_rate(rate, model.sampling_frequency):
        wrong = [name for name in wrong if name != "sampling frequency"]
    if wrong:
        raise CheckpointError(
            "the pretrained model has " + ", ".join(f"{name} {theirs[name]}" for name in wrong),
            "what the recording and the settings ask for: "
            + ", ".join(f"{name} {ours[name]}" for name in wrong),
            "give the network's settings of the pretrained model, resample the recording, or pretrain again",
        )


def _filters(network: NetworkConfig, sampling_frequency: float) -> dict[str, str]:
    return {
        "sampling frequency": show_rate(sampling_frequency),
        "window": f"{window_samples(network, sampling_frequency)} samples",
        "temporal features": "{} and {}".format(*network.temporal_features),
        "spatial features": f"{network.spatial_features}",
    }


def _counterpart(model: Model, group: Group) -> GroupModel:
    alike = [part for part in model.groups if len(part.channel_ids) == group.reader.num_channels]
    if not alike:
        known = ", ".join(str(len(part.channel_ids)) for part in model.groups)
        raise CheckpointError(
            f"group {group.name} of the recording has {group.reader.num_channels} channels",
            f"as many as the pretrained model was trained on: {known}",
            "pretrain on a recording of such a probe, or leave pretrained out",
        )
    return next((part for part in alike if part.name == group.name), alike[0])


def _start(part: GroupModel, group: Group, transfer: TransferConfig) -> Start:
    positions = group.recording.get_channel_locations()
    theirs = np.asarray(part.channel_positions_um)
    centred = [values - values.mean(axis=0) for values in (positions, theirs)]
    if theirs.shape != positions.shape or np.abs(centred[0] - centred[1]).max() > _POSITION_TOLERANCE_UM:
        logger.warning(
            "the channel positions of group %s differ from those of the pretrained model", group.name
        )
    rates = dict.fromkeys(
        EsortNetwork.TEMPORAL, 0.0 if transfer.frozen != "nothing" else transfer.temporal_rate
    )
    rates |= dict.fromkeys(
        EsortNetwork.SPATIAL, 0.0 if transfer.frozen == "backbone" else transfer.spatial_rate
    )
    backbone = (*EsortNetwork.TEMPORAL, *EsortNetwork.SPATIAL)
    state = {
        name: tensor.clone()
        for name, tensor in part.network.state_dict().items()
        if name.split(".")[0] in backbone
    }
    return Start(state, rates)
