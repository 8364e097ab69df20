"""Band-pass, common median and scaling of many channels in compiled loops, on all cores.

The same numbers as SpikeInterface's chain of filter, reference and scale to the rounding of float32, several
times sooner. The filter is the Butterworth band-pass that runs forward and backward, in second-order sections
and double precision; channels stand side by side in a processor's registers, so that a recursion over time is
no obstacle. The median is found by counting, without sorting. Loops take no lock, so that plain threads run
them; what a sample becomes does not depend on the number of threads.

Shapes: traces are (num_samples, num_channels).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.signal
import torch
from spikeinterface.core import BaseRecording, get_chunk_with_margin
from spikeinterface.preprocessing.basepreprocessor import BasePreprocessor, BasePreprocessorSegment

from spikewise.compiling import compiled
from spikewise.threads import on_all_cores

FILTER_ORDER = 5
MARGIN_PERIODS = 5
"""Periods of the lower edge that are read to either side: what the ends of a stretch do has faded by then."""
_CHANNELS_AT_ONCE = (64, 192)
"""Fewer cost more for each, more do not stay in a processor's cache."""
_SAMPLES_AT_ONCE = 1024
_ROWS_AT_ONCE = 64
_LINE = 64
"""Samples that a line of a processor's cache holds."""
_HUGE = np.float32(1e30)


class ConditionedRecording(BasePreprocessor):
    """A lazy view of a recording: band-passed, referenced and scaled, float32.

    Parameters
    ----------
    recording : BaseRecording
    band_hz : (float, float), optional
        Edges of the band-pass; none is run without.
    reference : ndarray of bool, optional
        (num_channels,) channels over which the median is taken that is subtracted; none without.
    gains, offsets : ndarray, optional
        (num_channels,) applied last: ``traces * gains + offsets``.
    """

    def __init__(
        self,
        recording: BaseRecording,
        band_hz: tuple[float, float] | None = None,
        reference: np.ndarray | None = None,
        gains: np.ndarray | None = None,
        offsets: np.ndarray | None = None,
    ):
        super().__init__(recording, dtype="float32")
        sections = None
        margin = 0
        if band_hz is not None:
            rate = recording.get_sampling_frequency()
            sections = scipy.signal.butter(FILTER_ORDER, band_hz, "bandpass", output="sos", fs=rate)
            margin = int(MARGIN_PERIODS * rate / band_hz[0])
        num_channels = recording.get_num_channels()
        scaling = (
            np.ones(num_channels, np.float32) if gains is None else np.asarray(gains, np.float32),
            np.zeros(num_channels, np.float32) if offsets is None else np.asarray(offsets, np.float32),
        )
        averaged = np.empty(0, np.int64) if reference is None else np.flatnonzero(reference)
        for segment in recording.segments:
            self.add_recording_segment(_ConditionedSegment(segment, sections, margin, averaged, scaling))
        self.annotate(is_filtered=True)
        self._kwargs = {
            "recording": recording,
            "band_hz": band_hz,
            "reference": reference,
            "gains": gains,
            "offsets": offsets,
        }


class _ConditionedSegment(BasePreprocessorSegment):
    def __init__(
        self,
        parent: Any,
        sections: np.ndarray | None,
        margin: int,
        averaged: np.ndarray,
        scaling: tuple[np.ndarray, np.ndarray],
    ):
        super().__init__(parent)
        self.sections = sections
        self.margin = margin
        self.averaged = averaged
        self.scaling = scaling

    def get_traces(self, start_frame: int, end_frame: int, channel_indices: Any) -> np.ndarray:
        """Return the traces (num_samples, num_channels) of the asked channels."""
        raw, left, right = get_chunk_with_margin(
            self.parent_recording_segment, start_frame, end_frame, slice(None), self.margin
        )
        if not len(raw):
            traces = np.empty(raw.shape, np.float32)
        elif self.sections is not None:
            traces = bandpass(raw, self.sections)[left : len(raw) - right]
        else:
            traces = np.array(raw, dtype=np.float32)
        traces = reference_and_scale(traces, self.averaged, *self.scaling)
        return traces if channel_indices is None else traces[:, channel_indices]


