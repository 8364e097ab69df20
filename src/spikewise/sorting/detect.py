"""The one code path from traces to spikes; files, streams and clusters only feed it.

The network runs on tiles: stretches of some thousand outputs on a fixed grid of the recording. A tile always
has the same shape and the same samples whatever was asked for, so its numbers are the same to the bit whole,
chunked or streamed, and all that follows is exact arithmetic. What a spike depends on beyond its own sample
(the network's window, the triangle, the merging of neighbouring peaks, the rest of its tile) is the
detector's margin, derived here from the network and nowhere typed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikewise.core.config import DetectionConfig, SortingConfig
from spikewise.core.devices import choose_device
from spikewise.core.threads import on_all_cores
from spikewise.data.recordings.reader import TraceReader, Traces
from spikewise.models.gates import block_samples
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.models.windowed import WindowedNetwork
from spikewise.sorting.loops import peaks_of_units
from spikewise.sorting.peaks import LEVELS, find_peaks, smooth_probabilities, triangle_radius
from spikewise.sorting.sparse import Asked, SparseNetwork, Tile, join

_TILE_VALUES = 2**19  # samples times channels: large enough to keep two cores busy, small enough for a cache
_TILE_SAMPLES = (1024, 8192)
_SPARSE_TILE_VALUES = 2**21
_SPARSE_TILE_SAMPLES = (1024, 8192)
"""So few that a tile and its features stay in a processor's cache."""
_SPARSE_READ_VALUES = 2**24
"""Of tiles that are read at once."""


@dataclass(frozen=True)
class Spikes:
    """Spikes in order of time, then unit; all arrays are (num_spikes,)."""

    sample_index: np.ndarray
    unit_index: np.ndarray
    response: np.ndarray

    def __len__(self) -> int:
        """Return the number of spikes."""
        return len(self.sample_index)

    @classmethod
    def concatenate(cls, parts: list[Spikes]) -> Spikes:
        """Join spikes that follow one another in time."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        return cls(
            *(
                np.concatenate([getattr(p, name) for p in parts])
                for name in ("sample_index", "unit_index", "response")
            )
        )


def label_radius_samples(config: DetectionConfig, sampling_frequency: float) -> int:
    """Return how many samples from a spike a window's centre may lie and hold it: 5 at 32 kHz."""
    return max(1, round(config.label_radius_ms * sampling_frequency / 1000))


def stride_samples(label_radius: int, largest: int) -> int:
    """Return from how many samples to the next a network is computed, at most `largest`.

    A spike is a plateau of 2 * label_radius + 1 samples. With 2 from a label radius of 4 on, and 4 from 5 on,
    at least two outputs fall on it, so that there is nothing to miss; the samples between are interpolated.
    """
    fitting = 4 if label_radius >= 5 else 2 if label_radius >= 4 else 1
    return min(fitting, largest)


def tile_samples(
    num_channels: int, values: int = _TILE_VALUES, limits: tuple[int, int] = _TILE_SAMPLES
) -> int:
    """Return how many outputs a tile has: a power of two, the more the fewer the channels."""
    low, high = limits
    return min(max(2 ** round(math.log2(values / num_channels)), low), high)


