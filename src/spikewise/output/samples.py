"""Samples of a result: amplitude and depth of a bounded number of spikes, and responses of the network.

Amplitude and depth over time show drift. They are measured in whole seconds, evenly spread over the
recording, so that hours cost no more than a minute. Spikes at the edge of a second are skipped, so that the
neighbouring seconds need not be read. In some of these seconds the network is evaluated again and every peak
of its response is counted, whether it became a spike or not. A clear gap between the peaks above and below
the threshold means that a unit is found reliably. Amplitudes are in standard deviations of the noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import median_abs_deviation
from spikeinterface.metrics.quality.misc_metrics import amplitude_cutoff

from spikewise.core.config import SortingConfig
from spikewise.core.progress import Tell
from spikewise.data.recordings.reader import Traces
from spikewise.models.checkpoint import GroupModel
from spikewise.output.features import PairFeatures, PairWaveforms
from spikewise.output.measures import (
    WAVEFORM_AFTER_MS,
    WAVEFORM_BEFORE_MS,
    MeanWaveform,
    UnitMeasures,
    spread,
)
from spikewise.output.pairs import UnitPair
from spikewise.output.result import StoredResult
from spikewise.sorting.detector import Detector
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.spikes import Spikes

# All of these were chosen by hand.
MAX_SECONDS_SAMPLED = 23
"""Most seconds of the recording from which spikes are taken: so many that the evenly spread seconds of the
mean waveforms (measures.MAX_SECONDS_READ) are among them."""
MAX_SECONDS_EVALUATED = 12
"""Most of these seconds in which the network is evaluated again."""
MAX_SAMPLED_SPIKES = 600
"""Most spikes of a unit whose amplitude and depth are measured."""
MAX_SNIPPETS = 24
"""Most single waveforms of a unit that are kept."""
MIN_RESPONSE = 0.05
"""Peaks of the response below this, and below the unit's threshold, are not counted."""
RESPONSE_BINS = 40
"""Bins of the histogram of responses, from 0 to 1."""
NEAR_UM = 100.0
"""Channels within this distance of a unit's main channel are near it."""
NOISE_EVERY = 8
"""The noise of a second is measured on each so many-th of its samples."""
_PEAK_JITTER_MS = 0.1
"""The amplitude is the largest value within this time of where the mean waveform has its peak."""
_MIN_OF_PEAK = 0.3
"""Channels with at least this fraction of a unit's largest deflection count for the depth of its spikes."""


@dataclass(frozen=True)
class SpikeSamples:
    """Spikes of all units, ordered by unit, then time; arrays are (num_spikes,).

    Attributes
    ----------
    unit_index : ndarray of int64
    time_s : ndarray
        Time from the start of the recording, segments laid end to end.
    amplitude : ndarray
        Deflection on the unit's main channel, where its mean waveform is largest; NaN without a waveform.
    depth_um : ndarray
        Second coordinate of the spike: mean over the channels near its unit, weighted by the squared
        deflections; NaN without a waveform.
    snippets : list of ndarray
        For each unit (num_snippets, num_samples) single waveforms on the main channel.
    responses : ndarray
        (num_units, :data:`RESPONSE_BINS`) number of peaks of the response in bins from 0 to 1.
    seconds_s : ndarray
        (num_seconds, 2) start and end of the seconds from which spikes were taken, segments laid end to end.
    noise : ndarray
        (num_units, num_seconds) noise on the unit's main channel in each of these seconds; NaN without a
        waveform. 1 is the noise by which the channel was divided.
    pair_features : list of PairFeatures
        Components of the spikes of each look-alike pair.
    num_seconds_evaluated : int
        Number of these seconds in which the network was evaluated.
    """

    unit_index: np.ndarray
    time_s: np.ndarray
    amplitude: np.ndarray
    depth_um: np.ndarray
    snippets: list[np.ndarray]
    responses: np.ndarray
    seconds_s: np.ndarray
    noise: np.ndarray
    pair_features: list[PairFeatures]
    num_seconds_evaluated: int

    @property
    def num_seconds(self) -> int:
        """Number of seconds from which spikes were taken."""
        return len(self.seconds_s)

    def of_unit(self, unit_index: int) -> slice:
        """Return the slice of the arrays that holds the spikes of a unit."""
        first, last = np.searchsorted(self.unit_index, [unit_index, unit_index + 1])
        return slice(int(first), int(last))

    def amplitude_cutoff(self, unit_index: int) -> float | None:
        """Return SpikeInterface's estimate of the fraction of spikes too small to be found.

        None with fewer than 500 amplitudes, too few for the estimate.
        """
        missing = float(amplitude_cutoff(self.amplitude[self.of_unit(unit_index)]))
        return None if np.isnan(missing) else missing


