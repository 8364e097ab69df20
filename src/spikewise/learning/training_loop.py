"""The training loop of all networks: batches in, a trained network and its history out.

By default the loss is binary cross-entropy on logits for each unit, since several may fire at once. Adam
minimises it (Han & Wang, arXiv 2409.13067). The state with the lowest loss on the held-out windows is kept,
also if training is interrupted.
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from spikewise.core.config import given
from spikewise.core.progress import LEARNING, ProgressCallback, silent
from spikewise.core.seeds import stage_seed
from spikewise.learning.examples.training_set import Batch

logger = logging.getLogger(__name__)

_WARM_UP = 0.2
"""Fraction of the steps in which the learning rate of the schedule one-cycle rises. Chosen by hand."""
_FEWEST_STEPS = 10
"""The schedule one-cycle has at least so many steps. Chosen by hand."""


class LoopConfig(Protocol):
    """The settings of the loop, resolved; see :class:`spikewise.core.config.TrainingConfig`."""

    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def epochs(self) -> int | None: ...  # noqa: D102
    @property
    def learning_rate(self) -> float | None: ...  # noqa: D102
    @property
    def schedule(self) -> str | None: ...  # noqa: D102


Loss = Callable[[Tensor, Batch], Tensor]
"""Returns the mean loss of a batch; called with the network's output and the batch on the same device."""


class Windows(Protocol):
    """A source of batches; see :class:`spikewise.learning.examples.training_set.TrainingSet`."""

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of one epoch."""

    def all_centres(self) -> Iterator[Batch]:
        """Yield the same windows at each call."""

    def num_batches(self) -> int:
        """Return how many batches an epoch has."""


@dataclass(frozen=True)
class TrainingTask:
    """What a network learns from.

    Attributes
    ----------
    training : Windows
    held_out : Windows or None
        Windows from other time: they choose the epoch whose state is kept.
    loss_of : callable or None
        The loss; None: binary cross-entropy over the labels that are known.
    """

    training: Windows
    held_out: Windows | None
    loss_of: Loss | None = None


@dataclass(frozen=True)
class Start:
    """Weights that training starts from, and the learning rates of parts of the network.

    Attributes
    ----------
    state : dict of str to Tensor
        Weights and statistics by name; weights without an entry are drawn.
    rates : dict of str to float
        Learning rates of parts of the network, by name, as a fraction of that of the rest. A part with the
        rate 0 is not changed, and neither are the statistics of its norms.
    """

    state: dict[str, Tensor]
    rates: dict[str, float]


@dataclass(frozen=True)
class TrainingHistory:
    """The history of a training.

    Attributes
    ----------
    train_loss, held_out_loss : tuple of float
        Mean loss of each epoch; NaN where nothing is held out.
    best_epoch : int
        Epoch (from 0) whose state was kept; -1 if none was finished.
    seconds : float
    interrupted : bool
        Whether Ctrl-C ended it.
    """

    train_loss: tuple[float, ...]
    held_out_loss: tuple[float, ...]
    best_epoch: int
    seconds: float
    interrupted: bool


def initialise_weights(network: nn.Module, seed: int) -> None:
    """Draw all weights from one seed; the global random state does not change."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(seed, "initial weights"))
        for module in network.modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.BatchNorm1d):
                module.reset_parameters()


