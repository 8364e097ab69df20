"""Learn the shapes of spikes that the search for units starts from.

    python benchmarks/spike_shapes.py [--output FILE] [--seed 0]

The waveforms are the templates of a MEArec file of tetrodes, in the folder that SPIKEWISE_DATA names (by
default ``../shared/data`` beside the repository), and templates of SpikeInterface's generator. They are
filtered like traces. A bank of few shapes (k-means of all waveforms, each with an energy of 1) finds events;
a basis (principal components of the same waveforms, shifted by up to four samples) describes them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import MEArec
import numpy as np
import torch
from scipy.signal import butter, sosfiltfilt
from sklearn.cluster import KMeans
from spikeinterface.core.generate import generate_templates

from spikewise.models.tensor_file import write_tensors

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPIKEWISE_DATA", REPOSITORY.parent / "shared" / "data"))
OUTPUT = REPOSITORY / "src" / "spikewise" / "models" / "weights" / "spike_shapes.safetensors"
RATE = 32000.0
BEFORE, AFTER = 26, 38
"""Samples before the trough, and from it on: 0.8 and 1.2 ms."""
SHIFTS = (-4, -2, 0, 2, 4)
NUM_GENERATED = 300


def mearec_waveforms() -> np.ndarray:
    """Return the waveforms of all channels of the tetrode templates that are larger than 15 uV."""
    file = MEArec.load_templates(str(DATA / "mearec" / "templates_tetrode_seed671.h5"))
    waveforms = np.asarray(file.templates)
    waveforms = waveforms.reshape(-1, waveforms.shape[-1])
    return waveforms[np.ptp(waveforms, axis=1) > 15]


def generated_waveforms(seed: int) -> np.ndarray:
    """Return waveforms of SpikeInterface's generator, one for each unit."""
    random = np.random.default_rng(seed)
    channels = np.zeros((1, 2))
    units = np.column_stack([random.uniform(0, 20, (NUM_GENERATED, 2)), random.uniform(5, 20, NUM_GENERATED)])
    templates = generate_templates(channels, units, RATE, 2.0, 4.0, seed=seed)
    return templates[:, :, 0]


def cut(waveforms: np.ndarray, shift: int) -> np.ndarray:
    """Cut windows around the troughs, with an energy of 1."""
    inside = waveforms[:, BEFORE + 8 : -AFTER - 8]
    troughs = inside.argmin(axis=1) + BEFORE + 8 + shift
    windows = np.stack([w[t - BEFORE : t + AFTER] for w, t in zip(waveforms, troughs, strict=True)])
    return windows / np.linalg.norm(windows, axis=1, keepdims=True)


def main() -> None:
    """Learn the shapes and write them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shapes", type=int, default=5)
    parser.add_argument("--components", type=int, default=6)
    options = parser.parse_args()
    edges = butter(2, [300, 6000], "bandpass", fs=RATE, output="sos")
    sources = mearec_waveforms(), generated_waveforms(options.seed)
    filtered = [sosfiltfilt(edges, np.pad(w, ((0, 0), (400, 400)), "edge"), axis=1) for w in sources]
    aligned = np.concatenate([cut(waveforms, 0) for waveforms in filtered])
    clusters = KMeans(options.shapes, n_init=4, random_state=options.seed).fit(aligned)
    bank = clusters.cluster_centers_ / np.linalg.norm(clusters.cluster_centers_, axis=1, keepdims=True)
    shifted = np.concatenate([cut(waveforms, shift) for waveforms in filtered for shift in SHIFTS])
    _, sizes, basis = np.linalg.svd(shifted, full_matrices=False)
    kept = float((sizes[: options.components] ** 2).sum() / (sizes**2).sum())
    tensors = {"bank": bank, "basis": basis[: options.components]}
    facts = {
        "waveforms": [len(waveforms) for waveforms in sources],
        "seed": options.seed,
        "energy": round(kept, 4),
    }
    description = {
        "kind": "shapes",
        "format_version": 1,
        "sampling_frequency": RATE,
        "before": BEFORE,
        "facts": facts,
    }
    write_tensors(
        options.output,
        {name: torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32)) for name, v in tensors.items()},
        description,
    )
    print(options.output, facts)


if __name__ == "__main__":
    main()
