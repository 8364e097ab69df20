"""Known spikes that are added to the traces of a recording.

The spikes of a unit are added near its own spikes, some milliseconds away: so they come when the unit is
active, and when its neighbours are. They keep its refractory period. Two added spikes never overlap, so they
compete only with what happens in the recording. Amplitudes vary as those of the unit, and each spike falls
between two samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikewise.core.constants import REFRACTORY_MS
from spikewise.data.recordings.reader import Traces
from spikewise.output.trust.shapes import AFTER_MS, BEFORE_MS, NUM_PHASES, UnitShape
from spikewise.output.trust.stretches import Stretch, TrainsOfGroup

# Chosen by hand.
WANTED = 400
"""Spikes of a unit that are added, if there is room."""
MAX_RATE_HZ = 15.0
"""Most added spikes of a unit in a second."""
_RARE_INTERVAL, _MOST_NEAREST_MS = 0.02, 10.0
"""An added spike keeps the interval to the unit's own spikes that 2 % of its intervals are shorter than."""
_FARTHEST_MS = 60.0
"""Farthest distance of an added spike from a spike of the unit that was found."""
_EVERYWHERE = 0.1
"""Added spikes where a unit is silent, as a fraction of those where it fires as on average."""
_LEAST_AMPLITUDE = 0.25
"""Smallest amplitude that is added."""
_MOST_OVERLAP_UM = 1
"""Number of shared channels from which on two added spikes overlap."""


@dataclass(frozen=True)
class InjectedSpikes:
    """Spikes that are added, in order of segment and time; all arrays are (num_spikes,).

    Attributes
    ----------
    segment_index, sample_index, unit_index : ndarray of int64
    phase : ndarray of int64
        Eighths of a sample by which the spike comes later.
    amplitude : ndarray
        As a fraction of the unit's mean waveform.
    """

    segment_index: np.ndarray
    sample_index: np.ndarray
    unit_index: np.ndarray
    phase: np.ndarray
    amplitude: np.ndarray

    def __len__(self) -> int:
        """Return the number of spikes."""
        return len(self.sample_index)


def plan_injection(
    shapes: Sequence[UnitShape | None],
    trains: TrainsOfGroup,
    stretches: Sequence[Stretch],
    generator: np.random.Generator,
) -> InjectedSpikes:
    """Choose the spikes that are added to stretches of a recording.

    Parameters
    ----------
    shapes : sequence of UnitShape or None
    trains : TrainsOfGroup
        The spikes that were found.
    stretches : sequence of Stretch
    generator : Generator

    Returns
    -------
    InjectedSpikes
    """
    rate = trains.sampling_frequency
    room = round((BEFORE_MS + AFTER_MS) * rate / 1000)
    nearest = [_nearest(frames, rate) for frames in trains.frames]
    together = _overlapping(shapes)
    wanted = _wanted(trains, stretches)
    columns: list[np.ndarray] = [np.empty((0, 3), np.int64)]
    for stretch, counts in zip(stretches, wanted, strict=True):
        proposals = [
            _propose(unit, trains, stretch, (nearest[unit], round(3 * counts[unit]) + 1), generator)
            for unit, shape in enumerate(shapes)
            if shape is not None
        ]
        spikes = _accept(proposals, trains, stretch, (room, nearest), together, counts, generator)
        columns.append(np.column_stack([np.full(len(spikes), stretch.segment_index), spikes]))
    chosen = np.concatenate(columns)
    chosen = chosen[np.lexsort((chosen[:, 2], chosen[:, 1], chosen[:, 0]))]
    units = chosen[:, 2]
    mean = np.array([1.0 if shape is None else shape.mean for shape in shapes])
    variation = np.array([0.0 if shape is None else shape.variation for shape in shapes])
    amplitude = generator.normal(mean[units], variation[units])
    return InjectedSpikes(
        chosen[:, 0],
        chosen[:, 1],
        units,
        generator.integers(NUM_PHASES, size=len(units)),
        np.maximum(amplitude, _LEAST_AMPLITUDE),
    )


def _wanted(trains: TrainsOfGroup, stretches: Sequence[Stretch]) -> np.ndarray:
    """Return how many spikes to add (num_stretches, num_units): more where the unit fires more."""
    own = np.array([[len(trains.within(unit, s)) for unit in range(trains.num_units)] for s in stretches])
    seconds = np.array([s.stop - s.start for s in stretches]) / trains.sampling_frequency
    weights = own + _EVERYWHERE * own.sum(axis=0) / len(stretches) + 1e-9
    wanted = WANTED * weights / weights.sum(axis=0)
    return np.minimum(wanted, MAX_RATE_HZ * seconds[:, None])


def _overlapping(shapes: Sequence[UnitShape | None]) -> np.ndarray:
    """Return which units share a channel: (num_units, num_units) bool."""
    num_channels = 1 + max((int(shape.channels.max()) for shape in shapes if shape is not None), default=0)
    sees = np.zeros((len(shapes), num_channels), dtype=np.int64)
    for unit, shape in enumerate(shapes):
        if shape is not None:
            sees[unit, shape.channels] = 1
    return sees @ sees.T >= _MOST_OVERLAP_UM


