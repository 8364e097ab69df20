"""The base of all detectors, which turn traces into spikes.

A detector runs a trained network on tiles: stretches of some thousand outputs on a fixed grid of the
recording. A tile always has the same shape and the same samples, so its numbers are the same to the bit
whether a recording is sorted whole, in chunks or as a stream. All that follows is exact arithmetic. A spike
depends on samples around it: on the network's window, the triangle, the merging of neighbouring peaks, and
the rest of its tile. Each detector derives these margins from the network.

There are three detectors, and :func:`spikewise.sorting.detectors.make_detector` chooses between them.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np
import torch

from spikewise.core.config import DetectionConfig
from spikewise.data.recordings.reader import Traces
from spikewise.models.windowed import WindowedNetwork
from spikewise.sorting.peaks import triangle_radius
from spikewise.sorting.spikes import Spikes


class SegmentSearch(Protocol):
    """A search of one segment. Stretches that follow one another share tiles that both need."""

    def find(self, start: int, stop: int) -> Spikes:
        """Find the spikes with ``start <= sample_index < stop``."""


class Detector(ABC):
    """Finds the spikes of a trained network in traces.

    Parameters
    ----------
    network : WindowedNetwork
        Trained network. It is not changed: if it must be moved or put into evaluation mode, a copy is made.
    thresholds : ndarray
        (num_units,) response that a spike of each unit must exceed.
    sampling_frequency : float
        In Hz.
    config : DetectionConfig
        Label radius and merging.
    device : torch.device
        Where `network` is kept.

    Attributes
    ----------
    network : WindowedNetwork
    thresholds : ndarray of float32
        (num_units,), read-only.
    label_radius, merge_radius, stride : int
        In samples: reach of a spike's label, reach of merging, and distance of the outputs computed.
    """

    def __init__(
        self,
        network: WindowedNetwork,
        thresholds: np.ndarray,
        sampling_frequency: float,
        config: DetectionConfig,
        device: torch.device,
    ):
        self.network = network_on(network, device)
        self.thresholds = np.array(thresholds, dtype=np.float32)
        self.thresholds.setflags(write=False)
        self.label_radius = label_radius_samples(config, sampling_frequency)
        self.merge_radius = max(1, round(config.merge_ms * sampling_frequency / 1000))
        self.stride = stride_samples(self.label_radius, network.largest_stride)

    @abstractmethod
    def search(self, traces: Traces, segment_index: int, read_ahead: bool = True) -> SegmentSearch:
        """Begin a search of a segment.

        Parameters
        ----------
        traces : Traces
            Preprocessed traces of the network's channels.
        segment_index : int
        read_ahead : bool
            Whether samples after a stretch are read while the stretch is searched. It saves time where the
            next stretch follows, and never changes a spike.
        """

    def find(self, traces: Traces, segment_index: int, start: int, stop: int) -> Spikes:
        """Find the spikes of one stretch of a segment, ``start <= sample_index < stop``."""
        return self.search(traces, segment_index, read_ahead=False).find(start, stop)

    @property
    def context(self) -> int:
        """Samples of probability to either side of a stretch that its peaks depend on."""
        return self.merge_radius + triangle_radius(self.label_radius)


def network_on(network: WindowedNetwork, device: torch.device) -> WindowedNetwork:
    """Return a network in evaluation mode on a device: itself if it is so already, else a copy."""
    devices = {tensor.device for tensor in network.state_dict().values()}
    if not network.training and devices <= {device}:
        return network
    return copy.deepcopy(network).eval().to(device)


def label_radius_samples(config: DetectionConfig, sampling_frequency: float) -> int:
    """Return how far a window's centre may lie from a spike that it holds: 5 samples at 32 kHz."""
    return max(1, round(config.label_radius_ms * sampling_frequency / 1000))


def stride_samples(label_radius: int, largest: int) -> int:
    """Return the distance in samples between two outputs that are computed, at most `largest`.

    A spike is a plateau of 2 * label_radius + 1 samples. A stride of 2 from a label radius of 4 on, and of 4
    from 5 on, leaves at least two outputs on each plateau, so no spike is missed. The samples between the
    outputs are interpolated.
    """
    fitting = 4 if label_radius >= 5 else 2 if label_radius >= 4 else 1
    return min(fitting, largest)


def tile_samples(num_channels: int, values: int, limits: tuple[int, int]) -> int:
    """Return the outputs of a tile: a power of two within `limits`; more channels give fewer outputs.

    Parameters
    ----------
    num_channels : int
    values : int
        Values (samples times channels) that a tile should have.
    limits : (int, int)
        Fewest and most outputs.
    """
    low, high = limits
    return min(max(2 ** round(math.log2(values / num_channels)), low), high)
