"""What bounds the sorter: how fast this machine is, how long each stage takes, how much work it is.

The stages are timed where they run: :class:`TimedDetector` is the detector of the sparse path with a clock at
its steps, and finds the same spikes. The work is counted from shapes and from how much the gates let through.

Conventions: an operation is one addition or one multiplication, so that a multiply-add counts two. Operations
on padding are not counted, and the bytes are those that go into a stage and come out of it, each once: both
are the least that the stage can do with. A share of the limit is the larger of two: operations in a second
as a share of the fastest float32 matrix product, and bytes in a second as a share of the fastest copy.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from spikewise.core.config import DetectionConfig
from spikewise.data.recordings.reader import Traces
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.models.windowed import WindowedNetwork
from spikewise.sorting import tiles
from spikewise.sorting.detect import SparseDetector, Spikes
from spikewise.sorting.sparse import Asked, Tile

NETWORK_STAGES = ("tiles", "gates", "temporal", "units", "post-processing")
"""Stages from traces in memory to spikes."""
GIGA = 1e9
_PACKAGES = ("spikewise", "torch", "numpy", "numba", "spikeinterface")
_SIZE = 1024
_COPIED_VALUES = 2**25
_LIMIT_S = 0.3
_BANDPASS_SECTIONS = 5
_OPERATIONS_OF_SECTION = 10


@dataclass(frozen=True)
class Limits:
    """What this machine can do at most, with as many threads as PyTorch uses.

    Attributes
    ----------
    float32_gflop_per_s, bfloat16_gflop_per_s : float
        Operations of a matrix product.
    copy_gb_per_s : float
        Bytes read and bytes written by a copy in memory.
    """

    float32_gflop_per_s: float
    bfloat16_gflop_per_s: float
    copy_gb_per_s: float

    def share(self, seconds: float, work: Work) -> float | None:
        """Return how near to its limit a stage comes: 1 is as fast as the machine allows."""
        if not (work.gflop or work.gb):
            return None
        return max(work.gflop / self.float32_gflop_per_s, work.gb / self.copy_gb_per_s) / seconds


@dataclass(frozen=True)
class Work:
    """Work of a stage: 10**9 operations and 10**9 bytes."""

    gflop: float = 0.0
    gb: float = 0.0


@dataclass(frozen=True)
class Stage:
    """Seconds of a stage, and its work; none where that cannot be counted."""

    seconds: float
    work: Work = field(default_factory=Work)

    def told(self, limits: Limits) -> dict[str, Any]:
        """Return the stage in JSON types, with its share of what the machine can do."""
        return {
            "seconds": self.seconds,
            "gflop": self.work.gflop,
            "gb": self.work.gb,
            "share_of_limit": limits.share(self.seconds, self.work),
        }


def describe_machine() -> dict[str, Any]:
    """Return processor, cores, system and versions, in JSON types."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
    }


def _processor() -> str:
    """Return the name of the processor."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measure_limits(seconds: float = _LIMIT_S) -> Limits:
    """Measure the machine, each limit for about so many seconds, the best of all tries."""
    operations = 2 * _SIZE**3 / GIGA
    single, half = (
        operations / _least_seconds(partial(torch.mm, factor, factor, out=torch.empty_like(factor)), seconds)
        for factor in (torch.ones(_SIZE, _SIZE, dtype=kind) for kind in (torch.float32, torch.bfloat16))
    )
    source = torch.ones(_COPIED_VALUES)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / GIGA
    return Limits(single, half, copied / _least_seconds(lambda: target.copy_(source), seconds))


def _least_seconds(run: Callable[[], object], seconds: float) -> float:
    """Return the least time of a call, of three at least, in about so many seconds."""
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return min(taken)


class MemoryTraces:
    """Preprocessed traces in memory.

    Parameters
    ----------
    by_channel : ndarray of float32
        (num_channels, num_samples)
    sampling_frequency : float
        In Hz.
    """

    num_segments = 1

    def __init__(self, by_channel: np.ndarray, sampling_frequency: float):
        self.by_channel = by_channel
        self.num_channels = len(by_channel)
        self.sampling_frequency = sampling_frequency

    def num_samples(self, segment_index: int) -> int:
        """Return the number of samples."""
        return self.by_channel.shape[1]

    def read(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return the samples (stop - start, num_channels), zero outside; a view where all of them are there.

        The samples of a channel lie side by side in memory.
        """
        length = self.num_samples(segment_index)
        if start >= 0 and stop <= length:
            return self.by_channel[:, start:stop].T
        padded = np.zeros((self.num_channels, stop - start), np.float32)
        first, last = max(start, 0), min(stop, length)
        if first < last:
            padded[:, first - start : last - start] = self.by_channel[:, first:last]
        return padded.T

    def first(self, num_samples: int) -> MemoryTraces:
        """Return the beginning of the traces."""
        return MemoryTraces(self.by_channel[:, :num_samples], self.sampling_frequency)


