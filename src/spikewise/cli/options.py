"""What several commands take: all settings as flat options, and the switches that they share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from cyclopts import Group, Parameter

from spikewise.core.config import (
    BootstrapConfig,
    Config,
    DetectionConfig,
    LabelsConfig,
    NetworkConfig,
    PreprocessingConfig,
    RecordingConfig,
    SortingConfig,
    TrainingConfig,
    TransferConfig,
    UnitsConfig,
)

_ORDER = ["Reading", "Labels", "Bootstrap", "Preprocessing", "Network", "Training", "Detection", "Running"]
_GROUPS = {name: Group(name, sort_key=10 + index) for index, name in enumerate(_ORDER)}


def flat(group: str) -> Parameter:
    """Return what makes each field of a settings class an option of its own, in a group of the help page."""
    return Parameter(name="*", group=_GROUPS.get(group) or Group(group))


@Parameter(name="*")
@dataclass(frozen=True)
class Settings(Config):
    """All settings as flat options: each kind is a group of the help page."""

    recording: Annotated[RecordingConfig, flat("Reading")] = field(default_factory=RecordingConfig)
    labels: Annotated[LabelsConfig, flat("Labels")] = field(default_factory=LabelsConfig)
    bootstrap: Annotated[BootstrapConfig, flat("Bootstrap")] = field(default_factory=BootstrapConfig)
    preprocessing: Annotated[PreprocessingConfig, flat("Preprocessing")] = field(
        default_factory=PreprocessingConfig
    )
    network: Annotated[NetworkConfig, flat("Network")] = field(default_factory=NetworkConfig)
    units: Annotated[UnitsConfig, flat("Units")] = field(default_factory=UnitsConfig)
    training: Annotated[TrainingConfig, flat("Training")] = field(default_factory=TrainingConfig)
    transfer: Annotated[TransferConfig, flat("Transfer")] = field(default_factory=TransferConfig)
    detection: Annotated[DetectionConfig, flat("Detection")] = field(default_factory=DetectionConfig)
    sorting: Annotated[SortingConfig, flat("Running")] = field(default_factory=SortingConfig)


Reading = Annotated[RecordingConfig, flat("Reading")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object as the last line")]
Overwrite = Annotated[
    bool, Parameter(negative="", help="Replace an earlier result of Spikewise at that place")
]
Resume = Annotated[
    bool,
    Parameter(negative="", help="Go on with a sort that was not finished there, given the same settings"),
]
