"""Settings of sorting: how probabilities become spikes, and how a recording is worked through."""

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
        "A window whose centre is this close to a spike holds it",
        unit="ms",
        minimum=0.0,
        maximum=1.0,
    )
    threshold: float | None = setting(
        None,
        "One threshold for all units, as a fraction of the response to a perfect spike; "
        "default: chosen for each unit on held-out labelled time",
        minimum=0.01,
        maximum=0.99,
    )
    merge_ms: float = setting(
        0.5, "Of several peaks of one unit this close, keep the highest", unit="ms", minimum=0.0, maximum=5.0
    )


@dataclass(frozen=True)
class SortingConfig(Settings):
    """How a recording is worked through."""

    chunk_s: float = setting(
        4.0, "Length of the chunks; it changes memory and speed, never the spikes", unit="s", minimum=0.001
    )
    shard_s: float = setting(
        20.0,
        "Length of what is saved at once, and of what a worker of a cluster is given at once; it never "
        "changes the spikes",
        unit="s",
        minimum=0.1,
    )
    cluster: str | None = setting(
        None,
        "Find the spikes on a Dask cluster: local:N for N processes of this machine, or the address of a "
        "scheduler, such as tcp://host:8786",
    )
    refresh_min: float | None = setting(
        None,
        "Learn the units anew after so many minutes, from their own confident spikes of the last minute, for "
        "recordings of hours in which units change; default: never",
        unit="min",
        minimum=0.1,
        design=NEIGHBOURHOOD,
    )
    device: Device = setting("auto", "Where the network runs; auto: the GPU where there is one")
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "Numbers in which a GPU computes the network; auto: bfloat16 on an NVIDIA card that has it (design "
        "neighbourhood, not on the CPU)",
    )
    sparse: bool = setting(
        True,
        "Ask the network of a unit only where something happens near it; switched off, it is asked "
        "everywhere, which takes many times longer (design neighbourhood, on the CPU)",
    )
    report: bool = setting(True, "Write report.html beside the result, to look at in a browser")
    damage: Literal["skip", "keep"] = setting(
        "skip",
        "Damaged stretches (zeros, saturation, NaN, artefacts, jumps of the clock): find them, report no "
        "spikes there and list them, or keep the traces as they are",
    )
    artefact_noise: float | None = setting(
        None,
        "A jump of half of the channels by so much is an artefact; default: 20 from 32 channels on, 80 on "
        "fewer, where one spike may reach them all",
        unit="noise standard deviations",
        minimum=1.0,
    )
