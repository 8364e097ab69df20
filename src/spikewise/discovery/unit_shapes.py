"""Mean waveforms of units, on the channels near each."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from spikewise.core.threads import results_in_order
from spikewise.discovery.event_loops import add_windows, best_lag, cut_windows
from spikewise.discovery.held_traces import UNIT, HeldTraces
from spikewise.discovery.neighbours import channels_within

# Chosen by hand, all of the following.
RADIUS_UM = 120.0  # channels that hold a mean waveform
MOST_CHANNELS = 32  # on dense probes, evenly spread ones
NUM_SPIKES = 100  # most spikes of a mean waveform, which is a median
NUM_TAIL_SPIKES = 300  # most spikes of its tails, which are means
TAIL_MS = 2.0  # length of what is measured before and after a mean waveform
MAX_REST_OF_SUM = 0.1  # part of its energy that two other units leave of a mean waveform that is their sum
MAX_PART_OF_SPIKES = 0.25  # most spikes of a sum, relative to either of the two
SUM_AMPLITUDES = (0.7, 1.3)  # sizes of the two within the sum
_MOST_PARTS = 6  # units, those that explain most of a sum, of which pairs are tried
MIN_TAIL_ENERGY = 2.0  # a tail with less than this times the energy of its noise is set to zero
NEAR_TROUGH_MS, FAR_TROUGH_MS = 0.25, 1.25
"""A spike whose trough is farther away than the first is moved there, up to the second. Chosen by hand."""
CLEARLY_DEEPER = 1.5
"""How much deeper such a trough must be than what is near the spike; chosen by hand."""


@dataclass(frozen=True)
class UnitShape:
    """The mean waveform of a unit, in noise standard deviations.

    Attributes
    ----------
    main_channel : int
        Channel with the most energy.
    channels : ndarray of int64, shape (P,)
        Channels near it.
    waveform : ndarray of float32, shape (P, L)
        Median of the windows around its spikes.
    trough : int
        Samples from the spikes' columns to the lowest sample of the main channel.
    """

    main_channel: int
    channels: np.ndarray
    waveform: np.ndarray
    trough: int

    @property
    def norm(self) -> float:
        """Square root of the energy: the signal-to-noise ratio of a matched filter."""
        return float(np.linalg.norm(self.waveform))


class ShapeMeter:
    """Measures the mean waveforms of units.

    Parameters
    ----------
    held : HeldTraces
    distance : ndarray, shape (num_channels, num_channels)
        Distances of the channels in um.
    before, length : int
        Samples of a window ahead of the spike, and in all.
    """

    def __init__(self, held: HeldTraces, distance: np.ndarray, before: int, length: int):
        self.held = held
        self.before, self.length = before, length
        self.tail = round(TAIL_MS * held.sampling_frequency / 1000)
        self.near = channels_within(distance, RADIUS_UM, MOST_CHANNELS)

    def measure(self, columns: np.ndarray, channel: int) -> UnitShape:
        """Return the mean waveform of spikes at fractional columns; `channel` is near the unit."""
        at = np.rint(_some(columns, NUM_SPIKES)).astype(np.int64)
        for _ in range(3):
            channels = self.near[channel][self.near[channel] >= 0]
            windows = np.empty((len(at), len(channels), self.length), np.float32)
            cut_windows(self.held.values, at, channels, self.before, windows)
            waveform = np.median(windows, axis=0) * np.float32(UNIT)
            main = int(channels[(waveform**2).sum(axis=1).argmax()])
            if main == channel:
                break
            channel = main
        row = waveform[np.flatnonzero(channels == main)[0]]
        return UnitShape(main, channels, waveform, int(row.argmin()) - self.before)

    def tails(self, unit: UnitShape, columns: np.ndarray) -> np.ndarray:
        """Return what comes before and after a mean waveform: (P, L + 2 * tail), zeros in the middle.

        The filter of the traces spreads a large spike over milliseconds, and its tails look like weak
        spikes. Tails that do not stand out of the noise are zero.
        """
        long = self.whole(columns, unit.channels)
        long[:, self.tail : self.tail + self.length] = 0
        noise = MIN_TAIL_ENERGY * self.tail / max(1, min(len(columns), NUM_TAIL_SPIKES))
        for part in (slice(0, self.tail), slice(self.tail + self.length, None)):
            long[(long[:, part] ** 2).sum(axis=1) < noise, part] = 0
        return long

    def whole(self, columns: np.ndarray, channels: np.ndarray) -> np.ndarray:
        """Return the mean waveform of spikes with what comes before and after: (channels, L + 2 * tail)."""
        at = np.rint(_some(columns, NUM_TAIL_SPIKES)).astype(np.int64)
        long = np.empty((len(channels), self.length + 2 * self.tail), np.float32)
        add_windows(self.held.values, at, channels, self.before + self.tail, long)
        long *= np.float32(UNIT / max(1, len(at)))
        return long

    def far_trough(self, unit: UnitShape, columns: np.ndarray) -> int:
        """Return the samples from spikes to the trough of their mean waveform if it is clear and far, else 0.

        The main channel may hold a large positive peak, so the channel with the lowest sample counts. The
        window of a mean waveform may hold only a part of a spike, so more of it is looked at.
        """
        deepest = unit.channels[unit.waveform.min(axis=1).argmin()]
        row = self.whole(columns, np.array([deepest]))[0]
        here, near = self.tail + self.before, round(NEAR_TROUGH_MS * self.held.sampling_frequency / 1000)
        reach = round(FAR_TROUGH_MS * self.held.sampling_frequency / 1000)
        first = max(0, here - reach)
        lowest = first + int(row[first : here + reach + 1].argmin())
        is_far = abs(lowest - here) > near and row[lowest] == row.min()
        is_clear = -row[lowest] > CLEARLY_DEEPER * -row[here - near : here + near + 1].min()
        return lowest - here if is_far and is_clear and row[lowest] < -1 else 0

    def measure_all(self, columns: np.ndarray, labels: np.ndarray, channels: np.ndarray) -> list[UnitShape]:
        """Return the mean waveform of each label from 0 on; every label must have an event."""
        order = np.argsort(labels, kind="stable")
        bounds = np.searchsorted(labels[order], np.arange(labels.max(initial=-1) + 2))
        members = [order[low:high] for low, high in itertools.pairwise(bounds)]

        def measure(events: np.ndarray) -> UnitShape:
            return self.measure(columns[events], int(np.bincount(channels[events]).argmax()))

        return list(results_in_order(measure, members))


def similarity(one: UnitShape, other: UnitShape, reach: int) -> tuple[float, int]:
    """Return the largest cosine of two mean waveforms over time shifts, and the shift.

    The shift in samples must be added to the other's columns. Channels on which only one of them is known
    count in its size.
    """
    both, mine, others = np.intersect1d(one.channels, other.channels, return_indices=True)
    if not len(both):
        return 0.0, 0
    product, lag = best_lag(one.waveform[mine], other.waveform[others], reach)
    size = one.norm * other.norm
    return (float(product) / size if size > 0 else 0.0), int(lag)


def are_sums(units: list[UnitShape], counts: np.ndarray, reach: int) -> list[bool]:
    """Return which units are no neurons, but two others that often fire together.

    Parameters
    ----------
    units : list of UnitShape
    counts : ndarray of int, shape (num_units,)
        Spikes of each; a sum has far fewer than either of its parts.
    reach : int
        Largest time shift of a part, in samples.
    """
    return [
        _is_sum(
            unit,
            [other for far, other in enumerate(units) if counts[far] * MAX_PART_OF_SPIKES > count],
            reach,
        )
        for unit, count in zip(units, counts, strict=True)
    ]


def _is_sum(unit: UnitShape, others: list[UnitShape], reach: int) -> bool:
    """Return whether a unit's mean waveform is the sum of two others."""
    fits, energy = [], unit.norm**2
    for other in others:
        _, mine, theirs = np.intersect1d(unit.channels, other.channels, return_indices=True)
        if len(mine):
            waveform = np.zeros_like(unit.waveform)
            waveform[mine] = other.waveform[theirs]
            fits.append((float((_without(unit.waveform, waveform, reach) ** 2).sum()), waveform))
    fits.sort(key=lambda fit: fit[0])
    for (_, first), (_, second) in itertools.permutations(fits[:_MOST_PARTS], 2):
        rest = _without(unit.waveform, first, reach)
        both = _without(rest, second, reach)
        again = _without(unit.waveform - (rest - both), first, reach)
        if (again**2).sum() < MAX_REST_OF_SUM * energy:
            return True
    return False


def _without(waveform: np.ndarray, other: np.ndarray, reach: int) -> np.ndarray:
    """Return what another waveform leaves of a waveform (P, L), at its best time shift and amplitude."""
    size = float((other**2).sum())
    if size <= 0:
        return waveform
    product, lag = best_lag(waveform, other, reach)
    moved = np.zeros_like(other)
    length = other.shape[1]
    moved[:, max(0, -lag) : length - max(0, lag)] = other[:, max(0, lag) : length + min(0, lag)]
    amplitude = min(SUM_AMPLITUDES[1], max(SUM_AMPLITUDES[0], float(product) / size))
    return waveform - np.float32(amplitude) * moved


def _some(columns: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many columns, evenly spread."""
    return columns[np.linspace(0, len(columns) - 1, min(len(columns), most)).round().astype(int)]
