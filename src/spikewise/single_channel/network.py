"""The waveform network (Li et al. 2020, Brain Sci. 10, 835): one waveform in, a score for each unit out.

Four convolutions of three samples, each with batch norm and ReLU; the maximum of every two samples after the
second and the third; two fully connected layers behind dropout. Where the paper is silent or says two things:
the pooling takes two samples (its figure goes from 64 to 32 to 16), and the width of the last two
convolutions, which it does not give, is that of the second.

Two things are ours. The first operation may be a fixed linear map that makes the noise white, learnt from
labelled spikes and held as a buffer. And there may be two answers (`num_answers`): the unit whose spike the
waveform is aligned to, one of all (softmax), and the units that are present, any number of them (sigmoid).
Shapes in comments: B batch, S samples, F features, N units.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

MIN_SAMPLES = 8


class WaveformNetwork(nn.Module):
    """Scores of the units from one waveform.

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
        Fraction of the features left out in training before the fully connected layers.
    num_answers : int
        1: the unit of the spike; 2: also the units that are present.
    """

    front: Tensor

    def __init__(
        self,
        num_samples: int,
        num_units: int,
        features: tuple[int, ...] = (32, 64, 64, 64),
        hidden: tuple[int, int] = (300, 100),
        dropout: float = 0.5,
        num_answers: int = 1,
    ):
        super().__init__()
        self.num_samples, self.num_units, self.num_answers = num_samples, num_units, num_answers
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
            nn.Linear(hidden[1], num_answers * num_units),
        )
        self.register_buffer("front", torch.eye(num_samples))

    def folded(self) -> WaveformNetwork:
        """Return a copy for use after training, whose batch norms are folded into the convolutions."""
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
        """Return logits (batch, num_answers, num_units) of waveforms (batch, num_samples)."""
        features = self.convolutions((waveforms @ self.front)[:, None])  # B, F, S // 4
        return self.classifier(features.flatten(1)).unflatten(1, (self.num_answers, self.num_units))
