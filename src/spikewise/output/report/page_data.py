"""The data of a report as one JSON text, from which the page's scripts draw.

Arrays are little-endian numbers in base64; many are integers with a step, which halves their size. The text
and the plotting library are compressed, so that a page has a few megabytes and needs no other file.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spikewise.core.constants import REFRACTORY_MS
from spikewise.models.checkpoint import GroupModel
from spikewise.output.colours import colour_of
from spikewise.output.features import PairFeatures
from spikewise.output.firing import INTERVAL_BIN_MS, Firing
from spikewise.output.measures import CORRELOGRAM_BIN_MS, CORRELOGRAM_MS, UnitMeasures, spread
from spikewise.output.pairs import MIN_SIMILARITY, UnitPair
from spikewise.output.report.excerpts import Excerpt
from spikewise.output.report.motion_lines import MotionLine, motion_lines, moved_spikes
from spikewise.output.result import StoredResult
from spikewise.output.samples import MAX_SNIPPETS, SpikeSamples, nearest_channels

if TYPE_CHECKING:
    from spikewise.output.matching import Performance

# All of these were chosen by hand.
MAX_TEMPLATE_CHANNELS = 12
"""Most channels on which the mean waveform of a unit is drawn."""
MAX_SHOWN_SPIKES = 60_000
"""Most spikes with time, depth and amplitude in the page, evenly chosen, the same fraction of each unit."""
MAX_RASTER_SPIKES = 6000
"""Most spikes that the chart of spikes over time draws."""
GAP_UM = 100.0
"""Gap between probes that are drawn side by side because their coordinates overlap."""
_STEP = 0.01
"""Step of packed waveforms and amplitudes, in standard deviations of the noise."""
_TRACE_STEP = 0.05
"""Step of packed traces and single waveforms, in standard deviations of the noise."""
_FEATURE_STEP = 0.02
"""Step of packed principal components, in standard deviations of the noise."""
_MOVED_STEP = 0.05
"""Step of packed displacements, in um."""
_UNCERTAINTY_STEP = 0.01
"""Step of their packed uncertainties, in um."""
_SIMILARITY_STEP = 1 / 250
"""Step of packed similarities."""


@dataclass(frozen=True)
class TraceScale:
    """What the prepared traces of a group are measured in.

    Attributes
    ----------
    uV : ndarray or None
        (num_channels,) microvolts of their unit; None where the gain is not known.
    noise : float
        Noise of this recording in their unit. It is not 1 if a model divides by the noise that it learnt.
    """

    uV: np.ndarray | None = None
    noise: float = 1.0

    def of_channels(self, num_channels: int) -> list[float]:
        """Return the factors to microvolts, or to standard deviations of the noise without a gain."""
        return [1 / self.noise] * num_channels if self.uV is None else self.uV.tolist()


@dataclass(frozen=True)
class ReportContents:
    """Everything that a report shows of a result.

    Attributes
    ----------
    result : StoredResult
    units : list of UnitMeasures
    firing : Firing
    scales : mapping of str to TraceScale
        What the traces of each group are measured in; groups that are left out are in units of their noise.
    samples : SpikeSamples or None
        None without the recording.
    excerpts : sequence of Excerpt
        Empty without the recording.
    similarity : ndarray or None
        (num_units, num_units); None without the recording.
    pairs : sequence of UnitPair
        Empty without the recording.
    performance : Performance or None
        The comparison with the truth.
    truth_snr : sequence of float or None
        SNR of each true unit; empty if unknown.
    """

    result: StoredResult
    units: list[UnitMeasures]
    firing: Firing
    scales: Mapping[str, TraceScale]
    samples: SpikeSamples | None
    excerpts: Sequence[Excerpt]
    similarity: np.ndarray | None
    pairs: Sequence[UnitPair]
    performance: Performance | None
    truth_snr: Sequence[float | None]

    def depth_um(self, unit: UnitMeasures) -> float | None:
        """Return the second coordinate of a unit; None without a waveform."""
        place = unit_position(unit, np.asarray(unit.group.channel_positions_um, dtype=float)[:, :2])
        return None if place is None else place[1]

    def amplitude_uV(self, unit: UnitMeasures) -> float | None:
        """Return the largest deflection of a unit's mean waveform; None where the gain is not known."""
        scale, main = self.scale_of(unit.group), unit.main_channel
        if scale.uV is None or main is None or unit.waveform is None:
            return None
        return float(scale.uV[main] * unit.waveform.peaks[main])

    def snr(self, unit: UnitMeasures) -> float | None:
        """Return the largest deflection of a unit's mean waveform over the noise of this recording."""
        return None if unit.snr is None else unit.snr / self.scale_of(unit.group).noise

    def scale_of(self, group: GroupModel) -> TraceScale:
        """Return what the traces of a group are measured in."""
        return self.scales.get(group.name, TraceScale())


