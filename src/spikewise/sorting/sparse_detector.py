"""The detector for the CPU: it computes the network of a unit only where the unit's gate is open."""

from __future__ import annotations

import numpy as np
import torch

from spikewise.core.config import DetectionConfig
from spikewise.core.threads import on_all_cores
from spikewise.data.recordings.reader import TraceReader, Traces
from spikewise.models.gates import block_samples
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.models.windowed import WindowedNetwork
from spikewise.sorting.detector import (
    Detector,
    SegmentSearch,
    label_radius_samples,
    stride_samples,
    tile_samples,
)
from spikewise.sorting.loops import PeakRule, peaks_of_units
from spikewise.sorting.peaks import LEVELS, triangle_radius
from spikewise.sorting.sparse import Evaluated, SparseNetwork, Tile, join
from spikewise.sorting.spikes import Spikes

_TILE_VALUES = 2**21
"""Samples times channels of a tile; see below."""
_TILE_SAMPLES = (1024, 8192)
"""Fewest and most outputs of a tile: a tile and its features fit into a processor's cache (docs/speed.md)."""
_READ_VALUES = 2**24
"""Samples times channels of the tiles that are read at once. Chosen by hand."""


class SparseDetector(Detector):
    """Finds the spikes of a network of the neighbourhood design where the gates of its units are open.

    Parameters
    ----------
    network : NeighbourhoodNetwork
        Trained network, with room for its gates: see :func:`network_with_gates`.
    thresholds, sampling_frequency, config
        See :class:`spikewise.sorting.detector.Detector`.

    Attributes
    ----------
    block, tile_samples : int
        Samples of a block and of a tile.
    sparse : SparseNetwork
    rule : PeakRule
    """

    network: NeighbourhoodNetwork

    def __init__(
        self,
        network: NeighbourhoodNetwork,
        thresholds: np.ndarray,
        sampling_frequency: float,
        config: DetectionConfig,
    ):
        super().__init__(network, thresholds, sampling_frequency, config, torch.device("cpu"))
        self.block = block_samples(sampling_frequency, self.stride)
        wanted = tile_samples(network.num_channels, _TILE_VALUES, _TILE_SAMPLES)
        self.tile_samples = max(1, wanted // self.block) * self.block
        plateau = 2 * self.label_radius + 1
        self.sparse = SparseNetwork(self.network, self.block, self.stride, plateau, self.tile_samples)
        self.rule = PeakRule(
            self.block, LEVELS, self.label_radius, triangle_radius(self.label_radius), self.merge_radius
        )

    def search(self, traces: Traces, segment_index: int, read_ahead: bool = True) -> SegmentSearch:
        """Begin a search of a segment; see :meth:`spikewise.sorting.detector.Detector.search`."""
        return _SparseSearch(self, traces, segment_index, read_ahead)

    def evaluate(self, tile: Tile) -> Evaluated:
        """Return the probabilities of a tile where gates are open; several threads may call it at once."""
        return self.sparse.evaluate(tile)[0]

    def read_tile(self, traces: Traces, segment_index: int, number: int) -> Tile:
        """Read the samples of a tile, with the network's margins."""
        begin, end = number * self.tile_samples, (number + 1) * self.tile_samples
        return Tile.of(
            traces.read(segment_index, begin - self.network.left_margin, end + self.network.right_margin)
        )

    def peaks(self, tiles: dict[int, Evaluated], start: int, stop: int) -> Spikes:
        """Return the spikes of a stretch from the evaluated tiles that it needs, by their numbers."""
        joined = join({number: tiles[number] for number in sorted(tiles)}, self.sparse.num_blocks)
        first_entry = np.searchsorted(joined.unit_index, np.arange(self.network.num_units + 1))
        sample_index, unit_index, response = peaks_of_units(
            first_entry, joined.block, joined.probabilities, self.thresholds, (start, stop), self.rule
        )
        order = np.lexsort((unit_index, sample_index))
        return Spikes(sample_index[order], unit_index[order], response[order])


class _SparseSearch:
    """A search that keeps the evaluated tiles which the next stretch may need.

    Parameters
    ----------
    detector : SparseDetector
    traces : Traces
    segment_index : int
    read_ahead : bool
    """

    def __init__(self, detector: SparseDetector, traces: Traces, segment_index: int, read_ahead: bool):
        self._detector, self._traces, self._segment_index = detector, traces, segment_index
        self._read_ahead = read_ahead
        self._evaluated: dict[int, Evaluated] = {}

    def find(self, start: int, stop: int) -> Spikes:
        """Find the spikes with ``start <= sample_index < stop``."""
        detector = self._detector
        first = (start - detector.context) // detector.tile_samples
        # The samples up to the next output are interpolated from it; it may be the first of the next tile.
        last = (stop + detector.context + detector.stride - 2) // detector.tile_samples
        self._evaluated = {
            number: tile for number, tile in self._evaluated.items() if first <= number <= last
        }
        together = max(1, _READ_VALUES // (detector.tile_samples * detector.network.num_channels))
        for begin in range(first, last + 1, together):
            self._evaluate(range(begin, min(begin + together, last + 1)))
        return detector.peaks(self._evaluated, start, stop)

    def _evaluate(self, numbers: range) -> None:
        """Evaluate the missing tiles, each on one thread, and read the next samples meanwhile."""
        detector = self._detector
        tiles = {
            number: detector.read_tile(self._traces, self._segment_index, number)
            for number in numbers
            if number not in self._evaluated
        }
        if self._read_ahead and isinstance(self._traces, TraceReader):
            start = numbers.stop * detector.tile_samples + detector.network.right_margin
            self._traces.read_ahead(self._segment_index, start, start + len(numbers) * detector.tile_samples)

        def run(number: int) -> None:
            self._evaluated[number] = detector.evaluate(tiles[number])

        on_all_cores(run, tiles)


def network_with_gates(
    network: WindowedNetwork, sampling_frequency: float, config: DetectionConfig
) -> NeighbourhoodNetwork | None:
    """Return the network if it has gates and its margins are wide enough for them, else None."""
    if not isinstance(network, NeighbourhoodNetwork):
        return None
    radius = label_radius_samples(config, sampling_frequency)
    block = block_samples(sampling_frequency, stride_samples(radius, network.largest_stride))
    return network if min(network.left_margin, network.right_margin) >= 2 * block else None
