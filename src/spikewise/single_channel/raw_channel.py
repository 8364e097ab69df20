"""Spikes in the raw signal of one electrode: filter, threshold, align, cut; as wave_clus does.

The signal is band-passed forward and backward, so that peaks stay where they are. A spike is a peak above a
multiple of the noise's standard deviation, estimated from the median of the absolute signal, which spikes
hardly change (Quiroga et al. 2004, Neural Comput. 16:1661). A spike falls between samples; its waveform is
read from the cubic spline through the filtered signal, so that all peaks lie at the same place.

Conventions: a signal is ``(num_samples,)``, ``sample_index`` counts from 0 and is the sample of the peak, and
the peak is sample ``round(before_ms * sampling_frequency / 1000)`` of its waveform.
"""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter1d
from scipy.signal import ellip, find_peaks, sosfiltfilt

from spikewise.core.errors import WaveformsError
from spikewise.single_channel.config import SnippetsConfig, SpikeDetectionConfig
from spikewise.single_channel.files import (
    RawChannel,
    channel_of,
    checked_frequency,
    load_arrays,
    reading,
    single_channel,
)
from spikewise.single_channel.snippets import Snippets

logger = logging.getLogger(__name__)

_SEARCH_MS = 0.5  # how far from a given time its peak is looked for
_NORMAL_MEDIAN = 0.6745  # the median of |x| of a normal distribution of standard deviation 1


def load_raw_channel(path: str | Path, config: SnippetsConfig | None = None) -> RawChannel:
    """Read the signal of one electrode, with its true spikes where the file holds them.

    Read are simulations of Wave_Clus (.mat, .npz), a .mat or .npz whose signal is called data, traces or
    signal, and an .npy of one dimension.

    Raises
    ------
    WaveformsError
        If the file cannot be read, holds more than one channel, or does not tell its sampling frequency and
        the settings do not either.
    """
    path, config = Path(path), config or SnippetsConfig()
    with reading(path):
        return channel_of(load_arrays(path), path, config.sampling_frequency)


def bandpass(signal: np.ndarray, sampling_frequency: float, config: SpikeDetectionConfig) -> np.ndarray:
    """Filter a signal without shifting it: elliptic, order 2, 0.1 dB ripple, 40 dB, forward and backward.

    Parameters
    ----------
    signal : ndarray
        (num_samples,), whole or floating-point numbers; one row or one column is taken too.
    sampling_frequency : float
        In Hz.
    config : SpikeDetectionConfig
        The edges of the band; the upper one is lowered to 0.45 of the sampling frequency.

    Returns
    -------
    ndarray
        (num_samples,) float64, in the signal's unit.

    Raises
    ------
    WaveformsError
        If the signal is not one channel, is too short for a waveform, is constant, holds NaN or infinite
        values, or if the band lies above what the sampling frequency allows.
    """
    signal = _checked_signal(signal, sampling_frequency, config)
    highest = min(config.freq_max_hz, 0.45 * sampling_frequency)
    if highest <= config.freq_min_hz:
        raise WaveformsError(
            f"the band-pass begins at {config.freq_min_hz:g} Hz, the signal has {sampling_frequency:g} Hz",
            f"an edge below {highest:g} Hz, 0.45 of the sampling frequency",
            "lower freq_min_hz, or correct the sampling frequency",
        )
    band = (config.freq_min_hz, highest)
    sections = ellip(2, 0.1, 40, band, btype="bandpass", output="sos", fs=sampling_frequency)
    signal = signal.astype(np.float64)
    return sosfiltfilt(sections, signal - np.median(signal))  # of an offset, 0.01 % would pass


def find_spikes(signal: np.ndarray, sampling_frequency: float, config: SpikeDetectionConfig) -> Snippets:
    """Find the spikes of a signal and cut their filtered, aligned waveforms.

    Spikes whose waveform would leave the signal are left out. There may be none.

    Parameters
    ----------
    signal : ndarray
        (num_samples,), whole or floating-point numbers.
    sampling_frequency : float
        In Hz.
    config : SpikeDetectionConfig
        Band, threshold, direction of the peaks, refractory time and length of the waveforms.

    Returns
    -------
    Snippets
        In order of time, without labels.

    Raises
    ------
    WaveformsError
        What :func:`bandpass` raises, or if the filtered signal is zero most of the time.
    """
    filtered = bandpass(signal, sampling_frequency, config)
    noise = np.median(np.abs(filtered)) / _NORMAL_MEDIAN
    if noise <= np.finfo(np.float64).eps * np.abs(filtered).max():
        raise WaveformsError(
            "the filtered signal is zero most of the time",
            "a signal with noise, from which the threshold follows",
            "choose another channel, or a part without blanked stretches",
        )
    threshold = config.detection_threshold * noise
    distance = max(1, round(config.refractory_ms * sampling_frequency / 1000.0))
    polarity: str = config.polarity
    if polarity == "auto":
        peaks, _ = find_peaks(np.abs(filtered), height=threshold, distance=distance)
        polarity = _direction(filtered[peaks])
    peaks, _ = find_peaks(_upward(filtered, polarity), height=threshold, distance=distance)
    logger.info("%d peaks above %.4g, %s", len(peaks), threshold, polarity)
    return _aligned(filtered, peaks, polarity, sampling_frequency, config, None)


