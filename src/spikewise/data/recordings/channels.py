"""Find unusable and bad channels, and measure the noise of each channel.

Only chunks that are drawn with a seed are read, so a recording of any length takes the same time and memory.
The name of a channel is its id as text. Found channels are returned as a dictionary from name to reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording
from spikeinterface.preprocessing.basepreprocessor import BasePreprocessor, BasePreprocessorSegment

from spikewise.core.errors import RecordingError
from spikewise.data.recordings.conditioning import medians
from spikewise.data.recordings.formats import reading_errors

MAD_TO_SD = 1.482602218505602
"""Standard deviation over the median absolute deviation, for normally distributed noise."""
NUM_CHUNKS = 10
"""Chunks of the recording that are read for each measurement; chosen by hand."""
NOISE_CHUNK_S = 0.5
"""Length of a chunk in which noise is measured; chosen by hand."""
DETECTION_CHUNK_S = 0.3
"""Shortest recording in which bad channels are detected; chosen by hand."""
NOISE_RATIO = 5.0
"""A channel is noisy above so many times the median noise of all channels, and dead below the inverse; chosen
by hand."""
MAX_BAD_FRACTION = 1 / 3
"""Detection that finds a larger fraction of bad channels is ignored; chosen by hand."""
NOT_FINITE = "NaN or infinite"
"""Reason of a channel most of whose samples are no numbers."""
LARGEST, SMALLEST = 1e12, 1e-30
"""Sizes beyond which a number is no sample of an electrode, be it in volts, microvolts or steps; by hand."""
MOST_STRANGE_PERCENT = 2.0
"""So many samples that are strange mean that the type is wrong; chosen by hand."""
MIN_COMPARED_CHANNELS = 3
"""Fewest channels among which bad ones are detected: of two, either could be the bad one."""


Usable = Callable[[int, int, int], np.ndarray]
"""Returns which channels (num_channels,) are undamaged in most of a chunk (segment, start, stop)."""


class SilencedRecording(BasePreprocessor):
    """A view of a recording in which some channels are zero, even where they were NaN.

    Parameters
    ----------
    recording : BaseRecording
        The recording.
    channel_ids : sequence
        Ids of the channels to silence; may be empty.
    """

    def __init__(self, recording: BaseRecording, channel_ids: Sequence[Any]):
        super().__init__(recording)
        channel_indices = np.flatnonzero(np.isin(recording.channel_ids, list(channel_ids)))
        for segment in recording.segments:
            self.add_recording_segment(_SilencedSegment(segment, channel_indices))
        self._kwargs = {"recording": recording, "channel_ids": list(channel_ids)}


class _SilencedSegment(BasePreprocessorSegment):
    def __init__(self, parent: Any, channel_indices: np.ndarray):
        super().__init__(parent)
        self.channel_indices = channel_indices

    def get_traces(self, start_frame: int, end_frame: int, channel_indices: Any) -> np.ndarray:
        """Return the traces (num_samples, num_channels) of the given channels."""
        wanted = slice(None) if channel_indices is None else channel_indices
        traces = self.parent_recording_segment.get_traces(start_frame, end_frame, wanted)
        if self.channel_indices.size == 0:
            return traces
        if isinstance(wanted, slice):
            start, step = wanted.start or 0, wanted.step or 1
            wanted = start + step * np.arange(traces.shape[1])
        traces = np.array(traces)
        traces[:, np.isin(wanted, self.channel_indices)] = 0
        return traces


def list_channels(channels: dict[str, str]) -> str:
    """Return channels with their reasons as text, at most ten and then a count."""
    shown = [f"{name} ({why})" if why else name for name, why in list(channels.items())[:10]]
    more = len(channels) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def ids_of(recording: BaseRecording, names: Iterable[str], *, others: bool = False) -> list[Any]:
    """Return the ids of the named channels, or of all others, in the order of the recording."""
    chosen = set(names)
    return [i for i in recording.channel_ids if (str(i) in chosen) != others]


def check_channel_names(recording: BaseRecording, names: Sequence[str]) -> None:
    """Raise RecordingError if a channel is not in the recording."""
    known = [str(i) for i in recording.channel_ids]
    unknown = {name: "" for name in names if name not in known}
    if unknown:
        raise RecordingError(
            f"the recording has no channel {list_channels(unknown)}",
            f"its channels are {list_channels(dict.fromkeys(known, ''))}",
            "correct --exclude-channels",
        )


def draw_chunks(recording: BaseRecording, chunk_s: float, seed: int) -> list[tuple[int, int, int]]:
    """Draw NUM_CHUNKS chunks at random from all segments.

    Parameters
    ----------
    recording : BaseRecording
        The recording.
    chunk_s : float
        Length of a chunk, s; shorter if no segment is that long.
    seed : int
        Seed of the positions.

    Returns
    -------
    list of (segment_index, start, stop)
        In the order of time.
    """
    lengths = np.array([recording.get_num_samples(i) for i in range(recording.get_num_segments())])
    size = min(max(1, int(chunk_s * recording.get_sampling_frequency())), int(lengths.max()))
    num_positions = np.maximum(0, lengths - size + 1)
    ends = np.cumsum(num_positions)
    picks = np.sort(np.random.default_rng(seed).integers(ends[-1], size=NUM_CHUNKS))
    segments = np.searchsorted(ends, picks, side="right")
    starts = picks - (ends - num_positions)[segments]
    return [(int(s), int(start), int(start) + size) for s, start in zip(segments, starts, strict=True)]


def measure_noise(
    recording: BaseRecording, seed: int, usable: Usable | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the noise and the resting level of each channel.

    Returns
    -------
    noise_levels, medians : ndarray, shape (num_channels,)
        Mean over seeded chunks of the scaled median absolute deviation, and of the median, in the units of
        the traces. For a channel that is constant more than half of the time, as in a simulation without
        noise, the noise level is the standard deviation. Chunks in which a channel is not usable are left
        out for it.
    """
    deviations, spreads, levels, counted = [], [], [], []
    for segment_index, start, stop in draw_chunks(recording, NOISE_CHUNK_S, seed):
        with reading_errors("the recording"):
            traces = recording.get_traces(segment_index, start, stop)
        by_channel = traces.T.astype(np.float32, copy=False)
        levels.append(medians(by_channel))
        deviations.append(MAD_TO_SD * medians(np.abs(by_channel - levels[-1][:, None])))
        at_rest = deviations[-1] == 0  # other channels need no standard deviation
        spreads.append(np.zeros(len(by_channel)))
        spreads[-1][at_rest] = by_channel[at_rest].std(axis=1, dtype=np.float64)
        if usable is not None:
            counted.append(usable(segment_index, start, stop))
    noise_levels = _mean(deviations, counted)
    noise_levels = np.where(noise_levels == 0, _mean(spreads, counted), noise_levels)
    return noise_levels, _mean(levels, counted)


