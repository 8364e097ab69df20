"""Whether the estimates of ``units.csv`` are right, measured on recordings whose spikes are known.

    python benchmarks/trust.py [plain late tetrode hybrid mearec384] [--seeds 1 2 3] [--folder bench/trust]
    python benchmarks/trust.py --given NAME RECORDING TRUTH RESULT [--given ...]
    python benchmarks/trust.py plain late tetrode --seeds 2 --results-of lupin

Each scene is sorted without labels, and its units are estimated without the truth. The true accuracy of a
unit is ``tp / (tp + fp + fn)`` with its true unit. Units and true units are partners one to one, such that
the sum of the accuracies is largest; a unit without a partner has 0. ``--given`` takes results that exist
already; ``--again`` estimates them again, from the recording. With ``--results-of`` the recordings are sorted
by another sorter of SpikeInterface, its units are estimated with ``spikewise validate``, and the estimate is
compared with other measures of quality (``trust_rivals.py``). See docs/trust.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
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
from spikeinterface.core import BaseSorting, NumpySorting
from spikeinterface.sorters import run_sorter
from trust_rivals import BETTER, measure_rivals, rank_rivals

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
    parser.add_argument("--results-of", metavar="SORTER", help="a sorter of SpikeInterface, such as lupin")
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


def other_result(sorter: str, recording: Path, seed: int, folder: Path) -> BaseSorting:
    """Return what another sorter of SpikeInterface finds; it is kept in the folder."""
    if not (folder / "sorting").exists():
        options = {"folder": folder / "run", "remove_existing_folder": True, "verbose": False}
        found = run_sorter(sorter, spikeinterface.load(recording), seed=seed, **options)
        NumpySorting.from_sorting(found).save(folder=folder / "sorting")
        shutil.rmtree(folder / "run")
    return spikeinterface.load(folder / "sorting")


def estimate_other(sorting: BaseSorting, recording: Path, folder: Path, again: bool) -> pd.DataFrame:
    """Return the estimates of the units of another sorter, with the other measures of quality."""
    traces = spikeinterface.load(recording)
    if again or not (folder / "units.csv").exists():
        spikewise.validate(sorting, traces).to_csv(folder / "units.csv", index=False)
    if not (folder / "rivals.csv").exists():
        measure_rivals(sorting, traces).to_csv(folder / "rivals.csv", index=False)
    table, rivals = pd.read_csv(folder / "units.csv"), pd.read_csv(folder / "rivals.csv")
    return table.join(rivals.add_prefix("rival_"))


def compare(name: str, truth: Path, sorting: BaseSorting, units: pd.DataFrame) -> pd.DataFrame:
    """Return the estimates of a result with the true accuracy, precision and recall of each unit."""
    performance = compare_sortings(spikeinterface.load(truth), sorting)
    common = performance.common.to_numpy().astype(float)  # true units, units
    true = performance.units["num_truth"].to_numpy()
    found = units["num_spikes"].to_numpy()
    agreement = common / np.maximum(true[:, None] + found - common, 1)
    rows, columns = linear_sum_assignment(-agreement)
    table = units.assign(scene=name, true_accuracy=0.0, true_precision=0.0, true_recall=0.0)
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


def print_ranks(table: pd.DataFrame) -> None:
    """Print how well each measure tells units that are truly above 0.8 from the others."""
    is_good = (table["true_accuracy"] >= WELL_FOUND).to_numpy()
    print(f"{len(table)} units, {int((~is_good).sum())} truly below {WELL_FOUND}")
    if is_good.all() or not is_good.any():
        return
    renamed = table.rename(columns=lambda name: name.removeprefix("rival_") if "rival_" in name else name)
    renamed = renamed.loc[:, ~renamed.columns.duplicated(keep="last")]
    columns = ["estimated_accuracy", *(name for name in BETTER if f"rival_{name}" in table)]
    print(rank_rivals(renamed, is_good, columns).to_string(index=False, float_format="%.4f"))


def main() -> None:
    options = parse()
    options.folder.mkdir(parents=True, exist_ok=True)
    given = [(name, 0, *map(Path, paths)) for name, *paths in options.given]
    for name in options.scenes or ([] if given else ["plain", "late", "tetrode", "hybrid"]):
        for seed in options.seeds:
            scene = make(name, seed, options.folder / "scenes")
            result = options.folder / "results" / (options.results_of or ".") / scene.name
            given.append((f"{name} {seed}", seed, scene / "recording", scene / "truth", result))
    tables, rows = [], []
    for name, seed, recording, truth, result in given:
        facts: dict[str, float | None] = {}
        if options.results_of:
            sorting = other_result(options.results_of, recording, seed, result)
            units = estimate_other(sorting, recording, result, options.again)
        else:
            seconds = estimate(recording, result, options.again)
            stored = load_result(result)
            sorting, units = stored.sorting, stored.units
            facts = {"seconds": seconds, "sort": stored.provenance["seconds"]["total"]}
        tables.append(compare(name, truth, sorting, units))
        rows.append({"scene": name, **summarise(tables[-1]), **facts})
        print({key: round(v, 4) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    table = pd.concat(tables, ignore_index=True)
    rows.append({"scene": "all", **summarise(table)})
    ending = f"_{options.results_of}" if options.results_of else ""
    table.to_csv(options.folder / f"trust{ending}.csv", index=False)
    draw(table, options.folder / f"trust{ending}.png")
    print(pd.DataFrame(rows).to_string(index=False, float_format="%.3f"))
    if options.results_of:
        print_ranks(table)


if __name__ == "__main__":
    main()