def bandpass(traces: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Filter forward and backward, as ``scipy.signal.sosfiltfilt`` does with a band-pass: float32.

    Parameters
    ----------
    traces : ndarray
        (num_samples, num_channels) of any real type.
    sections : ndarray
        (num_sections, 6), as of ``scipy.signal.butter``.
    """
    num_samples, num_channels = traces.shape
    filtered = np.empty(traces.shape, np.float32)
    settled = scipy.signal.sosfilt_zi(sections)
    # As many samples as sosfiltfilt mirrors at either end, where there are so many.
    length = 3 * (2 * len(sections) + 1 - min((sections[:, 2] == 0).sum(), (sections[:, 5] == 0).sum()))
    padding = int(min(length, num_samples - 1))
    if traces.dtype.byteorder not in ("=", "|") or not traces.dtype.isnative:
        traces = traces.astype(traces.dtype.newbyteorder("="))
    low, high = _CHANNELS_AT_ONCE
    width = min(max(-(-num_channels // torch.get_num_threads()), low), high)

    def run(start: int) -> None:
        _bandpass_group(traces, sections, settled, padding, start, min(start + width, num_channels), filtered)

    on_all_cores(run, range(0, num_channels, width))
    return filtered


def reference_and_scale(
    traces: np.ndarray, averaged: np.ndarray, gains: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Subtract the median over some channels, if any are named, and scale each channel.

    Parameters
    ----------
    traces : ndarray of float32
        (num_samples, num_channels)
    averaged : ndarray of int
        Channels of the median.
    gains, offsets : ndarray of float32
        (num_channels,)

    Returns
    -------
    ndarray
        (num_samples, num_channels); the samples of a channel lie side by side in memory.
    """
    by_channel = np.empty(traces.shape[::-1], np.float32)

    def run(start: int) -> None:
        part = slice(start, start + _SAMPLES_AT_ONCE)
        _reference_and_scale(traces[part], averaged, gains, offsets, by_channel[:, part])

    on_all_cores(run, range(0, len(traces), _SAMPLES_AT_ONCE))
    return by_channel.T


def medians(rows: np.ndarray) -> np.ndarray:
    """Return the median of each row of (num_rows, num_values) float32; NaN where a value is none."""
    values = np.ascontiguousarray(rows, dtype=np.float32)
    found = np.empty(len(values), np.float32)

    def run(first: int) -> None:
        _medians(values, first, min(first + _ROWS_AT_ONCE, len(values)), found)

    on_all_cores(run, range(0, len(values), _ROWS_AT_ONCE))
    return np.where(np.isnan(values).any(axis=1), np.float32(np.nan), found)


@compiled()
def _bandpass_group(
    traces: np.ndarray,
    sections: np.ndarray,
    settled: np.ndarray,
    padding: int,
    first: int,
    stop: int,
    filtered: np.ndarray,
) -> None:
    """Filter channels `first` to `stop`."""
    num_samples, width = traces.shape[0], np.uint64(stop - first)
    end, origin = num_samples - 1, np.uint64(first)
    buffer = np.empty((num_samples + 2 * padding, width), np.float32)
    base = np.empty(width)  # subtracted, which a band-pass does not see: large values keep their digits
    for channel in range(width):
        base[channel] = traces[0, origin + channel]
    for sample in range(-padding, num_samples + padding):
        row = np.uint64(sample + padding)
        if 0 <= sample <= end:
            inside = np.uint64(sample)
            for channel in range(width):
                buffer[row, channel] = np.float64(traces[inside, origin + channel]) - base[channel]
        else:  # as far beyond the value at the end as the mirrored sample is from it
            edge = np.uint64(0 if sample < 0 else end)
            mirrored = np.uint64(-sample if sample < 0 else 2 * end - sample)
            for channel in range(width):
                outer = 2 * np.float64(traces[edge, origin + channel]) - base[channel]
                buffer[row, channel] = outer - np.float64(traces[mirrored, origin + channel])
    _run_sections(buffer, sections, settled, False)
    _run_sections(buffer, sections, settled, True)
    for sample in range(np.uint64(num_samples)):
        for channel in range(width):
            filtered[sample, origin + channel] = buffer[sample + np.uint64(padding), channel]


@compiled(fastmath={"contract"})
def _run_sections(buffer: np.ndarray, sections: np.ndarray, settled: np.ndarray, is_backward: bool) -> None:
    """Run samples (num_samples, num_channels) through all sections, in place (transposed direct form II).

    The filter begins as if the first sample had been there for ever.
    """
    num_rows, width = np.uint64(buffer.shape[0]), np.uint64(buffer.shape[1])
    last = num_rows - np.uint64(1)
    num_sections = np.uint64(sections.shape[0])
    state = np.zeros((num_sections, 2, width))
    now = np.zeros(width)
    beginning = buffer[last if is_backward else np.uint64(0)]
    for section in range(num_sections):
        for channel in range(width):
            state[section, 0, channel] = settled[section, 0] * np.float64(beginning[channel])
            state[section, 1, channel] = settled[section, 1] * np.float64(beginning[channel])
    for step in range(num_rows):
        row = last - step if is_backward else step
        for channel in range(width):
            now[channel] = buffer[row, channel]
        for section in range(num_sections):
            b0, b1, b2 = sections[section, 0], sections[section, 1], sections[section, 2]
            a1, a2 = sections[section, 4], sections[section, 5]
            first, second = state[section, 0], state[section, 1]
            for channel in range(width):
                value = now[channel]
                output = b0 * value + first[channel]
                first[channel] = b1 * value - a1 * output + second[channel]
                second[channel] = b2 * value - a2 * output
                now[channel] = output
        for channel in range(width):
            buffer[row, channel] = now[channel]


@compiled()
def _reference_and_scale(
    traces: np.ndarray,
    averaged: np.ndarray,
    gains: np.ndarray,
    offsets: np.ndarray,
    by_channel: np.ndarray,
) -> None:
    num_samples, width = traces.shape[0], np.uint64(traces.shape[1])
    count = np.uint64(len(averaged))
    row = np.empty(count, np.float32)
    middles = np.zeros(_LINE, np.float32)
    middle, step = np.float32(0), np.float32(1)
    for begin in range(0, num_samples, _LINE):
        first, length = np.uint64(begin), np.uint64(min(_LINE, num_samples - begin))
        if count:
            for at in range(length):
                for index in range(count):
                    row[index] = traces[first + at, averaged[index]]
                previous = middle
                middle = _median(row, previous, step)
                step = np.float32(0.9) * step + np.float32(0.1) * abs(middle - previous)
                if not step < _HUGE:  # not numbers: begin again
                    middle, step = np.float32(0), np.float32(1)
                middles[at] = middle
        for channel in range(width):
            gain, offset = gains[channel], offsets[channel]
            for at in range(length):
                by_channel[channel, first + at] = (traces[first + at, channel] - middles[at]) * gain + offset


@compiled()
def _medians(rows: np.ndarray, first: int, stop: int, found: np.ndarray) -> None:
    for index in range(first, stop):
        found[index] = _median(rows[index], rows[index, 0], np.float32(1))


@compiled()
def _median(row: np.ndarray, guess: np.float32, step: np.float32) -> np.float32:
    """Return the median of `row`, which lies about `step` from `guess`.

    A bracket around the guess is widened until it holds the median, then narrowed to a limit that parts the
    lower half of the values from the others. Values are only counted, many at once.
    """
    half = len(row) // 2
    low, below = _edge(row, guess, -step, (len(row) - 1) // 2)
    high, within = _edge(row, guess, step, half)
    for attempt in range(200):
        share = np.float32((half - below) / (within - below)) if attempt < 4 else np.float32(0.5)
        limit = np.float32(low + (high - low) * min(max(share, np.float32(0.05)), np.float32(0.95)))
        if not low < limit < high:
            limit = np.float32(low + (high - low) * np.float32(0.5))
            if not low < limit < high:
                return low  # no number lies between: all that are left are equal
        number = _count_below(row, limit)
        if number == half:
            upper = _least_from(row, limit)
            return upper if len(row) % 2 else np.float32(0.5) * (_greatest_below(row, limit) + upper)
        if number < half:
            low, below = limit, number
        else:
            high, within = limit, number
    return np.float32(np.nan)  # not numbers


@compiled()
def _edge(row: np.ndarray, guess: np.float32, step: np.float32, rank: int) -> tuple[np.float32, int]:
    """Return a limit beyond the value of a rank, on the side of `step`, and how many values are below."""
    step = step if step != 0 else np.float32(1e-30)
    limit = np.float32(guess + step)
    number = _count_below(row, limit)
    for _ in range(300):
        if (number <= rank) if step < 0 else (number > rank):
            break
        step = np.float32(2) * step
        limit = np.float32(guess + step)
        number = _count_below(row, limit)
    return limit, number


@compiled(fastmath={"reassoc", "nsz"})
def _count_below(row: np.ndarray, limit: np.float32) -> int:
    number = np.float32(0)  # a whole number: exact in any order
    for index in range(len(row)):
        number += np.float32(1) if row[index] < limit else np.float32(0)
    return int(number)


@compiled(fastmath={"nnan", "nsz"})
def _least_from(row: np.ndarray, limit: np.float32) -> np.float32:
    least = _HUGE
    for index in range(len(row)):
        value = row[index] if row[index] >= limit else _HUGE
        least = value if value < least else least
    return least


@compiled(fastmath={"nnan", "nsz"})
def _greatest_below(row: np.ndarray, limit: np.float32) -> np.float32:
    greatest = -_HUGE
    for index in range(len(row)):
        value = row[index] if row[index] < limit else -_HUGE
        greatest = value if value > greatest else greatest
    return greatest
