"""Detectors that compute the probability of every sample with PyTorch, and the simplest of them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikewise.core.config import DetectionConfig
from spikewise.data.recordings.reader import Traces
from spikewise.models.windowed import WindowedNetwork
from spikewise.sorting.detector import Detector, SegmentSearch, tile_samples
from spikewise.sorting.peaks import find_peaks, smooth_probabilities, triangle_radius
from spikewise.sorting.spikes import Spikes

_TILE_VALUES = 2**19
"""Samples times channels of a tile: enough work for two cores, few enough for a processor's cache. Chosen by
hand."""
_TILE_SAMPLES = (1024, 8192)
"""Fewest and most outputs of a tile. Chosen by hand."""


class TensorDetector(Detector):
    """Finds spikes among the probabilities of all samples.

    Parameters
    ----------
    network, thresholds, sampling_frequency, config
        See :class:`spikewise.sorting.detector.Detector`.
    tile : int
        Outputs of a tile.
    devices : (torch.device, torch.device)
        Where `network` is kept, and where probabilities are searched for peaks.
    """

    def __init__(
        self,
        network: WindowedNetwork,
        thresholds: np.ndarray,
        sampling_frequency: float,
        config: DetectionConfig,
        tile: int,
        devices: tuple[torch.device, torch.device],
    ):
        of_network, self.device = devices
        super().__init__(network, thresholds, sampling_frequency, config, of_network)
        self.tile_samples = tile
        self._levels = torch.as_tensor(np.array(self.thresholds), device=self.device)

    @abstractmethod
    def _probabilities(self, padded_traces: np.ndarray, num_tiles: int) -> Tensor:
        """Run the network tile by tile: (num_tiles * tile_samples, num_units)."""

    def padded_interval(self, start: int, stop: int) -> tuple[int, int]:
        """Return the interval of traces that is needed to find the spikes of [start, stop), in samples."""
        first_tile, last_tile = self._tiles(start, stop)
        return (
            first_tile * self.tile_samples - self.network.left_margin,
            last_tile * self.tile_samples + self.network.right_margin + self._beyond,
        )

    def detect(self, padded_traces: np.ndarray, start: int, stop: int) -> Spikes:
        """Find the spikes of one stretch.

        Parameters
        ----------
        padded_traces : ndarray
            (num_samples, num_channels) float32, the traces of exactly ``padded_interval(start, stop)``, zero
            where that reaches beyond the recording.
        start, stop : int
            The stretch, in samples of the recording.

        Returns
        -------
        Spikes
            Those with ``start <= sample_index < stop``.
        """
        return self._peaks(self.responses(padded_traces, start, stop)[0], start)

    def responses(self, padded_traces: np.ndarray, start: int, stop: int) -> tuple[Tensor, int]:
        """Return the smoothed probabilities of a stretch and of the samples around it that its peaks depend
        on.

        Returns
        -------
        responses : Tensor
            (stop - start + 2 * merge_radius, num_units)
        first_sample : int
            Sample of the recording at which they begin: ``start - merge_radius``.
        """
        first_tile, last_tile = self._tiles(start, stop)
        probabilities = self._probabilities(padded_traces, last_tile - first_tile)
        first_sample = start - self.merge_radius
        begin = first_sample - triangle_radius(self.label_radius) - first_tile * self.tile_samples
        length = stop - start + 2 * self.context
        return smooth_probabilities(probabilities[begin : begin + length], self.label_radius), first_sample

    def _peaks(self, responses: Tensor, start: int) -> Spikes:
        """Return the spikes of responses that begin `merge_radius` before `start`, in one copy."""
        sample_index, unit_index = find_peaks(responses, self._levels, self.merge_radius)
        heights = responses[sample_index + self.merge_radius, unit_index].float().view(torch.int32)
        found = torch.stack([sample_index + start, unit_index, heights.long()]).cpu().numpy()
        return Spikes(found[0], found[1], found[2].astype(np.int32).view(np.float32))

    @property
    def _beyond(self) -> int:
        """Outputs that a tile computes after its end, to interpolate up to its end."""
        return 1 if self.stride > 1 else 0

    def _tiles(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first tile that the stretch needs, and the one after its last."""
        return (start - self.context) // self.tile_samples, -(-(stop + self.context) // self.tile_samples)


class DenseDetector(TensorDetector):
    """Computes any network at every output: the reference for the other detectors.

    Parameters
    ----------
    network, thresholds, sampling_frequency, config, device
        See :class:`spikewise.sorting.detector.Detector`.
    """

    def __init__(
        self,
        network: WindowedNetwork,
        thresholds: np.ndarray,
        sampling_frequency: float,
        config: DetectionConfig,
        device: torch.device,
    ):
        tile = tile_samples(network.num_channels, _TILE_VALUES, _TILE_SAMPLES)
        super().__init__(network, thresholds, sampling_frequency, config, tile, (device, device))

    def search(self, traces: Traces, segment_index: int, read_ahead: bool = True) -> SegmentSearch:
        """Begin a search of a segment; nothing is read ahead."""
        return _DenseSearch(self, traces, segment_index)

    @torch.inference_mode()
    def _probabilities(self, padded_traces: np.ndarray, num_tiles: int) -> Tensor:
        step = self.tile_samples
        size = step + self.network.window_samples - 1 + self._beyond
        probabilities = torch.empty(num_tiles * step, self.network.num_units, device=self.device)
        for begin in range(0, num_tiles * step, step):
            # A copy, so that the memory is aligned alike for each tile.
            tile = torch.tensor(padded_traces[begin : begin + size], device=self.device)
            outputs = torch.sigmoid(self.network(tile[None], self.stride)[0])
            _interpolate(outputs, probabilities[begin : begin + step], self.stride)
        return probabilities


@dataclass(frozen=True)
class _DenseSearch:
    """A search that computes each stretch on its own."""

    detector: DenseDetector
    traces: Traces
    segment_index: int

    def find(self, start: int, stop: int) -> Spikes:
        padded = self.traces.read(self.segment_index, *self.detector.padded_interval(start, stop))
        return self.detector.detect(padded, start, stop)


def _interpolate(outputs: Tensor, probabilities: Tensor, stride: int) -> None:
    """Fill the probability of every sample from that of every `stride`-th, in place and linearly."""
    num_outputs = len(probabilities) // stride
    for offset in range(stride):
        share = offset / stride
        here = outputs[:num_outputs]
        probabilities[offset::stride] = (
            here if not offset else torch.lerp(here, outputs[1 : num_outputs + 1], share)
        )
