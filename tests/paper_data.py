"""What the tests of the papers' experiments share: small sets, and rows of results."""

from dataclasses import replace

import numpy as np
import pandas as pd

from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.papers.cnn1d.sets import find_sets, make_set
from spikewise.single_channel.config import WaveClusConfig
from spikewise.single_channel.wave_clus import save_wave_clus, simulate_wave_clus


def write_files(folder):
    """Write two real sets, one of them the public C_Easy2 at 0.1, and files that are none."""
    (folder / "deeper").mkdir()
    simulation = simulate_wave_clus(WaveClusConfig(duration_s=5.0, seed=3))
    save_wave_clus(simulation, folder / "C_Easy2_noise01.mat")
    waveforms = simulation.signal[simulation.sample_index[:200, None] + np.arange(64)]
    labels = simulation.labels[:200].copy()
    labels[:20] = -1
    arrays = {"spikes_thr_unaligned": waveforms, "labels_thr": labels, "spikes_gt": waveforms}
    np.savez(folder / "deeper" / "recorded.npz", **arrays)
    np.savez(folder / "unlabelled.npz", waveforms=waveforms)
    (folder / "notes.txt").write_text("seen on Tuesday")
    return folder


def made_set(folder, name, duration_s=6.0):
    """A generated set, made."""
    (item,) = find_sets(folder, None, PapersConfig(sets=(name,), duration_s=duration_s))
    item = replace(item, path=folder / f"{name}.mat")
    make_set(item)
    return item


def rows_of(scores, source="generated"):
    """Rows of results from {(set, method, experiment, seed): accuracy}."""
    return pd.DataFrame(
        [
            {
                "set": name, "source": source, "dataset": name, "noise_level": 0.1, "experiment": experiment,
                "method": method, "seed": seed, "num_train": 10, "num_test": 90, "accuracy": accuracy,
                "macro_f": accuracy - 1, "seconds": 1.0,
            }
            for (name, method, experiment, seed), accuracy in scores.items()
        ]
    )  # fmt: skip
