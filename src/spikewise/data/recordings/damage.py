"""Find damaged stretches of raw traces while the traces are read.

A stretch is damaged

- where samples are not finite (``not finite``);
- where a channel does not change for a millisecond: ``zeros``, ``saturated`` if far from its usual level,
  otherwise ``constant``;
- where a few samples of a channel are far off both sides, farther than any spike, as flipped bits are
  (``glitch``);
- where half of the channels jump at once by much more than their noise, as in a stimulation (``artefact``);
- where the clock of the recording jumps (``time jump``).

A channel whose samples hardly ever change, as in a simulation without noise, cannot be judged and stays as it
is. Each rule uses the samples within a fixed reach, so the result does not depend on how a recording is cut.
Raw traces are (num_samples, num_channels); stretches are half open, in frames of their segment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from spikeinterface.core import BaseRecording

from spikewise.core.compiling import compiled
from spikewise.data.recordings.channels import draw_chunks
from spikewise.data.recordings.clock import find_jumps
from spikewise.data.recordings.conditioning import medians
from spikewise.data.recordings.conditioning_loops import are_finite
from spikewise.data.recordings.formats import reading_errors

KINDS = ("not finite", "zeros", "constant", "saturated", "artefact", "time jump", "glitch")
"""Kinds of damage."""
ALL_CHANNELS = -1
"""Channel index of a stretch in which all channels are damaged."""
STRETCH = np.dtype([("start", np.int64), ("stop", np.int64), ("channel_index", np.int32), ("kind", np.int8)])
"""A damaged stretch of one channel, or of :data:`ALL_CHANNELS`; `kind` is an index of :data:`KINDS`."""

LOW_LIMIT_CHANNELS = 32
"""From so many channels on, no spike reaches half of them, and ARTEFACT_NOISE holds; chosen by hand."""
ARTEFACT_NOISE = 20.0
"""An artefact is a jump of half of the channels by so many standard deviations; chosen by hand."""
ARTEFACT_NOISE_FEW_CHANNELS = 80.0
"""The same limit on fewer channels, all of which one spike may reach; chosen by hand."""
TAIL_NOISE = 20.0
"""The lower limit that holds for _TAIL_MS after an artefact; measured in docs/design-notes.md, "Damage"."""
_MEASURED_S = 0.2
"""Length of a chunk in which level and noise are measured; chosen by hand."""
_MAX_ARTEFACT_CHANNELS = 32
"""Most channels, evenly spread, that are tested for artefacts, which reach all channels; chosen by hand."""
_FLAT_MS = 1.0
"""Shortest constant stretch that is damage; chosen by hand."""
_JUMP_MS = 0.2
"""Time within which an artefact jumps; chosen by hand."""
_TAIL_MS = 10.0
"""How long TAIL_NOISE holds after a jump of an artefact; chosen by hand."""
_GLITCH_NOISE = 300.0
"""A peak so many standard deviations above the samples _GLITCH_MS before and after it is no spike; chosen by
hand. Spikes of an electrode outside of a cell reach 100."""
_GLITCH_STEP_NOISE = 1e5
"""A step of so many standard deviations within _JUMP_MS is none of a signal: 16 bits do not reach so far."""
_GLITCH_MS = 0.1
"""Distance of the samples with which a glitch is compared; chosen by hand."""
_GLITCH_JOIN_MS = 1.0
"""Two glitches of a channel that are closer become one; chosen by hand."""
_JOIN_MS = 5.0
"""Two artefacts that are closer become one; chosen by hand."""
_MARGIN_MS = {"flat": (0.5, 0.5), "artefact": (1.0, 3.0), "time jump": (1.0, 1.0)}
"""Margin before and after a stretch that is damaged too; chosen by hand."""
_NEARLY_ALL = 0.75
"""A stretch that so large a fraction of the channels share is damage of all channels; chosen by hand."""
_SATURATION_NOISE = 30.0
"""A constant value is saturation if so many standard deviations from the usual level; chosen by hand."""


@dataclass(frozen=True)
class DamageLimits:
    """Levels and limits by which damage is found in one recording.

    Attributes
    ----------
    centers : ndarray
        (num_channels,) usual level of each channel, in raw units.
    noise_levels : ndarray
        (num_channels,) standard deviation of a channel's noise, from its differences over _JUMP_MS; 0 for a
        channel that cannot be judged.
    artefact_noise : float
        Smallest jump of an artefact, in standard deviations.
    """

    centers: np.ndarray
    noise_levels: np.ndarray
    artefact_noise: float

    @property
    def artefact_channels(self) -> np.ndarray:
        """Indices of the channels that are tested for artefacts."""
        judged = np.flatnonzero(self.noise_levels > 0)
        count = min(len(judged), _MAX_ARTEFACT_CHANNELS)
        return judged[np.linspace(0, len(judged) - 1, count).round().astype(np.int64)]


def samples_of(duration_ms: float, sampling_frequency: float) -> int:
    """Return the number of samples of a duration, at least 1."""
    return max(1, round(duration_ms * sampling_frequency / 1000))


def reach_samples(sampling_frequency: float) -> int:
    """Return how many samples on either side of a sample the rules use."""
    durations = (_FLAT_MS, _JUMP_MS, _TAIL_MS, _JOIN_MS, *_MARGIN_MS["artefact"])
    return sum(samples_of(duration, sampling_frequency) for duration in durations) + 2


def measure_limits(recording: BaseRecording, artefact_noise: float | None, seed: int) -> DamageLimits:
    """Measure the usual level and the noise of each channel in seeded chunks.

    Parameters
    ----------
    recording : BaseRecording
        Raw recording of one group.
    artefact_noise : float or None
        Smallest jump of an artefact, in standard deviations; None: by the number of channels.
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
        if not are_finite(traces):
            traces[~np.isfinite(traces)] = np.nan
        centers.append(_median(traces))
        if len(traces) > lag:
            deviations.append(_median(np.abs(traces[lag:] - traces[:-lag])))
    per_chunk = np.array(deviations) if deviations else np.zeros((1, recording.get_num_channels()))
    varies = np.where(per_chunk > 0, per_chunk, np.nan)  # chunks in which a channel is dead are left out
    noise_levels = np.nan_to_num(_median(varies)) * 1.4826 / np.sqrt(2)
    if artefact_noise is None:
        many = recording.get_num_channels() >= LOW_LIMIT_CHANNELS
        artefact_noise = ARTEFACT_NOISE if many else ARTEFACT_NOISE_FEW_CHANNELS
    return DamageLimits(np.nan_to_num(_median(np.array(centers))), noise_levels, artefact_noise)


