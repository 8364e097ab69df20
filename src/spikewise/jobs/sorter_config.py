"""The settings that only the sorter in SpikeInterface has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikewise.core.settings import Settings, setting


@dataclass(frozen=True)
class SorterConfig(Settings):
    """What the sorter in SpikeInterface takes besides the settings of training and sorting."""

    labels: str | None = setting(
        None, "Labelled spikes: a path or a sorting; by default, units are found without (bootstrap)"
    )
    model: str | None = setting(None, "Path of a trained model, which needs no labels")
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
        "Folder for trained models: if the same recording is sorted again with the same labels and settings, "
        "or a sort was interrupted, the model there is used again; default: no model is kept",
    )
