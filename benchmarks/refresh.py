"""Accuracy minute by minute while the probe moves steadily, with and without relearning the units.

    python benchmarks/refresh.py --output bench/refresh [--minutes 8] [--every-min 1] [--seeds 0 1 2]

The labels are in the first half minute, 30 of each unit; then all units move by 60 um at a constant speed.
Each minute after the labels is scored separately.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import spikewise

LABEL_S = 30.0


def measure(seed: int, minutes: float, every_min: float, drift_um: float) -> list[dict[str, Any]]:
    """Sort one recording with and without relearning."""
    drift = {
        "drift": "slow",
        "drift_um": drift_um,
        "drift_um_per_min": drift_um / max(minutes - LABEL_S / 60, 0.1),
        "drift_start_s": LABEL_S,
    }
    scene = spikewise.simulate(
        probe="linear-32", num_units=20, duration_s=60 * minutes, seed=seed, **(drift if drift_um else {})
    )
    rows = []
    for refresh_min in (None, every_min):
        result = spikewise.sort(
            scene.recording,
            labels=scene.sorting,
            label_interval=(0, LABEL_S),
            labels_per_unit=30,
            refresh_min=refresh_min,
            seed=seed,
        )
        starts = [LABEL_S, *(60.0 * minute for minute in range(1, int(minutes)))]
        scores = [
            spikewise.evaluate(scene.sorting, result.sorting, interval=(start, min(start + 60, 60 * minutes)))
            for start in starts
        ]
        rows.append(
            {
                "seed": seed,
                "refresh_min": refresh_min,
                "drift_um": drift_um,
                "accuracy": [round(score.accuracy, 4) for score in scores],
                "seconds": result.provenance["seconds"],
                "learnt_anew": [sum(counts.values()) for counts in result.provenance.get("refreshed", [])],
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("bench/refresh"))
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--every-min", type=float, default=1.0)
    parser.add_argument("--drift-um", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    rows = [
        row
        for seed in options.seeds
        for row in measure(seed, options.minutes, options.every_min, options.drift_um)
    ]
    (options.output / "refresh.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
