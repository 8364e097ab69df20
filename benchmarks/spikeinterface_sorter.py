"""Spikewise and other sorters in SpikeInterface, without labels, on a recording of its generator.

``python benchmarks/spikeinterface_sorter.py OUT [--seed 0]`` runs each with ``run_sorter`` and its defaults,
compares with ``compare_sorter_to_ground_truth``, prints a table, and writes OUT/results.json. Finished
results of an earlier run with the same OUT are read.
"""

import argparse
import json
from pathlib import Path

import spikeinterface.comparison as sc
import spikeinterface.core as si
from spikeinterface.sorters import read_sorter_folder, run_sorter

import spikewise  # noqa: F401  registers the sorter

SORTERS = ("lupin", "tridesclous2", "spikewise")


def run_and_score(recording: si.BaseRecording, truth: si.BaseSorting, sorter: str, folder: Path) -> dict:
    """Run one sorter and return its scores."""
    log = folder / "spikeinterface_log.json"
    if log.exists() and json.loads(log.read_text()).get("run_time"):
        found = read_sorter_folder(folder)
    else:
        found = run_sorter(sorter, recording, folder=folder, remove_existing_folder=True)
    seconds = json.loads(log.read_text())["run_time"]
    compared = sc.compare_sorter_to_ground_truth(truth, found, exhaustive_gt=True)
    by_unit = compared.get_performance()
    pooled = compared.get_performance(method="pooled_with_average")
    return {
        "sorter": sorter,
        "seconds": round(seconds, 1),
        "num_units": found.get_num_units(),
        "accuracy": float(pooled["accuracy"]),
        "precision": float(pooled["precision"]),
        "recall": float(pooled["recall"]),
        "well_detected": len(compared.get_well_detected_units(well_detected_score=0.8)),
        "false_positive_units": len(compared.get_false_positive_units()),
        "redundant_units": len(compared.get_redundant_units()),
        "accuracy_by_unit": {str(unit): round(float(a), 4) for unit, a in by_unit["accuracy"].items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--duration-s", type=float, default=120.0)
    parser.add_argument("--sorters", nargs="+", default=SORTERS)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    recording, truth = si.generate_ground_truth_recording(
        durations=[options.duration_s], num_channels=32, num_units=20, seed=options.seed
    )
    folder = options.output / "recording"
    if not folder.exists():
        recording.save(folder=folder, n_jobs=1, progress_bar=False)
    recording, results = si.load(folder), []
    facts = {"seed": options.seed, "duration_s": options.duration_s, "num_channels": 32, "num_units": 20}
    for sorter in options.sorters:
        row = run_and_score(recording, truth, sorter, options.output / sorter)
        results.append(row)
        (options.output / "results.json").write_text(
            json.dumps({**facts, "results": results}, indent=2) + "\n"
        )
        print(
            f"{row['sorter']:<14} accuracy {row['accuracy']:.4f}, precision {row['precision']:.4f}, recall "
            f"{row['recall']:.4f}, {row['num_units']} units, {row['well_detected']} of 20 well detected, "
            f"{row['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
