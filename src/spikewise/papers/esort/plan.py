"""What the experiments of Han & Wang (arXiv 2409.13067) consist of: recordings, methods, and which runs.

An experiment is a set of runs, a run is one method on one recording with so many labels. Experiments share
runs, and b has none of its own: it reads those of a. The first half of a recording holds the labels, the
second half is the test. Filters are carried over from the first half of another recording of the same probe,
with all its labels; "same density" means that it has as many units, "other density" half as many again, as
15,000 cells per mm3 are to 10,000. How many units a density means on each probe is not published; the numbers
here were chosen so that neighbours overlap on every probe.

Where filters are carried over, both recordings come from the generator, which draws new units for each seed:
those of a template file would be in both, at the same places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import probeinterface

from spikewise.core.errors import RecordingError, SettingError
from spikewise.core.files import writing
from spikewise.core.settings import Settings, setting
from spikewise.data.recordings.probes import load_probe
from spikewise.papers.cnn1d.sets import small_seed

EXPERIMENTS = {
    "a": "Accuracy by the number of labelled spikes",
    "b": "Labels needed for equal accuracy",
    "c": "Probes",
    "d": "Noise",
    "e": "Drift",
    "f": "Other sorters",
}
LEARNERS = {
    "spikewise": "Spikewise",
    "spikewise_scratch": "Spikewise, from scratch",
    "esort": "E-Sort, from scratch",
    "esort_transfer": "E-Sort, transfer, same density",
    "esort_transfer_denser": "E-Sort, transfer, other density",
}
"""Methods that learn from labels, with the names they bear in tables and figures."""
UNLABELLED = {"spikewise_no_labels": "Spikewise, no labels"}
RIVALS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "lupin": ("Lupin", "lupin", {}),
    "tridesclous2": ("Tridesclous2", "tridesclous2", {}),
    "spykingcircus2": ("SpyKING CIRCUS 2", "spykingcircus2", {}),
    "mountainsort5": ("MountainSort5", "mountainsort5", {}),
    "kilosort4": ("Kilosort4", "kilosort4", {"do_correction": True}),
    "kilosort4_no_drift": ("Kilosort4 without drift correction", "kilosort4", {"do_correction": False}),
}
"""For each other sorter its name here, that in SpikeInterface, and parameters."""
QUICK_RIVALS = tuple(name for name, (_, sorter, _) in RIVALS.items() if sorter != "kilosort4")
"""Those that take seconds: they are run on every recording, Kilosort4 on that of a alone."""
METHOD_NAMES = LEARNERS | UNLABELLED | {name: shown for name, (shown, _, _) in RIVALS.items()}
COMPARED = ("spikewise", "esort")
"""The methods of the experiments on probes, noise and drift."""
NOISE_UV = 10.0
_GENERATOR_RATE_HZ = 32000.0


@dataclass(frozen=True)
class ProbeSetup:
    """A probe of the experiments: one of the catalogue, or its first contacts, or a MEArec template file."""

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
"""The probes; `unit_share` is the fraction of the scale's units that each carries."""


