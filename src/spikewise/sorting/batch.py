"""Sort a long recording chunk by chunk, so that the memory depends on the chunk only."""

from __future__ import annotations

from collections.abc import Callable

from spikewise.core.progress import SORTING, ProgressCallback, silent
from spikewise.data.recordings.reader import Traces
from spikewise.sorting.detector import Detector, SegmentSearch
from spikewise.sorting.spikes import Spikes


def detect_in_chunks(
    detector: Detector,
    traces: Traces,
    chunk_s: float,
    progress: ProgressCallback = silent,
    stage: str = SORTING,
) -> list[Spikes]:
    """Find all spikes of a recording.

    Parameters
    ----------
    detector : Detector
    traces : Traces
        Preprocessed traces of the detector's channels.
    chunk_s : float
        Length of the chunks; the spikes are the same for any length.
    progress : callable
        Called with the seconds done and the seconds in all.
    stage : str
        Name of the stage in the progress.

    Returns
    -------
    list of Spikes
        One for each segment.
    """
    rate = traces.sampling_frequency
    total = sum(traces.num_samples(index) for index in range(traces.num_segments)) / rate
    done, found, segments = 0.0, 0, []

    def report(num_samples: int, num_spikes: int) -> None:
        nonlocal done, found
        done, found = done + num_samples / rate, found + num_spikes
        progress(stage, done, total, f"{found} spikes")

    for segment_index in range(traces.num_segments):
        search = detector.search(traces, segment_index)
        chunk = chunk_samples(chunk_s, rate)
        segments.append(find_in_stretch(search, 0, traces.num_samples(segment_index), chunk, report))
    return segments


def chunk_samples(chunk_s: float, sampling_frequency: float) -> int:
    """Return the samples of a chunk, one at least."""
    return max(1, round(chunk_s * sampling_frequency))


def find_in_stretch(
    search: SegmentSearch, start: int, stop: int, chunk: int, report: Callable[[int, int], None]
) -> Spikes:
    """Find the spikes of a stretch of a segment, chunk by chunk.

    Parameters
    ----------
    search : SegmentSearch
        It may hold tiles from earlier stretches; these save time and change no spike.
    start, stop : int
        The stretch, in samples.
    chunk : int
        Samples of a chunk.
    report : callable
        Called with the samples and the spikes of each chunk.
    """
    parts = []
    for begin in range(start, stop, chunk):
        end = min(begin + chunk, stop)
        parts.append(search.find(begin, end))
        report(end - begin, len(parts[-1]))
    return Spikes.concatenate(parts)
