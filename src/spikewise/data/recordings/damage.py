"""Damaged stretches of raw traces: what is no signal of neurons, found as the traces stream.

A stretch is damaged where samples are not finite (``not finite``), where a channel does not change for a
millisecond (``zeros``, ``saturated`` far from its usual level, ``constant`` elsewhere), where half of the
channels jump at once by far more than their noise (``artefact``, as of a stimulation), and where the clock of
the recording jumps (``time jump``). A channel whose samples hardly ever change, as in a simulation without
noise, cannot be judged and is left as it is.

Each rule looks at the samples within a fixed reach, so that what is found does not depend on how a recording
is cut. Raw traces are (num_samples, num_channels); stretches are half open, in frames of their segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from spikeinterface.core import BaseRecording

from spikewise.core.compiling import compiled
from spikewise.data.recordings.channels import draw_chunks
from spikewise.data.recordings.conditioning import medians
from spikewise.data.recordings.formats import reading_errors

KINDS = ("not finite", "zeros", "constant", "saturated", "artefact", "time jump")
ALL_CHANNELS = -1
STRETCH = np.dtype([("start", np.int64), ("stop", np.int64), ("channel_index", np.int32), ("kind", np.int8)])
"""A damaged stretch of one channel, or of :data:`ALL_CHANNELS`; `kind` is an index of :data:`KINDS`."""

MANY_CHANNELS = 32
ARTEFACT_NOISE = {"many channels": 20.0, "few channels": 80.0}
"""Standard deviations by which half of the channels must jump; on few channels a spike may reach them all."""
TAIL_NOISE = 20.0
"""Standard deviations by which half of the channels jump in what an artefact leaves behind, for _TAIL_MS."""
_MEASURED_S = 0.2
_LISTENERS = 32
"""An artefact reaches all channels, so that so many of them, evenly spread, tell."""
_FLAT_MS = 1.0
_JUMP_MS = 0.2
_TAIL_MS = 10.0
_JOIN_MS = 5.0
"""Between two artefacts that are closer, nothing is usable."""
_MARGIN_MS = {"flat": (0.5, 0.5), "artefact": (1.0, 3.0), "time jump": (1.0, 1.0)}
_NEARLY_ALL = 0.75
"""Fraction of the channels from which on a flat stretch is one of all: a lost packet, say."""
_FAR_FROM_USUAL = 30.0
"""Standard deviations of the noise from the usual level at which a constant value is saturation."""


@dataclass(frozen=True)
class DamageLimits:
    """What tells damage from signal in one recording.

    Attributes
    ----------
    centers : ndarray
        (num_channels,) usual level of each channel, in raw units.
    noise_levels : ndarray
        (num_channels,) standard deviation of a channel's noise, from its differences over 0.2 ms; 0 for a
        channel that cannot be judged.
    artefact_noise : float
        Standard deviations by which an artefact jumps.
    """

    centers: np.ndarray
    noise_levels: np.ndarray
    artefact_noise: float

    @property
    def listeners(self) -> np.ndarray:
        """Channels that are asked for artefacts."""
        judged = np.flatnonzero(self.noise_levels > 0)
        spread = np.linspace(0, len(judged) - 1, min(len(judged), _LISTENERS)).round().astype(np.int64)
        return judged[spread]


def samples_of(duration_ms: float, sampling_frequency: float) -> int:
    """Return how many samples a duration has, 1 at least."""
    return max(1, round(duration_ms * sampling_frequency / 1000))


def reach_samples(sampling_frequency: float) -> int:
    """Return how far to either side of a sample the rules look."""
    durations = (_FLAT_MS, _JUMP_MS, _TAIL_MS, _JOIN_MS, *_MARGIN_MS["artefact"])
    return sum(samples_of(duration, sampling_frequency) for duration in durations) + 2


def measure_limits(recording: BaseRecording, artefact_noise: float | None, seed: int) -> DamageLimits:
    """Measure the usual level and the noise of each channel in seeded chunks.

    Parameters
    ----------
    recording : BaseRecording
        Raw recording of one group.
    artefact_noise : float or None
        Standard deviations by which an artefact jumps; None: by the number of channels.
    seed : int

    Raises
    ------
    RecordingError
        If the recording cannot be read.
    """
    lag = samples_of(_JUMP_MS, recording.get_sampling_frequency())
    centers: list[np.ndarray] = []
    deviations: list[np.ndarray] = []
    for segment_index, start, stop in draw_chunks(recording, _MEASURED_S, seed):
        with reading_errors("the recording"):
            traces = recording.get_traces(segment_index, start, stop).astype(np.float32)
        if not np.isfinite(traces.sum()):
            traces[~np.isfinite(traces)] = np.nan
        centers.append(_median(traces))
        if len(traces) > lag:
            deviations.append(_median(np.abs(traces[lag:] - traces[:-lag])))
    per_chunk = np.array(deviations) if deviations else np.zeros((1, recording.get_num_channels()))
    varies = np.where(per_chunk > 0, per_chunk, np.nan)  # a chunk in which a channel is dead says nothing
    noise_levels = np.nan_to_num(_median(varies)) * 1.4826 / np.sqrt(2)
    if artefact_noise is None:
        many = recording.get_num_channels() >= MANY_CHANNELS
        artefact_noise = ARTEFACT_NOISE["many channels" if many else "few channels"]
    return DamageLimits(np.nan_to_num(_median(np.array(centers))), noise_levels, artefact_noise)


def find_damage(
    traces: np.ndarray, first_frame: int, sampling_frequency: float, limits: DamageLimits
) -> np.ndarray:
    """Find the damaged stretches of raw traces; those of the clock are found by :func:`find_time_jumps`.

    Parameters
    ----------
    traces : ndarray
        (num_samples, num_channels), with :func:`reach_samples` to either side of what is asked for, or the
        ends of the segment.
    first_frame : int
        Frame of the first sample.
    sampling_frequency : float
        In Hz.
    limits : DamageLimits

    Returns
    -------
    ndarray of STRETCH
        With their margins, in no order; they may overlap, and reach beyond the traces by the margins.
    """
    if not len(traces):
        return np.empty(0, STRETCH)
    if not traces.dtype.isnative:
        traces = traces.astype(traces.dtype.newbyteorder("="))
    parts = [
        _not_finite(traces, sampling_frequency),
        _flat(traces, first_frame, sampling_frequency, limits),
        _artefacts(traces, sampling_frequency, limits),
    ]
    found = np.concatenate(parts)
    found["start"] += first_frame
    found["stop"] += first_frame
    return found


def find_time_jumps(times: np.ndarray, first_frame: int, sampling_frequency: float) -> np.ndarray:
    """Find where two samples are not one step of the clock apart, by half a step or more.

    Parameters
    ----------
    times : ndarray
        (num_samples,) time of each sample, s.
    first_frame : int
        Frame of the first.
    sampling_frequency : float
        In Hz.

    Returns
    -------
    ndarray of STRETCH
    """
    steps = np.diff(times) * sampling_frequency
    after = np.flatnonzero(~(np.abs(steps - 1) < 0.5)) + 1 + first_frame
    return _stretches(after, after, "time jump", ALL_CHANNELS, _margin("time jump", sampling_frequency))


def clip_stretches(stretches: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return the parts of stretches between two frames, in order of time, then channel."""
    clipped = stretches[(stretches["start"] < stop) & (stretches["stop"] > start)]
    clipped["start"] = np.maximum(clipped["start"], start)
    clipped["stop"] = np.minimum(clipped["stop"], stop)
    return clipped[np.lexsort((clipped["kind"], clipped["channel_index"], clipped["start"]))]


