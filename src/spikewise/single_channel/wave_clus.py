"""Simulated single-channel signals like those of Wave_Clus: spike shapes in noise made of spike shapes.

The method is that of Quiroga, Nadasdy and Ben-Shaul (Neural Computation 16:1661, 2004). The noise of a
recording comes from distant neurons. So the noise is a superposition of spike shapes, drawn from a data base
at random times and amplitudes: it has the frequencies of the spikes, and no filter can remove it. A few of
the shapes are the units: normalised to a peak of 1, they are added at random times. The shapes of the noise
are longer than those of the units, by the factor that gives the noise the spectrum of the public files.

The signal is simulated at :data:`OVERSAMPLING` times its sampling frequency and then decimated, so that
spikes begin between samples. Decimation is linear, so the shapes are decimated instead of the signal, once
for each phase between two samples at which a spike can begin. The dense signal is never stored.

Conventions: the time of a spike is its first sample, counted from 0; its peak is :func:`peak_sample` samples
later. Labels of units count from 1. Amplitudes are relative to the peak of the spikes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.io import savemat
from scipy.signal import resample_poly
from scipy.signal.windows import tukey

from spikewise.core.errors import SettingError
from spikewise.core.files import replacing
from spikewise.core.seeds import stage_generator
from spikewise.single_channel.config import WaveClusConfig
from spikewise.single_channel.spike_shapes import (
    BUILT_IN_HZ,
    built_in_shapes,
    choose_shapes,
    load_shapes,
    shape_similarity,
)

OVERSAMPLING = 4
"""Phases between two samples at which a spike can begin (Quiroga et al. 2004: a quarter of a sample)."""
MEASURED_WIDENING, BUILT_IN_WIDENING = 2.2, 1.2
"""How many times longer the shapes of the noise are than those of the units.

