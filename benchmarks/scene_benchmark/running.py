"""Runs: each sorter in its own process, one after another; each result in a file as soon as it is known.

A run is kept if the command is given again, unless its scene, the version or the parameters of its sorter
have changed, or it failed.
"""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import spikeinterface
from spikeinterface.core import NumpySorting

from scene_benchmark.making import SYNCHRONOUS_MS, Scene
from scene_benchmark.scoring import score
from scene_benchmark.sorters import LABELLED, SORTERS, Installed, parameters_of
from spikewise.core.files import save_json, writing

RUNS = "runs"
ONE_SORT = Path(__file__).with_name("one_sort.py")
_BLOCK = 2**24


@dataclass(frozen=True)
class RunOptions:
    """What all runs of a command share.

    Attributes
    ----------
    folder : Path
        Folder of the benchmark.
    installed : Installed
    jobs : int
        Processes or threads of the sorters of SpikeInterface.
    timeout_s : float
        A sorter that takes longer is ended.
    spikewise_args : str
        Options of ``spikewise sort``, as on the command line.
    labels_per_unit : int
    labels_s : float
        The labels of ``spikewise+labels`` come from so many seconds, and at most from half of the scene.
    begun : str
        When the command was given: tells its runs from those of earlier commands.
    """

    folder: Path
    installed: Installed
    jobs: int
    timeout_s: float
    spikewise_args: str
    labels_per_unit: int
    labels_s: float
    begun: str


def now() -> str:
    """Return the time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_once(scene: Scene, sorter: str, repeat: int, options: RunOptions) -> tuple[dict[str, Any], bool]:
    """Return the row of a run, and whether it was measured now and not before."""
    name = f"{scene.settings.name}_seed{scene.settings.seed}_{sorter}_{repeat}"
    file = options.folder / RUNS / f"{name}.json"
    facts = {
        "scene": scene.settings.name,
        "seed": scene.settings.seed,
        "repeat": repeat,
        "sorter": sorter,
        "scene_digest": scene.digest,
        "version": options.installed.version(sorter),
        "parameters": _parameters(scene, sorter, options),
    }
    earlier = _read(file)
    if not earlier.get("error", "never run") and all(earlier.get(key) == facts[key] for key in facts):
        return earlier, False
    file.parent.mkdir(parents=True, exist_ok=True)
    work = options.folder / "work" / name
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    log = file.with_suffix(".log")
    try:
        measured = _sort(_job(scene, sorter, facts["parameters"], work, options), sorter, log, options)
        row = {**facts, **measured}
        if not row["error"]:
            row |= _score(scene, work / "spikes.npz")
            with writing(file):
                shutil.copyfile(work / "spikes.npz", file.with_suffix(".npz"))
    finally:
        shutil.rmtree(work.parent, ignore_errors=True)
    save_json(row, file)
    return row, True


def saved_rows(folder: Path, digests: dict[tuple[str, int], str | None]) -> list[dict[str, Any]]:
    """Return the rows of all runs on the scenes as they are now, by scene and seed."""
    rows = [_read(file) for file in sorted((folder / RUNS).glob("*.json"))]
    return [row for row in rows if digests.get((row["scene"], row["seed"])) == row["scene_digest"]]


def read_once(scene: Scene) -> None:
    """Read the recording once, so that the first sorter finds it as warm as the last."""
    for file in scene.recording.rglob("*.raw"):
        with file.open("rb", buffering=0) as opened:
            while opened.read(_BLOCK):
                pass


def _read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def _parameters(scene: Scene, sorter: str, options: RunOptions) -> dict[str, Any]:
    if SORTERS[sorter].kind != "spikewise":
        parameters = parameters_of(sorter, scene.facts["num_channels"], scene.settings.seed)
        return (
            {**parameters, "jobs": options.jobs} if SORTERS[sorter].kind == "spikeinterface" else parameters
        )
    words = shlex.split(options.spikewise_args)
    if sorter == LABELLED:
        stop_s = min(options.labels_s, scene.settings.seconds / 2)
        interval = ["--label-interval", "0", f"{stop_s:g}"]
        words = [*interval, "--labels-per-unit", str(options.labels_per_unit), *words]
    return {"options": words}


def _job(
    scene: Scene, sorter: str, parameters: dict[str, Any], work: Path, options: RunOptions
) -> dict[str, Any]:
    """Return what ``one_sort.py`` is told."""
    job = {
        "kind": SORTERS[sorter].kind,
        "sorter": SORTERS[sorter].sorter,
        "folder": str(work.absolute()),
        "recording": str(scene.recording.absolute()),
        "jobs": options.jobs,
    }
    if job["kind"] == "spikewise":
        labels = ["--labels", str(scene.truth.absolute())] if sorter == LABELLED else []
        return {**job, "options": [*labels, *parameters["options"]]}
    job["parameters"] = {name: value for name, value in parameters.items() if name != "jobs"}
    if job["kind"] == "spikesift":
        recording = spikeinterface.load(scene.recording)
        binary = recording.get_binary_description()
        job["binary"] = {
            "file": str(Path(binary["file_paths"][0]).absolute()),
            "dtype": np.dtype(binary["dtype"]).str,
            "header": int(binary["file_offset"]),
            "sampling_frequency": float(recording.sampling_frequency),
            "positions_um": recording.get_channel_locations().tolist(),
        }
    return job


def _sort(job: dict[str, Any], sorter: str, log: Path, options: RunOptions) -> dict[str, Any]:
    """Run a sorter in its own process; return its seconds, what else the machine did, and its error."""
    work = Path(job["folder"])
    (work / "job.json").write_text(json.dumps(job), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [options.installed.python(sorter), ONE_SORT, work / "job.json"]
    facts: dict[str, Any] = {"run": options.begun, "started": now(), "load": round(os.getloadavg()[0], 2)}
    with log.open("w", encoding="utf-8") as output:
        busy, own, started = _busy_s(), _own_s(), time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment if SORTERS[sorter].peer else None,
            start_new_session=True,
        )
        code = _wait(process, options.timeout_s)
        seconds = time.perf_counter() - started
    own = _own_s() - own
    facts |= {
        "seconds": round(seconds, 3),
        "cpu_s": round(own, 2),
        "cores_of_others": round(max(0.0, (_busy_s() - busy - own) / seconds), 2),
    }
    facts |= _read(work / "facts.json")
    return {**facts, "error": _error(code, log, options.timeout_s)}


def _wait(process: subprocess.Popen, timeout_s: float) -> int | None:
    """Wait until a process ends; end it, and those that it started, after the timeout or an interruption."""
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _busy_s() -> float:
    """Return the seconds that all cores of the machine have worked."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _own_s() -> float:
    """Return the seconds that the processes started from here have worked."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _error(code: int | None, log: Path, timeout_s: float) -> str:
    """Return why a sorter failed; empty if it did not."""
    if code == 0:
        return ""
    if code is None:
        return f"ended after {timeout_s:g} s"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    said = told or [line for line in lines if line]
    return said[-1] if said else f"ended with code {code}"


def _score(scene: Scene, spikes: Path) -> dict[str, Any]:
    with np.load(spikes, allow_pickle=False) as arrays:
        found = NumpySorting.from_samples_and_labels(
            [arrays["sample_index"]], [arrays["unit_index"]], scene.facts["sampling_frequency"]
        )
    truth = spikeinterface.load(scene.truth)
    return score(truth, found, scene.facts["num_samples"], scene.facts["pairs"], SYNCHRONOUS_MS)
