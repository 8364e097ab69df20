"""Where the units of a folder for Phy lie: their channels and rough shapes, from a few spikes of each.

Spikes are looked for in few seconds of the recording that show each unit often enough, so that hours cost no
more than a minute. Shapes are in units of noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from spikeinterface.core import BaseRecording

from spikewise.data.labels.label_set import segment_starts
from spikewise.output.export.config import PhyConfig
from spikewise.output.export.sorted_group import SortedGroup

LOCATING_SPIKES = 20
"""So many spikes, at most, tell where a unit lies, and what its shape is about."""
ENOUGH_SPIKES = 8
"""Seconds are added until so many spikes of each unit lie in them, if it has as many."""
RARE_SPIKES = 5
"""Of a unit with fewer there, as many are looked at wherever they are."""
_CANDIDATES, _LEAST_SECONDS, _MOST_SECONDS = 300, 3, 60
_MAX_LAG_MS = 0.3


@dataclass(frozen=True)
class PlacedUnits:
    """The units of all groups, each on the channels near it.

    Attributes
    ----------
    near, recorded : ndarray of int
        (num_units, num_near) channels in the group's traces, and in the recording; the one with the largest
        amplitude first, -1 where there are no more.
    scale : ndarray
        (num_units, num_near) microvolts of a noise standard deviation.
    rough : ndarray of float32
        (num_units, num_samples, num_near) mean waveform over a few spikes; zero where there is no channel.
    components : ndarray of float32
        (num_samples, num_components) of largest variance among single waveforms.
    """

    near: np.ndarray
    recorded: np.ndarray
    scale: np.ndarray
    rough: np.ndarray
    components: np.ndarray


def window_samples(sampling_frequency: float, config: PhyConfig) -> tuple[int, int]:
    """Return the samples of a template before the spike, and in all."""
    before = round(config.before_ms * sampling_frequency / 1000)
    return before, before + round(config.after_ms * sampling_frequency / 1000)


def place_units(
    frames: np.ndarray,
    unit_index: np.ndarray,
    recording: BaseRecording,
    groups: Sequence[SortedGroup],
    config: PhyConfig,
) -> PlacedUnits:
    """Find the channels and the rough shape of each unit.

    Parameters
    ----------
    frames, unit_index : ndarray
        (num_spikes,) frame, segments laid end to end, and unit of each spike, in order of time.
    recording : BaseRecording
        The recording as it came in.
    groups : sequence of SortedGroup
    config : PhyConfig

    Returns
    -------
    PlacedUnits
        Of at least two rows: Phy fails on one.
    """
    window = window_samples(recording.sampling_frequency, config)
    num_units = max(2, 1 + max(int(group.unit_index.max()) for group in groups))
    width = min(config.phy_channels, max(len(group.channel_index) for group in groups))
    near, recorded = (np.full((num_units, width), -1) for _ in range(2))
    scale = np.zeros((num_units, width))
    rough = np.zeros((num_units, window[1], width), dtype=np.float32)
    shapes = []
    chosen = _choose_spikes(frames, unit_index, recording)
    for group in groups:
        means, examples = _mean_waveforms(group, frames[chosen], unit_index[chosen], recording, window)
        shapes.append(examples)
        for unit, mean in zip(group.unit_index, means, strict=True):
            size_uV = abs(mean).max(axis=0) * group.scale
            distance = np.linalg.norm(group.positions_um - group.positions_um[size_uV.argmax()], axis=1)
            channels = np.argsort(distance, kind="stable")[:width]
            channels = channels[np.argsort(-size_uV[channels], kind="stable")]
            near[unit, : len(channels)] = channels
            recorded[unit, : len(channels)] = group.channel_index[channels]
            rough[unit, :, : len(channels)] = mean[:, channels]
            scale[unit, : len(channels)] = group.scale[channels]
    components = _principal_components(np.concatenate(shapes), config.components)
    return PlacedUnits(near, recorded, scale, rough, components)


def _choose_spikes(frames: np.ndarray, unit_index: np.ndarray, recording: BaseRecording) -> np.ndarray:
    """Return which spikes are looked at: those of some seconds, and of a rare unit some others."""
    second = frames // round(recording.sampling_frequency)
    num_seconds = 1 + int(second[-1])
    counts = np.bincount(unit_index)
    inside = np.isin(
        second, _choose_seconds(second, unit_index, num_seconds, np.minimum(counts, ENOUGH_SPIKES))
    )
    chosen = []
    for unit in np.flatnonzero(counts):
        spikes = np.flatnonzero(unit_index == unit)
        these = spikes[inside[spikes]]
        if len(these) < RARE_SPIKES:
            these = spikes[:RARE_SPIKES]
        spread = np.linspace(0, len(these) - 1, min(len(these), LOCATING_SPIKES))
        chosen.append(these[np.rint(spread).astype(np.int64)])
    return np.sort(np.concatenate(chosen))


def _choose_seconds(
    second: np.ndarray, unit_index: np.ndarray, num_seconds: int, wanted: np.ndarray
) -> np.ndarray:
    """Return few seconds in which each unit has as many spikes as wanted, as far as may be.

    A few are spread evenly; then, again and again, the one is taken that has most of what is missing.
    """
    candidates = np.unique(np.linspace(0, num_seconds - 1, _CANDIDATES).round().astype(np.int64))
    place = np.minimum(np.searchsorted(candidates, second), len(candidates) - 1)
    is_there = candidates[place] == second
    counts = np.zeros((len(candidates), len(wanted)), dtype=np.int64)
    np.add.at(counts, (place[is_there], unit_index[is_there]), 1)
    chosen = np.unique(
        np.linspace(0, len(candidates) - 1, _LEAST_SECONDS + 2)[1:-1].astype(np.int64)
    ).tolist()
    missing = wanted - counts[chosen].sum(axis=0)
    while len(chosen) < _MOST_SECONDS:
        gain = np.minimum(counts, np.maximum(missing, 0)).sum(axis=1)
        gain[chosen] = 0
        if not gain.any():
            break
        chosen.append(int(gain.argmax()))
        missing = missing - counts[chosen[-1]]
    return candidates[chosen]


def _mean_waveforms(
    group: SortedGroup,
    frames: np.ndarray,
    unit_index: np.ndarray,
    recording: BaseRecording,
    window: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return means (num_units, num_samples, num_channels) and a waveform (num_samples) of each spike.

    That waveform is on the channel where the spike itself is largest.
    """
    before, length = window
    starts = np.array(segment_starts(recording))
    row_of = {int(unit): row for row, unit in enumerate(group.unit_index)}
    sums = np.zeros((len(row_of), length, len(group.channel_index)), dtype=np.float32)
    counts, shapes = np.zeros(len(row_of)), [np.zeros((0, length), dtype=np.float32)]
    for frame, unit in zip(frames, unit_index, strict=True):
        if int(unit) not in row_of:
            continue
        segment = int(np.searchsorted(starts, frame, side="right")) - 1
        start = int(frame - starts[segment]) - before
        waveform = group.traces.read(segment, start, start + length)
        sums[row_of[int(unit)]] += waveform
        counts[row_of[int(unit)]] += 1
        shapes.append(waveform[:, [abs(waveform).max(axis=0).argmax()]].T)
    return sums / np.maximum(counts, 1)[:, None, None], np.concatenate(shapes)


