"""A network for any probe: temporal filters that all recordings share, and a small network for each unit.

In the network of Han & Wang (arXiv 2409.13067) the spatial filter depends on the number and the order of the
channels. It fits one probe only, and each unit is computed from channels far from it, too. Here two temporal
filters turn the trace of a channel into features. They are the same for all channels of all probes, and can
be learnt from other recordings (the *backbone*). A unit sees only the channels near it: their features go
through a few hidden features of the unit to its logit. Units share only the backbone. So a unit can be added,
dropped or relearnt without changing another, and learning the units of a recording takes seconds.

The window is a length of time; at another sampling frequency the first filter is interpolated.

Shapes in comments: C channels, M channels of a unit, S samples, T outputs, W window samples, F temporal
features, H hidden features of a unit, N units.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from spikewise.models.gates import EXTREMES, NUM_BLOCKS, OPEN
from spikewise.models.windowed import WindowedNetwork

_UNITS_AT_ONCE = 8
"""Units that are computed together. Chosen by hand."""
_OUTPUTS_AT_ONCE = 256
"""Outputs that are computed together: the features of the channels stay in a processor's cache. Chosen by
hand."""


class Backbone(nn.Module):
    """Two temporal filters, shared by all channels.

    Parameters
    ----------
    window_samples : int
        Length of the window.
    features : tuple of int
        Features of the first and of the second filter.
    """

    def __init__(self, window_samples: int, features: tuple[int, int] = (16, 16)):
        super().__init__()
        first, second = features
        self.window_samples = window_samples
        self.num_features = second
        self.filter1 = nn.Linear(window_samples, first)
        self.filter2 = nn.Linear(first, second)

    def forward(self, windows: Tensor) -> Tensor:
        """Return the features (..., F) of windows (..., W)."""
        return functional.relu(self.filter2(functional.relu(self.filter1(windows))))

    def first_of_traces(self, traces: Tensor, stride: int = 1) -> Tensor:
        """Return the first filter's features of each channel at every `stride`-th sample.

        Parameters
        ----------
        traces : Tensor
            (num_samples, num_channels)

        Returns
        -------
        Tensor
            (C, F1, T)
        """
        by_channel = traces.T.contiguous()[:, None]  # C, 1, S
        return functional.relu(
            functional.conv1d(by_channel, self.filter1.weight[:, None], self.filter1.bias, stride)
        )

    def second(self, first: Tensor) -> Tensor:
        """Return the features (C, F, T) from those of the first filter (C, F1, T)."""
        weight, bias = self.filter2.weight, self.filter2.bias
        # One product for each channel is several times faster than a broadcast product.
        return functional.relu(torch.baddbmm(bias[None, :, None], weight.expand(len(first), -1, -1), first))

    def resampled(self, window_samples: int) -> Backbone:
        """Return the backbone for a window of the same duration at another sampling frequency."""
        if window_samples == self.window_samples:
            return self
        other = Backbone(window_samples, (self.filter1.out_features, self.num_features))
        other.load_state_dict({**self.state_dict(), "filter1.weight": self._interpolated(window_samples)})
        return other

    def _interpolated(self, window_samples: int) -> Tensor:
        """Interpolate the first filter in time; its response to a signal stays the same."""
        weight = self.filter1.weight.detach().double().numpy()
        old = (np.arange(self.window_samples) + 0.5) / self.window_samples
        new = (np.arange(window_samples) + 0.5) / window_samples
        rows = np.stack([np.interp(new, old, row) for row in weight])
        return torch.from_numpy(rows * (self.window_samples / window_samples)).float()


class NeighbourhoodNetwork(WindowedNetwork):
    """Logit of each unit at each sample, from the channels near it.

    Parameters
    ----------
    backbone : Backbone
    num_channels : int
        Channels of the traces.
    channel_index : Tensor of int64
        (num_units, M) channels of each unit, those nearest to it.
    hidden_features : int
        Hidden features of each unit.
    """

    largest_stride = 4

    def __init__(self, backbone: Backbone, num_channels: int, channel_index: Tensor, hidden_features: int):
        num_units, num_near = channel_index.shape
        super().__init__(num_channels, num_units, backbone.window_samples)
        self.backbone = backbone
        self.register_buffer("channel_index", channel_index)
        self.channel_index: Tensor
        self.register_buffer("gate_weight", torch.zeros(num_units, num_near, EXTREMES, NUM_BLOCKS))
        self.register_buffer("gate_level", torch.full((num_units,), OPEN))
        self.register_buffer("closer_weight", torch.zeros(num_units, num_near, backbone.window_samples))
        self.register_buffer("closer_level", torch.full((num_units,), OPEN))
        self.gate_weight: Tensor
        self.gate_level: Tensor
        self.closer_weight: Tensor
        self.closer_level: Tensor
        self.units = UnitNetworks(num_units, num_near * backbone.num_features, hidden_features)

    def forward(self, traces: Tensor, stride: int = 1) -> Tensor:
        """Return the logits; see :class:`spikewise.models.windowed.WindowedNetwork`."""
        return torch.stack([self._of_one(part, stride) for part in traces])

    def _of_one(self, traces: Tensor, stride: int) -> Tensor:
        first = self.backbone.first_of_traces(traces, stride)  # C, F1, T
        logits = first.new_empty(self.num_units, first.shape[2])
        for begin in range(0, first.shape[2], _OUTPUTS_AT_ONCE):
            outputs = slice(begin, begin + _OUTPUTS_AT_ONCE)
            features = self.backbone.second(first[:, :, outputs])  # C, F, T
            for unit in range(0, self.num_units, _UNITS_AT_ONCE):
                units = slice(unit, unit + _UNITS_AT_ONCE)
                near = features[self.channel_index[units]].flatten(1, 2)  # units, M * F, T
                logits[units, outputs] = self.units(near.transpose(1, 2), units)
        return logits.T


class UnitNetworks(nn.Module):
    """For each unit a network with one hidden layer, from the features of its channels to its logit."""

    def __init__(self, num_units: int, num_inputs: int, hidden_features: int):
        super().__init__()
        self.hidden_weight = nn.Parameter(torch.zeros(num_units, num_inputs, hidden_features))
        self.hidden_bias = nn.Parameter(torch.zeros(num_units, 1, hidden_features))
        self.weight = nn.Parameter(torch.zeros(num_units, hidden_features, 1))
        self.bias = nn.Parameter(torch.zeros(num_units, 1))

    def forward(self, inputs: Tensor, units: slice | Tensor = slice(None)) -> Tensor:
        """Return the logits (units, T) for inputs (units, T, num_inputs)."""
        # The inputs come first in both products: several times faster for traces, the same for patches.
        hidden_weight = self.hidden_weight[units].transpose(1, 2)
        hidden = torch.baddbmm(self.hidden_bias[units].transpose(1, 2), hidden_weight, inputs.transpose(1, 2))
        return torch.bmm(self.weight[units].transpose(1, 2), functional.relu(hidden))[:, 0] + self.bias[units]
