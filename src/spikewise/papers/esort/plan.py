"""The runs that the experiments of Han & Wang (arXiv 2409.13067) consist of, and their recordings.

A run is one method on one recording with a number of labels per unit; an experiment is a set of runs.
Experiments share runs: b has none of its own and reads those of a. The labels lie in the first half of a
recording, the second half is the test. Filters are transferred from the first half of another recording of
the same probe, with all its labels. "Same density" means that the other recording has as many units, "other
density" 1.5 times as many, as in the paper (15,000 and 10,000 cells per mm3).

For transfer, both recordings come from the generator, which draws new units for each seed. Recordings of one
template file would share units at the same positions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import probeinterface

from spikewise.core.errors import RecordingError
from spikewise.core.files import writing
from spikewise.data.recordings.probes import load_probe
from spikewise.papers.cnn1d.sets import small_seed
from spikewise.papers.esort.config import PROBES, EsortPaperConfig, Scale
from spikewise.papers.esort.methods import COMPARED, LEARNERS, QUICK_RIVALS, RIVALS, UNLABELLED

NOISE_UV = 10.0
"""Noise of all recordings except those of d."""
_DENSER = 1.5
"""Units of the denser recording that filters are transferred from, relative to the other (Han & Wang)."""
_GENERATOR_RATE_HZ = 32000.0
"""Sampling frequency of generated recordings: that of the paper's recordings."""


@dataclass(frozen=True)
class Recipe:
    """A recording of the experiments.

    Attributes
    ----------
    probe : str
        Name in :data:`PROBES`.
    source : "generator" or "mearec"
    num_units : int
    noise_uV : float
    drift : str
    role : "tuning" or "pretraining"
        Recordings of different roles have different units.
    seed : int
        Number of the recording among those of one condition.
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
        """Name of the recording in file names."""
        return f"{self.role}_{self.probe}_{self.num_units}units_{self.noise_uV:g}uV_{self.drift}_{self.seed}"


@dataclass(frozen=True)
class Run:
    """One method on one recording; `labels_per_unit` is 0 for methods without labels."""

    recipe: Recipe
    method: str
    labels_per_unit: int
    pretraining: Recipe | None = None

    @property
    def key(self) -> tuple:
        """The values that identify this run in the rows of results."""
        recipe = self.recipe
        drift = self.pretraining.drift if self.pretraining else "none"
        return (
            *(recipe.probe, recipe.num_units, recipe.noise_uV, recipe.drift),
            *(self.method, drift, self.labels_per_unit, recipe.seed),
        )


KEY = ("probe", "num_units", "noise_uV", "drift", "method", "pretraining_drift", "labels_per_unit", "seed")
"""Columns of the results that identify a run, in the order of :attr:`Run.key`."""


def find_templates(data: Path | None) -> dict[str, Path]:
    """Return the MEArec template files of a folder, by the names of their probes.

    Raises
    ------
    RecordingError
        If `data` is not a folder.
    """
    if data is None:
        return {}
    if not data.is_dir():
        raise RecordingError(
            f"the data folder {data} is not a folder",
            "a folder whose folder mearec/ may hold MEArec template files",
            "correct the path, or leave it out: then all recordings are generated",
        )
    wanted = {name: probe.templates for name, probe in PROBES.items() if probe.templates}
    paths = {name: data / "mearec" / file for name, file in wanted.items()}
    return {name: path for name, path in paths.items() if path.is_file()}


def plan_runs(
    config: EsortPaperConfig, scale: Scale, with_templates: frozenset[str] = frozenset()
) -> list[Run]:
    """Return the runs of the chosen experiments, each once, and those of one recording together.

    Parameters
    ----------
    config : EsortPaperConfig
    scale : Scale
    with_templates : frozenset of str
        Probes whose template file exists; it is used for recordings without transfer.
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
    """Return the recording of the experiments a and f; c, d and e change one of its properties."""
    units = _units_on(scale.probe, scale)
    return Recipe(scale.probe, "generator", units, NOISE_UV, "none", "tuning", seed, scale.duration_s)


def _units_on(probe: str, scale: Scale) -> int:
    return max(2, round(PROBES[probe].unit_share * scale.num_units))


def _learners(recipe: Recipe, labels: int, drift: str = "none") -> list[Run]:
    """Return a run of each method that learns from labels."""
    same = dataclasses.replace(recipe, role="pretraining", drift=drift)
    denser = dataclasses.replace(same, num_units=round(_DENSER * recipe.num_units))
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
    """Return runs with drift in the sorted recording, then with drift in the recording of the filters."""
    runs = []
    for recipe in _drift_recipes(scale, seed):
        learners = _learners(recipe, scale.labels_per_unit)
        runs += [run for run in learners if run.method in (*COMPARED, "esort_transfer")]
    for drift in scale.pretraining_drifts:
        learners = _learners(base_recipe(scale, seed), scale.labels_per_unit, drift)
        runs += [run for run in learners if run.method == "esort_transfer"]
    return runs


def _sorter_runs(scale: Scale, seed: int, with_templates: frozenset[str]) -> list[Run]:
    """Return runs of other sorters on every recording of c, d and e, and of Kilosort4 on that of a."""
    base = base_recipe(scale, seed)
    probe_recipes = [
        recipe
        for recipe in _probe_recipes(scale, seed, with_templates)
        if scale.sorters_on_wide or not PROBES[recipe.probe].is_wide
    ]
    every = (base, *_noise_recipes(scale, seed), *_drift_recipes(scale, seed), *probe_recipes)
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
        Seed of all experiments. Conditions of one probe and role have the same units if their number is the
        same.
    templates : dict of str to Path
        As :func:`find_templates` returned it.
    folder : Path
        Folder for the file of a probe that is a part of a larger one.

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
    catalogue_or_file = probe.catalogue if probe.contacts is None else str(_cut_probe(recipe.probe, folder))
    return options | {"probe": catalogue_or_file, "sampling_frequency": _GENERATOR_RATE_HZ}


def _cut_probe(name: str, folder: Path) -> Path:
    """Write the probe of the first contacts of a larger one, and return its file."""
    path, setup = folder / f"{name}.json", PROBES[name]
    whole = load_probe(setup.catalogue).probes[0]
    part = whole.get_slice(np.arange(setup.contacts or 0))
    part.set_device_channel_indices(np.arange(part.get_contact_count()))
    with writing(path):
        probeinterface.write_probeinterface(path, part)
    return path
