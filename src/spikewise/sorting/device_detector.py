"""From traces to spikes on a GPU: the network of the neighbourhood design is computed at every output.

The recording is cut into tiles of a fixed grid. For each tile the probabilities are computed as a few large
products (:mod:`spikewise.models.grouped`). A stretch of several tiles is then smoothed and searched for peaks
at once. The program waits for the device only when the spikes of that stretch are copied back. The length of
the stretch depends on the free memory and changes no spike: products have the shape of a tile, and all later
steps are exact arithmetic.

Shapes in comments: C channels, S samples, N units, R tiles of a stretch, T outputs of a tile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from spikewise.core.config import DetectionConfig
from spikewise.data.recordings.device_reader import DeviceTraces
from spikewise.data.recordings.reader import Traces
from spikewise.models.grouped import GroupedNetwork
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.sorting.detector import SegmentSearch, tile_samples
from spikewise.sorting.device_memory import (
    free_bytes,
    is_out_of_memory,
    memory_errors,
    release,
    too_little_memory,
)
from spikewise.sorting.peaks import smooth_probabilities
from spikewise.sorting.spikes import Spikes
from spikewise.sorting.tensor_detector import TensorDetector

logger = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]
_TILE_VALUES = 2**23
"""Samples times channels of a tile. Chosen by hand."""
_TILE_SAMPLES = (2048, 65536)
"""Fewest and most outputs of a tile: the features of all channels nearly fit into a GPU's cache, and products
are still large. Chosen by hand."""
_BYTES_OF_SAMPLE = 32
"""Memory of a sample of a unit while it is smoothed and searched for peaks. Chosen by hand."""


def choose_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the type of the network's numbers; ``auto``: bfloat16 on CUDA where the card has it."""
    if precision == "auto":
        has_it = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if has_it else torch.float32
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


