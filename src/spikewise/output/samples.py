"""A bounded number of spikes, each with amplitude and depth, and the network's responses: drift and doubt.

The recording is looked at in whole seconds, evenly spread, so that hours cost no more than a minute; spikes
at the edge of a second are passed over, so that the seconds beside it need not be read. In a part
of them the network is asked again, and every peak of its response is kept, whether or not it became a spike:
the gap between the two kinds is how sure a unit is. Amplitudes are in standard deviations of the noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from spikeinterface.metrics.quality.misc_metrics import amplitude_cutoff

from spikewise.core.config import SortingConfig
from spikewise.data.recordings.reader import TraceReader
from spikewise.models.checkpoint import GroupModel
from spikewise.output.measures import (
    WAVEFORM_AFTER_MS,
    WAVEFORM_BEFORE_MS,
    MeanWaveform,
    UnitMeasures,
    spread,
)
from spikewise.output.result import StoredResult
from spikewise.sorting.detect import make_detector

MAX_SECONDS_SAMPLED = 40
MAX_SECONDS_ASKED = 20
"""Seconds in which the network is asked again."""
MAX_SAMPLED_SPIKES = 600
"""Spikes of a unit of which amplitude and depth are taken, at most."""
MAX_SNIPPETS = 24
"""Single waveforms of a unit that are kept, at most."""
LEAST_RESPONSE = 0.05
"""Peaks of the response below this, and below the unit's threshold, are not kept."""
RESPONSE_BINS = 40
NEAR_UM = 100.0
_PEAK_JITTER_MS = 0.1
_LEAST_SHARE = 0.3  # of its largest deflection that a unit has on the channels that tell its depth


@dataclass(frozen=True)
class SpikeSamples:
    """Spikes of all units, ordered by unit, then time; arrays are (num_spikes,).

    Attributes
    ----------
    unit_index : ndarray of int64
    time_s : ndarray
        From the start of the recording, segments laid end to end.
    amplitude : ndarray
        Deflection on the unit's main channel, where its mean waveform is largest.
    depth_um : ndarray
        Second coordinate of the spike: the mean over the channels near its unit, weighted by the squared
        deflections.
    snippets : list of ndarray
        For each unit (num_snippets, num_samples) single waveforms on the main channel.
    responses : ndarray
        (num_units, :data:`RESPONSE_BINS`) numbers of peaks of the response, in bins from 0 to 1.
    num_seconds, num_seconds_asked : int
        How many seconds of the recording were looked at, and in how many the network was asked.
    """

    unit_index: np.ndarray
    time_s: np.ndarray
    amplitude: np.ndarray
    depth_um: np.ndarray
    snippets: list[np.ndarray]
    responses: np.ndarray
    num_seconds: int
    num_seconds_asked: int

    def of_unit(self, unit_index: int) -> slice:
        """Return where the spikes of a unit lie."""
        first, last = np.searchsorted(self.unit_index, [unit_index, unit_index + 1])
        return slice(int(first), int(last))

    def amplitude_cutoff(self, unit_index: int) -> float | None:
        """Return the fraction of spikes too small to be found, as SpikeInterface estimates it.

        None where fewer than 500 amplitudes tell it.
        """
        missing = float(amplitude_cutoff(self.amplitude[self.of_unit(unit_index)]))
        return None if np.isnan(missing) else missing


def sample_spikes(
    result: StoredResult, units: list[UnitMeasures], readers: Mapping[str, TraceReader]
) -> SpikeSamples:
    """Look at spikes in evenly spread seconds of the recording.

    Parameters
    ----------
    result : StoredResult
    units : list of UnitMeasures
        With waveforms.
    readers : mapping of str to TraceReader
        The preprocessed traces of each group of the model.

    Raises
    ------
    RecordingError
        If the traces cannot be read.
    """
    rate = result.sorting.sampling_frequency
    seconds = _whole_seconds(result.num_samples, rate)
    seen = [seconds[index] for index in spread(len(seconds), MAX_SECONDS_SAMPLED)]
    asked = {seen[index] for index in spread(len(seen), MAX_SECONDS_ASKED)}
    margin = round((WAVEFORM_BEFORE_MS + WAVEFORM_AFTER_MS) / 1000 * rate)
    rows = _choose_rows(result, [(segment, start + margin, stop - margin) for segment, start, stop in seen])
    spikes = result.sorting.to_spike_vector()[rows]
    offsets = np.cumsum([0, *result.num_samples])
    found = _Found(len(spikes), len(units))
    for group in result.model.groups:
        shapes = {unit.unit_index: _shape(unit) for unit in units if unit.group is group}
        if not shapes:
            continue
        first_unit = min(shapes)
        detector = make_detector(
            group.network,
            np.minimum(LEAST_RESPONSE, group.thresholds),
            rate,
            result.model.detection_config,
            SortingConfig(),
        )
        for segment, start, stop in seen:
            here = np.flatnonzero(
                (spikes["segment_index"] == segment)
                & (spikes["sample_index"] >= start)
                & (spikes["sample_index"] < stop)
                & np.isin(spikes["unit_index"], list(shapes))
            )
            found.look(readers[group.name], (segment, start, stop), spikes, here, shapes)
            if (segment, start, stop) in asked:
                peaks = detector.find(readers[group.name], segment, start, stop)
                bins = np.minimum((peaks.response * RESPONSE_BINS).astype(np.int64), RESPONSE_BINS - 1)
                np.add.at(found.responses, (peaks.unit_index + first_unit, bins), 1)
    return SpikeSamples(
        unit_index=spikes["unit_index"].astype(np.int64),
        time_s=(offsets[spikes["segment_index"]] + spikes["sample_index"]) / rate,
        amplitude=found.amplitude,
        depth_um=found.depth_um,
        snippets=found.snippets(),
        responses=found.responses,
        num_seconds=len(seen),
        num_seconds_asked=len(asked),
    )


