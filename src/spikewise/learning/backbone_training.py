"""Learning the temporal filters that all recordings share, from patches of many units."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from spikewise.core.progress import ProgressCallback, silent
from spikewise.core.seeds import stage_generator, stage_seed
from spikewise.learning.unit_training import draw_units
from spikewise.models.neighbourhood import Backbone, UnitNetworks

logger = logging.getLogger(__name__)

# Chosen by hand, all of the following.
_HIDDEN_FEATURES = 8  # of the network of each unit while the filters are learnt
_RECORDINGS_AT_ONCE = 3  # recordings of one step
_UNITS_AT_ONCE = 16  # units of each of these recordings
_PATCHES_AT_ONCE = 48  # patches of each of these units
_WARM_UP = 0.1  # fraction of the steps in which the learning rate rises


@dataclass(frozen=True)
class PatchSet:
    """Patches of all units of one recording, to learn filters from.

    Attributes
    ----------
    patches : Tensor
        (num_units, count, M, W) float16
    targets : Tensor
        (num_units, count)
    """

    patches: Tensor
    targets: Tensor


class _NormedBackbone(nn.Module):
    """The filters while they are learnt, with batch norms that are folded into the weights afterwards."""

    def __init__(self, window_samples: int, features: tuple[int, int]):
        super().__init__()
        first, second = features
        self.filter1 = nn.Linear(window_samples, first)
        self.norm1 = nn.BatchNorm1d(first)
        self.filter2 = nn.Linear(first, second)
        self.norm2 = nn.BatchNorm1d(second)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the features (..., F) of windows (..., W)."""
        rows = functional.relu(self.norm1(self.filter1(windows.flatten(0, -2))))
        rows = functional.relu(self.norm2(self.filter2(rows)))
        return rows.view(*windows.shape[:-1], -1)

    def folded(self) -> Backbone:
        """Return the filters with the norms folded into their weights."""
        window_samples = self.filter1.in_features
        backbone = Backbone(window_samples, (self.filter1.out_features, self.filter2.out_features))
        pairs = ((backbone.filter1, self.filter1, self.norm1), (backbone.filter2, self.filter2, self.norm2))
        with torch.no_grad():
            for folded, linear, norm in pairs:
                # The norm is linear: zeros give its offset, ones its offset and scale.
                zero = norm(torch.zeros(1, norm.num_features))[0]
                scale = norm(torch.ones(1, norm.num_features))[0] - zero
                folded.weight.copy_(linear.weight * scale[:, None])
                folded.bias.copy_(linear.bias * scale + zero)
        return backbone.eval()


def train_backbone(
    patch_sets: Sequence[PatchSet],
    features: tuple[int, int],
    steps: int,
    seed: int,
    learning_rate: float = 3e-3,
    progress: ProgressCallback = silent,
) -> Backbone:
    """Learn temporal filters from patches of many units, each with a small network of its own.

    Parameters
    ----------
    patch_sets : sequence of PatchSet
        One for each recording; all windows have the same length.
    features : tuple of int
        Features of the two filters.
    steps : int
        Each uses some units of three recordings. A recording is drawn with a probability proportional to
        its number of units.
    seed : int
    learning_rate : float
        Highest learning rate of the schedule. The default was chosen by hand.
    progress : callable
        Called with the progress and the loss.
    """
    random = stage_generator(seed, "backbone")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(seed, "backbone weights"))
        backbone = _NormedBackbone(patch_sets[0].patches.shape[-1], features)
    heads = [
        _heads(patch_set, features[1], stage_seed(seed, f"heads {index}"))
        for index, patch_set in enumerate(patch_sets)
    ]
    parameters = nn.ModuleList([backbone, *heads]).parameters()
    optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=steps + 1, pct_start=_WARM_UP
    )
    mean, started = 0.0, time.perf_counter()
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for index, units, chosen in _draw(patch_sets, random):
            loss = _head_loss(backbone, patch_sets[index], heads[index], units, chosen)
            loss.backward()
            total += loss.item()
        optimizer.step()
        schedule.step()
        mean = total if step == 0 else 0.98 * mean + 0.02 * total
        progress("learning filters", step + 1, steps, f"loss {mean:.4f}")
    logger.info("filters from %d steps, loss %.4f, %.0f s", steps, mean, time.perf_counter() - started)
    return backbone.eval().folded()


def _heads(patch_set: PatchSet, num_features: int, seed: int) -> UnitNetworks:
    num_units, _, num_near, _ = patch_set.patches.shape
    heads = UnitNetworks(num_units, num_near * num_features, _HIDDEN_FEATURES)
    draw_units(heads, range(num_units), seed)
    return heads


def _draw(
    patch_sets: Sequence[PatchSet], random: np.random.Generator
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Draw some recordings for one step, and units and patches of each."""
    sizes = np.array([len(patch_set.patches) for patch_set in patch_sets], dtype=float)
    count = min(_RECORDINGS_AT_ONCE, len(patch_sets))
    for index in random.choice(len(patch_sets), count, replace=False, p=sizes / sizes.sum()):
        units = random.permutation(len(patch_sets[index].patches))[:_UNITS_AT_ONCE]
        chosen = random.integers(patch_sets[index].patches.shape[1], size=_PATCHES_AT_ONCE)
        yield int(index), torch.from_numpy(units), torch.from_numpy(chosen)


def _head_loss(
    backbone: _NormedBackbone,
    patch_set: PatchSet,
    heads: UnitNetworks,
    units: Tensor,
    chosen: Tensor,
) -> Tensor:
    features = backbone(patch_set.patches[units[:, None], chosen].float()).flatten(2)
    logits = heads(features, units)
    return functional.binary_cross_entropy_with_logits(logits, patch_set.targets[units[:, None], chosen])