@dataclass(frozen=True)
class Scale:
    """How large the experiments are.

    Attributes
    ----------
    probe : str
        Of :data:`PROBES`, for all experiments but c.
    num_units : int
        Units of a recording; on smaller probes a share of them, 2 at least.
    duration_s : float
        Length of each recording; half of it is the test.
    wide_duration_s : float or None
        The same in c on probes with hundreds of channels, if it differs.
    num_seeds : int
        Recordings for each condition.
    label_counts : tuple of int
        Labelled spikes of each unit in a and b.
    labels_per_unit : int
        The same in the other experiments.
    probes, noises_uV, drifts : tuple
        Conditions of c, d and e.
    pretraining_drifts : tuple of str
        Drifts of the recordings from which filters are carried over in e, besides none.
    preset : str
        Training settings of the dense network: those of the package, or those of the paper.
    patches_per_unit : int or None
        Patches that Spikewise learns each unit from; None for its default.
    sorters_on_wide : bool
        Whether other sorters run in f on probes with hundreds of channels too.
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
    num_seeds: int | None = setting(
        None, "Recordings for each condition; default: as the scale has it", minimum=1, maximum=100
    )
    as_published: bool = setting(
        False,
        "Score in the way of the authors' published code (peaks 7 samples late, matches up to 29 samples "
        "away, threshold chosen on the test interval, seams of chunks left out) instead of the corrected one",
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
        """Return the letters of the experiments that are to be run."""
        return tuple(key for key in EXPERIMENTS if "all" in self.experiments or key in self.experiments)


@dataclass(frozen=True)
class Recipe:
    """A recording of the experiments.

    Attributes
    ----------
    probe : str
        Of :data:`PROBES`.
    source : "generator" or "mearec"
    num_units : int
    noise_uV : float
    drift : str
    role : "tuning" or "pretraining"
        Recordings of different roles have different units.
    seed : int
        Counts the recordings of one condition.
    duration_s : float
    """

    probe: str
    source: Literal["generator", "mearec"]
    num_units: int
    noise_uV: float
    drift: str
    role: Literal["tuning", "pretraining"]
    seed: int
    duration_s: float

    @property
    def name(self) -> str:
        """Return a name for files."""
        return f"{self.role}_{self.probe}_{self.num_units}units_{self.noise_uV:g}uV_{self.drift}_{self.seed}"


@dataclass(frozen=True)
class Run:
    """One method on one recording; `labels_per_unit` is 0 for methods that get no labels."""

    recipe: Recipe
    method: str
    labels_per_unit: int
    pretraining: Recipe | None = None

    @property
    def key(self) -> tuple:
        """Return what tells this run from all others, as in the rows of results."""
        recipe = self.recipe
        drift = self.pretraining.drift if self.pretraining else "none"
        return (
            *(recipe.probe, recipe.num_units, recipe.noise_uV, recipe.drift),
            *(self.method, drift, self.labels_per_unit, recipe.seed),
        )


KEY = ("probe", "num_units", "noise_uV", "drift", "method", "pretraining_drift", "labels_per_unit", "seed")
"""Columns of a run's key, in the order of :attr:`Run.key`."""


def find_templates(data: Path | None) -> dict[str, Path]:
    """Return the MEArec template files of a folder, by the names of their probes.

    Raises
    ------
    RecordingError
        If `data` is no folder.
    """
    if data is None:
        return {}
    if not data.is_dir():
        raise RecordingError(
            f"the data folder {data} is no folder",
            "a folder, in which mearec/ may hold MEArec template files",
            "correct the path, or leave it out: all recordings are then generated",
        )
    wanted = {name: probe.templates for name, probe in PROBES.items() if probe.templates}
    paths = {name: data / "mearec" / file for name, file in wanted.items()}
    return {name: path for name, path in paths.items() if path.is_file()}


def plan_runs(
    config: EsortPaperConfig, scale: Scale, with_templates: frozenset[str] = frozenset()
) -> list[Run]:
    """Return the runs of the chosen experiments, each once, those of one recording together.

    Parameters
    ----------
    config : EsortPaperConfig
    scale : Scale
    with_templates : frozenset of str
        Probes whose template file is there; they are used where no filters are carried over.
    """
    num_seeds = config.num_seeds or scale.num_seeds
    runs: dict[tuple, Run] = {}
    for seed in range(num_seeds):
        for experiment in config.chosen():
            for run in _RUNS_OF[experiment](scale, seed, with_templates):
                runs.setdefault(run.key, run)
    order = list(dict.fromkeys(run.recipe for run in runs.values()))
    return sorted(runs.values(), key=lambda run: order.index(run.recipe))


def base_recipe(scale: Scale, seed: int) -> Recipe:
    """Return the recording of the experiments a and f, with which c, d and e compare others."""
    units = _units_on(scale.probe, scale)
    return Recipe(scale.probe, "generator", units, NOISE_UV, "none", "tuning", seed, scale.duration_s)


def _units_on(probe: str, scale: Scale) -> int:
    return max(2, round(PROBES[probe].unit_share * scale.num_units))


def _learners(recipe: Recipe, labels: int, drift: str = "none") -> list[Run]:
    """Return a run of each method that learns from labels."""
    same = dataclasses.replace(recipe, role="pretraining", drift=drift)
    denser = dataclasses.replace(same, num_units=round(1.5 * recipe.num_units))
    sources = {"esort_transfer": same, "esort_transfer_denser": denser}
    return [Run(recipe, method, labels, sources.get(method)) for method in LEARNERS]


def _label_runs(scale: Scale, seed: int, _: frozenset[str]) -> list[Run]:
    recipe = base_recipe(scale, seed)
    return [run for labels in scale.label_counts for run in _learners(recipe, labels)]


def _probe_recipes(scale: Scale, seed: int, with_templates: frozenset[str]) -> list[Recipe]:
    recipes = []
    for probe in scale.probes:
        recipe = dataclasses.replace(base_recipe(scale, seed), probe=probe, num_units=_units_on(probe, scale))
        if PROBES[probe].is_wide and probe != scale.probe and scale.wide_duration_s:
            recipe = dataclasses.replace(recipe, duration_s=scale.wide_duration_s)
        if probe in with_templates and probe != scale.probe:
            recipe = dataclasses.replace(recipe, source="mearec")
        recipes.append(recipe)
    return recipes


