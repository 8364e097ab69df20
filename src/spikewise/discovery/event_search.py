"""Find events that may be spikes: responses of a bank of shapes, summed over time and over near channels.

A threshold on single channels misses units whose trough is two or three noise deviations high, though they
stand far out of the noise once all their samples and channels are added (matched filters: Franke et al., J.
Comput. Neurosci. 2015). So each channel is filtered by each shape of the bank. The results are added over
near channels with Gaussian weights of several widths, and divided by their own noise. An event is a peak of
the largest of these responses, in time and over near channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from spikewise.core.progress import Tell
from spikewise.core.threads import results_in_order
from spikewise.data.recordings.reader import TraceReader, Traces
from spikewise.discovery.event_loops import (
    BLOCK,
    NUM_WIDTHS,
    filter_channels,
    find_peaks,
    largest_responses,
    mark_clean,
    unit_responses,
)
from spikewise.discovery.held_traces import HeldTraces
from spikewise.discovery.neighbours import channels_within, distances
from spikewise.discovery.peeling import PackedUnits
from spikewise.discovery.spike_shapes import SpikeShapes, load_shapes

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
CLEAN_MS, CLEAN_UM, CLEAN_RATIO = 1.0, 150.0, 2.5
"""An event is not clean if there is one, within this time and distance, that is so many times larger. Chosen
by hand on simulations of 16 channels and on `plain` of seed 1."""
SEARCH_HZ = 16000.0
"""Responses are computed at about this rate; the traces hold little above 6000 Hz."""
NUM_UNIT_SHAPES = 4
"""Temporal shapes whose sums stand for the waveforms of all units; the loops are written for so many."""
UNIT_ENERGY = 0.95
"""Part of a unit's energy that is on the channels on which its spikes are searched. Chosen by hand."""
NOISE_FLOOR = 0.1
"""Noise of each channel alone, beside that which channels share. Chosen on `jump40` of seed 1."""
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

    def clean(self, distance: np.ndarray, sampling_frequency: float) -> Events:
        """Return the events without those that may belong to a much larger one nearby.

        A large spike gives more events: before and after its trough, and on channels farther away. They come
        from several neurons, so clusters of them look like mixtures, and join what is not one neuron.
        """
        is_clean = np.empty(len(self), bool)
        limits = CLEAN_MS * sampling_frequency / 1000, CLEAN_UM, CLEAN_RATIO
        mark_clean(self.column, self.channel, self.height, distance, limits, is_clean)
        return Events(self.column[is_clean], self.channel[is_clean], self.height[is_clean])

    def above(self, threshold: float) -> Events:
        """Return the events with at least such a response."""
        chosen = self.height >= threshold
        return Events(self.column[chosen], self.channel[chosen], self.height[chosen])


