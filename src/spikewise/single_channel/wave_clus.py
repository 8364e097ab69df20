"""Single-channel signals in the manner of Wave_Clus: real spike shapes in noise made of spike shapes.

The idea is that of Quiroga, Nadasdy and Ben-Shaul (Neural Computation 16:1661, 2004). Far-away neurons are
what noise is made of, so the noise is a superposition of spike shapes drawn from a data base at random
times and amplitudes: it lies in the spikes' own frequencies and cannot be filtered away. A few of the shapes
are then the units: normalised to a peak of 1, they are added at random times. The noise's shapes are longer
than the units', by as much as gives it the spectrum of the public files.

Spikes fall between samples, since the signal is made at :data:`OVERSAMPLING` times its sampling frequency and
then decimated. Decimation is linear, so it is the shapes that are decimated, once for each place between two
samples at which a spike can begin; the signal is their sum, and the dense signal is never stored.

Conventions: a spike is told by its first sample, counted from 0; its peak is :func:`peak_sample` samples
later. A unit's label counts from 1. Amplitudes are relative to the spikes' peak.
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
MEASURED_WIDENING, BUILT_IN_WIDENING = 2.2, 1.2
"""How much longer the shapes of the noise are than those of the units.

The noise of the public C_Easy1_noise015 has the autocorrelation 0.98, 0.91, 0.83 and 0.73 at 1 to 4 samples,
and 57 % of its power lies below 500 Hz. Made of 625 shapes measured in macaque cortex as they are it would
have 0.90, 0.68, 0.44 and 0.25, and 18 %; made of shapes 2.2 times longer it has 0.98, 0.92, 0.83 and 0.72,
and 53 %. That far-away spikes are broader has a cause, since dendrites and distance take high frequencies
away (Linden, Pettersen & Einevoll 2010, J. Comput. Neurosci. 29:423).
"""

_PEAK_POSITION = 20 / 64  # of a spike's length
_TAPERED = 0.3  # part of a spike's length over which it fades, half of it at either end
_NOISE_EVENTS_HZ = 50_000.0  # so many that the noise is nearly Gaussian, as in the public files
_NOISE_BLOCK_S = 10.0
_VALUES_AT_ONCE = 4_000_000
_FILTER_SAMPLES = 12  # more than the 10 that the decimation's filter reaches, and the place between two


@dataclass(frozen=True, eq=False)
class WaveClusSimulation:
    """A simulated channel and the truth about it.

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
        JSON types: `settings`, `seed`, `shapes` (where they come from), `shape_indices` (the rows there),
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

    Noise, spike trains and the choice of shapes each have a random stage of their own: a change of the
    noise level leaves the spikes where they are.

    Parameters
    ----------
    config : WaveClusConfig
        Its `shapes`, where that file does not tell their sampling frequency, are taken to have the result's.

    Returns
    -------
    WaveClusSimulation

    Raises
    ------
    SettingError
        If the rates do not fit the units or the refractory period, or the shapes hold no such units.
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
    places, units = _draw_spike_trains(rates, num_signal, config)
    signal = _make_noise(base, base_hz, num_signal, config)
    _add_pieces(signal, pieces, places, chosen[units], np.ones(len(places)))
    sample_index = places // OVERSAMPLING
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
    """Write a simulation as a MATLAB file in the layout of the public ones, whole or not at all.

    The file holds ``data`` (1 x N), ``samplingInterval`` in ms, ``spike_times{1}`` (the first samples,
    counted from 1 as MATLAB counts), ``spike_class{1}`` (the units) and ``spike_class{2}`` (1 where spikes
    overlap); and beyond them ``shapes`` and ``facts``, a text of JSON. A file of that name is replaced.

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
    """Return where a spike of `num_samples` samples has its peak, counted from its first."""
    return round(_PEAK_POSITION * num_samples)


def _make_pieces(base: np.ndarray, base_hz: float, num_samples: int, sampling_frequency: float) -> np.ndarray:
    """Return all shapes as they are in the signal, for each place between two samples to begin at.

    Returns
    -------
    ndarray
        (OVERSAMPLING, num_shapes, num_samples and _FILTER_SAMPLES on either side); the shapes of the first
        place have a peak of 1.
    """
    dense = _fit_shapes(base, base_hz, sampling_frequency * OVERSAMPLING, num_samples)
    margin = _FILTER_SAMPLES * OVERSAMPLING
    pieces = np.stack(
        [
            resample_poly(np.pad(dense, ((0, 0), (margin + place, margin - place))), 1, OVERSAMPLING, axis=1)
            for place in range(OVERSAMPLING)
        ]
    )
    return pieces / pieces[0].max(axis=1, keepdims=True)


def _fit_shapes(base: np.ndarray, base_hz: float, dense_hz: float, num_samples: int) -> np.ndarray:
    """Resample shapes, turn and place their peaks, and fade both ends to 0.

    Where a shape is shorter than a spike its first and last values are held, and fade.
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
    """Return which spikes share a sample with another, of whatever unit.

    Two spikes do where their first samples are less than `num_samples` apart.

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
            "one rate for all, or one for each unit",
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

    Only whole spikes are drawn, and from the first sample on at the full rate: the time to the first spike is
    that of a train which has long been firing.

    Returns
    -------
    places : ndarray
        (num_spikes,) int64, ascending dense samples at which spikes begin.
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
    places = np.concatenate(trains)
    order = np.argsort(places, kind="stable")
    return places[order], np.repeat(np.arange(len(trains)), list(map(len, trains)))[order]


def _make_noise(base: np.ndarray, base_hz: float, num_signal: int, config: WaveClusConfig) -> np.ndarray:
    """Return the noise with _FILTER_SAMPLES more on either side, its level exact between those."""
    rng = stage_generator(config.seed, "wave_clus noise")
    usual = MEASURED_WIDENING if config.shapes else BUILT_IN_WIDENING
    widening = config.noise_widening or usual
    length = int(np.ceil(widening * config.num_samples))
    pieces = _make_pieces(base, base_hz / widening, length, config.sampling_frequency)
    margins = pieces.shape[2]  # as many samples before and after, so that noise is as dense at the ends
    noise = np.zeros(num_signal + 3 * margins)
    if not config.noise_level:
        return noise[margins:-margins]
    fs = config.sampling_frequency
    block = round(_NOISE_BLOCK_S * fs)
    for begin in range(0, num_signal + 2 * margins, block):
        end = min(begin + block, num_signal + 2 * margins)
        num_events = rng.poisson((end - begin) / fs * _NOISE_EVENTS_HZ)
        places = np.sort(rng.integers(begin * OVERSAMPLING, end * OVERSAMPLING, num_events))
        shapes = rng.integers(pieces.shape[1], size=num_events)
        _add_pieces(noise, pieces, places, shapes, rng.uniform(size=num_events))
    noise = noise[margins:-margins]
    inside = noise[_FILTER_SAMPLES : _FILTER_SAMPLES + num_signal]
    noise -= inside.mean()
    noise *= config.noise_level / inside.std()
    return noise


def _add_pieces(
    signal: np.ndarray, pieces: np.ndarray, places: np.ndarray, shapes: np.ndarray, amplitudes: np.ndarray
) -> None:
    """Add the piece of each event to the signal, in place; a signal's sample is OVERSAMPLING places.

    `places`, ascending, `shapes` (rows) and `amplitudes` are (num_events,).
    """
    width = np.arange(pieces.shape[2])
    at_once = _VALUES_AT_ONCE // len(width)
    for first in range(0, len(places), at_once):
        events = slice(first, first + at_once)
        samples, phases = np.divmod(places[events], OVERSAMPLING)
        values = pieces[phases, shapes[events]] * amplitudes[events, None]
        where = (samples - samples[0])[:, None] + width
        total = np.bincount(where.ravel(), weights=values.ravel())
        signal[samples[0] : samples[0] + len(total)] += total
