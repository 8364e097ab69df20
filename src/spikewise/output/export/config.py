"""The settings of handing spikes to other tools, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikewise.core.settings import Settings, setting


@dataclass(frozen=True)
class PhyConfig(Settings):
    """What a folder for Phy holds."""

    traces: Literal["auto", "copy", "none"] = setting(
        "auto",
        "Raw traces for Phy. auto: the recording's own file where it is a flat binary, else a copy; "
        "copy: always a copy; none: no traces",
    )
    phy_channels: int = setting(
        16, "Channels of templates and features: so many, nearest to the unit's largest", minimum=1
    )
    components: int = setting(3, "Principal components of each channel", minimum=2, maximum=10)
    before_ms: float = setting(
        1.0, "Start of the templates before the spike", unit="ms", minimum=0.2, maximum=5
    )
    after_ms: float = setting(1.7, "End of the templates after the spike", unit="ms", minimum=0.2, maximum=5)
    template_spikes: int = setting(200, "Spikes of each unit that make its template, at most", minimum=10)


@dataclass(frozen=True)
class AnalyzerConfig(Settings):
    """What a SortingAnalyzer is made with."""

    spikes_per_unit: int = setting(
        500, "Spikes of each unit whose waveforms are kept, drawn at random", minimum=2
    )
    before_ms: float = setting(
        1.0, "Start of the waveforms before the spike", unit="ms", minimum=0.2, maximum=5
    )
    after_ms: float = setting(2.0, "End of the waveforms after the spike", unit="ms", minimum=0.2, maximum=5)
    radius_um: float = setting(
        100.0, "Waveforms are kept of channels so near to the unit's largest", unit="um", minimum=0.0
    )
    components: int = setting(
        0,
        "Principal components of each channel, for the metrics that need them; 0: none",
        minimum=0,
        maximum=20,
    )
    jobs: int = setting(1, "Processes that read the recording", minimum=1)
    seed: int = setting(0, "Seed of the spikes that are drawn", minimum=0, maximum=2**31 - 1)


@dataclass(frozen=True)
class NwbConfig(Settings):
    """What a new NWB file says of itself; a file that is appended to says it already."""

    session_start_time: str | None = setting(
        None, "When the recording started, such as 2026-03-01T14:00:00+01:00; a new file needs it"
    )
    session_description: str = setting("Extracellular recording, spike sorted", "What was recorded")
    experimenter: str | None = setting(None, "Who recorded, as Last, First")
    institution: str | None = setting(None, "Where it was recorded")
    subject_id: str | None = setting(None, "Name of the animal")
    species: str | None = setting(None, "Species in Latin, such as Mus musculus")
    sex: Literal["M", "F", "U", "O"] = setting("U", "Sex: male, female, unknown, other")
    age: str | None = setting(None, "Age as an ISO 8601 duration, such as P90D")
