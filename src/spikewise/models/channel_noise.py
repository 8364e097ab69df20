"""The noise of the channels that a model learnt: it gives the traces of other recordings the model's scale.

The network takes traces in units of this noise. A recording with another noise keeps the sizes of its spikes
that way; dividing it by its own noise would shrink or enlarge them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

ODD_NOISE = 1.25
"""A noise so many times larger or smaller than that of the training is told. Chosen by hand."""
_LIKELY_RATIOS = {"both": (0.1, 4.0), "none": (1 / 3, 3.0), "one": (1 / ODD_NOISE, ODD_NOISE)}
"""Smallest and largest ratio of the noise of two recordings that is taken for noise and not for another gain,
if the gain of both, of none or of one of them is known. Chosen by hand."""
_NOISY_CHANNEL = 2.0
"""A channel is noisy if its noise rose so many times more than that of the others. Chosen by hand."""


@dataclass(frozen=True)
class ChannelNoise:
    """The noise of channels in training, by which a model divides them.

    Attributes
    ----------
    levels : ndarray of float64
        (num_channels,) standard deviations in the raw units of the recording; 0 for silenced channels.
    gains_to_uV : ndarray of float64 or None
        (num_channels,) microvolts for one raw unit, if they are known. Negative: the samples are inverted.
    """

    levels: np.ndarray
    gains_to_uV: np.ndarray | None

    def in_units_of(self, gains_to_uV: np.ndarray | None) -> np.ndarray:
        """Return the levels in the raw units of another recording, of which the gains are given.

        A level is negative where the samples of the recording are inverted. Where one of both gains is not
        known, both recordings are taken to have the same raw units.
        """
        if gains_to_uV is None or self.gains_to_uV is None:
            gains = self.gains_to_uV if gains_to_uV is None else gains_to_uV
            return self.levels if gains is None else self.levels * np.sign(gains)
        ratio = np.abs(self.gains_to_uV / gains_to_uV)
        return np.where(ratio == 1, self.levels, self.levels * ratio) * np.sign(gains_to_uV)

    def scale_of(self, measured: np.ndarray, gains_to_uV: np.ndarray | None) -> np.ndarray:
        """Return by what the channels of a recording are divided.

        These are the levels of the training, so that spikes keep their sizes. A channel whose noise rose much
        more than that of the others is divided by more, so that it does not outweigh them. If the noise
        differs so much that another gain is more likely, each channel is divided by its own noise.

        Parameters
        ----------
        measured : ndarray
            (num_channels,) noise of the recording in its raw units.
        gains_to_uV : ndarray or None
            (num_channels,) its gains, if they are known.
        """
        levels = self.in_units_of(gains_to_uV)
        ratio = noise_ratio(measured, levels)
        known = (gains_to_uV is not None) + (self.gains_to_uV is not None)
        lowest, largest = _LIKELY_RATIOS[("none", "one", "both")[known]]
        if not lowest <= ratio <= largest:
            return np.where(levels < 0, -1, 1) * measured
        noisy = self.noisy(measured, levels)
        return np.where(noisy, np.sign(levels) * measured / ratio, levels)

    def noisy(self, measured: np.ndarray, levels: np.ndarray) -> np.ndarray:
        """Return which channels (num_channels,) have a noise that rose much more than that of the others."""
        return measured > _NOISY_CHANNEL * noise_ratio(measured, levels) * np.abs(levels)

    def to_dict(self) -> dict[str, Any]:
        """Return the noise as JSON types."""
        gains = None if self.gains_to_uV is None else self.gains_to_uV.tolist()
        return {"noise_levels": self.levels.tolist(), "gains_to_uV": gains}

    @classmethod
    def from_dict(cls, facts: dict[str, Any], num_channels: int) -> ChannelNoise | None:
        """Return the noise that a header lists, None if it lists none.

        Raises
        ------
        ValueError
            If it is no list of numbers, one for each channel.
        """
        if "noise_levels" not in facts:
            return None
        levels, gains = (
            None if facts[name] is None else np.asarray(facts[name], dtype=float)
            for name in ("noise_levels", "gains_to_uV")
        )
        for values in (levels, gains):
            if values is not None and (values.shape != (num_channels,) or not np.isfinite(values).all()):
                raise ValueError("its noise of the channels is not one number for each")
        if levels is None or levels.min() < 0 or (gains is not None and not gains.all()):
            raise ValueError("its noise of the channels is missing, negative, or has gains of 0")
        return cls(levels, gains)


def noise_ratio(measured: np.ndarray, levels: np.ndarray) -> float:
    """Return the median over the channels of a noise as a multiple of another; 1 if no channel has both."""
    used = np.flatnonzero((np.nan_to_num(measured) > 0) & (np.nan_to_num(levels) != 0))
    return float(np.median(measured[used] / np.abs(levels[used]))) if len(used) else 1.0