def _noise_recipes(scale: Scale, seed: int) -> list[Recipe]:
    return [dataclasses.replace(base_recipe(scale, seed), noise_uV=noise) for noise in scale.noises_uV]


def _drift_recipes(scale: Scale, seed: int) -> list[Recipe]:
    return [dataclasses.replace(base_recipe(scale, seed), drift=drift) for drift in scale.drifts]


def _compared(recipes: Iterable[Recipe], scale: Scale) -> list[Run]:
    return [Run(recipe, method, scale.labels_per_unit) for recipe in recipes for method in COMPARED]


def _probe_runs(scale: Scale, seed: int, with_templates: frozenset[str]) -> list[Run]:
    return _compared(_probe_recipes(scale, seed, with_templates), scale)


def _noise_runs(scale: Scale, seed: int, _: frozenset[str]) -> list[Run]:
    return _compared(_noise_recipes(scale, seed), scale)


def _drift_runs(scale: Scale, seed: int, _: frozenset[str]) -> list[Run]:
    """Drift in the recording that is sorted, for filters without drift; then in that which taught filters."""
    runs = []
    for recipe in _drift_recipes(scale, seed):
        learners = _learners(recipe, scale.labels_per_unit)
        runs += [run for run in learners if run.method in (*COMPARED, "esort_transfer")]
    for drift in scale.pretraining_drifts:
        learners = _learners(base_recipe(scale, seed), scale.labels_per_unit, drift)
        runs += [run for run in learners if run.method == "esort_transfer"]
    return runs


def _sorter_runs(scale: Scale, seed: int, with_templates: frozenset[str]) -> list[Run]:
    """Other sorters on every recording of c, d and e; Kilosort4, which takes minutes, on that of a alone."""
    base = base_recipe(scale, seed)
    of_probes = [
        recipe
        for recipe in _probe_recipes(scale, seed, with_templates)
        if scale.sorters_on_wide or not PROBES[recipe.probe].is_wide
    ]
    every = (base, *_noise_recipes(scale, seed), *_drift_recipes(scale, seed), *of_probes)
    runs = []
    for recipe in dict.fromkeys(every):
        others = (*UNLABELLED, *(RIVALS if recipe == base else QUICK_RIVALS))
        runs += [*_compared([recipe], scale), *(Run(recipe, method, 0) for method in others)]
    return runs


_RUNS_OF = {
    "a": _label_runs,
    "b": _label_runs,
    "c": _probe_runs,
    "d": _noise_runs,
    "e": _drift_runs,
    "f": _sorter_runs,
}


def simulation_options(recipe: Recipe, seed: int, templates: dict[str, Path], folder: Path) -> dict[str, Any]:
    """Return the options of :func:`spikewise.simulate` that make a recording.

    Parameters
    ----------
    recipe : Recipe
    seed : int
        Seed of all experiments. Conditions of one probe and role share units where their number is the same.
    templates : dict of str to Path
        As :func:`find_templates` returned it.
    folder : Path
        Gets the file of a probe that is a part of another.

    Raises
    ------
    OutputError
        If that file cannot be written.
    """
    probe = PROBES[recipe.probe]
    options: dict[str, Any] = {
        "source": recipe.source,
        "num_units": recipe.num_units,
        "duration_s": recipe.duration_s,
        "noise_uV": recipe.noise_uV,
        "min_amplitude_uV": 40.0,
        "max_amplitude_uV": 300.0,
        "seed": small_seed(seed, f"{recipe.role} {recipe.probe} {recipe.seed}"),
    }
    if recipe.drift != "none":
        options["drift"] = recipe.drift
    if recipe.source == "mearec":
        return options | {"templates": str(templates[recipe.probe])}
    where = probe.catalogue if probe.contacts is None else str(_cut_probe(recipe.probe, folder))
    return options | {"probe": where, "sampling_frequency": _GENERATOR_RATE_HZ}


def _cut_probe(name: str, folder: Path) -> Path:
    """Write the probe that has the first contacts of another, and return its file."""
    path, setup = folder / f"{name}.json", PROBES[name]
    whole = load_probe(setup.catalogue).probes[0]
    part = whole.get_slice(np.arange(setup.contacts or 0))
    part.set_device_channel_indices(np.arange(part.get_contact_count()))
    with writing(path):
        probeinterface.write_probeinterface(path, part)
    return path
