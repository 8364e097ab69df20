"""Where a recording is sorted again: stretches of a few seconds, evenly spread, and the spikes in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Chosen by hand; together they bound the time that the estimates take.
STRETCH_S = 4.0
"""Length of a stretch."""
TOTAL_S = 80.0
"""Most seconds of all stretches together."""


@dataclass(frozen=True)
class Stretch:
    """A part of a segment, ``start <= sample_index < stop``."""

    segment_index: int
    start: int
    stop: int


@dataclass(frozen=True)
class TrainsOfGroup:
    """The spikes that were found in a group of channels.

    Attributes
    ----------
    frames : list of lists of ndarray
        For each unit its frames in each segment, in order.
    sampling_frequency : float
    """

    frames: Sequence[Sequence[np.ndarray]]
    sampling_frequency: float

    @property
    def num_units(self) -> int:
        """Number of units."""
        return len(self.frames)

    def within(self, unit: int, stretch: Stretch, margin: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Return the frames of a unit in a stretch, at least `margin` samples from its start and end."""
        frames = self.frames[unit][stretch.segment_index]
        low, high = np.searchsorted(frames, [stretch.start + margin[0], stretch.stop - margin[1]])
        return frames[low:high]

    def counts(self) -> np.ndarray:
        """Return the number of spikes of each unit."""
        return np.array([sum(map(len, parts)) for parts in self.frames], dtype=np.int64)


def choose_stretches(num_samples: Sequence[int], sampling_frequency: float) -> list[Stretch]:
    """Choose stretches, evenly spread over all segments.

    Parameters
    ----------
    num_samples : sequence of int
        Length of each segment.
    sampling_frequency : float
        In Hz.

    Returns
    -------
    list of Stretch
        In order of time; the last of a segment may be shorter, and one of less than half a second is left out
        unless there is no other.
    """
    length = max(1, round(STRETCH_S * sampling_frequency))
    every = [
        Stretch(segment, start, min(start + length, total))
        for segment, total in enumerate(num_samples)
        for start in range(0, total, length)
    ]
    long = [stretch for stretch in every if stretch.stop - stretch.start >= sampling_frequency / 2]
    usable = long or every
    count = min(len(usable), max(1, round(TOTAL_S / STRETCH_S)))
    chosen = ((np.arange(count) + 0.5) * len(usable) / count).astype(np.int64)
    return [usable[index] for index in chosen]