def compress(text: str) -> str:
    """Return a text as gzip in base64; the same text always gives the same bytes."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def pack(values: Any, dtype: str = "float32", step: float = 1.0) -> dict[str, Any]:
    """Return an array in the form that the page's ``unpack`` reads.

    Parameters
    ----------
    values : array_like
    dtype : str
        Type of the stored numbers. Integer types store ``values / step``, rounded and clipped; NaN becomes 0.
    step : float
        Step of an integer type.
    """
    array = np.asarray(values, dtype=float)
    if np.dtype(dtype).kind in "iu":
        limits = np.iinfo(dtype)
        array = np.clip(np.rint(np.nan_to_num(array) / step), limits.min, limits.max)
    data = np.ascontiguousarray(array, dtype=np.dtype(dtype).newbyteorder("<")).tobytes()
    return {
        "type": dtype,
        "step": step,
        "shape": list(array.shape),
        "data": base64.b64encode(data).decode(),
    }


def page_data(contents: ReportContents) -> str:
    """Return everything that a page draws as one line of JSON."""
    result, samples, performance = contents.result, contents.samples, contents.performance
    positions = drawn_positions(result.model.groups)
    data = {
        "duration_s": sum(result.num_samples) / result.sorting.sampling_frequency,
        "num_spikes": sum(unit.num_spikes for unit in contents.units),
        "label_interval_s": result.label_interval_s,
        "labels_are_everywhere": labels_are_everywhere(result),
        "limits": {
            "refractory_ms": REFRACTORY_MS,
            "correlogram_ms": CORRELOGRAM_MS,
            "correlogram_bin_ms": CORRELOGRAM_BIN_MS,
            "raster": MAX_RASTER_SPIKES,
            "interval_bin_ms": INTERVAL_BIN_MS,
            "similarity": MIN_SIMILARITY,
        },
        "groups": [
            {
                "name": group.name,
                "channel_ids": list(group.channel_ids),
                "silenced": [channel in group.silenced_channel_ids for channel in group.channel_ids],
                "positions": np.round(positions[group.name], 2).tolist(),
                "is_uV": contents.scale_of(group).uV is not None,
                "scale": contents.scale_of(group).of_channels(len(group.channel_ids)),
            }
            for group in result.model.groups
        ],
        "units": [_unit(unit, positions[unit.group.name]) for unit in contents.units],
        "waveforms": None if samples is None else _waveforms(contents.units, samples),
        "spikes": None if samples is None else _spikes(contents, samples),
        "motion": [_motion_line(line) for line in motion_lines(result)],
        "trains": _trains(result),
        "firing": _firing(contents.firing, float(result.sorting.sampling_frequency)),
        "excerpts": [_excerpt(excerpt) for excerpt in contents.excerpts],
        "similarity": None
        if contents.similarity is None
        else pack(contents.similarity, "uint8", _SIMILARITY_STEP),
        "pairs": _pairs(contents.pairs, [] if samples is None else samples.pair_features),
        "trainings": result.trainings,
        "truth": None if performance is None else _truth(performance, contents.truth_snr),
    }
    return json.dumps(_finite(data), separators=(",", ":"), allow_nan=False)


def labels_are_everywhere(result: StoredResult) -> bool:
    """Return whether the labels that trained the network are of the whole recording."""
    interval = result.label_interval_s
    if interval is None:
        return False
    return interval[0] <= 0 and interval[1] >= sum(result.num_samples) / result.sorting.sampling_frequency


def drawn_positions(groups: Sequence[GroupModel]) -> dict[str, np.ndarray]:
    """Return the positions (num_channels, 2), in um, at which the channels of each group are drawn.

    Groups whose coordinates overlap are moved side by side.
    """
    positions: dict[str, np.ndarray] = {}
    for group in groups:
        own = np.asarray(group.channel_positions_um, dtype=float)[:, :2].copy()
        others = np.concatenate([np.zeros((0, 2)), *positions.values()])
        if len(others) and own[:, 0].min() <= others[:, 0].max() and own[:, 0].max() >= others[:, 0].min():
            own[:, 0] += others[:, 0].max() + GAP_UM - own[:, 0].min()
        positions[group.name] = own
    return positions


def unit_position(unit: UnitMeasures, positions: np.ndarray) -> tuple[float, float] | None:
    """Return the mean over a unit's channels, weighted by the squared deflections; None without a waveform.

    `positions` are those of the channels of its group (num_channels, 2), in um.
    """
    if unit.waveform is None or unit.main_channel is None:
        return None
    near = nearest_channels(unit.group, unit.main_channel, len(positions))
    weights = np.square(unit.waveform.peaks[near])
    x, y = (weights @ positions[near] / weights.sum()).tolist()
    return x, y


def _unit(unit: UnitMeasures, positions: np.ndarray) -> dict[str, Any]:
    x, y = unit_position(unit, positions) or (None, None)
    return {
        "id": str(unit.unit_id),
        "group": unit.group.name,
        "colour": colour_of(unit.unit_index),
        "main": unit.main_channel,
        "x": x,
        "y": y,
        "threshold": unit.threshold,
        "correlogram": unit.correlogram.tolist(),
    }


def _waveforms(units: list[UnitMeasures], samples: SpikeSamples) -> dict[str, Any]:
    """Return the mean waveforms on near channels, and spread and single waveforms on the main channels."""
    waveforms = [unit.waveform for unit in units if unit.waveform is not None]
    if not waveforms:
        return {"channels": [], "num_samples": 0}
    num_samples, before = len(waveforms[0].values), waveforms[0].num_before
    most = max(len(unit.group.channel_ids) for unit in units)
    channels = np.full((len(units), min(MAX_TEMPLATE_CHANNELS, most)), -1)
    mean = np.zeros((*channels.shape, num_samples))
    deviation = np.zeros((len(units), num_samples))
    snippets = np.zeros((len(units), MAX_SNIPPETS, num_samples))
    counts = []
    for unit in units:
        index, main, single = unit.unit_index, unit.main_channel, samples.snippets[unit.unit_index]
        counts.append(len(single))
        if unit.waveform is None or main is None:
            continue
        near = nearest_channels(unit.group, main, channels.shape[1])
        channels[index, : len(near)] = near
        mean[index, : len(near)] = unit.waveform.values[:, near].T
        deviation[index] = unit.waveform.spread[:, main]
        if len(single):
            snippets[index, : len(single)] = single
    rate = units[0].sampling_frequency
    return {
        "num_samples": num_samples,
        "start_ms": -before / rate * 1000,
        "step_ms": 1000 / rate,
        "channels": channels.tolist(),
        "mean": pack(mean, "int16", _STEP),
        "deviation": pack(deviation, "int16", _STEP),
        "snippets": pack(snippets, "int16", _TRACE_STEP),
        "num_snippets": counts,
    }


def _spikes(contents: ReportContents, samples: SpikeSamples) -> dict[str, Any]:
    """Return a bounded part of the sampled spikes that have an amplitude, and the responses."""
    moved = moved_spikes(contents.result, contents.units, samples)
    rows = np.flatnonzero(np.isfinite(samples.amplitude))
    rows = rows[spread(len(rows), MAX_SHOWN_SPIKES)]
    return {
        "unit": pack(samples.unit_index[rows], "uint16"),
        "time_s": pack(samples.time_s[rows]),
        "amplitude": pack(samples.amplitude[rows], "int16", _STEP),
        "depth_um": pack(samples.depth_um[rows]),
        "moved_um": None if moved is None else pack(moved[rows], "int16", _MOVED_STEP),
        "responses": samples.responses.tolist(),
        "seconds_s": np.round(samples.seconds_s, 6).tolist(),
        "noise": pack(samples.noise, "uint16", _STEP),
        "num_seconds_evaluated": samples.num_seconds_evaluated,
    }


def _motion_line(line: MotionLine) -> dict[str, Any]:
    return {
        "group": line.group,
        "depth_um": line.depth_um,
        "parts": [
            {
                "time_s": pack(part.times_s),
                "moved_um": pack(part.moved_um, "int16", _MOVED_STEP),
                "uncertainty_um": None
                if part.uncertainty_um is None
                else pack(part.uncertainty_um, "uint16", _UNCERTAINTY_STEP),
            }
            for part in line.parts
        ],
    }


def _trains(result: StoredResult) -> dict[str, Any]:
    """Return the times of an evenly chosen part of all spikes."""
    spikes = result.sorting.to_spike_vector()
    spikes = spikes[spread(len(spikes), MAX_RASTER_SPIKES)]
    offsets = np.cumsum([0, *result.num_samples])
    times = (offsets[spikes["segment_index"]] + spikes["sample_index"]) / result.sorting.sampling_frequency
    return {"unit": pack(spikes["unit_index"], "uint16"), "time_s": pack(times)}


def _firing(firing: Firing, rate: float) -> dict[str, Any]:
    return {
        "intervals": pack(firing.intervals, "uint32"),
        "counts": pack(firing.counts, "uint32"),
        "bin_s": firing.rate_bin_s,
        "compared": {
            "unit": pack(firing.compared_units, "uint16"),
            "step": pack(np.diff(firing.compared_frames, prepend=0), "uint32"),
            "frames_per_ms": rate / 1000,
            "seconds": firing.compared_s,
        },
    }


def _excerpt(excerpt: Excerpt) -> dict[str, Any]:
    return {
        "start_s": excerpt.start_s,
        "step_ms": 1000 / excerpt.sampling_frequency,
        "channels": list(excerpt.channel_ids),
        "group": excerpt.group,
        "channel_index": list(excerpt.channel_index),
        "traces": pack(excerpt.traces.T, "int16", _TRACE_STEP),
        "spikes": excerpt.spikes,
        "num_spikes": excerpt.num_spikes,
    }


def _pairs(pairs: Sequence[UnitPair], features: Sequence[PairFeatures]) -> list[dict[str, Any]]:
    return [
        {
            "first": pair.first,
            "second": pair.second,
            "similarity": pair.similarity,
            "reason": pair.reason,
            "correlogram": pair.correlogram.tolist(),
            "features": [pack(part, "int16", _FEATURE_STEP) for part in (found.first, found.second)],
            "channels": list(found.channel_ids),
        }
        for pair, found in zip(pairs, features, strict=True)
    ]


def _truth(performance: Performance, truth_snr: Sequence[float | None]) -> dict[str, Any]:
    """Return the scores of the true units that fire in the time compared, and the confusion matrix."""
    rows = [
        {**row, "snr": snr}
        for row, snr in zip(
            performance.to_dict()["units"], truth_snr or [None] * len(performance.units), strict=True
        )
        if row["num_truth"] > 0
    ]
    fires = performance.units["num_truth"].to_numpy() > 0
    return {
        "units": [{**row, "truth_unit": str(row["truth_unit"])} for row in rows],
        "common": performance.common.to_numpy()[fires].tolist(),
        "tested": [str(unit_id) for unit_id in performance.common.columns],
    }


def _finite(value: Any) -> Any:
    """Return a JSON value with None in place of numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