class _Search:
    """Searches peaks of responses: weighted sums of filtered channels, each divided by its own noise.

    Parameters
    ----------
    held : HeldTraces
    bank : ndarray of float32, shape (K, L)
        Filters.
    before : int
        Samples of a filter ahead of the event.
    rivals : ndarray, shape (num_rows, P)
        For each row of responses the rows that an event suppresses nearby in time; then -1.
    """

    def __init__(self, held: HeldTraces, bank: np.ndarray, before: int, rivals: np.ndarray):
        self._held, self._rivals = held, rivals
        self._step = search_step(held)
        self._bank = np.ascontiguousarray(bank[:, before % self._step :: self._step], np.float32)
        self._before = before // self._step * self._step
        self._reach = max(1, round(RIVALS_MS * held.sampling_frequency / 1000 / self._step))

    def find(
        self, threshold: float, tell: Tell | None = None, within: Sequence[tuple[int, int]] | None = None
    ) -> Events:
        """Return the events whose response is above the threshold, in noise standard deviations.

        By default all columns are searched; else those from the first to the last of each pair `within`.
        """
        span = BLOCK * BLOCKS_AT_ONCE * self._step
        taps = self._bank.shape[1] * self._step
        margin = (self._reach + 2) * self._step
        last = max(margin + 1, self._held.num_columns - taps - margin)
        pieces = [
            (start, min(start + span, stop, last))
            for first, stop in within or ((margin, last),)
            for start in range(max(margin, first), min(stop, last), span)
        ]

        def search(piece: tuple[int, int]) -> Events:
            return self._search(piece[0], (piece[1] - piece[0]) // self._step, np.float32(threshold))

        found = list(results_in_order(search, pieces, tell))
        column = np.concatenate([events.column for events in found])
        row = np.concatenate([events.channel for events in found])
        order = np.lexsort((row, column))
        height = np.concatenate([events.height for events in found])
        return Events(column[order], self._channels_of(row[order]), height[order])

    def in_other(self, held: HeldTraces) -> Self:
        """Return the same search, with the same noise, in other traces of the recording."""
        other = copy.copy(self)
        other._held = held
        return other

    def _channels_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the channels of rows of responses."""
        return rows

    def _fill(self, filtered: np.ndarray, best: np.ndarray, num_outputs: int) -> None:
        """Fill the responses (num_rows, outputs) from the filtered channels (K, C, outputs)."""
        raise NotImplementedError

    def _search(self, start: int, num_outputs: int, threshold: np.float32) -> Events:
        """Return the events of some outputs from a column on; more outputs on both sides are looked at."""
        pad = self._reach + 2
        first = start - pad * self._step
        total = max(0, num_outputs) + 2 * pad
        num_rows = len(self._rivals)
        response = np.empty((num_rows, total), np.float32)
        filtered = np.empty((len(self._bank), self._held.num_channels, BLOCK), np.float32)
        for begin in range(0, total, BLOCK):
            count = min(BLOCK, total - begin)
            at = first + begin * self._step
            filter_channels(self._held.values, at, self._step, self._bank, filtered, count)
            self._fill(filtered, response[:, begin : begin + count], count)
        most = 64 + num_rows * num_outputs // 8
        rows, positions = np.empty(most, np.int64), np.empty(most, np.float64)
        heights = np.empty(most, np.float32)
        count = find_peaks(
            response, self._rivals, threshold, self._reach, (pad, total - pad), (rows, positions, heights)
        )
        columns = first + positions[:count] * self._step + self._before
        return Events(columns, rows[:count], heights[:count])

    def _samples(self, values_per_output: int) -> np.ndarray:
        """Return filtered channels (pieces, K, C, outputs) of evenly spread blocks, to measure the noise."""
        taps = self._bank.shape[1] * self._step
        room = self._held.num_columns - BLOCK * self._step - taps
        pieces = max(2, min(24, _NOISE_VALUES // (values_per_output * BLOCK)))
        filtered = np.empty((len(self._bank), self._held.num_channels, BLOCK), np.float32)
        length = min(BLOCK, max(1, room // self._step))
        samples = np.empty((pieces, *filtered.shape[:2], length), np.float32)
        for piece, start in enumerate(np.linspace(0, max(0, room), pieces).astype(int)):
            filter_channels(self._held.values, int(start), self._step, self._bank, filtered, length)
            samples[piece] = filtered[:, :, :length]
        return samples


class EventSearch(_Search):
    """Searches events of any unit: responses to a bank of shapes, a row for each channel.

    Parameters
    ----------
    held : HeldTraces
    distance : ndarray, shape (num_channels, num_channels)
        Distances of the channels in um.
    shapes : SpikeShapes
    """

    def __init__(self, held: HeldTraces, distance: np.ndarray, shapes: SpikeShapes):
        rivals = channels_within(distance, RIVALS_UM, held.num_channels)
        super().__init__(held, shapes.bank, shapes.before, rivals)
        self._bank /= np.linalg.norm(self._bank, axis=1, keepdims=True)
        widest = max(WIDTHS_UM) * np.sqrt(-2 * np.log(SMALLEST_WEIGHT))
        near = channels_within(distance, widest, MOST_NEAR)
        near = np.pad(
            near, ((0, 0), (0, 1)), constant_values=-1
        )  # at least one channel is in the widest sum only
        self._weights = _weights(distance, near)
        used = (self._weights > 0).sum(axis=1)  # C, W: the nearest ones
        of_all = used[:, :-1].max(axis=1)
        self._used = np.stack([of_all, np.maximum(used[:, -1], of_all + 1)], axis=1)
        self._near = np.where(near < 0, 0, near)
        self._scale = self._inverse_noise()

    def _fill(self, filtered: np.ndarray, best: np.ndarray, num_outputs: int) -> None:
        """Fill the largest response of each channel over shapes and widths."""
        largest_responses(filtered, self._near, self._used, self._weights, self._scale, best, num_outputs)

    def _inverse_noise(self) -> np.ndarray:
        """Return the inverse noise (C, K, W) of the responses: from medians of evenly spread blocks."""
        num_channels = self._held.num_channels
        samples = self._samples(num_channels * len(self._bank))
        scale = np.empty((num_channels, len(self._bank), NUM_WIDTHS), np.float32)
        for channel in range(num_channels):
            summed = np.tensordot(samples[:, :, self._near[channel]], self._weights[channel], axes=(2, 0))
            scale[channel] = _inverse_deviation(summed, (0, 2))
        return scale


class UnitSearch(_Search):
    """Searches spikes of known units: a row for each unit, the response to its mean waveform.

    The waveforms of all units are sums of a few temporal shapes, so each channel is filtered only by these.

    Parameters
    ----------
    held : HeldTraces
    distance : ndarray, shape (num_channels, num_channels)
        Distances of the channels in um.
    units : PackedUnits
    """

    def __init__(self, held: HeldTraces, distance: np.ndarray, units: PackedUnits):
        units = units._replace(waveforms=_decorrelated(held, distance, units))
        waveforms = units.waveforms.reshape(-1, units.waveforms.shape[2])
        shapes = np.linalg.svd(waveforms.T @ waveforms)[2][:NUM_UNIT_SHAPES]
        self._main = units.channels[:, 0]
        rivals = channels_within(distance[np.ix_(self._main, self._main)], RIVALS_UM, len(self._main))
        super().__init__(held, shapes, units.before, rivals)
        energy = np.cumsum((units.waveforms**2).sum(axis=2), axis=1)  # nearly all on the first channels
        self._counts = (energy < UNIT_ENERGY * energy[:, -1:]).sum(axis=1) + 1
        self._channels = units.channels
        self._weights = (waveforms @ shapes.T).reshape(*units.waveforms.shape[:2], -1)
        self._scale = np.ones(len(self._main), np.float32)
        samples = self._samples(len(self._main))
        responses = np.empty((len(samples), len(self._main), samples.shape[3]), np.float32)
        for filtered, response in zip(samples, responses, strict=True):
            self._fill(filtered, response, samples.shape[3])
        self._scale = _inverse_deviation(responses, (0, 2)).astype(np.float32)

    def _channels_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the main channels of units."""
        return self._main[rows]

    def _fill(self, filtered: np.ndarray, best: np.ndarray, num_outputs: int) -> None:
        """Fill the response of each unit."""
        unit_responses(filtered, self._channels, self._counts, self._weights, self._scale, best, num_outputs)


THRESHOLD = 5.0
"""Smallest response of an event, in noise standard deviations. Chosen by hand on `plain` and `tetrode`."""


@dataclass(frozen=True)
class FirstLook:
    """All traces of a short recording, and the events in them: motion and units are searched in both.

    Attributes
    ----------
    held : HeldTraces
    search : EventSearch or None
        None: nothing was searched in these traces.
    events : Events
        Those whose response is above THRESHOLD.
    """

    held: HeldTraces
    search: EventSearch | None
    events: Events

    def still(self, traces: Traces) -> FirstLook:
        """Hold traces without their motion in place of these; what was found before is not true of them."""
        self.held.fill(traces)
        if isinstance(traces, TraceReader):
            traces.read_from(self.held)
        return FirstLook(self.held, None, self.events.above(np.inf))


def look_at(traces: Traces, positions: np.ndarray, tell_read: Tell, tell_found: Tell) -> FirstLook:
    """Hold all traces of a recording, and find their events.

    Parameters
    ----------
    traces : Traces
        In noise standard deviations; at most MEMORY_BYTES as 16-bit integers.
    positions : ndarray, shape (num_channels, 2 or 3)
        Positions of the contacts in um.
    tell_read, tell_found : callable
        Called with the work that is done and the whole, while traces are read and searched.
    """
    held = HeldTraces(traces, tell=tell_read, serves=True)
    search = EventSearch(held, distances(positions), load_shapes(traces.sampling_frequency))
    return FirstLook(held, search, search.find(THRESHOLD, tell_found))


def _decorrelated(held: HeldTraces, distance: np.ndarray, units: PackedUnits) -> np.ndarray:
    """Return the mean waveforms (U, M, L) as filters that count noise which near channels share less.

    These are the matched filters for such noise. Where motion is removed, the traces are not whitened, and
    weak units that are wide stand out of the noise only so.
    """
    correlation = held.noise_correlation(distance)
    if correlation is None:
        return units.waveforms
    filters = units.waveforms.copy()
    for unit, count in enumerate(units.counts):
        channels = units.channels[unit, :count]
        noise = correlation[np.ix_(channels, channels)] + NOISE_FLOOR * np.eye(count)
        filters[unit, :count] = np.linalg.solve(noise, filters[unit, :count])
    return filters


def search_step(held: HeldTraces) -> int:
    """Return the number of samples between two responses."""
    return max(1, round(held.sampling_frequency / SEARCH_HZ))


def _inverse_deviation(values: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the inverse of the standard deviation of the noise, from the median; 0 where there is none."""
    noise = np.median(np.abs(values), axis=axes) / 0.6745
    return np.where(noise > 0, 1 / np.maximum(noise, 1e-9), 0)


def _weights(distance: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the weights (C, P, W) of near channels, with a sum of squares of 1; the nearest come first."""
    far = np.take_along_axis(distance, np.maximum(near, 0), axis=1)
    weights = np.empty((*near.shape, NUM_WIDTHS), np.float32)
    for index, width in enumerate(WIDTHS_UM):
        gaussian = np.exp(-0.5 * (far / width) ** 2) if width else np.arange(near.shape[1]) == 0
        kept = np.where((near >= 0) & (gaussian >= SMALLEST_WEIGHT), gaussian, 0.0)
        weights[:, :, index] = kept / np.linalg.norm(kept, axis=1, keepdims=True)
    return weights
