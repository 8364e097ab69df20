"""The one code path from traces to spikes; files, streams and clusters only feed it.

The network runs on tiles: stretches of :data:`TILE_SAMPLES` outputs on a fixed grid of the recording. A tile
always has the same shape and the same samples whatever was asked for, so its numbers are the same to the
bit whole, chunked or streamed. What a spike depends on beyond its own sample (the network's window, the
triangle, the merging of neighbouring peaks, the rest of its tile) is the detector's margin, derived here
from the network and nowhere typed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikewise.config import DetectionConfig
from spikewise.models.esort import EsortNetwork
from spikewise.sorting.postprocess import find_peaks, smooth_probabilities, triangle_kernel, triangle_radius

TILE_SAMPLES = 1024


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


def choose_device(name: str) -> torch.device:
    """Return the device that `name` means; ``auto`` takes a GPU where there is one.

    Raises
    ------
    SettingError
        If the device is not available.
    """
    from spikewise.errors import SettingError

    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if available["cuda"] else "cpu")
    if not available.get(name, False):
        raise SettingError(
            f"the device {name!r} is not available here",
            f"available: {', '.join(key for key, there in available.items() if there)}",
            "choose one of these, or leave the option out",
        )
    return torch.device(name)


class SpikeDetector:
    """Finds the spikes of a trained network in traces.

    Parameters
    ----------
    network : EsortNetwork
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
        network: EsortNetwork,
        thresholds: np.ndarray,
        sampling_frequency: float,
        config: DetectionConfig,
        device: torch.device,
    ):
        self.network = network.eval().to(device)
        self.device = device
        self.thresholds = torch.as_tensor(thresholds, dtype=torch.float32, device=device)
        label_radius = label_radius_samples(config, sampling_frequency)
        self.kernel = triangle_kernel(label_radius).to(device)
        self.triangle_radius = triangle_radius(label_radius)
        self.merge_radius = max(1, round(config.merge_ms * sampling_frequency / 1000))

    def padded_interval(self, start: int, stop: int) -> tuple[int, int]:
        """Return the interval of traces that finding the spikes of [start, stop) takes, in samples."""
        first_tile, last_tile = self._tiles(start, stop)
        return (
            first_tile * TILE_SAMPLES - self.network.left_margin,
            last_tile * TILE_SAMPLES + self.network.right_margin,
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
        responses, first_sample = self.responses(padded_traces, start, stop)
        sample_index, unit_index = find_peaks(responses, self.thresholds, self.merge_radius)
        heights = responses[sample_index + self.merge_radius, unit_index]
        return Spikes(
            sample_index.cpu().numpy() + first_sample + self.merge_radius,
            unit_index.cpu().numpy(),
            heights.float().cpu().numpy(),
        )

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
        reach = self.triangle_radius
        tiles = [
            # A fixed shape for each tile here too: sums are then added in the same order.
            smooth_probabilities(
                probabilities[begin - reach : begin + TILE_SAMPLES + reach],
                self.kernel,
            )
            for begin in range(TILE_SAMPLES, len(probabilities) - TILE_SAMPLES, TILE_SAMPLES)
        ]
        first_sample = start - self.merge_radius
        offset = first_sample - (first_tile + 1) * TILE_SAMPLES
        return torch.cat(tiles)[offset : offset + stop - start + 2 * self.merge_radius], first_sample

    def _tiles(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first tile that the stretch needs, and the one after its last.

        The peaks of the stretch take `merge_radius` more responses to either side, and the smoothing of these
        takes part of one more tile to either side.
        """
        return (
            (start - self.merge_radius) // TILE_SAMPLES - 1,
            -(-(stop + self.merge_radius) // TILE_SAMPLES) + 1,
        )

    @torch.inference_mode()
    def _probabilities(self, padded_traces: np.ndarray, num_tiles: int) -> Tensor:
        """Run the network tile by tile: (num_tiles * TILE_SAMPLES, num_units)."""
        size = TILE_SAMPLES + self.network.window_samples - 1
        probabilities = torch.empty(num_tiles * TILE_SAMPLES, self.network.num_units, device=self.device)
        for begin in range(0, num_tiles * TILE_SAMPLES, TILE_SAMPLES):
            # A copy, so that the memory is aligned alike for each tile.
            tile = torch.tensor(padded_traces[begin : begin + size], device=self.device)
            torch.sigmoid(self.network(tile[None])[0], out=probabilities[begin : begin + TILE_SAMPLES])
        return probabilities
