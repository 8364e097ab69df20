"""Patches: windows on the few channels near a unit, built with exact labels.

A few labelled spikes show how a unit looks alone. They do not show it together with other units, at every lag
and on every stretch of the noise. So patches are built: stretches of the recording to which mean waveforms of
its units are added at all lags and many amplitudes. The added spikes are known, so the labels are exact.

Some patches of a unit hold one of its spikes at the centre, real or added. The others hold what must not be
taken for the unit: the recording as it is, spikes of neighbouring units at any lag, and the unit's own spikes
off the centre.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spikewise.learning.examples.patch_loops import Additions, add_templates, fill_windows
from spikewise.learning.examples.stored_traces import StoredTraces
from spikewise.learning.examples.unit_templates import UnitTemplates

AMPLITUDES = (0.8, 1.2)
"""Range of the factors by which added templates are scaled. Chosen by hand."""
LIKENESS = 4.0
"""How much more often than others a unit of the same shape is shown without the unit, for its size. Chosen on
seed 1 of a square array and of a tetrode."""
PLAIN_IMPORTANCE = 5.0
"""Weight in the loss of the patches that show the recording as it is, without the unit: a recording consists
of them. Chosen on the same recordings."""
POSITIVE_FRACTION = 0.4
"""Fraction of the patches with the unit at the centre. Chosen by hand."""
AT_REST = 0.8
"""Fraction of the added templates that are not moved, if units may move. With fewer, two units fell silent
where one at rest looked like the other when moved (docs/design-notes.md, Drift)."""
MANY_LABELS = 20
"""A unit with fewer labels gets fewer patches with real spikes, because the network would learn their noise
by heart. Chosen by hand."""
REAL_FRACTION = (0.5, 0.1)
"""Fraction of the patches that are cut at a real spike, with and without the unit at the centre, if the unit
has many labels. Chosen by hand."""
OFF_CENTRE_FRACTION = 0.15
"""Fraction of the patches without the unit at the centre that get its template off the centre. Chosen by
hand."""
NEIGHBOUR_FRACTION = 0.15
"""Fraction of the patches without the unit at the centre that are cut at a known spike of a unit that its
channels see. Chosen by hand."""
OTHERS_FRACTION = ((0.35, 0.7), (0.15, 0.25))
"""Fractions of the patches, with and without the unit at the centre, to which a first and a second template
of another unit is added. Chosen by hand."""


@dataclass(frozen=True)
class PatchShape:
    """What patches look like.

    Attributes
    ----------
    window_samples, label_radius : int
        In samples.
    """

    window_samples: int
    label_radius: int

    @property
    def left(self) -> int:
        """Samples of a window before its centre."""
        return (self.window_samples - 1) // 2


class PatchMaker:
    """Makes patches of the units of one recording.

    Parameters
    ----------
    stored : StoredTraces
        Its traces, usable at least `window_samples` to either side.
    templates : UnitTemplates
    channel_index : ndarray
        (num_units, num_near) channels of each unit.
    columns : sequence of ndarray
        For each unit the columns of its labelled spikes.
    suspected : sequence of ndarray
        For each unit the columns, in order, of events that may be its spikes: no patch without the
        unit is cut there.
    shape : PatchShape
    moved : ndarray, optional
        (num_versions, num_units, num_channels, num_samples): the templates of units that have moved; those
        that are added to patches are drawn from these and the ones at rest.
    """

    def __init__(
        self,
        stored: StoredTraces,
        templates: UnitTemplates,
        channel_index: np.ndarray,
        columns: Sequence[np.ndarray],
        suspected: Sequence[np.ndarray],
        shape: PatchShape,
        moved: np.ndarray | None = None,
    ):
        self.moved = moved
        self.stored = stored
        self.templates = templates
        self.channel_index = channel_index
        self.columns = columns
        self.suspected = suspected
        self.shape = shape
        self._others: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def elsewhere(
        self, stored: StoredTraces, columns: Sequence[np.ndarray], suspected: Sequence[np.ndarray]
    ) -> PatchMaker:
        """Return a maker of patches of the same units at rest in other traces."""
        maker = PatchMaker(stored, self.templates, self.channel_index, columns, suspected, self.shape)
        maker._others = self._others
        return maker

    def make(self, unit: int, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Make patches of one unit, in random order.

        Returns
        -------
        patches : Tensor
            (count, num_near, window_samples) float32
        targets : Tensor
            (count,): 1 where the unit fires at the centre.
        """
        drawn = self.draw(unit, count, random)
        patches = np.empty((count, self.channel_index.shape[1], self.shape.window_samples), np.float32)
        drawn.fill(0, patches)
        in_order = torch.empty(patches.shape)
        in_order[torch.from_numpy(drawn.slots)] = torch.from_numpy(patches)
        return in_order, torch.from_numpy(drawn.targets)

    def draw(self, unit: int, count: int, random: np.random.Generator) -> DrawnPatches:
        """Draw patches of one unit, in random order; they are made where they are needed."""
        shape, window = self.shape, self.shape.window_samples
        is_positive = random.permutation(count) < max(1, int(count * POSITIVE_FRACTION))
        near = random.integers(-shape.label_radius, shape.label_radius + 1, count)
        lag = np.where(is_positive, near, self._off_centre(count, random))
        channels = self.channel_index[unit]
        others, strength = self._others_of(unit)
        columns, is_real = self._choose_columns(unit, is_positive, lag, random)
        at_others = ~is_positive & ~is_real & (random.random(count) < NEIGHBOUR_FRACTION)
        self._move_to_spikes(columns, at_others, unit, others, strength, random)

        units = np.concatenate([[unit], others])
        versions = [self.templates.values] if self.moved is None else [self.templates.values, *self.moved]
        waveforms = np.concatenate([version[units[:, None], channels] for version in versions])
        begin = self.templates.centre - shape.left
        draw = _AdditionDraw(waveforms, len(versions), count, begin)
        own = ~is_real & (is_positive | (random.random(count) < OFF_CENTRE_FRACTION))
        draw.add(np.flatnonzero(own), np.zeros(own.sum(), np.int64), lag[own], random)
        for share_with, share_without in OTHERS_FRACTION if len(others) else ():
            rows = np.flatnonzero(random.random(count) < np.where(is_positive, share_with, share_without))
            which = 1 + random.choice(len(others), len(rows), p=strength / strength.sum())
            lags = random.integers(-(window // 2), window // 2 + 1, len(rows))
            draw.add(rows, which, lags, random)
        is_plain = ~is_positive & ~at_others & ~draw.is_changed()
        importance = np.where(is_plain, PLAIN_IMPORTANCE, 1.0)
        slots = _in_order(columns)  # neighbours in memory one after the other
        return DrawnPatches(
            self.stored,
            columns[slots] - shape.left,
            channels,
            draw.additions(slots),
            slots,
            is_positive.astype(np.float32),
            importance.astype(np.float32),
        )

    def _others_of(self, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the other units that a unit is shown with, and how often, relative to each other."""
        if unit not in self._others:
            channels = self.channel_index[unit]
            others, strength = self.templates.seen_by(unit, channels)
            likeness = self.templates.likeness(unit, others, channels)
            self._others[unit] = others, strength * (1 + LIKENESS * likeness**4)
        return self._others[unit]

    def _off_centre(self, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw lags from a window's centre at which a spike does not count as at the centre."""
        least = self.shape.label_radius + 2
        away = random.integers(least, max(least + 1, self.shape.window_samples // 2), count)
        return away * random.choice([-1, 1], count)

    def _choose_columns(
        self, unit: int, is_positive: np.ndarray, lag: np.ndarray, random: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose where patches are cut, and which of them hold a real spike of the unit at their lag."""
        count, labelled = len(is_positive), self.columns[unit]
        columns = self._background(unit, count, random)
        share = min(1.0, len(labelled) / MANY_LABELS)
        is_real = random.random(count) < share * np.where(is_positive, *REAL_FRACTION)
        if not len(labelled):
            return columns, np.zeros(count, dtype=bool)
        at_spikes = labelled[random.integers(len(labelled), size=count)] + lag
        return np.where(is_real, at_spikes, columns), is_real

    def _move_to_spikes(
        self,
        columns: np.ndarray,
        chosen: np.ndarray,
        unit: int,
        others: np.ndarray,
        strength: np.ndarray,
        random: np.random.Generator,
    ) -> None:
        """Move the chosen columns near known spikes of other units, away from the unit's own spikes."""
        known = [self.columns[other] for other in others]
        weight = np.concatenate(
            [
                np.full(len(of_other), size / len(of_other))
                for of_other, size in zip(known, strength, strict=True)
                if len(of_other)
            ]
            or [np.empty(0)]
        )
        spikes = np.concatenate([np.empty(0, np.int64), *known])
        is_away = self._is_away(unit, spikes)
        spikes, weight = spikes[is_away], weight[is_away]
        rows = np.flatnonzero(chosen)
        if len(spikes):
            jitter = random.integers(-self._jitter, self._jitter + 1, len(rows))
            columns[rows] = random.choice(spikes, len(rows), p=weight / weight.sum()) + jitter

    @property
    def _jitter(self) -> int:
        return self.shape.window_samples // 4

    def _background(self, unit: int, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw columns away from the unit's own spikes; anywhere if no such column is drawn."""
        usable = self.stored.usable
        drawn = usable[random.integers(len(usable), size=2 * count)]
        return np.concatenate([drawn[self._is_away(unit, drawn)], drawn])[:count]

    def _is_away(self, unit: int, columns: np.ndarray) -> np.ndarray:
        """Return which columns are farther than a window from what may be spikes of the unit."""
        own = self.suspected[unit]
        if not len(own):
            return np.ones(len(columns), bool)
        index = np.searchsorted(own, columns)
        before, after = own[np.maximum(index - 1, 0)], own[np.minimum(index, len(own) - 1)]
        return np.minimum(np.abs(columns - before), np.abs(after - columns)) > self.shape.window_samples


@dataclass(frozen=True)
class DrawnPatches:
    """Patches of a unit that are drawn, and made in parts.

    Attributes
    ----------
    stored : StoredTraces
    begins : ndarray of int64
        (count,) column on which the first sample of each patch lies, in the order in which they are made.
    channels : ndarray of int64
        (num_near,)
    additions : Additions
        What is added to each, in the same order.
    slots : ndarray of int64
        (count,) number of each patch, in the same order.
    targets : ndarray of float32
        (count,): 1 where the unit fires at the centre.
    importance : ndarray of float32
        (count,) weight of each patch in the loss.
    """

    stored: StoredTraces
    begins: np.ndarray
    channels: np.ndarray
    additions: Additions
    slots: np.ndarray
    targets: np.ndarray
    importance: np.ndarray

    def fill(self, first: int, patches: np.ndarray) -> None:
        """Make patches from place `first` of the slots on: (number, M, window_samples) float32, filled."""
        columns = self.begins[first : first + len(patches)]
        fill_windows(self.stored.bits, columns, self.channels, patches)
        add_templates(self.additions, first, patches)


def _in_order(columns: np.ndarray) -> np.ndarray:
    """Return the indices that sort columns; equal ones keep their order.

    Sorting numbers that hold column and index is many times faster than NumPy's stable sort of indices.
    """
    bits = max(1, len(columns) - 1).bit_length()
    return np.sort((columns << bits) | np.arange(len(columns))) & ((1 << bits) - 1)


class _AdditionDraw:
    """Draws templates that are added to patches at any lag.

    Parameters
    ----------
    waveforms : ndarray of float32
        (num_versions * num_templates, num_near, num_samples)
    num_versions : int
        The first is at rest.
    count : int
        Number of patches.
    begin : int
        Sample of a template that falls on the first of a patch when its spike is at the patch's centre.
    """

    def __init__(self, waveforms: np.ndarray, num_versions: int, count: int, begin: int):
        self._waveforms = np.ascontiguousarray(waveforms, np.float32)
        self._num_versions, self._num_templates = num_versions, len(waveforms) // num_versions
        self._count, self._begin = count, begin
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def add(self, rows: np.ndarray, which: np.ndarray, lag: np.ndarray, random: np.random.Generator) -> None:
        """Add templates `which`, in any version, to `rows`, whose centres lie `lag` samples after them."""
        if self._num_versions > 1:
            moved = random.random(len(which)) >= AT_REST
            version = np.where(moved, random.integers(1, self._num_versions, len(which)), 0)
            which = which + self._num_templates * version
        of_all = np.full(self._count, -1), np.zeros(self._count, np.int64), np.zeros(self._count, np.float32)
        of_all[0][rows] = which
        of_all[1][rows] = self._begin + lag
        of_all[2][rows] = random.uniform(*AMPLITUDES, len(rows))
        self._parts.append(of_all)

    def is_changed(self) -> np.ndarray:
        """Return to which patches anything is added."""
        return np.any([which >= 0 for which, _, _ in self._parts], axis=0)

    def additions(self, order: np.ndarray) -> Additions:
        """Return what was added, in some order of the patches."""
        which, begin, amplitude = (np.stack(part)[:, order] for part in zip(*self._parts, strict=True))
        return Additions(self._waveforms, which, begin, amplitude)