class Clock:
    """Adds up the seconds of what has a name, of all threads."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what is done within."""
        started = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - started
            with self._lock:
                self.seconds[name] += taken


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

    def _answer(self, tile: Tile) -> Asked:
        ticks = np.zeros(3, np.int64)
        started = time.perf_counter()
        asked, counts = self._sparse.ask(tile, ticks)
        seconds = time.perf_counter() - started
        with self._lock:
            self.clock.seconds["ask"] += seconds
            if ticks[tiles.ALL] > 0:
                for name, stage in (("gates", tiles.GATES), ("temporal", tiles.TEMPORAL)):
                    self.clock.seconds[name] += seconds * ticks[stage] / ticks[tiles.ALL]
            self.counts["tiles"] += 1
            self.counts["answers"] += asked.probabilities.size
            self.counts["open blocks"] += int(counts[tiles.OPENED])
            self.counts["looked closer"] += int(counts[tiles.LOOKED_CLOSER])
            self.counts["channel outputs"] += int(counts[tiles.CHANNEL_OUTPUTS])
            self.counts["unit outputs"] += int(counts[tiles.UNIT_OUTPUTS])
        return asked

    def find(
        self, traces: Traces, segment_index: int, start: int, stop: int, known: dict[int, Asked] | None = None
    ) -> Spikes:
        """Find the spikes of one stretch of a segment."""
        with self.clock("find"):
            return super().find(traces, segment_index, start, stop, known)

    def _read_tile(self, traces: Traces, segment_index: int, number: int) -> Tile:
        with self.clock("tiles"):
            return super()._read_tile(traces, segment_index, number)

    def stage_seconds(self) -> dict[str, float]:
        """Return the seconds of each of :data:`NETWORK_STAGES` so far.

        Of the network, which several threads run, the mean of the threads. Gates and features are timed by
        the processor's own clock within the loop, and are 0 where it has none that is known; choosing what
        goes into the units is a part of theirs. What is neither tiles nor network is post-processing.
        """
        spent = self.clock.seconds
        threads = torch.get_num_threads()
        stages = {"tiles": spent["tiles"]}
        stages |= {name: spent[name] / threads for name in ("gates", "temporal")}
        stages["units"] = (spent["ask"] - spent["gates"] - spent["temporal"]) / threads
        stages["post-processing"] = spent["find"] - spent["ask"] / threads - spent["tiles"]
        return stages

    def asked(self) -> dict[str, Any]:
        """Return how much of what the dense path computes was computed so far."""
        counts = self.counts
        blocks = counts["tiles"] * self._sparse.num_blocks
        outputs = blocks * self._sparse.num_outputs
        return {
            "block_samples": self.block,
            "stride_samples": self._sparse.stride,
            "open_blocks": counts["open blocks"],
            "open_blocks_share": counts["open blocks"] / (blocks * self.network.num_units),
            "unit_outputs": counts["unit outputs"],
            "unit_outputs_share": counts["unit outputs"] / (outputs * self.network.num_units),
            "channel_outputs": counts["channel outputs"],
            "channel_outputs_share": counts["channel outputs"] / (outputs * self.network.num_channels),
        }

    def stage_work(self, num_spikes: int) -> dict[str, Work]:
        """Return the work of each of :data:`NETWORK_STAGES` so far, in which so many spikes were found."""
        counts, network = self.counts, self.network
        num_units, near = network.channel_index.shape
        first, second = network.backbone.filter1.out_features, network.backbone.num_features
        hidden = network.units.hidden_bias.shape[2]
        weights = sum(part.numel() for part in network.units.parameters())
        blocks, stride = counts["tiles"] * self._sparse.num_blocks, self._sparse.stride
        # A gate is a weighted sum of extremes, each of which is a comparison for each sample.
        extremes = 2 * blocks * self.block * network.num_channels
        gates = 2 * blocks * network.gate_weight.numel()
        closer = 2 * near * network.window_samples * counts["looked closer"]
        channel_operations = 2 * (network.window_samples * first + first * second)
        unit_operations = 2 * (near * second + 1) * hidden
        # Two running sums, each an addition and a subtraction, and the samples between two outputs.
        answer_operations = 4 * stride + 3 * (stride - 1)
        return {
            "tiles": Work(),  # views of the traces, but for the first and the last
            "gates": _work(
                extremes + gates + closer, 4 * blocks * self.block * network.num_channels + num_units * blocks
            ),
            "temporal": _work(
                channel_operations * counts["channel outputs"],
                4 * (network.window_samples + second) * counts["channel outputs"],
            ),
            "units": _work(
                unit_operations * counts["unit outputs"],
                4 * ((near * second + 1) * counts["unit outputs"] + weights * counts["tiles"]),
            ),
            "post-processing": _work(
                answer_operations * counts["answers"], 4 * counts["answers"] + 20 * num_spikes
            ),
        }


def preprocessing_work(num_samples: int, num_channels: int, bandpass: bool, reference: bool) -> Work:
    """Return the work of filter, reference and scale on 16-bit samples; finding the median is not counted."""
    operations = 2 * _BANDPASS_SECTIONS * _OPERATIONS_OF_SECTION * bandpass + 1 * reference + 2
    return _work(operations * num_samples * num_channels, 6 * num_samples * num_channels)


def _work(operations: float, num_bytes: float) -> Work:
    return Work(operations / GIGA, num_bytes / GIGA)


@torch.inference_mode()
def unfolded_probabilities(network: WindowedNetwork, traces: Tensor, batch: int) -> Tensor:
    """Apply a network as published: a window is cut out around each sample, and batches of windows go in.

    Parameters
    ----------
    network : WindowedNetwork
        In evaluation mode.
    traces : Tensor
        (num_samples, num_channels), each sample's channels side by side in memory.
    batch : int
        Windows in a batch.

    Returns
    -------
    Tensor
        (num_samples - window_samples + 1, num_units)
    """
    window, (num_samples, num_channels) = network.window_samples, traces.shape
    num_windows = num_samples - window + 1
    windows = traces.as_strided((num_windows, window, num_channels), (num_channels, num_channels, 1))
    probabilities = torch.empty(num_windows, network.num_units)
    for first in range(0, num_windows, batch):
        copies = windows[first : first + batch].contiguous()
        probabilities[first : first + len(copies)] = torch.sigmoid(network(copies)[:, 0])
    return probabilities