def cut_at(
    signal: np.ndarray,
    sampling_frequency: float,
    sample_index: np.ndarray,
    config: SpikeDetectionConfig,
    labels: np.ndarray | None = None,
) -> Snippets:
    """Cut filtered waveforms at known times, each aligned to the largest peak within 0.5 ms.

    Spikes whose waveform would leave the signal are left out, with their labels.

    Parameters
    ----------
    signal : ndarray
        (num_samples,), whole or floating-point numbers.
    sampling_frequency : float
        In Hz.
    sample_index : ndarray
        (num_spikes,) whole numbers: about where the peaks are.
    config : SpikeDetectionConfig
        Band, direction of the peaks and length of the waveforms.
    labels : ndarray, optional
        (num_spikes,) whole numbers or text.

    Returns
    -------
    Snippets
        In the order given; its ``sample_index`` is where the peaks really are.

    Raises
    ------
    WaveformsError
        What :func:`bandpass` raises, or if a time lies outside the signal or is not whole, or if the
        labels do not fit.
    """
    filtered = bandpass(signal, sampling_frequency, config)
    near = _checked_times(sample_index, len(filtered))
    if labels is not None and len(labels) != len(near):
        raise WaveformsError(
            f"there are {len(near)} spikes and {len(labels)} labels",
            "one for each spike",
            "correct the labels",
        )
    reach = max(1, round(_SEARCH_MS * sampling_frequency / 1000.0))
    window = np.clip(near[:, None] + np.arange(-reach, reach + 1), 0, len(filtered) - 1)
    polarity: str = config.polarity
    if polarity == "auto":
        largest = np.abs(filtered[window]).argmax(axis=1, keepdims=True)
        polarity = _direction(filtered[np.take_along_axis(window, largest, axis=1)[:, 0]])
    largest = _upward(filtered, polarity)[window].argmax(axis=1, keepdims=True)
    peaks = np.take_along_axis(window, largest, axis=1)[:, 0]
    return _aligned(filtered, peaks, polarity, sampling_frequency, config, labels)


def _direction(peak_values: np.ndarray) -> str:
    """Return where most of the larger half of the peaks point; negative if there are none."""
    if not len(peak_values):
        return "negative"
    larger = peak_values[np.abs(peak_values) >= np.median(np.abs(peak_values))]
    return "positive" if np.sign(larger).sum() > 0 else "negative"


def _upward(filtered: np.ndarray, polarity: str) -> np.ndarray:
    """Return the signal in which the peaks that count point upward."""
    return {"positive": np.positive, "negative": np.negative, "both": np.abs}[polarity](filtered)


def _aligned(
    filtered: np.ndarray,
    peaks: np.ndarray,
    polarity: str,
    sampling_frequency: float,
    config: SpikeDetectionConfig,
    labels: np.ndarray | None,
) -> Snippets:
    """Return the waveforms around the peaks of the spline through the filtered signal."""
    before, after = _num_samples(sampling_frequency, config)
    # The waveform and one sample more on each side, since it is shifted by up to one.
    inside = (peaks > before) & (peaks < len(filtered) - after)
    if not inside.all():
        logger.info("%d spikes lie too near the ends and are left out", (~inside).sum())
    peaks = peaks[inside]
    spline = spline_filter1d(filtered, order=3, mode="mirror")

    def at(positions: np.ndarray) -> np.ndarray:
        return map_coordinates(spline, positions[np.newaxis], order=3, mode="mirror", prefilter=False)

    shifts = np.arange(1 - config.upsampling, config.upsampling) / config.upsampling
    near_peaks = at(peaks[:, None] + shifts)
    if polarity == "both":
        near_peaks = near_peaks * np.sign(filtered[peaks])[:, None]
    elif polarity == "negative":
        near_peaks = -near_peaks
    exact = peaks + shifts[near_peaks.argmax(axis=1)]
    return Snippets(
        at(exact[:, None] + np.arange(-before, after)),
        None if labels is None else np.asarray(labels)[inside],
        sampling_frequency,
        peaks,
        name="raw channel",
    )


def _num_samples(sampling_frequency: float, config: SpikeDetectionConfig) -> tuple[int, int]:
    """Return the samples of a waveform before its peak and from its peak on."""
    before, after = (round(ms * sampling_frequency / 1000.0) for ms in (config.before_ms, config.after_ms))
    return before, after


def _checked_signal(
    signal: np.ndarray, sampling_frequency: float, config: SpikeDetectionConfig
) -> np.ndarray:
    signal = single_channel(signal, "the signal")
    checked_frequency(sampling_frequency, "the signal")
    needed = sum(_num_samples(sampling_frequency, config)) + 2
    if len(signal) < max(needed, 32):  # 32: what the filter's edges need
        raise WaveformsError(
            f"the signal has {len(signal)} samples",
            f"at least {max(needed, 32)}: a waveform and a sample on each side",
            "give a longer signal",
        )
    bad = np.flatnonzero(~np.isfinite(signal))
    if len(bad):
        raise WaveformsError(
            f"{len(bad)} samples of the signal are NaN or infinite, first sample {bad[0]}",
            "finite numbers",
            "cut out or repair these stretches",
        )
    if signal.min() == signal.max():
        raise WaveformsError(
            f"the signal is {signal[0]} throughout", "a signal that changes", "choose another channel"
        )
    return signal


def _checked_times(sample_index: np.ndarray, num_samples: int) -> np.ndarray:
    times = np.ravel(sample_index)
    outside = (times < 0) | (times >= num_samples) if times.dtype.kind in "iu" else np.ones(len(times), bool)
    if outside.any():
        raise WaveformsError(
            f"{outside.sum()} of {len(times)} spike times do not lie in the signal, the first is "
            f"{times[outside][0]}",
            f"whole numbers from 0 to {num_samples - 1}",
            "give the samples of the spikes in this signal",
        )
    return times.astype(np.int64)
