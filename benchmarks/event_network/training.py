"""Training of the network on simulated events."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from event_network.network import NEAR, EventNetwork
from event_network.simulated import EventDraw, Place

PLACES_AT_ONCE = 3
LEARNING_RATE, WARM_UP_STEPS = 3e-3, 50
PULL = 0.02
"""Weight of the distance of an event from the mean of its unit."""
FEWEST = 3
"""Fewest events of a unit whose mean is compared."""


def train(places: Sequence[Place], steps: int, seed: int) -> tuple[EventNetwork, float]:
    """Return the network, and the mean of the last losses."""
    draw = EventDraw(np.random.default_rng(seed))
    random = draw.random
    torch.manual_seed(seed)
    network = EventNetwork()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    share = np.sqrt([len(place.own) for place in places])
    losses: list[tuple[float, float]] = []
    for step in range(steps):
        rate = LEARNING_RATE * min(1, (step + 1) / WARM_UP_STEPS)
        optimizer.param_groups[0]["lr"] = rate * (0.5 * (1 + np.cos(np.pi * step / steps)) + 0.01)
        chosen = random.choice(len(places), PLACES_AT_ONCE, p=share / share.sum())
        parts = torch.stack([_losses(network, places[index], draw) for index in chosen]).mean(dim=0)
        optimizer.zero_grad(set_to_none=True)
        parts.sum().backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(tuple(parts.tolist()))
        if step % 100 == 99:
            centred, shape = np.mean(losses[-100:], axis=0)
            print(f"step {step + 1} of {steps}: centred {centred:.3f}, shape {shape:.3f}", flush=True)
    return network.eval(), float(np.sum(np.mean(losses[-100:], axis=0)))


def _losses(network: EventNetwork, place: Place, draw: EventDraw) -> Tensor:
    """Return the losses of both heads for events of a place, which is mirrored and thinned at random."""
    random = draw.random
    windows, units = draw.draw(place)
    offsets = place.offsets_um * random.choice([-1.0, 1.0], 2).astype(np.float32)
    is_there = place.is_there.copy()
    if random.random() < 0.3:
        is_there[1:] *= random.random(NEAR - 1) > 0.25
    weights = network.weights_of(torch.from_numpy(offsets), torch.from_numpy(is_there))
    logits, embedded = network(torch.from_numpy(windows), weights[None])
    label = torch.from_numpy(units)
    centred = functional.binary_cross_entropy_with_logits(logits, (label >= 0).float())
    return torch.stack([centred, shape_loss(embedded, label)])


def shape_loss(embedded: Tensor, label: Tensor) -> Tensor:
    """Return how badly events lie nearer to the mean of their unit than to those of others.

    An event is left out of the mean of its own unit. Events with the label -1 have a mean to keep away from.
    """
    _, group = torch.unique(label, return_inverse=True)
    count = torch.bincount(group).float()
    total = torch.zeros(len(count), embedded.shape[1]).index_add(0, group, embedded)
    rest = embedded - (total[group] - embedded) / (count[group] - 1).clamp(min=1)[:, None]
    own = rest.square().sum(dim=1, keepdim=True)
    squared = torch.cdist(embedded, total / count[:, None]).square().scatter(1, group[:, None], own)
    counted = (label >= 0) & (count[group] >= FEWEST)
    return functional.cross_entropy(-0.5 * squared[counted], group[counted]) + PULL * own[counted].mean()
