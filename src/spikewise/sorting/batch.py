"""Long recordings, chunk by chunk: memory depends on the chunk, never on the recording."""

from __future__ import annotations

from spikewise.data.labels import Traces
from spikewise.progress import ProgressCallback, silent
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
    chunk = max(1, round(chunk_s * rate))
    total = sum(traces.num_samples(index) for index in range(traces.num_segments)) / rate
    done, found, segments = 0.0, 0, []
    for segment_index in range(traces.num_segments):
        known: dict[int, Asked] = {}
        parts, num_samples = [], traces.num_samples(segment_index)
        for start in range(0, num_samples, chunk):
            stop = min(start + chunk, num_samples)
            parts.append(detector.find(traces, segment_index, start, stop, known))
            done += (stop - start) / rate
            found += len(parts[-1])
            progress(stage, done, total, f"{found} spikes")
        segments.append(Spikes.concatenate(parts))
    return segments
