"""The detector of the sparse path with a clock, and the amount of work of its stages.

The loop over the units is written once more, as the loop of :mod:`spikewise.sorting.tiles` with the
processor's own clock between its steps, so that the loop that sorts has no clock in it. Tests hold that both
give the same probabilities to the bit.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from spikewise.core import vectors
from spikewise.core.compiling import compiled
from spikewise.core.config import DetectionConfig
from spikewise.data.recordings.reader import Traces
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.papers.speed.limits import Clock, Work, work_of
from spikewise.sorting import tiles
from spikewise.sorting.detector import SegmentSearch
from spikewise.sorting.kernels import Samples
from spikewise.sorting.sparse import Evaluated, Tile
from spikewise.sorting.sparse_detector import SparseDetector
from spikewise.sorting.spikes import Spikes

NETWORK_STAGES = ("tiles", "gates", "temporal", "units", "post-processing")
"""Stages from traces in memory to spikes."""
GATES, TEMPORAL, ALL = 0, 1, 2
"""What is timed, in ticks of the processor: gates, features of channels, and the whole loop."""


def _write_ticks(typing_context):  # type: ignore[no-untyped-def]
    """Return a clock of the processor."""

    def write(context: Any, builder: ir.IRBuilder, signature: Any, given: list[ir.Value]) -> ir.Value:
        return vectors.ticks(builder)

    return types.int64(), write


_ticks: Any = intrinsic(_write_ticks)


@compiled()
def evaluate_tile_timed(
    ticks: np.ndarray, samples: Samples, weights: tiles.Weights, grid: tiles.Grid, space: tiles.Space
) -> None:
    """Compute a tile as :func:`spikewise.sorting.tiles.evaluate_tile` does; add to `ticks` (3,)."""
    begun = _ticks()
    space.is_seen[:] = False
    for unit in range(space.probabilities.shape[1]):
        started = _ticks()
        num_open = tiles.open_blocks(samples, weights, grid, unit, space)
        ticks[GATES] += _ticks() - started
        if not num_open:
            continue
        if grid.promising >= 0:
            _evaluate_outputs(ticks, samples, weights, grid, unit, tiles.first_outputs(space), space)
            tiles.close_blocks(unit, grid, space)
        _evaluate_outputs(ticks, samples, weights, grid, unit, tiles.missing_outputs(unit, space), space)
    ticks[ALL] += _ticks() - begun


@compiled()
def _evaluate_outputs(
    ticks: np.ndarray,
    samples: Samples,
    weights: tiles.Weights,
    grid: tiles.Grid,
    unit: int,
    outputs: np.ndarray,
    space: tiles.Space,
) -> None:
    for begin in range(0, len(outputs), tiles.AT_ONCE):
        together = outputs[begin : begin + tiles.AT_ONCE]
        started = _ticks()
        tiles.fill_features(samples, weights, grid, unit, together, space)
        ticks[TEMPORAL] += _ticks() - started
        tiles.fill_probabilities(weights, unit, together, space)


class TimedDetector(SparseDetector):
    """A :class:`SparseDetector` that is timed and counts what it does; parameters as there."""

    def __init__(
        self,
        network: NeighbourhoodNetwork,
        thresholds: np.ndarray,
        sampling_frequency: float,
        config: DetectionConfig,
    ):
        super().__init__(network, thresholds, sampling_frequency, config)
        self.clock = Clock()
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def evaluate(self, tile: Tile) -> Evaluated:
        """Return the probabilities of a tile where gates are open."""
        ticks = np.zeros(3, np.int64)
        started = time.perf_counter()
        evaluated, counts = self.sparse.evaluate(tile, functools.partial(evaluate_tile_timed, ticks))
        seconds = time.perf_counter() - started
        with self._lock:
            self.clock.seconds["network"] += seconds
            if ticks[ALL] > 0:
                for name, stage in (("gates", GATES), ("temporal", TEMPORAL)):
                    self.clock.seconds[name] += seconds * ticks[stage] / ticks[ALL]
            self.counts["tiles"] += 1
            self.counts["probabilities"] += evaluated.probabilities.size
            self.counts["open blocks"] += int(counts[tiles.OPENED])
            self.counts["second gates"] += int(counts[tiles.SECOND_GATES])
            self.counts["channel outputs"] += int(counts[tiles.CHANNEL_OUTPUTS])
            self.counts["unit outputs"] += int(counts[tiles.UNIT_OUTPUTS])
        return evaluated

    def search(self, traces: Traces, segment_index: int, read_ahead: bool = True) -> SegmentSearch:
        """Begin a search of a segment."""
        return _TimedSearch(super().search(traces, segment_index, read_ahead), self.clock)

    def read_tile(self, traces: Traces, segment_index: int, number: int) -> Tile:
        """Read the samples of a tile."""
        with self.clock("tiles"):
            return super().read_tile(traces, segment_index, number)

    def stage_seconds(self) -> dict[str, float]:
        """Return the seconds of each of :data:`NETWORK_STAGES` so far.

        Several threads run the network; the seconds are the mean of the threads. Gates and features are timed
        by the processor's own clock within the loop, and are 0 on a processor without a known clock. The
        choice of the outputs counts as a part of the units. All that is neither tiles nor network is
        post-processing.
        """
        spent = self.clock.seconds
        threads = torch.get_num_threads()
        stages = {"tiles": spent["tiles"]}
        stages |= {name: spent[name] / threads for name in ("gates", "temporal")}
        stages["units"] = (spent["network"] - spent["gates"] - spent["temporal"]) / threads
        stages["post-processing"] = spent["find"] - spent["network"] / threads - spent["tiles"]
        return stages

    def evaluated(self) -> dict[str, Any]:
        """Return how much of what the dense path computes was computed so far."""
        counts = self.counts
        blocks = counts["tiles"] * self.sparse.num_blocks
        outputs = blocks * self.sparse.num_outputs
        return {
            "block_samples": self.block,
            "stride_samples": self.sparse.stride,
            "open_blocks": counts["open blocks"],
            "open_blocks_share": counts["open blocks"] / (blocks * self.network.num_units),
            "unit_outputs": counts["unit outputs"],
            "unit_outputs_share": counts["unit outputs"] / (outputs * self.network.num_units),
            "channel_outputs": counts["channel outputs"],
            "channel_outputs_share": counts["channel outputs"] / (outputs * self.network.num_channels),
        }

    def stage_work(self, num_spikes: int) -> dict[str, Work]:
        """Return the work of each of :data:`NETWORK_STAGES` so far, in which `num_spikes` were found."""
        counts, network = self.counts, self.network
        num_units, near = network.channel_index.shape
        first, second = network.backbone.filter1.out_features, network.backbone.num_features
        hidden = network.units.hidden_bias.shape[2]
        weights = sum(part.numel() for part in network.units.parameters())
        blocks, stride = counts["tiles"] * self.sparse.num_blocks, self.sparse.stride
        # A gate is a weighted sum of extremes, each of which is a comparison for each sample.
        extremes = 2 * blocks * self.block * network.num_channels
        gates = 2 * blocks * network.gate_weight.numel()
        closer = 2 * near * network.window_samples * counts["second gates"]
        channel_operations = 2 * (network.window_samples * first + first * second)
        unit_operations = 2 * (near * second + 1) * hidden
        # Two running sums, each an addition and a subtraction, and the samples between two outputs.
        peak_operations = 4 * stride + 3 * (stride - 1)
        return {
            "tiles": Work(),  # views of the traces, but for the first and the last
            "gates": work_of(
                extremes + gates + closer, 4 * blocks * self.block * network.num_channels + num_units * blocks
            ),
            "temporal": work_of(
                channel_operations * counts["channel outputs"],
                4 * (network.window_samples + second) * counts["channel outputs"],
            ),
            "units": work_of(
                unit_operations * counts["unit outputs"],
                4 * ((near * second + 1) * counts["unit outputs"] + weights * counts["tiles"]),
            ),
            "post-processing": work_of(
                peak_operations * counts["probabilities"], 4 * counts["probabilities"] + 20 * num_spikes
            ),
        }


class _TimedSearch:
    """A search whose seconds are added to a clock.

    Parameters
    ----------
    search : SegmentSearch
    clock : Clock
    """

    def __init__(self, search: SegmentSearch, clock: Clock):
        self._search, self._clock = search, clock

    def find(self, start: int, stop: int) -> Spikes:
        """Find the spikes of a stretch."""
        with self._clock("find"):
            return self._search.find(start, stop)
