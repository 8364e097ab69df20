"""The network of the neighbourhood design as a few large products, for devices that are fast at these.

The network itself gathers the channels of each unit. On a GPU that gather costs more than it saves: the
features of a channel would be read and written once for each unit that sees it. Here units that lie side by
side are computed together, as one product with the features of all channels that one of them sees; the
weights of channels that a unit does not see are zero. Channels are put in an order in which those of a group
are neighbours in memory, so that hardly anything is gathered.

All products have the shape of one tile, whatever is asked for, so that a tile's numbers are the same to the
bit on one device.

Shapes in comments: C channels, S samples, B blocks of outputs, Q outputs of a block, L samples of a block's
windows, F1 and F temporal features, N units, H hidden features of a unit, G units of a group.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from spikewise.models.neighbourhood import NeighbourhoodNetwork

_OUTPUTS_OF_BLOCK = 16
_UNITS_OF_GROUP = 16
_ALIGNED = 8
"""Rows of matrices of 16-bit numbers are multiplied fastest where their length is a multiple of this."""
_FILLED = 2.0
"""Channels between those of a group are computed with, up to so many times as many, to spare the gather."""
_SETTING = threading.Lock()
"""Held while a setting of the whole process is another."""


@dataclass(frozen=True)
class UnitGroup:
    """Units that are computed together.

    Attributes
    ----------
    units : ndarray of int
        (G,)
    channels : ndarray of int
        Places, in the order of the channels, that the group takes; ascending.
    """

    units: np.ndarray
    channels: np.ndarray

    @property
    def is_gathered(self) -> bool:
        """Whether its channels do not lie side by side."""
        return len(self.channels) < self.channels[-1] + 1 - self.channels[0]


def plan_groups(channel_index: np.ndarray, num_channels: int) -> tuple[np.ndarray, list[UnitGroup]]:
    """Return an order of the channels, and groups of units that take few channels each.

    Parameters
    ----------
    channel_index : ndarray of int
        (num_units, M) channels of each unit.
    num_channels : int

    Returns
    -------
    order : ndarray of int
        (num_channels,) the channel at each place.
    groups : list of UnitGroup
        Each unit is in one of them.
    """
    num_units, near = channel_index.shape
    rows = np.repeat(np.arange(num_units), near)
    sees = csr_array((np.ones(rows.size, np.int32), (rows, channel_index.ravel())), (num_units, num_channels))
    orders = (np.arange(num_channels), reverse_cuthill_mckee((sees.T @ sees).tocsr(), symmetric_mode=True))
    plans = [(order.astype(np.int64), _groups_in_order(channel_index, order)) for order in orders]
    return min(plans, key=lambda plan: sum(len(g.units) * len(g.channels) for g in plan[1]))


def _groups_in_order(channel_index: np.ndarray, order: np.ndarray) -> list[UnitGroup]:
    """Group units that are neighbours in an order of the channels."""
    places = np.argsort(order)[channel_index]  # N, M
    in_order = np.argsort(places.mean(axis=1), kind="stable")
    groups = []
    for begin in range(0, len(in_order), _UNITS_OF_GROUP):
        units = in_order[begin : begin + _UNITS_OF_GROUP]
        channels = np.unique(places[units])
        between = np.arange(channels[0], channels[-1] + 1)
        groups.append(
            UnitGroup(units, between if len(between) <= _FILLED * len(channels) else channels),
        )
    return groups


class GroupedNetwork:
    """A trained network on a device, for tiles of one shape.

    Parameters
    ----------
    network : NeighbourhoodNetwork
        It is only read.
    num_outputs : int
        Outputs of a tile.
    stride : int
        Samples from one output to the next.
    device : torch.device
    dtype : torch.dtype
        Of features and weights: float32 or bfloat16. Logits and probabilities are float32.

    Attributes
    ----------
    num_channels, num_samples : int
        Shape of a tile of traces, which ends after the window of the last output, or a little later.
    num_outputs : int
    device : torch.device
    """

    def __init__(
        self,
        network: NeighbourhoodNetwork,
        num_outputs: int,
        stride: int,
        device: torch.device,
        dtype: torch.dtype,
    ):
        self.num_channels, self.num_outputs, self.device = network.num_channels, num_outputs, device
        self._stride, self._dtype = stride, dtype
        self._num_blocks = -(-num_outputs // _OUTPUTS_OF_BLOCK)
        length = network.window_samples + (_OUTPUTS_OF_BLOCK - 1) * stride
        self._block_samples = -(-length // _ALIGNED) * _ALIGNED
        self.num_samples = (self._num_blocks - 1) * _OUTPUTS_OF_BLOCK * stride + self._block_samples
        order, groups = plan_groups(network.channel_index.cpu().numpy(), network.num_channels)
        self._order = None if (order == np.arange(len(order))).all() else torch.from_numpy(order).to(device)
        backbone = network.backbone
        self._filters = self._placed(_repeated(backbone.filter1.weight, stride, self._block_samples))
        self._filter_bias = self._placed(backbone.filter1.bias.repeat(_OUTPUTS_OF_BLOCK))
        self._mixing = self._placed(backbone.filter2.weight.T)
        self._mixing_bias = self._placed(backbone.filter2.bias)
        in_order = np.concatenate([group.units for group in groups])
        self._place_of_unit = torch.from_numpy(in_order.argsort()).to(device)
        self._bias = self._placed(network.units.bias, torch.float32)
        self._groups = [self._product(network, group, order) for group in groups]

    def _placed(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return weights on the device, in the type of the network if no other is given."""
        return values.detach().to(self.device, dtype or self._dtype).contiguous()

    def _product(self, network: NeighbourhoodNetwork, group: UnitGroup, order: np.ndarray) -> _Product:
        """Spread the weights of the units of a group over its channels."""
        units = network.units
        features, hidden = network.backbone.num_features, units.hidden_bias.shape[2]
        place_of_channel = np.argsort(order)
        spread = torch.zeros(len(group.channels), features, len(group.units), hidden)
        for column, unit in enumerate(group.units):
            near = place_of_channel[network.channel_index[unit].cpu().numpy()]
            rows = torch.from_numpy(np.searchsorted(group.channels, near))
            spread[rows, :, column] = units.hidden_weight[unit].detach().cpu().view(-1, features, hidden)
        members = torch.from_numpy(group.units).to(units.hidden_bias.device)
        first, last = int(group.channels[0]), int(group.channels[-1])
        return _Product(
            self._placed(spread.flatten(2).flatten(0, 1)),
            self._placed(units.hidden_bias[members].flatten()),
            self._placed(units.weight[members, :, 0], torch.float32),
            torch.from_numpy(group.channels).to(self.device) if group.is_gathered else None,
            slice(first * features, (last + 1) * features),
        )

    @torch.inference_mode()
    def __call__(self, traces: Tensor) -> Tensor:
        """Return the probabilities of a tile.

        Parameters
        ----------
        traces : Tensor
            (num_channels, num_samples) float32, in noise standard deviations, on the device. The first window
            begins with them.

        Returns
        -------
        Tensor
            (num_units, num_outputs) float32
        """
        with _sums_in_float32() if self.device.type == "cuda" else nullcontext():
            features = self._features(traces)  # B * Q, C, F
            logits = torch.empty(len(features), len(self._place_of_unit), device=self.device)
            first = 0
            for product in self._groups:
                hidden = torch.addmm(product.bias, product.inputs(features), product.weight).relu_()
                hidden = hidden.view(len(hidden), *product.last_weight.shape)  # B * Q, G, H
                last = first + len(product.last_weight)
                logits[:, first:last] = (hidden * product.last_weight).sum(dim=2)  # in float32
                first = last
        logits = logits.T[:, : self.num_outputs].index_select(0, self._place_of_unit)
        return logits.add_(self._bias).sigmoid_()

    def _features(self, traces: Tensor) -> Tensor:
        """Return the temporal features (B * Q, C, F) of all channels, in the order of the channels."""
        traces = (traces if self._order is None else traces.index_select(0, self._order)).contiguous()
        num_channels, num_samples = traces.shape
        shape = (self._num_blocks, num_channels, self._block_samples)
        step = _OUTPUTS_OF_BLOCK * self._stride
        windows = torch.empty(shape, dtype=self._dtype, device=self.device)
        windows.copy_(traces.as_strided(shape, (step, num_samples, 1)))
        first = torch.addmm(self._filter_bias, windows.flatten(0, 1), self._filters).relu_()
        mixed = torch.addmm(self._mixing_bias, first.view(-1, len(self._mixing)), self._mixing)
        mixed = mixed.view(self._num_blocks, num_channels, _OUTPUTS_OF_BLOCK, -1)
        features = torch.empty_like(mixed.transpose(1, 2), memory_format=torch.contiguous_format)
        torch.clamp_min(mixed.transpose(1, 2), 0, out=features)  # B, Q, C, F
        return features.flatten(0, 1)