def train_network(
    network: nn.Module,
    task: TrainingTask,
    config: LoopConfig,
    device: torch.device,
    progress: ProgressCallback = silent,
    start: Start | None = None,
) -> TrainingHistory:
    """Train a network in place.

    Parameters
    ----------
    network : Module
        Maps windows to logits; those of a recording (num_windows, window_samples, num_channels) to
        (num_windows, 1, num_units).
    task : TrainingTask
        What it learns from, and the loss.
    config : LoopConfig
        Resolved settings.
    device : torch.device
        Where to train.
    progress : callable
        Called with the progress and the loss.
    start : Start, optional
        Weights to start from; default: all are drawn.

    Returns
    -------
    TrainingHistory
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(stage_seed(config.seed, "dropout"))
        return _train(network, task, config, device, progress, start or Start({}, {}))


def _train(
    network: nn.Module,
    task: TrainingTask,
    config: LoopConfig,
    device: torch.device,
    progress: ProgressCallback,
    start: Start,
) -> TrainingHistory:
    started = time.perf_counter()
    initialise_weights(network, config.seed)
    network.load_state_dict(start.state, strict=False)
    network.to(device)
    epochs, num_batches = given(config.epochs), task.training.num_batches()
    fused = device.type in ("cpu", "cuda")
    optimizer = torch.optim.Adam(_parameter_groups(network, config, start.rates), fused=fused)
    schedule = _schedule(optimizer, config, epochs * num_batches)
    train_loss: list[float] = []
    held_out_loss: list[float] = []
    best_epoch, best_state, interrupted = -1, None, False
    try:
        for epoch in range(epochs):
            network.train()
            for part, rate in start.rates.items():
                if not rate:
                    network.get_submodule(part).eval()
            total = 0.0
            for index, batch in enumerate(task.training.epoch(stage_seed(config.seed, f"epoch {epoch}"))):
                loss = _loss(network, batch, device, task.loss_of)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.item()
                done = epoch * num_batches + index + 1
                progress(LEARNING, done, epochs * num_batches, f"loss {total / (index + 1):.4f}")
            train_loss.append(total / num_batches)
            held_out_loss.append(evaluate_loss(network, task.held_out, device, task.loss_of))
            logger.info("epoch %d: loss %.5f, held out %.5f", epoch, train_loss[-1], held_out_loss[-1])
            if best_state is None or _is_better(held_out_loss[-1], held_out_loss[best_epoch]):
                best_epoch, best_state = epoch, copy.deepcopy(network.state_dict())
    except KeyboardInterrupt:
        interrupted = True
        logger.warning("training was interrupted in epoch %d; the best state so far is kept", len(train_loss))
    if best_state is not None:
        network.load_state_dict(best_state)
    network.eval()
    seconds = time.perf_counter() - started
    return TrainingHistory(tuple(train_loss), tuple(held_out_loss), best_epoch, seconds, interrupted)


@torch.inference_mode()
def evaluate_loss(
    network: nn.Module, windows: Windows | None, device: torch.device, loss_of: Loss | None = None
) -> float:
    """Return the mean loss over all windows, NaN if there are none."""
    if windows is None:
        return math.nan
    network.eval()
    total, count = 0.0, 0
    for batch in windows.all_centres():
        total += _loss(network, batch, device, loss_of).item() * len(batch.windows)
        count += len(batch.windows)
    return total / count if count else math.nan


def _loss(network: nn.Module, batch: Batch, device: torch.device, loss_of: Loss | None) -> Tensor:
    on_device = Batch(batch.windows.to(device), batch.targets.to(device), batch.weights.to(device))
    return (loss_of or _cross_entropy)(network(on_device.windows), on_device)


def _cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Mean binary cross-entropy over the labels that are known."""
    total = functional.binary_cross_entropy_with_logits(
        logits.squeeze(1), batch.targets, weight=batch.weights, reduction="sum"
    )
    return total / batch.weights.sum().clamp(min=1)


def _is_better(loss: float, best: float) -> bool:
    """Return whether a held-out loss is the best so far; if nothing is held out (NaN), the last one is."""
    return math.isnan(best) or loss < best


def _parameter_groups(
    network: nn.Module, config: LoopConfig, rates: dict[str, float]
) -> list[dict[str, object]]:
    """Group the parameters by their learning rates; those of parts with the rate 0 are left out."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        rate = rates.get(name.split(".")[0], 1.0)
        parameter.requires_grad_(rate > 0)
        if rate:
            groups.setdefault(rate, []).append(parameter)
    learning_rate = given(config.learning_rate)
    return [{"params": parameters, "lr": rate * learning_rate} for rate, parameters in groups.items()]


def _schedule(
    optimizer: torch.optim.Optimizer, config: LoopConfig, num_steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "one-cycle":
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=max(_FEWEST_STEPS, num_steps + 1),
            pct_start=_WARM_UP,
        )
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0, total_iters=1)
