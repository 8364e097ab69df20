"""Learning units on frozen temporal filters.

The networks of the units share only the filters, and each unit has its own patches. So each unit is learnt
alone, on one thread. The features of some thousand patches are computed once; then a few hundred steps of
AdamW use them. All of this is done in compiled loops (:mod:`spikewise.learning.unit_loops`).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from spikewise.core.seeds import stage_generator, stage_seed
from spikewise.core.threads import results_in_order
from spikewise.learning import unit_loops as loops
from spikewise.learning.gate_fitting import GATE_PATCHES, LOST_CLOSER, fit_gate
from spikewise.learning.unit_examples import ExampleMaker, Patches, UnitMemory
from spikewise.models.gates import OPEN
from spikewise.models.neighbourhood import NeighbourhoodNetwork, UnitNetworks

logger = logging.getLogger(__name__)

_KEPT_AT_ONCE = 16
"""After so many units, what is learnt is kept. Chosen by hand."""
_WARM_UP = 0.2
"""Fraction of the steps in which the learning rate rises. Chosen by hand."""
_FIRST_BIAS = -1.0
"""Bias of the logit before training. Chosen by hand."""
RARITY = 3.0
"""Subtracted from each logit after training, because a unit is far rarer in a recording than in its patches.
Chosen by hand (docs/few-labels.md)."""
_SILENT = -20.0
"""Bias of a unit that is not learnt yet: its probability is 0."""


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
    tell: Callable[[int], None] = lambda done: None,
    learnt: Sequence[float] = (),
    keep: Callable[[list[float]], None] | None = None,
    start: NeighbourhoodNetwork | None = None,
) -> list[float]:
    """Learn the networks of all units in place, and fit their gates; the backbone stays as it is.

    If training is interrupted, the units that are not learnt yet stay silent. Units share nothing, so
    training can continue after any unit with the same result.

    Parameters
    ----------
    network : NeighbourhoodNetwork
    patches : Patches
    training : UnitTraining
    tell : callable
        Called with the number of units that are learnt.
    learnt : sequence of float
        Losses of the first units, if they are learnt already.
    keep : callable, optional
        Called after every 16 units with the losses of the units that are learnt.
    start : NeighbourhoodNetwork, optional
        Weights that training starts from; by default they are drawn.

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
    tell(len(losses))
    trainer = _UnitTrainer(network, patches, training, start)
    for loss in results_in_order(trainer.train, range(len(losses), num_units)):
        losses.append(loss)
        if keep is not None and (len(losses) % _KEPT_AT_ONCE == 0 or len(losses) == num_units):
            keep(losses)
        tell(len(losses))
    return losses


