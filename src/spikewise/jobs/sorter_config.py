"""The settings that only the sorter of SpikeInterface has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikewise.core.settings import Settings, setting


@dataclass(frozen=True)
class SorterConfig(Settings):
    """What the sorter of SpikeInterface takes beside the settings of training and sorting."""

    labels: str | None = setting(
        None, "Labelled spikes: where they are, or a sorting; without them a sorter makes them (bootstrap)"
    )
    model: str | None = setting(None, "A trained model, where it is; it needs no labels")
    probe: str | None = setting(
        None, "Probe: a probeinterface file or a name; default: that of the recording"
    )
    clock: Literal["auto", "ignore"] = setting(
        "auto",
        "Times of the samples, where the recording has them. auto: labels in seconds use them, and their "
        "jumps count as damage; ignore: samples are counted from the first time",
    )
    cache_folder: str | None = setting(
        None,
        "Folder that keeps the trained models: where the same recording is sorted again with the same labels "
        "and settings, or a sort had stopped half-way, nothing is learnt twice; default: none is kept",
    )