def union(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join intervals that overlap or touch; return their starts and stops, rising."""
    if not len(starts):
        return starts, stops
    order = np.argsort(starts, kind="stable")
    starts, furthest = starts[order], np.maximum.accumulate(stops[order])
    is_first = np.concatenate(([True], starts[1:] > furthest[:-1]))
    is_last = np.concatenate((is_first[1:], [True]))
    return starts[is_first], furthest[is_last]


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median over the first axis of what is finite; NaN where nothing is."""
    if np.isfinite(values).all():
        return medians(np.ascontiguousarray(values.T)).astype(np.float64)
    ordered = np.sort(values, axis=0)  # NaN last
    count = np.isfinite(ordered).sum(axis=0)
    columns = np.arange(values.shape[1])
    low, high = ordered[np.maximum(count - 1, 0) // 2, columns], ordered[count // 2 % len(values), columns]
    return np.where(count > 0, (low.astype(np.float64) + high) / 2, np.nan)


def _margin(kind: str, sampling_frequency: float) -> tuple[int, int]:
    before, after = _MARGIN_MS[kind]
    return samples_of(before, sampling_frequency), samples_of(after, sampling_frequency)


def _stretches(
    starts: np.ndarray, stops: np.ndarray, kind: str, channel_index: int, margin: tuple[int, int]
) -> np.ndarray:
    made = np.zeros(len(starts), STRETCH)
    made["start"], made["stop"] = starts - margin[0], stops + margin[1]
    made["channel_index"], made["kind"] = channel_index, KINDS.index(kind)
    return made


def _not_finite(traces: np.ndarray, sampling_frequency: float) -> np.ndarray:
    if traces.dtype.kind != "f" or np.isfinite(traces.sum(dtype=np.float64)):
        return np.empty(0, STRETCH)
    bad = ~np.isfinite(traces)
    margin = _margin("flat", sampling_frequency)
    parts = [np.empty(0, STRETCH)]
    for channel_index in np.flatnonzero(bad.any(axis=0)).tolist():
        starts, stops = _runs(bad[:, channel_index])
        parts.append(_stretches(starts, stops, "not finite", channel_index, margin))
    return _join_channels(np.concatenate(parts), traces.shape[1], sampling_frequency)


def _flat(
    traces: np.ndarray, first_frame: int, sampling_frequency: float, limits: DamageLimits
) -> np.ndarray:
    """Find runs of one value; only channels that stand still near some point of a grid are looked at."""
    length = samples_of(_FLAT_MS, sampling_frequency)
    is_candidate = np.zeros(traces.shape[1], np.bool_)
    step = max(1, length // 2)
    _stand_still(traces, -first_frame % step, step, max(2, length - step - 1), is_candidate)
    margin = _margin("flat", sampling_frequency)
    parts = [np.empty(0, STRETCH)]
    for channel_index in np.flatnonzero(is_candidate & (limits.noise_levels > 0)).tolist():
        values = np.ascontiguousarray(traces[:, channel_index])
        starts, stops = _runs(values[1:] == values[:-1])
        stops = stops + 1  # of samples, not of differences
        is_long = stops - starts >= length
        made = _stretches(starts[is_long], stops[is_long], "constant", channel_index, margin)
        made["kind"] = _kinds_of_flat(values[starts[is_long]], channel_index, limits)
        parts.append(made)
    return _join_channels(np.concatenate(parts), traces.shape[1], sampling_frequency)


def _kinds_of_flat(values: np.ndarray, channel_index: int, limits: DamageLimits) -> np.ndarray:
    """Return the kind of each run of one value."""
    far = _FAR_FROM_USUAL * limits.noise_levels[channel_index]
    is_saturated = np.abs(values.astype(np.float64) - limits.centers[channel_index]) > far
    if values.dtype.kind in "iu":
        info = np.iinfo(values.dtype)
        is_saturated |= (values == info.min) | (values == info.max)
    kinds = np.where(is_saturated, KINDS.index("saturated"), KINDS.index("constant"))
    return np.where(values == 0, KINDS.index("zeros"), kinds)


def _artefacts(traces: np.ndarray, sampling_frequency: float, limits: DamageLimits) -> np.ndarray:
    listeners, lag = limits.listeners, samples_of(_JUMP_MS, sampling_frequency)
    if not len(listeners) or len(traces) <= lag:
        return np.empty(0, STRETCH)
    noise = np.sqrt(2) * limits.noise_levels[listeners]
    jumps = _jumps(traces, listeners, (limits.artefact_noise * noise).astype(np.float32), lag)
    if not jumps.any():
        return np.empty(0, STRETCH)
    if limits.artefact_noise > TAIL_NOISE:
        smaller = _jumps(traces, listeners, (TAIL_NOISE * noise).astype(np.float32), lag)
        jumps |= smaller & _follows(jumps, samples_of(_TAIL_MS, sampling_frequency))
    jumps = np.flatnonzero(jumps) + lag
    apart = np.diff(jumps) > samples_of(_JOIN_MS, sampling_frequency)
    starts, stops = jumps[np.concatenate(([True], apart))], jumps[np.concatenate((apart, [True]))]
    margin = _margin("artefact", sampling_frequency)
    return _stretches(starts - lag, stops + 1, "artefact", ALL_CHANNELS, margin)


def _follows(flags: np.ndarray, reach: int) -> np.ndarray:
    """Tell where a true value lies at most so many samples before."""
    places = np.where(flags, np.arange(len(flags)), -reach - 1)
    return np.arange(len(flags)) - np.maximum.accumulate(places) <= reach


def _runs(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return start and stop of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return edges[::2], edges[1::2]


def _join_channels(stretches: np.ndarray, num_channels: int, sampling_frequency: float) -> np.ndarray:
    """Let what damages nearly all channels at once damage all, and be told once."""
    if num_channels == 1 or len(stretches) < _NEARLY_ALL * num_channels:
        return stretches
    places = np.concatenate((stretches["start"], stretches["stop"]))
    steps = np.repeat([1, -1], len(stretches))
    order = np.lexsort((steps, places))
    together = np.cumsum(steps[order]) >= _NEARLY_ALL * num_channels
    starts, stops = _runs(together)
    shared = np.zeros(len(starts), STRETCH)
    shared["start"], shared["stop"] = places[order[starts]], places[order[stops]]
    shared = shared[shared["start"] < shared["stop"]]
    shared["channel_index"] = ALL_CHANNELS
    ragged = samples_of(_FLAT_MS, sampling_frequency)  # channels differ by what happened to be equal
    rest = stretches
    for one in shared:
        overlaps = stretches[(stretches["start"] < one["stop"]) & (stretches["stop"] > one["start"])]
        one["kind"] = np.bincount(overlaps["kind"]).argmax()
        before, after = rest.copy(), rest.copy()
        before["stop"] = np.minimum(rest["stop"], one["start"] - ragged)
        after["start"] = np.maximum(rest["start"], one["stop"] + ragged)
        parts = [part[part["start"] < part["stop"]] for part in (before, after)]
        rest = np.concatenate(parts)
    return np.concatenate((rest, shared))


@compiled()
def _stand_still(traces: np.ndarray, first: int, step: int, width: int, is_candidate: np.ndarray) -> None:
    """Mark channels that keep a value for `width` samples, 2 at least, before some row of a grid."""
    num_samples, num_channels = traces.shape
    still = np.empty(num_channels, np.uint8)
    for row in range(first, num_samples, step):
        if row < width:
            continue
        for channel in range(num_channels):
            value = traces[row, channel]
            still[channel] = (value == traces[row - 1, channel]) & (value == traces[row - 2, channel])
        count = 0
        for channel in range(num_channels):
            count += still[channel]
        if count == 0:
            continue
        for channel in range(num_channels):
            if still[channel]:
                back = 3
                while back <= width and traces[row - back, channel] == traces[row, channel]:
                    back += 1
                is_candidate[channel] |= back > width


@compiled()
def _jumps(traces: np.ndarray, listeners: np.ndarray, highest: np.ndarray, lag: int) -> np.ndarray:
    """Tell for each row whether half of the listeners differ by more than allowed from `lag` rows before."""
    jumps = np.zeros(traces.shape[0] - lag, np.bool_)
    for row in range(lag, traces.shape[0]):
        count = 0
        for index in range(len(listeners)):
            channel = listeners[index]
            change = np.float32(traces[row, channel]) - np.float32(traces[row - lag, channel])
            count += highest[index] < abs(change) < np.inf
        jumps[row - lag] = 2 * count >= len(listeners)
    return jumps
