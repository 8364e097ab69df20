"""The network of the neighbourhood design, computed only where its units may fire.

Most units are silent most of the time, so nearly every probability that the dense path computes is 0. Here
the gate of each unit (:mod:`spikewise.models.gates`) selects short blocks of time. In these blocks the
network of the unit is computed: first for one output of each block, then, where that output is promising, for
all outputs. Temporal features are computed only for the channels that the unit sees. Elsewhere the
probability is 0. The dense path remains the reference; tests bound how many spikes the gates lose.

As in the dense path, the work is done on tiles of a fixed grid of the recording, so the numbers are the same
to the bit however a recording is cut. One thread works through a tile, in compiled loops
(:mod:`spikewise.sorting.tiles`). Channels that lie near each other follow one another, so that they stay in
its cache. Threads take different tiles.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided
from scipy.sparse import csr_array
from scipy.sparse.csgraph import reverse_cuthill_mckee
from torch import Tensor

from spikewise.models.neighbourhood import Backbone, NeighbourhoodNetwork
from spikewise.sorting import kernels, tiles

_PROMISING = 0.02
"""All outputs of a block are computed if its first output has at least this probability. With it the tests
lose less than one spike in a thousand."""

Loop = Callable[[kernels.Samples, tiles.Weights, tiles.Grid, tiles.Space], None]
"""Computes a tile: :func:`spikewise.sorting.tiles.evaluate_tile`, or a loop that is timed as well."""


@dataclass(frozen=True)
class Evaluated:
    """Probabilities of the units in the open blocks of a tile, in the order of unit, then block.

    Attributes
    ----------
    unit_index : ndarray
        (num_open,)
    block : ndarray
        (num_open,) number of the block: from the tile's first or, of several tiles, from the recording's.
    probabilities : ndarray
        (num_open, outputs of a block) float32
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
    """Runs a network on tiles, where gates are open; several threads may call it at the same time.

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

    Attributes
    ----------
    weights : tiles.Weights
        Units in the order in which they are computed.
    grid : tiles.Grid
    row_of_unit : ndarray
        (num_units,) place of each unit in that order.
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
        first_output_suffices = stride < block <= plateau and window >= kernels.SUM_LANES
        promising = np.float32(_PROMISING if first_output_suffices else -1)
        self.grid = tiles.Grid(network.left_margin - 2 * block, block, stride, window, promising)
        order = _side_by_side(_array(network.channel_index), network.num_channels)
        self.row_of_unit = np.argsort(order)
        self.weights = _weights_of(network, order)
        self._size = network.num_channels, network.num_units
        self._spare: list[tiles.Space] = []

    def evaluate(self, tile: Tile, loop: Loop = tiles.evaluate_tile) -> tuple[Evaluated, np.ndarray]:
        """Compute the probabilities of a tile; it includes the network's margins.

        Returns
        -------
        Evaluated
        ndarray
            (4,) counts: see :data:`spikewise.sorting.tiles.OPENED`.
        """
        space = self._spare.pop() if self._spare else self.new_space(self.num_blocks)
        space.counts[:] = 0
        loop(kernels.Samples(tile.values, tile.step), self.weights, self.grid, space)
        evaluated = Evaluated(*tiles.evaluated_of(space.is_open, space.probabilities, self.row_of_unit))
        counts = space.counts.copy()
        self._spare.append(space)
        return evaluated, counts

    def new_space(self, num_blocks: int) -> tiles.Space:
        """Return memory for the results of a tile, or of other blocks that follow one another."""
        num_channels, num_units = self._size
        weights, at_once = self.weights, tiles.AT_ONCE
        num_near = weights.channel_index.shape[1]
        return tiles.Space(
            extremes=np.empty((num_channels, 2, num_blocks + 4), np.float32),
            is_open=np.empty((num_units, num_blocks), np.bool_),
            probabilities=np.empty((self.num_outputs, num_units, num_blocks), np.float32),
            between=np.zeros((at_once * num_near, weights.first[1].size), np.float32),
            inputs=np.zeros((at_once, weights.hidden[0].shape[2]), np.float32),
            hidden=np.zeros((at_once, weights.hidden[1][0].size), np.float32),
            is_seen=np.empty(num_channels, np.bool_),
            is_known=np.empty((1, num_blocks), np.bool_),
            none=np.zeros((1, num_blocks), np.bool_),
            outputs=np.empty((self.num_outputs * num_blocks, 2), np.int64),
            counts=np.zeros(4, np.int64),
        )


def _weights_of(network: NeighbourhoodNetwork, order: np.ndarray) -> tiles.Weights:
    """Return the weights of a network, its units in some order."""
    backbone, units = network.backbone, network.units
    first, second = filter_panels(backbone)
    num_features = second[1].size
    weight = _array(units.hidden_weight)[order]  # N, M * F, H
    of_channels = weight.reshape(len(weight), -1, backbone.num_features, weight.shape[2])
    padded = _with_rows(of_channels, num_features).reshape(len(weight), -1, weight.shape[2])
    hidden = kernels.panels(padded), kernels.panels(_array(units.hidden_bias)[order])[:, :, 0]
    num_hidden = kernels.LANES * hidden[0].shape[1]
    return tiles.Weights(
        _array(network.channel_index)[order],
        (_array(network.gate_weight)[order], _array(network.gate_level)[order]),
        (kernels.overlapping(_array(network.closer_weight)[order]), _array(network.closer_level)[order]),
        first,
        second,
        hidden,
        (_with_rows(_array(units.weight)[order], num_hidden)[:, :, 0].copy(), _array(units.bias)[order, 0]),
    )


def filter_panels(
    backbone: Backbone,
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Return for each of the two filters its panels (panels, inputs, 16) and its biases (panels, 16)."""
    first, second = backbone.filter1, backbone.filter2
    width = kernels.LANES * -(-first.out_features // kernels.LANES)
    return (
        (kernels.panels(_array(first.weight).T), kernels.panels(_array(first.bias)[None])[:, 0]),
        (
            kernels.panels(_with_rows(_array(second.weight).T, width)),
            kernels.panels(_array(second.bias)[None])[:, 0],
        ),
    )


def _side_by_side(channel_index: np.ndarray, num_channels: int) -> np.ndarray:
    """Return the units in an order in which units that see the same channels follow one another.

    The samples that one unit has read are still in the processor's cache for the next.
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


def join(evaluated: dict[int, Evaluated], num_blocks: int) -> Evaluated:
    """Join tiles, given by rising number, in the order of unit, then block."""
    unit_index = np.concatenate([tile.unit_index for tile in evaluated.values()])
    block = np.concatenate([tile.block + number * num_blocks for number, tile in evaluated.items()])
    order = np.argsort(unit_index, kind="stable")  # tiles, and the blocks of each, are in order
    probabilities = np.concatenate([tile.probabilities for tile in evaluated.values()])
    return Evaluated(unit_index[order], block[order], probabilities[order])
