"""The network of the neighbourhood design, computed only where something happens.

Most units are silent most of the time, so nearly all of what the dense path computes is the probability 0.
Here each unit's gate (:mod:`spikewise.models.gates`) says in which short blocks of time its network is asked:
the temporal features are computed for the channels and blocks that an asked unit sees, its hidden features
and its probability for those blocks alone, first for one moment of each, then, where that says that there may
be more, for all; and peaks are looked for among them. Elsewhere the probability is 0. The dense path remains
the reference; tests bound what the gates lose.

As in the dense path, the work is done on tiles of a fixed grid of the recording, so that the same numbers
come out to the bit however a recording is cut. A tile is worked through by one thread, in compiled loops
(:mod:`spikewise.sorting.tiles`), channels that lie near each other one after the other, so that they stay in
its cache; threads take different tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.sorting import kernels, tiles

_NOT_TIMED = np.zeros(0, np.int64)
_GLIMPSE = 0.02
"""Probability at one moment of a block from which on all its moments are looked at."""


@dataclass(frozen=True)
class Asked:
    """Probabilities of the units that were asked in a tile, in the order of unit, then block.

    Attributes
    ----------
    unit_index : ndarray
        (num_asked,)
    block : ndarray
        (num_asked,) number of the block; from the tile's first or, of several tiles, the recording's.
    probabilities : ndarray
        (num_asked, outputs of a block) float32
    """

    unit_index: np.ndarray
    block: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class Tile:
    """Samples of a tile: sample s of channel c is ``values[c * step + s]``.

    Attributes
    ----------
    values : ndarray
        One-dimensional float32; a view where the samples of each channel lie side by side in memory.
    step, num_channels : int
    """

    values: np.ndarray
    step: int
    num_channels: int

    @classmethod
    def of(cls, traces: np.ndarray) -> Tile:
        """Return traces (num_samples, num_channels) as a tile."""
        by_channel = traces.T
        num_channels, num_samples = by_channel.shape
        step, rest = divmod(by_channel.strides[0], 4)
        is_tile = by_channel.dtype == np.float32 and by_channel.strides[1] == 4
        if not is_tile or rest or step < num_samples:
            by_channel, step = np.ascontiguousarray(by_channel, np.float32), num_samples
        length = (num_channels - 1) * step + num_samples
        return cls(as_strided(by_channel, (length,), (4,), writeable=False), step, num_channels)


class SparseNetwork:
    """Runs a network on tiles, where gates are open; several threads may ask at the same time.

    Parameters
    ----------
    network : NeighbourhoodNetwork
        In evaluation mode, on the CPU.
    block : int
        Samples of a block; the network's margins must hold two.
    stride : int
        Samples from one output to the next.
    plateau : int
        Samples for which the probability of a spike is high.
    tile_samples : int
        Samples of a tile: whole blocks.
    """

    def __init__(
        self, network: NeighbourhoodNetwork, block: int, stride: int, plateau: int, tile_samples: int
    ):
        if min(network.left_margin, network.right_margin) < 2 * block:
            raise ValueError(
                f"a window of {network.window_samples} samples has no room for blocks of {block}"
            )
        self.block = block
        self.stride = stride
        self.num_blocks = tile_samples // block
        self.num_outputs = block // stride
        window = network.window_samples
        self._grid = tiles.Grid(network.left_margin - 2 * block, block, stride, window)
        can_glimpse = stride < block <= plateau and window >= kernels.SUM_LANES
        self._glimpse = np.float32(_GLIMPSE if can_glimpse else -1)
        order = _side_by_side(_array(network.channel_index), network.num_channels)
        self._place = np.argsort(order)
        self._weights = _weights_of(network, order)
        self._size = network.num_channels, network.num_units
        weights = self._weights
        num_near, at_once = weights.channel_index.shape[1], tiles.AT_ONCE
        self._shapes = (
            (at_once * num_near, weights.first[1].size),
            (at_once, weights.hidden[0].shape[2]),
            (at_once, weights.hidden[1][0].size),
        )
        self._spare: list[tiles.Space] = []

    def ask(self, tile: Tile, ticks: np.ndarray = _NOT_TIMED) -> tuple[Asked, np.ndarray]:
        """Compute the probabilities of a tile, which is given with the network's margins.

        Returns them and what was counted (:data:`spikewise.sorting.tiles.OPENED`); adds to `ticks` where they
        are given (:data:`spikewise.sorting.tiles.GATES`).
        """
        space = self._spare.pop() if self._spare else self._new_space()
        counts = np.zeros(4, np.int64)
        tiles.answer_tile(
            tile.values, tile.step, self._weights, self._grid, self._glimpse, space, counts, ticks
        )
        asked = Asked(*tiles.asked_of(space.is_open, space.probabilities, self._place))
        self._spare.append(space)
        return asked, counts

    def _new_space(self) -> tiles.Space:
        """Return memory to work in."""
        num_channels, num_units = self._size
        return tiles.Space(
            np.empty((num_channels, 2, self.num_blocks + 4), np.float32),
            np.empty((num_units, self.num_blocks), np.bool_),
            np.empty((self.num_outputs, num_units, self.num_blocks), np.float32),
            *(np.zeros(shape, np.float32) for shape in self._shapes),
        )


def _weights_of(network: NeighbourhoodNetwork, order: np.ndarray) -> tiles.Network:
    """Return the weights of a network, its units in some order."""
    backbone, units = network.backbone, network.units
    first, second = backbone.filter1, backbone.filter2
    width = kernels.LANES * -(-first.out_features // kernels.LANES)
    second_panels = kernels.panels(_with_rows(_array(second.weight).T, width))
    num_features = kernels.LANES * len(second_panels)
    weight = _array(units.hidden_weight)[order]  # N, M * F, H
    of_channels = weight.reshape(len(weight), -1, backbone.num_features, weight.shape[2])
    padded = _with_rows(of_channels, num_features).reshape(len(weight), -1, weight.shape[2])
    hidden = kernels.panels(padded), kernels.panels(_array(units.hidden_bias)[order])[:, :, 0]
    num_hidden = kernels.LANES * hidden[0].shape[1]
    return tiles.Network(
        _array(network.channel_index)[order],
        (_array(network.gate_weight)[order], _array(network.gate_level)[order]),
        (kernels.overlapping(_array(network.closer_weight)[order]), _array(network.closer_level)[order]),
        (kernels.panels(_array(first.weight).T), kernels.panels(_array(first.bias)[None])[:, 0]),
        (second_panels, kernels.panels(_array(second.bias)[None])[:, 0]),
        hidden,
        (_with_rows(_array(units.weight)[order], num_hidden)[:, :, 0].copy(), _array(units.bias)[order, 0]),
    )


def _side_by_side(channel_index: np.ndarray, num_channels: int) -> np.ndarray:
    """Return the units in an order in which those that see the same channels come one after the other.

    What one has brought into a processor's cache is there for the next.
    """
    rows = np.repeat(np.arange(len(channel_index)), channel_index.shape[1])
    sees = csr_array(
        (np.ones(channel_index.size), (rows, channel_index.ravel())), (len(channel_index), num_channels)
    )
    return reverse_cuthill_mckee((sees @ sees.T).tocsr(), symmetric_mode=True)


def _array(tensor: Tensor) -> np.ndarray:
    return np.ascontiguousarray(tensor.detach().numpy())


def _with_rows(weight: np.ndarray, num_rows: int) -> np.ndarray:
    """Return weights (..., rows, features) with rows of zeros after them."""
    padded = np.zeros((*weight.shape[:-2], num_rows, weight.shape[-1]), np.float32)
    padded[..., : weight.shape[-2], :] = weight
    return padded


def join(asked: dict[int, Asked], num_blocks: int) -> Asked:
    """Join tiles, by rising number, to one: in the order of unit, then block."""
    unit_index = np.concatenate([tile.unit_index for tile in asked.values()])
    block = np.concatenate([tile.block + number * num_blocks for number, tile in asked.items()])
    order = np.argsort(unit_index, kind="stable")  # tiles, and the blocks of each, are in order
    probabilities = np.concatenate([tile.probabilities for tile in asked.values()])
    return Asked(unit_index[order], block[order], probabilities[order])
