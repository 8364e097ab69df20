"""The network of the neighbourhood design, computed only where something happens.

Most units are silent most of the time, so nearly all of what the dense path computes is the probability 0.
Here each unit's gate (:mod:`spikewise.models.gates`) says in which short blocks of time its network is asked:
the temporal features are computed for the channels and blocks that an asked unit sees, its hidden features
and its probability for those blocks alone, first for one moment of each, then, where that says that there may
be more, for all; and peaks are looked for among them. Elsewhere the probability is 0. The dense path remains
the reference; tests bound what the gates lose.

As in the dense path, the work is done on tiles of a fixed grid of the recording, so that the same numbers
come out to the bit however a recording is cut. A tile is worked through by one thread, in compiled loops
(:mod:`spikewise.sorting.kernels`), and is so small that it stays in a processor's cache; threads take
different tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.sorting import compiled, kernels

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


class Workspace:
    """Memory that a thread works in, used again for each tile.

    Parameters
    ----------
    num_channels, num_units, num_blocks, num_outputs, num_features : int
    """

    def __init__(
        self, num_channels: int, num_units: int, num_blocks: int, num_outputs: int, num_features: int
    ):
        self.extremes = np.empty((num_channels, 2, num_blocks + 4), np.float32)
        self.is_needed = np.empty((num_channels, num_blocks), np.bool_)
        self.features = np.empty((num_channels, num_blocks, num_features), np.float32)
        self.probabilities = np.empty((num_outputs, num_units, num_blocks), np.float32)


class SparseNetwork:
    """Runs a network on tiles, where gates are open; several threads may ask at the same time.

    Parameters
    ----------
    network : NeighbourhoodNetwork
        In evaluation mode, on the CPU.
    block : int
        Samples of a block.
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
        self.block = block
        self.stride = stride
        self.num_blocks = tile_samples // block
        self.num_outputs = block // stride
        self._window = network.window_samples
        self._begin = network.left_margin - 2 * block
        self._can_glimpse = stride < block <= plateau and self._window >= kernels.SUM_LANES
        order = _side_by_side(_array(network.channel_index), network.num_channels)
        self._order, self._place = order, np.argsort(order)
        self._channel_index = _array(network.channel_index)[order]
        self._gate = _array(network.gate_weight)[order], _array(network.gate_level)[order]
        closer = kernels.overlapping(_array(network.closer_weight)[order])
        self._closer_gate = closer, _array(network.closer_level)[order]
        backbone, units = network.backbone, network.units
        first, second = backbone.filter1, backbone.filter2
        hidden = kernels.LANES * -(-first.out_features // kernels.LANES)
        self._first = kernels.panels(_array(first.weight).T), kernels.panels(_array(first.bias)[None])[:, 0]
        self._second = (
            kernels.panels(_with_rows(_array(second.weight).T, hidden)),
            kernels.panels(_array(second.bias)[None])[:, 0],
        )
        num_features = kernels.LANES * len(self._second[0])
        weight = _array(units.hidden_weight)[order]  # N, M * F, H
        of_channels = weight.reshape(len(weight), -1, backbone.num_features, weight.shape[2])
        padded = _with_rows(of_channels, num_features).reshape(len(weight), -1, weight.shape[2])
        self._hidden = kernels.panels(padded), kernels.panels(_array(units.hidden_bias)[order])[:, :, 0]
        width = kernels.LANES * self._hidden[0].shape[1]
        self._last = (
            _with_rows(_array(units.weight)[order], width)[:, :, 0].copy(),
            _array(units.bias)[order, 0],
        )
        self._size = network.num_channels, network.num_units, self.num_blocks, self.num_outputs, num_features
        self._spare: list[Workspace] = []

    def ask(self, tile: Tile) -> Asked:
        """Compute the probabilities of a tile, which is given with the network's margins."""
        space = self._spare.pop() if self._spare else Workspace(*self._size)
        is_open = self._open(tile, space)
        is_known = np.zeros_like(is_open)
        if self._can_glimpse:
            is_known = self._closer(tile, is_open)
            self._answer(tile, is_known, 0, space)
            compiled.keep_promising(is_open, is_known, space.probabilities[0], np.float32(_GLIMPSE))
        self._answer(tile, is_open & ~is_known, 0, space)
        for output in range(1, self.num_outputs):
            self._answer(tile, is_open, output, space)
        unit_index, block = np.nonzero(is_open[self._place])
        probabilities = space.probabilities[:, self._place[unit_index], block].T.copy()
        self._spare.append(space)
        return Asked(unit_index, block, probabilities)

    def _open(self, tile: Tile, space: Workspace) -> np.ndarray:
        """Return in which blocks of the tile each unit is asked: (num_units, num_blocks)."""
        compiled.block_extremes(tile.values, tile.step, self._begin, self.block, space.extremes)
        is_open = np.empty((len(self._channel_index), self.num_blocks), np.bool_)
        compiled.open_gates(space.extremes, self._channel_index, *self._gate, is_open)
        return is_open

    def _closer(self, tile: Tile, is_open: np.ndarray) -> np.ndarray:
        """Return the open blocks (num_units, num_blocks) in which the second gates are open too."""
        is_worth = is_open.copy()
        weight, level = self._closer_gate
        kernels.close_gates(
            tile.values, tile.step, self.block, self._channel_index, weight, self._window, level, is_worth
        )
        return is_worth

    def _answer(self, tile: Tile, is_asked: np.ndarray, output: int, space: Workspace) -> None:
        """Compute the probabilities of one output of the blocks in which units are asked."""
        if is_asked.any():
            compiled.mark_channels(is_asked, self._channel_index, space.is_needed)
            self._features(tile, output, space)
            self._units(is_asked, output, space)

    def _features(self, tile: Tile, output: int, space: Workspace) -> None:
        """Compute the features of the blocks of channels that are needed."""
        begin = output * self.stride
        kernels.features_of_channels(
            tile.values,
            tile.step,
            begin,
            self.block,
            space.is_needed,
            self._first,
            self._second,
            space.features,
        )

    def _units(self, is_asked: np.ndarray, output: int, space: Workspace) -> None:
        """Compute the probabilities of units from the features of their channels."""
        kernels.answers_of_units(
            space.features,
            is_asked,
            self._channel_index,
            self._hidden,
            self._last,
            space.probabilities[output],
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


def join(tiles: dict[int, Asked], num_blocks: int) -> Asked:
    """Join tiles, by number, to one: in the order of unit, then block."""
    unit_index = np.concatenate([tile.unit_index for tile in tiles.values()])
    block = np.concatenate([tile.block + number * num_blocks for number, tile in tiles.items()])
    order = np.lexsort((block, unit_index))
    probabilities = np.concatenate([tile.probabilities for tile in tiles.values()])
    return Asked(unit_index[order], block[order], probabilities[order])
