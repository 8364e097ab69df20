"""Band-pass, common median and scaling of many channels in compiled loops, on all cores.

The results equal those of SpikeInterface's filter, reference and scale up to the rounding of float32, in a
fraction of the time. The filter is a Butterworth band-pass that runs forward and backward, in second-order
sections and double precision. It is a recursion over time, so it processes several channels at once in a
processor's registers. The median is found by counting, without sorting. The loops release Python's lock, so
plain threads run them; the value of a sample does not depend on the number of threads.

The live filter runs forward only, since a running stream has no later samples. It begins anew at whole
multiples of a fixed length, with some samples before as a lead-in. So a sample has the same value however a
recording is cut: :mod:`spikewise.data.recordings.live_conditioning` gives the same numbers for a stream.

Shapes: traces are (num_samples, num_channels); a panel (num_rows, LANES) has the samples of LANES channels.
"""

from __future__ import annotations

import weakref
from collections import deque
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording, get_chunk_with_margin
from spikeinterface.preprocessing.basepreprocessor import BasePreprocessor, BasePreprocessorSegment

from spikewise.core.threads import READ_LOCK, on_all_cores
from spikewise.data.recordings.conditioning_loops import (
    LANES,
    SECTIONS,
    bandpass_panel,
    fill_panel,
    live_bandpass_panel,
    medians_of_rows,
    reference_and_scale_panels,
)

FILTER_ORDER = 5
"""Order of the Butterworth filter; SpikeInterface's default."""
MARGIN_PERIODS = 5
"""Margin on either side of a request, in periods of the lower edge; effects of the ends have faded there.
SpikeInterface's default."""
LIVE_FILTER_ORDER = 1
"""Order of the live filter. A higher order shifts the phases of a spike more, and units are told apart less
well (docs/live.md)."""
LIVE_EDGE = 0.5
"""Lower edge of the live filter, as a fraction of that of the usual filter (docs/live.md)."""
_LIVE_RUN_S = 1.0
"""The live filter begins anew after so many seconds; chosen by hand."""
_SAMPLES_AT_ONCE = 2048
"""Samples that one call of a thread references and scales; chosen by hand."""
_ROWS_AT_ONCE = 64
"""Rows of which one call of a thread finds the median; chosen by hand."""


