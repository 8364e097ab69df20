"""The waveform network (Li et al. 2020, Brain Sci. 10, 835): one waveform in, a score for each unit out.

The network has four convolutions of three samples, each with batch norm and ReLU, max pooling after the
second and the third, and two fully connected layers with dropout before them. Where the paper is unclear: the
pooling takes two samples (its figure goes from 64 to 32 to 16), and the last two convolutions, whose width it
does not give, are as wide as the second.

Two things are added to the paper. The first operation may be a fixed linear map that makes the noise white;
it is estimated from labelled spikes and stored as a buffer. The network may have two heads (`num_heads`): one
for the unit whose spike the waveform is aligned to (softmax over the units), and one for the units that are
present in the waveform, any number of them (sigmoid). Shapes in comments: B batch, S samples, F features, N
units.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from spikewise.core.compiling import compiled

MIN_SAMPLES = 8
"""Shortest waveform in samples; two poolings leave two of them."""


class WaveformNetwork(nn.Module):
    """Network that computes a score for each unit from one waveform.

    Parameters
    ----------
    num_samples : int
        Length of a waveform, 8 or more.
    num_units : int
    features : tuple of int
        Features of the four convolutions.
    hidden : tuple of int
        Sizes of the two fully connected layers.
    dropout : float
        Fraction of the features dropped in training before each fully connected layer but the last.
    num_heads : int
        1: the unit of the spike; 2: also the units that are present in the waveform.
    """

    front: Tensor

    def __init__(
        self,
        num_samples: int,
        num_units: int,
        features: tuple[int, ...] = (32, 64, 64, 64),
        hidden: tuple[int, int] = (300, 100),
        dropout: float = 0.5,
        num_heads: int = 1,
    ):
        super().__init__()
        self.num_samples, self.num_units, self.num_heads = num_samples, num_units, num_heads
        layers: list[nn.Module] = []
        for index, (before, after) in enumerate(zip((1, *features), features, strict=False)):
            layers += [nn.Conv1d(before, after, 3, padding=1), nn.BatchNorm1d(after), nn.ReLU()]
            if index in (1, 2):
                layers.append(nn.MaxPool1d(2))
        self.convolutions = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(features[-1] * (num_samples // 2 // 2), hidden[0]),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden[0], hidden[1]),
            nn.ReLU(),
            nn.Linear(hidden[1], num_heads * num_units),
        )
        self.register_buffer("front", torch.eye(num_samples))

    def folded(self) -> WaveformNetwork:
        """Return a copy in evaluation mode, with the batch norms folded into the convolutions."""
        copied = copy.deepcopy(self).eval()
        folded: list[nn.Module] = []
        for layer in copied.convolutions:
            if isinstance(layer, nn.BatchNorm1d):
                convolution = folded.pop()
                assert isinstance(convolution, nn.Conv1d)
                folded.append(fuse_conv_bn_eval(convolution, layer))
            else:
                folded.append(layer)
        copied.convolutions = nn.Sequential(*folded)
        return copied

    def forward(self, waveforms: Tensor) -> Tensor:
        """Return logits (batch, num_heads, num_units) of waveforms (batch, num_samples)."""
        features = self.convolutions((waveforms @ self.front)[:, None])  # B, F, S // 4
        return self.classifier(features.flatten(1)).unflatten(1, (self.num_heads, self.num_units))


class SingleWaveform:
    """A network that computes one waveform at a time, in compiled loops.

    Its numbers for a waveform never depend on other waveforms, unlike those of a batch. NumPy, with a call
    for each operation, takes twice as long, and PyTorch longer.

    Parameters
    ----------
    network : WaveformNetwork
    """

    def __init__(self, network: WaveformNetwork):
        folded = network.folded()
        self._heads = network.num_heads, network.num_units
        self._front = folded.front.numpy().copy()
        self._convolutions = tuple(
            # (3 * features before, features after): the three samples of a window, one after the other
            (layer.weight.detach().permute(2, 1, 0).flatten(0, 1).contiguous().numpy(), _bias(layer))
            for layer in folded.convolutions
            if isinstance(layer, nn.Conv1d)
        )
        linear = [layer for layer in folded.classifier if isinstance(layer, nn.Linear)]
        weights = [layer.weight.detach().numpy() for layer in linear]
        features = self._convolutions[-1][0].shape[1]
        # PyTorch flattens features first, these arrays hold samples first
        weights[0] = (
            weights[0].reshape(len(weights[0]), features, -1).transpose(0, 2, 1).reshape(len(weights[0]), -1)
        )
        self._linear = tuple(
            (np.ascontiguousarray(weight.T), _bias(layer))
            for weight, layer in zip(weights, linear, strict=True)
        )

    def logits(self, waveform: np.ndarray) -> np.ndarray:
        """Return the logits (num_heads, num_units) of a waveform (num_samples,) of float32."""
        found = compute_single(waveform, self._front, self._convolutions, self._linear)
        return found.reshape(self._heads)


@compiled()
def compute_single(
    waveform: np.ndarray,
    front: np.ndarray,
    convolutions: tuple[tuple[np.ndarray, np.ndarray], ...],
    linear: tuple[tuple[np.ndarray, np.ndarray], ...],
) -> np.ndarray:
    """Return the logits (num_outputs,) of a waveform (num_samples,).

    Parameters
    ----------
    waveform : ndarray of float32
    front : ndarray of float32
        (num_samples, num_samples)
    convolutions, linear : tuple of (ndarray, ndarray)
        Weights (inputs, outputs) and biases (outputs,) of each layer. The inputs of a convolution are three
        samples with all their features.
    """
    num_samples, num_before = len(waveform), 1
    values = np.zeros(num_samples + 2, np.float32)  # a row of zeros before and after
    _fill_layer(waveform, 0, front, np.zeros(num_samples, np.float32), values[1:-1].reshape(1, num_samples))
    for index in range(len(convolutions)):
        weight, bias = convolutions[index]
        num_features = weight.shape[1]
        rows = np.empty((num_samples, num_features), np.float32)
        _fill_layer(values, num_before, weight, bias, rows)
        if index == 1 or index == 2:  # the larger of two neighbours
            num_samples //= 2
            for row in range(num_samples):
                for feature in range(num_features):
                    rows[row, feature] = max(rows[2 * row, feature], rows[2 * row + 1, feature])
        values, num_before = np.zeros((num_samples + 2) * num_features, np.float32), num_features
        for row in range(num_samples):
            for feature in range(num_features):
                values[(row + 1) * num_features + feature] = max(rows[row, feature], np.float32(0))
    found = values[num_before : (num_samples + 1) * num_before]
    for index in range(len(linear)):
        weight, bias = linear[index]
        out = np.empty((1, weight.shape[1]), np.float32)
        _fill_layer(found, 0, weight, bias, out)
        found = out[0]
        if index + 1 < len(linear):
            found = np.maximum(found, np.float32(0))
    return found


@compiled()
def _fill_layer(values: np.ndarray, step: int, weight: np.ndarray, bias: np.ndarray, out: np.ndarray) -> None:
    """Fill rows (num_rows, outputs); the inputs of a row begin `step` values after those of the last one."""
    for row in range(len(out)):
        for output in range(out.shape[1]):
            out[row, output] = bias[output]
        for at in range(len(weight)):
            value = values[row * step + at]
            for output in range(out.shape[1]):
                out[row, output] += value * weight[at, output]


def _bias(layer: nn.Conv1d | nn.Linear) -> np.ndarray:
    assert layer.bias is not None
    return layer.bias.detach().numpy().copy()
