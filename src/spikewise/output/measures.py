"""Measures of each unit of a result, for its report: firing rate, violations, correlogram, mean waveform.

Spike times are frames of a segment. Traces and waveforms are preprocessed as for the network, in standard
deviations of each channel's noise. Waveforms of a long recording come from a bounded number of its seconds,
which are chosen without randomness. The quality metrics are those of SpikeInterface.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from spikeinterface.core import BaseSorting
from spikeinterface.metrics.quality.misc_metrics import isi_violations, presence_ratio

from spikewise.core.constants import REFRACTORY_MS
from spikewise.core.threads import on_all_cores
from spikewise.data.recordings.reader import Traces
from spikewise.models.checkpoint import GroupModel
from spikewise.output.kept_traces import add_windows
from spikewise.output.result import StoredResult

CORRELOGRAM_MS = 50.0
"""Longest lag of a correlogram, to either side; chosen by hand."""
CORRELOGRAM_BIN_MS = 1.0
"""Width of a bin of a correlogram; SpikeInterface's default."""
WAVEFORM_BEFORE_MS, WAVEFORM_AFTER_MS = 1.0, 2.0
"""Window of a waveform around the spike; SpikeInterface's default."""
MAX_WAVEFORM_SPIKES = 100
"""Most spikes of a unit in its mean waveform; chosen by hand."""
MAX_SECONDS_READ = 12
"""Most seconds of the recording from which mean waveforms are read; chosen by hand."""
PRESENCE_BIN_S = 60.0
"""Width of a bin of the presence ratio; SpikeInterface's default."""
_CHANNELS_AT_ONCE = 32
"""Channels that one thread adds at a time; chosen by hand."""
RARE_UNIT_SPIKES = 5
"""A unit with fewer spikes in these seconds uses its first spikes, up to this many; chosen by hand."""


@dataclass(frozen=True)
class MeanWaveform:
    """The mean waveform of a unit.

    Attributes
    ----------
    values : ndarray, shape (num_samples, num_channels)
        Mean on all channels of the unit's group; the spike is at sample `num_before`.
    spread : ndarray, shape (num_samples, num_channels)
        Standard deviation over the spikes.
    num_before : int
        Samples before the spike.
    num_spikes : int
        Number of spikes in the mean.
    """

    values: np.ndarray
    spread: np.ndarray
    num_before: int
    num_spikes: int

    @property
    def peaks(self) -> np.ndarray:
        """Largest deflection of each channel, shape (num_channels,)."""
        return np.abs(self.values).max(axis=0)

    def main_channels(self, max_channels: int) -> np.ndarray:
        """Return the indices of the channels with the largest deflections, largest first."""
        return np.argsort(-self.peaks, kind="stable")[: min(max_channels, np.count_nonzero(self.peaks))]


@dataclass(frozen=True)
class UnitMeasures:
    """The measures of one unit.

    Attributes
    ----------
    unit_id : int or str
    unit_index : int
        Position in the sorting.
    group : GroupModel
        The group whose network found the unit.
    threshold : float
        Smallest response that counts as a spike, as a fraction of the response to a perfect spike.
    sampling_frequency : float
    num_spikes : int
    rate_hz : float
    violations_percent : float or None
        Percentage of the intervals between spikes that are shorter than :data:`REFRACTORY_MS`; None if no
        segment has two spikes.
    violations_ratio : float or None
        Rate of these violations relative to the unit's own rate (Hill et al. 2011, J Neurosci 31:8699). 0.1
        means that spikes of other units are mixed in at about a tenth of the unit's own rate.
    presence_ratio : float
        Fraction of the bins of :data:`PRESENCE_BIN_S` (at least ten bins) in which the unit fires.
    correlogram : ndarray, shape (num_bins,)
        Number of pairs of spikes at each lag from -:data:`CORRELOGRAM_MS` to +:data:`CORRELOGRAM_MS`.
    waveform : MeanWaveform or None
        None without the recording, or without spikes.
    noise_ratio : float
        Noise of the recording in the unit of the waveform.
    """

    unit_id: int | str
    unit_index: int
    group: GroupModel
    threshold: float
    sampling_frequency: float
    num_spikes: int
    rate_hz: float
    violations_percent: float | None
    violations_ratio: float | None
    presence_ratio: float
    correlogram: np.ndarray
    waveform: MeanWaveform | None = None
    noise_ratio: float = 1.0

    @property
    def main_channel(self) -> int | None:
        """Index within the group of the channel with the largest deflection; None without a waveform."""
        if self.waveform is None or not self.waveform.peaks.any():
            return None
        return int(self.waveform.main_channels(1)[0])

    @property
    def snr(self) -> float | None:
        """Largest deflection of the mean waveform, in standard deviations of the channel's noise."""
        return None if self.waveform is None else float(self.waveform.peaks.max()) / self.noise_ratio


