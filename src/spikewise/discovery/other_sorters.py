"""Running the sorters of SpikeInterface: quiet, with a seed, and without what they leave behind."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from multiprocessing import shared_memory
from pathlib import Path
from typing import IO, Any

from spikeinterface.core import BaseRecording, NumpySorting
from spikeinterface.core.time_series_tools import get_random_sample_slices
from spikeinterface.sorters import get_default_sorter_params, run_sorter
from spikeinterface.sorters.utils import SpikeSortingError

from spikewise.core.compiling import keep_compiled


def run_quietly(
    sorter: str, recording: BaseRecording, folder: Path, parameters: dict[str, Any], seed: int, log: IO[str]
) -> NumpySorting:
    """Run a sorter, with what it prints in a log, and return its spikes in memory.

    Parameters
    ----------
    sorter : str
        As SpikeInterface calls it.
    recording : BaseRecording
    folder : Path
        Where it works; made by the sorter.
    parameters : dict
        See :func:`sorter_parameters`.
    seed : int
        Of the chunks that SpikeInterface draws.
    log : file
        Gets what is printed.

    Raises
    ------
    Exception
        Whatever the sorter raises.
    """
    _keep_sorters_compiled()
    with (
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        seeded_chunks(seed),
        shared_memory_given_back(),
    ):
        return NumpySorting.from_sorting(run_sorter(sorter, recording, folder=folder, **parameters))


def sorter_parameters(sorter: str, recording: BaseRecording, seed: int) -> dict[str, Any]:
    """Return what differs from the sorter's defaults.

    No motion correction, since an initial interval is too short for it; the upper edge of the band-pass at
    most 0.45 of the sampling frequency, so that recordings at 10 kHz pass; a seed; one job, since each more
    process would compile the sorter again (about a minute) and could not start from a script without a main
    guard; no progress bars and no intermediate files. Tetrodes and single channels need nothing else.
    Kilosort4 does not look further for neighbours than there are channels.
    """
    jobs = {"n_jobs": 1, "chunk_duration": "1s", "progress_bar": False}
    top_hz = 0.45 * recording.sampling_frequency
    if sorter == "kilosort4":
        nearest = min(10, recording.get_num_channels())
        return {"do_correction": False, "nearest_chans": nearest, **jobs}
    defaults = get_default_sorter_params(sorter)
    parameters = {"apply_motion_correction": False, "seed": seed, "job_kwargs": jobs}
    if sorter == "spykingcircus2":
        edges = {**defaults["filtering"], "freq_max": min(defaults["filtering"]["freq_max"], top_hz)}
        return {**parameters, "filtering": edges, "deterministic_peaks_detection": True}
    return {**parameters, "freq_max": min(defaults["freq_max"], top_hz), "save_array": False}


def last_line(error: Exception) -> str:
    """Return the line that names the error; SpikeInterface puts one more below a sorter's traceback."""
    text = str(error) if isinstance(error, SpikeSortingError) else traceback.format_exception_only(error)[-1]
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and "Spike sorting failed." not in line
    ]
    return lines[-1]


def _keep_sorters_compiled() -> None:
    """Keep on disk what the sorters of SpikeInterface compile: most of their time where units are few.

    These modules compile nothing of other modules.
    """
    from spikeinterface.postprocessing import template_similarity
    from spikeinterface.sortingcomponents.clustering import isosplit_isocut
    from spikeinterface.sortingcomponents.matching import tdc_peeler
    from spikeinterface.sortingcomponents.peak_detection import locally_exclusive, matched_filtering

    for module in (template_similarity, isosplit_isocut, tdc_peeler, locally_exclusive, matched_filtering):
        keep_compiled(module)


@contextlib.contextmanager
def seeded_chunks(seed: int) -> Iterator[None]:
    """Give a seed to the random chunks that SpikeInterface draws while a sorter runs.

    In SpikeInterface 0.105 Lupin's matched filter and Tridesclous2's whitening draw chunks with no seed and
    take none, so that two runs find different units.
    """
    defaults = get_random_sample_slices.__defaults__
    get_random_sample_slices.__defaults__ = (*defaults[:-1], seed)  # its last parameter is the seed
    try:
        yield
    finally:
        get_random_sample_slices.__defaults__ = defaults


@contextlib.contextmanager
def shared_memory_given_back() -> Iterator[None]:
    """Give back the memory that a sorter shares among processes.

    In SpikeInterface 0.105 the sorters keep the filtered recording in shared memory (2.8 GB for a minute of
    384 channels), and leave it there until the process ends: it is closed while arrays still look into it.
    """
    made: list[str] = []
    original = shared_memory.SharedMemory

    class Noted(original):  # type: ignore[misc, valid-type]
        """Tells its name to this function."""

        def __init__(self, name: str | None = None, create: bool = False, size: int = 0):
            super().__init__(name, create, size)
            if create:
                made.append(self.name)

    shared_memory.SharedMemory = Noted  # type: ignore[misc]
    try:
        yield
    finally:
        shared_memory.SharedMemory = original  # type: ignore[misc]
        for name in made:
            with contextlib.suppress(FileNotFoundError):  # the sorter gave it back
                left = original(name)
                left.unlink()
                left.close()
