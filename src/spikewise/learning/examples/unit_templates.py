"""Mean waveforms of labelled units, with most of the noise removed, and the channels near each unit.

A mean over few spikes is noisy on every channel and at every sample. The shapes of spikes vary little. So the
mean of each channel is projected on the few temporal shapes that explain the clear channels of all units.
Channels on which nothing stands out of the remaining noise are set to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from spikewise.core.threads import on_all_cores
from spikewise.data.recordings.conditioning import medians
from spikewise.learning.examples.stored_traces import StoredTraces
from spikewise.models.unit_waveforms import UnitWaveforms

# Chosen by hand, all of the following.
TEMPLATE_MS = (1.5625, 1.5625)  # before and after the spike
_FEW_SPIKES = 15  # spikes whose median shows the largest channel
_CANDIDATES = 32  # channels with the largest means, among which the median decides
_MAX_SPIKES = 100  # largest number of spikes of which a template is the mean
_WAVEFORM_MS = (1.5, 2.0)  # of a mean waveform that a model keeps, before and after the spike
_MOST_OF_WAVEFORM = 300  # largest number of spikes of which it is the mean
_WAVEFORM_CHANNELS = 24  # most channels of it
_SMALLEST_PART = 0.06  # channels with a smaller size than this fraction of the largest are left out
_NUM_SHAPES = 8  # temporal shapes on which means are projected
_LEAST_ENERGY = 4.0  # of a template on the channels of another unit that sees it
_CLEAR_PEAK = 4.0  # height of a mean waveform whose time is clear, in noise standard deviations
_TAPER = 0.1  # fraction of a template at either end over which it fades in and out
_CLEAR = 0.5  # fraction of the largest peak-to-peak: channels above define the shapes
_LARGE = 0.4  # fraction of the largest peak-to-peak: channels above define the position of a unit
_REACH_UM = 200.0  # distance from the largest channel beyond which a template is zero
_NEAR_UM = 100.0  # distance from the largest channel within which channels define the position
_OUTLIER = 6.0  # distance from the median waveform of a distorted spike, in noise standard deviations
LIKENESS_LAGS = 8  # largest lag, in samples, at which units are compared
_SHRINK = 2.0  # James and Stein: 1; but with few spikes the largest channel is often so by chance


@dataclass(frozen=True)
class UnitTemplates:
    """Templates of all units.

    Attributes
    ----------
    values : ndarray of float32
        (num_units, num_channels, num_samples), in noise standard deviations.
    centre : int
        Sample at which the spike is labelled.
    positions_um : ndarray
        (num_units, 2 or 3): centre of mass of the peak-to-peak values.
    num_spikes : ndarray of int
        How many spikes each is a mean of.
    """

    values: np.ndarray
    centre: int
    positions_um: np.ndarray
    num_spikes: np.ndarray

    def nearest_channels(self, channel_positions_um: np.ndarray, count: int) -> np.ndarray:
        """Return the channels nearest to each unit, nearest first: (num_units, at most `count`)."""
        distance = np.linalg.norm(channel_positions_um[None] - self.positions_um[:, None], axis=2)
        return np.argsort(distance, axis=1, kind="stable")[:, : min(count, distance.shape[1])]

    def peak_offsets(self) -> np.ndarray:
        """Return the sample of each unit's largest peak minus that of its labels; 0 if no peak is clear."""
        sizes = np.abs(self.values).max(axis=1)
        return np.where(sizes.max(axis=1) > _CLEAR_PEAK, sizes.argmax(axis=1) - self.centre, 0)

    @cached_property
    def _energies(self) -> np.ndarray:
        """Sums of squares over the samples: (num_units, num_channels)."""
        return np.einsum("ncs,ncs->nc", self.values, self.values)

    def seen_by(self, unit: int, channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the other units that the channels of a unit see, and how strong they are there."""
        energy = self._energies[:, channels].sum(axis=1)
        energy[unit] = 0
        others = np.flatnonzero(energy > _LEAST_ENERGY)
        return others, np.sqrt(energy[others])

    def likeness(self, unit: int, others: np.ndarray, channels: np.ndarray) -> np.ndarray:
        """Return the cosine of other units with a unit on some channels, at the best lag; at least 0."""
        own = self.values[unit, channels]
        values = self.values[others[:, None], channels]
        size = np.linalg.norm(values, axis=(1, 2)) * np.linalg.norm(own)
        lags = range(-LIKENESS_LAGS, LIKENESS_LAGS + 1, 2)
        moved = np.stack([np.roll(own, lag, axis=1) for lag in lags])
        products = np.einsum("lms,nms->nl", moved, values, optimize=True)
        return products.max(axis=1, initial=0) / np.maximum(size, 1e-6)


def estimate_templates(
    stored: StoredTraces,
    columns: Sequence[np.ndarray],
    channel_positions_um: np.ndarray,
    sampling_frequency: float,
) -> UnitTemplates:
    """Average the spikes of each unit and remove most of the noise.

    Parameters
    ----------
    stored : StoredTraces
    columns : sequence of ndarray
        For each unit the columns of its spikes; of more than 100, evenly spread ones are used.
    channel_positions_um : ndarray
        (num_channels, 2 or 3)
    sampling_frequency : float
        In Hz.
    """
    before, after = (round(part * sampling_frequency / 1000) for part in TEMPLATE_MS)
    raw, counts = _means(stored, columns, channel_positions_um, (before, before + after), _MAX_SPIKES)
    height = np.ptp(raw, axis=2)  # N, C
    peak = height.argmax(axis=1)
    distance = np.linalg.norm(channel_positions_um[None] - channel_positions_um[peak][:, None], axis=2)
    smooth = _project(raw, height, counts) * _taper(before + after) * (distance <= _REACH_UM)[:, :, None]
    return UnitTemplates(
        smooth.astype(np.float32),
        before,
        _centre_of_mass(height, distance, channel_positions_um),
        counts,
    )


def measure_waveforms(
    stored: StoredTraces,
    columns: Sequence[np.ndarray],
    channel_positions_um: np.ndarray,
    sampling_frequency: float,
) -> UnitWaveforms:
    """Return the mean waveforms that a model keeps: longer, and of more spikes than those of patches.

    Parameters
    ----------
    stored : StoredTraces
    columns : sequence of ndarray
        For each unit the columns of its spikes; of more than 300, evenly spread ones are used.
    channel_positions_um : ndarray
        (num_channels, 2 or 3)
    sampling_frequency : float
        In Hz.
    """
    before, after = (max(1, round(part * sampling_frequency / 1000)) for part in _WAVEFORM_MS)
    raw, counts = _means(stored, columns, channel_positions_um, (before, before + after), _MOST_OF_WAVEFORM)
    weights, shapes = _weights_of_shapes(raw, np.ptp(raw, axis=2), counts)
    size = np.linalg.norm(weights, axis=2)  # N, C: the shapes are orthonormal
    order = np.argsort(-size, axis=1, kind="stable")[:, :_WAVEFORM_CHANNELS]
    size = np.take_along_axis(size, order, axis=1)
    is_kept = (size > 0) & (size >= _SMALLEST_PART * size[:, :1])
    kept = np.take_along_axis(weights, order[:, :, None], axis=1) * is_kept[:, :, None]
    return UnitWaveforms(
        np.where(is_kept, order, -1), kept.astype(np.float32), shapes.astype(np.float32), before
    )


def _means(
    stored: StoredTraces,
    columns: Sequence[np.ndarray],
    channel_positions_um: np.ndarray,
    window: tuple[int, int],
    most: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return robust means (N, C, S) of at most so many spikes of each unit, and how many these are (N,).

    `window` holds the samples ahead of a spike, and in all.
    """
    before, length = window
    raw = np.zeros((len(columns), len(channel_positions_um), length), dtype=np.float32)
    counts = np.zeros(len(columns), dtype=int)

    def average(unit: int) -> None:
        of_unit = columns[unit]
        chosen = of_unit[np.linspace(0, len(of_unit) - 1, min(len(of_unit), most)).round().astype(int)]
        counts[unit] = len(chosen)
        if len(chosen):
            near = _channels_around(stored, chosen, before, length, channel_positions_um)
            raw[unit, near] = _robust_mean(stored.windows(chosen, before, length, near)).numpy()

    on_all_cores(average, range(len(columns)))
    return raw, counts


def _channels_around(
    stored: StoredTraces, columns: np.ndarray, before: int, length: int, channel_positions_um: np.ndarray
) -> np.ndarray:
    """Return the channels around the one on which the median of a few spikes is largest."""
    few = columns[np.linspace(0, len(columns) - 1, min(len(columns), _FEW_SPIKES)).round().astype(int)]
    waveforms = stored.windows(few, before, length)
    mean = waveforms.mean(dim=0)
    largest = (mean.amax(dim=1) - mean.amin(dim=1)).argsort(descending=True, stable=True)[:_CANDIDATES]
    middle = waveforms[:, largest].median(dim=0).values
    peak = int(largest[(middle.amax(dim=1) - middle.amin(dim=1)).argmax()])
    distance = np.linalg.norm(channel_positions_um - channel_positions_um[peak], axis=1)
    return np.flatnonzero(distance <= _REACH_UM + _NEAR_UM)


def _robust_mean(waveforms: torch.Tensor) -> torch.Tensor:
    """Average waveforms (num_spikes, C, S), on each channel without those that another spike distorts."""
    by_sample = waveforms.flatten(1).T  # C * S, spikes
    middle = torch.from_numpy(medians(by_sample.numpy())).view(waveforms.shape[1:])
    distorted = (waveforms - middle).abs().amax(dim=2) > _OUTLIER  # spikes, C
    kept = torch.where(distorted[..., None], middle, waveforms)
    return kept.mean(dim=0)


def _project(raw: np.ndarray, height: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Project each channel's mean on the shapes that explain the clear channels of all units; shrink it."""
    weights, shapes = _weights_of_shapes(raw, height, counts)
    return weights @ shapes


def _weights_of_shapes(
    raw: np.ndarray, height: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (N, C, shapes) of orthonormal shapes (shapes, S) that explain the channels' means.

    The shapes are those that explain the clear channels of all units. The projection of a mean over n spikes
    has noise with the variance 1 / n in each coefficient. Each channel is shrunk by the fraction of its
    energy that this noise explains (the estimator of James and Stein), at most to zero.
    """
    is_clear = (height >= _CLEAR * height.max(axis=1, keepdims=True)) & (height > 0)
    rows = raw[is_clear] if is_clear.any() else np.eye(1, raw.shape[2], dtype=raw.dtype)
    shapes = np.linalg.svd(rows, full_matrices=False)[2][:_NUM_SHAPES]  # shapes, S
    coefficients = raw @ shapes.T  # N, C, shapes
    noise = max(1, len(shapes) - 2) / np.maximum(counts, 1)[:, None]
    energy = (coefficients**2).sum(axis=2)
    kept = np.clip(1 - _SHRINK * noise / np.maximum(energy, 1e-9), 0, None)
    return coefficients * kept[:, :, None], shapes


def _centre_of_mass(height: np.ndarray, distance: np.ndarray, channel_positions_um: np.ndarray) -> np.ndarray:
    """Return the centre of mass of each unit's large channels around its largest: (num_units, 2 or 3)."""
    large = (height >= _LARGE * height.max(axis=1, keepdims=True)) & (distance <= _NEAR_UM)
    weight = np.where(large, height, 0) ** 2
    weight = np.where(weight.sum(axis=1, keepdims=True) > 0, weight, 1.0)
    return (weight @ channel_positions_um) / weight.sum(axis=1, keepdims=True)


def _taper(num_samples: int) -> np.ndarray:
    ramp = max(1, int(_TAPER * num_samples))
    taper = np.ones(num_samples, dtype=np.float32)
    taper[:ramp] = np.arange(1, ramp + 1) / (ramp + 1)
    taper[num_samples - ramp :] = taper[:ramp][::-1]
    return taper
