"""Models of a group with units added, or with some of its units only."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch

from spikewise.models.checkpoint import GroupModel
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.models.unit_waveforms import UnitWaveforms


def with_more_units(part: GroupModel, more: GroupModel, unit_ids: tuple[int | str, ...]) -> GroupModel:
    """Return a group's model with further units behind its own, whose networks stay as they are.

    Parameters
    ----------
    part : GroupModel
        Of the design neighbourhood.
    more : GroupModel
        Units that were learnt with the filters of `part`, on as many channels each.
    unit_ids : tuple of int or str
        Their ids.
    """
    old, new = part.network.state_dict(), more.network.state_dict()
    state = {
        name: tensor if name.startswith("backbone.") else torch.cat([tensor, new[name]])
        for name, tensor in old.items()
    }
    waveforms = None
    if part.waveforms is not None and more.waveforms is not None:
        waveforms = _joined(part.waveforms, more.waveforms)
    return replace(
        part,
        network=_network(part, state),
        unit_ids=part.unit_ids + unit_ids,
        thresholds=np.concatenate([part.thresholds, more.thresholds]),
        waveforms=waveforms,
    )


def last_units(part: GroupModel, first: int) -> GroupModel:
    """Return the model of a group's units from an index on, without their mean waveforms."""
    state = {
        name: tensor if name.startswith("backbone.") else tensor[first:]
        for name, tensor in part.network.state_dict().items()
    }
    ids, thresholds = part.unit_ids[first:], part.thresholds[first:]
    return replace(part, network=_network(part, state), unit_ids=ids, thresholds=thresholds, waveforms=None)


def _network(part: GroupModel, state: dict[str, torch.Tensor]) -> NeighbourhoodNetwork:
    """Return a network with the filters of a group's, and units with these weights."""
    if not isinstance(part.network, NeighbourhoodNetwork):
        raise TypeError("only networks of the design neighbourhood can have units added")
    hidden = part.network.units.hidden_bias.shape[2]
    backbone = copy.deepcopy(part.network.backbone)
    network = NeighbourhoodNetwork(backbone, part.network.num_channels, state["channel_index"], hidden)
    network.load_state_dict(state)
    return network.cpu().eval()


def _joined(one: UnitWaveforms, other: UnitWaveforms) -> UnitWaveforms:
    """Return the waveforms of two sets of units; each set has shapes of its own, so there are both."""
    most = max(one.channel_index.shape[1], other.channel_index.shape[1])
    first, second = len(one.shapes), len(other.shapes)
    channels, weights = [], []
    for waveforms, shapes in ((one, (0, second)), (other, (first, 0))):
        more = (0, most - waveforms.channel_index.shape[1])
        channels.append(np.pad(waveforms.channel_index, ((0, 0), more), constant_values=-1))
        weights.append(np.pad(waveforms.weights, ((0, 0), more, shapes)))
    return replace(
        one,
        channel_index=np.concatenate(channels),
        weights=np.concatenate(weights),
        shapes=np.concatenate([one.shapes, other.shapes]),
    )
