"""The network of the neighbourhood design, computed only where something happens.

Most units are silent most of the time, so nearly all of what the dense path computes is the probability 0.
Here each unit's gate (:mod:`spikewise.models.gates`) says in which short blocks of time its network is asked:
the temporal features are computed for the channels and blocks that an asked unit sees, its hidden features
and its probability for those blocks alone, first for one moment of each, then, where that says that there may
be more, for all; and peaks are looked for among them. Elsewhere the probability is 0. The dense path remains
the reference; tests bound what the gates lose.

As in the dense path, the work is done on tiles of a fixed grid of the recording, so that the same numbers
come out to the bit however a recording is cut.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor
from torch.nn import functional

from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.sorting import compiled
from spikewise.threads import on_all_cores

_GLIMPSE = 0.02
"""Probability at one moment of a block from which on all its moments are looked at."""
_PIECE_BLOCKS = 64
"""Blocks of one unit that are computed together."""
_PIECES_AT_ONCE = 16
_ROWS_AT_ONCE = 4096
_CHANNELS_AT_ONCE = 16
_UNITS_AT_ONCE = 8


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
    """Runs a network on tiles, where gates are open.

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
        self.network = network
        self.block = block
        self._can_glimpse = stride < block <= plateau
        self.stride = stride
        self.num_blocks = tile_samples // block
        self.num_outputs = block // stride
        self._channel_index = network.channel_index.numpy()
        self._weight = network.gate_weight.numpy()
        self._level = network.gate_level.numpy()
        self._closer_weight = network.closer_weight.numpy()
        self._closer_level = network.closer_level.numpy()
        backbone = network.backbone
        self._filters = {
            count: (
                _repeated(backbone.filter1.weight, count, stride),
                backbone.filter1.bias.detach().repeat(count),
            )
            for count in (1, self.num_outputs)
        }
        self._buffer = np.empty(_ROWS_AT_ONCE * len(self._filters[self.num_outputs][0]), np.float32)

    @torch.inference_mode()
    def ask(self, tile: Tile) -> Asked:
        """Compute the probabilities of a tile, which is given with the network's margins."""
        is_open = self._open(tile)
        if self._can_glimpse:
            glimpse = self._answer(tile, self._closer(tile, is_open), 1)
            is_open = self._looked_at(glimpse, is_open)
        return self._answer(tile, is_open, self.num_outputs)

    def _answer(self, tile: Tile, is_open: np.ndarray, num_outputs: int) -> Asked:
        """Compute so many outputs, from the first on, of each block in which a unit's gate is open."""
        features, row_of = self._features(tile, is_open, num_outputs)
        unit_index, block = np.divmod(np.flatnonzero(is_open), self.num_blocks)
        rows = np.empty((len(block), num_outputs, self._channel_index.shape[1]), np.int64)
        compiled.rows_of_inputs(unit_index, block, self._channel_index, row_of, rows)
        probabilities = self._units(features, torch.from_numpy(rows), unit_index)
        return Asked(unit_index, block, probabilities.numpy())

    def _looked_at(self, glimpse: Asked, is_open: np.ndarray) -> np.ndarray:
        """Return the blocks (num_units, num_blocks) in or beside which one output says that there may be.

        A block is shorter than the plateau of a spike, so that one output of a block falls on it. At the ends
        of the tile, whose neighbours are not seen, all that was asked stays.
        """
        seen = np.zeros((len(is_open), self.num_blocks + 2), np.bool_)
        seen[:, :2] = seen[:, -2:] = True
        answered = glimpse.probabilities[:, 0] > _GLIMPSE
        seen[glimpse.unit_index[answered], glimpse.block[answered] + 1] = True
        return is_open & (seen[:, :-2] | seen[:, 1:-1] | seen[:, 2:])

    def _open(self, tile: Tile) -> np.ndarray:
        """Return in which blocks of the tile each unit is asked: (num_units, num_blocks)."""
        extremes = np.empty((tile.num_channels, 2, self.num_blocks + 4), np.float32)
        begin = self.network.left_margin - 2 * self.block

        def measure(first: int) -> None:
            stop = min(first + _CHANNELS_AT_ONCE, tile.num_channels)
            compiled.block_extremes(tile.values, tile.step, begin, self.block, first, stop, extremes)

        on_all_cores(measure, range(0, tile.num_channels, _CHANNELS_AT_ONCE))
        num_units = len(self._level)
        is_open = np.empty((num_units, self.num_blocks), np.bool_)

        def decide(first: int) -> None:
            stop = min(first + _UNITS_AT_ONCE, num_units)
            compiled.open_gates(
                extremes, self._channel_index, self._weight, self._level, first, stop, is_open
            )

        on_all_cores(decide, range(0, num_units, _UNITS_AT_ONCE))
        return is_open

    def _closer(self, tile: Tile, is_open: np.ndarray) -> np.ndarray:
        """Return the open blocks (num_units, num_blocks) in or beside which the second gates are open too."""
        is_worth = is_open.copy()

        def decide(first: int) -> None:
            stop = min(first + _UNITS_AT_ONCE, len(is_worth))
            compiled.close_gates(
                tile.values,
                tile.step,
                self.block,
                self._channel_index,
                self._closer_weight,
                self._closer_level,
                first,
                stop,
                is_worth,
            )

        on_all_cores(decide, range(0, len(is_worth), _UNITS_AT_ONCE))
        beside = is_worth.copy()
        beside[:, 1:] |= is_worth[:, :-1]
        beside[:, :-1] |= is_worth[:, 1:]
        return is_open & beside

    def _features(self, tile: Tile, is_open: np.ndarray, num_outputs: int) -> tuple[Tensor, np.ndarray]:
        """Return the features of the blocks of channels that are needed, and their numbers (C, B)."""
        is_needed = np.zeros((tile.num_channels, self.num_blocks), np.bool_)
        compiled.mark_channels(is_open, self._channel_index, is_needed)
        places = np.flatnonzero(is_needed)
        row_of = np.empty(is_needed.shape, np.int64)
        row_of.ravel()[places] = np.arange(len(places))
        backbone = self.network.backbone
        filters, filter_bias = self._filters[num_outputs]
        features = torch.empty(len(places) * num_outputs, backbone.num_features)
        weight, bias = backbone.filter2.weight.T, backbone.filter2.bias
        for begin in range(0, len(places), _ROWS_AT_ONCE):
            rows = places[begin : begin + _ROWS_AT_ONCE]
            hidden = torch.addmm(filter_bias, self._stretches(tile, rows, len(filters)), filters)
            part = features[begin * num_outputs : (begin + len(rows)) * num_outputs]
            torch.addmm(bias, functional.relu_(hidden).view(len(part), -1), weight, out=part)
            functional.relu_(part)
        return features, row_of

    def _stretches(self, tile: Tile, places: np.ndarray, length: int) -> Tensor:
        """Return the stretches (num_places, length) of blocks of channels, in a buffer that is used again."""
        # By one thread: those of PyTorch still spin after the last product, and would be in the way.
        cut = self._buffer[: len(places) * length].reshape(-1, length)
        compiled.cut_stretches(tile.values, tile.step, places, self.num_blocks, self.block, cut)
        return torch.from_numpy(cut)

    def _units(self, features: Tensor, rows: Tensor, unit_index: np.ndarray) -> Tensor:
        """Return the probabilities (num_asked, num_outputs) of units from the rows of features they take."""
        units, num_outputs = self.network.units, rows.shape[1]
        probabilities = torch.empty(len(rows), num_outputs)
        unit_of, entries, is_filling = _pieces(unit_index, len(self._level))
        done = 0
        for begin in range(0, len(unit_of), _PIECES_AT_ONCE):
            part = slice(begin, begin + _PIECES_AT_ONCE)
            chosen = torch.from_numpy(unit_of[part])
            inputs = features.index_select(0, rows[torch.from_numpy(entries[part].ravel())].view(-1))
            inputs = inputs.view(len(chosen), _PIECE_BLOCKS * num_outputs, -1)
            hidden = torch.baddbmm(units.hidden_bias[chosen], inputs, units.hidden_weight[chosen])
            logits = torch.baddbmm(
                units.bias[chosen][:, None], functional.relu_(hidden), units.weight[chosen]
            )
            answers = torch.sigmoid(logits).view(-1, num_outputs)
            answers = answers[torch.from_numpy(~is_filling[part].ravel())]
            probabilities[done : done + len(answers)] = answers
            done += len(answers)
        return probabilities


