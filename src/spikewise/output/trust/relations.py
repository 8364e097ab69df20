"""Units that are not what they seem: copies of other units, and parts of one neuron.

The spike trains of units near each other are compared. A *copy* has its spikes when another unit has a spike,
far more often than by chance: the same neuron found twice, perhaps at another phase of the spike, or two
neurons that fire together taken for a third. What chance gives is counted at lags of some milliseconds, so
that units whose rates rise and fall together do not count. *Parts* are of one neuron, by the evidence of
:mod:`.evidence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from spikewise.output.trust.evidence import CHANCE_LAGS_MS, Evidence, weigh
from spikewise.output.trust.mixtures import Mixture
from spikewise.output.trust.shapes import UnitShape
from spikewise.output.trust.stretches import TrainsOfGroup

# All of these were chosen by hand.
COPY_MS = 1.2
"""Largest lag between a spike and its copy."""
COPIED = 0.5
"""Fraction of the spikes of a copy, beyond chance, that come with those of another unit."""
MIN_LIKENESS = 0.75
"""Smallest cosine of the mean waveforms of two parts of one neuron."""
_MAX_LAG_MS = 0.3
"""Largest lag at which two mean waveforms are compared."""
_WORTH_COMPARING = 0.2
"""With a smaller fraction of spikes that come with those of another unit, it is taken to be chance."""
_SURE = 0.5
"""Two units are called parts from this probability on."""


@dataclass(frozen=True)
class Relations:
    """How the units of a group are related; matrices are (num_units, num_units).

    Attributes
    ----------
    likeness : ndarray
        Cosine of the mean waveforms at the best lag; 0 for units that share no channel.
    shared : ndarray
        Fraction of the spikes of the row's unit, beyond chance, that come with a spike of the column's unit.
    parts : ndarray
        Probability that both are parts of one neuron.
    copy_of : ndarray of int
        (num_units,) the unit whose copy each is; -1 if it is none.
    evidence : dict of (int, int) to Evidence
        Of pairs of similar units; the smaller index first.
    mixtures : dict of int to Mixture
        Units whose spikes have two shapes.
    """

    likeness: np.ndarray
    shared: np.ndarray
    parts: np.ndarray
    copy_of: np.ndarray
    evidence: dict[tuple[int, int], Evidence] = field(default_factory=dict)
    mixtures: dict[int, Mixture] = field(default_factory=dict)

    def false_of_mixture(self, unit: int) -> float:
        """Return the fraction of a unit's spikes that is expected to be of a second neuron in it."""
        mixture = self.mixtures.get(unit)
        return 0.0 if mixture is None else mixture.probability * mixture.smaller_share

    def partners(self, unit: int) -> np.ndarray:
        """Return the units that are probably parts of the same neuron as a unit."""
        return np.flatnonzero(self.parts[unit] >= _SURE)


def relate_units(
    shapes: Sequence[UnitShape | None],
    trains: TrainsOfGroup,
    num_channels: int,
    mixtures: dict[int, Mixture] | None = None,
) -> Relations:
    """Compare the mean waveforms and spike trains of all units that share channels.

    Parameters
    ----------
    shapes : sequence of UnitShape or None
    trains : TrainsOfGroup
        All spikes of the recording.
    num_channels : int
        Channels of the group.
    mixtures : dict of int to Mixture, optional
        Units whose spikes have two shapes.
    """
    likeness = compare_shapes(shapes, num_channels, trains.sampling_frequency)
    num_units = len(shapes)
    evidence: dict[tuple[int, int], Evidence] = {}
    shared, parts = np.zeros((num_units, num_units)), np.zeros((num_units, num_units))
    counts = trains.counts()
    for a in range(num_units):
        for b in range(a):
            if likeness[a, b] == 0 or not counts[a] or not counts[b]:
                continue
            shared[a, b], shared[b, a] = (_shared(trains, *pair) for pair in ((a, b), (b, a)))
            first, second = shapes[a], shapes[b]
            if likeness[a, b] >= MIN_LIKENESS and first is not None and second is not None:
                own, other = trains.frames[a], trains.frames[b]
                found = weigh(first, second, own, other, trains.sampling_frequency)
                parts[a, b] = parts[b, a] = found.probability
                evidence[b, a] = found
    return Relations(likeness, shared, parts, _copies(shared, counts, shapes), evidence, mixtures or {})


