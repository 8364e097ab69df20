"""Peaks of single channels in a running stream: filter, threshold, align, cut, for any cut into blocks.

The band-pass is symmetric in time and looks one millisecond ahead, so that it keeps the shapes of spikes:
filters that run forward only lost a third of the spikes near the noise (docs/live.md). A peak is a sample
above the threshold that is the largest within the refractory time on either side. Its waveform is read from
the cubic spline through the samples around it, so that the exact peak, which lies between two samples, is at
the same place of every waveform. Filter, peaks and waveforms depend on the samples only, to the bit, not on
how they were cut into blocks.

Shapes: samples are (num_samples, num_channels), waveforms (num_peaks, num_points).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.signal
from scipy.ndimage import map_coordinates, spline_filter1d

from spikewise.core.compiling import compiled

NORMAL_MEDIAN = 0.6745
"""Median of |x| of a normal distribution with standard deviation 1."""
FILTER_MS = 1.0
"""How far the band-pass looks back and ahead. Chosen on simulations: 0.75 to 2 ms find as many spikes."""
_MARGIN = 8
"""Samples on either side of a waveform through which the spline goes; farther ones hardly change it."""
_HIGHEST_EDGE = 0.45
"""Highest upper edge of the band-pass, as a fraction of the sampling frequency; chosen by hand."""


@dataclass(frozen=True)
class PeakCut:
    """What is the same for all channels: the filter and the lengths, in samples.

    Attributes
    ----------
    sampling_frequency : float
        In Hz.
    band_hz : (float, float)
        Edges of the band-pass.
    refractory : int
        A peak is the largest within so many samples on either side; 1 or more.
    before, after : int
        Points of a waveform before its peak, and from its peak on.
    upsampling : int
        Points per sample at which the exact peak is searched.
    """

    sampling_frequency: float
    band_hz: tuple[float, float]
    refractory: int
    before: int
    after: int
    upsampling: int

    @property
    def margin_before(self) -> int:
        """Samples before a peak that its waveform needs."""
        return self.before + 1 + _MARGIN

    @property
    def margin_after(self) -> int:
        """Samples after a peak that its waveform needs."""
        return self.after + _MARGIN

    @property
    def look_ahead(self) -> int:
        """Samples after a peak that must be known before it is certain."""
        return self.delay + max(self.margin_after, self.refractory)

    @property
    def history(self) -> int:
        """Samples before a peak that must be kept."""
        return max(self.margin_before, self.refractory)

    @property
    def delay(self) -> int:
        """Samples by which the band-pass looks ahead."""
        return max(1, round(FILTER_MS * self.sampling_frequency / 1000))

    @cached_property
    def taps(self) -> np.ndarray:
        """The band-pass (2 * delay + 1,); it lets no constant pass."""
        high = min(self.band_hz[1], _HIGHEST_EDGE * self.sampling_frequency)
        band = (self.band_hz[0], high)
        taps = scipy.signal.firwin(2 * self.delay + 1, band, pass_zero=False, fs=self.sampling_frequency)
        return taps - taps.mean()

    @cached_property
    def operators(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrices from the samples around a peak to the values near it, and to the waveform of each shift.

        Their shapes are (num_shifts, num_samples) and (num_shifts, num_points, num_samples).
        """
        shifts = np.arange(1 - self.upsampling, self.upsampling) / self.upsampling
        unit = np.eye(self.margin_before + self.margin_after + 1)
        splines = spline_filter1d(unit, order=3, mode="mirror", axis=1)

        def at(places: np.ndarray) -> np.ndarray:
            rows = [
                map_coordinates(one, places[np.newaxis], order=3, mode="mirror", prefilter=False)
                for one in splines
            ]
            return np.ascontiguousarray(np.transpose(rows))

        middle, points = self.margin_before, np.arange(-self.before, self.after)
        return at(middle + shifts), np.array([at(middle + shift + points) for shift in shifts])


@dataclass(frozen=True)
class Peaks:
    """Peaks in the order of time, then channel.

    Attributes
    ----------
    sample_index, channel_index : ndarray of int64
        (num_peaks,); samples are counted from the first of the stretch.
    waveforms : ndarray of float64
        (num_peaks, num_points)
    """

    sample_index: np.ndarray
    channel_index: np.ndarray
    waveforms: np.ndarray


