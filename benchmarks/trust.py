"""Whether the estimates of ``units.csv`` are right, measured on recordings whose spikes are known.

    python benchmarks/trust.py [plain late tetrode hybrid mearec384] [--seeds 1 2 3] [--folder bench/trust]
    python benchmarks/trust.py --given NAME RECORDING TRUTH RESULT [--given ...]

Each scene is sorted without labels, and its units are estimated without the truth. The true accuracy of a
unit is ``tp / (tp + fp + fn)`` with its true unit. Units and true units are partners one to one, such that
the sum of the accuracies is largest; a unit without a partner has 0. ``--given`` takes results that exist
already; ``--again`` estimates them again, from the recording. See docs/trust.md.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
import spikeinterface
from matplotlib import pyplot as plt
from run import DATA, REPOSITORY, SIMULATIONS
from scene_benchmark.making import SCENES, make_scene, scene_settings
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr

import spikewise
from spikewise.output.matching import compare_sortings
from spikewise.output.result import load_result
from spikewise.output.unit_table import GOOD_ACCURACY, store_units

TEMPLATES = DATA / "mearec" / "templates_neuropixels384_390_seed671.h5"
FEWEST_SPIKES = 50
"""Units with fewer spikes are not counted."""
WELL_FOUND = 0.8
"""True accuracy that a unit called good must have."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", nargs="*", default=[], help=f"hybrid, {', '.join(SCENES)}")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "bench" / "trust")
    parser.add_argument(
        "--given", nargs=4, action="append", default=[], metavar=("NAME", "RECORDING", "TRUTH", "RESULT")
    )
    parser.add_argument("--again", action="store_true", help="estimate results again that have a table")
    return parser.parse_args()


def make(name: str, seed: int, folder: Path) -> Path:
    """Return the folder of a scene, which holds ``recording`` and ``truth``."""
    if name == "hybrid":
        place = folder / f"hybrid_seed{seed}"
        if not place.exists():
            spikewise.save_simulation(spikewise.simulate(**SIMULATIONS["hybrid"], seed=seed), place)
        return place
    return make_scene(scene_settings(name, seed, TEMPLATES), folder, os.cpu_count() or 1).folder


def estimate(recording: Path, result: Path, again: bool) -> float | None:
    """Sort a recording and estimate its units, if it is not done; return the seconds of the estimate."""
    if not (result / "provenance.json").exists():
        spikewise.sort(recording, output=result, report=False, trust=False)
    if load_result(result).units is not None and not again:
        return None
    started = time.perf_counter()
    table = spikewise.validate(result, recording)
    seconds = time.perf_counter() - started
    store_units(table, result)
    return seconds


def compare(name: str, truth: Path, result: Path) -> pd.DataFrame:
    """Return the estimates of a result with the true accuracy, precision and recall of each unit."""
    stored = load_result(result)
    performance = compare_sortings(spikeinterface.load(truth), stored.sorting)
    common = performance.common.to_numpy().astype(float)  # true units, units
    true = performance.units["num_truth"].to_numpy()
    found = np.array([stored.units["num_spikes"][index] for index in range(common.shape[1])])
    agreement = common / np.maximum(true[:, None] + found - common, 1)
    rows, columns = linear_sum_assignment(-agreement)
    table = stored.units.assign(scene=name, true_accuracy=0.0, true_precision=0.0, true_recall=0.0)
    for row, column in zip(rows, columns, strict=True):
        table.loc[column, "true_accuracy"] = agreement[row, column]
        table.loc[column, "true_precision"] = common[row, column] / max(found[column], 1)
        table.loc[column, "true_recall"] = common[row, column] / max(true[row], 1)
    return table[table["num_spikes"] >= FEWEST_SPIKES]


def summarise(table: pd.DataFrame) -> dict[str, float]:
    """Return how near the estimates are to the truth."""
    expected, true = table["estimated_accuracy"].fillna(0), table["true_accuracy"]
    inside = (true >= table["estimated_accuracy_low"]) & (true <= table["estimated_accuracy_high"])
    good = expected >= GOOD_ACCURACY
    return {
        "units": len(table),
        "mean error": float((expected - true).abs().mean()),
        "mean bias": float((expected - true).mean()),
        "spearman": float(spearmanr(expected, true).statistic),
        "inside 90 %": float(inside.mean()),
        "good": int(good.sum()),
        "good, truly >= 0.8": int((true[good] >= WELL_FOUND).sum()),
        "not good, truly < 0.9": int((true[~good] < GOOD_ACCURACY).sum()),
    }


def draw(table: pd.DataFrame, path: Path) -> None:
    """Draw the true accuracy of each unit over the expected one, with its interval."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
    for panel, name in zip(axes, ("accuracy", "precision", "recall"), strict=True):
        for number, (scene, part) in enumerate(table.groupby("scene", sort=False)):
            value = part[f"estimated_{name}"].fillna(0)
            ends = [value - part[f"estimated_{name}_low"].fillna(0), part[f"estimated_{name}_high"] - value]
            spread = np.clip(np.nan_to_num(np.array(ends)), 0, 1)
            colour = f"C{number}"
            panel.errorbar(value, part[f"true_{name}"], xerr=spread, fmt="none", ecolor=colour, alpha=0.25)
            panel.plot(value, part[f"true_{name}"], "o", color=colour, markersize=3.5, label=scene)
        panel.plot([0, 1], [0, 1], color="0.6", linewidth=0.8, zorder=0)
        panel.set(xlabel=f"expected {name}", ylabel=f"true {name}", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def main() -> None:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    given = [(name, *map(Path, paths)) for name, *paths in options.given]
    for name in options.scenes or ([] if given else ["plain", "late", "tetrode", "hybrid"]):
        for seed in options.seeds:
            scene = make(name, seed, options.folder / "scenes")
            result = options.folder / "results" / scene.name
            given.append((f"{name} {seed}", scene / "recording", scene / "truth", result))
    tables, rows = [], []
    for name, recording, truth, result in given:
        seconds = estimate(recording, result, options.again)
        tables.append(compare(name, truth, result))
        spent = load_result(result).provenance["seconds"]
        rows.append({"scene": name, **summarise(tables[-1]), "seconds": seconds, "sort": spent["total"]})
        print({key: round(v, 4) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    table = pd.concat(tables, ignore_index=True)
    rows.append({"scene": "all", **summarise(table)})
    table.to_csv(options.folder / "trust.csv", index=False)
    draw(table, options.folder / "trust.png")
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3f"))


if __name__ == "__main__":
    main()
