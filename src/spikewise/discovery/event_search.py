"""Find events that may be spikes: responses of a bank of shapes, summed over time and over near channels.

A threshold on single channels misses units whose trough is two or three noise deviations high, though they
stand far out of the noise once all their samples and channels are added (matched filters: Franke et al., J.
Comput. Neurosci. 2015). So each channel is filtered by each shape of the bank. The results are added over
near channels with Gaussian weights of several widths, and divided by their own noise. An event is a peak of
the largest of these responses, in time and over near channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spikewise.core.threads import results_in_order
from spikewise.discovery.event_loops import BLOCK, filter_channels, find_peaks, largest_responses
from spikewise.discovery.held_traces import HeldTraces
from spikewise.discovery.neighbours import channels_within
from spikewise.discovery.spike_shapes import SpikeShapes

WIDTHS_UM = (0.0, 18.0, 36.0)
"""Standard deviations of the Gaussian weights; 0: the channel alone. Chosen by hand."""
SMALLEST_WEIGHT = 0.08
"""Channels with a smaller weight, relative to the nearest, are left out. Chosen by hand."""
MOST_NEAR = 24
"""Most channels of a sum; on dense probes evenly spread ones."""
RIVALS_UM = 50.0
"""Distance within which one event suppresses smaller ones; chosen by hand."""
RIVALS_MS = 0.5
"""Time within which one event suppresses smaller ones; chosen by hand."""
SEARCH_HZ = 16000.0
"""Responses are computed at about this rate; the traces hold little above 6000 Hz."""
BLOCKS_AT_ONCE = 32
"""Blocks of outputs of one call."""
_NOISE_VALUES = 6_000_000
"""Responses from which their noise is measured, in all."""


@dataclass(frozen=True)
class Events:
    """Possible spikes, in order of time.

    Attributes
    ----------
    column : ndarray of float64, shape (num_events,)
        Fractional column of the trough.
    channel : ndarray of int64, shape (num_events,)
        Channel with the largest response.
    height : ndarray of float32, shape (num_events,)
        Response, in noise standard deviations.
    """

    column: np.ndarray
    channel: np.ndarray
    height: np.ndarray

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.column)


class EventSearch:
    """Searches events in traces.

    Parameters
    ----------
    held : HeldTraces
    distance : ndarray, shape (num_channels, num_channels)
        Distances of the channels in um.
    shapes : SpikeShapes
    """

    def __init__(self, held: HeldTraces, distance: np.ndarray, shapes: SpikeShapes):
        self._held = held
        self._step = max(1, round(held.sampling_frequency / SEARCH_HZ))
        bank = shapes.bank[:, shapes.before % self._step :: self._step]
        self._bank = np.ascontiguousarray(bank / np.linalg.norm(bank, axis=1, keepdims=True))
        self._before = shapes.before // self._step * self._step
        widest = max(WIDTHS_UM) * np.sqrt(-2 * np.log(SMALLEST_WEIGHT))
        near = channels_within(distance, widest, MOST_NEAR)
        self._weights = _weights(distance, near)
        self._near = np.where(near < 0, 0, near)
        self._rivals = channels_within(distance, RIVALS_UM, held.num_channels)
        self._reach = max(1, round(RIVALS_MS * held.sampling_frequency / 1000 / self._step))
        self._scale = self._inverse_noise()

    def find(self, threshold: float) -> Events:
        """Return the events whose response is above the threshold, in noise standard deviations."""
        span = BLOCK * BLOCKS_AT_ONCE * self._step
        taps = self._bank.shape[1] * self._step
        margin = (self._reach + 2) * self._step
        last = self._held.num_columns - taps - margin
        starts = range(margin, max(margin + 1, last), span)

        def search(start: int) -> Events:
            return self._search(start, min(span, last - start) // self._step, np.float32(threshold))

        found = list(results_in_order(search, starts))
        column = np.concatenate([events.column for events in found])
        channel = np.concatenate([events.channel for events in found])
        order = np.lexsort((channel, column))
        height = np.concatenate([events.height for events in found])
        return Events(column[order], channel[order], height[order])

    def _search(self, start: int, num_outputs: int, threshold: np.float32) -> Events:
        """Return the events of some outputs from a column on; more outputs on both sides are looked at."""
        pad = self._reach + 2
        first = start - pad * self._step
        total = max(0, num_outputs) + 2 * pad
        num_channels = self._held.num_channels
        response = np.empty((num_channels, total), np.float32)
        filtered = np.empty((len(self._bank), num_channels, BLOCK), np.float32)
        for begin in range(0, total, BLOCK):
            count = min(BLOCK, total - begin)
            at = first + begin * self._step
            filter_channels(self._held.values, at, self._step, self._bank, filtered, count)
            best = response[:, begin : begin + count]
            largest_responses(filtered, self._near, self._weights, self._scale, best, count)
        most = 64 + num_channels * num_outputs // 8
        channels, positions = np.empty(most, np.int64), np.empty(most, np.float64)
        heights = np.empty(most, np.float32)
        count = find_peaks(
            response, self._rivals, threshold, self._reach, (pad, total - pad), (channels, positions, heights)
        )
        columns = first + positions[:count] * self._step + self._before
        return Events(columns, channels[:count], heights[:count])

    def _inverse_noise(self) -> np.ndarray:
        """Return the inverse noise (C, K, W) of the responses: from medians of evenly spread blocks."""
        num_shapes, num_channels, num_widths = (
            len(self._bank),
            self._held.num_channels,
            self._weights.shape[1],
        )
        taps = self._bank.shape[1] * self._step
        room = self._held.num_columns - BLOCK * self._step - taps
        pieces = max(2, min(24, _NOISE_VALUES // (num_channels * BLOCK * num_shapes)))
        filtered = np.empty((num_shapes, num_channels, BLOCK), np.float32)
        samples = np.empty((pieces, num_shapes, num_channels, BLOCK), np.float32)
        length = min(BLOCK, max(1, room // self._step))
        for piece, start in enumerate(np.linspace(0, max(0, room), pieces).astype(int)):
            filter_channels(self._held.values, int(start), self._step, self._bank, filtered, length)
            samples[piece] = filtered
        scale = np.empty((num_channels, num_shapes, num_widths), np.float32)
        for width in range(num_widths):
            for channel in range(num_channels):
                of = self._near[channel]
                summed = np.tensordot(samples[:, :, of, :length], self._weights[channel, width], axes=(2, 0))
                noise = np.median(np.abs(summed), axis=(0, 2)) / 0.6745
                scale[channel, :, width] = np.where(noise > 0, 1 / np.maximum(noise, 1e-9), 0)
        return scale


def _weights(distance: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the weights (C, W, P) of near channels, with a sum of squares of 1; equal ones once."""
    kept: list[np.ndarray] = []
    for width in WIDTHS_UM:
        far = np.take_along_axis(distance, np.maximum(near, 0), axis=1)
        weights = np.exp(-0.5 * (far / width) ** 2) if width else (far == far[:, :1]) & (near == near[:, :1])
        weights = np.where((near >= 0) & (weights >= SMALLEST_WEIGHT), weights, 0.0)
        weights = (weights / np.linalg.norm(weights, axis=1, keepdims=True)).astype(np.float32)
        if not any(np.array_equal(weights, other) for other in kept):
            kept.append(weights)
    return np.ascontiguousarray(np.stack(kept, axis=1))