The noise of the public C_Easy1_noise015 has the autocorrelation 0.98, 0.91, 0.83 and 0.73 at 1 to 4 samples,
and 57 % of its power lies below 500 Hz. Noise of 625 shapes measured in macaque cortex, not stretched, has
0.90, 0.68, 0.44 and 0.25, and 18 %. With shapes 2.2 times longer it has 0.98, 0.92, 0.83 and 0.72, and 53 %.
Distant spikes are in fact broader, since dendrites and distance remove high frequencies (Linden, Pettersen &
Einevoll 2010, J. Comput. Neurosci. 29:423).
"""

_PEAK_POSITION = 20 / 64
"""Position of the peak, as a fraction of the length of a spike: sample 20 of 64, as wave_clus cuts spikes."""
_TAPERED = 0.3
"""Fraction of the length of a spike over which it fades to 0, half of it at each end; chosen by hand."""
_NOISE_EVENTS_HZ = 50_000.0
"""Rate of the shapes in the noise: so high that the noise is nearly Gaussian, as in the public files."""
_NOISE_BLOCK_S = 10.0
"""Length of the signal whose noise is made at once; a change changes the random numbers."""
_VALUES_AT_ONCE = 4_000_000
"""Samples of pieces that are added at once, which limits the memory."""
_FILTER_SAMPLES = 12
"""Margin of a piece on either side: the decimation filter reaches 10 samples, and the phase adds one."""


@dataclass(frozen=True, eq=False)
class WaveClusSimulation:
    """A simulated channel with its true spikes.

    Attributes
    ----------
    signal : ndarray
        (num_samples_of_signal,) float64, relative to the spikes' peak.
    sampling_frequency : float
        In Hz.
    sample_index : ndarray
        (num_spikes,) int64, ascending: the first sample of each spike, counted from 0.
    labels : ndarray
        (num_spikes,) int64 from 1: the row of `shapes`, plus one.
    is_overlap : ndarray
        (num_spikes,) bool: whether the spike shares samples with another, see :func:`find_overlaps`.
    shapes : ndarray
        (num_units, num_samples) float64 with a peak of 1: a spike that begins on a sample.
    facts : dict
        JSON types: `settings`, `seed`, `shapes` (their source), `shape_indices` (rows in the source),
        `similarity` of the units (:func:`shape_similarity`).
    """

    signal: np.ndarray
    sampling_frequency: float
    sample_index: np.ndarray
    labels: np.ndarray
    is_overlap: np.ndarray
    shapes: np.ndarray
    facts: dict[str, Any]


def simulate_wave_clus(config: WaveClusConfig) -> WaveClusSimulation:
    """Simulate a single channel with known spikes.

    Noise, spike trains and the choice of shapes have random stages of their own, so a change of the noise
    level does not move the spikes.

    Parameters
    ----------
    config : WaveClusConfig
        If the file of `shapes` does not hold their sampling frequency, that of the result is assumed.

    Returns
    -------
    WaveClusSimulation

    Raises
    ------
    SettingError
        If the rates do not match the units or the refractory period, or the shapes hold no suitable units.
    WaveformsError
        If the file of shapes cannot be used.
    """
    rates = _firing_rates(config)
    base, base_hz = load_shapes(config.shapes) if config.shapes else (built_in_shapes(), BUILT_IN_HZ)
    base_hz = base_hz or config.sampling_frequency
    pieces = _make_pieces(base, base_hz, config.num_samples, config.sampling_frequency)
    shapes = pieces[0, :, _FILTER_SAMPLES : _FILTER_SAMPLES + config.num_samples]
    chosen = choose_shapes(shapes, config.num_units, config.difficulty, config.seed)

    num_signal = round(config.duration_s * config.sampling_frequency)
    dense_index, units = _draw_spike_trains(rates, num_signal, config)
    signal = _make_noise(base, base_hz, num_signal, config)
    _add_pieces(signal, pieces, dense_index, chosen[units], np.ones(len(dense_index)))
    sample_index = dense_index // OVERSAMPLING
    return WaveClusSimulation(
        signal=signal[_FILTER_SAMPLES : _FILTER_SAMPLES + num_signal],
        sampling_frequency=float(config.sampling_frequency),
        sample_index=sample_index,
        labels=units + 1,
        is_overlap=find_overlaps(sample_index, config.num_samples),
        shapes=shapes[chosen],
        facts={
            "settings": config.to_dict(),
            "seed": config.seed,
            "shapes": config.shapes or "built in",
            "shape_indices": chosen.tolist(),
            "similarity": shape_similarity(shapes[chosen]).tolist(),
        },
    )


def save_wave_clus(simulation: WaveClusSimulation, path: Path | str) -> None:
    """Write a simulation as a MATLAB file in the layout of the public files, completely or not at all.

    The file holds ``data`` (1 x N), ``samplingInterval`` in ms, ``spike_times{1}`` (the first samples,
    counted from 1 as MATLAB counts), ``spike_class{1}`` (the units) and ``spike_class{2}`` (1 where spikes
    overlap), and in addition ``shapes`` and ``facts``, a JSON text. An existing file is replaced.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    spike_times, spike_class = np.empty((1, 1), dtype=object), np.empty((1, 2), dtype=object)
    spike_times[0, 0] = simulation.sample_index[None] + 1.0
    spike_class[0, 0] = simulation.labels[None].astype(float)
    spike_class[0, 1] = simulation.is_overlap[None].astype(float)
    contents = {
        "data": simulation.signal[None],
        "samplingInterval": 1000.0 / simulation.sampling_frequency,
        "spike_times": spike_times,
        "spike_class": spike_class,
        "shapes": simulation.shapes,
        "facts": json.dumps(simulation.facts),
    }
    with replacing(Path(path)) as partial:
        savemat(partial, contents, appendmat=False)


def peak_sample(num_samples: int) -> int:
    """Return the sample of the peak in a spike of `num_samples` samples, counted from 0."""
    return round(_PEAK_POSITION * num_samples)


