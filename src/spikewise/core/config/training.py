"""Settings of training: seed, held-out time, and the settings of the design esort-paper."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from spikewise.core.config.designs import ESORT_PAPER
from spikewise.core.settings import Settings, setting

_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class TrainingConfig(Settings):
    """How the network is trained. A value that is not given is that of the preset (esort-paper)."""

    preset: Literal["default", "paper"] = setting(
        "default", "Named set of training settings of the design esort-paper", design=ESORT_PAPER
    )
    epochs: int | None = setting(
        None, "Largest number of passes over the labels", minimum=1, design=ESORT_PAPER
    )
    batch_size: int | None = setting(None, "Windows in a batch", minimum=2, design=ESORT_PAPER)
    learning_rate: float | None = setting(None, "Largest step size of Adam", minimum=0.0, design=ESORT_PAPER)
    schedule: Literal["constant", "one-cycle"] | None = setting(
        None, "How the learning rate changes during training", design=ESORT_PAPER
    )
    windows_per_spike: int | None = setting(
        None,
        "Windows cut around each labelled spike in an epoch; 0: all that contain its label",
        minimum=0,
        design=ESORT_PAPER,
    )
    min_steps: int | None = setting(
        None,
        "Smallest number of steps in all; with few labels, more windows are cut around each",
        minimum=0,
        design=ESORT_PAPER,
    )
    max_steps: int | None = setting(
        None,
        "Largest number of steps in all; with many labels, fewer windows are cut around each",
        minimum=1,
        design=ESORT_PAPER,
    )
    noise_windows: Literal["anywhere", "spike-free"] | None = setting(
        None,
        "Windows without a label: anywhere except at the centre of a spike, or only without spikes",
        design=ESORT_PAPER,
    )
    superpositions: float | None = setting(
        None,
        "Units added to training windows at random times, as a multiple of those in windows by chance",
        minimum=0.0,
        design=ESORT_PAPER,
    )
    held_out_fraction: float = setting(
        0.2,
        "Fraction of the label interval kept for early stopping and thresholds",
        minimum=0.05,
        maximum=0.5,
    )
    max_spikes_per_unit: int = setting(
        300, "Largest number of training spikes of a unit", minimum=1, design=ESORT_PAPER
    )
    seed: int = setting(0, "Seed of all random numbers", minimum=0, maximum=2**31 - 1)

    def resolved(self) -> TrainingConfig:
        """Return a copy in which every value that was not given is that of the preset."""
        preset = TRAINING_PRESETS[self.preset]
        missing = {k: v for k, v in preset.items() if getattr(self, k) is None}
        return dataclasses.replace(self, **missing)


def given(value: _Number | None) -> _Number:
    """Return a value that a resolved :class:`TrainingConfig` has."""
    if value is None:
        raise ValueError("the training settings must be resolved: call TrainingConfig.resolved()")
    return value


TRAINING_PRESETS: dict[str, dict[str, Any]] = {
    "default": {
        "epochs": 12,
        "batch_size": 512,
        "learning_rate": 5e-3,
        "schedule": "one-cycle",
        "windows_per_spike": 4,
        "min_steps": 500,
        "max_steps": 800,
        "noise_windows": "anywhere",
        "superpositions": 3.0,
    },
    "paper": {
        "epochs": 50,
        "batch_size": 1024,
        "learning_rate": 5e-3,
        "schedule": "constant",
        "windows_per_spike": 0,
        "min_steps": 0,
        "max_steps": 10**9,
        "noise_windows": "spike-free",
        "superpositions": 0.0,
    },
}
