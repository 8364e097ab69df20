"""SpikeSift on the tested part of a scene, in the Python in which it is installed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
from spikeinterface.core import BaseRecording, NumpySorting

from spikewise.core.errors import SettingError

NAME = "spikesift"
_PROGRAM = """
import json, sys, time
import numpy as np
import spikesift

job = json.loads(sys.argv[1])
started = time.perf_counter()
recording = spikesift.Recording(
    binary_file=job["file"],
    data_type=np.dtype(job["dtype"]),
    probe_geometry=np.asarray(job["positions_um"], dtype=float),
    sampling_frequency=job["sampling_frequency"],
    header=job["header"],
)
found = spikesift.perform_spike_sorting(recording, verbose=False)
trains = [np.asarray(found.spikes(unit)) for unit in found.cluster_ids()]
seconds = time.perf_counter() - started
np.savez(
    job["result"],
    seconds=seconds,
    sample_index=np.concatenate([*trains, np.zeros(0, np.int64)]).astype(np.int64),
    unit_index=np.repeat(np.arange(len(trains)), list(map(len, trains))),
)
"""


def run_spikesift(
    python: str, recording: BaseRecording, start: int, folder: Path
) -> tuple[NumpySorting, float]:
    """Run SpikeSift with its defaults from a sample of a binary recording to its end.

    Parameters
    ----------
    python : str
        The Python in which it is installed.
    recording : BaseRecording
        The whole recording: one segment in one binary file.
    start : int
        First sample that is sorted.
    folder : Path
        For what is written meanwhile.

    Returns
    -------
    NumpySorting
        The spikes; sample 0 is `start`.
    float
        Seconds from the file to the spikes, without the start of Python and its imports.

    Raises
    ------
    SettingError
        If it cannot be run.
    """
    binary = recording.get_binary_description()
    sample_bytes = recording.get_num_channels() * np.dtype(binary["dtype"]).itemsize
    result = folder / "spikesift.npz"
    job = {
        "file": str(Path(binary["file_paths"][0]).absolute()),
        "dtype": np.dtype(binary["dtype"]).str,
        "header": int(binary["file_offset"]) + start * sample_bytes,
        "sampling_frequency": float(recording.get_sampling_frequency()),
        "positions_um": recording.get_channel_locations().tolist(),
        "result": str(result.absolute()),
    }
    try:
        done = subprocess.run([python, "-c", _PROGRAM, json.dumps(job)], capture_output=True, text=True)
    except OSError as error:
        raise _cannot_run(python, str(error)) from error
    if done.returncode:
        raise _cannot_run(python, (done.stderr.strip().splitlines() or ["it ended without a word"])[-1])
    with np.load(result) as found:
        frames, units, seconds = found["sample_index"], found["unit_index"], float(found["seconds"])
    sorting = NumpySorting.from_samples_and_labels(
        [frames], [units], recording.get_sampling_frequency(), np.unique(units)
    )
    return sorting, seconds


def _cannot_run(python: str, reason: str) -> SettingError:
    return SettingError(
        f"SpikeSift cannot be run by {python}: {reason}",
        "the Python of an environment in which SpikeSift is installed",
        "name it with --peers-python",
    )
