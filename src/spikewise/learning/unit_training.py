"""Learning units on frozen temporal filters.

The networks of the units share only the filters, and each unit has its own patches. So the units are learnt
block by block, each block on one thread. The features of some thousand patches of each unit are computed
once; then a few hundred steps of Adam use them. Nothing is computed twice.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spikewise.core.progress import ProgressCallback, silent
from spikewise.core.seeds import stage_generator, stage_seed
from spikewise.core.threads import results_in_order
from spikewise.learning.gate_fitting import CLOSER_PATCHES, LOST_CLOSER, fit_gate, gate_inputs
from spikewise.models.gates import OPEN
from spikewise.models.neighbourhood import Backbone, NeighbourhoodNetwork, UnitNetworks

logger = logging.getLogger(__name__)

_UNITS_AT_ONCE = 8
"""Units of a block, which one thread learns: their features stay in a processor's cache. Chosen by hand."""
_SAME_BATCHES = 16
"""So many consecutive units see their patches in the same order. Chosen by hand."""
_WARM_UP = 0.2
"""Fraction of the steps in which the learning rate rises. Chosen by hand."""
_FIRST_BIAS = -1.0
"""Bias of the logit before training. Chosen by hand."""
RARITY = 3.0
"""Subtracted from each logit after training, because a unit is far rarer in a recording than in its patches.
Chosen by hand (docs/few-labels.md)."""
_SILENT = -20.0
"""Bias of a unit that is not learnt yet: its probability is 0."""


