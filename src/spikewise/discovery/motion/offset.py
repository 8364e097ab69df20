"""Find how far the tissue has moved along the probe since a model was learnt.

1. Some seconds, evenly spread over the recording, are searched for events.
2. The model's mean waveforms are moved by each of many offsets, and compared with each event nearby. The
   share of an event is the largest part of its energy that a waveform explains at an offset.
3. The offset at which the mean share is largest is chosen on one half of the events. The other half must
   show it, too: its shares there must be larger than at offsets far away, and larger than where nothing
   moved. So an offset that is not better than chance is not used.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from spikewise.core.progress import MOTION, ProgressCallback, silent
from spikewise.core.threads import on_all_cores
from spikewise.data.recordings.reader import TraceReader
from spikewise.data.spatial.still_traces import predict_place
from spikewise.discovery.event_search import EventSearch
from spikewise.discovery.held_traces import UNIT, HeldTraces, Part, cut_traces
from spikewise.discovery.neighbours import distances
from spikewise.discovery.spike_shapes import load_shapes
from spikewise.models.unit_waveforms import UnitWaveforms

logger = logging.getLogger(__name__)

# Chosen by hand on days of seed 1 (benchmarks/days.py).
LARGEST_UM = 120.0
"""Offsets are searched up to this in both directions."""
COARSE_UM, FINE_UM = 5.0, 1.0
"""Steps of the search, and around the best offset."""
MIN_OFFSET_UM = 4.0
"""A smaller offset is not used: networks tolerate it."""
FAR_UM = 25.0
"""Offsets so far from the best one show what chance explains."""
MIN_SCORE = 6.0
"""Smallest difference of the shares, in standard errors of its mean."""
MAX_APART_UM = 5.0
"""Largest difference of the offsets of both halves."""
PART_S, SEARCHED_S = 0.5, 20.0
"""Length of a part that is searched, and of all parts."""
THRESHOLD = 9.0
"""Smallest response of an event, in noise standard deviations."""
MOST_EVENTS, MIN_EVENTS = 2000, 100
NUM_NEAR = 20
"""Channels of an event."""
NEAR_UM = 60.0
"""Units whose largest channel is farther from that of an event are not compared with it."""
LAGS_MS, LAG_STEP = 0.6, 2
"""Largest time shift of a waveform, and its steps in samples."""
AMPLITUDES = 0.6, 1.6
"""Smallest and largest size of an event relative to the waveform."""
_NOISE = 0.02
"""Noise of the prediction of mean waveforms between the contacts, relative to their variance."""
SMALLEST_PART = 0.06
"""Channels with a smaller size than this part of the largest are left out of a waveform."""
_MEMORY_BYTES = 2**28


class Snippets(NamedTuple):
    """Events and the traces around them.

    Attributes
    ----------
    channel : ndarray of int64, shape (N,)
    near : ndarray of int64, shape (num_channels, M)
        Channels around each channel.
    products : ndarray of float32, shape (N, M, L, K)
        Products of the traces with the model's temporal shapes at L lags.
    energy : ndarray of float64, shape (N,)
        Sum of the squared traces, less what noise contributes.
    """

    channel: np.ndarray
    near: np.ndarray
    products: np.ndarray
    energy: np.ndarray


@dataclass(frozen=True)
class OffsetEstimate:
    """An offset, and whether it is real.

    Attributes
    ----------
    offset_um : float
        How much higher the tissue lies than when the model was learnt; 0 if that is not known or too little.
    facts : dict
        Why, and in numbers; JSON types only.
    """

    offset_um: float
    facts: dict[str, Any]


def find_offset(
    reader: TraceReader,
    positions: np.ndarray,
    waveforms: UnitWaveforms,
    progress: ProgressCallback = silent,
) -> OffsetEstimate:
    """Find the offset of a recording relative to a model.

    Parameters
    ----------
    reader : TraceReader
        Preprocessed traces, in the model's noise standard deviations; motion within the recording is removed.
    positions : ndarray, shape (num_channels, 2 or 3)
        Positions of the contacts in um; the offset is along the second coordinate.
    waveforms : UnitWaveforms
        Mean waveforms of the model's units.
    progress : callable
        Called after each batch of parts.
    """
    snippets = _find_snippets(reader, positions, waveforms, progress)
    facts: dict[str, Any] = {"num_events": len(snippets.channel)}
    if len(snippets.channel) < MIN_EVENTS:
        return _unused("too few events to find the offset to the model", facts)
    moved = MovedUnits(waveforms, positions)
    grid = np.arange(-LARGEST_UM, LARGEST_UM + COARSE_UM, COARSE_UM)
    shares = np.stack([moved.shares(snippets, offset) for offset in grid])  # offsets, events
    return _decide(snippets, moved, grid, shares, facts)


def _unused(reason: str, facts: dict[str, Any]) -> OffsetEstimate:
    logger.info("the model is used where it was learnt: %s", reason)
    return OffsetEstimate(0.0, {"used": False, "reason": reason, **facts})


def _decide(
    snippets: Snippets, moved: MovedUnits, grid: np.ndarray, shares: np.ndarray, facts: dict[str, Any]
) -> OffsetEstimate:
    """Return the offset if both halves of the events show it."""
    halves = np.arange(len(snippets.channel)) % 2
    fine = {}
    found, scores = [], []
    for half in (0, 1):
        of_half = halves == half
        best = grid[shares[:, of_half].mean(axis=1).argmax()]
        steps = np.arange(best - COARSE_UM, best + COARSE_UM + FINE_UM, FINE_UM)
        for offset in steps:
            if offset not in fine:
                fine[offset] = moved.shares(snippets, offset)
        chosen = steps[np.argmax([fine[offset][of_half].mean() for offset in steps])]
        far = np.abs(grid - chosen) >= FAR_UM
        at_best, other = fine[chosen][~of_half], shares[:, ~of_half]
        scores.append(
            (
                _standard_score(at_best - other[far].mean(axis=0)),
                _standard_score(at_best - other[grid == 0][0]),
                _standard_score(at_best - other[far][other[far].mean(axis=1).argmax()]),
            )
        )
        found.append(float(chosen))
    offset = float(np.mean(found))
    chance, still, rival = (min(score[k] for score in scores) for k in range(3))
    facts |= {
        "offset_um": offset,
        "of_halves_um": found,
        "explained": round(float(fine[found[0]].mean()), 3),
        "explained_at_0": round(float(shares[grid == 0].mean()), 3),
        "explained_by_chance": round(float(shares[np.abs(grid - offset) >= FAR_UM].mean()), 3),
        "scores": [round(chance, 1), round(still, 1), round(rival, 1)],
    }
    if abs(found[0] - found[1]) > MAX_APART_UM or min(chance, rival) < MIN_SCORE:
        return _unused("no place of its units explains the recording better than chance", facts)
    if abs(offset) < MIN_OFFSET_UM or still < MIN_SCORE:
        return _unused(f"its units lie within {max(abs(offset), 1):.0f} um of their places", facts)
    if abs(offset) > LARGEST_UM - COARSE_UM:
        return _unused(f"its units have moved by {LARGEST_UM:.0f} um or more", facts)
    logger.info("the tissue lies %+.0f um from its place when the model was learnt", offset)
    return OffsetEstimate(offset, {"used": True, "reason": "its units have moved", **facts})


def _standard_score(differences: np.ndarray) -> float:
    """Return the mean in units of its standard error."""
    error = differences.std() / np.sqrt(len(differences))
    return float(differences.mean() / error) if error > 0 else 0.0


def _find_snippets(
    reader: TraceReader, positions: np.ndarray, waveforms: UnitWaveforms, progress: ProgressCallback
) -> Snippets:
    """Return events of evenly spread parts, at most MOST_EVENTS, evenly spread, too."""
    distance = distances(positions)
    near = np.argsort(distance, axis=1, kind="stable")[:, : min(NUM_NEAR, len(distance))]
    shapes = load_shapes(reader.sampling_frequency)
    parts = spread(reader, PART_S, SEARCHED_S)
    batch = max(1, int(_MEMORY_BYTES / (2 * reader.num_channels * PART_S * reader.sampling_frequency)))
    traces, search = reader.with_blocks_of(PART_S), None
    channels, products, energies = [], [], []
    per_batch = -(-MOST_EVENTS * min(batch, len(parts)) // len(parts))
    for start in range(0, len(parts), batch):
        held = HeldTraces(traces, parts=parts[start : start + batch])
        search = EventSearch(held, distance, shapes) if search is None else search.in_other(held)
        events = search.find(THRESHOLD)
        columns = np.rint(events.column).astype(np.int64)
        lag = max(1, round(LAGS_MS * reader.sampling_frequency / 1000))
        before, after = waveforms.before + lag, waveforms.shapes.shape[1] - waveforms.before + lag
        inside = np.flatnonzero((columns >= before) & (columns < held.num_columns - after))
        if len(inside) > per_batch:
            inside = inside[np.linspace(0, len(inside) - 1, per_batch).round().astype(int)]
        product, energy = _project(
            held, columns[inside] - before, near[events.channel[inside]], waveforms.shapes, lag
        )
        channels.append(events.channel[inside])
        products.append(product)
        energies.append(energy)
        progress(MOTION, min(start + batch, len(parts)), len(parts), "the model's units")
    return Snippets(np.concatenate(channels), near, np.concatenate(products), np.concatenate(energies))


def spread(reader: TraceReader, part_s: float, most_s: float) -> list[Part]:
    """Return parts of a recording, evenly spread, at most so many seconds in all."""
    parts = cut_traces(reader, max(1, round(part_s * reader.sampling_frequency)))
    count = min(len(parts), max(1, round(most_s / part_s)))
    return [parts[index] for index in np.unique(((np.arange(count) + 0.5) * len(parts) / count).astype(int))]


def _project(
    held: HeldTraces, starts: np.ndarray, channels: np.ndarray, shapes: np.ndarray, lag: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return products (N, M, L, K) of traces with shapes at lags from ``-lag`` on, and energies (N,)."""
    num_samples = shapes.shape[1]
    lags = range(0, 2 * lag + 1, LAG_STEP)
    products = np.empty((*channels.shape, len(lags), len(shapes)), np.float32)
    energies = np.empty(len(starts))
    window = np.arange(num_samples + 2 * lag)

    def fill(first: int) -> None:
        some = slice(first, first + 128)
        columns = starts[some, None] + window
        values = held.values[channels[some, :, None], columns[:, None]].astype(np.float32) * UNIT
        middle = values[:, :, lag : lag + num_samples]
        energies[some] = (middle**2).sum(axis=(1, 2)) - middle.shape[1] * num_samples
        for index, at in enumerate(lags):
            products[some, :, index] = values[:, :, at : at + num_samples] @ shapes.T

    on_all_cores(fill, range(0, len(starts), 128))
    return products, np.maximum(energies, 1.0)


