"""Train the temporal filters of the package on simulated recordings of many probes.

    python benchmarks/weights.py [--output src/spikewise/models/weights/backbone.safetensors] [--seed 0]

MEArec recordings of Neuropixels-128 and tetrodes come from the template files in the folder that
SPIKEWISE_DATA names (by default ``../shared/data`` beside the repository); the others are made by
SpikeInterface's generator. The 384-channel template file, the real waveforms of Neuropixels 3A, and the
probes neuropixels-1.0 and linear-32 are left out: they are for tests on probes and units that the filters
have never seen.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import spikewise
from spikewise.core.progress_bars import progress_bars

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPIKEWISE_DATA", REPOSITORY.parent / "shared" / "data"))
OUTPUT = REPOSITORY / "src" / "spikewise" / "models" / "weights" / "backbone.safetensors"
PROBES = {"linear-16": 20, "square-6": 25, "neuropixels-2.0": 60, "neuropixels-ultra": 40, "tetrode": 8}
DURATION_S = 20.0


def recipes() -> list[dict[str, Any]]:
    """Return the settings of each simulation."""
    dense = DATA / "mearec" / "templates_neuropixels128_drift_seed99.h5"
    tetrode = DATA / "mearec" / "templates_tetrode_seed671.h5"
    simulations = [
        {
            "source": "mearec",
            "templates": str(dense),
            "num_units": 28,
            "noise_uV": noise,
            "seed": 1000 + number,
        }
        for number, noise in enumerate((8.0, 10.0, 15.0, 20.0))
    ]
    simulations += [
        {
            "source": "mearec",
            "templates": str(tetrode),
            "num_units": 8,
            "noise_uV": (8.0, 10.0, 15.0, 20.0)[number % 4],
            "seed": 2000 + number,
        }
        for number in range(10)
    ]
    for number in range(3):
        simulations += [
            {
                "source": "generator",
                "probe": probe,
                "num_units": PROBES[probe],
                "noise_uV": (8.0, 10.0, 15.0)[number],
                "noise_correlation_um": (None, 20.0, 50.0)[number],
                "min_amplitude_uV": 40.0,
                "seed": 3000 + 10 * number + index,
            }
            for index, probe in enumerate(PROBES)
        ]
    return simulations


def main() -> None:
    """Simulate, train, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--patches-per-unit", type=int, default=1000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    recordings = []
    for recipe in recipes():
        simulation = spikewise.simulate(duration_s=DURATION_S, **recipe)
        recordings.append((simulation.recording, simulation.sorting))
    with progress_bars() as progress:
        spikewise.pretrain(
            recordings,
            output=options.output,
            overwrite=True,
            steps=options.steps,
            patches_per_unit=options.patches_per_unit,
            seed=options.seed,
            progress=progress,
        )


if __name__ == "__main__":
    main()
