"""Spikes in the raw signal of one electrode: filter, threshold, align, cut; as wave_clus does.

The signal is band-passed forward and backward, so that peaks do not move. A spike is a peak above a multiple
of the noise's standard deviation. The standard deviation is estimated from the median of the absolute signal,
which spikes hardly change (Quiroga et al. 2004, Neural Comput. 16:1661). The true peak of a spike lies
between two samples; its waveform is read from the cubic spline through the filtered signal, so that all
waveforms have their peak at the same sample.

Conventions: a signal is ``(num_samples,)``, ``sample_index`` counts from 0 and is the sample of the peak, and
the peak is sample ``round(before_ms * sampling_frequency / 1000)`` of its waveform.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import map_coordinates, spline_filter1d
from scipy.signal import ellip, find_peaks, sosfiltfilt

from spikewise.core.errors import WaveformsError
from spikewise.data.recordings.channels import LARGEST
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
from spikewise.sorting.live.channel_peaks import ChannelPeaks, PeakCut, measure

logger = logging.getLogger(__name__)

_NORMAL_MEDIAN = 0.6745
"""Median of |x| of a normal distribution with standard deviation 1."""
_HIGHEST_EDGE = 0.45
"""Highest upper edge of the band-pass, as a fraction of the sampling frequency; chosen by hand."""
_FILTER_ORDER, _RIPPLE_DB, _STOPBAND_DB = 2, 0.1, 40
"""The elliptic filter of wave_clus."""
_FEWEST_SAMPLES = 32
"""Shortest signal that the filter accepts, because of its edges."""


def load_raw_channel(path: str | Path, config: SnippetsConfig | None = None) -> RawChannel:
    """Read the signal of one electrode, with its true spikes if the file holds them.

    The file is a simulation of Wave_Clus (.mat, .npz), a .mat or .npz whose signal is called data, traces or
    signal, or an .npy of one dimension.

    Raises
    ------
    WaveformsError
        If the file cannot be read or holds more than one channel, or neither the file nor the settings give
        the sampling frequency.
    """
    path, config = Path(path), config or SnippetsConfig()
    with reading(path):
        return channel_of(load_arrays(path), path, config.sampling_frequency)


def bandpass(signal: np.ndarray, sampling_frequency: float, config: SpikeDetectionConfig) -> np.ndarray:
    """Filter a signal without shifting it: elliptic, order 2, 0.1 dB ripple, 40 dB, forward and backward.

    Parameters
    ----------
    signal : ndarray
        (num_samples,), whole or floating-point numbers; an array of one row or one column is accepted too.
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
    band = (config.freq_min_hz, _highest_edge(sampling_frequency, config))
    sections = ellip(
        _FILTER_ORDER, _RIPPLE_DB, _STOPBAND_DB, band, btype="bandpass", output="sos", fs=sampling_frequency
    )
    signal = signal.astype(np.float64)
    return sosfiltfilt(sections, signal - np.median(signal))  # else 0.01 % of the offset would pass


def _highest_edge(sampling_frequency: float, config: SpikeDetectionConfig) -> float:
    """Return the upper edge of the band in Hz; raise if it lies below the lower one."""
    highest = min(config.freq_max_hz, _HIGHEST_EDGE * sampling_frequency)
    if highest <= config.freq_min_hz:
        raise WaveformsError(
            f"the band-pass begins at {config.freq_min_hz:g} Hz, the signal has {sampling_frequency:g} Hz",
            f"an edge below {highest:g} Hz, {_HIGHEST_EDGE:g} of the sampling frequency",
            "lower freq_min_hz, or correct the sampling frequency",
        )
    return highest