class ChannelPeaks:
    """Finds the peaks of channels, each on its own, in a stretch of a stream.

    Parameters
    ----------
    cut : PeakCut
    thresholds : ndarray
        (num_channels,) heights that a filtered peak must exceed, in the unit of the samples.
    polarities : sequence of str
        Direction of the peaks of each channel: negative, positive or both.

    Attributes
    ----------
    num_samples : int
        Samples so far.
    """

    def __init__(self, cut: PeakCut, thresholds: np.ndarray, polarities: Sequence[str]):
        self._cut, self._thresholds = cut, np.asarray(thresholds, np.float64)
        self._signs = np.array([-1.0 if one == "negative" else 1.0 for one in polarities])
        self._is_both = np.array([one == "both" for one in polarities])
        self._filtered = np.empty((0, len(polarities)))
        self._first = 0
        self._decided = cut.margin_before
        self._last_values: np.ndarray | None = None
        self._base, self._last = np.zeros((2, len(polarities)))
        self._to_skip = cut.delay  # the first filtered samples lie before the stretch
        self._num_samples = 0

    @property
    def num_samples(self) -> int:
        """Samples so far."""
        return self._num_samples

    def push(self, samples: np.ndarray) -> Peaks:
        """Take the next samples (num_samples, num_channels); return the peaks that are certain now."""
        if len(samples):
            self._last = np.asarray(samples[-1], np.float64)
            self._filtered = np.concatenate([self._filtered, self._filter(samples)])
        known = self._first + len(self._filtered)
        found = self._until(known - max(self._cut.margin_after, self._cut.refractory))
        keep = max(0, self._decided - self._cut.history - self._first)
        if keep:
            self._filtered, self._first = self._filtered[keep:], self._first + keep
        return found

    def end(self) -> Peaks:
        """Return the rest of the peaks whose waveform lies inside the stretch."""
        if self._last_values is not None:  # after the last sample, the signal is taken to be constant
            rest = np.repeat(self._last[np.newaxis], self._cut.delay, axis=0)
            num_samples = self._num_samples
            self._filtered = np.concatenate([self._filtered, self._filter(rest)])
            self._num_samples = num_samples
        return self._until(self._first + len(self._filtered) - self._cut.margin_after)

    def filtered(self, samples: np.ndarray) -> np.ndarray:
        """Filter the next samples only, to measure their noise; do not mix it with :meth:`push`."""
        return self._filter(samples)

    def noise_ratio(self, multiples: np.ndarray) -> float:
        """Return the noise of the samples that are kept, as a multiple of that behind the thresholds.

        Parameters
        ----------
        multiples : ndarray
            (num_channels,) the thresholds as multiples of the noise.
        """
        if not len(self._filtered):
            return float("nan")
        now = np.median(np.abs(self._filtered), axis=0) / NORMAL_MEDIAN
        return float(np.median(now * multiples / self._thresholds))

    def _filter(self, samples: np.ndarray) -> np.ndarray:
        """Filter the next samples; the result is `delay` samples behind."""
        values = np.asarray(samples, np.float64)
        count = len(self._cut.taps) - 1
        if self._last_values is None:  # before the first sample, the signal is taken to be constant
            self._base = values[0]
            self._last_values = np.zeros((count, values.shape[1]))
        known = np.concatenate([self._last_values, values - self._base])
        self._last_values = known[len(known) - count :]
        filtered = np.empty(values.shape)
        filter_rows(known, self._cut.taps, filtered)
        skipped = min(self._to_skip, len(filtered))
        self._to_skip -= skipped
        self._num_samples += len(filtered)
        return filtered[skipped:]

    def _until(self, stop: int) -> Peaks:
        """Return the peaks from the last decided sample on, up to a sample; it is decided then."""
        start = self._decided
        if stop <= start:
            return self._cut_out([])
        self._decided = stop
        first, last = start - self._first, stop - self._first
        around = self._filtered[first - 1 : last + 1]
        upward = np.where(self._is_both, np.abs(around), around * self._signs)
        here = upward[1:-1]
        if not (here > self._thresholds).any():
            return self._cut_out([])
        tops = np.argwhere((here > self._thresholds) & (here > upward[:-2]) & (here >= upward[2:]))
        places = [(first + at, channel) for at, channel in tops.tolist()]
        return self._cut_out([place for place in places if self._is_top(*place)])

    def _is_top(self, at: int, channel: int) -> bool:
        """Return whether a sample is the largest within the refractory time; the first of equals is."""
        reach = self._cut.refractory
        column = self._filtered[max(0, at - reach) : at + reach + 1, channel]
        upward = np.abs(column) if self._is_both[channel] else column * self._signs[channel]
        return int(np.argmax(upward)) == min(at, reach)

    def _cut_out(self, places: list[tuple[int, int]]) -> Peaks:
        near, shapes = self._cut.operators
        waveforms = np.empty((len(places), self._cut.before + self._cut.after))
        for row, (at, channel) in enumerate(places):
            window = self._filtered[at - self._cut.margin_before : at + self._cut.margin_after + 1, channel]
            window = np.ascontiguousarray(window)
            sign = (
                np.sign(window[self._cut.margin_before]) if self._is_both[channel] else self._signs[channel]
            )
            waveforms[row] = shapes[int(np.argmax((near @ window) * sign))] @ window
        found = np.array(places, np.int64).reshape(-1, 2)
        return Peaks(found[:, 0] + self._first, found[:, 1], waveforms)


@compiled()
def filter_rows(samples: np.ndarray, taps: np.ndarray, filtered: np.ndarray) -> None:
    """Filter rows of samples, each by sums in a fixed order: so a row does not depend on how they are cut.

    Parameters
    ----------
    samples : ndarray
        (num_taps - 1 + num_rows, num_channels): those before the first row, then the rows.
    taps : ndarray
        (num_taps,)
    filtered : ndarray
        (num_rows, num_channels); filled.
    """
    num_channels, last = samples.shape[1], len(taps) - 1
    for row in range(len(filtered)):
        filtered[row] = 0
        for tap in range(len(taps)):
            for channel in range(num_channels):
                filtered[row, channel] += taps[tap] * samples[row + last - tap, channel]


def measure(filtered: np.ndarray, multiple: float, polarity: str, distance: int) -> dict[str, Any]:
    """Return the threshold of a filtered signal (num_samples,) and the direction of its peaks.

    The threshold is a multiple of the noise, median(|x|) / 0.6745. With the polarity ``auto`` the direction
    is that of most of the larger half of the peaks.
    """
    threshold = multiple * float(np.median(np.abs(filtered))) / NORMAL_MEDIAN
    if polarity == "auto":
        peaks, _ = scipy.signal.find_peaks(np.abs(filtered), height=threshold, distance=max(1, distance))
        values = filtered[peaks]
        larger = values[np.abs(values) >= np.median(np.abs(values))] if len(values) else values
        polarity = "positive" if np.sign(larger).sum() > 0 else "negative"
    return {"threshold": threshold, "polarity": polarity}