def measure_units(
    result: StoredResult, readers: Mapping[str, Traces] | None, truth: BaseSorting | None = None
) -> tuple[list[UnitMeasures], list[float | None]]:
    """Measure all units of a result, and the SNR of each true unit; the traces are read once for both.

    Parameters
    ----------
    result : StoredResult
    readers : mapping of str to Traces, or None
        The preprocessed traces of each group of the model; None leaves the waveforms out.
    truth : BaseSorting, optional
        The true spikes.

    Returns
    -------
    units : list of UnitMeasures
        In the order of the sorting.
    truth_snr : list of float or None
        Largest deflection of the mean waveform of each true unit over the noise, in the group where it is
        largest; None for a true unit without spikes. Empty without `truth` or `readers`.

    Raises
    ------
    RecordingError
        If the traces cannot be read.
    """
    trains = spike_trains(result.sorting)
    units = _measure_trains(result, trains)
    if readers is None:
        return units, []
    true_trains = [] if truth is None else spike_trains(truth)
    in_groups = [reader for reader in readers.values() for _ in true_trains]
    waveforms = mean_waveforms(
        [*trains, *(true_trains * len(readers))], [*(readers[unit.group.name] for unit in units), *in_groups]
    )
    largest = np.full((len(readers), len(true_trains)), -np.inf)
    for index, waveform in enumerate(waveforms[len(units) :]):
        if waveform is not None:
            largest.flat[index] = waveform.peaks.max()
    largest /= np.array([[result.noise_ratio(name)] for name in readers])
    sizes = [float(size) if np.isfinite(size) else None for size in largest.max(axis=0)]
    measured = [replace(unit, waveform=w) for unit, w in zip(units, waveforms, strict=False)]
    return measured, sizes


def _measure_trains(result: StoredResult, trains: list[list[np.ndarray]]) -> list[UnitMeasures]:
    """Measure what needs only the spikes, not the traces."""
    sorting = result.sorting
    rate = sorting.sampling_frequency
    duration_s = sum(result.num_samples) / rate
    correlograms = [_correlogram(train, rate) for train in trains]
    one_threshold = result.one_threshold
    units: list[UnitMeasures] = []
    for group in result.model.groups:
        for unit_id, threshold in zip(group.unit_ids, group.thresholds, strict=True):
            index = len(units)
            num_spikes = sum(map(len, trains[index]))
            units.append(
                UnitMeasures(
                    unit_id=unit_id,
                    unit_index=index,
                    group=group,
                    threshold=float(threshold if one_threshold is None else one_threshold),
                    sampling_frequency=rate,
                    num_spikes=num_spikes,
                    rate_hz=num_spikes / duration_s,
                    violations_percent=_violations_percent(trains[index], rate),
                    violations_ratio=violations_ratio(trains[index], rate, sum(result.num_samples)),
                    presence_ratio=_presence_ratio(trains[index], result.num_samples, rate),
                    correlogram=correlograms[index],
                    noise_ratio=result.noise_ratio(group.name),
                )
            )
    return units