class MovedUnits:
    """The model's mean waveforms at other places.

    Parameters
    ----------
    waveforms : UnitWaveforms
    positions : ndarray, shape (num_channels, 2 or 3)
    """

    def __init__(self, waveforms: UnitWaveforms, positions: np.ndarray):
        self._positions = np.asarray(positions, float)
        num_units, num_shapes = len(waveforms.channel_index), len(waveforms.shapes)
        self._weights = np.zeros((num_units, len(positions), num_shapes), np.float32)
        units, places = np.nonzero(waveforms.channel_index >= 0)
        self._weights[units, waveforms.channel_index[units, places]] = waveforms.weights[units, places]
        self._waveforms, self._gram = waveforms, waveforms.shapes @ waveforms.shapes.T

    def at(self, offset_um: float) -> np.ndarray:
        """Return weights (num_units, num_channels, K) of the shapes where the tissue has moved so far."""
        moved = np.zeros_like(self._weights)
        for channel in range(len(self._positions)):
            place = self._positions[channel].copy()
            place[1] -= offset_um
            used, factors = predict_place(place, self._positions, _NOISE)
            if len(used):
                moved[:, channel] = np.tensordot(factors, self._weights[:, used], axes=(0, 1))
        return moved

    def seen(self, offset_um: float) -> UnitWaveforms:
        """Return the waveforms as they are in traces from which the offset is removed.

        These are predicted between the contacts, so they are a little smoother than those of the model.
        """
        moved = self.at(offset_um)
        seen = np.zeros_like(moved)
        for channel in range(len(self._positions)):
            place = self._positions[channel].copy()
            place[1] += offset_um
            used, factors = predict_place(place, self._positions)
            if len(used):
                seen[:, channel] = np.tensordot(factors, moved[:, used], axes=(0, 1))
        size = np.sqrt(np.maximum(self._sizes(seen), 0))
        count = self._waveforms.channel_index.shape[1]
        order = np.argsort(-size, axis=1, kind="stable")[:, :count]
        size = np.take_along_axis(size, order, axis=1)
        is_kept = (size > 0) & (size >= SMALLEST_PART * size[:, :1])
        weights = np.take_along_axis(seen, order[:, :, None], axis=1) * is_kept[:, :, None]
        channels = np.where(is_kept, order, -1).astype(np.int64)
        return replace(self._waveforms, channel_index=channels, weights=weights.astype(np.float32))

    def _sizes(self, weights: np.ndarray) -> np.ndarray:
        """Return the energy (num_units, num_channels) on each channel."""
        return np.einsum("uck,kl,ucl->uc", weights, self._gram, weights, optimize=True)

    def shares(self, snippets: Snippets, offset_um: float) -> np.ndarray:
        """Return the share of each event (N,) that the best unit explains at an offset."""
        weights = self.at(offset_um)
        size = self._sizes(weights)
        main = size.argmax(axis=1)
        explained = np.zeros(len(snippets.channel))
        for unit in np.flatnonzero(size.max(axis=1) > 0):
            far = np.linalg.norm(self._positions[:, :2] - self._positions[main[unit], :2], axis=1)
            chosen = np.flatnonzero(far[snippets.channel] <= NEAR_UM)
            if not len(chosen):
                continue
            own = weights[unit][snippets.near[snippets.channel[chosen]]]  # n, M, K
            product = np.einsum("nmlk,nmk->nl", snippets.products[chosen], own, optimize=True).max(axis=1)
            energy = size[unit].sum()
            amplitude = np.clip(product / energy, *AMPLITUDES)
            gain = 2 * amplitude * product - amplitude**2 * energy
            explained[chosen] = np.maximum(explained[chosen], gain)
        return np.minimum(explained / snippets.energy, 1.0)
