"""What curation in Phy does for the rest of a recording, measured where the spikes are known.

    python benchmarks/curation.py [tetrode hybrid] [--folder bench/curation] [--seeds 1 2 3] [--first-s 30]

The first part of a recording is sorted without labels and exported to Phy. A curator who knows the truth
does there what a person does, and leaves the files that Phy saves: units that hold the same true unit are
merged, one that holds two is split, one that repeats another's spikes or holds none is called noise. The
folder's labels train a model, which sorts the rest. It is judged on the rest alone, beside the model of the
first sort, and beside one that was trained on the folder as it was before the curation.

Data come from the folder that SPIKEWISE_DATA names, simulations as in ``run.py``. Each result is in
``FOLDER/<name>_seed<seed>.json``; those that are there are read, not run again.
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
LEAST_SHARE = 0.5
"""A unit with a smaller share of its spikes at those of a true unit is noise."""
LEAST_PART = 0.2
"""Another true unit with such a share is split off."""
STAGES = ("first sort", "trained again", "curated")


def hits(train: np.ndarray, true_train: np.ndarray, reach: int) -> np.ndarray:
    """Tell which spikes of a train lie at a true one."""
    if not len(true_train):
        return np.zeros(len(train), dtype=bool)
    place = np.searchsorted(true_train, train)
    before = np.abs(train - true_train[np.maximum(place - 1, 0)])
    after = np.abs(true_train[np.minimum(place, len(true_train) - 1)] - train)
    return np.minimum(before, after) <= reach


class Curator:
    """A person at a folder for Phy, who knows the truth.

    Parameters
    ----------
    folder : Path
        As ``spikewise export phy`` wrote it; it is changed.
    truth : BaseSorting
        True spikes of the same time.
    """

    def __init__(self, folder: Path, truth: BaseSorting):
        self.folder = folder
        self.times = np.load(folder / "spike_times.npy")
        self.clusters = np.load(folder / "spike_clusters.npy")
        self.reach = round(HIT_MS / 1000 * truth.sampling_frequency)
        self.truth = {unit: truth.get_unit_spike_train(unit) for unit in truth.unit_ids}
        self.noise: list[int] = []
        self.told = {"split": 0, "merged": 0, "noise": 0}

    def curate(self) -> dict[str, int]:
        """Split, merge, label and save; return how often each."""
        for cluster in np.unique(self.clusters).tolist():
            self._split(cluster)
        self._merge(self._best_units())
        self.told["noise"] = len(self.noise)
        self._save()
        return self.told

    def _new(self) -> int:
        """Return the number that Phy would give to a new cluster."""
        return int(self.clusters.max()) + 1

    def _split(self, cluster: int) -> None:
        """Split off the spikes of every true unit but the first that holds a share of the cluster."""
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
                self.told["split"] += 1
                taken |= part
        rest = spikes[self.clusters[spikes] == cluster]
        self.clusters[rest] = self._new()  # Phy numbers all parts anew

    def _best_units(self) -> dict[object, list[int]]:
        """Return the clusters of each true unit, the largest first; others are noise."""
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
        """Merge the clusters of a true unit, but for those that repeat spikes of a larger one."""
        for found in of_unit.values():
            kept = [found[0]]
            for cluster in found[1:]:
                largest = np.sort(self.times[np.isin(self.clusters, kept)])
                repeats = hits(self.times[self.clusters == cluster], largest, self.reach).mean()
                (self.noise if repeats > LEAST_SHARE else kept).append(cluster)
            if len(kept) > 1:
                self.clusters[np.isin(self.clusters, kept)] = self._new()
                self.told["merged"] += len(kept) - 1

    def _save(self) -> None:
        """Write what Phy writes."""
        np.save(self.folder / "spike_clusters.npy", self.clusters.astype(np.int32))
        rows = [(c, "noise" if c in self.noise else "good") for c in np.unique(self.clusters).tolist()]
        with (self.folder / "cluster_group.tsv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file, delimiter="\t", lineterminator="\n")
            table.writerows([("cluster_id", "group"), *rows])


def score(truth: BaseSorting, sorting: BaseSorting, interval: tuple[float, float]) -> dict:
    """Judge a sorting on an interval."""
    performance = spikewise.evaluate(truth, sorting, interval=interval)
    return {
        "accuracy": performance.accuracy,
        "accuracy_all_spikes": performance.accuracy_all_spikes,
        "above_0.8": int((performance.units["accuracy"] > 0.8).sum()),
        "true_units": len(performance.units),
        "unmatched_units": len(performance.unmatched_units),
    }


def measure(name: str, seed: int, first_s: float, folder: Path) -> dict:
    """Sort the first part of a recording, curate it, sort the rest in each way."""
    place = folder / f"{name}_seed{seed}"
    if not (place / "made").exists():
        spikewise.save_simulation(spikewise.simulate(**SETTINGS[name], seed=seed), place / "made")
    whole = spikewise.load_recording(place / "made" / "recording")
    truth = spikeinterface.load(place / "made" / "truth")
    edge, rest_s = round(first_s * whole.sampling_frequency), (first_s, whole.get_duration())
    shutil.rmtree(place / "work", ignore_errors=True)
    work = place / "work"
    whole.frame_slice(0, edge).save(folder=work / "first", n_jobs=1, progress_bar=False)
    started = time.perf_counter()
    first = spikewise.sort(work / "first", output=work / "out", bootstrap_s=first_s, seed=seed, report=False)
    spikewise.export_phy(work / "out", work / "first", work / "phy")
    interval = {"label_interval": (0.0, first_s), "seed": seed}
    models = {"first sort": first.model}
    models["trained again"] = spikewise.train(work / "first", work / "phy", **interval)
    told = Curator(work / "phy", truth.frame_slice(0, edge)).curate()
    models["curated"] = spikewise.train(work / "first", work / "phy", **interval)
    results: dict = {"name": name, "seed": seed, "first_s": first_s, "curator": told}
    for stage, model in models.items():
        found = spikewise.sort(whole, model=model).sorting
        results[stage] = score(truth, found, rest_s)
    results["seconds"] = round(time.perf_counter() - started, 1)
    return results


def tell(rows: list[dict]) -> None:
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
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for name in given.names:
        rows = []
        for seed in given.seeds:
            file = given.folder / f"{name}_seed{seed}.json"
            if not file.exists():
                row = measure(name, seed, given.first_s, given.folder)
                file.write_text(json.dumps(row, indent=2) + "\n")
            rows.append(json.loads(file.read_text()))
            print(json.dumps(rows[-1]), flush=True)
        tell(rows)


if __name__ == "__main__":
    main()