def _whole_seconds(num_samples: list[int], rate: float) -> list[tuple[int, int, int]]:
    """Return segment, start and end of each second of the recording; the last of a segment may be shorter."""
    length = round(rate)
    return [
        (segment, start, min(start + length, total))
        for segment, total in enumerate(num_samples)
        for start in range(0, total, length)
    ]


def _choose_rows(result: StoredResult, seconds: list[tuple[int, int, int]]) -> np.ndarray:
    """Return which spikes are looked at: of each unit some of those in these stretches, unit after unit."""
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
    """Where a unit deflects: its channels and, on each, when after the spike, which way, and the depth."""

    channels: np.ndarray
    samples: np.ndarray
    signs: np.ndarray
    depth_um: np.ndarray
    waveform: MeanWaveform


def _shape(unit: UnitMeasures) -> _Shape | None:
    """Describe the deflections of a unit, the main channel first; None without a waveform."""
    waveform, main = unit.waveform, unit.main_channel
    if waveform is None or main is None:
        return None
    peaks = waveform.peaks
    strong = np.flatnonzero(peaks >= _LEAST_SHARE * peaks[main])
    near = nearest_channels(unit.group, main, len(peaks))
    channels = near[np.isin(near, strong)]
    samples = np.abs(waveform.values[:, channels]).argmax(axis=0)
    signs = np.sign(waveform.values[samples, channels])
    depth_um = np.asarray(unit.group.channel_positions_um, dtype=float)[channels, 1]
    return _Shape(channels, samples - waveform.num_before, signs, depth_um, waveform)


def nearest_channels(group: GroupModel, channel: int, max_channels: int) -> np.ndarray:
    """Return the channels within :data:`NEAR_UM` of one, itself first, then by distance."""
    positions = np.asarray(group.channel_positions_um, dtype=float)[:, :2]
    distance = np.hypot(*(positions - positions[channel]).T)
    order = np.argsort(distance, kind="stable")
    order = np.concatenate([[channel], order[order != channel]])
    return order[distance[order] <= NEAR_UM][:max_channels]


class _Found:
    """What is gathered of the spikes, second by second."""

    def __init__(self, num_spikes: int, num_units: int):
        self.amplitude, self.depth_um = (np.full(num_spikes, np.nan) for _ in range(2))
        self.responses = np.zeros((num_units, RESPONSE_BINS), dtype=np.int64)
        self._snippets: list[list[np.ndarray]] = [[] for _ in range(num_units)]

    def look(
        self,
        reader: TraceReader,
        second: tuple[int, int, int],
        spikes: np.ndarray,
        here: np.ndarray,
        shapes: Mapping[int, _Shape | None],
    ) -> None:
        """Take amplitude, depth and waveform of the spikes in a second."""
        if len(here) == 0:
            return
        segment, start, stop = second
        jitter = max(1, round(_PEAK_JITTER_MS / 1000 * reader.sampling_frequency))
        traces = reader.read(segment, start, stop)
        for unit in np.unique(spikes["unit_index"][here]):
            shape = shapes[int(unit)]
            if shape is None:
                continue
            mine = here[spikes["unit_index"][here] == unit]
            frames = spikes["sample_index"][mine].astype(np.int64) - start
            around = np.arange(-jitter, jitter + 1)
            at = frames[:, None, None] + shape.samples[:, None] + around  # spikes, channels, samples
            deflections = (traces[at, shape.channels[:, None]] * shape.signs[:, None]).max(axis=2)
            self.amplitude[mine] = deflections[:, 0]
            weights = np.square(np.maximum(deflections, 1e-3))
            self.depth_um[mine] = weights @ shape.depth_um / weights.sum(axis=1)
            before, length = shape.waveform.num_before, len(shape.waveform.values)
            window = frames[:, None] + np.arange(-before, length - before)
            self._snippets[unit].append(traces[window, shape.channels[0]])

    def snippets(self) -> list[np.ndarray]:
        """Return single waveforms of each unit, evenly chosen."""
        found = []
        for parts in self._snippets:
            waveforms = np.concatenate(parts) if parts else np.zeros((0, 0), dtype=np.float32)
            found.append(waveforms[spread(len(waveforms), MAX_SNIPPETS)])
        return found