def sample_spikes(
    result: StoredResult,
    units: list[UnitMeasures],
    readers: Mapping[str, Traces],
    pairs: Sequence[UnitPair] = (),
    tell: Tell | None = None,
) -> SpikeSamples:
    """Measure spikes, noise and responses in evenly spread seconds of the recording.

    Parameters
    ----------
    result : StoredResult
    units : list of UnitMeasures
        The measures, with waveforms.
    readers : mapping of str to Traces
        The preprocessed traces of each group of the model.
    pairs : sequence of UnitPair
        Look-alike pairs, whose spikes are compared.
    tell : callable, optional
        Called with the number of seconds that are measured, and of all, over all groups.

    Returns
    -------
    SpikeSamples

    Raises
    ------
    RecordingError
        If the traces cannot be read.
    """
    rate = result.sorting.sampling_frequency
    sampled = sampled_seconds(result)
    evaluated = {sampled[index] for index in spread(len(sampled), MAX_SECONDS_EVALUATED)}
    margin = round((WAVEFORM_BEFORE_MS + WAVEFORM_AFTER_MS) / 1000 * rate)
    rows = _choose_rows(
        result, [(segment, start + margin, stop - margin) for segment, start, stop in sampled]
    )
    spikes = result.sorting.to_spike_vector()[rows]
    offsets = np.cumsum([0, *result.num_samples])
    measured = _Measured(len(spikes), units, len(sampled), PairWaveforms(pairs, units))
    total = len(sampled) * len(result.model.groups)
    for group_number, group in enumerate(result.model.groups):
        shapes = {unit.unit_index: _shape(unit) for unit in units if unit.group is group}
        if not shapes:
            continue
        first_unit = min(shapes)
        detector = make_detector(
            group.network,
            np.minimum(MIN_RESPONSE, group.thresholds),
            rate,
            result.model.detection_config,
            SortingConfig(),
        )
        for number, (segment, start, stop) in enumerate(sampled):
            if tell is not None:
                tell(group_number * len(sampled) + number, total)
            here = np.flatnonzero(
                (spikes["segment_index"] == segment)
                & (spikes["sample_index"] >= start)
                & (spikes["sample_index"] < stop)
                & np.isin(spikes["unit_index"], list(shapes))
            )
            traces = readers[group.name].read(segment, start, stop)
            measured.add_noise(traces, number, shapes)
            measured.add_second(traces, start, spikes, here, shapes)
            if (segment, start, stop) in evaluated:
                peaks = _evaluate(detector, readers[group.name], (segment, start, stop), sampled)
                bins = np.minimum((peaks.response * RESPONSE_BINS).astype(np.int64), RESPONSE_BINS - 1)
                np.add.at(measured.responses, (peaks.unit_index + first_unit, bins), 1)
    return SpikeSamples(
        unit_index=spikes["unit_index"].astype(np.int64),
        time_s=(offsets[spikes["segment_index"]] + spikes["sample_index"]) / rate,
        amplitude=measured.amplitude,
        depth_um=measured.depth_um,
        snippets=measured.snippets(),
        responses=measured.responses,
        seconds_s=np.array([offsets[segment] + np.array(ends) for segment, *ends in sampled]) / rate,
        noise=measured.noise,
        pair_features=measured.pairs.features(),
        num_seconds_evaluated=len(evaluated),
    )


def sampled_seconds(result: StoredResult) -> list[tuple[int, int, int]]:
    """Return segment, start and end of the seconds from which spikes are taken, evenly spread."""
    seconds = _whole_seconds(result.num_samples, result.sorting.sampling_frequency)
    return [seconds[index] for index in spread(len(seconds), MAX_SECONDS_SAMPLED)]


