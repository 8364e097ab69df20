"""Channels and rough shapes of the units of a folder for Phy, from a few spikes of each unit.

The spikes come from a few seconds of the recording in which each unit fires often enough, so that hours cost
no more than a minute. Shapes are in standard deviations of the noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from spikeinterface.core import BaseRecording

from spikewise.data.labels.label_set import segment_starts
from spikewise.output.export.config import PhyConfig
from spikewise.output.export.sorted_group import SortedGroup, SpikeList

# All of these were chosen by hand.
LOCATING_SPIKES = 20
"""Most spikes from which the channels and the rough shape of a unit are found."""
ENOUGH_SPIKES = 8
"""Seconds are added until they hold this many spikes of each unit, or all of its spikes."""
RARE_SPIKES = 5
"""A unit with fewer spikes in these seconds uses its first spikes, up to this many."""
_CANDIDATES = 300
"""Most seconds, evenly spread over the recording, among which the seconds are chosen."""
_MIN_SECONDS, _MAX_SECONDS = 3, 60
"""Number of seconds that are chosen: the first ones evenly, the others for units with too few spikes."""
_MAX_LAG_MS = 0.3
"""Largest lag between two templates when they are compared."""


@dataclass(frozen=True)
class LocatedUnits:
    """The units of all groups, each on the channels near it.

    Attributes
    ----------
    near, recorded : ndarray of int
        (num_units, num_near) indices of the channels in the group's traces, and in the recording; the channel
        with the largest amplitude comes first, and -1 stands for no channel.
    scale : ndarray
        (num_units, num_near) microvolts per standard deviation of the noise.
    rough : ndarray of float32
        (num_units, num_samples, num_near) mean waveform over a few spikes; zero for no channel.
    components : ndarray of float32
        (num_samples, num_components) principal components of single waveforms.
    """

    near: np.ndarray
    recorded: np.ndarray
    scale: np.ndarray
    rough: np.ndarray
    components: np.ndarray


def window_samples(sampling_frequency: float, config: PhyConfig) -> tuple[int, int]:
    """Return the number of samples of a template before the spike, and of the whole template."""
    before = round(config.before_ms * sampling_frequency / 1000)
    return before, before + round(config.after_ms * sampling_frequency / 1000)


def locate_units(
    spikes: SpikeList,
    recording: BaseRecording,
    groups: Sequence[SortedGroup],
    config: PhyConfig,
) -> LocatedUnits:
    """Find the channels and the rough shape of each unit.

    Parameters
    ----------
    spikes : SpikeList
        All spikes.
    recording : BaseRecording
        The raw recording.
    groups : sequence of SortedGroup
    config : PhyConfig

    Returns
    -------
    LocatedUnits
        It has at least two rows, because Phy fails on a single one.
    """
    window = window_samples(recording.sampling_frequency, config)
    num_units = max(2, 1 + max(int(group.unit_index.max()) for group in groups))
    width = min(config.phy_channels, max(len(group.channel_index) for group in groups))
    near, recorded = (np.full((num_units, width), -1) for _ in range(2))
    scale = np.zeros((num_units, width))
    rough = np.zeros((num_units, window[1], width), dtype=np.float32)
    shapes = []
    chosen = _choose_spikes(spikes, recording)
    for group in groups:
        means, examples = _mean_waveforms(group, chosen, recording, window)
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
    return LocatedUnits(near, recorded, scale, rough, components)


def _choose_spikes(spikes: SpikeList, recording: BaseRecording) -> SpikeList:
    """Choose a few spikes of each unit from a few seconds, or from anywhere if the unit is rare there."""
    unit_index = spikes.unit_index
    second = spikes.frames // round(recording.sampling_frequency)
    num_seconds = 1 + int(second[-1])
    counts = np.bincount(unit_index)
    inside = np.isin(
        second, _choose_seconds(second, unit_index, num_seconds, np.minimum(counts, ENOUGH_SPIKES))
    )
    chosen = []
    for unit in np.flatnonzero(counts):
        of_unit = np.flatnonzero(unit_index == unit)
        usable = of_unit[inside[of_unit]]
        if len(usable) < RARE_SPIKES:
            usable = of_unit[:RARE_SPIKES]
        spread = np.linspace(0, len(usable) - 1, min(len(usable), LOCATING_SPIKES))
        chosen.append(usable[np.rint(spread).astype(np.int64)])
    index = np.sort(np.concatenate(chosen))
    return SpikeList(spikes.frames[index], unit_index[index])


def _choose_seconds(
    second: np.ndarray, unit_index: np.ndarray, num_seconds: int, wanted: np.ndarray
) -> np.ndarray:
    """Return few seconds in which each unit has as many spikes as wanted, as far as possible.

    The first seconds are spread evenly. Then the second with the most spikes that are still missing is added,
    again and again.

    Parameters
    ----------
    second, unit_index : ndarray of int
        (num_spikes,) second of the recording and unit of each spike.
    num_seconds : int
        Number of seconds of the recording.
    wanted : ndarray of int
        (num_units,) number of spikes wanted of each unit.
    """
    candidates = np.unique(np.linspace(0, num_seconds - 1, _CANDIDATES).round().astype(np.int64))
    index = np.minimum(np.searchsorted(candidates, second), len(candidates) - 1)
    is_candidate = candidates[index] == second
    counts = np.zeros((len(candidates), len(wanted)), dtype=np.int64)
    np.add.at(counts, (index[is_candidate], unit_index[is_candidate]), 1)
    chosen = np.unique(np.linspace(0, len(candidates) - 1, _MIN_SECONDS + 2)[1:-1].astype(np.int64)).tolist()
    missing = wanted - counts[chosen].sum(axis=0)
    while len(chosen) < _MAX_SECONDS:
        gain = np.minimum(counts, np.maximum(missing, 0)).sum(axis=1)
        gain[chosen] = 0
        if not gain.any():
            break
        chosen.append(int(gain.argmax()))
        missing = missing - counts[chosen[-1]]
    return candidates[chosen]


def _mean_waveforms(
    group: SortedGroup,
    spikes: SpikeList,
    recording: BaseRecording,
    window: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean waveforms of a group's units, and the waveform of each spike on its largest channel.

    Shapes are (num_units, num_samples, num_channels) and (num_spikes, num_samples).
    """
    before, length = window
    starts = np.array(segment_starts(recording))
    row_of = {int(unit): row for row, unit in enumerate(group.unit_index)}
    sums = np.zeros((len(row_of), length, len(group.channel_index)), dtype=np.float32)
    counts, shapes = np.zeros(len(row_of)), [np.zeros((0, length), dtype=np.float32)]
    for frame, unit in zip(spikes.frames, spikes.unit_index, strict=True):
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
    """Return principal components (num_samples, num_components) with the sign of the mean shape."""
    _, _, rows = np.linalg.svd(shapes, full_matrices=False)
    components = np.zeros((shapes.shape[1], num_components), dtype=np.float32)
    found = rows[:num_components].T
    components[:, : found.shape[1]] = found * np.where(shapes.mean(axis=0) @ found < 0, -1, 1)
    return components