def compare_shapes(
    shapes: Sequence[UnitShape | None], num_channels: int, sampling_frequency: float
) -> np.ndarray:
    """Return the largest cosines over lags (num_units, num_units); 0 where a unit has no shape."""
    length = max((len(shape.waveform) for shape in shapes if shape is not None), default=1)
    dense = np.zeros((len(shapes), length, num_channels), dtype=np.float32)
    sees = np.zeros((len(shapes), num_channels), dtype=np.int64)
    for unit, shape in enumerate(shapes):
        if shape is not None:
            dense[unit][:, shape.channels] = shape.waveform / np.sqrt(shape.energy)
            sees[unit, shape.channels] = 1
    flat = dense.reshape(len(shapes), -1)
    best = np.zeros((len(shapes), len(shapes)), dtype=np.float32)
    reach = round(_MAX_LAG_MS * sampling_frequency / 1000)
    for lag in range(-reach, reach + 1):
        best = np.maximum(best, flat @ np.roll(dense, lag, axis=1).reshape(len(shapes), -1).T)
    best = np.maximum(best, 1e-6)
    return np.where(sees @ sees.T > 0, np.clip(np.maximum(best, best.T), 0, 1), 0).astype(float)


def _shared(trains: TrainsOfGroup, a: int, b: int) -> float:
    """Return the fraction of the spikes of `a`, beyond chance, that come with a spike of `b`."""
    reach = round(COPY_MS * trains.sampling_frequency / 1000)
    total = together = 0
    by_chance = 0.0
    for own, other in zip(trains.frames[a], trains.frames[b], strict=True):
        total += len(own)
        near = _num_near(own, other, reach)
        together += near
        if near < _WORTH_COMPARING * len(own):  # too few for a copy, whatever chance gives
            by_chance += near
            continue
        lags = [round(s * lag * trains.sampling_frequency / 1000) for lag in CHANCE_LAGS_MS for s in (-1, 1)]
        by_chance += float(np.mean([_num_near(own + lag, other, reach) for lag in lags]))
    rest = total - by_chance
    return float(np.clip((together - by_chance) / rest, 0, 1)) if rest > 0 else 0.0


def _num_near(own: np.ndarray, other: np.ndarray, reach: int) -> int:
    """Return how many frames have one of the others at most `reach` away."""
    first = np.searchsorted(other, own - reach, side="left")
    return int(np.count_nonzero(np.searchsorted(other, own + reach, side="right") > first))


def _copies(shared: np.ndarray, counts: np.ndarray, shapes: Sequence[UnitShape | None]) -> np.ndarray:
    """Return the unit whose copy each unit is, or -1.

    Of two units with the same spikes, the copy is the one with far fewer spikes, or else the one whose mean
    waveform has its peak farther from the time of the spike.
    """
    copy_of = np.full(len(counts), -1, dtype=np.int64)
    offsets = [
        0 if s is None else abs(int(np.abs(s.waveform).max(axis=1).argmax()) - s.num_before) for s in shapes
    ]
    for unit in range(len(counts)):
        for other in np.argsort(-shared[unit], kind="stable"):
            if shared[unit, other] < COPIED:
                break
            is_mutual = shared[other, unit] >= COPIED
            own_key, other_key = ((offsets[u], -counts[u], u) for u in (unit, other))
            if not is_mutual or own_key > other_key:
                copy_of[unit] = other
                break
    return copy_of
