"""The scenes: recordings whose spikes are known, as long as a recording, not as long as the labels.

Each scene is a folder with ``recording`` and ``truth`` (`spikeinterface.load` reads both) and ``scene.json``:
its settings, what they made, and the pairs of units that fire together. A scene is kept, and made again only
if other settings are asked for. The same seed draws the same units and spikes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import spikeinterface.full as si

from scene_benchmark.kinds import SCENES, SYNCHRONOUS_MS, SceneSettings
from spikewise.core.errors import SettingError
from spikewise.core.files import save_json
from spikewise.data.labels.events import match_events
from spikewise.data.simulation.mearec import load_mearec_templates

RECIPE = 1
"""Raise it when a change of the code changes what a scene holds: scenes are then made again."""

SCENE_FILE = "scene.json"


@dataclass(frozen=True)
class Scene:
    """A scene on the disk.

    Attributes
    ----------
    folder : Path
    settings : SceneSettings
    facts : dict
        The content of its ``scene.json``.
    """

    folder: Path
    settings: SceneSettings
    facts: dict[str, Any]

    @property
    def recording(self) -> Path:
        return self.folder / "recording"

    @property
    def truth(self) -> Path:
        return self.folder / "truth"

    @property
    def digest(self) -> str:
        """Tells scenes of different settings apart."""
        return _digest(self.facts["made_from"])


def scene_settings(
    name: str,
    seed: int,
    templates: Path,
    seconds: float | None = None,
    num_units: int | None = None,
    noise_uV: float | None = None,
) -> SceneSettings:
    """Return the settings of a scene; what is None takes the default of its kind.

    Raises
    ------
    SettingError
        If the noise of a scene is given whose generator has its own, a value is out of range, or the template
        file is missing.
    """
    kind = SCENES[name]
    if noise_uV is not None and kind.noise_uV is None:
        raise SettingError(
            f"a noise of {noise_uV:g} uV is asked for in the scene {name}",
            f"the noise can be given for {', '.join(n for n, k in SCENES.items() if k.noise_uV)}",
            "leave out --noise, or the other scenes",
        )
    if kind.from_templates and not templates.is_file():
        load_mearec_templates(templates)  # tells what is wrong
    settings = SceneSettings(
        name,
        seed,
        seconds or kind.seconds,
        num_units or kind.num_units,
        noise_uV or kind.noise_uV,
        templates if kind.from_templates else None,
    )
    if settings.seconds < 1 or settings.num_units < 1 or seed < 0 or (settings.noise_uV or 1.0) <= 0:
        raise SettingError(
            f"{settings.seconds:g} s, {settings.num_units} units and seed {seed} are asked for",
            "at least 1 s, one unit, noise above 0, and a seed of 0 or more",
            "change --seconds, --units, --noise or --seeds",
        )
    return settings


def make_scene(settings: SceneSettings, folder: Path, jobs: int) -> Scene:
    """Return a scene; make it unless the folder holds it, made with the same settings.

    Parameters
    ----------
    settings : SceneSettings
    folder : Path
        Folder of all scenes.
    jobs : int
        Number of processes that compute traces.

    Raises
    ------
    SettingError
        If the template file cannot be used, or holds too few units.
    """
    place = folder / f"{settings.name}_seed{settings.seed}"
    made_from = _made_from(settings)
    found = read_facts(place)
    if found.get("made_from") == made_from:
        return Scene(place, settings, found)
    partial = place.with_name(place.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of SpikeInterface: traces in memory, properties left out
            pairs = SCENES[settings.name].make(settings, partial, jobs)
        facts = {"made_from": made_from, **_describe(partial, pairs)}
        save_json(facts, partial / SCENE_FILE)
        shutil.rmtree(place, ignore_errors=True)
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Scene(place, settings, facts)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return what is known of a scene; nothing if there is none."""
    file = folder / SCENE_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}


def digest_in(folder: Path) -> str | None:
    """Return the digest of the scene in a folder; None if there is none."""
    facts = read_facts(folder)
    return _digest(facts["made_from"]) if facts else None


def _made_from(settings: SceneSettings) -> dict[str, Any]:
    """Return all that the content of a scene depends on, in JSON types."""
    templates = settings.templates
    return {
        **{name: value for name, value in dataclasses.asdict(settings).items() if name != "templates"},
        "templates_sha256": templates and hashlib.sha256(templates.read_bytes()).hexdigest(),
        "spikeinterface": si.__version__,
        "recipe": RECIPE,
    }


def _digest(made_from: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]


def _describe(folder: Path, pairs: list[tuple]) -> dict[str, Any]:
    """Return what a scene holds; the share of synchronous spikes is counted, not that asked for."""
    recording, truth = si.load(folder / "recording"), si.load(folder / "truth")
    trains = {unit_id: truth.get_unit_spike_train(unit_id) for unit_id in truth.unit_ids}
    reach = int(SYNCHRONOUS_MS / 1000 * truth.sampling_frequency)
    together = sum(len(match_events(trains[a], trains[b], reach)) for a, b in pairs)
    spikes = sum(len(trains[unit_id]) for pair in pairs for unit_id in pair)
    return {
        "sampling_frequency": float(recording.sampling_frequency),
        "num_channels": recording.get_num_channels(),
        "num_samples": recording.get_num_samples(0),
        "num_true_units": len(truth.unit_ids),
        "num_true_spikes": len(truth.to_spike_vector()),
        "pairs": [[str(a), str(b)] for a, b in pairs],
        "synchronous_share": round(2 * together / spikes, 4) if pairs else None,
    }
