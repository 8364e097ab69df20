"""Decide by the traces which units a spike belongs to.

The networks of the units do not know of each other: two units that look alike may both claim a spike, and a
weak spike below a strong one may be missed. So the network only names candidates: peaks of its response far
below the threshold. The mean waveforms of the units (:class:`spikewise.models.unit_waveforms.UnitWaveforms`)
then decide which of them explain the traces best, one unit, another, or both (Franke et al., J. Comput.
Neurosci. 2015, resolve overlaps likewise; a fit without the network sees all units everywhere).

1. The middle part of a candidate's waveform is multiplied with the traces, at some time shifts.
2. From this, what the other spikes within reach contribute is subtracted. The rest gives the candidate's
   amplitude, its time shift to a fraction of a sample, and its gain: the energy that it explains beyond them.
   At first the spikes are those that the network found, each as large as its waveform.
3. A candidate should be a spike if its gain is above a part of its waveform's energy. The network's odds
   count, too. For a spike that the network found, this least gain is lower where little but the spike itself
   is there: so units that have moved, and fit their waveforms less well, keep their spikes.
4. Of rivals, candidates close to each other, whose decision should change, only the one changes that has the
   most to win. So of two units that both claim a spike, one keeps it.

Steps 2 to 4 are done twice, or once with the live filter (:class:`Limits`). So a decision depends on the
candidates within a fixed time around it, and the spikes are the same however a recording is cut.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from spikewise.core.threads import on_all_cores
from spikewise.data.recordings.device_reader import DeviceTraces
from spikewise.data.recordings.reader import TraceReader, Traces
from spikewise.models.unit_waveforms import UnitWaveforms
from spikewise.sorting.detector import SegmentSearch
from spikewise.sorting.owner.loops import (
    MAX_EVIDENCE,
    Candidates,
    Overlaps,
    Rule,
    Waveforms,
    decide,
    fill_overlaps,
    fill_products,
    fill_shape_products,
    fill_waveforms,
)
from spikewise.sorting.owner.unexplained import (
    FOREIGN_ROUNDS,
    Explained,
    fill_unexplained,
    is_foreign,
    orthonormal,
)
from spikewise.sorting.sparse import Tile
from spikewise.sorting.spikes import Spikes

# Chosen by hand on the scenes `plain`, `tetrode` and `drift60` of seed 1, all of the following.
CANDIDATE = 0.2
"""A peak is a candidate above this fraction of its unit's threshold."""
MIDDLE_MS = (1.0, 1.25)
"""Part of a waveform before and after the spike that is compared with the traces."""
LAGS_MS = 0.09375
"""Largest time shift of a candidate."""


class Limits(NamedTuple):
    """How far a decision looks before and after a candidate.

    Attributes
    ----------
    rounds : int
    reach_ms : (float, float)
        Spikes farther away contribute nothing.
    rivals_ms : (float, float)
        Candidates within this time are rivals.
    """

    rounds: int
    reach_ms: tuple[float, float]
    rivals_ms: tuple[float, float]


LIMITS = Limits(2, (2.1875, 2.1875), (0.5, 0.5))
LIVE_LIMITS = Limits(1, (2.1875, 1.0), (0.5, 0.2))
"""With the live filter: a stream waits for all that comes later, once more with each round."""
LEAST_GAIN, LEAST_GAIN_ALONE = 0.15, 0.08
"""Least gains relative to the energy of the waveform, of which a perfect spike explains 0.5."""
WEIGHTS_OF_ODDS = (24.0, 4.0)
"""Of candidates below the threshold, and above it. The first is high, because where units have moved, what
is left of a strong spike looks like a weak one of another unit."""
PRICES = (10.0, 2.0)
"""Gains that such candidates must have in any case, in noise variances / 2."""
SPREAD = 0.14
"""Usual deviation of the amplitudes of a unit's spikes from 1."""
AMPLITUDES = (0.6, 1.4)
"""Smallest and largest amplitude."""
_VALUES = 2**24
"""Samples times channels that are looked at together."""
_PIECE = 8192
"""Samples that are read at once: mostly a view of the samples that the reader keeps."""


