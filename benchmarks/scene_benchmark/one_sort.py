"""Run one sorter in this process: ``python one_sort.py JOB.json``.

The job names the sorter, the recording and a folder; the spikes go into ``spikes.npz`` there, and the seconds
from the recording to the spikes, without Python's start and imports, into ``facts.json``. This file runs in
the environment of the sorter, so it imports nothing of Spikewise but for Spikewise itself.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import numpy as np


def sort_spikewise(job: dict[str, Any], folder: Path) -> tuple[dict, float]:
    """Run the command ``spikewise sort``."""
    from spikeinterface import load

    from spikewise.cli.main import main as spikewise

    started = time.perf_counter()
    code = spikewise(["sort", job["recording"], "--output", str(folder / "sorted"), *job["options"]])
    seconds = time.perf_counter() - started
    if code:
        raise SystemExit(code)
    return _trains_of(load(folder / "sorted" / "sorting")), seconds


def sort_with_spikeinterface(job: dict[str, Any], folder: Path) -> tuple[dict, float]:
    """Run a sorter of SpikeInterface."""
    from spikeinterface import load, set_global_job_kwargs
    from spikeinterface.sorters import run_sorter

    set_global_job_kwargs(n_jobs=job["jobs"], progress_bar=False)
    started = time.perf_counter()
    found = run_sorter(
        job["sorter"], load(job["recording"]), folder=folder / "sorted", verbose=False, **job["parameters"]
    )
    return _trains_of(found), time.perf_counter() - started


def sort_spikesift(job: dict[str, Any], folder: Path) -> tuple[dict, float]:
    """Run SpikeSift on the file of the recording."""
    import spikesift

    binary = job["binary"]
    started = time.perf_counter()
    recording = spikesift.Recording(
        binary_file=binary["file"],
        data_type=np.dtype(binary["dtype"]),
        probe_geometry=np.asarray(binary["positions_um"], dtype=float),
        sampling_frequency=binary["sampling_frequency"],
        header=binary["header"],
    )
    found = spikesift.perform_spike_sorting(recording, verbose=False, **job["parameters"])
    trains = {unit_id: np.asarray(found.spikes(unit_id)) for unit_id in found.cluster_ids()}
    return trains, time.perf_counter() - started


SORT = {
    "spikewise": sort_spikewise,
    "spikeinterface": sort_with_spikeinterface,
    "spikesift": sort_spikesift,
}


def _trains_of(sorting: Any) -> dict:
    return {unit_id: sorting.get_unit_spike_train(unit_id, segment_index=0) for unit_id in sorting.unit_ids}


def _reason(error: Exception) -> str:
    """Return the line that names an error; SpikeInterface adds one below a sorter's own traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if "Spike sorting failed." not in line]
    if type(error).__name__ == "SpikeSortingError" and lines:
        return lines[-1]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(job["folder"])
    try:
        trains, seconds = SORT[job["kind"]](job, folder)
    except Exception as error:  # a sorter can fail in any way
        traceback.print_exc()
        print(f"error: {_reason(error)}", file=sys.stderr)
        return 1
    lengths = [len(train) for train in trains.values()]
    np.savez(
        folder / "spikes.npz",
        sample_index=np.concatenate([*trains.values(), []]).astype(np.int64),
        unit_index=np.repeat(np.arange(len(trains)), lengths),
    )
    (folder / "facts.json").write_text(json.dumps({"sorting_s": round(seconds, 3)}), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