class _UnitTrainer:
    """Learns units; several threads may call it at the same time.

    Parameters
    ----------
    network, patches, training, start
        See :func:`train_units`.
    """

    def __init__(
        self,
        network: NeighbourhoodNetwork,
        patches: Patches,
        training: UnitTraining,
        start: NeighbourhoodNetwork | None,
    ):
        self._network, self._patches, self._training, self._start = network, patches, training, start
        of_gates = min(GATE_PATCHES, -(-training.patches_per_unit // 2))
        self._maker = ExampleMaker(network, training.patches_per_unit, of_gates, training.gate_block)

    @torch.no_grad()
    def train(self, unit: int) -> float:
        """Learn a unit in place; return its loss."""
        training = self._training
        random = stage_generator(training.seed, f"patches {unit}")
        drawn = self._patches.draw(unit, training.patches_per_unit, random)
        with self._maker.memory() as memory:
            features = self._maker.make(drawn, memory, random)
            weights = self._first_weights(unit)
            for part in itertools.chain(*memory.gradients):
                part.fill(0)
            schedule = self._schedule(unit)
            importance = drawn.importance / np.float32(schedule.batch_size)
            loss = loops.train_unit(
                features, drawn.targets, importance, schedule, weights, memory.gradients, memory.rows
            )
            weights.bias[:] -= RARITY
            logits = np.empty(len(memory.extremes), np.float32)
            loops.fill_logits(features, weights, memory.rows, logits)
            self._fit_gates(unit, logits, memory)
        self._maker.unpack(unit, weights)
        return float(loss)

    def _schedule(self, unit: int) -> loops.Schedule:
        """Draw the batches: patches are in random order, so consecutive ones are a random batch."""
        training = self._training
        random = stage_generator(training.seed, f"batches {unit}")
        batch_size = min(training.batch_size, training.patches_per_unit)
        first = random.integers(training.patches_per_unit - batch_size + 1, size=training.steps)
        return loops.Schedule(first, _rates(training), batch_size, np.float32(training.weight_decay))

    def _first_weights(self, unit: int) -> loops.Weights:
        """Return the weights that training starts from.

        Of a network to start from, the weights of channels are used that the unit saw there, too.
        """
        network, start = self._network, self._start
        num_near, num_features = network.channel_index.shape[1], network.backbone.num_features
        one = UnitNetworks(1, *network.units.hidden_weight.shape[1:])
        draw_units(one, [unit], self._training.seed)
        if start is not None:
            before = start.channel_index[unit].tolist()
            old = start.units.hidden_weight[unit].view(num_near, num_features, -1)
            new = one.hidden_weight[0].view(num_near, num_features, -1)
            for near, channel in enumerate(network.channel_index[unit].tolist()):
                new[near] = old[before.index(channel)] if channel in before else 0
            one.hidden_bias[0] = start.units.hidden_bias[unit]
            one.weight[0] = start.units.weight[unit]
            one.bias[0] = start.units.bias[unit] + RARITY
        return self._maker.packed(one, 0)

    def _fit_gates(self, unit: int, logits: np.ndarray, memory: UnitMemory) -> None:
        """Fit the gates of a unit to the outputs of its network on its patches."""
        network, probabilities = self._network, torch.from_numpy(logits).sigmoid()
        weight, level = fit_gate(torch.from_numpy(memory.extremes).flatten(1), probabilities)
        network.gate_weight[unit] = weight.view_as(network.gate_weight[unit])
        network.gate_level[unit] = level
        filters = network.backbone.filter1.weight
        filtered = torch.from_numpy(memory.filtered).view(len(logits), network.gate_weight.shape[1], -1)
        weight, level = fit_gate(filtered[:, :, : len(filters)].flatten(1), probabilities, LOST_CLOSER)
        network.closer_weight[unit] = weight.view(-1, len(filters)) @ filters
        network.closer_level[unit] = level


def _rates(training: UnitTraining) -> np.ndarray:
    """Return the step size of each step: it rises linearly, then falls along half a cosine."""
    rise = max(1, round(_WARM_UP * training.steps))
    fall = max(0, training.steps - rise)
    falling = (1 + np.cos(np.pi * np.arange(1, fall + 1) / max(1, fall))) / 2
    return (training.learning_rate * np.r_[np.arange(1, rise + 1) / rise, falling]).astype(np.float32)


def evaluate_units(network: NeighbourhoodNetwork, patches: Patches, count: int, seed: int) -> list[float]:
    """Return the mean loss of each unit over its own patches."""
    maker = ExampleMaker(network, count)

    def evaluate(unit: int) -> float:
        random = stage_generator(seed, f"held-out patches {unit}")
        drawn = patches.draw(unit, count, random)
        logits = np.empty(count, np.float32)
        with maker.memory() as memory:
            features = maker.make(drawn, memory, random)
            loops.fill_logits(features, maker.packed(network.units, unit), memory.rows, logits)
        targets = torch.from_numpy(drawn.targets)
        return functional.binary_cross_entropy_with_logits(torch.from_numpy(logits) + RARITY, targets).item()

    return list(results_in_order(evaluate, range(network.num_units)))


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
