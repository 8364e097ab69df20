"""Events that resemble a unit, labelled or not.

With few labels, most spikes of a unit are unlabelled, some of them from times when the unit had moved. As
examples of background they would teach the network to be silent at exactly these spikes. So events that
resemble a unit, at rest or moved, are not used as examples without it. The templates of other units teach the
difference to them.

An event is a trough on the unit's largest channel. It resembles the unit if the angle between its waveform
and a version of the unit's template, both on the channels near the unit, is small at some lag, and smaller
than that to any other unit.
"""

from __future__ import annotations

import numpy as np
import torch

from spikewise.learning.examples.stored_traces import StoredTraces
from spikewise.learning.examples.unit_templates import UnitTemplates

LEAST_COSINE = 0.7
"""An event resembles a unit above this cosine. Chosen on seed 1 of simulated probes
(docs/design-notes.md)."""
_LEAST_TROUGH = 3.5
"""Least depth of an event, in noise standard deviations. Chosen by hand."""
_OF_OWN_TROUGH = 0.3
"""Least depth as a fraction of the unit's own trough; the larger of the two counts. Chosen by hand."""
_LENGTH_MS = (0.6, 0.9)
"""Parts of a waveform before and after the trough that are compared. Chosen by hand."""
_LAGS = 3
"""Largest lag, in samples, at which they are compared. Chosen by hand."""
_EVENTS_AT_ONCE = 2000
"""Events that are compared together; it limits the memory only."""


def resembling_columns(
    stored: StoredTraces,
    templates: UnitTemplates,
    channel_index: np.ndarray,
    moved: np.ndarray,
) -> list[np.ndarray]:
    """Return the columns, in order, of the events that resemble each unit.

    Parameters
    ----------
    stored : StoredTraces
    templates : UnitTemplates
    channel_index : ndarray
        (num_units, num_near) channels near each unit.
    moved : ndarray
        (num_versions, num_units, num_channels, num_samples) templates of units that have moved.
    """
    rate = stored.sampling_frequency
    before, after = (max(2, round(part * rate / 1000)) for part in _LENGTH_MS)
    versions = np.concatenate([templates.values[None], moved])
    core = slice(templates.centre - before, templates.centre + after)
    found = []
    for unit, near in enumerate(channel_index):
        own = versions[0, unit, near, core]  # M, S
        peak = int(own.min(axis=1).argmin())
        trough = -float(own[peak].min())
        if trough <= 0:
            found.append(np.empty(0, np.int64))
            continue
        others, _ = templates.seen_by(unit, near)
        shapes = versions[:, np.r_[unit, others]][:, :, near, core]  # versions, units, M, S
        offset = int(own[peak].argmin()) - before
        events = _troughs(stored, int(near[peak]), max(_LEAST_TROUGH, _OF_OWN_TROUGH * trough)) - offset
        found.append(_like(stored, events, torch.from_numpy(near), shapes, before))
    return found


def _troughs(stored: StoredTraces, channel: int, depth: float) -> np.ndarray:
    """Return the usable columns of the local minima of a channel that are at least this deep."""
    trace = stored.values[channel].float()
    inner = trace[1:-1]
    is_trough = (inner < -depth) & (inner <= trace[:-2]) & (inner < trace[2:])
    columns = np.flatnonzero(is_trough.numpy()) + 1
    return columns[np.isin(columns, stored.usable, assume_unique=True)]


def _like(
    stored: StoredTraces, columns: np.ndarray, near: torch.Tensor, shapes: np.ndarray, before: int
) -> np.ndarray:
    """Return the columns at which, at some lag, the first unit of `shapes` fits better than any other."""
    own, others = (_unit_vectors(part) for part in (shapes[:, :1], shapes[:, 1:]))
    span = before + _LAGS, shapes.shape[3] + 2 * _LAGS
    similar = []
    for first in range(0, len(columns), _EVENTS_AT_ONCE):
        part = columns[first : first + _EVENTS_AT_ONCE]
        windows = stored.windows(part, *span, near)
        fit = _best_cosine(windows, own)
        is_like = fit > LEAST_COSINE
        # Few events resemble the unit at all: only these are compared with the others.
        fit, windows, part = fit[is_like], windows[is_like], part[is_like.numpy()]
        similar.append(part[(fit >= _best_cosine(windows, others)).numpy()])
    return np.concatenate(similar) if similar else columns


def _unit_vectors(shapes: np.ndarray) -> torch.Tensor:
    """Return shapes (versions, units, M, S) as vectors (M, S, versions * units) of length 1."""
    flat = torch.from_numpy(shapes).flatten(0, 1)
    return (flat / flat.flatten(1).norm(dim=1).clamp_min(1e-6)[:, None, None]).permute(1, 2, 0).contiguous()


def _best_cosine(windows: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return the largest cosine of each event with any vector, at any lag; -1 if there is none.

    Parameters
    ----------
    windows : Tensor
        (num_events, M, S + 2 * _LAGS)
    vectors : Tensor
        (M, S, num_vectors)
    """
    _, length, num_vectors = vectors.shape
    best = torch.full((len(windows),), -1.0)
    for lag in range(2 * _LAGS + 1 if num_vectors else 0):
        events = windows[:, :, lag : lag + length].flatten(1)
        size = events.norm(dim=1).clamp_min(1e-6)
        best = torch.maximum(best, (events @ vectors.flatten(0, 1)).amax(dim=1) / size)
    return best
