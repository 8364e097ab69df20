"""Mean waveforms of units, as a model holds them: weights of a few temporal shapes on the channels near each.

Shapes: U units, M channels of a unit, K temporal shapes, S samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

_NAMES = ("waveform_channels", "waveform_weights", "waveform_shapes")
"""Names of the tensors in a model's file."""


@dataclass(frozen=True)
class UnitWaveforms:
    """Mean waveforms, in noise standard deviations of the traces that the model was learnt from.

    The waveform of unit u on the channel ``channel_index[u, m]`` is ``weights[u, m] @ shapes``.

    Attributes
    ----------
    channel_index : ndarray of int64, shape (U, M)
        Channels on which the unit stands out, those with the most energy first; then -1. A unit that could
        not be measured has none.
    weights : ndarray of float32, shape (U, M, K)
    shapes : ndarray of float32, shape (K, S)
    before : int
        Samples of a waveform ahead of the spike.
    """

    channel_index: np.ndarray
    weights: np.ndarray
    shapes: np.ndarray
    before: int

    def with_units(self, others: UnitWaveforms, units: np.ndarray) -> UnitWaveforms:
        """Return the waveforms in which those of some units are replaced.

        Each set has shapes of its own, so the result has those of both.

        Parameters
        ----------
        others : UnitWaveforms
            Of the replaced units, in order; with as many channels and samples.
        units : ndarray of int
            Indices of the replaced units.
        """
        first, second = self.shapes.shape[0], others.shapes.shape[0]
        channels, weights = self.channel_index.copy(), np.pad(self.weights, ((0, 0), (0, 0), (0, second)))
        channels[units] = others.channel_index
        weights[units] = np.pad(others.weights, ((0, 0), (0, 0), (first, 0)))
        return replace(
            self,
            channel_index=channels,
            weights=weights,
            shapes=np.concatenate([self.shapes, others.shapes]),
        )

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the arrays as tensors, for a file."""
        arrays = self.channel_index, self.weights, self.shapes
        return {
            name: torch.from_numpy(array).contiguous() for name, array in zip(_NAMES, arrays, strict=True)
        }


def take_waveforms(
    state: dict[str, torch.Tensor], facts: Mapping[str, Any], num_channels: int
) -> UnitWaveforms | None:
    """Take the mean waveforms out of the tensors of a group; None if the file has none.

    Raises
    ------
    ValueError, KeyError
        If they do not fit the group.
    """
    found = [state.pop(name) for name in _NAMES if name in state]
    if not found:
        return None
    if len(found) < len(_NAMES):
        raise ValueError("its mean waveforms are not complete")
    channels, weights, shapes = (tensor.numpy() for tensor in found)
    before, sizes = facts["waveform_before"], (len(facts["unit_ids"]), channels.shape[-1], len(shapes))
    fits = channels.ndim == 2 and shapes.ndim == 2 and channels.dtype == np.int64
    if not fits or weights.shape != sizes or {weights.dtype, shapes.dtype} != {np.dtype(np.float32)}:
        raise ValueError("its mean waveforms do not fit its units")
    if len(channels) != sizes[0] or not -1 <= int(channels.min()) <= int(channels.max()) < num_channels:
        raise ValueError("its mean waveforms lie on channels that it does not have")
    if not isinstance(before, int) or not 0 <= before < shapes.shape[1]:
        raise ValueError(f"its mean waveforms begin {before!r} samples before the spike")
    return UnitWaveforms(channels, weights, shapes, before)