def unit_similarity(
    templates: np.ndarray, groups: Sequence[SortedGroup], units: LocatedUnits, sampling_frequency: float
) -> np.ndarray:
    """Return the cosines between all templates, each the largest over small lags.

    Parameters
    ----------
    templates : ndarray
        (num_units, num_samples, num_near) on the channels near each unit, in noise standard deviations.
    groups : sequence of SortedGroup
    units : LocatedUnits
    sampling_frequency : float

    Returns
    -------
    ndarray
        (num_units, num_units); 0 between units that share no channel.
    """
    max_lag = round(_MAX_LAG_MS * sampling_frequency / 1000)
    similarity = np.eye(len(templates))
    for group in groups:
        shape = (len(group.unit_index), templates.shape[1], 1 + len(group.channel_index))
        dense = np.zeros(shape, dtype=np.float32)  # on all channels; the last one stands for no channel
        for row, unit in enumerate(group.unit_index):
            dense[row][:, units.near[unit]] = templates[unit]
        norm = np.maximum(np.linalg.norm(dense, axis=(1, 2)), 1e-12)
        is_used = np.abs(dense).max(axis=1) > 0
        for row, unit in enumerate(group.unit_index):
            channels = units.near[unit][units.near[unit] >= 0]
            others = np.flatnonzero(is_used[:, channels].any(axis=1))
            cosines = _largest_products(dense[row][:, channels], dense[others][:, :, channels], max_lag)
            similarity[unit, group.unit_index[others]] = cosines / norm[row] / norm[others]
    return similarity


def _largest_products(template: np.ndarray, others: np.ndarray, max_lag: int) -> np.ndarray:
    """Return the largest product of a template with each other one over lags of up to `max_lag` samples."""
    num_samples = len(template)
    products = []
    for lag in range(-max_lag, max_lag + 1):
        ahead = slice(max(0, lag), num_samples + min(0, lag))
        behind = slice(max(0, -lag), num_samples + min(0, -lag))
        products.append(np.tensordot(others[:, ahead], template[behind], axes=((1, 2), (0, 1))))
    return np.max(products, axis=0)