def _make_pieces(base: np.ndarray, base_hz: float, num_samples: int, sampling_frequency: float) -> np.ndarray:
    """Return all shapes at the sampling frequency of the signal, for each phase at which a spike can begin.

    Returns
    -------
    ndarray
        (OVERSAMPLING, num_shapes, num_samples plus _FILTER_SAMPLES on either side); the shapes of the first
        phase have a peak of 1.
    """
    dense = _fit_shapes(base, base_hz, sampling_frequency * OVERSAMPLING, num_samples)
    margin = _FILTER_SAMPLES * OVERSAMPLING
    pieces = np.stack(
        [
            resample_poly(np.pad(dense, ((0, 0), (margin + phase, margin - phase))), 1, OVERSAMPLING, axis=1)
            for phase in range(OVERSAMPLING)
        ]
    )
    return pieces / pieces[0].max(axis=1, keepdims=True)


def _fit_shapes(base: np.ndarray, base_hz: float, dense_hz: float, num_samples: int) -> np.ndarray:
    """Resample shapes, turn their peaks upward, align the peaks, and fade both ends to 0.

    A shape shorter than a spike is extended by its first and last values, which fade.
    """
    upward = base * np.sign(np.take_along_axis(base, np.abs(base).argmax(axis=1)[:, None], axis=1))
    times = np.arange(base.shape[1]) / base_hz
    fine = np.linspace(0, times[-1], 1 + int(np.ceil(times[-1] * max(base_hz, dense_hz) * OVERSAMPLING)))
    num_dense = num_samples * OVERSAMPLING
    around = (np.arange(num_dense) - peak_sample(num_samples) * OVERSAMPLING) / dense_hz
    dense = np.empty((len(base), num_dense))
    for row, shape in enumerate(upward):
        spline = CubicSpline(times, shape)
        dense[row] = spline((fine[spline(fine).argmax()] + around).clip(0, times[-1]))
    return dense * tukey(num_dense, _TAPERED)


def find_overlaps(sample_index: np.ndarray, num_samples: int) -> np.ndarray:
    """Return which spikes share a sample with another spike, of any unit.

    Two spikes overlap if their first samples are less than `num_samples` apart.

    Parameters
    ----------
    sample_index : ndarray
        (num_spikes,) first samples, ascending.
    num_samples : int
        Samples of a spike.

    Returns
    -------
    ndarray
        (num_spikes,) bool
    """
    touches = np.zeros(len(sample_index) + 1, dtype=bool)  # of the spikes before and after each gap
    touches[1:-1] = np.diff(sample_index) < num_samples
    return touches[:-1] | touches[1:]


def _firing_rates(config: WaveClusConfig) -> np.ndarray:
    """Return the rate of each unit in Hz, (num_units,), or raise."""
    rates = np.asarray(config.firing_rates_hz, dtype=float)
    if len(rates) not in (1, config.num_units):
        raise SettingError(
            f"firing_rates_hz has {len(rates)} rates, and there are {config.num_units} units",
            "one rate for all units, or one for each",
            "change firing_rates_hz or num_units",
        )
    shortest_ms = 1000 * _refractory_samples(config) / config.sampling_frequency
    if rates.max() * shortest_ms >= 1000:
        raise SettingError(
            f"firing_rates_hz is {rates.max():g} with a refractory period of {shortest_ms:g} ms",
            f"less than {1000 / shortest_ms:g} Hz, at which the period leaves no time between spikes",
            "lower firing_rates_hz or refractory_ms",
        )
    return np.broadcast_to(rates, config.num_units)


def _refractory_samples(config: WaveClusConfig) -> int:
    return int(np.ceil(round(config.refractory_ms / 1000 * config.sampling_frequency, 6)))


