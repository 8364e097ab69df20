"""The E-Sort network (Han & Wang, arXiv 2409.13067), computed as a convolution over time.

The paper cuts a window of all channels around every sample and passes it through linear layers. The first
layer is shared by all channels and filters along the window. The other layers act on one output only. So one
convolution over the traces gives the same numbers without cutting windows. This makes long recordings
affordable.

Conventions: an output belongs to the sample at the centre of its window, which is sample
``(window_samples - 1) // 2`` (29 of 60). The network therefore needs :attr:`EsortNetwork.left_margin`
samples before its first output and :attr:`EsortNetwork.right_margin` after its last. Shapes in comments:
B batch, S samples, T outputs in time, C channels, W window, F features, N units.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from spikewise.core.config import NetworkConfig
from spikewise.models.windowed import WindowedNetwork


def window_samples(config: NetworkConfig, sampling_frequency: float) -> int:
    """Return the length of the network's window in samples: 60 at 32 kHz."""
    return max(3, round(config.window_ms * sampling_frequency / 1000))


class EsortNetwork(WindowedNetwork):
    """Logit of each unit at each sample, from the traces of all channels.

    Parameters
    ----------
    num_channels : int
        Channels of the traces.
    num_units : int
        Units to tell apart; several may fire at once.
    window_samples : int
        Length of the window.
    temporal_features : tuple of int
        Features of the two temporal filters of each channel.
    spatial_features : int
        Features of the spatial filter.
    """

    TEMPORAL = ("temporal_filter1", "temporal_norm1", "temporal_filter2", "temporal_norm2")
    SPATIAL = ("spatial_filter", "spatial_norm")
    """The parts that can be learnt from another recording; the classifier belongs to the units."""

    def __init__(
        self,
        num_channels: int,
        num_units: int,
        window_samples: int,
        temporal_features: tuple[int, int] = (8, 16),
        spatial_features: int = 256,
    ):
        super().__init__(num_channels, num_units, window_samples)
        first, second = temporal_features
        self.temporal_filter1 = nn.Linear(window_samples, first)
        self.temporal_norm1 = nn.BatchNorm1d(num_channels)  # the features of these norms are the channels
        self.temporal_filter2 = nn.Linear(first, second)
        self.temporal_norm2 = nn.BatchNorm1d(num_channels)
        self.spatial_filter = nn.Linear(num_channels * second, spatial_features)
        self.spatial_norm = nn.BatchNorm1d(spatial_features)
        self.classifier = nn.Linear(spatial_features, num_units)

    def forward(self, traces: Tensor, stride: int = 1) -> Tensor:
        """Return the logits; see :class:`spikewise.models.windowed.WindowedNetwork`."""
        if traces.shape[1] == self.window_samples:
            return self._one_output(traces)
        weight, bias = self.temporal_filter1.weight, self.temporal_filter1.bias
        batch, num_samples, num_channels = traces.shape
        by_channel = traces.transpose(1, 2).reshape(batch * num_channels, 1, num_samples)
        features = functional.conv1d(by_channel, weight[:, None], bias, stride)  # B*C, F1, T
        features = features.view(batch, num_channels, *features.shape[1:])
        features = functional.relu(_norm_channels(self.temporal_norm1, features))
        features = torch.einsum("gf,bcft->bcgt", self.temporal_filter2.weight, features)
        features = features + self.temporal_filter2.bias[:, None]  # B, C, F2, T
        features = functional.relu(_norm_channels(self.temporal_norm2, features))
        features = self.spatial_filter.weight @ features.flatten(1, 2)  # B, F, T
        features = functional.relu(self.spatial_norm(features + self.spatial_filter.bias[:, None]))
        return functional.linear(features.transpose(1, 2), self.classifier.weight, self.classifier.bias)

    def _one_output(self, windows: Tensor) -> Tensor:
        """Do the same for traces of exactly one window, with the channels last: several times faster."""
        features = self.temporal_filter1.weight @ windows + self.temporal_filter1.bias[:, None]  # B, F1, C
        features = functional.relu(_norm_last(self.temporal_norm1, features))
        features = self.temporal_filter2.weight @ features + self.temporal_filter2.bias[:, None]  # B, F2, C
        features = functional.relu(_norm_last(self.temporal_norm2, features))
        # The spatial filter's weights count channels first, then temporal features.
        weight = self.spatial_filter.weight.unflatten(1, (self.num_channels, -1)).transpose(1, 2).flatten(1)
        features = functional.linear(features.flatten(1), weight, self.spatial_filter.bias)  # B, F
        features = functional.relu(self.spatial_norm(features))
        return self.classifier(features)[:, None]


def _norm_channels(norm: nn.BatchNorm1d, features: Tensor) -> Tensor:
    """Apply a batch norm whose features are the channels to (B, C, F, T)."""
    return norm(features.flatten(2)).view_as(features)


def _norm_last(norm: nn.BatchNorm1d, features: Tensor) -> Tensor:
    """Apply a batch norm whose features are the channels to (B, F, C)."""
    return norm(features.flatten(0, 1)).view_as(features)
