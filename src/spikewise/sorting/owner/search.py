"""Decide by the traces which units a spike belongs to.

The networks of the units do not know of each other: two units that look alike may both claim a spike, and a
weak spike below a strong one may be missed. So the network only names candidates: peaks of its response far
below the threshold. The mean waveforms of the units (:class:`spikewise.models.unit_waveforms.UnitWaveforms`)
then decide which of them explain the traces best, one unit, another, or both (Franke et al., J. Comput.
Neurosci. 2015, resolve overlaps likewise; a fit without the network sees all units everywhere).

1. The middle part of a candidate's waveform is multiplied with the traces, at some time shifts.
2. From this, what the other spikes within `REACH_MS` contribute is subtracted. The rest gives the candidate's
   amplitude, its time shift to a fraction of a sample, and its gain: the energy that it explains beyond them.
   At first the spikes are those that the network found, each as large as its waveform.
3. A candidate should be a spike if its gain is above a part of its waveform's energy. The network's odds
   count, too. For a spike that the network found, this least gain is lower where little but the spike itself
   is there: so units that have moved, and fit their waveforms less well, keep their spikes.
4. Of the candidates within `RIVALS_MS` of each other whose decision should change, only the one changes that
   has the most to win. So of two units that both claim a spike, one keeps it.

Steps 2 to 4 are done `ROUNDS` times. So a decision depends on the candidates within a fixed time around it,
and the spikes are the same however a recording is cut.
"""

from __future__ import annotations

from collections.abc import Callable

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
from spikewise.sorting.sparse import Tile
from spikewise.sorting.spikes import Spikes

# Chosen by hand on the scenes `plain`, `tetrode` and `drift60` of seed 1, all of the following.
CANDIDATE = 0.2
"""A peak is a candidate above this fraction of its unit's threshold."""
MIDDLE_MS = (1.0, 1.25)
"""Part of a waveform before and after the spike that is compared with the traces."""
LAGS_MS = 0.09375
"""Largest time shift of a candidate."""
REACH_MS = 2.1875
"""Spikes farther from a candidate contribute nothing to it."""
RIVALS_MS = 0.5
"""Candidates within this time are rivals."""
ROUNDS = 2
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

    Attributes
    ----------
    thresholds, lowest : ndarray of float32
        (num_units,) thresholds of spikes, and of candidates.
    margin : int
        Samples to either side of a stretch whose candidates decide about those within it.
    before, after : int
        Samples around a candidate that are compared with its waveform.
    """

    def __init__(self, waveforms: UnitWaveforms, thresholds: np.ndarray, sampling_frequency: float):
        self.thresholds = np.asarray(thresholds, np.float32)
        self.lowest = (CANDIDATE * self.thresholds).astype(np.float32)

        def samples(duration_ms: float) -> int:
            return max(1, round(duration_ms * sampling_frequency / 1000))

        self.rule = Rule(
            max(2, samples(LAGS_MS)),
            samples(REACH_MS),
            samples(RIVALS_MS),
            ROUNDS,
            LEAST_GAIN,
            LEAST_GAIN_ALONE,
            WEIGHTS_OF_ODDS,
            PRICES,
            SPREAD,
            *AMPLITUDES,
        )
        self.margin = self.rule.rounds * (self.rule.reach + self.rule.rivals)
        before = min(samples(MIDDLE_MS[0]), waveforms.before)
        length = min(before + samples(MIDDLE_MS[1]), waveforms.shapes.shape[1] - waveforms.before + before)
        self.before, self.after = before + self.rule.lags, length - before + self.rule.lags
        self.waveforms = _middles(waveforms, before, length)
        self.overlaps = _overlaps(waveforms, self.waveforms, self.rule.reach + 2 * self.rule.lags)

    def keep_read(self, traces: Traces) -> None:
        """Let a reader keep what is read twice: by the network, and to decide."""
        if isinstance(traces, TraceReader):
            traces.keep(samples_at_once(traces) + 2 * self.margin + _PIECE + self.before + self.after)

    def resolve(self, found: Spikes, read: Callable[[int, int], np.ndarray]) -> Spikes:
        """Return the candidates that are spikes.

        Parameters
        ----------
        found : Spikes
            Candidates.
        read : callable
            Returns the traces (num_samples, num_channels) from a sample to another, as the network sees them.
        """
        return _chosen(found, self.decisions(found, read, np.zeros(len(found), bool)))

    def decisions(
        self, found: Spikes, read: Callable[[int, int], np.ndarray], is_sure: np.ndarray
    ) -> np.ndarray:
        """Return which of the candidates (num_candidates,) are spikes; see :meth:`resolve`.

        `is_sure` are candidates that count as found by the network, whatever their responses.
        """
        products = np.empty((len(found), 2 * self.rule.lags + 1), np.float32)
        pieces = found.sample_index // _PIECE
        bounds = np.flatnonzero(np.diff(pieces, prepend=-1, append=-1)).tolist()
        tiles = []
        for first in bounds[:-1]:
            begin = int(pieces[first]) * _PIECE - self.before
            tiles.append((begin, Tile.of(read(begin, begin + _PIECE + self.before + self.after))))

        def fill(number: int) -> None:
            (begin, tile), one = tiles[number], slice(bounds[number], bounds[number + 1])
            samples, units = found.sample_index[one] - begin, found.unit_index[one]
            fill_products((tile.values, tile.step), samples, units, self.waveforms, products[one])

        on_all_cores(fill, range(len(tiles)))
        odds = _log_odds(found.response) - _log_odds(self.thresholds)[found.unit_index]
        odds = np.where(is_sure, np.maximum(odds, 0), odds)
        is_found = is_sure | (found.response > self.thresholds[found.unit_index])
        candidates = Candidates(found.sample_index, found.unit_index, odds, is_found, products)
        return decide(candidates, self.overlaps, self.rule)


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
        low, high = max(0, start - rule.margin), min(length, stop + rule.margin)
        candidates = self._search.find(low, high)
        if not len(candidates):
            return candidates
        spikes = rule.resolve(candidates, reading_of(self._traces, self._segment_index))
        return _chosen(spikes, (spikes.sample_index >= start) & (spikes.sample_index < stop))


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


def _chosen(spikes: Spikes, kept: np.ndarray) -> Spikes:
    return Spikes(spikes.sample_index[kept], spikes.unit_index[kept], spikes.response[kept])


def _log_odds(response: np.ndarray) -> np.ndarray:
    """Return the logarithms of the odds of responses, which may be a little above 1."""
    share = np.clip(response.astype(np.float64), 1 - MAX_EVIDENCE, MAX_EVIDENCE)
    return np.log(share) - np.log1p(-share)


def _middles(waveforms: UnitWaveforms, before: int, length: int) -> Waveforms:
    whole = np.empty((*waveforms.weights.shape[:2], waveforms.shapes.shape[1]), np.float32)
    fill_waveforms(waveforms.weights, waveforms.shapes, whole)
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
