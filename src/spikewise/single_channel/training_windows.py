"""What a waveform classifier learns from: labelled spikes, varied, and spikes made of what they share.

A spike is taken for its unit's mean waveform, moved in time by a fraction of a sample or a few, plus
stationary noise. From a few labelled spikes of each unit the means are known well, and so is the spectrum of
the noise, because the residuals of all spikes and all moments share it; a covariance matrix without that
assumption would take hundreds of spikes. Spikes drawn from means and spectrum then teach the network what
noise can look like, which a few real ones cannot.

Where a unit's residuals are much larger than the noise (multi-unit activity, bursts, drift), its mean does
not describe it, and only its real spikes train.

Conventions: `shift` is in samples, positive when a spike comes later than its unit's mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import toeplitz

from spikewise.core.config import given
from spikewise.core.seeds import stage_generator
from spikewise.learning.examples.training_set import Batch
from spikewise.single_channel.config import WaveformTrainingConfig

_STEP = 0.25
"""Resolution of the shifts that are looked for, in samples."""
_MAX_SHIFT = 1 / 20
"""Largest shift that is looked for, as a fraction of the waveform."""
_ROUNDS = 3
_OUTLIER = 3.0
"""A residual with so many times the median power of its unit says nothing about the noise (overlaps)."""
_CLEAN = 1.6
"""A spike whose residual has more than so many times the median power of its unit may hold another spike."""
_TOGETHER = 1 / 128
"""Spikes nearer to each other than this fraction of a waveform are aligned alike."""
_OVERLAP_WEIGHT = 0.3
"""What the aligned unit of an overlap counts beside that of a single spike, since most spikes are single."""
_UNLIKE = 2.0
"""A unit whose residuals have so many times the power of the quietest unit's is not described by its mean."""
_RIDGE = 1e-3


