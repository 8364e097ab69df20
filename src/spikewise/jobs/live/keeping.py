"""Learn from the first minutes of a stream while its samples go on being kept; then catch up with it.

A thread takes the chunks of the source and appends them to a file. The first seconds of the file are the
recording from which the units are learnt. After that, :meth:`KeptSource.chunks` yields the samples from the
first one on, faster than they come. When it has caught up, the thread ends, the file is deleted, and the
source is read directly: so disk is needed for the time of learning and catching up only.
"""

from __future__ import annotations

import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from spikeinterface.core import BaseRecording, BinaryRecordingExtractor

from spikewise.core.errors import SpikewiseError
from spikewise.core.progress import ProgressCallback, silent
from spikewise.jobs.live.source import POLL_S, Chunk, Source, StreamError, StreamFacts

logger = logging.getLogger(__name__)

_NEARLY_S = 0.05
"""When so little is left to catch up with, the source is read directly; chosen by hand."""
_CHUNK_S = 0.1
"""Length of the chunks that are read from the file, s; chosen by hand."""
COLLECTING = "collecting the first seconds"
"""Stage of the progress."""


class KeptSource:
    """A source whose samples are kept from the beginning.

    Parameters
    ----------
    source : Source
        Open.
    facts : StreamFacts
        Of the source.
    sampling_frequency : float
        In Hz.
    """

    def __init__(self, source: Source, facts: StreamFacts, sampling_frequency: float):
        self._source, self._facts, self._rate = source, facts, sampling_frequency
        self._folder = tempfile.TemporaryDirectory(prefix="spikewise-stream-")
        self._file = Path(self._folder.name) / "samples.raw"
        self._dtype = np.dtype(facts.dtype)
        self._written = 0
        self._gaps: list[tuple[int, int]] = []  # place in the file, and length, of each gap
        self._changed = threading.Condition()
        self._is_leaving = self._has_ended = False
        self._error: BaseException | None = None
        self._chunks = source.chunks()
        self._thread = threading.Thread(target=self._keep, name="spikewise-keep", daemon=True)
        self._thread.start()

    def open(self) -> StreamFacts:
        """Return the facts of the source, which is open already."""
        return self._facts

    def wait_for(self, seconds: float, wait_s: float, progress: ProgressCallback = silent) -> BaseRecording:
        """Wait until the first seconds are kept; return them as a recording.

        `progress` is called with the seconds that are kept.

        Raises
        ------
        StreamError
            If the source ends before, or no samples come for `wait_s`.
        """
        needed, last, since = round(seconds * self._rate), -1, time.monotonic()
        while self._written < needed:
            with self._changed:
                self._changed.wait(POLL_S)
            self._raise_error()
            if self._written != last:
                last, since = self._written, time.monotonic()
                progress(COLLECTING, self._written / self._rate, seconds, "")
            if self._has_ended or time.monotonic() - since > wait_s:
                raise StreamError(
                    f"the stream gave {self._written / self._rate:.1f} s of samples",
                    f"{seconds:g} s, from which the units are learnt",
                    "let it run longer, or lower --learn-s",
                )
        kept = BinaryRecordingExtractor(
            [self._file], self._rate, self._dtype, num_channels=self._facts.num_channels
        )
        if self._facts.gain_to_uV is not None:
            kept.set_channel_gains(self._facts.gain_to_uV)
            kept.set_channel_offsets(0.0)
        return kept.frame_slice(0, needed)

    def chunks(self) -> Iterator[Chunk]:
        """Yield all samples, the kept ones first."""
        at, gaps = 0, 0
        most = max(1, round(_CHUNK_S * self._rate))
        while True:
            with self._changed:
                rest = self._written - at
                if rest <= _NEARLY_S * self._rate and not self._is_leaving:
                    self._is_leaving = True
                end = min(self._written, at + most)
                gap = None
                if gaps < len(self._gaps):
                    place, length = self._gaps[gaps]
                    if place == at:
                        gap, gaps = length, gaps + 1
                        place = self._gaps[gaps][0] if gaps < len(self._gaps) else end
                    end = min(end, place)
                is_done = rest == 0 and self._is_leaving and not self._thread.is_alive()
            if is_done:
                break
            if end > at:
                yield Chunk(self._read(at, end), gap)
                at = end
            else:
                with self._changed:
                    self._changed.wait(POLL_S)
        self._raise_error()
        self._folder.cleanup()
        if not self._has_ended:
            logger.info("the stream is caught up with after %.1f s", at / self._rate)
            yield from self._chunks

    def close(self) -> None:
        """End the thread, delete the file, and close the source."""
        self._is_leaving = True
        self._thread.join(10)
        self._folder.cleanup()
        self._source.close()

    def _keep(self) -> None:
        """Append what the source yields, until the reader wants to read it directly."""
        try:
            with open(self._file, "wb", buffering=0) as file:
                while not self._is_leaving:
                    chunk = next(self._chunks, None)
                    if chunk is None:
                        self._has_ended = True
                        return
                    if len(chunk.samples):
                        file.write(np.ascontiguousarray(chunk.samples, self._dtype).data)
                        with self._changed:
                            if chunk.gap is not None:
                                self._gaps.append((self._written, chunk.gap))
                            self._written += len(chunk.samples)
                            self._changed.notify_all()
        except BaseException as error:
            self._error = error
        finally:
            with self._changed:
                self._changed.notify_all()

    def _read(self, start: int, stop: int) -> np.ndarray:
        count = (stop - start) * self._facts.num_channels
        offset = start * self._facts.num_channels * self._dtype.itemsize
        samples = np.fromfile(self._file, self._dtype, count, offset=offset)
        return samples.reshape(-1, self._facts.num_channels)

    def _raise_error(self) -> None:
        error = self._error
        if isinstance(error, SpikewiseError):
            raise error
        if error is not None:
            raise StreamError(
                f"the samples cannot be kept: {error}",
                "a temporary folder with space for the time of learning",
                "make room, or name another one in the variable TMPDIR",
            ) from error