class SpikeDetector:
    """Finds the spikes of a trained network in traces.

    Parameters
    ----------
    network : WindowedNetwork
        Trained network; it is put into evaluation mode and moved to `device`.
    thresholds : ndarray
        (num_units,) response that a spike of each unit must exceed.
    sampling_frequency : float
        In Hz.
    config : DetectionConfig
        Label radius and merging.
    device : torch.device
        Where the network runs.
    """

    def __init__(
        self,
        network: WindowedNetwork,
        thresholds: np.ndarray,
        sampling_frequency: float,
        config: DetectionConfig,
        device: torch.device,
    ):
        self.network = network.eval().to(device)
        self.device = device
        self.thresholds = torch.as_tensor(thresholds, dtype=torch.float32, device=device)
        self.tile_samples = tile_samples(network.num_channels)
        self.label_radius = label_radius_samples(config, sampling_frequency)
        self.stride = stride_samples(self.label_radius, network.largest_stride)
        self.merge_radius = max(1, round(config.merge_ms * sampling_frequency / 1000))

    def find(
        self, traces: Traces, segment_index: int, start: int, stop: int, known: dict[int, Asked] | None = None
    ) -> Spikes:
        """Find the spikes of one stretch of a segment, ``start <= sample_index < stop``."""
        return self.detect(traces.read(segment_index, *self.padded_interval(start, stop)), start, stop)

    def padded_interval(self, start: int, stop: int) -> tuple[int, int]:
        """Return the interval of traces that finding the spikes of [start, stop) takes, in samples."""
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
        """Return the smoothed probabilities of a stretch with the context that finding its peaks takes.

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
        length = stop - start + 2 * self._context
        return smooth_probabilities(probabilities[begin : begin + length], self.label_radius), first_sample

    def _peaks(self, responses: Tensor, start: int) -> Spikes:
        """Return the spikes of responses that begin `merge_radius` before `start`, in one copy."""
        sample_index, unit_index = find_peaks(responses, self.thresholds, self.merge_radius)
        heights = responses[sample_index + self.merge_radius, unit_index].float().view(torch.int32)
        found = torch.stack([sample_index + start, unit_index, heights.long()]).cpu().numpy()
        return Spikes(found[0], found[1], found[2].astype(np.int32).view(np.float32))

    @property
    def _context(self) -> int:
        """Samples of probability to either side of a stretch that finding its peaks takes."""
        return self.merge_radius + triangle_radius(self.label_radius)

    @property
    def _beyond(self) -> int:
        """Outputs beyond its end that a tile computes, to interpolate up to its end."""
        return 1 if self.stride > 1 else 0

    def _tiles(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first tile that the stretch needs, and the one after its last."""
        return (start - self._context) // self.tile_samples, -(-(stop + self._context) // self.tile_samples)

    @torch.inference_mode()
    def _probabilities(self, padded_traces: np.ndarray, num_tiles: int) -> Tensor:
        """Run the network tile by tile: (num_tiles * tile_samples, num_units)."""
        step = self.tile_samples
        size = step + self.network.window_samples - 1 + self._beyond
        probabilities = torch.empty(num_tiles * step, self.network.num_units, device=self.device)
        for begin in range(0, num_tiles * step, step):
            # A copy, so that the memory is aligned alike for each tile.
            tile = torch.tensor(padded_traces[begin : begin + size], device=self.device)
            outputs = torch.sigmoid(self.network(tile[None], self.stride)[0])
            _interpolate(outputs, probabilities[begin : begin + step], self.stride)
        return probabilities


def _interpolate(outputs: Tensor, probabilities: Tensor, stride: int) -> None:
    """Fill the probability of every sample from that of every `stride`-th, in place and linearly."""
    num_outputs = len(probabilities) // stride
    for offset in range(stride):
        share = offset / stride
        here = outputs[:num_outputs]
        probabilities[offset::stride] = (
            here if not offset else torch.lerp(here, outputs[1 : num_outputs + 1], share)
        )