class ConditionedRecording(BasePreprocessor):
    """A lazy view of a recording: band-passed, referenced and scaled, float32.

    Parameters
    ----------
    recording : BaseRecording
    band_hz : (float, float), optional
        Edges of the band-pass, Hz; None for no band-pass.
    reference : ndarray of bool, optional
        (num_channels,) channels of the common median, which is subtracted; None for no median.
    gains, offsets : ndarray, optional
        (num_channels,) applied last: ``traces * gains + offsets``.
    is_live : bool
        Whether the band-pass runs forward only; then a band is needed.
    """

    def __init__(
        self,
        recording: BaseRecording,
        band_hz: tuple[float, float] | None = None,
        reference: np.ndarray | None = None,
        gains: np.ndarray | None = None,
        offsets: np.ndarray | None = None,
        is_live: bool = False,
    ):
        super().__init__(recording, dtype="float32")
        rate = recording.get_sampling_frequency()
        sections = None
        margin = 0
        if band_hz is not None and not is_live:
            import scipy.signal  # only here: it takes a second

            sections = scipy.signal.butter(FILTER_ORDER, band_hz, "bandpass", output="sos", fs=rate)
            margin = int(MARGIN_PERIODS * rate / band_hz[0])
        num_channels = recording.get_num_channels()
        scaling = (
            np.ones(num_channels, np.float32) if gains is None else np.asarray(gains, np.float32),
            np.zeros(num_channels, np.float32) if offsets is None else np.asarray(offsets, np.float32),
        )
        averaged = np.empty(0, np.int64) if reference is None else np.flatnonzero(reference)
        for segment in recording.segments:
            self.add_recording_segment(
                _LiveSegment(segment, LiveBand.of(band_hz, rate), averaged, scaling)
                if is_live and band_hz is not None
                else _ConditionedSegment(segment, sections, margin, averaged, scaling)
            )
        self.is_live = is_live
        self.annotate(is_filtered=True)
        self._kwargs = {
            "recording": recording,
            "band_hz": band_hz,
            "reference": reference,
            "gains": gains,
            "offsets": offsets,
            "is_live": is_live,
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
        """Return the traces (num_samples, num_channels) of the given channels."""
        with reading_lock(self.parent_recording_segment):
            raw, left, right = get_chunk_with_margin(
                self.parent_recording_segment, start_frame, end_frame, slice(None), self.margin
            )
        traces = _condition(raw, self.sections, (left, right), self.averaged, *self.scaling)
        return traces if channel_indices is None else traces[:, channel_indices]


@dataclass(frozen=True)
class LiveBand:
    """The live band-pass: a Butterworth filter that runs forward, anew in each run.

    Attributes
    ----------
    coefficients : ndarray of float64
        (SECTIONS, 5): b0, b1, b2, -a1, -a2 of each section.
    run : int
        Samples of a run; run k begins at sample ``k * run`` of a segment.
    lead_in : int
        Samples before a run from which on its filter runs; no more than `run`.
    """

    coefficients: np.ndarray
    run: int
    lead_in: int

    @classmethod
    def of(cls, band_hz: tuple[float, float], sampling_frequency: float) -> LiveBand:
        """Return the live band-pass for the band of the usual filter in Hz."""
        import scipy.signal

        edges_hz = LIVE_EDGE * band_hz[0], band_hz[1]
        sections = scipy.signal.butter(
            LIVE_FILTER_ORDER, edges_hz, "bandpass", output="sos", fs=sampling_frequency
        )
        lead_in = int(MARGIN_PERIODS * sampling_frequency / edges_hz[0])
        return cls(_pad_sections(sections)[0], max(round(_LIVE_RUN_S * sampling_frequency), lead_in), lead_in)


class _LiveSegment(BasePreprocessorSegment):
    def __init__(
        self, parent: Any, band: LiveBand, averaged: np.ndarray, scaling: tuple[np.ndarray, np.ndarray]
    ):
        super().__init__(parent)
        self.band, self.averaged, self.scaling = band, averaged, scaling

    def get_traces(self, start_frame: int, end_frame: int, channel_indices: Any) -> np.ndarray:
        """Return the traces (num_samples, num_channels) of the given channels."""
        run = self.band.run
        parts = []
        for number in range(start_frame // run, -(-end_frame // run)):
            begin, end = max(start_frame, number * run), min(end_frame, (number + 1) * run)
            low = max(0, number * run - self.band.lead_in)
            with reading_lock(self.parent_recording_segment):
                raw = self.parent_recording_segment.get_traces(low, end, slice(None))
            parts.append(_condition(raw, self.band, (begin - low, 0), self.averaged, *self.scaling))
        if not parts:
            return np.empty((0, len(self.scaling[0])), np.float32)[:, channel_indices or slice(None)]
        traces = parts[0] if len(parts) == 1 else np.concatenate([part.T for part in parts], axis=1).T
        return traces if channel_indices is None else traces[:, channel_indices]


def reading_lock(segment: Any) -> AbstractContextManager:
    """Return the lock for reading from a segment; no lock if the segment sets it itself."""
    return nullcontext() if getattr(segment, "locks_reading", False) else READ_LOCK


def bandpass(traces: np.ndarray, sections: np.ndarray) -> np.ndarray:
    """Filter forward and backward like ``scipy.signal.sosfiltfilt`` with a band-pass; return float32.

    Parameters
    ----------
    traces : ndarray
        (num_samples, num_channels) of any real type.
    sections : ndarray
        (num_sections, 6), as from ``scipy.signal.butter``; at most SECTIONS.
    """
    num_samples, num_channels = traces.shape
    panels, padding = _panels(traces, sections)
    rows = panels[:, padding : padding + num_samples].transpose(1, 0, 2)
    filtered = rows.reshape(num_samples, -1)[:, :num_channels].copy()
    _spare_panels.append(panels)
    return filtered


def reference_and_scale(
    traces: np.ndarray, averaged: np.ndarray, gains: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Subtract the median over some channels, if any are given, and scale each channel.

    Parameters
    ----------
    traces : ndarray of float32
        (num_samples, num_channels)
    averaged : ndarray of int
        Channels of the median; empty for no median.
    gains, offsets : ndarray of float32
        (num_channels,)

    Returns
    -------
    ndarray
        (num_samples, num_channels); the samples of a channel are contiguous in memory.
    """
    return _condition(traces, None, (0, 0), averaged, gains, offsets)


def _condition(
    traces: np.ndarray,
    sections: np.ndarray | LiveBand | None,
    margins: tuple[int, int],
    averaged: np.ndarray,
    gains: np.ndarray,
    offsets: np.ndarray,
) -> np.ndarray:
    """Filter, cut off the margins, reference and scale; the samples of a channel are contiguous."""
    num_samples, num_channels = len(traces) - sum(margins), traces.shape[1]
    if num_samples <= 0:
        return np.empty((0, num_channels), np.float32)
    panels, padding = _panels(traces, sections)
    width = len(panels) * LANES
    scaling = np.zeros((2, width), np.float32)
    scaling[:, :num_channels] = gains, offsets
    left_out = np.full((len(panels), LANES), np.inf, np.float32)
    left_out.ravel()[averaged] = 0
    by_channel = reusable_array((width, LANES * _odd(-(-num_samples // LANES))))

    def run(start: int) -> None:
        count = min(_SAMPLES_AT_ONCE, num_samples - start)
        first_row = padding + margins[0] + start
        reference_and_scale_panels(
            panels, first_row, count, left_out, scaling[0], scaling[1], by_channel[:, start:]
        )

    on_all_cores(run, range(0, num_samples, _SAMPLES_AT_ONCE))
    _spare_panels.append(panels)
    return by_channel[:num_channels, :num_samples].T


_spare_panels: deque[np.ndarray] = deque(maxlen=4)
"""Panels to use again: the system fills new memory with zeros, which takes time."""


def _panels(traces: np.ndarray, sections: np.ndarray | LiveBand | None) -> tuple[np.ndarray, int]:
    """Return panels (num_panels, num_rows, LANES) of filtered channels, and the row of the first sample."""
    num_samples, num_channels = traces.shape
    if traces.dtype.byteorder not in ("=", "|") or not traces.dtype.isnative:
        traces = traces.astype(traces.dtype.newbyteorder("="))
    padding = 0
    if isinstance(sections, np.ndarray):
        # The number of samples that sosfiltfilt mirrors at either end, if there are so many.
        length = 3 * (2 * len(sections) + 1 - min((sections[:, 2] == 0).sum(), (sections[:, 5] == 0).sum()))
        padding = int(min(length, num_samples - 1))
        factors = _pad_sections(sections)
    num_rows = num_samples + 2 * padding
    # LANES more rows, since the last vectors exceed the end.
    panels = _reusable_panels((-(-num_channels // LANES), _odd(num_rows + LANES), LANES))

    def run(index: int) -> None:
        fill_panel(traces, index * LANES, padding, sections is not None, panels[index])
        if isinstance(sections, LiveBand):
            state = np.zeros((2 * SECTIONS, LANES))
            live_bandpass_panel(panels[index], num_rows, sections.coefficients, state)
        elif sections is not None:
            bandpass_panel(panels[index], num_rows, *factors)

    on_all_cores(run, range(len(panels)))
    return panels, padding


_free_memory: deque[np.ndarray] = deque(maxlen=6)
"""Memory of results that are no longer used, for the next results."""


def reusable_array(shape: tuple[int, int]) -> np.ndarray:
    """Return an array with arbitrary content; its memory is used again when no view of it exists any more."""
    size = int(np.prod(shape))
    try:
        memory = _free_memory.pop()
    except IndexError:
        memory = np.empty(0, np.float32)
    if not size <= memory.size <= 2 * size:
        memory = np.empty(size, np.float32)
    # All views of an array on a memoryview, unlike those of an array on another array, refer to that array.
    array = np.frombuffer(memory.data, np.float32, size)
    weakref.finalize(array, _free_memory.append, memory).atexit = False
    return array.reshape(shape)


def _odd(count: int) -> int:
    """Return `count` or the next odd number: rows a power of two apart share few lines of a cache."""
    return count | 1


def _reusable_panels(shape: tuple[int, int, int]) -> np.ndarray:
    """Return panels with arbitrary content: the last used ones if they are large enough."""
    size = int(np.prod(shape))
    try:
        spare = _spare_panels.pop()
    except IndexError:
        return np.empty(shape, np.float32)
    base = spare if spare.base is None else spare.base
    return base.ravel()[:size].reshape(shape) if base.size >= size else np.empty(shape, np.float32)


def medians(rows: np.ndarray) -> np.ndarray:
    """Return the median of each row of (num_rows, num_values) float32; NaN for a row with NaN."""
    values = np.asarray(rows, dtype=np.float32)
    found = np.empty(len(values), np.float32)

    def run(first: int) -> None:
        medians_of_rows(values, first, min(first + _ROWS_AT_ONCE, len(values)), found)

    on_all_cores(run, range(0, len(values), _ROWS_AT_ONCE))
    return np.where(np.isnan(values).any(axis=1), np.float32(np.nan), found)


def _pad_sections(sections: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients and settled states of SECTIONS sections; added ones change nothing."""
    import scipy.signal

    coefficients, settled = np.zeros((SECTIONS, 5)), np.zeros((SECTIONS, 2))
    coefficients[:, 0] = 1.0
    coefficients[: len(sections)] = sections[:, [0, 1, 2, 4, 5]] * [1, 1, 1, -1, -1]
    settled[: len(sections)] = scipy.signal.sosfilt_zi(sections)
    return coefficients, settled
