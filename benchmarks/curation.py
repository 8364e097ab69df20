"""The effect of curation in Phy on the rest of a recording, measured with known spikes.

    python benchmarks/curation.py [tetrode hybrid] [--folder bench/curation] [--seeds 1 2 3] [--first-s 30]

The first part of a recording is sorted without labels and exported to Phy. A simulated curator, who knows the
truth, works as a person does and saves the files of Phy: units of the same true unit are merged, a unit of
two true units is split, a unit that repeats the spikes of another or has no true unit is labelled noise. A
model is trained on the labels of the folder and sorts the rest. It is scored only on the rest, and compared
with the model of the first sort, and with a model trained on the folder before the curation.

Data come from the folder that SPIKEWISE_DATA names, simulations as in ``run.py``. Each result is in
``FOLDER/<name>_seed<seed>.json``; existing results are read.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import time
from pathlib import Path

import numpy as np
import spikeinterface
from run import REPOSITORY, SIMULATIONS
from spikeinterface.core import BaseSorting

import spikewise

SETTINGS = {
    "tetrode": SIMULATIONS["tetrode"] | {"duration_s": 60.0, "num_units": 16, "noise_uV": 15.0},
    "hybrid": SIMULATIONS["hybrid"] | {"duration_s": 60.0},
}
"""The tetrode has twice the units and more noise than in ``run.py``, where nothing is left to curate."""
HIT_MS = 0.4
"""Largest distance of a spike and its true spike."""
LEAST_SHARE = 0.5
"""A unit is noise if a smaller fraction of its spikes matches a true unit."""
LEAST_PART = 0.2
"""A further true unit is split off if it matches a larger fraction of the spikes."""
STAGES = ("first sort", "trained again", "curated")


def hits(train: np.ndarray, true_train: np.ndarray, reach: int) -> np.ndarray:
    """Return which spikes of a train match a true spike."""
    if not len(true_train):
        return np.zeros(len(train), dtype=bool)
    next_index = np.searchsorted(true_train, train)
    before = np.abs(train - true_train[np.maximum(next_index - 1, 0)])
    after = np.abs(true_train[np.minimum(next_index, len(true_train) - 1)] - train)
    return np.minimum(before, after) <= reach


class Curator:
    """A simulated curator of a folder for Phy, who knows the truth.

    Parameters
    ----------
    folder : Path
        Output of ``spikewise export phy``; it is changed.
    truth : BaseSorting
        True spikes of the same interval.
    """

    def __init__(self, folder: Path, truth: BaseSorting):
        self.folder = folder
        self.times = np.load(folder / "spike_times.npy")
        self.clusters = np.load(folder / "spike_clusters.npy")
        self.reach = round(HIT_MS / 1000 * truth.sampling_frequency)
        self.truth = {unit: truth.get_unit_spike_train(unit) for unit in truth.unit_ids}
        self.noise: list[int] = []
        self.actions = {"split": 0, "merged": 0, "noise": 0}

    def curate(self) -> dict[str, int]:
        """Split, merge, label and save; return the number of each action."""
        for cluster in np.unique(self.clusters).tolist():
            self._split(cluster)
        self._merge(self._best_units())
        self.actions["noise"] = len(self.noise)
        self._save()
        return self.actions

    def _new(self) -> int:
        """Return the number that Phy would give to a new cluster."""
        return int(self.clusters.max()) + 1

    def _split(self, cluster: int) -> None:
        """Split a cluster of several true units; the true unit with most spikes keeps its cluster."""
        spikes = np.flatnonzero(self.clusters == cluster)
        found = {unit: hits(self.times[spikes], train, self.reach) for unit, train in self.truth.items()}
        large = [unit for unit in found if found[unit].mean() > LEAST_PART]
        large.sort(key=lambda unit: -found[unit].sum())
        if len(large) < 2:
            return
        taken = found[large[0]].copy()
        for unit in large[1:]:
            part = found[unit] & ~taken
            if part.mean() > LEAST_PART:
                self.clusters[spikes[part]] = self._new()
                self.actions["split"] += 1
                taken |= part
        rest = spikes[self.clusters[spikes] == cluster]
        self.clusters[rest] = self._new()  # Phy gives all parts new numbers

    def _best_units(self) -> dict[object, list[int]]:
        """Return the clusters of each true unit, largest first; other clusters are noise."""
        of_unit: dict[object, list[int]] = {}
        for cluster in np.unique(self.clusters).tolist():
            times = self.times[self.clusters == cluster]
            share = {unit: hits(times, train, self.reach).mean() for unit, train in self.truth.items()}
            best = max(share, key=lambda unit: share[unit])
            if share[best] < LEAST_SHARE:
                self.noise.append(cluster)
            else:
                of_unit.setdefault(best, []).append(cluster)
        counts = np.bincount(self.clusters)
        return {unit: sorted(found, key=lambda c: -counts[c]) for unit, found in of_unit.items()}

    def _merge(self, of_unit: dict[object, list[int]]) -> None:
        """Merge the clusters of a true unit, except those that repeat spikes of a larger one."""
        for found in of_unit.values():
            kept = [found[0]]
            for cluster in found[1:]:
                largest = np.sort(self.times[np.isin(self.clusters, kept)])
                repeats = hits(self.times[self.clusters == cluster], largest, self.reach).mean()
                (self.noise if repeats > LEAST_SHARE else kept).append(cluster)
            if len(kept) > 1:
                self.clusters[np.isin(self.clusters, kept)] = self._new()
                self.actions["merged"] += len(kept) - 1

    def _save(self) -> None:
        """Write the files that Phy writes."""
        np.save(self.folder / "spike_clusters.npy", self.clusters.astype(np.int32))
        rows = [(c, "noise" if c in self.noise else "good") for c in np.unique(self.clusters).tolist()]
        with (self.folder / "cluster_group.tsv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter="\t", lineterminator="\n")
            table.writerows([("cluster_id", "group"), *rows])


def score(truth: BaseSorting, sorting: BaseSorting, interval: tuple[float, float]) -> dict:
    """Score a sorting on an interval."""
    performance = spikewise.evaluate(truth, sorting, interval=interval)
    return {
        "accuracy": performance.accuracy,
        "accuracy_all_spikes": performance.accuracy_all_spikes,
        "above_0.8": int((performance.units["accuracy"] > 0.8).sum()),
        "true_units": len(performance.units),
        "unmatched_units": len(performance.unmatched_units),
    }


def measure(name: str, seed: int, first_s: float, folder: Path) -> dict:
    """Sort the first part of a recording, curate it, and sort the rest with each model."""
    path = folder / f"{name}_seed{seed}"
    if not (path / "made").exists():
        spikewise.save_simulation(spikewise.simulate(**SETTINGS[name], seed=seed), path / "made")
    whole = spikewise.load_recording(path / "made" / "recording")
    truth = spikeinterface.load(path / "made" / "truth")
    edge, rest_s = round(first_s * whole.sampling_frequency), (first_s, whole.get_duration())
    shutil.rmtree(path / "work", ignore_errors=True)
    work = path / "work"
    whole.frame_slice(0, edge).save(folder=work / "first", n_jobs=1, progress_bar=False)
    started = time.perf_counter()
    start = {"bootstrap": "lupin", "bootstrap_s": first_s}
    first = spikewise.sort(work / "first", output=work / "out", seed=seed, report=False, **start)
    spikewise.export_phy(work / "out", work / "first", work / "phy")
    interval = {"label_interval": (0.0, first_s), "seed": seed}
    models = {"first sort": first.model}
    models["trained again"] = spikewise.train(work / "first", work / "phy", **interval)
    actions = Curator(work / "phy", truth.frame_slice(0, edge)).curate()
    models["curated"] = spikewise.train(work / "first", work / "phy", **interval)
    results: dict = {"name": name, "seed": seed, "first_s": first_s, "curator": actions}
    for stage, model in models.items():
        found = spikewise.sort(whole, model=model).sorting
        results[stage] = score(truth, found, rest_s)
    results["seconds"] = round(time.perf_counter() - started, 1)
    return results


def print_means(rows: list[dict]) -> None:
    """Print the mean and the spread over the seeds."""
    for stage in STAGES:
        values = {key: np.array([row[stage][key] for row in rows], dtype=float) for key in rows[0][stage]}
        spread = 1 if len(rows) > 1 else 0
        print(
            f"{rows[0]['name']:<8} {stage:<14}"
            + ", ".join(f" {key} {v.mean():.3f} +- {v.std(ddof=spread):.3f}" for key, v in values.items())
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=list(SETTINGS))
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "bench" / "curation")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--first-s", type=float, default=30.0)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        rows = []
        for seed in options.seeds:
            file = options.folder / f"{name}_seed{seed}.json"
            if not file.exists():
                row = measure(name, seed, options.first_s, options.folder)
                file.write_text(json.dumps(row, indent=2) + "\n")
            rows.append(json.loads(file.read_text()))
            print(json.dumps(rows[-1]), flush=True)
        print_means(rows)


if __name__ == "__main__":
    main()
