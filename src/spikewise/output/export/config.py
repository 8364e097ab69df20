"""The settings of the exports to other tools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikewise.core.settings import Settings, setting


@dataclass(frozen=True)
class PhyConfig(Settings):
    """Settings of a folder for Phy."""

    traces: Literal["auto", "copy", "none"] = setting(
        "auto",
        "Raw traces for Phy. auto: the recording's own file where it is a flat binary, else a copy; "
        "copy: always a copy; none: no traces",
    )
    phy_channels: int = setting(
        16, "Channels of each template and its features: those nearest to the unit's main channel", minimum=1
    )
    components: int = setting(3, "Principal components of each channel", minimum=2, maximum=10)
    before_ms: float = setting(
        1.0, "Start of the templates before the spike", unit="ms", minimum=0.2, maximum=5
    )
    after_ms: float = setting(1.7, "End of the templates after the spike", unit="ms", minimum=0.2, maximum=5)
    template_spikes: int = setting(
        200, "Most spikes of each unit that are averaged to its template", minimum=10
    )


@dataclass(frozen=True)
class AnalyzerConfig(Settings):
    """Settings of a SortingAnalyzer."""

    spikes_per_unit: int = setting(
        500, "Most spikes of each unit whose waveforms are kept, drawn at random", minimum=2
    )
    before_ms: float = setting(
        1.0, "Start of the waveforms before the spike", unit="ms", minimum=0.2, maximum=5
    )
    after_ms: float = setting(2.0, "End of the waveforms after the spike", unit="ms", minimum=0.2, maximum=5)
    radius_um: float = setting(
        100.0,
        "Waveforms are kept on channels within this distance of the unit's main channel",
        unit="um",
        minimum=0.0,
    )
    components: int = setting(
        0,
        "Principal components of each channel, for the metrics that need them; 0 computes none",
        minimum=0,
        maximum=20,
    )
    jobs: int = setting(1, "Number of processes that read the recording", minimum=1)
    seed: int = setting(0, "Seed of the random choice of spikes", minimum=0, maximum=2**31 - 1)


@dataclass(frozen=True)
class NwbConfig(Settings):
    """Metadata of a new NWB file; a file that is appended to keeps its own."""

    session_start_time: str | None = setting(
        None, "Start of the recording, such as 2026-03-01T14:00:00+01:00; required for a new file"
    )
    session_description: str = setting("Extracellular recording, spike sorted", "What was recorded")
    experiment_description: str | None = setting(None, "What the experiment was about")
    keywords: str = setting(
        "extracellular electrophysiology, spike sorting", "Keywords, with commas between them"
    )
    experimenter: str | None = setting(None, "Name of the experimenter, as Last, First")
    institution: str | None = setting(None, "Where it was recorded")
    brain_area: str | None = setting(
        None,
        "Brain area of the electrodes, if the recording does not tell it; for mice a term of the Allen "
        "atlas, such as VISp",
    )
    subject_id: str | None = setting(None, "Name of the animal")
    species: str | None = setting(None, "Species in Latin, such as Mus musculus")
    sex: Literal["M", "F", "U", "O"] = setting("U", "Sex: male, female, unknown, other")
    age: str | None = setting(None, "Age as an ISO 8601 duration, such as P90D")