class Patches(Protocol):
    """A source of patches; see :class:`spikewise.learning.examples.patches.PatchMaker`."""

    def make(self, unit: int, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Make `count` patches (count, M, W) of a unit, with targets (count,)."""


@dataclass(frozen=True)
class UnitTraining:
    """How units are learnt.

    Attributes
    ----------
    patches_per_unit, steps, batch_size : int
    learning_rate, weight_decay : float
    seed : int
    gate_block : int
        Samples of a block of the gates.
    """

    patches_per_unit: int
    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    gate_block: int


def train_units(
    network: NeighbourhoodNetwork,
    patches: Patches,
    training: UnitTraining,
    progress: ProgressCallback = silent,
    learnt: Sequence[float] = (),
    keep: Callable[[list[float]], None] | None = None,
) -> list[float]:
    """Learn the networks of all units in place, and fit their gates; the backbone stays as it is.

    If training is interrupted, the units that are not learnt yet stay silent. Blocks of units share nothing,
    so training can continue after any block with the same result.

    Parameters
    ----------
    network : NeighbourhoodNetwork
    patches : Patches
    training : UnitTraining
    progress : callable
    learnt : sequence of float
        Losses of the first units, if they are learnt already.
    keep : callable, optional
        Called after each block with the losses of the units that are learnt.

    Returns
    -------
    list of float
        The loss of each unit over the last steps.
    """
    losses = list(learnt)
    num_units = network.num_units
    if not losses:
        with torch.no_grad():
            network.units.bias.fill_(_SILENT)
            network.gate_level.fill_(-OPEN)
    progress("train", len(losses), num_units, "")
    blocks = _blocks(len(losses), num_units)
    for of_block in results_in_order(lambda units: _train_block(network, patches, units, training), blocks):
        losses += of_block
        if keep is not None:
            keep(losses)
        progress("train", len(losses), num_units, "")
    return losses


def _blocks(first: int, num_units: int) -> list[range]:
    """Cut the units from `first` on into blocks; all units of a block see the same batches."""
    starts = [unit for unit in range(first, num_units) if unit == first or unit % _UNITS_AT_ONCE == 0]
    return list(itertools.starmap(range, itertools.pairwise([*starts, num_units])))


def _train_block(
    network: NeighbourhoodNetwork, patches: Patches, units: range, training: UnitTraining
) -> list[float]:
    examples = _make_patches(network.backbone, patches, units, training)
    num_inputs, hidden = network.units.hidden_weight.shape[1:]
    block = UnitNetworks(len(units), num_inputs, hidden)
    draw_units(block, units, training.seed)
    rate, decay = training.learning_rate, training.weight_decay
    optimizer = torch.optim.AdamW(block.parameters(), lr=rate, weight_decay=decay, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=training.steps + 1, pct_start=_WARM_UP
    )
    same_batches = units[0] // _SAME_BATCHES * _SAME_BATCHES
    random = torch.Generator().manual_seed(stage_seed(training.seed, f"batches {same_batches}"))
    batch_size = min(training.batch_size, examples.num_patches)
    last, num_last = torch.zeros(len(units)), max(1, training.steps // 10)
    for step in range(training.steps):
        # Patches are in random order, so consecutive ones are a random batch.
        first = int(torch.randint(examples.num_patches - batch_size + 1, (1,), generator=random))
        batch = slice(first, first + batch_size)
        logits = block(examples.features[:, batch].float())
        loss = functional.binary_cross_entropy_with_logits(
            logits, examples.targets[:, batch], reduction="none"
        )
        by_unit = loss.mean(dim=1)
        optimizer.zero_grad(set_to_none=True)
        by_unit.sum().backward()
        optimizer.step()
        schedule.step()
        if step >= training.steps - num_last:
            last += by_unit.detach() / num_last
    with torch.no_grad():
        block.bias.sub_(RARITY)
        rows = slice(units.start, units.stop)
        for name, parameter in network.units.named_parameters():
            parameter[rows] = block.get_parameter(name)
        _fit_gates(network, block, examples, units)
    return last.tolist()


def _fit_gates(
    network: NeighbourhoodNetwork, block: UnitNetworks, examples: _UnitPatches, units: range
) -> None:
    """Fit the gates of some units to the outputs of their networks on their patches."""
    for row, unit in enumerate(units):
        probabilities = torch.sigmoid(block(examples.features[row : row + 1].float(), slice(row, row + 1))[0])
        weight, level = fit_gate(examples.gate_inputs[row].float(), probabilities)
        network.gate_weight[unit] = weight.view_as(network.gate_weight[unit])
        network.gate_level[unit] = level
        filtered = examples.filtered[row].float()
        weight, level = fit_gate(filtered, probabilities[: len(filtered)], LOST_CLOSER)
        filters = network.backbone.filter1.weight
        network.closer_weight[unit] = weight.view(-1, len(filters)) @ filters
        network.closer_level[unit] = level


@torch.no_grad()
def evaluate_units(network: NeighbourhoodNetwork, patches: Patches, count: int, seed: int) -> list[float]:
    """Return the mean loss of each unit over its own patches."""
    losses = []
    for unit in range(network.num_units):
        windows, targets = patches.make(unit, count, stage_generator(seed, f"held-out patches {unit}"))
        inputs = network.backbone(windows).flatten(1)[None]
        logits = network.units(inputs, slice(unit, unit + 1))[0] + RARITY
        losses.append(functional.binary_cross_entropy_with_logits(logits, targets).item())
    return losses


@dataclass(frozen=True)
class _UnitPatches:
    """Patches of some units: features (units, count, M * F), targets, and inputs of the gates.

    All but the targets are of half precision.
    """

    features: Tensor
    targets: Tensor
    gate_inputs: Tensor
    filtered: Tensor

    @property
    def num_patches(self) -> int:
        """Patches of each unit."""
        return self.features.shape[1]


@torch.no_grad()
def _make_patches(backbone: Backbone, patches: Patches, units: range, training: UnitTraining) -> _UnitPatches:
    features, targets, seen, filtered = [], [], [], []
    for unit in units:
        random = stage_generator(training.seed, f"patches {unit}")
        windows, target = patches.make(unit, training.patches_per_unit, random)
        features.append(backbone(windows).flatten(1).half())
        targets.append(target)
        seen.append(gate_inputs(windows, training.gate_block, random).half())
        filtered.append((windows[:CLOSER_PATCHES] @ backbone.filter1.weight.T).flatten(1).half())
    return _UnitPatches(*(torch.stack(parts) for parts in (features, targets, seen, filtered)))


def draw_units(networks: UnitNetworks, units: Sequence[int], seed: int) -> None:
    """Draw the weights of units in place; those of a unit depend only on the seed and its number."""
    num_inputs, hidden = networks.hidden_weight.shape[1:]
    with torch.no_grad():
        networks.hidden_bias.zero_()
        networks.bias.fill_(_FIRST_BIAS)
        for row, unit in enumerate(units):
            random = torch.Generator().manual_seed(stage_seed(seed, f"unit {unit}"))
            networks.hidden_weight[row].normal_(0, num_inputs**-0.5, generator=random)
            networks.weight[row].normal_(0, hidden**-0.5, generator=random)