class SparseDetector:
    """Finds the spikes of a network of the neighbourhood design where the gates of its units are open.

    Parameters
    ----------
    network : NeighbourhoodNetwork
        Trained network; it is put into evaluation mode.
    thresholds : ndarray
        (num_units,) response that a spike of each unit must exceed.
    sampling_frequency : float
        In Hz.
    config : DetectionConfig
        Label radius and merging.
    """

    def __init__(
        self,
        network: NeighbourhoodNetwork,
        thresholds: np.ndarray,
        sampling_frequency: float,
        config: DetectionConfig,
    ):
        self.network = network.eval().cpu()
        self.thresholds = torch.as_tensor(thresholds, dtype=torch.float32)
        self.label_radius = label_radius_samples(config, sampling_frequency)
        self.merge_radius = max(1, round(config.merge_ms * sampling_frequency / 1000))
        stride = stride_samples(self.label_radius, network.largest_stride)
        self.block = block_samples(sampling_frequency, stride)
        wanted = tile_samples(network.num_channels, _SPARSE_TILE_VALUES, _SPARSE_TILE_SAMPLES)
        self.tile_samples = max(1, wanted // self.block) * self.block
        plateau = 2 * self.label_radius + 1
        self._sparse = SparseNetwork(self.network, self.block, stride, plateau, self.tile_samples)

    @staticmethod
    def network_with_gates(
        network: WindowedNetwork, sampling_frequency: float, config: DetectionConfig
    ) -> NeighbourhoodNetwork | None:
        """Return a network that has gates, and margins that hold what they look at; None for any other."""
        if not isinstance(network, NeighbourhoodNetwork):
            return None
        radius = label_radius_samples(config, sampling_frequency)
        block = block_samples(sampling_frequency, stride_samples(radius, network.largest_stride))
        return network if min(network.left_margin, network.right_margin) >= 2 * block else None

    def find(
        self, traces: Traces, segment_index: int, start: int, stop: int, known: dict[int, Asked] | None = None
    ) -> Spikes:
        """Find the spikes of one stretch of a segment.

        Parameters
        ----------
        traces : Traces
        segment_index : int
        start, stop : int
            The stretch; spikes have ``start <= sample_index < stop``.
        known : dict, optional
            The tiles that are known already, by number; those that the next stretch may need are left in it.
        """
        context = self.merge_radius + triangle_radius(self.label_radius)
        first, last = (start - context) // self.tile_samples, (stop + context - 1) // self.tile_samples
        goes_on = known is not None
        known = {} if known is None else known
        for number in [number for number in known if not first <= number <= last]:
            del known[number]
        together = max(1, _SPARSE_READ_VALUES // (self.tile_samples * self.network.num_channels))
        for begin in range(first, last + 1, together):
            self._ask(traces, segment_index, range(begin, min(begin + together, last + 1)), known, goes_on)
        asked = join({number: known[number] for number in sorted(known)}, self._sparse.num_blocks)
        first_entry = np.searchsorted(asked.unit_index, np.arange(self.network.num_units + 1))
        sample_index, unit_index, response = peaks_of_units(
            first_entry,
            asked.block,
            asked.probabilities,
            self.thresholds.numpy(),
            (start, stop),
            self.block,
            LEVELS,
            self.label_radius,
            triangle_radius(self.label_radius),
            self.merge_radius,
        )
        order = np.lexsort((unit_index, sample_index))
        return Spikes(sample_index[order], unit_index[order], response[order])

    def _ask(
        self, traces: Traces, segment_index: int, numbers: range, known: dict[int, Asked], goes_on: bool
    ) -> None:
        """Run the network on tiles that are not known, each on one thread; meanwhile more may be read."""
        tiles = {
            number: self._read_tile(traces, segment_index, number)
            for number in numbers
            if number not in known
        }
        if goes_on and isinstance(traces, TraceReader):
            start = numbers.stop * self.tile_samples + self.network.right_margin
            traces.read_ahead(segment_index, start, start + len(numbers) * self.tile_samples)

        def run(number: int) -> None:
            known[number] = self._answer(tiles[number])

        on_all_cores(run, tiles)

    def _answer(self, tile: Tile) -> Asked:
        return self._sparse.ask(tile)[0]

    def _read_tile(self, traces: Traces, segment_index: int, number: int) -> Tile:
        """Read the samples of a tile and of the network's margins."""
        begin, end = number * self.tile_samples, (number + 1) * self.tile_samples
        return Tile.of(
            traces.read(segment_index, begin - self.network.left_margin, end + self.network.right_margin)
        )


Detector = SpikeDetector | SparseDetector


def make_detector(
    network: WindowedNetwork,
    thresholds: np.ndarray,
    sampling_frequency: float,
    detection: DetectionConfig,
    sorting: SortingConfig,
) -> Detector:
    """Return the detector for a network: on the CPU the sparse one where it can run and is not switched off.

    Raises
    ------
    SettingError
        If the device is not available.
    """
    device = choose_device(sorting.device)
    if sorting.sparse and device.type == "cpu":
        with_gates = SparseDetector.network_with_gates(network, sampling_frequency, detection)
        if with_gates is not None:
            return SparseDetector(with_gates, thresholds, sampling_frequency, detection)
    if isinstance(network, NeighbourhoodNetwork) and device.type != "cpu":
        from spikewise.sorting.device import DeviceDetector  # which is made of this module

        precision = sorting.precision
        return DeviceDetector(network, thresholds, sampling_frequency, detection, device, precision)
    return SpikeDetector(network, thresholds, sampling_frequency, detection, device)