def find_damage(
    traces: np.ndarray, first_frame: int, sampling_frequency: float, limits: DamageLimits
) -> np.ndarray:
    """Find the damaged stretches of raw traces; :func:`find_time_jumps` finds those of the clock.

    Parameters
    ----------
    traces : ndarray
        (num_samples, num_channels), the requested samples with :func:`reach_samples` on either side, or up
        to the ends of the segment.
    first_frame : int
        Frame of the first sample.
    sampling_frequency : float
        In Hz.
    limits : DamageLimits

    Returns
    -------
    ndarray of STRETCH
        With their margins, in any order; they may overlap, and exceed the traces by the margins.
    """
    if not len(traces):
        return np.empty(0, STRETCH)
    if not traces.dtype.isnative:
        traces = traces.astype(traces.dtype.newbyteorder("="))
    parts = [
        _not_finite(traces, sampling_frequency),
        _flat(traces, first_frame, sampling_frequency, limits),
        _artefacts(traces, sampling_frequency, limits),
        _glitches(traces, sampling_frequency, limits),
    ]
    found = np.concatenate(parts)
    found["start"] += first_frame
    found["stop"] += first_frame
    return found


def find_time_jumps(times: np.ndarray, first_frame: int, sampling_frequency: float) -> np.ndarray:
    """Return the stretches around the jumps of a clock; see :func:`clock.find_jumps`."""
    after = find_jumps(times, first_frame, sampling_frequency)
    return _stretches(after, after, "time jump", ALL_CHANNELS, _margin("time jump", sampling_frequency))