def shift_waveforms(waveforms: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Move waveforms later in time by fractions of samples; their edges are continued.

    Parameters
    ----------
    waveforms : ndarray
        (num_spikes, num_samples)
    shift : ndarray
        (num_spikes,) in samples.

    Returns
    -------
    ndarray
        (num_spikes, num_samples), interpolated by cubic (Catmull-Rom) splines.
    """
    num_samples = waveforms.shape[1]
    place = np.arange(num_samples) - np.asarray(shift)[:, None]
    whole = np.floor(place).astype(np.int64)
    part = (place - whole).astype(np.float32)
    rows = np.arange(len(waveforms))[:, None]
    a, b, c, d = (waveforms[rows, np.clip(whole + k, 0, num_samples - 1)] for k in (-1, 0, 1, 2))
    return b + 0.5 * part * (c - a + part * (2 * a - 5 * b + 4 * c - d + part * (3 * (b - c) + d - a)))


@dataclass(frozen=True)
class SpikeModel:
    """What the labelled spikes have in common.

    Attributes
    ----------
    means : ndarray
        (num_units, num_samples) mean waveform of each unit, its spikes aligned.
    shift : ndarray
        (num_spikes,) shift of each labelled spike.
    covariance : ndarray
        (num_samples, num_samples) of the noise, the same at all moments.
    is_described : ndarray
        (num_units,) bool: whether a unit's mean and the noise describe its spikes.
    is_clean : ndarray
        (num_spikes,) bool: whether a spike looks as if no other were in its waveform.
    """

    means: np.ndarray
    shift: np.ndarray
    covariance: np.ndarray
    is_described: np.ndarray
    is_clean: np.ndarray

    def whitening(self) -> np.ndarray:
        """Return the symmetric map (num_samples, num_samples) that makes the noise white."""
        values, vectors = np.linalg.eigh(self.covariance)
        return ((vectors / np.sqrt(values)) @ vectors.T).astype(np.float32)


def fit_spike_model(waveforms: np.ndarray, unit_index: np.ndarray, num_units: int) -> SpikeModel:
    """Estimate means, shifts and noise from labelled spikes.

    Parameters
    ----------
    waveforms : ndarray
        (num_spikes, num_samples)
    unit_index : ndarray
        (num_spikes,) from 0; each unit has at least one spike.
    num_units : int

    Returns
    -------
    SpikeModel
    """
    largest = np.ceil(waveforms.shape[1] * _MAX_SHIFT / _STEP) * _STEP
    grid = np.arange(-largest, largest + _STEP / 2, _STEP)
    shift = np.zeros(len(waveforms))
    for _ in range(_ROUNDS):
        aligned = shift_waveforms(waveforms, -shift)
        means = np.stack([_robust_mean(aligned[unit_index == unit]) for unit in range(num_units)])
        shift = _best_shifts(waveforms, unit_index, means, grid)
    residuals = waveforms - shift_waveforms(means[unit_index], shift)
    covariance, is_described = _noise(residuals, unit_index, num_units)
    power = (residuals**2).mean(axis=1)
    typical = _median_by_unit(power, unit_index, num_units)
    is_clean = power <= _CLEAN * typical[unit_index]
    return SpikeModel(means.astype(np.float32), shift, covariance, is_described, is_clean)


def _median_by_unit(values: np.ndarray, unit_index: np.ndarray, num_units: int) -> np.ndarray:
    return np.array([np.median(values[unit_index == unit]) for unit in range(num_units)])


def _robust_mean(waveforms: np.ndarray) -> np.ndarray:
    """Average the waveforms without those farthest from their median, which hold other spikes."""
    if len(waveforms) < 5:
        return waveforms.mean(axis=0)
    distance = ((waveforms - np.median(waveforms, axis=0)) ** 2).sum(axis=1)
    return waveforms[distance <= _OUTLIER * np.median(distance)].mean(axis=0)


def _best_shifts(
    waveforms: np.ndarray, unit_index: np.ndarray, means: np.ndarray, grid: np.ndarray
) -> np.ndarray:
    """Return for each spike the shift at which its unit's mean is nearest to it."""
    shift = np.zeros(len(waveforms))
    for unit, mean in enumerate(means):
        mine = unit_index == unit
        moved = shift_waveforms(np.repeat(mean[None], len(grid), axis=0), grid)
        # the square of the distance, less what all shifts have in common
        distance = (moved**2).sum(axis=1) - 2 * waveforms[mine] @ moved.T
        shift[mine] = grid[distance.argmin(axis=1)]
    return shift


def _noise(residuals: np.ndarray, unit_index: np.ndarray, num_units: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariance of stationary noise, and which units it describes."""
    num_samples = residuals.shape[1]
    power = (residuals**2).mean(axis=1)
    counts = np.bincount(unit_index, minlength=num_units)
    typical = _median_by_unit(power, unit_index, num_units)
    unbiased = typical * counts / np.maximum(counts - 1, 1)
    known = counts >= min(5, counts.max())
    is_described = unbiased <= _UNLIKE * unbiased[known].min()
    used = is_described[unit_index] & (power <= _OUTLIER * typical[unit_index])
    scale = np.sqrt(counts / np.maximum(counts - 1, 1))[unit_index[used], None]
    spectrum = (np.abs(np.fft.rfft(residuals[used] * scale, 2 * num_samples, axis=1)) ** 2).mean(axis=0)
    correlation = np.fft.irfft(spectrum)[:num_samples] / num_samples  # positive definite, unlike the unbiased
    floor = max(correlation[0], 1e-12)
    return toeplitz(correlation) + _RIDGE * floor * np.eye(num_samples), is_described


class WaveformWindows:
    """Batches for :func:`spikewise.learning.training_loop.train_network`.

    Targets have the shape (num_windows, 2, num_units): the unit that the waveform is aligned to, and the
    units that are present. Of a real spike that may hold another, nobody knows which: the other units'
    presence has weight 0.

    Parameters
    ----------
    waveforms : ndarray
        (num_spikes, num_samples) float32
    unit_index : ndarray
        (num_spikes,)
    model : SpikeModel
        Of the same spikes.
    config : WaveformTrainingConfig
        Resolved.
    """

    def __init__(
        self,
        waveforms: np.ndarray,
        unit_index: np.ndarray,
        model: SpikeModel,
        config: WaveformTrainingConfig,
    ):
        self._waveforms, self._unit_index, self._model, self._config = waveforms, unit_index, model, config
        self._batch_size = given(config.batch_size)
        self._num_windows = config.windows_per_epoch or len(waveforms)
        self._noise_root = np.linalg.cholesky(model.covariance).astype(np.float32)
        order = np.argsort(unit_index, kind="stable")
        num_labels = np.bincount(unit_index)
        self._spikes_by_unit = np.split(order, np.cumsum(num_labels)[:-1])
        enough = np.maximum(given(config.generated_labels), 1)
        share = given(config.generated) * np.minimum(1, enough / num_labels)
        self._made_share = np.where(model.is_described, share, 0.0)

    def num_batches(self) -> int:
        """Return how many batches an epoch has."""
        return -(-self._num_windows // self._batch_size)

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of one epoch, drawn anew for each seed."""
        generator = stage_generator(seed, "waveforms")
        if not self._config.windows_per_epoch:
            order = generator.permutation(len(self._waveforms))
            windows, unit_index = self._waveforms[order], self._unit_index[order]
            present = np.eye(len(self._spikes_by_unit), dtype=np.float32)[unit_index]
            counts = np.ones((len(windows), 2), np.float32)
        else:
            windows, unit_index, present, counts = self._draw(generator)
        yield from self._batches(windows, unit_index, present, counts)

    def all_centres(self) -> Iterator[Batch]:
        """Yield the labelled spikes as they are."""
        present = np.eye(len(self._spikes_by_unit), dtype=np.float32)[self._unit_index]
        counts = np.stack([np.ones_like(self._model.is_clean), self._model.is_clean], axis=1)
        yield from self._batches(self._waveforms, self._unit_index, present, counts)

    def _batches(
        self, windows: np.ndarray, unit_index: np.ndarray, present: np.ndarray, counts: np.ndarray
    ) -> Iterator[Batch]:
        own = np.eye(present.shape[1], dtype=np.float32)[unit_index]
        targets = np.stack([own, present], axis=1)
        weights = np.stack([np.broadcast_to(counts[:, :1], own.shape), np.maximum(present, counts[:, 1:])], 1)
        edges = np.linspace(0, len(windows), -(-len(windows) // self._batch_size) + 1).astype(int)
        for start, stop in itertools.pairwise(edges):
            arrays = (windows[start:stop], targets[start:stop], weights[start:stop].astype(np.float32))
            yield Batch(*map(torch.from_numpy, arrays))

    def _draw(self, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Draw waveforms, units alike often: (B, S), (B,), (B, N), and what either answer counts, (B, 2)."""
        count, num_units = self._num_windows, len(self._spikes_by_unit)
        unit_index = generator.permutation(np.arange(count) % num_units)
        is_made = generator.random(count) < self._made_share[unit_index]
        spike = self._draw_spikes(unit_index, generator)
        largest = given(self._config.shift) * self._waveforms.shape[1]
        move = generator.uniform(-largest, largest, count)
        scale = 1 + given(self._config.amplitude_std) * generator.standard_normal((count, 1))
        windows = np.where(
            is_made[:, None],
            shift_waveforms(self._model.means[unit_index], self._model.shift[spike] + move) * scale,
            shift_waveforms(self._waveforms[spike], move),
        ).astype(np.float32)
        windows[is_made] += (
            generator.standard_normal((int(is_made.sum()), windows.shape[1]), dtype=np.float32)
            @ self._noise_root.T
        )
        present = np.eye(num_units, dtype=np.float32)[unit_index]
        own_weight = self._add_others(windows, unit_index, present, generator)
        is_known = is_made | self._model.is_clean[spike]
        return windows, unit_index, present, np.stack([own_weight, is_known], axis=1)

    def _draw_spikes(self, unit_index: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw a labelled spike of each unit asked for."""
        counts = np.array([len(spikes) for spikes in self._spikes_by_unit])
        starts = np.cumsum(counts) - counts
        within = (generator.random(len(unit_index)) * counts[unit_index]).astype(np.int64)
        return np.concatenate(self._spikes_by_unit)[starts[unit_index] + within]

    def _add_others(
        self, windows: np.ndarray, unit_index: np.ndarray, present: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Add the mean waveform of another unit to some windows, at any lag that leaves a part of it inside.

        It counts as present where its largest peak lies in the window. Where both fall together, neither is
        the one that the waveform is aligned to; returned is how much that question counts, (B,).
        """
        num_units, num_samples = self._model.means.shape
        rows = np.flatnonzero(generator.random(len(windows)) < given(self._config.overlaps))
        other = (unit_index[rows] + generator.integers(1, num_units, len(rows))) % num_units
        rows, other = rows[self._model.is_described[other]], other[self._model.is_described[other]]
        lag = generator.uniform(-num_samples, num_samples, len(rows))
        added = shift_into_silence(self._model.means[other], lag)
        windows[rows] += added * generator.uniform(0.6, 1.4, (len(rows), 1)).astype(np.float32)
        peak = np.abs(self._model.means).argmax(axis=1)[other] + lag
        present[rows, other] = ((peak >= 0) & (peak <= num_samples - 1)).astype(np.float32)
        own_weight = np.ones(len(windows), np.float32)
        own_weight[rows] = np.where(np.abs(lag) < _TOGETHER * num_samples, 0, _OVERLAP_WEIGHT)
        return own_weight


def shift_into_silence(waveforms: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """Move waveforms by any lag; what lies outside of them is zero."""
    num_samples = waveforms.shape[1]
    padded = np.pad(waveforms, ((0, 0), (num_samples, num_samples)))
    return shift_waveforms(padded, lag)[:, num_samples : 2 * num_samples]
