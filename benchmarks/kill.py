"""Kill a sort at random times, resume it, and compare its spikes with those of an undisturbed sort.

    python benchmarks/kill.py --output bench/kill [--kills 20] [--seed 0] [--cluster local:3]

``spikewise sort`` runs in a process of its own and gets SIGKILL at a random time, in turn after the beginning
of learning, sorting and merging; then the same command with ``--resume`` runs to the end. With ``--cluster``,
one of the workers is killed instead of the sort, every ten seconds or as given by ``--every-s``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

import spikewise

QUICK = ["--patches-per-unit", "1000", "--unit-steps", "100", "--shard-s", "1", "--chunk-s", "1"]

STAGES = {"train": 8.0, "sort": 2.0, "merge": 0.05}
"""Stages, and the longest time in seconds from the beginning of a stage to the kill."""


def command(folder: Path, output: Path, *more: str) -> list[str]:
    """Return the command that sorts the recording of a folder."""
    scene = folder / "scene"
    words = ["sort", str(scene / "recording"), "--labels", str(scene / "truth"), "--label-interval", "0", "6"]
    return [sys.executable, "-m", "spikewise", *words, "-o", str(output), "--json", *QUICK, *more]


def finish(arguments: list[str]) -> str:
    """Run a sort to its end and return the hash of its spikes."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])["spikes_hash"]


def stage_of(output: Path) -> str:
    """Return the stage of a sort when it was killed."""
    unfinished = output / "unfinished"
    if (output / "provenance.json").exists():
        return "finished"
    if (output / "sorting").exists() or (unfinished / "spikes.npy").exists():
        return "merge"
    shards = len(list((unfinished / "shards").glob("*.npy")))
    if shards:
        return f"sort, {shards} shards"
    if (output / "model.safetensors").exists():
        return "sort"
    return "train" if (unfinished / "job.json").exists() else "start"


def make_scene(folder: Path, duration_s: float) -> None:
    """Write a recording of 16 channels and 20 units, which are learnt in two blocks."""
    scene = spikewise.simulate(probe="linear-16", num_units=20, duration_s=duration_s, seed=3)
    spikewise.save_simulation(scene, folder / "scene", overwrite=True)


def measure(folder: Path, kills: int = 20, seed: int = 0, duration_s: float = 24.0) -> dict[str, Any]:
    """Kill sorts, and return their hashes and that of the undisturbed sort."""
    folder.mkdir(parents=True, exist_ok=True)
    make_scene(folder, duration_s)
    expected = finish(command(folder, folder / "undisturbed", "--overwrite"))
    random, hashes, stages = np.random.default_rng(seed), [], []
    output = folder / "killed"
    while len(hashes) < kills:
        shutil.rmtree(output, ignore_errors=True)
        process = subprocess.Popen(
            command(folder, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        stage, longest_s = list(STAGES.items())[len(hashes) % len(STAGES)]
        while process.poll() is None and not stage_of(output).startswith(stage):
            time.sleep(0.002)
        time.sleep(random.uniform(0, longest_s))
        if process.poll() is not None:
            continue  # it finished before the kill
        process.send_signal(signal.SIGKILL)
        process.wait()
        stages.append(stage_of(output))
        hashes.append(finish(command(folder, output, "--resume")))
        print(f"{len(hashes)}: killed in {stages[-1]}, {hashes[-1] == expected}", flush=True)
    return {"kills": kills, "expected": expected, "hashes": hashes, "stages": stages}


def measure_workers(folder: Path, cluster: str, every_s: float, duration_s: float) -> dict[str, Any]:
    """Kill a worker every `every_s` seconds while a cluster sorts."""
    folder.mkdir(parents=True, exist_ok=True)
    make_scene(folder, duration_s)
    expected = finish(command(folder, folder / "undisturbed", "--overwrite"))
    output = folder / "distributed"
    arguments = command(folder, output, "--overwrite", "--cluster", cluster)
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    killed, last = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.1)
        shards = list((output / "unfinished" / "shards").glob("*.npy"))
        if shards and time.monotonic() - last > every_s:
            killed += kill_worker(process.pid, killed)
            last = time.monotonic()
    out, err = process.communicate()
    if process.returncode:
        raise RuntimeError(err)
    found = json.loads(out.splitlines()[-1])["spikes_hash"]
    return {"kills": killed, "expected": expected, "hashes": [found], "stages": ["workers"]}


def kill_worker(pid: int, number: int) -> int:
    """Kill one worker of a sort; return how many were killed."""
    try:
        children = psutil.Process(pid).children(recursive=True)
        workers = [child for child in children if "spawn_main" in " ".join(child.cmdline())]
        if not workers:
            return 0
        workers[number % len(workers)].kill()
    except psutil.NoSuchProcess:
        return 0
    return 1


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("bench/kill"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--duration-s", type=float, default=24.0)
    parser.add_argument("--cluster", default=None)
    parser.add_argument("--every-s", type=float, default=10.0)
    options = parser.parse_args()
    facts = (
        measure(options.output, options.kills, options.seed, options.duration_s)
        if options.cluster is None
        else measure_workers(options.output, options.cluster, options.every_s, options.duration_s)
    )
    (options.output / "kill.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    same = sum(found == facts["expected"] for found in facts["hashes"])
    print(f"{facts['kills']} kills; {same} of {len(facts['hashes'])} with the spikes of the undisturbed sort")
    print(f"killed in: {', '.join(facts['stages'])}")
    sys.exit(same < len(facts["hashes"]))


if __name__ == "__main__":
    main()
