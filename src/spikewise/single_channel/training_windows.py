"""Training data of a waveform classifier: labelled spikes with variations, and synthetic spikes.

The model of a spike is the mean waveform of its unit, shifted in time by a few samples or a fraction of one,
plus stationary noise. A few labelled spikes of each unit are enough to estimate the means and the spectrum of
the noise, because the residuals of all spikes and all samples share it. A covariance matrix without this
assumption would need hundreds of spikes. Synthetic spikes, drawn from means and spectrum, show the network
what noise looks like, which a few real spikes cannot.

If the residuals of a unit are much larger than the noise (multi-unit activity, bursts, drift), its mean does
not describe it, and only its real spikes are used.

Conventions: `shift` is in samples, positive if a spike comes later than the mean of its unit.
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

# _OVERLAP_WEIGHT was chosen together with the presets, see docs/waveforms.md; the others are chosen by hand.
_STEP = 0.25
"""Step of the shifts that are tried, in samples."""
_MAX_SHIFT = 1 / 20
"""Largest shift that is tried, as a fraction of the waveform."""
_ROUNDS = 3
"""Rounds in which means and shifts are estimated in turn."""
_FEWEST_FOR_ROBUST_MEAN = 5
"""With fewer spikes, the mean of a unit includes all of them; units with fewer do not set the noise level."""
_OUTLIER = 3.0
"""A spike is left out of mean and noise if it exceeds this many medians of its unit (overlaps)."""
_CLEAN = 1.6
"""A spike whose residual has more power than this many medians of its unit may contain another spike."""
_COINCIDENT = 1 / 128
"""Two spikes closer than this fraction of a waveform: the waveform is aligned to both alike."""
_OVERLAP_WEIGHT = 0.3
"""Weight of an overlap in the loss of the aligned unit, relative to a single spike."""
_OVERLAP_SCALE = (0.6, 1.4)
"""Range of the amplitude of an added unit, relative to its mean."""
_UNLIKE = 2.0
"""A unit whose residuals have this many times the power of the quietest unit is not described by its mean."""
_RIDGE = 1e-3
"""Added to the diagonal of the noise covariance, as a fraction of the variance."""


def shift_waveforms(waveforms: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Shift waveforms in time by fractions of samples; beyond their ends, the first and last values continue.

    Parameters
    ----------
    waveforms : ndarray
        (num_spikes, num_samples)
    shift : ndarray
        (num_spikes,) in samples; positive shifts are later.

    Returns
    -------
    ndarray
        (num_spikes, num_samples), interpolated by cubic (Catmull-Rom) splines.
    """
    num_samples = waveforms.shape[1]
    position = np.arange(num_samples) - np.asarray(shift)[:, None]
    whole = np.floor(position).astype(np.int64)
    part = (position - whole).astype(np.float32)
    rows = np.arange(len(waveforms))[:, None]
    a, b, c, d = (waveforms[rows, np.clip(whole + k, 0, num_samples - 1)] for k in (-1, 0, 1, 2))
    return b + 0.5 * part * (c - a + part * (2 * a - 5 * b + 4 * c - d + part * (3 * (b - c) + d - a)))


@dataclass(frozen=True)
class SpikeModel:
    """Means and noise of the labelled spikes.

    Attributes
    ----------
    means : ndarray
        (num_units, num_samples) mean waveform of each unit, over its aligned spikes.
    shift : ndarray
        (num_spikes,) shift of each labelled spike.
    covariance : ndarray
        (num_samples, num_samples) covariance of the noise, which is stationary.
    is_described : ndarray
        (num_units,) bool: whether a unit's mean and the noise describe its spikes.
    is_clean : ndarray
        (num_spikes,) bool: whether the waveform seems to contain no other spike.
    """

    means: np.ndarray
    shift: np.ndarray
    covariance: np.ndarray
    is_described: np.ndarray
    is_clean: np.ndarray

    def whitening(self) -> np.ndarray:
        """Return the symmetric matrix (num_samples, num_samples) that makes the noise white."""
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
    """Average the waveforms without those far from their median, which contain other spikes."""
    if len(waveforms) < _FEWEST_FOR_ROBUST_MEAN:
        return waveforms.mean(axis=0)
    distance = ((waveforms - np.median(waveforms, axis=0)) ** 2).sum(axis=1)
    return waveforms[distance <= _OUTLIER * np.median(distance)].mean(axis=0)


def _best_shifts(
    waveforms: np.ndarray, unit_index: np.ndarray, means: np.ndarray, grid: np.ndarray
) -> np.ndarray:
    """Return for each spike the shift at which the mean of its unit is nearest to it."""
    shift = np.zeros(len(waveforms))
    for unit, mean in enumerate(means):
        mine = unit_index == unit
        moved = shift_waveforms(np.repeat(mean[None], len(grid), axis=0), grid)
        # the squared distance without the term that is the same for all shifts
        distance = (moved**2).sum(axis=1) - 2 * waveforms[mine] @ moved.T
        shift[mine] = grid[distance.argmin(axis=1)]
    return shift


