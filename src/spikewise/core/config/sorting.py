"""Settings of sorting: how probabilities become spikes, and how a recording is processed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spikewise.core.config.designs import NEIGHBOURHOOD
from spikewise.core.settings import Settings, setting

Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclass(frozen=True)
class DetectionConfig(Settings):
    """How probabilities become spikes."""

    label_radius_ms: float = setting(
        0.15625,
        "A window counts as an example of a spike if its centre is this close to the spike",
        unit="ms",
        minimum=0.0,
        maximum=1.0,
    )
    threshold: float | None = setting(
        None,
        "One threshold for all units, as a fraction of the response to a perfect spike; a higher one gives "
        "fewer false and more missed spikes; "
        "default: chosen for each unit on held-out labelled time",
        minimum=0.01,
        maximum=0.99,
    )
    merge_ms: float = setting(
        0.5,
        "If several peaks of one unit are this close together, keep the highest",
        unit="ms",
        minimum=0.0,
        maximum=5.0,
    )


@dataclass(frozen=True)
class SortingConfig(Settings):
    """How a recording is processed."""

    chunk_s: float = setting(
        4.0,
        "Length of the chunks; a shorter one needs less memory. The spikes stay the same",
        unit="s",
        minimum=0.001,
    )
    shard_s: float = setting(
        20.0,
        "Length of a shard, which is saved as a whole and is one task of a cluster. The spikes stay the same",
        unit="s",
        minimum=0.1,
    )
    cluster: str | None = setting(
        None,
        "Find the spikes on a Dask cluster: local:N for N processes of this machine, or the address of a "
        "scheduler, such as tcp://host:8786",
    )
    motion: str = setting(
        "auto",
        "Motion of the tissue along the probe. auto: estimate it, and remove it from the traces if it is "
        "real; none: leave the traces as they are; or the folder of an estimate that SpikeInterface saved "
        "(Motion.save)",
    )
    refresh_min: float | None = setting(
        None,
        "Relearn the units after this many minutes, from their confident spikes of the last minute. For "
        "recordings of hours in which units change. Default: never",
        unit="min",
        minimum=0.1,
        design=NEIGHBOURHOOD,
    )
    new_units: bool | None = setting(
        None,
        "After the sort, search events that no unit explains for units that are not known yet, such as those "
        "of neurons that fire only later, and add them with the ids that come next. Default: without labels "
        "and model",
        design=NEIGHBOURHOOD,
    )
    device: Device = setting("auto", "Where the network runs; auto: the GPU if there is one")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Numbers in which a GPU computes the network; auto: bfloat16 on an NVIDIA card that has it (design "
        "neighbourhood, not on the CPU)",
    )
    sparse: bool = setting(
        True,
        "Evaluate the network of a unit only where its gate is open. Without it, the network is evaluated "
        "everywhere, which takes many times longer (design neighbourhood, on the CPU)",
    )
    explain: bool = setting(
        True,
        "Let the traces decide where several units may have fired: one, another, or both. It finds spikes "
        "below others, and removes those that two units claim (design neighbourhood)",
    )
    report: bool = setting(True, "Write report.html into the output folder, a page for the browser")
    trust: bool = setting(
        True,
        "Say how far each unit can be trusted: add known spikes of each unit to parts of the recording, sort "
        "these again, and write the estimated accuracy of each unit to units.csv in the output folder",
    )
    auto_merge: bool = setting(
        False,
        "Accept the suggested changes that join units: merge units that are probably one neuron, and leave "
        "out copies of other units. They go into curation.json, as from `spikewise curate`; the sorting "
        "itself keeps all units",
    )
    damage: Literal["skip", "keep"] = setting(
        "skip",
        "Damaged stretches (zeros, saturation, NaN, artefacts, clock jumps). skip: find and list them, "
        "and report no spikes there. keep: leave the traces as they are",
    )
    artefact_noise: float | None = setting(
        None,
        "A jump of this size on half of the channels is an artefact; default: 20 with 32 channels or more, "
        "80 with fewer, because one spike may reach all of them",
        unit="noise standard deviations",
        minimum=1.0,
    )
