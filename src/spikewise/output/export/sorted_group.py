"""What the exports need of a sort: its groups of channels with their traces and units, and its spikes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spikewise.data.recordings.reader import Traces


@dataclass(frozen=True)
class SortedGroup:
    """A probe, shank or tetrode that was sorted.

    Attributes
    ----------
    name : str
    traces : Traces
        Preprocessed traces in units of noise standard deviations.
    channel_index : ndarray of int
        (num_channels,) index of each channel in the recording.
    positions_um : ndarray
        (num_channels, 2) positions of the channels.
    scale : ndarray
        (num_channels,) microvolts per standard deviation of the noise, or the recording's own unit if its
        gain is unknown; 0 for silenced channels.
    unit_index : ndarray of int
        (num_units,) index in the sorting of each unit of the group.
    """

    name: str
    traces: Traces
    channel_index: np.ndarray
    positions_um: np.ndarray
    scale: np.ndarray
    unit_index: np.ndarray


@dataclass(frozen=True)
class SpikeList:
    """All spikes of a sorting in order of time; arrays are (num_spikes,).

    Attributes
    ----------
    frames : ndarray of int
        Frame of each spike from the start of the recording, segments laid end to end.
    unit_index : ndarray of int
        Index of its unit in the sorting.
    """

    frames: np.ndarray
    unit_index: np.ndarray

    def __len__(self) -> int:
        """Return the number of spikes."""
        return len(self.frames)