class OwnerRule:
    """What decides about the candidates of one group of channels.

    Parameters
    ----------
    waveforms : UnitWaveforms
    thresholds : ndarray
        (num_units,) of the network's responses.
    sampling_frequency : float
        In Hz.
    noise : float or None
        Mean energy of noise in a projection of the traces on a temporal shape. If it is given, spikes are
        left out of which the units explain too little (:mod:`spikewise.sorting.owner.unexplained`).
    is_live : bool
        Whether it looks less far ahead, so that a stream waits less.

    Attributes
    ----------
    thresholds, lowest : ndarray of float32
        (num_units,) thresholds of spikes, and of candidates.
    margins : (int, int)
        Samples before and after a stretch whose candidates decide about those within it.
    before, after : int
        Samples around a candidate that are compared with its waveform.
    num_lags : int
        Time shifts at which they are compared.
    """

    def __init__(
        self,
        waveforms: UnitWaveforms,
        thresholds: np.ndarray,
        sampling_frequency: float,
        noise: float | None = None,
        is_live: bool = False,
    ):
        self.thresholds = np.asarray(thresholds, np.float32)
        self._odds_of_thresholds = _log_odds(self.thresholds)
        self.lowest = (CANDIDATE * self.thresholds).astype(np.float32)

        def samples(duration_ms: float) -> int:
            return max(1, round(duration_ms * sampling_frequency / 1000))

        limits = LIVE_LIMITS if is_live else LIMITS
        self.rule = Rule(
            max(2, samples(LAGS_MS)),
            (samples(limits.reach_ms[0]), samples(limits.reach_ms[1])),
            (samples(limits.rivals_ms[0]), samples(limits.rivals_ms[1])),
            limits.rounds,
            LEAST_GAIN,
            LEAST_GAIN_ALONE,
            WEIGHTS_OF_ODDS,
            PRICES,
            SPREAD,
            *AMPLITUDES,
        )
        (before, after), (rivals_before, rivals_after) = self.rule.reach, self.rule.rivals
        self.margins = (
            limits.rounds * (before + rivals_before),
            limits.rounds * (after + rivals_after),
        )
        before = min(samples(MIDDLE_MS[0]), waveforms.before)
        length = min(before + samples(MIDDLE_MS[1]), waveforms.shapes.shape[1] - waveforms.before + before)
        self.before, self.after = before + self.rule.lags, length - before + self.rule.lags
        self.num_lags = 2 * self.rule.lags + 1
        whole = _whole(waveforms)
        self.waveforms = _middles(waveforms, whole, before, length)
        self._whole, self._ahead, self._noise = whole, waveforms.before, noise
        skipped = waveforms.before - before
        self._basis = orthonormal(waveforms.shapes[:, skipped : skipped + length])
        reach = max(self.rule.reach)
        if noise is not None:  # whether a spike is foreign depends on those within reach
            earlier, later = self.margins
            self.margins = earlier + FOREIGN_ROUNDS * reach, later + FOREIGN_ROUNDS * reach
        self.overlaps = _overlaps(waveforms, self.waveforms, reach + 2 * self.rule.lags)

    def keep_read(self, traces: Traces) -> None:
        """Let a reader keep what is read twice: by the network, and to decide."""
        if isinstance(traces, TraceReader):
            traces.keep(samples_at_once(traces) + sum(self.margins) + _PIECE + self.before + self.after)

    def resolve(self, found: Spikes, read: Callable[[int, int], np.ndarray]) -> Spikes:
        """Return the candidates that are spikes.

        Parameters
        ----------
        found : Spikes
            Candidates.
        read : callable
            Returns the traces (num_samples, num_channels) from a sample to another, as the network sees them.
        """
        return found.chosen(self.decisions(found, read, np.zeros(len(found), bool)))

    def decisions(
        self, found: Spikes, read: Callable[[int, int], np.ndarray], is_sure: np.ndarray
    ) -> np.ndarray:
        """Return which of the candidates (num_candidates,) are spikes; see :meth:`resolve`.

        `is_sure` are candidates that count as found by the network, whatever their responses.
        """
        products = np.empty((len(found), self.num_lags), np.float32)
        pieces = found.sample_index // _PIECE
        bounds = np.flatnonzero(np.diff(pieces, prepend=-1, append=-1)).tolist()
        tiles = []
        for first in bounds[:-1]:
            begin = int(pieces[first]) * _PIECE - self.before
            tiles.append((begin, Tile.of(read(begin, begin + _PIECE + self.before + self.after))))

        def fill(number: int) -> None:
            one = slice(bounds[number], bounds[number + 1])
            self.multiply(found.sample_index[one], found.unit_index[one], tiles[number], products[one])

        on_all_cores(fill, range(len(tiles)))
        is_spike, amplitude, shift = self._decide(found, products, is_sure)
        for _ in range(0 if self._noise is None else FOREIGN_ROUNDS):
            self._drop_foreign(found, is_spike, (amplitude, shift), tiles)
        return is_spike

    def multiply(
        self, samples: np.ndarray, units: np.ndarray, traces: tuple[int, Tile], products: np.ndarray
    ) -> None:
        """Fill the products of candidates with the traces.

        Parameters
        ----------
        samples, units : ndarray of int64
            (num_candidates,)
        traces : (int, Tile)
            The first sample of a tile, and the tile: it holds `before` and `after` samples around each.
        products : ndarray of float32
            (num_candidates, num_lags); filled.
        """
        begin, tile = traces
        fill_products((tile.values, tile.step), samples - begin, units, self.waveforms, products)

    def decide(self, found: Spikes, products: np.ndarray) -> np.ndarray:
        """Return which candidates are spikes, (num_candidates,) bool, from their products with the traces."""
        return self._decide(found, products, np.zeros(len(found), bool))[0]

    def _decide(
        self, found: Spikes, products: np.ndarray, is_sure: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return which candidates are spikes, their amplitudes and time shifts; (num_candidates,) each."""
        odds = _log_odds(found.response) - self._odds_of_thresholds[found.unit_index]
        odds = np.where(is_sure, np.maximum(odds, 0), odds)
        is_found = is_sure | (found.response > self.thresholds[found.unit_index])
        candidates = Candidates(found.sample_index, found.unit_index, odds, is_found, products)
        return decide(candidates, self.overlaps, self.rule)

    def _drop_foreign(
        self,
        found: Spikes,
        is_spike: np.ndarray,
        fit: tuple[np.ndarray, np.ndarray],
        tiles: list[tuple[int, Tile]],
    ) -> None:
        """Drop the spikes of which the units explain too little: change `is_spike`."""
        samples, units = found.sample_index[is_spike], found.unit_index[is_spike].astype(np.int64)
        amplitude, shift = (values[is_spike] for values in fit)
        shift = np.rint(shift).astype(np.int64)
        unexplained = np.zeros(len(samples))
        waveforms = self.waveforms, self._whole, self._ahead

        def fill(number: int) -> None:
            begin, tile = tiles[number]
            first = begin + self.before
            low, high = np.searchsorted(samples, (first, first + _PIECE))
            spikes = Explained(samples - begin, units, amplitude, shift)
            fill_unexplained(
                (tile.values, tile.step),
                (int(low), int(high)),
                spikes,
                waveforms,
                self._basis,
                max(self.rule.reach),
                unexplained,
            )

        on_all_cores(fill, range(len(tiles)))
        num_values = self.waveforms.counts[units] * len(self._basis)
        energy = amplitude**2 * self.overlaps.energy[units]
        assert self._noise is not None
        foreign = is_foreign(unexplained, num_values, self._noise, energy)
        is_spike[np.flatnonzero(is_spike)[foreign]] = False


class OwnerSearch:
    """A search whose spikes are decided by the traces.

    Parameters
    ----------
    search : SegmentSearch
        Finds the candidates: its thresholds are the lowest ones of the rule.
    rule : OwnerRule
    traces : Traces
    segment_index : int
    """

    def __init__(self, search: SegmentSearch, rule: OwnerRule, traces: Traces, segment_index: int):
        self._search, self._rule, self._traces = search, rule, traces
        self._segment_index = segment_index
        self._at_once = samples_at_once(traces)
        rule.keep_read(traces)

    def find(self, start: int, stop: int) -> Spikes:
        """Find the spikes with ``start <= sample_index < stop``."""
        return Spikes.concatenate(
            [
                self._find(begin, min(begin + self._at_once, stop))
                for begin in range(start, stop, self._at_once)
            ]
        )

    def _find(self, start: int, stop: int) -> Spikes:
        rule, length = self._rule, self._traces.num_samples(self._segment_index)
        low, high = max(0, start - rule.margins[0]), min(length, stop + rule.margins[1])
        candidates = self._search.find(low, high)
        if not len(candidates):
            return candidates
        spikes = rule.resolve(candidates, reading_of(self._traces, self._segment_index))
        return spikes.chosen((spikes.sample_index >= start) & (spikes.sample_index < stop))


def samples_at_once(traces: Traces) -> int:
    """Return the number of samples that are looked at together."""
    return max(1, _VALUES // traces.num_channels)


def reading_of(traces: Traces, segment_index: int) -> Callable[[int, int], np.ndarray]:
    """Return what reads the traces (num_samples, num_channels) of a segment as the network sees them."""

    def read(start: int, stop: int) -> np.ndarray:
        if isinstance(traces, DeviceTraces):
            return traces.read_on_device(segment_index, start, stop, stop).cpu().numpy().T
        return traces.read(segment_index, start, stop)

    return read


def _log_odds(response: np.ndarray) -> np.ndarray:
    """Return the logarithms of the odds of responses, which may be a little above 1."""
    share = np.clip(response.astype(np.float64), 1 - MAX_EVIDENCE, MAX_EVIDENCE)
    return np.log(share) - np.log1p(-share)


def _whole(waveforms: UnitWaveforms) -> np.ndarray:
    """Return the waveforms (U, M, S)."""
    whole = np.empty((*waveforms.weights.shape[:2], waveforms.shapes.shape[1]), np.float32)
    fill_waveforms(waveforms.weights, waveforms.shapes, whole)
    return whole


def _middles(waveforms: UnitWaveforms, whole: np.ndarray, before: int, length: int) -> Waveforms:
    skipped = waveforms.before - before
    middles = np.ascontiguousarray(whole[:, :, skipped : skipped + length])
    counts = (waveforms.channel_index >= 0).sum(axis=1)
    return Waveforms(waveforms.channel_index, counts, middles, before)


def _overlaps(waveforms: UnitWaveforms, middles: Waveforms, most: int) -> Overlaps:
    """Return the overlaps of all units that share channels, at shifts of up to `most` samples."""
    num_units, num_shapes = len(waveforms.channel_index), len(waveforms.shapes)
    shape_products = np.empty((2 * most + 1, num_shapes, num_shapes), np.float32)
    skipped, length = waveforms.before - middles.before, middles.middles.shape[2]
    fill_shape_products(waveforms.shapes, skipped, length, shape_products)
    sees = np.zeros((num_units, int(waveforms.channel_index.max(initial=0)) + 1), np.float32)
    for unit, channels in enumerate(waveforms.channel_index):
        sees[unit, channels[channels >= 0]] = 1
    pairs = np.argwhere(sees @ sees.T > 0)
    products = np.empty((len(pairs), 2 * most + 1), np.float32)

    def fill(first: int) -> None:
        part = slice(first, first + 64)
        fill_overlaps(pairs[part], waveforms.channel_index, waveforms.weights, shape_products, products[part])

    on_all_cores(fill, range(0, len(pairs), 64))
    pair = np.full((num_units, num_units), -1, np.int32)
    pair[pairs[:, 0], pairs[:, 1]] = np.arange(len(pairs))
    own, energy = np.diagonal(pair), np.zeros(num_units)
    energy[own >= 0] = products[own[own >= 0], most]
    return Overlaps(pair, products, energy)