def _pieces(unit_index: np.ndarray, num_units: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Divide the entries of each unit into pieces of one length.

    Parameters
    ----------
    unit_index : ndarray
        (num_entries,) ascending.
    num_units : int

    Returns
    -------
    unit_of : ndarray
        (num_pieces,)
    entries : ndarray
        (num_pieces, length): all entries in order, and between them what fills the last piece of a unit.
    is_filling : ndarray of bool
        (num_pieces, length)
    """
    starts = np.searchsorted(unit_index, np.arange(num_units + 1))
    pieces_of = -(-np.diff(starts) // _PIECE_BLOCKS)
    unit_of = np.repeat(np.arange(num_units), pieces_of)
    number = np.arange(len(unit_of)) - np.repeat(np.cumsum(pieces_of) - pieces_of, pieces_of)
    first = starts[unit_of] + number * _PIECE_BLOCKS
    entries = first[:, None] + np.arange(_PIECE_BLOCKS)
    is_filling = entries >= starts[unit_of + 1][:, None]
    return unit_of, np.where(is_filling, first[:, None], entries), is_filling


def join(tiles: dict[int, Asked], num_blocks: int) -> Asked:
    """Join tiles, by number, to one: in the order of unit, then block."""
    unit_index = np.concatenate([tile.unit_index for tile in tiles.values()])
    block = np.concatenate([tile.block + number * num_blocks for number, tile in tiles.items()])
    order = np.lexsort((block, unit_index))
    probabilities = np.concatenate([tile.probabilities for tile in tiles.values()])
    return Asked(unit_index[order], block[order], probabilities[order])


def _repeated(weight: Tensor, num_outputs: int, stride: int) -> Tensor:
    """Return a matrix that applies a filter (features, window) at each output of a block.

    (window + (num_outputs - 1) * stride, num_outputs * features)
    """
    features, window = weight.shape
    matrix = torch.zeros(window + (num_outputs - 1) * stride, num_outputs, features)
    for output in range(num_outputs):
        matrix[output * stride : output * stride + window, output] = weight.detach().T
    return matrix.flatten(1)