def _draw_spike_trains(
    rates: np.ndarray, num_signal: int, config: WaveClusConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Draw Poisson trains with a refractory period, at the dense sampling frequency.

    Only spikes that lie completely in the signal are drawn. The trains are stationary: the time to the first
    spike is drawn as in a train that started long ago.

    Returns
    -------
    dense_index : ndarray
        (num_spikes,) int64, ascending: first sample of each spike at the dense sampling frequency.
    units : ndarray
        (num_spikes,) int64 from 0.
    """
    rng = stage_generator(config.seed, "wave_clus spike trains")
    refractory = _refractory_samples(config) * OVERSAMPLING
    end = (num_signal - config.num_samples + 1) * OVERSAMPLING
    trains = []
    for interval in config.sampling_frequency * OVERSAMPLING / rates:
        pause = interval - refractory  # the mean time beyond the refractory period
        begin = max(0.0, rng.uniform(refractory - interval, refractory))
        times = np.array([begin + rng.exponential(pause)])
        while times[-1] < end:
            more = rng.exponential(pause, 1 + int((end - times[-1]) / interval)) + refractory
            times = np.append(times, times[-1] + np.cumsum(more))
        trains.append(times[times < end].astype(np.int64))
    dense_index = np.concatenate(trains)
    order = np.argsort(dense_index, kind="stable")
    return dense_index[order], np.repeat(np.arange(len(trains)), list(map(len, trains)))[order]


def _make_noise(base: np.ndarray, base_hz: float, num_signal: int, config: WaveClusConfig) -> np.ndarray:
    """Return the noise, with _FILTER_SAMPLES more on either side; its level is exact between these."""
    rng = stage_generator(config.seed, "wave_clus noise")
    default = MEASURED_WIDENING if config.shapes else BUILT_IN_WIDENING
    widening = config.noise_widening or default
    length = int(np.ceil(widening * config.num_samples))
    pieces = _make_pieces(base, base_hz / widening, length, config.sampling_frequency)
    margins = pieces.shape[
        2
    ]  # as many samples before and after, so that the noise is as dense at the ends as elsewhere
    noise = np.zeros(num_signal + 3 * margins)
    if not config.noise_level:
        return noise[margins:-margins]
    fs = config.sampling_frequency
    block = round(_NOISE_BLOCK_S * fs)
    for begin in range(0, num_signal + 2 * margins, block):
        end = min(begin + block, num_signal + 2 * margins)
        num_events = rng.poisson((end - begin) / fs * _NOISE_EVENTS_HZ)
        dense_index = np.sort(rng.integers(begin * OVERSAMPLING, end * OVERSAMPLING, num_events))
        shapes = rng.integers(pieces.shape[1], size=num_events)
        _add_pieces(noise, pieces, dense_index, shapes, rng.uniform(size=num_events))
    noise = noise[margins:-margins]
    inside = noise[_FILTER_SAMPLES : _FILTER_SAMPLES + num_signal]
    noise -= inside.mean()
    noise *= config.noise_level / inside.std()
    return noise


def _add_pieces(
    signal: np.ndarray,
    pieces: np.ndarray,
    dense_index: np.ndarray,
    shapes: np.ndarray,
    amplitudes: np.ndarray,
) -> None:
    """Add the piece of each event to the signal, in place.

    `dense_index` (ascending, OVERSAMPLING per sample of the signal), `shapes` (rows of the pieces) and
    `amplitudes` are (num_events,).
    """
    width = np.arange(pieces.shape[2])
    at_once = _VALUES_AT_ONCE // len(width)
    for first in range(0, len(dense_index), at_once):
        events = slice(first, first + at_once)
        samples, phases = np.divmod(dense_index[events], OVERSAMPLING)
        values = pieces[phases, shapes[events]] * amplitudes[events, None]
        index = (samples - samples[0])[:, None] + width
        total = np.bincount(index.ravel(), weights=values.ravel())
        signal[samples[0] : samples[0] + len(total)] += total
