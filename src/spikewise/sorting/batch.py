"""Long recordings, stretch by stretch: memory depends on the chunk, never on the recording."""

from __future__ import annotations

from collections.abc import Callable

from spikewise.core.progress import ProgressCallback, silent
from spikewise.data.recordings.reader import Traces
from spikewise.sorting.detect import Detector, Spikes
from spikewise.sorting.sparse import Asked


def detect_in_chunks(
    detector: Detector,
    traces: Traces,
    chunk_s: float,
    progress: ProgressCallback = silent,
    stage: str = "sort",
) -> list[Spikes]:
    """Find all spikes of a recording.

    Parameters
    ----------
    detector : SpikeDetector
    traces : Traces
        Preprocessed traces of the detector's channels.
    chunk_s : float
        Length of the chunks; the spikes are the same for any length.
    progress : callable
        Told the seconds done, of the seconds in all.
    stage : str
        Name under which progress is told.

    Returns
    -------
    list of Spikes
        One for each segment.
    """
    rate = traces.sampling_frequency
    total = sum(traces.num_samples(index) for index in range(traces.num_segments)) / rate
    done, found, segments = 0.0, 0, []

    def tell(num_samples: int, num_spikes: int) -> None:
        nonlocal done, found
        done, found = done + num_samples / rate, found + num_spikes
        progress(stage, done, total, f"{found} spikes")

    for segment_index in range(traces.num_segments):
        stretch = (segment_index, 0, traces.num_samples(segment_index))
        segments.append(find_in_stretch(detector, traces, stretch, chunk_s, {}, tell))
    return segments


def find_in_stretch(
    detector: Detector,
    traces: Traces,
    stretch: tuple[int, int, int],
    chunk_s: float,
    known: dict[int, Asked],
    tell: Callable[[int, int], None],
) -> Spikes:
    """Find the spikes of a stretch of a segment; they are the same whatever was found before.

    Parameters
    ----------
    detector : SpikeDetector
    traces : Traces
    stretch : (int, int, int)
        Segment, first sample, and the sample after the last.
    chunk_s : float
        Length of the chunks.
    known : dict
        Tiles of this segment that are computed already: see :meth:`SparseDetector.find`. They only save time.
    tell : callable
        Told the samples and the spikes of each chunk.
    """
    segment_index, first, last = stretch
    chunk = max(1, round(chunk_s * traces.sampling_frequency))
    parts = []
    for start in range(first, last, chunk):
        stop = min(start + chunk, last)
        parts.append(detector.find(traces, segment_index, start, stop, known))
        tell(stop - start, len(parts[-1]))
    return Spikes.concatenate(parts)