def _mean(chunks: list[np.ndarray], counted: list[np.ndarray]) -> np.ndarray:
    """Return the mean over the chunks that count for each channel, or over all chunks if none counts."""
    mean = np.asarray(np.mean(chunks, axis=0, dtype=np.float64))
    counts = np.array(counted)
    if counts.all():
        return mean
    sums = np.where(counts, chunks, 0.0).sum(axis=0, dtype=np.float64)
    return np.where(counts.any(axis=0), sums / np.maximum(counts.sum(axis=0), 1), mean)


def find_unusable(recording: BaseRecording, seed: int) -> dict[str, str]:
    """Find channels that are constant, or mostly NaN or infinite, in seeded chunks and at both ends.

    Raises
    ------
    RecordingError
        If all channels are unusable, or the recording cannot be read.
    """
    second = max(1, round(recording.get_sampling_frequency()))
    last = recording.get_num_segments() - 1
    end = recording.get_num_samples(last)
    edges = [(0, 0, second), (last, max(0, end - second), end)]
    num_finite, num_samples = np.zeros(recording.get_num_channels(), dtype=np.int64), 0
    num_strange, num_wrapped = np.zeros((2, recording.get_num_channels()), dtype=np.int64)
    low = np.full(recording.get_num_channels(), np.inf)
    high = -low
    for segment_index, start, stop in draw_chunks(recording, NOISE_CHUNK_S, seed) + edges:
        with reading_errors("the recording"):
            traces = recording.get_traces(segment_index, start, stop)
        if not len(traces):
            continue
        num_samples += len(traces)
        num_strange += _count_strange(traces)
        num_wrapped += _count_wrapped(traces)
        if traces.dtype.kind in "iu":
            num_finite += len(traces)
            low, high = np.minimum(low, traces.min(axis=0)), np.maximum(high, traces.max(axis=0))
        else:
            finite = np.isfinite(traces)
            num_finite += finite.sum(axis=0)
            low = np.minimum(low, traces.min(axis=0, where=finite, initial=np.inf))
            high = np.maximum(high, traces.max(axis=0, where=finite, initial=-np.inf))
    _check_type(recording, num_strange, num_wrapped, num_samples)
    unusable = {
        str(channel_id): "constant" if is_finite else NOT_FINITE
        for channel_id, is_finite, varies in zip(
            recording.channel_ids, 2 * num_finite > num_samples, low < high, strict=True
        )
        if not (is_finite and varies)
    }
    if len(unusable) == recording.get_num_channels():
        raise RecordingError(
            f"all channels of the recording are unusable: {list_channels(unusable)}",
            "a channel must vary and hold finite numbers",
            "check the recording and its stream; if these are all the channels of one dead tetrode or shank, "
            "leave them out with --exclude-channels" + other_type(unusable),
        )
    return unusable