def _nearest(train: Sequence[np.ndarray], rate: float) -> int:
    """Return how near to a spike of its unit a spike may be added: as near as the unit's own rarely are."""
    intervals = np.concatenate([np.diff(frames) for frames in train]) / rate * 1000
    usual = float(np.quantile(intervals, _RARE_INTERVAL)) if len(intervals) else 0.0
    return round(min(max(usual, REFRACTORY_MS), _MOST_NEAREST_MS) * rate / 1000)


def _propose(
    unit: int,
    trains: TrainsOfGroup,
    stretch: Stretch,
    nearest_and_count: tuple[int, int],
    generator: np.random.Generator,
) -> np.ndarray:
    """Return (count, 2) random samples near spikes of a unit, and the unit; anywhere if it has none here."""
    own = trains.within(unit, stretch)
    nearest, count = nearest_and_count
    if len(own):
        farthest = _FARTHEST_MS * trains.sampling_frequency / 1000
        away = generator.uniform(nearest, max(farthest, nearest + 1), count) * generator.choice(
            [-1, 1], count
        )
        samples = generator.choice(own, count) + np.rint(away).astype(np.int64)
    else:
        samples = generator.integers(stretch.start, stretch.stop, count)
    return np.column_stack([samples, np.full(count, unit)])


def _accept(
    proposals: Sequence[np.ndarray],
    trains: TrainsOfGroup,
    stretch: Stretch,
    distances: tuple[int, Sequence[int]],
    together: np.ndarray,
    wanted: np.ndarray,
    generator: np.random.Generator,
) -> np.ndarray:
    """Return the proposed spikes that may be added, one after the other in random order."""
    if not proposals:
        return np.empty((0, 2), np.int64)
    room, nearest = distances
    order = generator.permutation(sum(map(len, proposals)))
    proposed = np.concatenate(proposals)[order]
    own = [trains.within(unit, stretch) for unit in range(trains.num_units)]
    free = np.array([_distance(own[unit], sample) >= nearest[unit] for sample, unit in proposed])
    inside = (proposed[:, 0] >= stretch.start + 2 * room) & (proposed[:, 0] < stretch.stop - 2 * room)
    left = np.floor(wanted + generator.random(trains.num_units))
    accepted = np.empty((len(proposed), 2), np.int64)
    count = 0
    for sample, unit in proposed[free & inside]:
        taken = accepted[:count]
        if left[unit] < 1 or (together[unit, taken[:, 1]] & (np.abs(taken[:, 0] - sample) < room)).any():
            continue
        accepted[count] = sample, unit
        count += 1
        left[unit] -= 1
    return accepted[:count]


def _distance(frames: np.ndarray, sample: int) -> float:
    """Return the distance of a sample from the nearest of ordered frames."""
    index = np.searchsorted(frames, sample)
    near = frames[max(0, index - 1) : index + 1]
    return float(np.abs(near - sample).min()) if len(near) else np.inf


class InjectedTraces:
    """Traces to which spikes are added; it reads as the traces do.

    Parameters
    ----------
    traces : Traces
        Preprocessed traces of a group.
    spikes : InjectedSpikes
    shapes : sequence of UnitShape or None
        Their mean waveforms.
    """

    def __init__(self, traces: Traces, spikes: InjectedSpikes, shapes: Sequence[UnitShape | None]):
        self._traces, self._spikes, self._shapes = traces, spikes, shapes
        self.num_segments, self.num_channels = traces.num_segments, traces.num_channels
        self.sampling_frequency = traces.sampling_frequency
        lengths = [shape.phases.shape[1] for shape in shapes if shape is not None]
        self._reach = max(lengths, default=0)
        self._ends = np.searchsorted(spikes.segment_index, np.arange(traces.num_segments + 1))

    def num_samples(self, segment_index: int) -> int:
        """Return the length of a segment."""
        return self._traces.num_samples(segment_index)

    def read(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return float32 traces (stop - start, num_channels) with the added spikes."""
        block = np.array(self._traces.read(segment_index, start, stop), order="K")
        spikes, base = self._spikes, self._ends[segment_index]
        samples = spikes.sample_index[base : self._ends[segment_index + 1]]
        low, high = np.searchsorted(samples, [start - self._reach, stop + self._reach])
        for index in range(base + low, base + high):
            shape = self._shapes[spikes.unit_index[index]]
            if shape is None:
                continue
            first = int(spikes.sample_index[index]) - shape.num_before - start
            begin, end = max(0, first), min(len(block), first + len(shape.waveform))
            if begin < end:
                added = shape.phases[spikes.phase[index], begin - first : end - first]
                block[begin:end, shape.channels] += np.float32(spikes.amplitude[index]) * added
        return block
