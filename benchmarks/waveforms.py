"""Single channels: few labels, seconds, and raw signals.

    python benchmarks/waveforms.py [--seeds 5] [--output waveforms.json]

The data come from the folder that SPIKEWISE_DATA names (by default ``../shared/data`` beside the
repository): the detected spikes of C_Difficult2_noise015, overlaps left out; the raw stretch of
C_Easy1_noise015; spikes of hc-1. The comparison of methods is ``spikewise papers cnn``.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np
import torch

import spikewise
from spikewise import Snippets, SnippetsConfig, WaveformTrainingConfig

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPIKEWISE_DATA", REPOSITORY.parent / "shared" / "data"))
LABELS = (5, 10, 20, 40)
TRAINED, CLASSIFIED = 1738, 100_000
"""Spikes that the paper trains on, and enough spikes to measure a steady rate of classification."""


def difficult2() -> Snippets:
    snippets = spikewise.load_snippets(
        DATA / "wave_clus" / "quiroga_C_Difficult2_noise015_spikes.npz", SnippetsConfig()
    )
    return snippets.select(snippets.is_labelled)


def few_labels(snippets: Snippets, num_seeds: int) -> list[dict]:
    """Accuracy on all other spikes, with the first labels of each unit in a random order."""
    rows = []
    for count in LABELS:
        accuracies = []
        for seed in range(num_seeds):
            order = np.random.default_rng(100 + seed).permutation(len(snippets))
            labels = snippets.labels[order]
            known = np.sort(np.concatenate([order[labels == unit][:count] for unit in np.unique(labels)]))
            rest = np.setdiff1d(order, known)
            model = spikewise.train_waveforms(
                snippets.select(known), config=WaveformTrainingConfig(seed=seed, calibration_fraction=0.0)
            )
            found = model.classify(snippets.waveforms[rest]).labels
            accuracies.append(100 * float(np.mean(found == snippets.labels[rest])))
        rows.append({"labels_per_unit": count, "mean": np.mean(accuracies), "sd": np.std(accuracies, ddof=1)})
        print(rows[-1], flush=True)
    return rows


def seconds(snippets: Snippets, num_seeds: int) -> dict:
    """Training and classification, the medians of several runs, with the network of the paper beside."""
    training = snippets.select(np.random.default_rng(0).permutation(len(snippets))[:TRAINED])
    rest = snippets.select(np.random.default_rng(0).permutation(len(snippets))[TRAINED:])
    many = np.resize(snippets.waveforms, (CLASSIFIED, snippets.waveforms.shape[1]))
    results: dict = {"load": os.getloadavg(), "threads": torch.get_num_threads()}
    runs = {"default": (0.0, num_seeds), "default, calibrated": (0.2, num_seeds), "paper": (0.0, 1)}
    for name, (fraction, num_runs) in runs.items():
        preset = name.split(",")[0]
        taken, rates, right = [], [], []
        for seed in range(num_runs):
            settings = WaveformTrainingConfig(preset=preset, seed=seed, calibration_fraction=fraction)
            started = time.perf_counter()
            model = spikewise.train_waveforms(training, config=settings)
            taken.append(time.perf_counter() - started)
            started = time.perf_counter()
            model.classify(many)
            rates.append(len(many) / (time.perf_counter() - started))
            right.append(100 * float(np.mean(model.classify(rest.waveforms).labels == rest.labels)))
        results[name] = {
            "training_s": float(np.median(taken)),
            "spikes_per_second": float(np.median(rates)),
            "accuracy": float(np.mean(right)),
        }
    return results


def raw_signals() -> dict:
    """Sort a raw signal with known spikes, without labels and with those of its first second."""
    signal = DATA / "wave_clus" / "quiroga_C_Easy1_noise015_raw50000_gt.npz"
    labelled = spikewise.ChannelSortingConfig(label_interval=(0.0, 1.0))
    runs = {
        "easy1_no_labels": spikewise.sort_channel(signal),
        "easy1_labels_of_the_first_second": spikewise.sort_channel(signal, labels=signal, config=labelled),
        "hc1_spikes_no_labels": spikewise.sort_channel(
            spikewise.load_snippets(DATA / "real" / "hc1_d1492106_4ch_spikes_unlabelled.npz")
        ),
    }
    return {
        name: {"result": run.provenance["result"], "truth": run.provenance["truth"]}
        for name, run in runs.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("waveforms.json"))
    arguments = parser.parse_args()
    snippets = difficult2()
    results = {
        "spikewise_version": spikewise.__version__,
        "seconds": seconds(snippets, arguments.seeds),
        "few_labels": few_labels(snippets, arguments.seeds),
        "raw_signals": raw_signals(),
    }
    arguments.output.write_text(json.dumps(results, indent=2))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
