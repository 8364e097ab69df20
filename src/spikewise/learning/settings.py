"""The part of the settings that learning needs."""

from __future__ import annotations

from dataclasses import dataclass

from spikewise.core.config import (
    Config,
    Design,
    DetectionConfig,
    NetworkConfig,
    SortingConfig,
    TrainingConfig,
    UnitsConfig,
)


@dataclass(frozen=True)
class LearningSettings:
    """How the units of a group are learnt.

    Attributes
    ----------
    design : {"neighbourhood", "esort-paper"}
    network : NetworkConfig
        Window and sizes of the network.
    units : UnitsConfig
        For the design neighbourhood.
    training : TrainingConfig
        Seed and held-out time, and all else for the design esort-paper.
    detection : DetectionConfig
        How probabilities become spikes.
    sorting : SortingConfig
        Where the network runs, and how its detector is chosen.
    labels_per_unit : int or None
        Spikes of each unit that train; None: all labels.
    """

    design: Design
    network: NetworkConfig
    units: UnitsConfig
    training: TrainingConfig
    detection: DetectionConfig
    sorting: SortingConfig
    labels_per_unit: int | None

    @classmethod
    def of(cls, config: Config) -> LearningSettings:
        """Take what learning needs from all settings."""
        return cls(
            config.design,
            config.network,
            config.units,
            config.training,
            config.detection,
            config.sorting,
            config.labels.labels_per_unit,
        )
