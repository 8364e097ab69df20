"""What is written of a sorted group of channels: its units, its traces, its place in the recording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from spikeinterface.core import BaseRecording

from spikewise.data.labels import Traces


@dataclass(frozen=True)
class Unfiltered:
    """What the traces of a group are made from.

    They are ``(filtered - median) * gains``, the median that over some channels of the filtered traces.

    Attributes
    ----------
    recording : BaseRecording
        The group's channels before the band-pass, in raw units.
    sections : ndarray
        (num_sections, 6) second-order sections of the band-pass.
    margin : int
        Samples to either side of another that matter to what it becomes.
    averaged : ndarray of int
        Channels of the median; empty where none is subtracted.
    gains : ndarray
        (num_channels,) 0 for silenced channels.
    """

    recording: BaseRecording
    sections: np.ndarray
    margin: int
    averaged: np.ndarray
    gains: np.ndarray


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
    unfiltered : Unfiltered, optional
        What the traces are made from; None where no filter is run.
    """

    name: str
    traces: Traces
    channel_index: np.ndarray
    positions_um: np.ndarray
    scale: np.ndarray
    unit_index: np.ndarray
    unfiltered: Unfiltered | None = None
