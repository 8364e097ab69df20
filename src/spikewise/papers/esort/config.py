"""The settings of the experiments of Han & Wang (arXiv 2409.13067): which ones, how large, on which probes.

The number of units that a density means on each probe is not published; the numbers here were chosen so that
neighbouring units overlap on every probe.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cyclopts import Parameter

from spikewise.core.errors import SettingError
from spikewise.core.settings import Settings, setting

EXPERIMENTS = {
    "a": "Accuracy by the number of labelled spikes",
    "b": "Labels needed for equal accuracy",
    "c": "Probes",
    "d": "Noise",
    "e": "Drift",
    "f": "Other sorters",
}
"""The experiments, by their letters."""


@dataclass(frozen=True)
class ProbeSetup:
    """A probe of the catalogue or its first contacts, and its MEArec template file."""

    catalogue: str
    unit_share: float = 1.0
    contacts: int | None = None
    templates: str | None = None
    is_wide: bool = False


PROBES = {
    "neuropixels384": ProbeSetup(
        "neuropixels-1.0", templates="templates_neuropixels384_390_seed671.h5", is_wide=True
    ),
    "neuropixels128": ProbeSetup("neuropixels-1.0", contacts=128),
    "neuropixels64": ProbeSetup("neuropixels-1.0", 0.7, contacts=64),
    "neuropixels2": ProbeSetup("neuropixels-2.0", is_wide=True),
    "ultra": ProbeSetup("neuropixels-ultra", 0.5, is_wide=True),
    "sqmea": ProbeSetup("square-10", 0.5),
    "tetrode": ProbeSetup("tetrode", 0.2, templates="templates_tetrode_seed671.h5"),
}
"""The probes; `unit_share` is the number of units, as a fraction of that of the scale."""


@dataclass(frozen=True)
class Scale:
    """The size of the experiments.

    Attributes
    ----------
    probe : str
        Probe of all experiments except c, a name in :data:`PROBES`.
    num_units : int
        Units of a recording; on smaller probes a fraction of them, at least 2.
    duration_s : float
        Length of each recording; half of it is the test.
    wide_duration_s : float or None
        The same in c for probes with hundreds of channels, if it differs.
    num_seeds : int
        Recordings for each condition.
    label_counts : tuple of int
        Labelled spikes of each unit in a and b.
    labels_per_unit : int
        The same in the other experiments.
    probes, noises_uV, drifts : tuple
        Conditions of c, d and e.
    pretraining_drifts : tuple of str
        Drifts of the recordings that filters are transferred from in e, besides none.
    preset : str
        Training settings of the dense network: those of Spikewise, or those of the paper.
    patches_per_unit : int or None
        Patches from which Spikewise learns each unit; None for its default.
    sorters_on_wide : bool
        Whether other sorters also run in f on probes with hundreds of channels.
    """

    probe: str
    num_units: int
    duration_s: float
    num_seeds: int
    label_counts: tuple[int, ...]
    labels_per_unit: int
    probes: tuple[str, ...] = tuple(PROBES)
    noises_uV: tuple[float, ...] = (10.0, 20.0, 30.0)
    drifts: tuple[str, ...] = ("none", "slow", "fast", "non-rigid")
    pretraining_drifts: tuple[str, ...] = ("slow", "fast", "non-rigid")
    preset: Literal["default", "paper"] = "default"
    wide_duration_s: float | None = None
    patches_per_unit: int | None = None
    sorters_on_wide: bool = True


SCALES = {
    "small": Scale(
        "neuropixels64",
        24,
        20.0,
        1,
        (5, 15, 50),
        15,
        pretraining_drifts=("slow",),
        wide_duration_s=12.0,
        patches_per_unit=6000,
        sorters_on_wide=False,
    ),
    "medium": Scale("neuropixels128", 40, 80.0, 3, (5, 10, 15, 30, 50), 15),
    "paper": Scale("neuropixels384", 100, 100.0, 3, (5, 10, 15, 30, 50), 15, preset="paper"),
}


@dataclass(frozen=True)
class EsortPaperConfig(Settings):
    """Which of the paper's experiments are run (Han & Wang, arXiv 2409.13067), and how large."""

    scale: Literal["small", "medium", "paper"] = setting(
        "small",
        "Size: small takes minutes on two cores, paper has the published lengths and takes days there",
    )
    experiments: tuple[str, ...] = setting(
        ("all",), "Experiments: all, or " + ", ".join(f"{key} ({text})" for key, text in EXPERIMENTS.items())
    )
    num_seeds: Annotated[int | None, Parameter(name="--seeds")] = setting(
        None, "Recordings for each condition; default: that of the scale", minimum=1, maximum=100
    )
    as_published: Annotated[bool, Parameter(negative="")] = setting(
        False,
        "Score as the authors' published code does (peaks 7 samples late, matches up to 29 samples "
        "away, threshold chosen on the test interval, seams of chunks left out) instead of the corrected way",
    )
    seed: int = setting(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)

    def _check_together(self) -> None:
        unknown = [name for name in self.experiments if name not in ("all", *EXPERIMENTS)]
        if unknown or not self.experiments:
            raise SettingError(
                f"there is no experiment {unknown[0]!r}" if unknown else "no experiment is given",
                f"allowed: all, {', '.join(EXPERIMENTS)}",
                "correct experiments, or leave it out for all",
            )

    def chosen(self) -> tuple[str, ...]:
        """Return the letters of the chosen experiments."""
        return tuple(key for key in EXPERIMENTS if "all" in self.experiments or key in self.experiments)
