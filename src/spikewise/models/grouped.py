"""The network of the design neighbourhood, computed as a few large products on a GPU.

:class:`spikewise.models.neighbourhood.NeighbourhoodNetwork` gathers the channels of each unit. On a GPU this
costs more than it saves: the features of a channel would be read and written once for each unit that sees it.
Here units that lie side by side form a group. A group is computed as one product with the features of all
channels that any of its units sees. The weights of channels that a unit does not see are zero. The channels
are sorted so that those of a group are neighbours in memory. Then few groups need a gather.

The products always have the shape of one tile, so on one device a tile gives the same numbers to the bit.

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
"""Consecutive outputs whose windows go through the first filter in one product. Chosen by hand."""
_UNITS_OF_GROUP = 16
"""Largest number of units of a group. Chosen by hand."""
_ALIGNED = 8
"""The samples of a block are a multiple of this: products of 16-bit numbers are fastest then. Chosen by
hand."""
_FILLED = 2.0
"""A group without a gather is computed with all channels from its first to its last. It may have up to so
many times the channels that its units see; above, the channels are gathered. Chosen by hand."""
_SETTING_LOCK = threading.Lock()
"""Held while a setting of PyTorch, which counts for the whole process, is changed."""


@dataclass(frozen=True)
class UnitGroup:
    """Units that are computed together.

    Attributes
    ----------
    units : ndarray of int
        (G,)
    channels : ndarray of int
        Channels that the group reads, as indices in the order of :func:`plan_groups`; ascending.
    """

    units: np.ndarray
    channels: np.ndarray

    @property
    def is_gathered(self) -> bool:
        """Whether its channels do not lie side by side."""
        return len(self.channels) < self.channels[-1] + 1 - self.channels[0]


def plan_groups(channel_index: np.ndarray, num_channels: int) -> tuple[np.ndarray, list[UnitGroup]]:
    """Choose an order of the channels, and groups of units that read few channels each.

    Parameters
    ----------
    channel_index : ndarray of int
        (num_units, M) channels of each unit.
    num_channels : int

    Returns
    -------
    order : ndarray of int
        (num_channels,) the channel at each index of the new order.
    groups : list of UnitGroup
        Each unit is in exactly one group.
    """
    num_units, near = channel_index.shape
    rows = np.repeat(np.arange(num_units), near)
    sees = csr_array((np.ones(rows.size, np.int32), (rows, channel_index.ravel())), (num_units, num_channels))
    orders = (np.arange(num_channels), reverse_cuthill_mckee((sees.T @ sees).tocsr(), symmetric_mode=True))
    plans = [(order.astype(np.int64), _groups_in_order(channel_index, order)) for order in orders]
    return min(plans, key=lambda plan: sum(len(g.units) * len(g.channels) for g in plan[1]))


def _groups_in_order(channel_index: np.ndarray, order: np.ndarray) -> list[UnitGroup]:
    """Group units whose channels are neighbours in an order of the channels."""
    positions = np.argsort(order)[channel_index]  # N, M: indices in the order
    in_order = np.argsort(positions.mean(axis=1), kind="stable")
    groups = []
    for begin in range(0, len(in_order), _UNITS_OF_GROUP):
        units = in_order[begin : begin + _UNITS_OF_GROUP]
        channels = np.unique(positions[units])
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
        It is not changed.
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
        Shape of a tile of traces; it ends with the window of the last output, or a little later.
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
        self._filters = self._on_device(_repeated(backbone.filter1.weight, stride, self._block_samples))
        self._filter_bias = self._on_device(backbone.filter1.bias.repeat(_OUTPUTS_OF_BLOCK))
        self._mixing = self._on_device(backbone.filter2.weight.T)
        self._mixing_bias = self._on_device(backbone.filter2.bias)
        in_order = np.concatenate([group.units for group in groups])
        self._column_of_unit = torch.from_numpy(in_order.argsort()).to(device)
        self._bias = self._on_device(network.units.bias, torch.float32)
        self._groups = [self._product(network, group, order) for group in groups]

    def _on_device(self, values: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return weights on the device; by default in the type that the network is computed in."""
        return values.detach().to(self.device, dtype or self._dtype).contiguous()

    def _product(self, network: NeighbourhoodNetwork, group: UnitGroup, order: np.ndarray) -> _Product:
        """Spread the weights of the units of a group over its channels; unseen channels get zero."""
        units = network.units
        features, hidden = network.backbone.num_features, units.hidden_bias.shape[2]
        index_of_channel = np.argsort(order)
        spread = torch.zeros(len(group.channels), features, len(group.units), hidden)
        for column, unit in enumerate(group.units):
            near = index_of_channel[network.channel_index[unit].cpu().numpy()]
            rows = torch.from_numpy(np.searchsorted(group.channels, near))
            spread[rows, :, column] = units.hidden_weight[unit].detach().cpu().view(-1, features, hidden)
        members = torch.from_numpy(group.units).to(units.hidden_bias.device)
        first, last = int(group.channels[0]), int(group.channels[-1])
        return _Product(
            self._on_device(spread.flatten(2).flatten(0, 1)),
            self._on_device(units.hidden_bias[members].flatten()),
            self._on_device(units.weight[members, :, 0], torch.float32),
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
            begins at the first sample.

        Returns
        -------
        Tensor
            (num_units, num_outputs) float32
        """
        with _sums_in_float32() if self.device.type == "cuda" else nullcontext():
            features = self._features(traces)  # B * Q, C, F
            logits = torch.empty(len(features), len(self._column_of_unit), device=self.device)
            first = 0
            for product in self._groups:
                hidden = torch.addmm(product.bias, product.inputs(features), product.weight).relu_()
                hidden = hidden.view(len(hidden), *product.last_weight.shape)  # B * Q, G, H
                last = first + len(product.last_weight)
                logits[:, first:last] = (hidden * product.last_weight).sum(dim=2)  # in float32
                first = last
        logits = logits.T[:, : self.num_outputs].index_select(0, self._column_of_unit)
        return logits.add_(self._bias).sigmoid_()

    def _features(self, traces: Tensor) -> Tensor:
        """Return the temporal features (B * Q, C, F) of all channels, in the order of :func:`plan_groups`."""
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
    """The weights of a group and the part of the features that it reads.

    Attributes
    ----------
    weight, bias : Tensor
        (channels * F, G * H) and (G * H,) of the hidden layer.
    last_weight : Tensor
        (G, H) of the last layer.
    channels : Tensor or None
        Channels to gather; None if they lie side by side.
    columns : slice
        Columns of the features (T, C * F) that hold the channels if they lie side by side.
    """

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
    """Let CUDA sum products of bfloat16 in float32, and restore the setting afterwards."""
    settings = torch.backends.cuda.matmul
    with _SETTING_LOCK:
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
