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

from spikewise.learning.examples.stored_traces import StoredTraces
from spikewise.learning.examples.unit_templates import UnitTemplates

AMPLITUDES = (0.8, 1.2)
"""Range of the factors by which added templates are scaled. Chosen by hand."""
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

    def make(self, unit: int, count: int, random: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Make patches of one unit, in random order.

        Returns
        -------
        patches : Tensor
            (count, num_near, window_samples) float32
        targets : Tensor
            (count,): 1 where the unit fires at the centre.
        """
        shape, window = self.shape, self.shape.window_samples
        is_positive = random.permutation(count) < max(1, int(count * POSITIVE_FRACTION))
        near = random.integers(-shape.label_radius, shape.label_radius + 1, count)
        lag = np.where(is_positive, near, self._off_centre(count, random))
        columns, is_real = self._choose_columns(unit, is_positive, lag, random)
        channels = torch.from_numpy(self.channel_index[unit])
        patches = self.stored.windows(columns, shape.left, window, channels)
        targets = torch.from_numpy(is_positive.astype(np.float32))

        others, strength = self.templates.seen_by(unit, self.channel_index[unit])
        versions = [self.templates.values] if self.moved is None else [self.templates.values, *self.moved]
        units = np.concatenate([[unit], others])
        waveforms = np.stack([version[units][:, self.channel_index[unit]] for version in versions])
        adder = _TemplateAdder(torch.from_numpy(waveforms), window, self.templates.centre - shape.left)
        own = ~is_real & (is_positive | (random.random(count) < OFF_CENTRE_FRACTION))
        adder.add(patches, np.flatnonzero(own), np.zeros(own.sum(), np.int64), lag[own], random)
        for share_with, share_without in OTHERS_FRACTION if len(others) else ():
            rows = np.flatnonzero(random.random(count) < np.where(is_positive, share_with, share_without))
            which = 1 + random.choice(len(others), len(rows), p=strength / strength.sum())
            lags = random.integers(-(window // 2), window // 2 + 1, len(rows))
            adder.add(patches, rows, which, lags, random)
        return patches, targets

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

    def _background(self, unit: int, count: int, random: np.random.Generator) -> np.ndarray:
        """Draw columns away from the unit's own spikes; anywhere if no such column is drawn."""
        usable, own = self.stored.usable, self.suspected[unit]
        drawn = usable[random.integers(len(usable), size=4 * count)]
        if len(own):
            index = np.searchsorted(own, drawn)
            before, after = own[np.maximum(index - 1, 0)], own[np.minimum(index, len(own) - 1)]
            distance = np.minimum(np.abs(drawn - before), np.abs(after - drawn))
            drawn = np.concatenate([drawn[distance > self.shape.window_samples], drawn])
        return drawn[:count]


class _TemplateAdder:
    """Adds templates to patches at any lag.

    Parameters
    ----------
    waveforms : Tensor
        (num_versions, num_templates, num_near, num_samples)
    window_samples : int
    begin : int
        Sample of a template that falls on the first of a window when its spike is at the window's centre.
    """

    def __init__(self, waveforms: Tensor, window_samples: int, begin: int):
        self._num_versions, self._num_templates = waveforms.shape[:2]
        padded = torch.nn.functional.pad(waveforms.flatten(0, 1), (window_samples, window_samples))
        self._windows = padded.unfold(2, window_samples, 1)  # templates, M, starts, W
        self._begin = begin + window_samples

    def add(
        self,
        patches: Tensor,
        rows: np.ndarray,
        which: np.ndarray,
        lag: np.ndarray,
        random: np.random.Generator,
    ) -> None:
        """Add templates `which`, in any version, to `rows`, whose centres lie `lag` samples after them."""
        if self._num_versions > 1:
            moved = random.random(len(which)) >= AT_REST
            version = np.where(moved, random.integers(1, self._num_versions, len(which)), 0)
            which = which + self._num_templates * version
        amplitude = torch.from_numpy(random.uniform(*AMPLITUDES, len(rows)).astype(np.float32))
        start = torch.from_numpy(self._begin + lag).clamp(0, self._windows.shape[2] - 1)
        added = self._windows[torch.from_numpy(which), :, start]
        patches[torch.from_numpy(rows)] += amplitude[:, None, None] * added
