"""What is written of a sorted group of channels: its units, its traces, its place in the recording."""

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
        (num_channels,) microvolts of a noise standard deviation, or raw units where the recording does not
        tell its gain; 0 for silenced channels.
    unit_index : ndarray of int
        (num_units,) index of each of its units in the sorting.
    """

    name: str
    traces: Traces
    channel_index: np.ndarray
    positions_um: np.ndarray
    scale: np.ndarray
    unit_index: np.ndarray
