"""Principal components of the spikes of look-alike pairs of units, to see whether they form two clouds.

Each pair has components of its own, from the spikes of both units on the channels where the two are largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikewise.output.measures import UnitMeasures, spread
from spikewise.output.pairs import CORE_MS, UnitPair

# All of these were chosen by hand.
MAX_FEATURE_SPIKES = 150
"""Most spikes of each unit of a pair."""
MAX_FEATURE_CHANNELS = 4
"""Most channels whose waveforms are compared."""


@dataclass(frozen=True)
class PairFeatures:
    """The first two principal components of the spikes of a pair, in standard deviations of the noise.

    Attributes
    ----------
    first, second : ndarray
        (num_spikes, 2) components of spikes of the first and of the second unit.
    channel_ids : tuple of str
        The channels, largest first.
    """

    first: np.ndarray
    second: np.ndarray
    channel_ids: tuple[str, ...]


class PairWaveforms:
    """Collects the waveforms of spikes of look-alike pairs, second by second.

    Parameters
    ----------
    pairs : sequence of UnitPair
    units : list of UnitMeasures
        The measures, with waveforms.
    """

    def __init__(self, pairs: Sequence[UnitPair], units: list[UnitMeasures]):
        self._units = units
        self._pairs = pairs
        self._channels = [_channels_of(units[pair.first], units[pair.second]) for pair in pairs]
        self._found: dict[tuple[int, int], list[np.ndarray]] = {}
        self._pairs_of: dict[int, list[int]] = {}
        for index, pair in enumerate(pairs):
            for unit in (pair.first, pair.second):
                self._pairs_of.setdefault(unit, []).append(index)
                self._found[index, unit] = []

    def add(self, unit: int, traces: np.ndarray, frames: np.ndarray) -> None:
        """Add spikes of a unit: their frames in `traces` (num_samples, num_channels) of its group."""
        if unit not in self._pairs_of:
            return
        rate = self._units[unit].sampling_frequency
        before, after = (round(side / 1000 * rate) for side in CORE_MS)
        window = frames[:, None] + np.arange(-before, after)
        for pair in self._pairs_of[unit]:
            waveforms = traces[window[:, :, None], self._channels[pair]]
            self._found[pair, unit].append(waveforms.reshape(len(frames), -1))

    def features(self) -> list[PairFeatures]:
        """Return the components of each pair, in the order of the pairs."""
        return [self._of_pair(index, pair) for index, pair in enumerate(self._pairs)]

    def _of_pair(self, index: int, pair: UnitPair) -> PairFeatures:
        parts = []
        for unit in (pair.first, pair.second):
            found = self._found[index, unit]
            waveforms = np.concatenate(found).astype(np.float64) if found else np.zeros((0, 1))
            parts.append(waveforms[spread(len(waveforms), MAX_FEATURE_SPIKES)])
        ids = self._units[pair.first].group.channel_ids
        names = tuple(ids[channel] for channel in self._channels[index])
        if not all(len(part) for part in parts):
            return PairFeatures(np.zeros((0, 2)), np.zeros((0, 2)), names)
        first, second = _two_components(*parts)
        return PairFeatures(first, second, names)


def _channels_of(first: UnitMeasures, second: UnitMeasures) -> np.ndarray:
    """Return the channels on which two units together are largest, largest first."""
    waveforms = [unit.waveform for unit in (first, second) if unit.waveform is not None]
    peaks = np.sum([waveform.peaks for waveform in waveforms], axis=0)
    return np.argsort(-peaks, kind="stable")[: min(MAX_FEATURE_CHANNELS, len(peaks))]


def _two_components(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Project the waveforms of two units on the two directions in which all of them vary most.

    The middle between the means of the units is the origin; the second unit lies to the right.
    """
    middle = (first.mean(axis=0) + second.mean(axis=0)) / 2
    centred = [part - middle for part in (first, second)]
    _, _, rows = np.linalg.svd(np.concatenate(centred), full_matrices=False)
    axes = np.zeros((2, first.shape[1]))
    axes[: min(2, len(rows))] = rows[:2]
    towards = axes @ (centred[1].mean(axis=0) - centred[0].mean(axis=0))
    axes *= np.where(towards < 0, -1, 1)[:, None]
    return centred[0] @ axes.T, centred[1] @ axes.T