def clip_stretches(stretches: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Return the parts of stretches between two frames, sorted by time, then channel."""
    clipped = stretches[(stretches["start"] < stop) & (stretches["stop"] > start)]
    clipped["start"] = np.maximum(clipped["start"], start)
    clipped["stop"] = np.minimum(clipped["stop"], stop)
    return clipped[np.lexsort((clipped["kind"], clipped["channel_index"], clipped["start"]))]


def union(starts: np.ndarray, stops: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Join intervals that overlap or touch; return their starts and stops in ascending order."""
    if not len(starts):
        return starts, stops
    order = np.argsort(starts, kind="stable")
    starts, furthest = starts[order], np.maximum.accumulate(stops[order])
    is_first = np.concatenate(([True], starts[1:] > furthest[:-1]))
    is_last = np.concatenate((is_first[1:], [True]))
    return starts[is_first], furthest[is_last]


def _median(values: np.ndarray) -> np.ndarray:
    """Return the median of the finite values over the first axis; NaN where there are none."""
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
    stretches = np.zeros(len(starts), STRETCH)
    stretches["start"], stretches["stop"] = starts - margin[0], stops + margin[1]
    stretches["channel_index"], stretches["kind"] = channel_index, KINDS.index(kind)
    return stretches


def _not_finite(traces: np.ndarray, sampling_frequency: float) -> np.ndarray:
    if traces.dtype.kind != "f" or are_finite(traces):
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
    """Find runs of one value, on channels that are constant near at least one point of a grid."""
    length = samples_of(_FLAT_MS, sampling_frequency)
    is_candidate = np.zeros(traces.shape[1], np.bool_)
    step = max(1, length // 2)
    _mark_constant_channels(traces, -first_frame % step, step, max(2, length - step - 1), is_candidate)
    margin = _margin("flat", sampling_frequency)
    parts = [np.empty(0, STRETCH)]
    for channel_index in np.flatnonzero(is_candidate & (limits.noise_levels > 0)).tolist():
        values = np.ascontiguousarray(traces[:, channel_index])
        starts, stops = _runs(values[1:] == values[:-1])
        stops = stops + 1  # stop of the samples, not of their differences
        is_long = stops - starts >= length
        found = _stretches(starts[is_long], stops[is_long], "constant", channel_index, margin)
        found["kind"] = _kinds_of_flat(values[starts[is_long]], channel_index, limits)
        parts.append(found)
    return _join_channels(np.concatenate(parts), traces.shape[1], sampling_frequency)


def _kinds_of_flat(values: np.ndarray, channel_index: int, limits: DamageLimits) -> np.ndarray:
    """Return the kind of each run of one value."""
    far = _SATURATION_NOISE * limits.noise_levels[channel_index]
    is_saturated = np.abs(values.astype(np.float64) - limits.centers[channel_index]) > far
    if values.dtype.kind in "iu":
        info = np.iinfo(values.dtype)
        is_saturated |= (values == info.min) | (values == info.max)
    kinds = np.where(is_saturated, KINDS.index("saturated"), KINDS.index("constant"))
    return np.where(values == 0, KINDS.index("zeros"), kinds)


def _artefacts(traces: np.ndarray, sampling_frequency: float, limits: DamageLimits) -> np.ndarray:
    channels, lag = limits.artefact_channels, samples_of(_JUMP_MS, sampling_frequency)
    if not len(channels) or len(traces) <= lag:
        return np.empty(0, STRETCH)
    noise = np.sqrt(2) * limits.noise_levels[channels]
    jumps = _jumps(traces, channels, (limits.artefact_noise * noise).astype(np.float32), lag)
    if not jumps.any():
        return np.empty(0, STRETCH)
    if limits.artefact_noise > TAIL_NOISE:
        smaller = _jumps(traces, channels, (TAIL_NOISE * noise).astype(np.float32), lag)
        jumps |= smaller & _follows(jumps, samples_of(_TAIL_MS, sampling_frequency))
    jumps = np.flatnonzero(jumps) + lag
    apart = np.diff(jumps) > samples_of(_JOIN_MS, sampling_frequency)
    starts, stops = jumps[np.concatenate(([True], apart))], jumps[np.concatenate((apart, [True]))]
    margin = _margin("artefact", sampling_frequency)
    return _stretches(starts - lag, stops + 1, "artefact", ALL_CHANNELS, margin)


def _glitches(traces: np.ndarray, sampling_frequency: float, limits: DamageLimits) -> np.ndarray:
    """Find samples that are far off both sides, and steps that no signal makes, on single channels."""
    far = _GLITCH_NOISE * limits.noise_levels
    low, high = traces[0].copy(), traces[0].copy()
    _extend_ranges(traces, low, high)
    with np.errstate(invalid="ignore", over="ignore"):  # of a channel that begins with NaN nothing is known
        is_candidate = ~(high.astype(np.float64) - low <= far)
    parts = [np.empty(0, STRETCH)]
    for channel_index in np.flatnonzero(is_candidate & (limits.noise_levels > 0)).tolist():
        wild = _wild_samples(traces[:, channel_index], channel_index, sampling_frequency, limits)
        if len(wild):
            apart = np.diff(wild) > samples_of(_GLITCH_JOIN_MS, sampling_frequency)
            starts, stops = wild[np.concatenate(([True], apart))], wild[np.concatenate((apart, [True]))] + 1
            margin = _margin("flat", sampling_frequency)
            parts.append(_stretches(starts, stops, "glitch", channel_index, margin))
    return _join_channels(np.concatenate(parts), traces.shape[1], sampling_frequency)


def _wild_samples(
    values: np.ndarray, channel_index: int, sampling_frequency: float, limits: DamageLimits
) -> np.ndarray:
    """Return the indices of the samples of one channel that no electrode can give."""
    noise = limits.noise_levels[channel_index]
    reach, lag = (samples_of(duration, sampling_frequency) for duration in (_GLITCH_MS, _JUMP_MS))
    center = limits.centers[channel_index]
    finite = np.clip(np.nan_to_num(values.astype(np.float64), True, center, center, center), -1e300, 1e300)
    padded = np.pad(finite, lag, constant_values=center)
    here = padded[lag : lag + len(values)]
    before = here - padded[lag - reach : lag - reach + len(values)]
    after = here - padded[lag + reach : lag + reach + len(values)]
    is_peak = (np.minimum(abs(before), abs(after)) > _GLITCH_NOISE * noise) & (before * np.sign(after) > 0)
    is_step = abs(here - padded[: len(values)]) > _GLITCH_STEP_NOISE * noise
    return np.flatnonzero(is_peak | is_step)


def _follows(flags: np.ndarray, reach: int) -> np.ndarray:
    """Return where a true value is at most `reach` samples before."""
    indices = np.where(flags, np.arange(len(flags)), -reach - 1)
    return np.arange(len(flags)) - np.maximum.accumulate(indices) <= reach


def _runs(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return start and stop of each run of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False])).astype(np.int8)))
    return edges[::2], edges[1::2]


