"""Use a model where the tissue has moved: its waveforms as they are seen there, and which units are there.

1. The model's mean waveforms are predicted as the traces without the offset show them.
2. The noise of these traces is measured, so that spikes of neurons that the model does not know can be told
   from those of its units (:mod:`spikewise.sorting.owner.unexplained`).
3. Some seconds, evenly spread over the recording, are sorted. A unit whose spikes do not look like its
   waveform is not there: another neuron fires near its place. It gets no spikes.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import numpy as np

from spikewise.core.config import SortingConfig
from spikewise.core.progress import MOTION, ProgressCallback, silent
from spikewise.data.recordings.reader import TraceReader
from spikewise.discovery.held_traces import Part
from spikewise.discovery.motion.offset import MovedUnits, spread
from spikewise.models.checkpoint import SILENT, GroupModel, Model
from spikewise.models.unit_waveforms import UnitWaveforms
from spikewise.sorting.owner.group_finder import GroupFinder
from spikewise.sorting.owner.unexplained import orthonormal
from spikewise.sorting.spikes import Spikes

logger = logging.getLogger(__name__)

# Chosen by hand on days of seed 1 (benchmarks/days.py).
PART_S, SORTED_S = 1.0, 60.0
"""Length of a part that is sorted to look at the units, and of all parts."""
MIN_SPIKES, MOST_SPIKES = 10, 60
"""Fewest spikes that show whether a unit is there, and most that are looked at."""
BEST = 1 / 3
"""Part of these spikes whose mean is compared: those most like the waveform, since some may be of others."""
MIN_COSINE = 0.95
"""Smallest cosine of this mean with the waveform."""
SIZES = 0.55, 1.8
"""Smallest and largest size of the mean relative to the waveform."""
MIN_ENERGY = 3.0
"""A waveform with less energy than this multiple of the noise in the mean says nothing."""
LAG_MS = 0.25
"""Largest time shift of the mean."""
_PIECES = 100
"""Windows in which the noise is measured."""


@dataclass(frozen=True)
class Placed:
    """What is known of a model's group at another place.

    Attributes
    ----------
    residual_noise : float
        Mean energy of noise in a projection on a temporal shape.
    absent : tuple of int
        Indices of the units that are not there.
    """

    residual_noise: float
    absent: tuple[int, ...]


def place_units(
    part: GroupModel,
    model: Model,
    offset_um: float,
    reader: TraceReader,
    sorting: SortingConfig,
    progress: ProgressCallback = silent,
) -> Placed:
    """Find which units of a model are there.

    Parameters
    ----------
    part : GroupModel
        With waveforms.
    model : Model
        That it is of.
    offset_um : float
        How much higher the tissue lies than when the model was learnt.
    reader : TraceReader
        Traces from which the offset is removed.
    sorting : SortingConfig
    progress : callable
        Called after each part.
    """
    noise = _measure_noise(part, reader)
    there = at_place(part, offset_um, Placed(noise, ()))
    finder = GroupFinder(there, model, sorting)
    assert there.waveforms is not None
    looked = _Looks(there.waveforms, reader.sampling_frequency)
    parts = spread(reader, PART_S, SORTED_S)
    for index, where in enumerate(parts):
        looked.add(reader, where, finder.find(reader, *where[:3]))
        progress(MOTION, index + 1, len(parts), "which units are there")
    absent = [unit for unit in range(len(part.unit_ids)) if looked.is_other(unit, noise)]
    if absent:
        names = ", ".join(str(part.unit_ids[unit]) for unit in absent)
        logger.info("units that are not there, since the spikes near their places look different: %s", names)
    return Placed(noise, tuple(absent))


def at_place(part: GroupModel, offset_um: float, placed: Placed) -> GroupModel:
    """Return the group of a model as it is used at another place."""
    assert part.waveforms is not None
    waveforms = MovedUnits(part.waveforms, part.channel_positions_um).seen(offset_um)
    thresholds = part.thresholds.copy()
    thresholds[list(placed.absent)] = SILENT
    return replace(part, waveforms=waveforms, thresholds=thresholds, residual_noise=placed.residual_noise)


def _measure_noise(part: GroupModel, reader: TraceReader) -> float:
    """Return the mean energy of noise in a projection of the traces on a temporal shape."""
    assert part.waveforms is not None
    basis = orthonormal(part.waveforms.shapes)
    num_samples = basis.shape[1]
    squares = []
    for segment, start, stop, _ in spread(reader, PART_S, SORTED_S):
        traces = reader.read(segment, start, stop)
        for at in np.linspace(0, max(0, len(traces) - num_samples), 4).astype(int):
            window = traces[at : at + num_samples].T
            if window.shape[1] == num_samples:
                squares.append((window @ basis.T) ** 2)
    if not squares:
        return 1.0
    middle = np.median(np.stack(squares), axis=0) / 0.4549  # the median of a squared normal number
    good = middle[(middle > 0).all(axis=1)]
    return float(round(good.mean(), 6)) if len(good) else 1.0


class _Looks:
    """Mean waveforms of some spikes of each unit, on the channels of its waveform.

    Parameters
    ----------
    waveforms : UnitWaveforms
    sampling_frequency : float
    """

    def __init__(self, waveforms: UnitWaveforms, sampling_frequency: float):
        self._waveforms = waveforms
        self._lag = max(1, round(LAG_MS * sampling_frequency / 1000))
        self._windows: list[list[np.ndarray]] = [[] for _ in waveforms.channel_index]

    def add(self, reader: TraceReader, where: Part, spikes: Spikes) -> None:
        """Keep the traces around spikes of a part."""
        segment, start, stop, _ = where
        length = self._waveforms.shapes.shape[1]
        before, after = self._waveforms.before + self._lag, length - self._waveforms.before + self._lag
        traces = reader.read(segment, start - before, stop + after)
        for sample, unit in zip(spikes.sample_index, spikes.unit_index, strict=True):
            kept = self._windows[unit]
            if len(kept) < MOST_SPIKES:
                channels = self._waveforms.channel_index[unit]
                first = int(sample) - start
                window = traces[first : first + before + after, channels[channels >= 0]]
                kept.append(window.T.astype(np.float32))

    def is_other(self, unit: int, noise: float) -> bool:
        """Return whether the spikes of a unit look like those of another neuron."""
        windows = self._windows[unit]
        if len(windows) < MIN_SPIKES:
            return False
        length = self._waveforms.shapes.shape[1]
        basis = orthonormal(self._waveforms.shapes)
        weights = self._waveforms.weights[unit, : windows[0].shape[0]]
        expected = weights @ (self._waveforms.shapes @ basis.T)
        energy = float((expected**2).sum())
        projected = np.stack(
            [np.stack(windows)[:, :, lag : lag + length] @ basis.T for lag in range(2 * self._lag + 1)]
        )  # lags, spikes, M, K
        products = np.einsum("lnmk,mk->ln", projected, expected)
        at_best = projected[np.median(products, axis=1).argmax()]
        cosines = (at_best * expected).sum(axis=(1, 2)) / np.linalg.norm(at_best, axis=(1, 2))
        best = np.argsort(-cosines, kind="stable")[: max(MIN_SPIKES // 2, round(BEST * len(windows)))]
        of_noise = expected.size * noise * (np.pi / 2) / len(best)  # in a median
        if energy < MIN_ENERGY * of_noise:
            return False
        seen = np.median(at_best[best], axis=0)
        square, product = float((seen**2).sum()), float((seen * expected).sum())
        cosine = product / np.sqrt(max(square - of_noise, 0.1 * square) * energy)
        size = product / energy
        logger.debug("unit %d: %d spikes, cosine %.3f, size %.2f", unit, len(windows), cosine, size)
        return cosine < MIN_COSINE or not SIZES[0] <= size <= SIZES[1]
