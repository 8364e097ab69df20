"""Repair a recording: damaged stretches are bridged before the filter can spread them.

A short stretch is bridged by a straight line between the samples at its sides. In a long one, each side
approaches the channel's usual level along half a cosine. Both bridges are slow compared with the band-pass,
so hardly anything of them is left after it. Like the rules of :mod:`spikewise.data.recordings.damage`, a
bridge depends only on samples within a fixed reach.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording
from spikeinterface.preprocessing.basepreprocessor import BasePreprocessor, BasePreprocessorSegment

from spikewise.core.threads import READ_LOCK
from spikewise.data.recordings.channels import LARGEST
from spikewise.data.recordings.clock import compared_samples, has_clock
from spikewise.data.recordings.damage import (
    ALL_CHANNELS,
    DamageLimits,
    clip_stretches,
    find_damage,
    find_time_jumps,
    reach_samples,
    samples_of,
    union,
)

_TAPER_MS = 5.0
"""Length of the half cosine; a stretch up to twice as long is bridged by a line. Chosen by hand."""
_KEPT_RESULTS = 16
"""Requests whose damaged stretches are kept in memory; chosen by hand."""


class RepairedRecording(BasePreprocessor):
    """A lazy view of a raw recording in which damaged stretches are bridged.

    Parameters
    ----------
    recording : BaseRecording
        Raw recording of one group.
    centers, noise_levels : array_like
        (num_channels,), of :class:`spikewise.data.recordings.damage.DamageLimits`.
    artefact_noise : float
        Likewise.
    """

    def __init__(self, recording: BaseRecording, centers: Any, noise_levels: Any, artefact_noise: float):
        super().__init__(recording)
        limits = DamageLimits(np.asarray(centers, float), np.asarray(noise_levels, float), artefact_noise)
        for index, segment in enumerate(recording.segments):
            self.add_recording_segment(
                _RepairedSegment(
                    segment, limits, recording.get_sampling_frequency(), has_clock(recording, index)
                )
            )
        self._kwargs = {
            "recording": recording,
            "centers": limits.centers.tolist(),
            "noise_levels": limits.noise_levels.tolist(),
            "artefact_noise": artefact_noise,
        }

    def as_part(self) -> dict[str, Any]:
        """Return the channels and limits, as :class:`BridgedRecording` takes them."""
        limits = {name: self._kwargs[name] for name in ("centers", "noise_levels", "artefact_noise")}
        return {"channel_ids": self.channel_ids.tolist(), **limits}

    def damage(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return the damaged stretches between two frames, clipped to them, of type STRETCH."""
        return self.segments[segment_index].damage(start, stop)

    def is_usable(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        """Return which channels (num_channels,) are undamaged in most of a chunk."""
        damaged = np.zeros(self.get_num_channels(), np.int64)
        for one in self.damage(segment_index, start, stop):
            channels = slice(None) if one["channel_index"] == ALL_CHANNELS else one["channel_index"]
            damaged[channels] += one["stop"] - one["start"]
        return 2 * damaged < stop - start


class BridgedRecording(BasePreprocessor):
    """A lazy view of a whole raw recording in which the damage of each of its groups is bridged.

    Parameters
    ----------
    recording : BaseRecording
        Raw recording of signed samples.
    parts : list of dict
        Of each group what :meth:`RepairedRecording.as_part` returns; other channels stay as they are.
    """

    def __init__(self, recording: BaseRecording, parts: list[dict[str, Any]]):
        super().__init__(recording)
        views, indices = [], []
        for part in parts:
            limits = {name: value for name, value in part.items() if name != "channel_ids"}
            views.append(RepairedRecording(recording.select_channels(part["channel_ids"]), **limits))
            indices.append(recording.ids_to_indices(part["channel_ids"]))
        for index, segment in enumerate(recording.segments):
            segments = [view.segments[index] for view in views]
            self.add_recording_segment(_BridgedSegment(segment, segments, indices))
        self._kwargs = {"recording": recording, "parts": parts}


class _BridgedSegment(BasePreprocessorSegment):
    def __init__(self, parent: Any, parts: list[Any], indices: list[np.ndarray]):
        super().__init__(parent)
        self.parts, self.indices = parts, indices

    def get_traces(self, start_frame: int, end_frame: int, channel_indices: Any) -> np.ndarray:
        """Return the traces (num_samples, num_channels) of the given channels."""
        traces = np.array(self.parent_recording_segment.get_traces(start_frame, end_frame, slice(None)))
        for part, index in zip(self.parts, self.indices, strict=True):
            traces[:, index] = part.get_traces(start_frame, end_frame, None)
        return traces if channel_indices is None else traces[:, channel_indices]


class FilledRecording(BasePreprocessor):
    """A lazy view of a raw recording in which samples that no electrode gives are replaced by a usual level.

    This needs no later samples, so it fits the live filter. Such samples are not finite, or too large.

    Parameters
    ----------
    recording : BaseRecording
        Raw recording of floating-point samples.
    centers : array_like
        (num_channels,) usual levels.
    """

    def __init__(self, recording: BaseRecording, centers: Any):
        super().__init__(recording)
        levels = np.asarray(centers, float)
        for segment in recording.segments:
            self.add_recording_segment(_FilledSegment(segment, levels))
        self._kwargs = {"recording": recording, "centers": levels.tolist()}


class _FilledSegment(BasePreprocessorSegment):
    def __init__(self, parent: Any, centers: np.ndarray):
        super().__init__(parent)
        self.centers = centers

    def get_traces(self, start_frame: int, end_frame: int, channel_indices: Any) -> np.ndarray:
        """Return the traces (num_samples, num_channels) of the given channels."""
        wanted = slice(None) if channel_indices is None else channel_indices
        traces = self.parent_recording_segment.get_traces(start_frame, end_frame, wanted)
        is_wild = ~(np.abs(traces) <= LARGEST)  # NaN is not
        return (
            np.where(is_wild, self.centers[wanted].astype(traces.dtype), traces) if is_wild.any() else traces
        )


class _RepairedSegment(BasePreprocessorSegment):
    locks_reading = True

    def __init__(self, parent: Any, limits: DamageLimits, sampling_frequency: float, has_clock: bool):
        super().__init__(parent)
        self.limits = limits
        self.rate = sampling_frequency
        self.has_clock = has_clock
        self.taper = samples_of(_TAPER_MS, sampling_frequency)
        self.context = reach_samples(sampling_frequency) + 2 * self.taper + 1
        self._found: tuple[tuple[int, int, np.ndarray], ...] = ()

    def get_traces(self, start_frame: int, end_frame: int, channel_indices: Any) -> np.ndarray:
        """Return the traces (num_samples, num_channels) of the given channels."""
        traces, first, stretches = self._find(start_frame, end_frame)
        inside = slice(start_frame - first, end_frame - first)
        # Damage is known within the reach of the rules; a bridge needs it as far as the tapers go.
        reach = 2 * self.taper + 1
        near = clip_stretches(stretches, start_frame - reach, end_frame + reach)
        if len(near):
            low, high = max(first, start_frame - reach), min(first + len(traces), end_frame + reach)
            part = np.array(traces[low - first : high - first])
            self._bridge(part, low, near)
            traces, inside = part, slice(start_frame - low, end_frame - low)
        wanted = slice(None) if channel_indices is None else channel_indices
        return traces[inside, wanted]

    def damage(self, start: int, stop: int) -> np.ndarray:
        """Return the damaged stretches between two frames, clipped to them."""
        for low, high, stretches in self._found:
            if low <= start and stop <= high:
                return clip_stretches(stretches, start, stop)
        return clip_stretches(self._find(start, stop)[2], start, stop)

    def _find(self, start: int, stop: int) -> tuple[np.ndarray, int, np.ndarray]:
        """Return traces with their context, the first frame of these, and the damaged stretches."""
        low, high = max(0, start - self.context), min(self.get_num_samples(), stop + self.context)
        with READ_LOCK:
            traces = self.parent_recording_segment.get_traces(low, high, slice(None))
        stretches = find_damage(traces, low, self.rate, self.limits)
        if self.has_clock:
            stretches = np.concatenate((stretches, self._time_jumps(low, high)))
        self._found = ((start, stop, stretches), *self._found[: _KEPT_RESULTS - 1])
        return traces, low, stretches

    def _time_jumps(self, low: int, high: int) -> np.ndarray:
        """Return the stretches around the jumps of the clock between two frames."""
        reach = compared_samples(self.rate)
        first, last = max(0, low - reach), min(self.get_num_samples(), high + reach)
        with READ_LOCK:
            times = np.asarray(self.parent_recording_segment.get_times(start_frame=first, end_frame=last))
        return clip_stretches(find_time_jumps(times, first, self.rate), low, high)

    def _bridge(self, traces: np.ndarray, first_frame: int, stretches: np.ndarray) -> None:
        """Bridge the stretches in place; a stretch that exceeds the traces has one side only."""
        of_all = stretches[stretches["channel_index"] == ALL_CHANNELS]
        channels = np.unique(stretches["channel_index"])
        for channel in range(traces.shape[1]) if len(of_all) else channels:
            own = stretches[stretches["channel_index"] == channel]
            both = np.concatenate((of_all, own)) if len(own) else of_all
            column = traces[:, channel]
            for start, stop in zip(*union(both["start"], both["stop"]), strict=True):
                self._bridge_one(
                    column, start - first_frame, stop - first_frame, self.limits.centers[channel]
                )

    def _bridge_one(self, values: np.ndarray, start: int, stop: int, center: float) -> None:
        before = float(values[start - 1]) if start > 0 else None
        after = float(values[stop]) if stop < len(values) else None
        start, stop = max(start, 0), min(stop, len(values))
        bridge = np.full(stop - start, center)
        if before is not None and after is not None and len(bridge) <= 2 * self.taper:
            bridge = np.linspace(before, after, len(bridge) + 2)[1:-1]
        else:
            fading = 0.5 + 0.5 * np.cos(np.pi * np.arange(1, self.taper + 1) / self.taper)
            length = min(self.taper, len(bridge))
            if before is not None:
                bridge[:length] += (before - center) * fading[:length]
            if after is not None:
                bridge[len(bridge) - length :] += (after - center) * fading[:length][::-1]
        values[start:stop] = np.rint(bridge) if values.dtype.kind in "iu" else bridge