def other_type(unusable: dict[str, str]) -> str:
    """Return what to do, too, where samples are NaN: they may have been read with a wrong type."""
    is_nan = NOT_FINITE in unusable.values()
    return "; if the samples were written with another type, correct --dtype" if is_nan else ""


def _count_strange(traces: np.ndarray) -> np.ndarray:
    """Return how many samples of each channel are too large or too small for a signal in any unit."""
    if traces.dtype.kind != "f":
        return np.zeros(traces.shape[1], np.int64)
    size = np.abs(traces.astype(np.float32) if traces.dtype.itemsize < 4 else traces)
    return (((size > LARGEST) & np.isfinite(size)) | ((size > 0) & (size < SMALLEST))).sum(axis=0)


def _count_wrapped(traces: np.ndarray) -> np.ndarray:
    """Return how many steps of each channel span more than half of the range of a type of whole numbers."""
    if traces.dtype.kind not in "iu" or len(traces) < 2:
        return np.zeros(traces.shape[1], np.int64)
    half = float(np.iinfo(traces.dtype).max) - float(np.iinfo(traces.dtype).min)
    steps = np.abs(np.diff(traces.astype(np.float32), axis=0))
    return (steps > half / 2).sum(axis=0)


def _check_type(
    recording: BaseRecording, num_strange: np.ndarray, num_wrapped: np.ndarray, num_samples: int
) -> None:
    """Raise if samples look like numbers that were read with another type than they were written with."""
    strange, wrapped = (100 * count / max(1, num_samples) for count in (num_strange, num_wrapped))
    dtype = recording.get_dtype()
    if (strange > MOST_STRANGE_PERCENT).any():
        reason = (
            f"{strange.max():.0f} % of the samples of a channel are larger than {LARGEST:g} or smaller than "
            f"{SMALLEST:g}: no signal of an electrode, in any unit"
        )
    elif (wrapped > MOST_STRANGE_PERCENT).any():
        reason = (
            f"{wrapped.max():.0f} % of the samples of a channel are more than half of the range of {dtype} "
            "from the sample before"
        )
    else:
        return
    raise RecordingError(
        f"the samples were read as {dtype}, and {reason}",
        "the type, sign and byte order that the file was written with",
        "correct --dtype, such as int16, uint16, >i2 or float32; the number of channels and the format, too, "
        "if they were given by hand",
    )


def find_bad(
    filtered: BaseRecording, silenced: Iterable[str], seed: int, usable: Usable | None = None
) -> tuple[dict[str, str], str]:
    """Find noisy and dead channels among those that are not silenced.

    The noise of each channel is divided by the median of all channels; this ratio does not depend on the unit
    of the traces. SpikeInterface's coherence is not used: if the noise of neighbouring channels is little
    correlated, as in simulations and at the ends of a probe, it declares good channels dead.

    Returns
    -------
    bad : dict of str to str
        Names and reasons.
    note : str
        Why detection was left out or ignored; empty otherwise.
    """
    good_ids = ids_of(filtered, silenced, others=True)
    whole = len(good_ids) == filtered.get_num_channels()  # selecting channels is slow in HDF5
    good = filtered if whole else filtered.select_channels(good_ids)
    num_channels = good.get_num_channels()
    if num_channels < MIN_COMPARED_CHANNELS:
        return {}, f"bad-channel detection left out: fewer than {MIN_COMPARED_CHANNELS} channels to compare"
    lengths = [good.get_num_samples(i) for i in range(good.get_num_segments())]
    if max(lengths) < DETECTION_CHUNK_S * good.get_sampling_frequency():
        return {}, f"bad-channel detection left out: the recording is shorter than {DETECTION_CHUNK_S:g} s"
    good_indices = np.flatnonzero(np.isin(filtered.channel_ids, good_ids))
    of_good = None if usable is None else lambda *chunk: usable(*chunk)[good_indices]
    noise_levels, _ = measure_noise(good, seed, of_good)
    ratio = noise_levels / np.median(noise_levels)
    bad = {
        str(channel_id): "noisy" if channel_ratio > 1 else "dead"
        for channel_id, channel_ratio in zip(good.channel_ids, ratio, strict=True)
        if not 1 / NOISE_RATIO <= channel_ratio <= NOISE_RATIO
    }
    if len(bad) > MAX_BAD_FRACTION * num_channels:
        return {}, f"kept all channels: {len(bad)} of {num_channels} look bad, too many to believe"
    return bad, ""