def _principal_components(shapes: np.ndarray, num_components: int) -> np.ndarray:
    """Return (num_samples, num_components) directions of largest variance, along the mean shape."""
    _, _, rows = np.linalg.svd(shapes, full_matrices=False)
    components = np.zeros((shapes.shape[1], num_components), dtype=np.float32)
    found = rows[:num_components].T
    components[:, : found.shape[1]] = found * np.where(shapes.mean(axis=0) @ found < 0, -1, 1)
    return components


def unit_similarity(
    templates: np.ndarray, groups: Sequence[SortedGroup], units: PlacedUnits, sampling_frequency: float
) -> np.ndarray:
    """Return cosines between templates, the largest over small lags.

    Parameters
    ----------
    templates : ndarray
        (num_units, num_samples, num_near) in units of noise, on the channels near each unit.
    groups : sequence of SortedGroup
    units : PlacedUnits
    sampling_frequency : float

    Returns
    -------
    ndarray
        (num_units, num_units); 0 between units that share no channel.
    """
    max_lag = round(_MAX_LAG_MS * sampling_frequency / 1000)
    similarity = np.eye(len(templates))
    for group in groups:
        mine = group.unit_index
        spread = np.zeros((len(mine), templates.shape[1], 1 + len(group.channel_index)), dtype=np.float32)
        for row, unit in enumerate(mine):
            spread[row][:, units.near[unit]] = templates[unit]  # what is on no channel, -1, is zero
        length = np.maximum(np.linalg.norm(spread, axis=(1, 2)), 1e-12)
        touched = np.abs(spread).max(axis=1) > 0
        for row, unit in enumerate(mine):
            channels = units.near[unit][units.near[unit] >= 0]
            others = np.flatnonzero(touched[:, channels].any(axis=1))
            cosines = _largest_products(spread[row][:, channels], spread[others][:, :, channels], max_lag)
            similarity[unit, mine[others]] = cosines / length[row] / length[others]
    return similarity


def _largest_products(template: np.ndarray, others: np.ndarray, max_lag: int) -> np.ndarray:
    """Return the largest product of a template with each of the others, shifted by up to `max_lag`."""
    num_samples = len(template)
    products = []
    for lag in range(-max_lag, max_lag + 1):
        ahead = slice(max(0, lag), num_samples + min(0, lag))
        behind = slice(max(0, -lag), num_samples + min(0, -lag))
        products.append(np.tensordot(others[:, ahead], template[behind], axes=((1, 2), (0, 1))))
    return np.max(products, axis=0)