def _noise(residuals: np.ndarray, unit_index: np.ndarray, num_units: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariance of the stationary noise, and which units it describes."""
    num_samples = residuals.shape[1]
    power = (residuals**2).mean(axis=1)
    counts = np.bincount(unit_index, minlength=num_units)
    typical = _median_by_unit(power, unit_index, num_units)
    unbiased = typical * counts / np.maximum(counts - 1, 1)
    known = counts >= min(_FEWEST_FOR_ROBUST_MEAN, counts.max())
    is_described = unbiased <= _UNLIKE * unbiased[known].min()
    used = is_described[unit_index] & (power <= _OUTLIER * typical[unit_index])
    scale = np.sqrt(counts / np.maximum(counts - 1, 1))[unit_index[used], None]
    spectrum = (np.abs(np.fft.rfft(residuals[used] * scale, 2 * num_samples, axis=1)) ** 2).mean(axis=0)
    correlation = (
        np.fft.irfft(spectrum)[:num_samples] / num_samples
    )  # the biased estimate is positive definite
    floor = max(correlation[0], 1e-12)
    return toeplitz(correlation) + _RIDGE * floor * np.eye(num_samples), is_described


class WaveformWindows:
    """Batches for :func:`spikewise.learning.training_loop.train_network`.

    Targets have the shape (num_windows, 2, num_units): the unit that the waveform is aligned to, and the
    units that are present. If a real waveform may contain another spike, the unit of that spike is unknown,
    so the presence of the other units has weight 0.

    Parameters
    ----------
    waveforms : ndarray
        (num_spikes, num_samples) float32
    unit_index : ndarray
        (num_spikes,) from 0.
    model : SpikeModel
        Model of the same spikes.
    config : WaveformTrainingConfig
        Resolved training settings.
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
        fraction = given(config.generated) * np.minimum(1, enough / num_labels)
        self._synthetic_fraction = np.where(model.is_described, fraction, 0.0)

    def num_batches(self) -> int:
        """Return the number of batches of an epoch."""
        return -(-self._num_windows // self._batch_size)

    def epoch(self, seed: int) -> Iterator[Batch]:
        """Yield the batches of one epoch, drawn with this seed."""
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
        """Yield the labelled spikes without variation."""
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
        """Draw waveforms, each unit equally often: waveforms (B, S), aligned unit (B,), present units (B, N).

        The last result are the weights of aligned unit and present units in the loss, (B, 2).
        """
        count, num_units = self._num_windows, len(self._spikes_by_unit)
        unit_index = generator.permutation(np.arange(count) % num_units)
        is_synthetic = generator.random(count) < self._synthetic_fraction[unit_index]
        spike = self._draw_spikes(unit_index, generator)
        largest = given(self._config.shift) * self._waveforms.shape[1]
        shift = generator.uniform(-largest, largest, count)
        scale = 1 + given(self._config.amplitude_std) * generator.standard_normal((count, 1))
        windows = np.where(
            is_synthetic[:, None],
            shift_waveforms(self._model.means[unit_index], self._model.shift[spike] + shift) * scale,
            shift_waveforms(self._waveforms[spike], shift),
        ).astype(np.float32)
        windows[is_synthetic] += (
            generator.standard_normal((int(is_synthetic.sum()), windows.shape[1]), dtype=np.float32)
            @ self._noise_root.T
        )
        present = np.eye(num_units, dtype=np.float32)[unit_index]
        own_weight = self._add_others(windows, unit_index, present, generator)
        is_known = is_synthetic | self._model.is_clean[spike]
        return windows, unit_index, present, np.stack([own_weight, is_known], axis=1)

    def _draw_spikes(self, unit_index: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw a labelled spike of each requested unit."""
        counts = np.array([len(spikes) for spikes in self._spikes_by_unit])
        starts = np.cumsum(counts) - counts
        within = (generator.random(len(unit_index)) * counts[unit_index]).astype(np.int64)
        return np.concatenate(self._spikes_by_unit)[starts[unit_index] + within]

    def _add_others(
        self, windows: np.ndarray, unit_index: np.ndarray, present: np.ndarray, generator: np.random.Generator
    ) -> np.ndarray:
        """Add the mean waveform of another unit to some windows, at any lag that leaves a part of it inside.

        The other unit is present if its largest peak lies in the window. If both spikes coincide, the aligned
        unit is undefined and has weight 0. Returned is the weight of the aligned unit, (B,).
        """
        num_units, num_samples = self._model.means.shape
        rows = np.flatnonzero(generator.random(len(windows)) < given(self._config.overlaps))
        other = (unit_index[rows] + generator.integers(1, num_units, len(rows))) % num_units
        rows, other = rows[self._model.is_described[other]], other[self._model.is_described[other]]
        lag = generator.uniform(-num_samples, num_samples, len(rows))
        added = shift_with_zeros(self._model.means[other], lag)
        windows[rows] += added * generator.uniform(*_OVERLAP_SCALE, (len(rows), 1)).astype(np.float32)
        peak = np.abs(self._model.means).argmax(axis=1)[other] + lag
        present[rows, other] = ((peak >= 0) & (peak <= num_samples - 1)).astype(np.float32)
        own_weight = np.ones(len(windows), np.float32)
        own_weight[rows] = np.where(np.abs(lag) < _COINCIDENT * num_samples, 0, _OVERLAP_WEIGHT)
        return own_weight


def shift_with_zeros(waveforms: np.ndarray, lag: np.ndarray) -> np.ndarray:
    """Shift waveforms by any lag; beyond their ends they are zero."""
    num_samples = waveforms.shape[1]
    padded = np.pad(waveforms, ((0, 0), (num_samples, num_samples)))
    return shift_waveforms(padded, lag)[:, num_samples : 2 * num_samples]
