"""Rules that drop doubtful units of another sorter, before their spikes become labels.

A unit is dropped by the first rule that it breaks, in this order; the reason is kept:

1. too few spikes: fewer than ``bootstrap_min_spikes``;
2. refractory violations: more than ``bootstrap_max_violations`` of its intervals are below REFRACTORY_MS;
3. low amplitude: its mean waveform peaks below ``bootstrap_min_amplitude``;
4. duplicate: it shares more than ``bootstrap_max_agreement`` of the spikes (tp / (tp + fp + fn), spikes match
   within COINCIDENCE_MS) with a larger unit that is kept, or more than MAX_CONTAINED of its own spikes.

Between rules 3 and 4 each unit is aligned: if the main peak of its mean waveform (mostly the trough) lies
within MAX_OFFSET_MS of the sorter's spike times, all times move by that offset, onto the main peak.

The settings were chosen on nine recordings (docs/design-notes.md, "Labels from another sorter").
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from spikeinterface.comparison.comparisontools import make_match_count_matrix
from spikeinterface.core import NumpySorting

from spikewise.core.config import BootstrapConfig
from spikewise.core.constants import COINCIDENCE_MS, REFRACTORY_MS
from spikewise.data.labels.label_set import LabelSet, kept_spikes, mean_waveforms, segments_of
from spikewise.data.recordings.reader import Traces

MAX_CONTAINED = 0.8
"""A unit with a larger fraction of its spikes in a larger unit is a duplicate; chosen by hand."""
MAX_OFFSET_MS = 1.0
"""Farthest main peak from the sorter's spike times to which a unit is aligned; chosen by hand."""
_WAVEFORM_SPIKES = 200
"""Most spikes of which a mean waveform is taken; chosen by hand."""
_WAVEFORM_RADIUS_MS = 2.0
"""Length of a mean waveform before and after the spike; chosen by hand."""


@dataclass(frozen=True)
class CleanedUnits:
    """The units that the rules kept, by their index in the sorter's result.

    Attributes
    ----------
    trains : dict of int to ndarray
        Global frames of each kept unit, aligned to its main peak.
    main_channels : dict of int to int
        Index of the channel on which each kept unit peaks.
    dropped : dict of str to dict
        Unit id of the sorter -> ``reason`` and the numbers behind it.
    """

    trains: dict[int, np.ndarray]
    main_channels: dict[int, int]
    dropped: dict[str, dict[str, Any]]


def clean_units(found: LabelSet, traces: Traces, config: BootstrapConfig) -> CleanedUnits:
    """Apply the rules of this module to the units that a sorter found.

    Parameters
    ----------
    found : LabelSet
        The sorter's units over the interval.
    traces : Traces
        Preprocessed traces in noise standard deviations.
    config : BootstrapConfig
        The limits of the rules.
    """
    kept = kept_spikes(found, None)
    trains = {index: kept.global_frame[kept.unit_index == index] for index in range(len(kept.unit_ids))}
    dropped: dict[str, dict[str, Any]] = {}

    def drop(reasons: dict[int, dict[str, Any]]) -> None:
        for index, reason in reasons.items():
            dropped[str(kept.unit_ids[index])] = reason
            del trains[index]

    drop(_too_few_spikes(trains, config.bootstrap_min_spikes))
    drop(_refractory_violations(trains, traces.sampling_frequency, config.bootstrap_max_violations))
    if not trains:
        return CleanedUnits({}, {}, dropped)
    channels, offsets, peaks = _main_peaks(found, list(trains), traces)
    drop(_low_amplitude(trains, peaks, config.bootstrap_min_amplitude))
    for index, train in trains.items():
        trains[index] = _move(train, offsets[index], found)
    for reason in (duplicates := _duplicates(trains, traces.sampling_frequency, config)).values():
        reason["of"] = str(kept.unit_ids[reason["of"]])
    drop(duplicates)
    return CleanedUnits(trains, {index: channels[index] for index in trains}, dropped)