class DeviceDetector(TensorDetector):
    """Finds the spikes of a network of the neighbourhood design on a device.

    Parameters
    ----------
    network : NeighbourhoodNetwork
        Trained network; it is kept on the CPU.
    thresholds, sampling_frequency, config
        See :class:`spikewise.sorting.detector.Detector`.
    device : torch.device
    precision : {"auto", "float32", "bfloat16"}
        Of the network's features and weights; see :func:`choose_dtype`.

    Attributes
    ----------
    tiles_at_once : int or None
        Tiles that are searched for peaks together; None before the first stretch, later as many as fit into
        the free memory.
    allocate : callable
        Allocates the memory of a stretch, like ``torch.empty``.
    """

    def __init__(
        self,
        network: NeighbourhoodNetwork,
        thresholds: np.ndarray,
        sampling_frequency: float,
        config: DetectionConfig,
        device: torch.device,
        precision: Precision = "auto",
    ):
        of_units = network.units.hidden_bias.numel() // network.backbone.num_features
        tile = tile_samples(max(network.num_channels, of_units), _TILE_VALUES, _TILE_SAMPLES)
        with memory_errors(device, f"the weights of {network.num_units} units"):
            devices = torch.device("cpu"), device
            super().__init__(network, thresholds, sampling_frequency, config, tile, devices)
            self.tiles_at_once: int | None = None
            self.allocate: Callable[..., Tensor] = torch.empty
            self.samples_ahead = round(sampling_frequency)
            num_outputs = self.tile_samples // self.stride + self._beyond
            self._shares = torch.arange(self.stride, device=device) / self.stride
            dtype = choose_dtype(precision, device)
            self._grouped = GroupedNetwork(network, num_outputs, self.stride, device, dtype)
            self._run = _captured(self._grouped) if device.type == "cuda" else self._grouped

    def search(self, traces: Traces, segment_index: int, read_ahead: bool = True) -> SegmentSearch:
        """Begin a search of a segment.

        Traces that are :class:`spikewise.data.recordings.device_reader.DeviceTraces` too stay on the device.
        Its `find` raises a SpikewiseError if the device has too little memory for one tile. See
        :meth:`spikewise.sorting.detector.Detector.search`.
        """
        return _DeviceSearch(self, traces, segment_index, read_ahead)

    def tiles_that_fit(self) -> int:
        """Return how many tiles the free memory allows to search at once."""
        of_tile = _BYTES_OF_SAMPLE * self.tile_samples * self.network.num_units
        return max(1, free_bytes(self.device) // of_tile)

    def tiles_of(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first tile that a stretch needs, and the one after its last."""
        return self._tiles(start, stop)

    def samples_until(self, stop: int) -> int:
        """Return the sample after the last one that is needed to find the spikes before `stop`."""
        return self._tiles(stop, stop)[1] * self.tile_samples + self.network.right_margin + self._beyond

    def peaks_of_tiles(self, tiles: dict[int, Tensor], start: int, stop: int) -> Spikes:
        """Return the spikes of a stretch from the outputs (N, T) of the tiles that it needs."""
        first, last = self._tiles(start, stop)
        outputs = self.allocate(
            (self.network.num_units, last - first, self.tile_samples // self.stride + self._beyond),
            dtype=torch.float32,
            device=self.device,
        )  # N, R, T
        for number in range(first, last):
            outputs[:, number - first] = tiles[number]
        begin = start - self.context - first * self.tile_samples
        probabilities = self._interpolated(outputs)[:, begin : begin + stop - start + 2 * self.context]
        return self._peaks(smooth_probabilities(probabilities.T, self.label_radius), start)

    def outputs_of(self, traces: Traces, segment_index: int, number: int, until: int) -> Tensor:
        """Return the outputs (N, T) of a tile; samples before `until` may be sent to the device with it."""
        return self._run(self._read_tile(traces, segment_index, number, until))

    def _read_tile(self, traces: Traces, segment_index: int, number: int, until: int) -> Tensor:
        """Return the traces (C, S) of a tile on the device."""
        begin = number * self.tile_samples - self.network.left_margin
        end = begin + self._grouped.num_samples
        if isinstance(traces, DeviceTraces):
            return traces.read_on_device(segment_index, begin, end, until)
        by_channel = np.ascontiguousarray(traces.read(segment_index, begin, end).T, np.float32)
        return torch.from_numpy(by_channel).to(self.device)

    def _interpolated(self, outputs: Tensor) -> Tensor:
        """Return the probability (N, R * samples of a tile) of every sample from outputs (N, R, T)."""
        if self.stride == 1:
            return outputs.flatten(1)
        here, after = outputs[:, :, :-1, None], outputs[:, :, 1:, None]
        return torch.lerp(here, after, self._shares).flatten(1)

    @torch.inference_mode()
    def _probabilities(self, padded_traces: np.ndarray, num_tiles: int) -> Tensor:
        """Run the network tile by tile: (num_tiles * tile_samples, num_units)."""
        outputs = []
        for begin in range(0, num_tiles * self.tile_samples, self.tile_samples):
            tile = torch.zeros(self.network.num_channels, self._grouped.num_samples)
            part = torch.from_numpy(padded_traces[begin : begin + tile.shape[1]].T)
            tile[:, : part.shape[1]] = part
            outputs.append(self._run(tile.to(self.device)))
        return self._interpolated(torch.stack(outputs, dim=1)).T


class _DeviceSearch:
    """A search that keeps on the device the outputs of tiles which the next stretch may need.

    Parameters
    ----------
    detector : DeviceDetector
    traces : Traces
    segment_index : int
    read_ahead : bool
    """

    def __init__(self, detector: DeviceDetector, traces: Traces, segment_index: int, read_ahead: bool):
        self._detector, self._traces, self._segment_index = detector, traces, segment_index
        self._samples_ahead = detector.samples_ahead if read_ahead else 0
        self._outputs: dict[int, Tensor] = {}

    @torch.inference_mode()
    def find(self, start: int, stop: int) -> Spikes:
        """Find the spikes with ``start <= sample_index < stop``.

        Raises
        ------
        SpikewiseError
            If the device has too little memory for one tile.
        """
        detector = self._detector
        parts: list[Spikes] = []
        begin = start
        while begin < stop:
            if detector.tiles_at_once is None:
                detector.tiles_at_once = detector.tiles_that_fit()
            end = min(stop, begin + detector.tiles_at_once * detector.tile_samples)
            found = self._try(begin, end, stop + self._samples_ahead)
            if found is None:
                self._shrink()
                continue
            parts.append(found)
            begin = end
        return Spikes.concatenate(parts)

    def _try(self, start: int, stop: int, until: int) -> Spikes | None:
        """Return the spikes of a stretch, or None where memory was not enough."""
        try:
            found = self._find(start, stop, until)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            logger.info(
                "the device has too little memory for %s tiles: %s", self._detector.tiles_at_once, error
            )
            return None
        if isinstance(self._traces, DeviceTraces):
            self._traces.settle()
        return found

    def _find(self, start: int, stop: int, until: int) -> Spikes:
        """Return the spikes of a stretch; the samples before `until` are needed next."""
        detector = self._detector
        first, last = detector.tiles_of(start, stop)
        end = detector.samples_until(until)
        self._outputs = {number: tile for number, tile in self._outputs.items() if first <= number < last}
        for number in range(first, last):
            if number not in self._outputs:
                self._outputs[number] = detector.outputs_of(self._traces, self._segment_index, number, end)
        return detector.peaks_of_tiles(self._outputs, start, stop)

    def _shrink(self) -> None:
        """Free all memory, and search half as many tiles at once from now on."""
        detector = self._detector
        self._outputs.clear()
        if isinstance(self._traces, DeviceTraces):
            self._traces.forget()
        release(detector.device)
        if detector.tiles_at_once == 1:
            num_channels, num_units = detector.network.num_channels, detector.network.num_units
            what = f"one tile of {num_channels} channels and {num_units} units"
            raise too_little_memory(detector.device, what)
        detector.tiles_at_once = max(1, (detector.tiles_at_once or 1) // 2)


def _captured(network: GroupedNetwork) -> Callable[[Tensor], Tensor]:
    """Return the network as one CUDA graph, or unchanged if that is impossible."""
    try:
        return _CapturedNetwork(network)
    except RuntimeError as error:  # out of memory is one, too
        logger.info("the network runs step by step, not as one graph: %s", error)
        release(torch.device("cuda"))
        return network


class _CapturedNetwork:
    """A network whose steps were recorded once, on CUDA, and are run again for each tile.

    Parameters
    ----------
    network : GroupedNetwork
    """

    @torch.inference_mode()
    def __init__(self, network: GroupedNetwork):
        device = network.device
        self._traces = torch.zeros(network.num_channels, network.num_samples, device=device)
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # warm-up: libraries allocate what they need
                for _ in range(2):
                    network(self._traces)
            torch.cuda.current_stream().wait_stream(stream)
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._output = network(self._traces)

    @torch.inference_mode()
    def __call__(self, traces: Tensor) -> Tensor:
        """Return the probabilities of a tile; see :class:`GroupedNetwork`."""
        self._traces.copy_(traces)
        self._graph.replay()
        return self._output.clone()
