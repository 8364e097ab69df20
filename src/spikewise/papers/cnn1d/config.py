"""The settings of the experiments of the 1D-CNN."""

from __future__ import annotations

from dataclasses import dataclass

from spikewise.core.settings import Settings, setting


@dataclass(frozen=True)
class PapersConfig(Settings):
    """Which of the paper's experiments are run (Li et al. 2020)."""

    experiments: tuple[int, ...] = setting(
        (1, 2, 3, 4, 5, 6),
        "Experiments E1 to E6, in which 5, 10, 20, 30, 40, 50 % of the spikes train",
        minimum=1,
        maximum=6,
    )
    methods: tuple[str, ...] = setting(
        ("all",), "Methods: all, default, paper, or names of other methods such as pca_fcm_f3"
    )
    sets: tuple[str, ...] = setting(
        ("all",),
        "Sets: all, real, generated, or beginnings of names such as C_Easy1 or C_Difficult2_noise015",
    )
    num_seeds: int = setting(5, "Random divisions of each set into training and test", minimum=1, maximum=100)
    duration_s: float = setting(60.0, "Length of the generated sets", unit="s", minimum=5.0, maximum=3600.0)
    shapes: str | None = setting(
        None, "File of mean waveforms for the generated sets; default: built-in shapes"
    )
    num_jobs: int = setting(2, "Processes that share the work", minimum=1, maximum=256)
    seed: int = setting(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)
