"""The clock of a recording: the time of each sample in seconds, and the sample at each time.

Most recordings have a regular clock: a start and a sampling frequency. Some files tell the time of each
sample. Such a clock may have gaps, where samples are missing, and it may jitter, where only its times are
inexact.

- A jump is a step of the clock that lasts: all times of the second after it are later, or earlier, than those
  of the second before it allow. Steps of JUMP_MS and more are always jumps.
- Jitter and coarse ticks come back to a steady clock, and are no jumps.

All parts of the package that need times use this module: labels in seconds, damage, exports. Frames are
samples of a segment; times are in seconds of the recording's clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import maximum_filter1d
from spikeinterface.core import BaseRecording, BaseRecordingSegment
from spikeinterface.preprocessing.basepreprocessor import BasePreprocessor

from spikewise.core.errors import RecordingError

JUMP_MS = 20.0
"""A step of the clock that differs so much from the sampling period is a jump, even if it is undone later;
chosen by hand."""
COMPARED_S = 1.0
"""Time before and after a step whose times are compared; chosen by hand."""
_SMALLEST_JUMP = 0.5
"""Smallest jump, in samples."""
_RATE_TOLERANCE = 0.01
"""Largest relative difference of the clock's speed from the sampling frequency; chosen by hand."""
_MOST_JUMPING = 0.25
"""Largest fraction of the time that may be near jumps in a clock that is used; chosen by hand."""
_NEAR_MS = 2.0
_CHUNK = 2**20
_PROBED_CHUNKS = 20
_RATE_SAMPLES = 90_000
_SAME_RATE = 2e-5
"""Relative difference of two rates between which there are no gaps; chosen by hand."""


