"""Explain events by units: each spike is subtracted, the largest first, so that overlapping ones come out.

Franke et al. (J. Comput. Neurosci. 2015) describe this for matched filters. Here a unit is only tried where
an event was found near it, so the cost does not grow with the number of units of the probe.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from spikewise.core.progress import Tell
from spikewise.core.threads import on_all_cores
from spikewise.discovery.held_traces import UNIT, HeldTraces
from spikewise.discovery.peeling_loops import explain_events, restore_events
from spikewise.discovery.unit_shapes import UnitShape

# Chosen by hand, all of the following.
CANDIDATES_UM = 75.0
"""Distance from an event up to which the main channel of a unit may lie."""
MOST_CHANNELS = 24
"""Most channels of a unit, those with the most energy."""
SMALLEST_PART = 0.06
"""Channels with a smaller size than this fraction of the largest are left out."""
SMALLEST_SIZE = 1.5
"""Channels of a mean waveform with a smaller size hold mostly noise, in noise standard deviations."""
AMPLITUDES = (0.6, 1.5)
"""Smallest and largest size of a spike relative to the mean waveform."""
REACH_MS = 0.3
"""Largest time shift between an event and the spike that explains it."""
CHUNK_S = 0.5
"""Length of the traces that one thread works on."""


class PackedUnits(NamedTuple):
    """Mean waveforms as the loops need them, in steps of the traces.

    `waveforms` (U, M, L) explain events, `long` (U, M, L + 2 * tail) with their derivatives `slopes` are
    subtracted.
    """

    waveforms: np.ndarray
    long: np.ndarray
    slopes: np.ndarray
    channels: np.ndarray
    counts: np.ndarray
    energies: np.ndarray
    before: int
    tail: int


@dataclass(frozen=True)
class Explained:
    """What explains each event; the arrays are (num_events,).

    Attributes
    ----------
    unit : ndarray of int64
        -1: nothing does.
    column : ndarray of float64
        Fractional column of the spike.
    amplitude : ndarray of float32
        Size relative to the mean waveform.
    unexplained : ndarray of float32
        Energy beyond that of the noise which is left on the unit's channels, relative to the unit's energy.
    """

    unit: np.ndarray
    column: np.ndarray
    amplitude: np.ndarray
    unexplained: np.ndarray


class Peeler:
    """Explains events by units.

    Parameters
    ----------
    held : HeldTraces
        Spikes are subtracted from its values.
    distance : ndarray, shape (num_channels, num_channels)
        Distances of the channels in um.
    units : list of UnitShape
    tails : list of ndarray
        What comes before and after each mean waveform (:meth:`ShapeMeter.tails`).
    before : int
        Samples of a mean waveform ahead of the spike.
    """

    def __init__(
        self,
        held: HeldTraces,
        distance: np.ndarray,
        units: list[UnitShape],
        tails: list[np.ndarray],
        before: int,
    ):
        self._held = held
        self.units = pack(units, tails, before)
        main = np.array([unit.main_channel for unit in units], np.int64)
        self._candidates = _candidates(distance, main)
        self._reach = max(2, round(REACH_MS * held.sampling_frequency / 1000))
        self._subtracted: list[tuple[list[np.ndarray], tuple[np.ndarray, ...]]] = []

    def explain(
        self, columns: np.ndarray, channels: np.ndarray, heights: np.ndarray, tell: Tell | None = None
    ) -> Explained:
        """Explain events and subtract their spikes, the largest event of each chunk first."""
        count = len(columns)
        whole, slope = np.rint(columns).astype(np.int64), np.zeros(count, np.float32)
        unit, amplitude = np.full(count, -1), np.zeros(count, np.float32)
        rest = np.zeros(count, np.float32)
        result = unit, whole, amplitude, slope, rest
        chunk = (columns / (CHUNK_S * self._held.sampling_frequency)).astype(np.int64)
        order = np.lexsort((np.arange(count), -heights, chunk))
        bounds = np.searchsorted(chunk[order], np.arange(chunk.max(initial=0) + 2))
        parts = [order[low:high] for low, high in itertools.pairwise(bounds)]
        limits = (self._reach, *(np.float32(limit) for limit in AMPLITUDES))
        candidates = self._candidates[channels]

        def explain(index: int) -> None:
            explain_events(
                self._held.values,
                parts[index],
                columns,
                candidates,
                self.units,
                limits,
                result,
            )

        def told(done: int, total: int, before: int = 0) -> None:
            if tell is not None:
                tell(before + done, len(parts))

        for parity in (0, 1):  # spikes reach into the next chunk: neighbours are never computed at once
            before = parity * -(-len(parts) // 2)
            on_all_cores(explain, range(parity, len(parts), 2), partial(told, before=before))
        self._subtracted.append((parts, result))
        shift = np.where(amplitude > 0, slope / np.maximum(amplitude, 1e-6), 0.0)
        of = np.maximum(unit, 0)
        noise = self.units.counts[of] * self.units.waveforms.shape[2] / UNIT**2
        excess = np.where(unit >= 0, (rest - noise) / np.maximum(self.units.energies[of], 1e-6), 0)
        return Explained(unit, whole - shift, amplitude, excess.astype(np.float32))

    def restore(self) -> None:
        """Add all spikes that were subtracted again: the traces are then what they were."""
        for parts, result in reversed(self._subtracted):
            for parity in (0, 1):

                def restore(index: int, parts: list = parts, result: tuple = result) -> None:
                    restore_events(self._held.values, parts[index], self.units, result)

                on_all_cores(restore, range(parity, len(parts), 2))
        self._subtracted.clear()


def pack(units: list[UnitShape], tails: list[np.ndarray], before: int) -> PackedUnits:
    """Return the mean waveforms on the channels where they stand out of the noise."""
    length, whole = units[0].waveform.shape[1], tails[0].shape[1]
    tail = (whole - length) // 2
    long = np.zeros((len(units), MOST_CHANNELS, whole), np.float32)
    channels = np.zeros((len(units), MOST_CHANNELS), np.int64)
    counts = np.zeros(len(units), np.int64)
    for index, unit in enumerate(units):
        size = np.linalg.norm(unit.waveform, axis=1)
        order = np.argsort(-size, kind="stable")[:MOST_CHANNELS]
        kept = order[size[order] >= max(SMALLEST_PART * size.max(), min(SMALLEST_SIZE, size.max()))]
        counts[index] = len(kept)
        channels[index, : len(kept)] = unit.channels[kept]
        long[index, : len(kept)] = tails[index][kept] / np.float32(UNIT)
        long[index, : len(kept), tail : tail + length] = unit.waveform[kept] / np.float32(UNIT)
    waveforms = long[:, :, tail : tail + length].copy()
    energies = np.maximum((waveforms**2).sum(axis=(1, 2)), np.float32(1e-6))
    slopes = np.asarray(np.gradient(long, axis=2), dtype=np.float32)
    return PackedUnits(waveforms, long, slopes, channels, counts, energies, before, tail)


def _candidates(distance: np.ndarray, main: np.ndarray) -> np.ndarray:
    """Return the units (num_channels, U') near each channel; then -1."""
    is_near = distance[:, main] <= CANDIDATES_UM
    candidates = np.full((len(distance), max(1, int(is_near.sum(axis=1).max(initial=0)))), -1, np.int64)
    for channel, near in enumerate(is_near):
        units = np.flatnonzero(near)
        candidates[channel, : len(units)] = units
    return candidates
