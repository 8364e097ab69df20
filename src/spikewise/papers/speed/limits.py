"""The limits of this machine, and how near the stages of a sort come to them.

The stages are timed where they run: :mod:`spikewise.papers.speed.timed_detector` is the detector of the
sparse path with a clock at its steps, and finds the same spikes. The work is counted from shapes and from how
much the gates let through.

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
from collections import defaultdict
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

from spikewise.models.windowed import WindowedNetwork

GIGA = 1e9
_PACKAGES = ("spikewise", "torch", "numpy", "numba", "spikeinterface")
_MATRIX_SIZE = 1024
"""Rows and columns of the matrices whose product is timed."""
_COPIED_VALUES = 2**25
"""Values of the copy that is timed, 128 MiB: far more than the caches hold."""
_LIMIT_S = 0.3
"""Time in which each limit is measured."""
_BANDPASS_SECTIONS = 5
"""Second-order sections of the band-pass."""
_OPERATIONS_OF_SECTION = 10
"""Operations of a section per sample."""


@dataclass(frozen=True)
class Limits:
    """The highest rates of this machine, with as many threads as PyTorch uses.

    Attributes
    ----------
    float32_gflop_per_s, bfloat16_gflop_per_s : float
        Rate of operations in a matrix product.
    copy_gb_per_s : float
        Rate of bytes read plus bytes written in a copy of memory.
    """

    float32_gflop_per_s: float
    bfloat16_gflop_per_s: float
    copy_gb_per_s: float

    def share(self, seconds: float, work: Work) -> float | None:
        """Return the fraction of the limit that a stage reaches; 1 is as fast as the machine can."""
        if not (work.gflop or work.gb):
            return None
        return max(work.gflop / self.float32_gflop_per_s, work.gb / self.copy_gb_per_s) / seconds


@dataclass(frozen=True)
class Work:
    """Work of a stage, in 10**9 operations and 10**9 bytes."""

    gflop: float = 0.0
    gb: float = 0.0


@dataclass(frozen=True)
class Stage:
    """Seconds of a stage, and its work; zero if it cannot be counted."""

    seconds: float
    work: Work = field(default_factory=Work)

    def to_dict(self, limits: Limits) -> dict[str, Any]:
        """Return the stage in JSON types, with the fraction of the limit that it reaches."""
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
    """Measure each limit for about `seconds`; the best of all tries counts."""
    operations = 2 * _MATRIX_SIZE**3 / GIGA
    single, half = (
        operations / _least_seconds(partial(torch.mm, factor, factor, out=torch.empty_like(factor)), seconds)
        for factor in (
            torch.ones(_MATRIX_SIZE, _MATRIX_SIZE, dtype=kind) for kind in (torch.float32, torch.bfloat16)
        )
    )
    source = torch.ones(_COPIED_VALUES)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / GIGA
    return Limits(single, half, copied / _least_seconds(lambda: target.copy_(source), seconds))


def _least_seconds(run: Callable[[], object], seconds: float) -> float:
    """Return the least time of a call, among at least three calls in about `seconds`."""
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
        """Return the samples (stop - start, num_channels), zero outside; a view if all of them exist.

        The samples of a channel are contiguous in memory.
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
    """Sums the seconds of named stages, over all threads."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the code of a ``with`` block and add it to a stage."""
        started = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - started
            with self._lock:
                self.seconds[name] += taken


def preprocessing_work(num_samples: int, num_channels: int, bandpass: bool, reference: bool) -> Work:
    """Return the work of filter, reference and scale on 16-bit samples, without finding the median."""
    operations = 2 * _BANDPASS_SECTIONS * _OPERATIONS_OF_SECTION * bandpass + 1 * reference + 2
    return work_of(operations * num_samples * num_channels, 6 * num_samples * num_channels)


def work_of(operations: float, num_bytes: float) -> Work:
    """Return work from numbers of operations and bytes."""
    return Work(operations / GIGA, num_bytes / GIGA)


@torch.inference_mode()
def unfolded_probabilities(network: WindowedNetwork, traces: Tensor, batch: int) -> Tensor:
    """Apply a network as published: cut a window around each sample, and process batches of windows.

    Parameters
    ----------
    network : WindowedNetwork
        In evaluation mode.
    traces : Tensor
        (num_samples, num_channels), contiguous: the channels of a sample follow one another.
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
