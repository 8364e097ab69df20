"""All settings of training and sorting together."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from spikewise.core.config.designs import Design
from spikewise.core.config.inputs import BootstrapConfig, LabelsConfig, PreprocessingConfig, RecordingConfig
from spikewise.core.config.learning import NetworkConfig, TransferConfig, UnitsConfig
from spikewise.core.config.sorting import DetectionConfig, SortingConfig
from spikewise.core.config.training import TrainingConfig
from spikewise.core.errors import SettingError
from spikewise.core.settings import unknown_setting


@dataclass(frozen=True)
class Config:
    """All settings of training and sorting.

    Every setting has a name of its own, so that :meth:`from_options` takes them flat, as the command does.
    """

    recording: RecordingConfig = dataclasses.field(default_factory=RecordingConfig)
    preprocessing: PreprocessingConfig = dataclasses.field(default_factory=PreprocessingConfig)
    labels: LabelsConfig = dataclasses.field(default_factory=LabelsConfig)
    bootstrap: BootstrapConfig = dataclasses.field(default_factory=BootstrapConfig)
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    units: UnitsConfig = dataclasses.field(default_factory=UnitsConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    transfer: TransferConfig = dataclasses.field(default_factory=TransferConfig)
    detection: DetectionConfig = dataclasses.field(default_factory=DetectionConfig)
    sorting: SortingConfig = dataclasses.field(default_factory=SortingConfig)

    @property
    def design(self) -> Design:
        """The design of the network: the one given, or what the preset asks for."""
        if self.network.design is not None:
            return self.network.design
        return "esort-paper" if self.training.preset == "paper" else "neighbourhood"

    def __post_init__(self) -> None:
        """Reject settings that belong to the other design."""
        for part in dataclasses.fields(self):
            settings = getattr(self, part.name)
            for field in dataclasses.fields(settings):
                needed = field.metadata["design"]
                is_given = getattr(settings, field.name) != field.default
                if is_given and needed not in (None, self.design):
                    raise SettingError(
                        f"the setting {field.name} is given with the design {self.design}",
                        f"{field.name} is a setting of the design {needed}",
                        f"leave it out, or set design to {needed}",
                    )

    @classmethod
    def from_options(cls, **options: Any) -> Self:
        """Build the settings from flat names, for example ``seed=1, labels_per_unit=30``.

        Raises
        ------
        SettingError
            If a name is unknown (all are listed) or a value is not allowed.
        """
        kinds = {field.name: type(getattr(cls(), field.name)) for field in dataclasses.fields(cls)}
        home = {field.name: part for part, kind in kinds.items() for field in dataclasses.fields(kind)}
        values: dict[str, dict[str, Any]] = {part: {} for part in kinds}
        for name, value in options.items():
            if name not in home:
                raise unknown_setting(name, sorted(home), "of training and sorting")
            values[home[name]][name] = tuple(value) if isinstance(value, list) else value
        return cls(**{part: kind(**values[part]) for part, kind in kinds.items()})

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as nested dictionaries of JSON types, the training preset resolved."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts["training"] = self.training.resolved()
        parts["network"] = dataclasses.replace(self.network, design=self.design)
        return {name: part.to_dict() for name, part in parts.items()}