def _evaluate(
    detector: Detector, traces: Traces, second: tuple[int, int, int], sampled: list[tuple[int, int, int]]
) -> Spikes:
    """Find the peaks of the response in a second, without a look at seconds that are not sampled.

    Beside such a second, responses that would depend on it are left out.
    """
    segment, start, stop = second
    is_first, is_last = start == 0, stop == traces.num_samples(segment)
    before = next((one for one in sampled if one[0] == segment and one[2] == start), None)
    after = next((one for one in sampled if one[0] == segment and one[1] == stop), None)
    window = detector.network.window_samples + detector.context
    low = start if is_first or before is not None else start + window
    high = stop if is_last or after is not None else stop - window
    limits = (start if before is None else before[1], stop if after is None else after[2])
    return detector.find(_Part(traces, limits), segment, low, max(low, high))


class _Part:
    """Traces that are zero outside of a part of a segment, and not read there."""

    def __init__(self, traces: Traces, limits: tuple[int, int]):
        self._traces, self._limits = traces, limits
        self.num_segments, self.num_channels = traces.num_segments, traces.num_channels
        self.sampling_frequency = traces.sampling_frequency

    def num_samples(self, segment_index: int) -> int:
        """Return the length of a segment."""
        return self._traces.num_samples(segment_index)

    def read(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return float32 traces (stop - start, num_channels)."""
        low, high = max(start, self._limits[0]), min(stop, self._limits[1])
        if (low, high) == (start, stop):
            return self._traces.read(segment_index, start, stop)
        traces = np.zeros((self.num_channels, stop - start), np.float32).T
        if low < high:
            traces[low - start : high - start] = self._traces.read(segment_index, low, high)
        return traces


def _whole_seconds(num_samples: list[int], rate: float) -> list[tuple[int, int, int]]:
    """Return segment, start and end of each second of the recording; the last of a segment may be shorter."""
    length = round(rate)
    return [
        (segment, start, min(start + length, total))
        for segment, total in enumerate(num_samples)
        for start in range(0, total, length)
    ]


def _choose_rows(result: StoredResult, seconds: list[tuple[int, int, int]]) -> np.ndarray:
    """Return the indices of the sampled spikes, ordered by unit: evenly chosen ones within these seconds."""
    spikes = result.sorting.to_spike_vector()
    inside = np.zeros(len(spikes), dtype=bool)
    segment_ends = np.searchsorted(spikes["segment_index"], np.arange(len(result.num_samples) + 1))
    for segment, start, stop in seconds:
        first, end = segment_ends[segment], segment_ends[segment + 1]
        low, high = first + np.searchsorted(spikes["sample_index"][first:end], [start, max(start, stop)])
        inside[low:high] = True
    rows = np.flatnonzero(inside)
    rows = rows[np.argsort(spikes["unit_index"][rows], kind="stable")]
    ends = np.searchsorted(spikes["unit_index"][rows], np.arange(result.sorting.get_num_units() + 1))
    parts = [rows[first:end] for first, end in itertools.pairwise(ends)]
    return np.concatenate(
        [np.zeros(0, np.int64), *(part[spread(len(part), MAX_SAMPLED_SPIKES)] for part in parts)]
    )


@dataclass(frozen=True)
class _Shape:
    """Where the mean waveform of a unit is large; arrays are (num_channels,), the main channel first.

    Attributes
    ----------
    channels : ndarray of int
        Indices of the channels in the group.
    samples : ndarray of int
        Sample of the peak on each channel, relative to the spike.
    signs : ndarray
        Sign of the peak.
    depth_um : ndarray
        Second coordinate of the channel.
    waveform : MeanWaveform
    """

    channels: np.ndarray
    samples: np.ndarray
    signs: np.ndarray
    depth_um: np.ndarray
    waveform: MeanWaveform


def _shape(unit: UnitMeasures) -> _Shape | None:
    """Return the shape of a unit; None without a waveform."""
    waveform, main = unit.waveform, unit.main_channel
    if waveform is None or main is None:
        return None
    peaks = waveform.peaks
    strong = np.flatnonzero(peaks >= _MIN_OF_PEAK * peaks[main])
    near = nearest_channels(unit.group, main, len(peaks))
    channels = near[np.isin(near, strong)]
    samples = np.abs(waveform.values[:, channels]).argmax(axis=0)
    signs = np.sign(waveform.values[samples, channels])
    depth_um = np.asarray(unit.group.channel_positions_um, dtype=float)[channels, 1]
    return _Shape(channels, samples - waveform.num_before, signs, depth_um, waveform)


def nearest_channels(group: GroupModel, channel: int, max_channels: int) -> np.ndarray:
    """Return the channels within :data:`NEAR_UM` of a channel, by distance; that channel comes first."""
    positions = np.asarray(group.channel_positions_um, dtype=float)[:, :2]
    distance = np.hypot(*(positions - positions[channel]).T)
    order = np.argsort(distance, kind="stable")
    order = np.concatenate([[channel], order[order != channel]])
    return order[distance[order] <= NEAR_UM][:max_channels]


class _Measured:
    """Collects the measures of the sampled spikes, second by second."""

    def __init__(self, num_spikes: int, units: list[UnitMeasures], num_seconds: int, pairs: PairWaveforms):
        num_units = len(units)
        self.pairs, self.sampling_frequency = pairs, units[0].sampling_frequency if units else 1.0
        self.noise = np.full((num_units, num_seconds), np.nan)
        self.amplitude, self.depth_um = (np.full(num_spikes, np.nan) for _ in range(2))
        self.responses = np.zeros((num_units, RESPONSE_BINS), dtype=np.int64)
        self._snippets: list[list[np.ndarray]] = [[] for _ in range(num_units)]

    def add_noise(self, traces: np.ndarray, number: int, shapes: Mapping[int, _Shape | None]) -> None:
        """Measure the noise of a second on the main channel of each unit; `number` counts the seconds."""
        main = {unit: int(shape.channels[0]) for unit, shape in shapes.items() if shape is not None}
        channels = np.unique(list(main.values())).astype(np.int64)
        noise = median_abs_deviation(traces[::NOISE_EVERY, channels], axis=0, scale="normal")
        for unit, channel in main.items():
            self.noise[unit, number] = noise[np.searchsorted(channels, channel)]

    def add_second(
        self,
        traces: np.ndarray,
        start: int,
        spikes: np.ndarray,
        here: np.ndarray,
        shapes: Mapping[int, _Shape | None],
    ) -> None:
        """Measure amplitude, depth and waveform of the spikes in a second; `here` are their indices.

        `traces` begin at the frame `start` of the segment.
        """
        if len(here) == 0:
            return
        jitter = max(1, round(_PEAK_JITTER_MS / 1000 * self.sampling_frequency))
        for unit in np.unique(spikes["unit_index"][here]):
            shape = shapes[int(unit)]
            if shape is None:
                continue
            of_unit = here[spikes["unit_index"][here] == unit]
            frames = spikes["sample_index"][of_unit].astype(np.int64) - start
            around = np.arange(-jitter, jitter + 1)
            at = frames[:, None, None] + shape.samples[:, None] + around  # spikes, channels, samples
            deflections = (traces[at, shape.channels[:, None]] * shape.signs[:, None]).max(axis=2)
            self.amplitude[of_unit] = deflections[:, 0]
            weights = np.square(np.maximum(deflections, 1e-3))
            self.depth_um[of_unit] = weights @ shape.depth_um / weights.sum(axis=1)
            before, length = shape.waveform.num_before, len(shape.waveform.values)
            window = frames[:, None] + np.arange(-before, length - before)
            self._snippets[unit].append(traces[window, shape.channels[0]])
            self.pairs.add(int(unit), traces, frames)

    def snippets(self) -> list[np.ndarray]:
        """Return evenly chosen single waveforms of each unit."""
        chosen = []
        for parts in self._snippets:
            waveforms = np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)
            chosen.append(waveforms[spread(len(waveforms), MAX_SNIPPETS)])
        return chosen