def _join_channels(stretches: np.ndarray, num_channels: int, sampling_frequency: float) -> np.ndarray:
    """Replace stretches that nearly all channels share by one stretch of all channels."""
    if num_channels == 1 or len(stretches) < _NEARLY_ALL * num_channels:
        return stretches
    edges = np.concatenate((stretches["start"], stretches["stop"]))
    steps = np.repeat([1, -1], len(stretches))
    order = np.lexsort((steps, edges))
    together = np.cumsum(steps[order]) >= _NEARLY_ALL * num_channels
    starts, stops = _runs(together)
    shared = np.zeros(len(starts), STRETCH)
    shared["start"], shared["stop"] = edges[order[starts]], edges[order[stops]]
    shared = shared[shared["start"] < shared["stop"]]
    shared["channel_index"] = ALL_CHANNELS
    ragged = samples_of(_FLAT_MS, sampling_frequency)  # constant runs differ a little between channels
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
def _mark_constant_channels(
    traces: np.ndarray, first: int, step: int, width: int, is_candidate: np.ndarray
) -> None:
    """Mark channels with one value in the `width` samples (at least 2) before a row of a grid."""
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
def _extend_ranges(traces: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Extend the range of each channel by its samples; NaN changes none."""
    num_samples, num_channels = traces.shape
    for row in range(num_samples):
        for channel in range(num_channels):
            value = traces[row, channel]
            low[channel] = value if value < low[channel] else low[channel]
            high[channel] = value if value > high[channel] else high[channel]


@compiled()
def _jumps(traces: np.ndarray, channels: np.ndarray, highest: np.ndarray, lag: int) -> np.ndarray:
    """Return the rows at which half of the channels differ by more than `highest` from `lag` rows before."""
    jumps = np.zeros(traces.shape[0] - lag, np.bool_)
    for row in range(lag, traces.shape[0]):
        count = 0
        for index in range(len(channels)):
            channel = channels[index]
            change = np.float32(traces[row, channel]) - np.float32(traces[row - lag, channel])
            count += highest[index] < abs(change) < np.inf
        jumps[row - lag] = 2 * count >= len(channels)
    return jumps