@dataclass(frozen=True)
class _Product:
    """Weights (channels * F, G * H) and bias (G * H) of a group, its last weights (G, H), and its inputs."""

    weight: Tensor
    bias: Tensor
    last_weight: Tensor
    channels: Tensor | None
    columns: slice

    def inputs(self, features: Tensor) -> Tensor:
        """Return the features (T, channels * F) of the group's channels from those of all (T, C, F)."""
        if self.channels is None:
            return features.flatten(1)[:, self.columns]
        return features.index_select(1, self.channels).flatten(1)


@contextmanager
def _sums_in_float32() -> Iterator[None]:
    """Let no product of bfloat16 on CUDA add its parts in bfloat16."""
    settings = torch.backends.cuda.matmul
    with _SETTING:
        before = settings.allow_bf16_reduced_precision_reduction
        settings.allow_bf16_reduced_precision_reduction = False
        try:
            yield
        finally:
            settings.allow_bf16_reduced_precision_reduction = before


def _repeated(weight: Tensor, stride: int, length: int) -> Tensor:
    """Return a matrix (length, Q * F1) that applies a filter (F1, window) at each output of a block."""
    features, window = weight.shape
    matrix = torch.zeros(length, _OUTPUTS_OF_BLOCK, features)
    for output in range(_OUTPUTS_OF_BLOCK):
        matrix[output * stride : output * stride + window, output] = weight.detach().cpu().T
    return matrix.flatten(1)
