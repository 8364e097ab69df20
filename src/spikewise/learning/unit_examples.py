"""What the network of a unit learns from: features of its patches, and the inputs of its gates.

The patches are made a few at a time and are not kept. The memory for the features of a unit is used again for
the next one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from spikewise.learning import unit_loops as loops
from spikewise.learning.examples.patch_loops import fill_extremes
from spikewise.models.gates import EXTREMES, NUM_BLOCKS
from spikewise.models.neighbourhood import NeighbourhoodNetwork, UnitNetworks
from spikewise.sorting.kernels import LANES, ROWS, panels
from spikewise.sorting.sparse import filter_panels

_PATCHES_AT_ONCE = 128
"""Patches that are made together. Chosen by hand."""


class Drawn(Protocol):
    """Patches of a unit, made in parts; see :class:`spikewise.learning.examples.patches.DrawnPatches`."""

    @property
    def targets(self) -> np.ndarray:
        """1 where the unit fires at the centre: (count,) float32."""

    @property
    def importance(self) -> np.ndarray:
        """Weight of each patch in the loss: (count,) float32."""

    @property
    def slots(self) -> np.ndarray:
        """Numbers of the patches (count,) int64 in the order in which they are made."""

    def fill(self, first: int, patches: np.ndarray) -> None:
        """Make patches (number, M, W), those from place `first` of the slots on."""


class Patches(Protocol):
    """A source of patches; see :class:`spikewise.learning.examples.patches.PatchMaker`."""

    def draw(self, unit: int, count: int, random: np.random.Generator) -> Drawn:
        """Draw `count` patches of a unit."""


@dataclass(frozen=True)
class UnitMemory:
    """Memory for learning one unit.

    Attributes
    ----------
    windows : ndarray
        (some, M, W) patches that are made together.
    between : ndarray
        First features of the channels of a patch.
    features : ndarray
        (num_patches, M * F), F in whole panels.
    extremes : ndarray
        (num_gate_patches, M, EXTREMES, NUM_BLOCKS)
    filtered : ndarray
        (num_gate_patches, M * F1), F1 in whole panels.
    rows : Rows
    gradients : (Weights, Weights, Weights)
        Gradient and moments of AdamW.
    """

    windows: np.ndarray
    between: np.ndarray
    features: np.ndarray
    extremes: np.ndarray
    filtered: np.ndarray
    rows: loops.Rows
    gradients: tuple[loops.Weights, loops.Weights, loops.Weights]


class ExampleMaker:
    """Makes the features of patches, and the inputs of the gates; several threads may use it at a time.

    Parameters
    ----------
    network : NeighbourhoodNetwork
        Its filters, and the sizes of its units.
    num_patches, num_gate_patches : int
        Largest number of patches of a unit, and how many of them have inputs of the gates.
    gate_block : int
        Samples of a block of the gates.
    """

    def __init__(
        self, network: NeighbourhoodNetwork, num_patches: int, num_gate_patches: int = 0, gate_block: int = 1
    ):
        self.network = network
        self.gate_block = gate_block
        self._filters = loops.Filters(*filter_panels(network.backbone))
        self._counts = num_patches, min(num_patches, num_gate_patches)
        self._num_near = network.channel_index.shape[1]
        self._spare: list[UnitMemory] = []

    @contextmanager
    def memory(self) -> Iterator[UnitMemory]:
        """Lend memory for one unit."""
        memory = self._spare.pop() if self._spare else self._new_memory()
        yield memory
        self._spare.append(memory)

    def _new_memory(self) -> UnitMemory:
        first, second = self._filters
        num_near, window = self._num_near, self.network.window_samples
        (count, of_gates), num_inputs = self._counts, num_near * second[1].size
        num_panels = -(-self.network.units.hidden_bias.shape[2] // LANES)
        return UnitMemory(
            np.empty((_PATCHES_AT_ONCE, num_near, window), np.float32),
            np.empty((-(-num_near // ROWS) * ROWS, first[1].size), np.float32),
            np.empty((count, num_inputs), np.float32),
            np.empty((of_gates, num_near, EXTREMES, NUM_BLOCKS), np.float32),
            np.empty((of_gates, num_near * first[1].size), np.float32),
            loops.new_rows(num_panels),
            (
                loops.new_weights(num_panels, num_inputs),
                loops.new_weights(num_panels, num_inputs),
                loops.new_weights(num_panels, num_inputs),
            ),
        )

    def make(self, drawn: Drawn, memory: UnitMemory, random: np.random.Generator) -> np.ndarray:
        """Fill the features of patches, and the inputs of the gates of the first ones.

        The centre of a patch lies at a random sample of its block of the gates.

        Returns
        -------
        ndarray
            (number of patches, M * F) the features.
        """
        count, of_gates = len(drawn.targets), len(memory.extremes)
        centre, no_bias = (self.network.window_samples - 1) // 2, np.zeros_like(self._filters.first[1])
        begins = centre - random.integers(self.gate_block, size=of_gates) - self.gate_block
        for first in range(0, count, _PATCHES_AT_ONCE):
            slots = drawn.slots[first : first + _PATCHES_AT_ONCE]
            windows = memory.windows[: len(slots)]
            drawn.fill(first, windows)
            loops.fill_features(windows, slots, self._filters, memory.between, memory.features)
            if of_gates:
                fill_extremes(windows, slots, begins, self.gate_block, memory.extremes)
                loops.fill_filtered(windows, slots, self._filters.first[0], no_bias, memory.filtered)
        return memory.features[:count]

    def packed(self, units: UnitNetworks, unit: int) -> loops.Weights:
        """Return the weights of a unit as the loops read them."""
        hidden = units.hidden_weight[unit].detach().numpy()
        width = self._filters.second[1].size
        by_channel = np.zeros((self._num_near, width, hidden.shape[1]), np.float32)
        by_channel[:, : self.network.backbone.num_features] = hidden.reshape(
            self._num_near, -1, hidden.shape[1]
        )
        return loops.Weights(
            panels(by_channel.reshape(-1, hidden.shape[1])),
            panels(units.hidden_bias[unit].detach().numpy())[:, 0].copy(),
            panels(units.weight[unit].detach().numpy().T)[:, 0].copy(),
            units.bias[unit].detach().numpy().copy(),
        )

    def unpack(self, unit: int, weights: loops.Weights) -> None:
        """Write the weights of a unit into the network; the caller disables gradients."""
        units = self.network.units
        num_hidden = units.hidden_bias.shape[2]
        width = self._filters.second[1].size
        hidden = np.moveaxis(weights.hidden, 0, 1).reshape(self._num_near, width, -1)
        used = hidden[:, : self.network.backbone.num_features, :num_hidden].reshape(-1, num_hidden)
        units.hidden_weight.detach().numpy()[unit] = used
        units.hidden_bias.detach().numpy()[unit, 0] = weights.hidden_bias.ravel()[:num_hidden]
        units.weight.detach().numpy()[unit, :, 0] = weights.last.ravel()[:num_hidden]
        units.bias.detach().numpy()[unit] = weights.bias