def spike_trains(sorting: BaseSorting) -> list[list[np.ndarray]]:
    """Return the spike trains: for each unit a list with its frames in each segment."""
    spikes, num_segments = sorting.to_spike_vector(), sorting.get_num_segments()
    place = spikes["unit_index"] * num_segments + spikes["segment_index"]
    frames = spikes["sample_index"][np.argsort(place, kind="stable")].astype(np.int64)
    ends = np.cumsum(np.bincount(place, minlength=len(sorting.unit_ids) * num_segments))
    parts = np.split(frames, ends[:-1])
    return [parts[first : first + num_segments] for first in range(0, len(parts), num_segments)]


def _correlogram(train: list[np.ndarray], rate: float) -> np.ndarray:
    """Return the number of pairs of spikes of a unit in each bin of lag.

    These are the bins of SpikeInterface, whose function takes six seconds to compile in each process.
    """
    bin_samples = round(CORRELOGRAM_BIN_MS / 1000 * rate)
    half = round(CORRELOGRAM_MS / 1000 * rate) // bin_samples
    counts = np.zeros(2 * half, np.int64)
    for frames in train:
        for step in range(1, len(frames)):
            lags = frames[step:] - frames[:-step]
            lags = lags[lags <= half * bin_samples]
            if not len(lags):
                break
            counts[half:] += np.bincount(lags // bin_samples, minlength=half)[:half]
            counts[:half] += np.bincount(-(-lags // bin_samples) - 1, minlength=half)[::-1]
    return counts


def _violations_percent(train: list[np.ndarray], rate: float) -> float | None:
    intervals = np.concatenate([np.diff(frames) for frames in train])
    if len(intervals) == 0:
        return None
    return float(100 * np.mean(intervals < REFRACTORY_MS / 1000 * rate))


def violations_ratio(train: list[np.ndarray], rate: float, num_samples: int) -> float | None:
    """Return the rate of violations relative to the unit's own rate; see :class:`UnitMeasures`.

    Parameters
    ----------
    train : list of ndarray
        Frames of the spikes in each segment.
    rate : float
        Sampling frequency, Hz.
    num_samples : int
        Length of the recording.

    Returns
    -------
    float or None
        None with fewer than two spikes.
    """
    if sum(map(len, train)) < 2:
        return None
    # In frames, because these intervals are exact; the ratio has no unit.
    ratio, _, _ = isi_violations(train, num_samples, REFRACTORY_MS / 1000 * rate)
    return float(ratio)


def _presence_ratio(train: list[np.ndarray], num_samples: list[int], rate: float) -> float:
    starts = np.cumsum([0, *num_samples])
    frames = np.concatenate([frames + start for frames, start in zip(train, starts, strict=False)])
    num_bins = max(10, int(starts[-1] / rate / PRESENCE_BIN_S))
    return float(presence_ratio(frames, bin_edges=np.linspace(0, starts[-1], num_bins + 1)))


def mean_waveforms(trains: list[list[np.ndarray]], readers: list[Traces]) -> list[MeanWaveform | None]:
    """Return the mean waveform of each unit over a few of its spikes.

    Parameters
    ----------
    trains : list of lists of ndarray
        Frames of the spikes of each unit in each segment.
    readers : list of Traces
        The traces for each unit. One reader is used after the other, each in order of time.

    Returns
    -------
    list of MeanWaveform or None
        None for units without spikes.
    """
    rate = readers[0].sampling_frequency if readers else 1.0
    before, after = round(WAVEFORM_BEFORE_MS / 1000 * rate), round(WAVEFORM_AFTER_MS / 1000 * rate)
    second = round(rate)
    chosen = [_away_from_edges(spikes, second, before, after) for spikes in _choose_spikes(trains, second)]
    waveforms: list[MeanWaveform | None] = [None] * len(trains)
    for reader in dict.fromkeys(readers):
        units = [unit for unit, other in enumerate(readers) if other is reader]
        totals = _sum_windows([chosen[unit] for unit in units], reader, (before, after), second)
        for unit, total, squares in zip(units, *totals, strict=True):
            if chosen[unit]:
                waveforms[unit] = _mean_waveform(total.T, squares.T, before, len(chosen[unit]))
    return waveforms


def _away_from_edges(
    spikes: list[tuple[int, int]], second: int, before: int, after: int
) -> list[tuple[int, int]]:
    """Leave out spikes across the edge of a second, which need a second more, if others remain."""
    inside = [(s, f) for s, f in spikes if (f - before) // second == (f + after - 1) // second]
    return inside if len(inside) >= RARE_UNIT_SPIKES else spikes


def _sum_windows(
    chosen: list[list[tuple[int, int]]], reader: Traces, sides: tuple[int, int], second: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of windows and of their squares: (num_units, num_channels, num_samples) each."""
    before, after = sides
    shape = len(chosen), reader.num_channels, before + after
    sums, squares = np.zeros(shape, np.float32), np.zeros(shape, np.float32)

    def add(traces: np.ndarray, starts: np.ndarray, units: np.ndarray) -> None:
        def run(first: int) -> None:
            part = slice(first, first + _CHANNELS_AT_ONCE)
            add_windows(by_channel[part], starts, units, sums[:, part], squares[:, part])

        by_channel = np.ascontiguousarray(traces.T)
        on_all_cores(run, range(0, reader.num_channels, _CHANNELS_AT_ONCE))

    rows = sorted((s, f, unit) for unit, spikes in enumerate(chosen) for s, f in spikes)
    for (segment, number), group in itertools.groupby(rows, lambda row: (row[0], row[1] // second)):
        spikes = np.array([row[1:] for row in group])
        low, high = number * second, min((number + 1) * second, reader.num_samples(segment))
        is_inside = (spikes[:, 0] - before >= low) & (spikes[:, 0] + after <= high)
        if is_inside.any():
            starts = spikes[is_inside, 0] - before - low
            add(reader.read(segment, low, high), starts, spikes[is_inside, 1])
        for frame, unit in spikes[~is_inside]:
            window = reader.read(segment, int(frame) - before, int(frame) + after)
            add(window, np.zeros(1, np.int64), np.array([unit]))
    return sums, squares


def _mean_waveform(total: np.ndarray, squares: np.ndarray, before: int, num_spikes: int) -> MeanWaveform:
    mean = total.astype(np.float64) / num_spikes
    return MeanWaveform(mean, np.sqrt(np.maximum(squares / num_spikes - mean**2, 0)), before, num_spikes)


def _choose_spikes(trains: list[list[np.ndarray]], second: int) -> list[list[tuple[int, int]]]:
    """Choose a few spikes of each unit, within a bounded number of seconds of the recording.

    Parameters
    ----------
    trains : list of lists of ndarray
        Frames of the spikes of each unit in each segment.
    second : int
        Length of a second in frames.

    Returns
    -------
    list of lists of (int, int)
        Segment and frame of the chosen spikes of each unit.
    """
    segments = [np.repeat(np.arange(len(train)), [len(frames) for frames in train]) for train in trains]
    frames = [np.concatenate(train) for train in trains]
    num_seconds = 1 + max((int(f[-1]) // second for train in trains for f in train if len(f)), default=0)
    seconds = [s * num_seconds + f // second for s, f in zip(segments, frames, strict=True)]
    busy = np.unique(np.concatenate(seconds)) if seconds else np.zeros(0, dtype=np.int64)
    read = busy[spread(len(busy), MAX_SECONDS_READ)]
    chosen = []
    for unit, unit_seconds in enumerate(seconds):
        inside = np.flatnonzero(np.isin(unit_seconds, read))
        few = inside[spread(len(inside), MAX_WAVEFORM_SPIKES)]
        if len(inside) < RARE_UNIT_SPIKES:
            few = np.arange(min(len(unit_seconds), RARE_UNIT_SPIKES))
        chosen.append(list(zip(segments[unit][few].tolist(), frames[unit][few].tolist(), strict=True)))
    return chosen


def spread(num_items: int, max_items: int) -> np.ndarray:
    """Return at most `max_items` indices below `num_items`, evenly spread."""
    if num_items <= max_items:
        return np.arange(num_items)
    return np.linspace(0, num_items - 1, max_items).round().astype(np.int64)
