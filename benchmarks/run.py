"""Accuracy and seconds on recordings with known spikes, and measures of quality on real ones without.

    python benchmarks/run.py [neuropixels384 tetrode hybrid locust hc1 ...] [--folder bench] [--seeds 1 2 3]

The data come from the folder that SPIKEWISE_DATA names (by default ``../shared/data`` beside the repository).
Simulations are made once and kept in the folder. The first half is for training, the second for testing:
every sorter is scored on the same interval, with the same tolerance (0.4 ms) and the same units. Each result
is written to ``FOLDER/<name>.json`` as soon as it is known. The seed of a simulation also seeds its sorting;
another seed draws other units at other positions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import spikeinterface
from spikeinterface.comparison import compare_sorter_to_ground_truth
from spikeinterface.core import BaseRecording, BaseSorting, NumpySorting
from spikeinterface.sorters import run_sorter

import spikewise
from spikewise.core.config import EvaluationConfig
from spikewise.output.matching import agreement

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPIKEWISE_DATA", REPOSITORY.parent / "shared" / "data"))

SIMULATIONS = {
    "neuropixels384": {
        "source": "mearec",
        "templates": str(DATA / "mearec" / "templates_neuropixels384_390_seed671.h5"),
        "num_units": 100,
        "duration_s": 60.0,
        "noise_uV": 10.0,
        "min_amplitude_uV": 40.0,
        "max_amplitude_uV": 300.0,
    },
    "tetrode": {
        "source": "mearec",
        "templates": str(DATA / "mearec" / "templates_tetrode_seed671.h5"),
        "num_units": 8,
        "duration_s": 120.0,
        "noise_uV": 10.0,
    },
    "hybrid": {
        "source": "hybrid",
        "templates": str(DATA / "templates" / "templates_np3A_colonell_20units_measured.npz"),
        "num_units": 20,
        "min_amplitude_uV": 40.0,
        "max_amplitude_uV": 1000.0,
        "duration_s": 120.0,
        "noise_uV": 10.0,
    },
}
LABELS_PER_UNIT = 30


def simulated(name: str, seed: int, folder: Path) -> tuple[BaseRecording, BaseSorting]:
    """Return a simulation; make it at the first call."""
    place = folder / f"{name}_seed{seed}"
    if not place.exists():
        spikewise.save_simulation(spikewise.simulate(**SIMULATIONS[name], seed=seed), place)
    return spikewise.load_recording(place / "recording"), spikeinterface.load(place / "truth")


def score(truth: BaseSorting, sorting: BaseSorting, interval: tuple[float, float]) -> dict:
    """Score a sorting on one interval."""
    performance = spikewise.evaluate(truth, sorting, interval=interval)
    table = performance.units
    return {
        "accuracy": performance.accuracy,
        "precision": performance.precision,
        "recall": performance.recall,
        "accuracy_all_spikes": performance.accuracy_all_spikes,
        "num_units_found": int((table["accuracy"] > 0.5).sum()),
        "num_units_above_0.8": int((table["accuracy"] > 0.8).sum()),
        "num_true_units": len(table),
        "num_unmatched_units": len(performance.unmatched_units),
    }


def run_on_interval(
    sorter: str, recording: BaseRecording, interval: tuple[float, float], folder: Path
) -> tuple[BaseSorting, float]:
    """Run another sorter on one interval; return its spikes in samples of the whole recording."""
    rate = recording.get_sampling_frequency()
    start, stop = (round(second * rate) for second in interval)
    place = folder / f"run_{sorter}_{os.getpid()}"
    part = recording.frame_slice(start, stop).save(folder=place / "recording", n_jobs=1, progress_bar=False)
    started = time.perf_counter()
    found = run_sorter(sorter, part, folder=place / "sorter", verbose=False)
    seconds = time.perf_counter() - started
    vector = found.to_spike_vector()
    shifted = NumpySorting.from_samples_and_labels(
        [vector["sample_index"] + start], [found.unit_ids[vector["unit_index"]]], rate
    )
    shutil.rmtree(place, ignore_errors=True)
    return shifted, seconds


def timed_sort(recording: BaseRecording, **options) -> tuple[spikewise.SortingResult, dict]:
    """Sort, and return the result with its seconds."""
    result = spikewise.sort(recording, **options)
    facts = {
        "seconds": result.provenance["seconds"],
        "real_time_factor": result.provenance["real_time_factor"],
    }
    return result, facts


def fates_of_units(
    truth: BaseSorting,
    bootstrap: BaseSorting,
    final: BaseSorting,
    interval: tuple[float, float],
    test: tuple[float, float],
) -> list[dict]:
    """Return for each true unit how the bootstrap found it, and its final accuracy.

    A unit is `missed` if no unit of the bootstrap holds a fifth of its spikes, `merged` if the one with most
    of them also holds a fifth of the spikes of another unit, and `split` if two units hold a fifth each;
    otherwise it is `found`.
    """
    rate = truth.sampling_frequency
    frames = [round(edge * rate) for edge in interval]
    part = compare_sorter_to_ground_truth(
        truth.frame_slice(*frames), bootstrap.frame_slice(*frames), exhaustive_gt=True, delta_time=0.4
    )
    spikes = part.event_counts1.to_numpy()
    share = part.match_event_count.to_numpy() / np.maximum(spikes[:, None], 1)
    agreement_scores = part.agreement_scores.loc[part.unit1_ids, part.unit2_ids].to_numpy()
    later = spikewise.evaluate(truth, final, interval=test).units["accuracy"]
    rows = []
    for index, unit_id in enumerate(part.unit1_ids):
        holders = np.flatnonzero(share[index] > 0.2)
        if holders.size == 0:
            fate = "missed"
        elif np.count_nonzero(share[:, holders[np.argmax(share[index, holders])]] > 0.2) > 1:
            fate = "merged"
        else:
            fate = "split" if holders.size > 1 else "found"
        rows.append(
            {
                "unit": str(unit_id),
                "fate": fate,
                "bootstrap_agreement": round(float(agreement_scores[index].max(initial=0.0)), 3),
                "test_accuracy": round(float(later[unit_id]), 3),
            }
        )
    return rows


def benchmark_simulation(name: str, seed: int, folder: Path, sorters: list[str]) -> dict:
    """Sort one simulation with labels, without labels, and with other sorters."""
    recording, truth = simulated(name, seed, folder)
    middle, end = recording.get_duration() / 2, recording.get_duration()
    test = (middle, end)
    results: dict = {
        "simulation": SIMULATIONS[name]
        | {"templates": Path(SIMULATIONS[name]["templates"]).name, "seed": seed}
    }

    def report(key: str, sorting: BaseSorting, facts: dict) -> None:
        results[key] = score(truth, sorting, test) | facts
        save(folder, f"{name}_seed{seed}", results)
        print(name, seed, key, json.dumps(results[key])[:400], flush=True)

    labelled, facts = timed_sort(
        recording, labels=truth, label_interval=(0.0, middle), labels_per_unit=LABELS_PER_UNIT, seed=seed
    )
    report(f"labels_{LABELS_PER_UNIT}_per_unit", labelled.sorting, facts)
    place = folder / f"{name}_seed{seed}_no_labels"
    unlabelled, facts = timed_sort(
        recording, bootstrap="lupin", bootstrap_s=middle, seed=seed, output=place, overwrite=True
    )
    groups = unlabelled.model.facts["labels"]["groups"]
    facts["bootstrap"] = {k: {f: v for f, v in g.items() if f != "dropped"} for k, g in groups.items()}
    (bootstrap_folder,) = (place / "bootstrap").iterdir()
    bootstrap = spikeinterface.load(bootstrap_folder)
    facts["bootstrap_on_its_half"] = score(truth, bootstrap, (0.0, middle))
    facts["units"] = fates_of_units(truth, bootstrap, unlabelled.sorting, (0.0, middle), test)
    report("no_labels", unlabelled.sorting, facts)
    for sorter in sorters:
        sorting, seconds = run_on_interval(sorter, recording, test, folder)
        report(sorter, sorting, {"seconds": round(seconds, 1)})
    return results


def violations_percent(train: np.ndarray, rate: float) -> float:
    """Return the share of inter-spike intervals under 1.5 ms, in percent."""
    return 100 * float(np.mean(np.diff(train) < 0.0015 * rate)) if len(train) > 1 else 0.0


def benchmark_locust(folder: Path) -> dict:
    """Sort the real locust tetrode; measure refractory violations and the agreement with Lupin."""
    path = DATA / "real" / "locust20010201_trial01_raw_tetrode_unlabelled.npz"
    recording = spikewise.load_recording(path, probe="tetrode")
    rate, duration = recording.get_sampling_frequency(), recording.get_duration()
    result, facts = timed_sort(recording, bootstrap="lupin", bootstrap_s=duration / 2)
    violations = {
        str(unit_id): round(violations_percent(result.sorting.get_unit_spike_train(unit_id), rate), 3)
        for unit_id in result.sorting.unit_ids
    }
    other, _ = run_on_interval("lupin", recording, (duration / 2, duration), folder)
    shared = agreement(result.sorting, other, EvaluationConfig(interval=(duration / 2, duration)))
    results = {
        "num_units": result.sorting.get_num_units(),
        "num_spikes": {str(k): int(v) for k, v in result.sorting.count_num_spikes_per_unit().items()},
        "refractory_violations_percent": violations,
        "num_units_under_1_percent": sum(value < 1 for value in violations.values()),
        "agreement_with_lupin_on_second_half": {
            "fraction_units": shared.fraction_units,
            "fraction_spikes": shared.fraction_spikes,
        },
        **facts,
    }
    save(folder, "locust", results)
    return results


def benchmark_hc1(folder: Path) -> dict:
    """Sort five seconds of a real tetrode with 11 intracellularly recorded spikes of one neuron."""
    path = DATA / "real" / "hc1_d533101_raw5s_4ch_intracellular_gt.npz"
    recording = spikewise.load_recording(path, probe="tetrode")
    rate = recording.get_sampling_frequency()
    troughs = np.load(path, allow_pickle=False)["times_trough"].astype(np.int64)
    truth = NumpySorting.from_samples_and_labels([troughs], [np.zeros(len(troughs), int)], rate)
    result, facts = timed_sort(recording)
    near = {}
    for unit_id in result.sorting.unit_ids:
        train = result.sorting.get_unit_spike_train(unit_id)
        near[str(unit_id)] = int(
            sum(np.abs(train - trough).min(initial=10**9) <= 0.001 * rate for trough in troughs)
        )
    results = {
        "num_units": result.sorting.get_num_units(),
        "intracellular_spikes": len(troughs),
        "found_within_1_ms_by_unit": near,
        "spikes_by_unit": {str(k): int(v) for k, v in result.sorting.count_num_spikes_per_unit().items()},
        "performance_at_0.4_ms": spikewise.evaluate(truth, result.sorting).to_dict(),
        **facts,
    }
    save(folder, "hc1", results)
    return results


def save(folder: Path, name: str, results: dict) -> None:
    """Write the results so far."""
    facts = {"spikewise_version": spikewise.__version__, "load": os.getloadavg(), **results}
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=[*SIMULATIONS, "locust", "hc1"])
    parser.add_argument("--folder", type=Path, default=REPOSITORY / "bench")
    parser.add_argument("--sorters", nargs="*", default=["lupin", "tridesclous2"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        if name in SIMULATIONS:
            for seed in options.seeds:
                benchmark_simulation(name, seed, options.folder, options.sorters)
        else:
            results = {"locust": benchmark_locust, "hc1": benchmark_hc1}[name](options.folder)
            print(name, json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
