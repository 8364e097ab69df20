"""The network: is a spike centred here, and where in the space of shapes does it lie?

Shapes: N events, M contacts near an event, L samples of a window, F filters, G mixed features.
Windows are in standard deviations of the noise, positions in um from the event's own contact.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

RATE = 32000.0
"""Sampling frequency of the windows in Hz; traces of another rate are interpolated."""
LENGTH, BEFORE = 64, 26
"""Samples of a window, and those ahead of the trough: 2 ms."""
NEAR, RADIUS_UM = 12, 70.0
"""Most contacts of an event, and how far they may be."""
NUM_FILTERS, NUM_MIXED, NUM_HIDDEN, NUM_DIMENSIONS = 24, 192, 128, 10
POSITION_UM = 40.0
DECAYS_UM = (10.0, 25.0, 60.0)


class EventNetwork(nn.Module):
    """Filters of each contact, mixed with weights that depend on where the contact is; then two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Linear(LENGTH, NUM_FILTERS)
        self.mixing = nn.Linear(NUM_FILTERS, NUM_MIXED, bias=False)
        self.places = nn.Sequential(nn.Linear(11 + len(DECAYS_UM), 48), nn.GELU(), nn.Linear(48, NUM_MIXED))
        self.offset = nn.Parameter(torch.zeros(NUM_MIXED))
        self.first = nn.Linear(2 * NUM_MIXED, NUM_HIDDEN)
        self.second = nn.Linear(NUM_HIDDEN, NUM_HIDDEN)
        self.centred = nn.Linear(NUM_HIDDEN, 1)
        self.shape = nn.Linear(NUM_HIDDEN, NUM_DIMENSIONS)
        self.direct = nn.Linear(NUM_MIXED, NUM_DIMENSIONS, bias=False)

    def forward(self, windows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (N,) and embeddings (N, NUM_DIMENSIONS) of windows (N, M, L)."""
        return self.from_filtered(self.filters(windows), weights)

    def from_filtered(self, filtered: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the same from the filters' responses (N, M, F); `weights` (N or 1, M, G) of the contacts."""
        mixed = (weights * self.mixing(torch.asinh(filtered / 2))).sum(dim=1)
        features = torch.cat([mixed, functional.gelu(mixed + self.offset)], dim=-1)
        hidden = functional.gelu(self.first(features))
        hidden = hidden + functional.gelu(self.second(hidden))
        return self.centred(hidden)[:, 0], self.shape(hidden) + self.direct(mixed)

    def weights_of(self, offsets_um: Tensor, is_there: Tensor) -> Tensor:
        """Return the weights (..., M, G) of contacts at offsets (..., M, 2); 0 where there is none."""
        far = offsets_um.norm(dim=-1, keepdim=True)
        scaled = offsets_um / POSITION_UM
        waves = [part for k in (2.0, 4.0) for part in ((k * scaled).sin(), (k * scaled).cos())]
        decays = [torch.exp(-far / decay) for decay in DECAYS_UM]
        features = torch.cat([scaled, far / POSITION_UM, *decays, *waves], dim=-1)
        return self.places(features) * is_there[..., None]


def save_network(network: EventNetwork, path: Path, facts: dict[str, str]) -> None:
    """Write the network to one file, with facts in its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path, facts)


def load_network(path: Path) -> EventNetwork:
    """Read the network from a file."""
    network = EventNetwork()
    network.load_state_dict(load_file(path))
    return network.eval()


def offsets_of(near: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the offsets (C, M, 2) in um of the contacts near each contact, and whether there is one."""
    is_there = near >= 0
    offsets = positions[np.maximum(near, 0), :2] - positions[:, None, :2]
    return np.where(is_there[..., None], offsets, 0.0).astype(np.float32), is_there.astype(np.float32)
