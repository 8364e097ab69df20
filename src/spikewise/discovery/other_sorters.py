"""Run the sorters of SpikeInterface: quietly, with a seed, and with their shared memory released."""

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
from spikewise.data.recordings.preprocessing import MAX_OF_SAMPLING_FREQUENCY


def run_quietly(
    sorter: str, recording: BaseRecording, folder: Path, parameters: dict[str, Any], seed: int, log: IO[str]
) -> NumpySorting:
    """Run a sorter, write its output to a log, and return its spikes in memory.

    Parameters
    ----------
    sorter : str
        Its name in SpikeInterface.
    recording : BaseRecording
    folder : Path
        Working folder; the sorter creates it.
    parameters : dict
        See :func:`sorter_parameters`.
    seed : int
        Seed of the chunks that SpikeInterface draws.
    log : file
        Receives all printed output.

    Raises
    ------
    Exception
        Any error of the sorter.
    """
    _keep_sorters_compiled()
    with (
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
        seeded_chunks(seed),
        released_shared_memory(),
    ):
        return NumpySorting.from_sorting(run_sorter(sorter, recording, folder=folder, **parameters))


def sorter_parameters(sorter: str, recording: BaseRecording, seed: int) -> dict[str, Any]:
    """Return the parameters that differ from the sorter's defaults.

    - No motion correction: the initial interval is too short for it.
    - The band-pass ends at MAX_OF_SAMPLING_FREQUENCY at the latest, for recordings at 10 kHz.
    - A seed, no progress bars, no intermediate files.
    - One job: each further process would compile the sorter again (about a minute), and could not start from
      a script without a main guard.
    - Kilosort4: no more neighbours than there are channels.

    Tetrodes and single channels need no other parameters.
    """
    jobs = {"n_jobs": 1, "chunk_duration": "1s", "progress_bar": False}
    top_hz = MAX_OF_SAMPLING_FREQUENCY * recording.sampling_frequency
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
    """Return the line that names the error; SpikeInterface adds one more below a sorter's traceback."""
    text = str(error) if isinstance(error, SpikeSortingError) else traceback.format_exception_only(error)[-1]
    lines = [
        line.strip() for line in text.splitlines() if line.strip() and "Spike sorting failed." not in line
    ]
    return lines[-1]


def _keep_sorters_compiled() -> None:
    """Cache the compiled functions of SpikeInterface's sorters on disk.

    With few units, compiling takes most of a sorter's time. These modules compile no functions of others.
    """
    from spikeinterface.postprocessing import template_similarity
    from spikeinterface.sortingcomponents.clustering import isosplit_isocut
    from spikeinterface.sortingcomponents.matching import tdc_peeler
    from spikeinterface.sortingcomponents.peak_detection import locally_exclusive, matched_filtering

    for module in (template_similarity, isosplit_isocut, tdc_peeler, locally_exclusive, matched_filtering):
        keep_compiled(module)


@contextlib.contextmanager
def seeded_chunks(seed: int) -> Iterator[None]:
    """Set the seed of the random chunks that SpikeInterface draws while a sorter runs.

    In SpikeInterface 0.105, Lupin's matched filter and Tridesclous2's whitening draw chunks without a seed
    and accept none, so two runs find different units.
    """
    defaults = get_random_sample_slices.__defaults__
    get_random_sample_slices.__defaults__ = (*defaults[:-1], seed)  # its last parameter is the seed
    try:
        yield
    finally:
        get_random_sample_slices.__defaults__ = defaults


@contextlib.contextmanager
def released_shared_memory() -> Iterator[None]:
    """Release the memory that a sorter shares among processes.

    In SpikeInterface 0.105 the sorters keep the filtered recording in shared memory (2.8 GB for a minute of
    384 channels) until the process ends: they close it while arrays still use it.
    """
    names: list[str] = []
    original = shared_memory.SharedMemory

    class Recorded(original):  # type: ignore[misc, valid-type]
        """Shared memory whose name is recorded when it is created."""

        def __init__(self, name: str | None = None, create: bool = False, size: int = 0):
            super().__init__(name, create, size)
            if create:
                names.append(self.name)

    shared_memory.SharedMemory = Recorded  # type: ignore[misc]
    try:
        yield
    finally:
        shared_memory.SharedMemory = original  # type: ignore[misc]
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # the sorter released it
                left = original(name)
                left.unlink()
                left.close()