def _too_few_spikes(trains: dict[int, np.ndarray], least: int) -> dict[int, dict[str, Any]]:
    return {
        index: {"reason": "too few spikes", "num_spikes": len(train), "limit": least}
        for index, train in trains.items()
        if len(train) < least
    }


def _refractory_violations(
    trains: dict[int, np.ndarray], sampling_frequency: float, limit: float
) -> dict[int, dict[str, Any]]:
    fractions = {
        index: float(np.mean(np.diff(train) < REFRACTORY_MS * sampling_frequency / 1000))
        for index, train in trains.items()
    }
    return {
        index: {"reason": "refractory violations", "fraction": fraction, "limit": limit}
        for index, fraction in fractions.items()
        if fraction > limit
    }


def _low_amplitude(
    trains: dict[int, np.ndarray], peaks: dict[int, float], limit: float
) -> dict[int, dict[str, Any]]:
    return {
        index: {"reason": "low amplitude", "amplitude": peaks[index], "limit": limit}
        for index in trains
        if peaks[index] < limit
    }


def _duplicates(
    trains: dict[int, np.ndarray], sampling_frequency: float, config: BootstrapConfig
) -> dict[int, dict[str, Any]]:
    """Return the units that share their spikes with a larger unit that is kept; ``of`` is its index."""
    indices = sorted(trains, key=lambda index: (-len(trains[index]), index))
    sorting = NumpySorting.from_unit_dict({index: trains[index] for index in indices}, sampling_frequency)
    delta = int(COINCIDENCE_MS * sampling_frequency / 1000)
    shared = make_match_count_matrix(sorting, sorting, delta, ensure_symmetry=True).to_numpy()
    sizes = np.array([len(trains[index]) for index in indices])
    reasons: dict[int, dict[str, Any]] = {}
    for small, index in enumerate(indices):
        for large, larger in enumerate(indices[:small]):
            common = min(int(shared[small, large]), sizes[small])
            agreement = common / (sizes[small] + sizes[large] - common)
            contained = common / sizes[small]
            if larger not in reasons and (
                agreement > config.bootstrap_max_agreement or contained > MAX_CONTAINED
            ):
                reasons[index] = {
                    "reason": "duplicate",
                    "of": larger,
                    "agreement": float(agreement),
                    "limit": config.bootstrap_max_agreement,
                    "contained": float(contained),
                }
                break
    return reasons


def _main_peaks(
    found: LabelSet, indices: list[int], traces: Traces
) -> tuple[dict[int, int], dict[int, int], dict[int, float]]:
    """Return main channel, offset of the main peak and amplitude of some units, each by unit index.

    The offset is in samples from the sorter's time, and 0 if the peak is farther than MAX_OFFSET_MS.
    """
    some = replace(found, sorting=found.sorting.select_units(found.sorting.unit_ids[indices]))
    sizes = np.abs(mean_waveforms(some, traces, _WAVEFORM_SPIKES, _WAVEFORM_RADIUS_MS))
    centre = sizes.shape[1] // 2
    farthest = round(MAX_OFFSET_MS * traces.sampling_frequency / 1000)
    channels, offsets, peaks = {}, {}, {}
    for index, size in zip(indices, sizes, strict=True):
        sample, channel = np.unravel_index(size.argmax(), size.shape)
        offset = int(sample) - centre
        channels[index], peaks[index] = int(channel), float(size.max())
        offsets[index] = offset if abs(offset) <= farthest else 0
    return channels, offsets, peaks


def _move(train: np.ndarray, offset: int, found: LabelSet) -> np.ndarray:
    """Move spikes by an offset; spikes that leave their segment or the interval are dropped."""
    moved = train + offset
    stays = segments_of(moved, found.segment_starts) == segments_of(train, found.segment_starts)
    return moved[stays & (moved >= found.start_frame) & (moved < found.stop_frame)]