def find_spikes(signal: np.ndarray, sampling_frequency: float, config: SpikeDetectionConfig) -> Snippets:
    """Find the spikes of a signal and cut their filtered, aligned waveforms.

    Spikes whose waveform would extend beyond the signal are left out. The result may be empty.

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
        raise _silent()
    threshold = config.detection_threshold * noise
    distance = max(1, round(config.refractory_ms * sampling_frequency / 1000.0))
    polarity: str = config.polarity
    if polarity == "auto":
        peaks, _ = find_peaks(np.abs(filtered), height=threshold, distance=distance)
        polarity = _direction(filtered[peaks])
    peaks, _ = find_peaks(_upward(filtered, polarity), height=threshold, distance=distance)
    logger.info("%d peaks above %.4g, %s", len(peaks), threshold, polarity)
    return _aligned(filtered, peaks, polarity, sampling_frequency, config)


def find_live_spikes(
    signal: np.ndarray, sampling_frequency: float, config: SpikeDetectionConfig
) -> tuple[Snippets, dict[str, Any]]:
    """Find the spikes of a signal as a stream does: with a filter that looks 1 ms ahead.

    Returns
    -------
    Snippets
        In order of time, without labels.
    dict
        The threshold and the polarity, which a stream cannot measure before it begins.

    Raises
    ------
    WaveformsError
        As for :func:`find_spikes`.
    """
    signal = _checked_signal(signal, sampling_frequency, config)
    _highest_edge(sampling_frequency, config)
    cut = live_cut(sampling_frequency, config)
    filtered = ChannelPeaks(cut, np.ones(1), ["both"]).filtered(signal[:, None])[:, 0]
    rule = measure(filtered, config.detection_threshold, config.polarity, cut.refractory)
    if rule["threshold"] <= np.finfo(np.float64).eps * np.abs(filtered).max():
        raise _silent()
    search = ChannelPeaks(cut, np.array([rule["threshold"]]), [rule["polarity"]])
    parts = search.push(signal[:, None]), search.end()
    peaks, waveforms = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("sample_index", "waveforms")
    )
    return Snippets(waveforms, None, sampling_frequency, peaks, name="raw channel"), rule


def live_cut(sampling_frequency: float, config: SpikeDetectionConfig) -> PeakCut:
    """Return how a stream of this rate is filtered and its waveforms are cut."""
    before, after = _num_samples(sampling_frequency, config)
    band_hz = config.freq_min_hz, config.freq_max_hz
    refractory = max(1, round(config.refractory_ms * sampling_frequency / 1000.0))
    return PeakCut(sampling_frequency, band_hz, refractory, before, after, config.upsampling)


def _silent() -> WaveformsError:
    return WaveformsError(
        "the filtered signal is zero most of the time",
        "a signal with noise, from which the threshold is computed",
        "choose another channel, or a part that is not blanked",
    )


def _direction(peak_values: np.ndarray) -> str:
    """Return the direction of most of the larger half of the peaks; negative if there are none."""
    if not len(peak_values):
        return "negative"
    larger = peak_values[np.abs(peak_values) >= np.median(np.abs(peak_values))]
    return "positive" if np.sign(larger).sum() > 0 else "negative"


def _upward(filtered: np.ndarray, polarity: str) -> np.ndarray:
    """Return the signal turned so that the peaks of this polarity point upward."""
    return {"positive": np.positive, "negative": np.negative, "both": np.abs}[polarity](filtered)


def _aligned(
    filtered: np.ndarray,
    peaks: np.ndarray,
    polarity: str,
    sampling_frequency: float,
    config: SpikeDetectionConfig,
) -> Snippets:
    """Return the waveforms around the peaks of the spline through the filtered signal."""
    before, after = _num_samples(sampling_frequency, config)
    # One sample more on each side, because the waveform is shifted by up to one sample.
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
        None,
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
    needed = max(sum(_num_samples(sampling_frequency, config)) + 2, _FEWEST_SAMPLES)
    if len(signal) < needed:
        raise WaveformsError(
            f"the signal has {len(signal)} samples",
            f"at least {needed}: a waveform and a sample on each side",
            "give a longer signal",
        )
    bad = np.flatnonzero(~np.isfinite(signal))
    if len(bad):
        raise WaveformsError(
            f"{len(bad)} samples of the signal are NaN or infinite, first sample {bad[0]}",
            "finite numbers",
            "cut out or repair these samples",
        )
    if (largest := np.abs(signal).max()) > LARGEST:
        raise WaveformsError(
            f"the largest sample of the signal is {largest:.3g}: no sample of an electrode, in any unit",
            f"numbers up to {LARGEST:g}",
            "correct the type of the samples (--dtype), or cut out or repair the sample",
        )
    if signal.min() == signal.max():
        raise WaveformsError(
            f"the signal is {signal[0]} throughout", "a signal that changes", "choose another channel"
        )
    return signal
