"""Options that several commands share: all settings as flat options, and switches such as ``--json``."""

from __future__ import annotations

from dataclasses import dataclass, field, make_dataclass
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import Group, Parameter

from spikewise.core.config import (
    ESORT_PAPER,
    NEIGHBOURHOOD,
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
from spikewise.core.settings import Settings as SettingsBase

_DESIGN_GROUPS = {design: f"Design {design} only" for design in (NEIGHBOURHOOD, ESORT_PAPER)}
"""Groups of the options that the other design refuses."""
SETTING_GROUPS = ["Reading", "Labels", "Bootstrap", "Preprocessing", "Network", "Training", "Transfer"]
SETTING_GROUPS += ["Detection", "Running", *_DESIGN_GROUPS.values()]
"""Groups of the settings of a sort, in the order of the help."""
_GROUPS = {name: Group(name, sort_key=10 + index) for index, name in enumerate(SETTING_GROUPS)}


def flat(group: str) -> Parameter:
    """Return the parameter that makes each field of a settings class an option, in a group of the help."""
    return Parameter(name="*", group=_GROUPS.get(group) or Group(group))


def by_design(kind: type[SettingsBase]) -> type:
    """Return a settings class whose fields for one design only have its group in the help."""
    hints = get_type_hints(kind)
    fields = []
    for part in fields_of(kind):
        if part.metadata["design"] is not None:
            group = Parameter(group=_GROUPS[_DESIGN_GROUPS[part.metadata["design"]]])
            own = field(default=part.default, metadata=part.metadata)
            fields.append((part.name, Annotated[hints[part.name], group], own))

    def reduced(self: SettingsBase) -> tuple[type[SettingsBase], tuple[Any, ...]]:
        """Pickle the settings as those of the class itself: workers of a cluster know no other."""
        return kind, tuple(getattr(self, part.name) for part in fields_of(kind))

    namespace = {"__module__": kind.__module__, "__doc__": kind.__doc__, "__reduce__": reduced}
    return make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True, namespace=namespace)


GROUPED = tuple(map(by_design, (NetworkConfig, UnitsConfig, TrainingConfig, TransferConfig, SortingConfig)))
"""Settings classes with fields for one design only; only their help groups differ."""
_Network, _Units, _Training, _Transfer, _Sorting = GROUPED


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
    network: Annotated[_Network, flat("Network")] = field(default_factory=_Network)  # type: ignore[valid-type]
    units: Annotated[_Units, flat("Network")] = field(default_factory=_Units)  # type: ignore[valid-type]
    training: Annotated[_Training, flat("Training")] = field(default_factory=_Training)  # type: ignore[valid-type]
    transfer: Annotated[_Transfer, flat("Transfer")] = field(default_factory=_Transfer)  # type: ignore[valid-type]
    detection: Annotated[DetectionConfig, flat("Detection")] = field(default_factory=DetectionConfig)
    sorting: Annotated[_Sorting, flat("Running")] = field(default_factory=_Sorting)  # type: ignore[valid-type]


Reading = Annotated[RecordingConfig, flat("Reading")]
Output = Annotated[Path, Parameter(alias="-o")]
AsJson = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object as the last line")]
Overwrite = Annotated[
    bool, Parameter(negative="", help="Replace an earlier output of Spikewise at the same path")
]
Resume = Annotated[
    bool,
    Parameter(negative="", help="Continue an unfinished sort in the output folder, with the same settings"),
]