class _LazyTimes:
    """The times of a segment, read where they are needed; SpikeInterface takes it for a vector."""

    ndim = 1

    def __init__(self, read: Callable[[int, int], np.ndarray], num_samples: int):
        self._read = read
        self.shape = (num_samples,)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, wanted: Any) -> Any:
        if isinstance(wanted, slice):
            start, stop, step = wanted.indices(len(self))
            return self._read(start, max(start, stop))[::step]
        index = np.asarray(wanted)
        index = np.where(index < 0, index + len(self), index)
        if index.ndim:
            return np.array([self._read(int(i), int(i) + 1)[0] for i in index])
        return self._read(int(index), int(index) + 1)[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self._read(0, len(self)).astype(dtype or np.float64, copy=bool(copy))


class TimedRecording(BasePreprocessor):
    """A view of a recording with the times that its files tell, or without them.

    Parameters
    ----------
    recording : BaseRecording
    source : str
        A key of SOURCES: where the times are; ``"parent"`` keeps those of the recording, ``"regular"`` leaves
        them out: the clock then counts samples from the first time.
    sampling_frequency : float, optional
        In Hz; that of the recording if not given.
    """

    def __init__(self, recording: BaseRecording, source: str, sampling_frequency: float | None = None):
        super().__init__(recording, sampling_frequency=sampling_frequency)
        for index, segment in enumerate(recording.segments):
            times = SOURCES[source](recording, index, self.get_sampling_frequency())
            self.add_recording_segment(_TimedSegment(segment, times))
        self._kwargs = {
            "recording": recording,
            "source": source,
            "sampling_frequency": sampling_frequency,
        }


class _TimedSegment(BaseRecordingSegment):
    def __init__(self, parent: Any, times: dict[str, Any]):
        super().__init__(**times)
        self.parent_recording_segment = parent

    def get_num_samples(self) -> int:
        """Return the number of samples."""
        return self.parent_recording_segment.get_num_samples()

    def get_traces(self, start_frame: int, end_frame: int, channel_indices: Any) -> np.ndarray:
        """Return the traces (num_samples, num_channels) of the given channels."""
        return self.parent_recording_segment.get_traces(start_frame, end_frame, channel_indices)


def _of_parent(recording: BaseRecording, segment_index: int, rate: float) -> dict[str, Any]:
    if not has_clock(recording, segment_index):
        return {"sampling_frequency": rate, "t_start": recording.get_start_time(segment_index)}
    segment = recording.segments[segment_index]

    def read(start: int, stop: int) -> np.ndarray:
        return np.asarray(segment.get_times(start_frame=start, end_frame=stop), dtype=np.float64)

    return {"time_vector": _LazyTimes(read, segment.get_num_samples())}


def _regular(recording: BaseRecording, segment_index: int, rate: float) -> dict[str, Any]:
    first = float(recording.get_start_time(segment_index))
    return {"sampling_frequency": rate, "t_start": first if np.isfinite(first) else 0.0}


def _of_blackrock(recording: BaseRecording, segment_index: int, rate: float) -> dict[str, Any]:
    """Return the times of Blackrock's PTP packets, each of which has one sample."""
    reader: Any = recording.neo_reader  # type: ignore[attr-defined]
    stream: int = recording.stream_index  # type: ignore[attr-defined]

    def read(start: int, stop: int) -> np.ndarray:
        return reader._get_blackrock_timestamps(0, segment_index, start, stop, stream)

    return {"time_vector": _LazyTimes(read, recording.get_num_samples(segment_index))}


def _of_intan(recording: BaseRecording, segment_index: int, rate: float) -> dict[str, Any]:
    """Return the sample numbers of Intan's blocks as times."""
    reader: Any = recording.neo_reader  # type: ignore[attr-defined]

    def read(start: int, stop: int) -> np.ndarray:
        return np.asarray(reader.get_intan_timestamps(start, stop), np.float64) / rate

    return {"time_vector": _LazyTimes(read, recording.get_num_samples(segment_index))}


def _of_openephys(recording: BaseRecording, segment_index: int, rate: float) -> dict[str, Any]:
    """Return the sample numbers of Open Ephys as times; a regular clock where no number is missing."""
    numbers = openephys_sample_numbers(recording, segment_index)
    if numbers is None:
        return _of_parent(recording, segment_index, rate)

    def read(start: int, stop: int) -> np.ndarray:
        return np.asarray(numbers[start:stop], np.float64) / rate

    return {"time_vector": _LazyTimes(read, len(numbers))}


def openephys_sample_numbers(recording: BaseRecording, segment_index: int) -> np.ndarray | None:
    """Return the numbers of the samples of an Open Ephys segment; None if they only count, or are unknown."""
    folder = Path(recording._stream_folders[segment_index])  # type: ignore[attr-defined]
    file = folder / "sample_numbers.npy"
    if not file.is_file():  # before version 0.6
        file = folder / "timestamps.npy"
    if not file.is_file():
        return None
    numbers = np.load(file, mmap_mode="r", allow_pickle=False)
    if numbers.shape != (recording.get_num_samples(segment_index),) or numbers.dtype.kind not in "iu":
        return None
    return None if int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1 else numbers


SOURCES: dict[str, Callable[[BaseRecording, int, float], dict[str, Any]]] = {
    "parent": _of_parent,
    "regular": _regular,
    "blackrock": _of_blackrock,
    "intan": _of_intan,
    "openephys": _of_openephys,
}
"""Where the times of a segment are, by name: functions of the recording, the segment and the rate in Hz."""


def has_clock(recording: BaseRecording, segment_index: int) -> bool:
    """Return whether a segment tells the time of each sample; views of a slice do not say so themselves."""
    segment: Any = recording.segments[segment_index]
    while segment is not None:
        if segment.has_time_vector():
            return True
        segment = None if isinstance(segment, _TimedSegment) else _parent_of(segment)
    return False


def _parent_of(segment: Any) -> Any:
    return getattr(segment, "parent_recording_segment", getattr(segment, "_parent_recording_segment", None))


def read_times(recording: BaseRecording, segment_index: int, start: int, stop: int) -> np.ndarray:
    """Return the times of the frames `start` to `stop` - 1 of a segment, s."""
    times = recording.segments[segment_index].get_times(start_frame=start, end_frame=stop)
    return np.asarray(times, dtype=np.float64)


def find_jumps(times: np.ndarray, first_frame: int, sampling_frequency: float) -> np.ndarray:
    """Find the samples before which the clock jumps.

    Parameters
    ----------
    times : ndarray
        (num_samples,) time of each sample, s: the samples of interest, with :func:`compared_samples` on
        either side or up to the ends of the segment.
    first_frame : int
        Frame of the first sample.
    sampling_frequency : float
        In Hz.

    Returns
    -------
    ndarray of int
        Frames, in order. Those near the ends of `times` are not reliable, except at the ends of the segment.
    """
    steps = np.diff(times) * sampling_frequency - 1
    is_off = ~(np.abs(steps) < _SMALLEST_JUMP)  # also where a time is NaN
    if not is_off.any():
        return np.empty(0, np.int64)
    width = compared_samples(sampling_frequency)
    late = times * sampling_frequency - np.arange(first_frame, first_frame + len(times))
    late = np.pad(np.nan_to_num(late), width, mode="edge")
    half = width // 2  # width is odd
    highest, lowest = maximum_filter1d(late, width), -maximum_filter1d(-late, width)
    index = np.flatnonzero(is_off) + 1
    before, after = index + width - 1 - half, index + width + half
    forward = lowest[after] - highest[before]
    backward = lowest[before] - highest[after]
    lasts = np.maximum(forward, backward) >= _SMALLEST_JUMP
    is_large = ~(np.abs(steps[index - 1]) < JUMP_MS * sampling_frequency / 1000)
    return index[lasts | is_large] + first_frame


def compared_samples(sampling_frequency: float) -> int:
    """Return the number of samples before and after a step that are compared; it is odd."""
    return round(COMPARED_S * sampling_frequency) | 1


def samples_at(recording: BaseRecording, times_s: np.ndarray, segment_index: int) -> np.ndarray:
    """Return the sample nearest to each time; times outside of the segment stay outside.

    Where several samples have one time, as with coarse ticks, the middle one is taken.

    Raises
    ------
    RecordingError
        If the clock goes back, so that a time belongs to several places.
    """
    times_s = np.asarray(times_s, dtype=np.float64)
    if not has_clock(recording, segment_index):
        return np.asarray(recording.time_to_sample_index(times_s, segment_index))
    same = 0.01 / recording.get_sampling_frequency()  # texts and files round times
    order = np.argsort(times_s, kind="stable")
    wanted = times_s[order]
    first_not_before, first_after = np.zeros((2, len(wanted)), np.int64)
    before, after = np.full(len(wanted), -np.inf), np.full(len(wanted), np.inf)
    for clock in _rising_clock(recording, segment_index):
        left = np.searchsorted(clock, wanted - same)
        right = np.searchsorted(clock, wanted + same, side="right")
        first_not_before += left
        first_after += right
        padded = np.concatenate(([-np.inf], clock, [np.inf]))
        before, after = np.maximum(before, padded[left]), np.minimum(after, padded[left + 1])
    nearest = np.where(after - wanted < wanted - before, first_not_before, first_not_before - 1)
    exact = (first_not_before + first_after - 1) // 2
    found = np.where(first_after > first_not_before, exact, nearest)
    period, length = 1 / recording.get_sampling_frequency(), recording.get_num_samples(segment_index)
    found = np.where(np.isinf(before) & (after - wanted > period / 2), -1, found)
    found = np.where(np.isinf(after) & (wanted - before > period), length, found)
    samples = np.empty(len(order), np.int64)
    samples[order] = found
    return samples


def _rising_clock(recording: BaseRecording, segment_index: int) -> Iterator[np.ndarray]:
    """Yield the times of a segment in pieces; where they jitter back, the latest time so far."""
    latest = -np.inf
    for start, clock in _pieces(recording, segment_index):
        rising = np.fmax.accumulate(np.concatenate(([latest], clock)))[1:]
        back = rising - clock
        if (back > JUMP_MS / 1000).any():
            sample = start + int(np.nanargmax(back > JUMP_MS / 1000))
            raise RecordingError(
                f"the clock of the recording goes back by {np.nanmax(back):.3f} s at sample {sample} of "
                f"segment {segment_index}, so that times in seconds are not clear",
                "a clock that runs forward",
                "give spikes in samples, or leave the clock out with --clock ignore",
            )
        latest = rising[-1]
        yield rising


def _pieces(recording: BaseRecording, segment_index: int) -> Iterator[tuple[int, np.ndarray]]:
    length = recording.get_num_samples(segment_index)
    for start in range(0, length, _CHUNK):
        yield start, read_times(recording, segment_index, start, min(start + _CHUNK, length))


def times_at(recording: BaseRecording, samples: np.ndarray, segment_index: int) -> np.ndarray:
    """Return the time of each sample of a segment, s."""
    samples = np.asarray(samples, dtype=np.int64)
    if not has_clock(recording, segment_index):
        return np.asarray(recording.sample_index_to_time(samples, segment_index), dtype=np.float64)
    times = np.full(len(samples), np.nan)
    for start, clock in _pieces(recording, segment_index):
        here = (samples >= start) & (samples < start + len(clock))
        times[here] = clock[samples[here] - start]
    return times


def rate_of_clock(recording: BaseRecording, segment_index: int) -> float:
    """Return the sampling frequency that most of the clock agrees with, Hz; NaN if its times do not rise.

    It is the median over pieces of the clock, so that gaps do not count; the mean of all of it where there
    are none; and a whole number if it is one up to its uncertainty.
    """
    pieces = list(_probed(recording, segment_index, _RATE_SAMPLES))
    rate = float(np.median([_rate(times) for times in pieces]))
    if not np.isfinite(rate):
        return rate
    jitter_s = float(np.median([_jitter(times) for times in pieces]))
    last = recording.get_num_samples(segment_index) - 1
    first_s, last_s = (read_times(recording, segment_index, k, k + 1)[0] for k in (0, last))
    of_all = last / (last_s - first_s) if last_s > first_s else np.nan
    if abs(of_all - rate) < _SAME_RATE * rate:
        rate = float(of_all)
    certain = max(1e-6, 2 * jitter_s / (last / rate)) * rate
    return float(round(rate)) if abs(rate - round(rate)) < certain else rate


def _rate(times: np.ndarray) -> float:
    """Return samples per second from the slopes between samples that are a quarter of the times apart."""
    lag = max(1, len(times) // 4)
    seconds = np.median(times[lag:] - times[:-lag]) if len(times) > lag else 0.0
    return lag / seconds if seconds > 0 else float("nan")


def _jitter(times: np.ndarray) -> float:
    """Return the spread of the time between samples that are a quarter of the times apart, s."""
    lag = max(1, len(times) // 4)
    return float(np.ptp(np.percentile(times[lag:] - times[:-lag], [10, 90])))


def _probed(recording: BaseRecording, segment_index: int, size: int) -> Iterator[np.ndarray]:
    """Yield the times of stretches of some samples, spread evenly over a segment."""
    length = recording.get_num_samples(segment_index)
    size = min(length, size)
    for start in np.unique(np.linspace(0, length - size, _PROBED_CHUNKS).astype(np.int64)).tolist():
        yield read_times(recording, segment_index, start, start + size)


def with_checked_clock(recording: BaseRecording, use: str) -> BaseRecording:
    """Return a recording whose clock can be used.

    Parameters
    ----------
    recording : BaseRecording
    use : {"auto", "ignore"}
        ``"ignore"`` leaves the times of the samples out: the clock counts samples.

    Raises
    ------
    RecordingError
        If a time is not finite, or the clock runs at another speed than the sampling frequency, or jumps all
        the time.
    """
    segments = [index for index in range(recording.get_num_segments()) if has_clock(recording, index)]
    if not segments:
        return recording
    if use == "ignore":
        return TimedRecording(recording, "regular")
    for segment_index in segments:
        _check_clock(recording, segment_index)
    return recording


def _check_clock(recording: BaseRecording, segment_index: int) -> None:
    rate = recording.get_sampling_frequency()
    rates, num_jumps, num_samples = [], 0, 0
    for times in _probed(recording, segment_index, 3 * compared_samples(rate)):
        if not np.isfinite(times).all():
            raise _unusable(f"{np.count_nonzero(~np.isfinite(times))} times of samples are NaN or infinite")
        rates.append(_rate(times))
        num_jumps += len(find_jumps(times, 0, rate))
        num_samples += len(times)
    found = float(np.nanmedian(rates)) if np.isfinite(rates).any() else float("nan")
    if not abs(found - rate) < _RATE_TOLERANCE * rate:
        raise _unusable(
            f"its times are those of {found:g} samples per second, its sampling frequency is {rate:g} Hz"
        )
    if num_jumps * _NEAR_MS / 1000 * rate > _MOST_JUMPING * num_samples:
        raise _unusable(f"its times jump {num_jumps * rate / num_samples:.0f} times per second")


def _unusable(reason: str) -> RecordingError:
    return RecordingError(
        f"the clock of the recording cannot be used: {reason}",
        "the times of the samples must rise by about one sampling period from each sample to the next",
        "correct the times or the sampling frequency, or leave the times out with --clock ignore",
    )
