"""Units that may be two neurons: their spikes have two shapes, and both fire regardless of each other.

Every spike of such a unit is assigned to one of the shapes. Then both parts are compared as two units are
(:mod:`.evidence`). A unit whose shape only changed in the course of time, for example because the probe
moved, is one neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spikewise.data.recordings.reader import Traces
from spikewise.output.trust.evidence import Evidence, weigh
from spikewise.output.trust.shapes import ALIGN_MS, UnitShape
from spikewise.output.trust.stretches import STRETCH_S, Stretch, TrainsOfGroup

# All of these were chosen by hand.
LONGEST_READ_S = 1200.0
"""Spikes of a longer recording are assigned only in the stretches; this bounds the time."""
_NUM_BINS = 20
"""Parts of the recording in which the spikes of both shapes are counted."""
_LEAST_TOGETHER = 0.4
"""Smallest overlap of both over time, 0 to 1, of two neurons."""
_LEAST_SHARE = 0.05
"""A part with a smaller share of the spikes is no neuron."""


@dataclass(frozen=True)
class Mixture:
    """A unit whose spikes have two shapes.

    Attributes
    ----------
    is_second : list of ndarray of bool
        For each segment, which spikes of the unit are of the second shape.
    is_whole : bool
        Whether all spikes of the recording were assigned; else only those in the stretches.
    evidence : Evidence
        For one neuron, or for two.
    shares : (float, float)
        Fractions of the spikes that are of each shape.
    """

    is_second: list[np.ndarray]
    is_whole: bool
    evidence: Evidence
    shares: tuple[float, float]

    @property
    def probability(self) -> float:
        """The probability that the unit is two neurons."""
        return 1 - self.evidence.probability

    @property
    def smaller_share(self) -> float:
        """Fraction of the spikes that are of the rarer shape."""
        return min(self.shares)


def find_mixtures(
    traces: Traces,
    trains: TrainsOfGroup,
    shapes: Sequence[UnitShape | None],
    stretches: Sequence[Stretch],
    num_samples: Sequence[int],
) -> dict[int, Mixture]:
    """Return the units whose spikes have two shapes, both of which fire all the time.

    Parameters
    ----------
    traces : Traces
        Preprocessed traces of the group.
    trains : TrainsOfGroup
        All spikes of the recording.
    shapes : sequence of UnitShape or None
    stretches : sequence of Stretch
        The parts of a long recording that are read.
    num_samples : sequence of int
        Length of each segment.
    """
    units = [unit for unit, shape in enumerate(shapes) if shape is not None and shape.division is not None]
    if not units:
        return {}
    rate = trains.sampling_frequency
    is_whole = sum(num_samples) / rate <= LONGEST_READ_S
    read = _all_stretches(num_samples, rate) if is_whole else stretches
    labels = _assign(traces, trains, shapes, read, units)
    found = {}
    for unit in units:
        mixture = _judge(shapes[unit], trains, unit, labels[unit], num_samples, is_whole)
        if mixture is not None:
            found[unit] = mixture
    return found


def _all_stretches(num_samples: Sequence[int], rate: float) -> list[Stretch]:
    length = max(1, round(STRETCH_S * rate))
    return [
        Stretch(segment, start, min(start + length, total))
        for segment, total in enumerate(num_samples)
        for start in range(0, total, length)
    ]


def _assign(
    traces: Traces,
    trains: TrainsOfGroup,
    shapes: Sequence[UnitShape | None],
    stretches: Sequence[Stretch],
    units: Sequence[int],
) -> dict[int, list[np.ndarray]]:
    """Return for each unit and segment the shape of each spike: 0 or 1, or -1 where nothing was read."""
    reach = max(1, round(ALIGN_MS * trains.sampling_frequency / 1000))
    labels = {unit: [np.full(len(frames), -1) for frames in trains.frames[unit]] for unit in units}
    longest = max(len(shape.waveform) for shape in shapes if shape is not None)
    margin = longest + reach
    for stretch in stretches:
        here = {unit: trains.within(unit, stretch) for unit in units}
        if not any(map(len, here.values())):
            continue
        block = traces.read(stretch.segment_index, stretch.start - margin, stretch.stop + margin)
        for unit, samples in here.items():
            shape = shapes[unit]
            if shape is None or shape.division is None or not len(samples):
                continue
            windows = shape.windows(block, samples - stretch.start + margin, reach)
            of_segment = trains.frames[unit][stretch.segment_index]
            first = int(np.searchsorted(of_segment, samples[0]))
            labels[unit][stretch.segment_index][first : first + len(samples)] = shape.division.assign(windows)
    return labels


def _judge(
    shape: UnitShape | None,
    trains: TrainsOfGroup,
    unit: int,
    labels: list[np.ndarray],
    num_samples: Sequence[int],
    is_whole: bool,
) -> Mixture | None:
    """Return the mixture; None if one shape is rare, or they do not fire at the same time."""
    assert shape is not None
    frames = trains.frames[unit]
    parts = [[train[label == part] for train, label in zip(frames, labels, strict=True)] for part in (0, 1)]
    counts = np.array([sum(map(len, part)) for part in parts], dtype=float)
    if not counts.all():
        return None
    shares = counts / counts.sum()
    if shares.min() < _LEAST_SHARE or _together(parts, num_samples) < _LEAST_TOGETHER:
        return None
    (one, other), (own, others) = shape.parts, parts
    evidence = weigh(one, other, own, others, trains.sampling_frequency)
    is_second = [label == 1 for label in labels]
    return Mixture(is_second, is_whole, evidence, (float(shares[0]), float(shares[1])))


def _together(parts: Sequence[Sequence[np.ndarray]], num_samples: Sequence[int]) -> float:
    """Return how far two trains overlap over time: 1 if they fire in the same parts of the recording."""
    offsets = np.concatenate([[0], np.cumsum(num_samples)])
    edges = np.linspace(0, offsets[-1], _NUM_BINS + 1)
    each = []
    for part in parts:
        times = np.concatenate([train + offset for train, offset in zip(part, offsets, strict=False)])
        counts = np.histogram(times, edges)[0]
        each.append(counts / max(counts.sum(), 1))
    return float(np.minimum(*each).sum())
