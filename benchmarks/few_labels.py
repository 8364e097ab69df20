"""Accuracy with few labels: pretrained filters and training from scratch, on several probes, with drift.

    python benchmarks/few_labels.py labels [--seeds 1 2 3] [--labels 5 10 15]   # and 30, 50 from scratch
    python benchmarks/few_labels.py hybrid probes drift [--seeds 1 2 3] [--labels 15]

``--folder bench`` is the folder of the results; ``--methods esort-paper`` runs only some of the methods.

The model is trained on the first half of a recording (the first spikes of each unit); only the second half is
sorted and scored. Each result is a line of ``FOLDER/few_labels.jsonl``; runs that have a line are not
repeated. Data and simulations as in ``run.py``.

Methods: ``neighbourhood`` is the default; ``esort-paper`` is the dense network from scratch.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import spikeinterface
from run import DATA, REPOSITORY, SIMULATIONS
from spikeinterface.core import BaseRecording, BaseSorting

import spikewise

DRIFTING = DATA / "mearec" / "templates_neuropixels128_drift_seed99.h5"
PROBES: dict[str, dict[str, Any]] = {
    "tetrode": SIMULATIONS["tetrode"] | {"duration_s": 60.0},
    "linear-32": {"source": "generator", "probe": "linear-32", "num_units": 20},
    "square-8": {"source": "generator", "probe": "square-8", "num_units": 30},
    "neuropixels-ultra": {"source": "generator", "probe": "neuropixels-ultra", "num_units": 20},
    "neuropixels-1.0": SIMULATIONS["neuropixels384"],
}
"""The filters are not trained on linear-32, square-8 and neuropixels-1.0."""
METHODS = ("neighbourhood", "esort-paper")
COMMON = {"duration_s": 60.0, "noise_uV": 10.0}


def runs(what: str, seeds: list[int], labels: list[int]) -> Iterator[dict[str, Any]]:
    """Yield the runs: recording, seed, method and labels for each unit."""
    recordings: dict[str, dict[str, Any]]
    if what == "labels":
        scratch = sorted(
            {*labels, 30, 50}, key=lambda count: count != 30
        )  # the number that the others are compared with comes first
        for method, counts in (("neighbourhood", labels), ("esort-paper", scratch)):
            for count in counts:
                for seed in seeds:
                    yield _run("neuropixels384", SIMULATIONS["neuropixels384"], seed, method, count)
        return
    if what == "hybrid":
        recordings = {"hybrid": SIMULATIONS["hybrid"]}
    elif what == "probes":
        recordings = {name: COMMON | settings for name, settings in PROBES.items()}
    else:
        moving = {"source": "mearec", "templates": str(DRIFTING), "num_units": 20, **COMMON}
        recordings = {
            f"drift {mode}": moving | {"drift": mode} for mode in ("none", "slow", "fast", "non-rigid")
        }
    methods = METHODS[:1] if what == "drift" else METHODS
    for name, settings in recordings.items():
        for seed in seeds:
            for count in labels:
                for method in methods:
                    yield _run(name, settings, seed, method, count)


def _run(name: str, settings: dict[str, Any], seed: int, method: str, count: int) -> dict[str, Any]:
    return {"name": name, "settings": settings, "seed": seed, "method": method, "labels": count}


def recording_of(run: dict[str, Any], folder: Path) -> tuple[BaseRecording, BaseSorting]:
    """Return a simulation; make it at the first call."""
    path = folder / f"{run['name'].replace(' ', '_')}_seed{run['seed']}"
    if not path.exists():
        spikewise.save_simulation(spikewise.simulate(**run["settings"], seed=run["seed"]), path)
    return spikewise.load_recording(path / "recording"), spikeinterface.load(path / "truth")


def measure(run: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train on the first half, sort and score the second."""
    recording, truth = recording_of(run, folder)
    middle, stop = recording.get_num_samples() // 2, recording.get_num_samples()
    started = time.perf_counter()
    model = spikewise.train(
        recording,
        truth,
        label_interval=(0.0, middle / recording.get_sampling_frequency()),
        labels_per_unit=run["labels"],
        seed=run["seed"],
        design=run["method"],
    )
    trained = time.perf_counter()
    sorting = spikewise.sort(recording.frame_slice(middle, stop), model=model).sorting
    performance = spikewise.evaluate(truth.frame_slice(middle, stop), sorting)
    return {
        **{key: run[key] for key in ("name", "seed", "method", "labels")},
        "accuracy": round(performance.accuracy, 4),
        "precision": round(performance.precision, 4),
        "recall": round(performance.recall, 4),
        "units_above_0.8": int((performance.units["accuracy"] > 0.8).sum()),
        "units": len(performance.units),
        "training_s": round(trained - started, 1),
        "sorting_s": round(time.perf_counter() - trained, 1),
        "load": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Run all that is not yet in the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", nargs="+", choices=["labels", "hybrid", "probes", "drift"])
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "bench")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--labels", nargs="+", type=int)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    file = options.folder / "few_labels.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    keys = ("name", "seed", "method", "labels")
    done = {tuple(json.loads(line)[key] for key in keys) for line in lines}
    for what in options.what:
        for run in runs(what, options.seeds, options.labels or ([5, 10, 15] if what == "labels" else [15])):
            if run["method"] not in options.methods or tuple(run[key] for key in keys) in done:
                continue
            line = json.dumps(measure(run, options.folder))
            print(line, flush=True)
            with file.open("a") as opened:
                opened.write(line + "\n")


if __name__ == "__main__":
    main()
