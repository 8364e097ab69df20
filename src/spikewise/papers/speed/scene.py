"""What the speed benchmark runs on: a simulation with its truth, and a model that was trained on its start.

Both are kept in the folder of the benchmark, each with what it was made of, and made again where that
differs.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import probeinterface
import spikeinterface
from spikeinterface.core import BaseRecording, BaseSorting
from spikeinterface.sorters import available_sorters

from spikewise.api import load_recording, simulate, train
from spikewise.core.config import (
    Config,
    LabelsConfig,
    SimulationConfig,
    SortingConfig,
    TrainingConfig,
    UnitsConfig,
)
from spikewise.core.errors import Interrupted, SettingError
from spikewise.core.files import check_output_file, save_json, writing
from spikewise.core.progress import ProgressCallback
from spikewise.core.settings import Settings, setting
from spikewise.core.untrusted import read_json
from spikewise.core.version import __version__
from spikewise.data.recordings.probes import load_probe
from spikewise.data.simulation.mearec import load_mearec_templates
from spikewise.data.simulation.simulate import save_simulation
from spikewise.models.checkpoint import Model, load_model, save_model
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.output.store import MODEL_FILE
from spikewise.papers.cnn1d.folder import hash_of
from spikewise.papers.esort.plan import RIVALS
from spikewise.sorting.detect import SparseDetector

PROBE = "neuropixels-1.0"
SCENE, SIMULATION_FILE, NOTE_FILE, PROBE_FILE = "scene", "simulation.json", "model.json", "probe.json"
ON_CPU = Config(sorting=SortingConfig(device="cpu", report=False))


@dataclass(frozen=True)
class SpeedConfig(Settings):
    """What is measured."""

    channels: int | None = setting(
        None,
        "Channels: the first so many of a Neuropixels 1.0; default: 384, or those of the template file",
        minimum=1,
    )
    units: int = setting(200, "Units", minimum=1, maximum=10000)
    duration_s: float = setting(50.0, "Length of what is sorted", unit="s", minimum=1.0, maximum=1e5)
    label_s: float = setting(30.0, "Length of what is learnt from", unit="s", minimum=1.0, maximum=1e5)
    labels_per_unit: int = setting(15, "Labelled spikes of each unit", minimum=1)
    templates: str | None = setting(None, "MEArec template file; default: waveforms of a generator")
    excitatory_fraction: float = setting(
        0.8,
        "Fraction of the units that are excitatory, of which a file may have few",
        minimum=0.0,
        maximum=1.0,
    )
    against: tuple[str, ...] = setting((), "Other sorters, by their names in SpikeInterface")
    paper_s: float = setting(0.5, "Length of what the network of the paper is run on", unit="s", minimum=0.01)
    repeats: int = setting(3, "How often each stage is timed", minimum=1, maximum=100)
    model: str | None = setting(None, "A model of the same simulation; default: one is trained")
    seed: int = setting(0, "Seed of everything random", minimum=0, maximum=2**31 - 1)

    def _check_together(self) -> None:
        allowed = sorted({*available_sorters(), *RIVALS})
        unknown = [name for name in self.against if name not in allowed]
        if unknown:
            raise SettingError(
                f"there is no sorter {unknown[0]!r}", f"sorters are {', '.join(allowed)}", "correct its name"
            )


@dataclass(frozen=True)
class Scene:
    """A simulation, and the stretch of it that is tested.

    Attributes
    ----------
    folder : Path
    whole : (BaseRecording, BaseSorting)
        All of it, with the true spikes.
    recording, truth
        The tested stretch, from sample `start` on.
    start : int
    """

    folder: Path
    whole: tuple[BaseRecording, BaseSorting]
    recording: BaseRecording
    truth: BaseSorting
    start: int


def make_scene(output: Path, config: SpeedConfig) -> Scene:
    """Return the simulation, which is made at the first call and whenever its settings have changed."""
    folder = output / SCENE
    simulation = SimulationConfig(
        num_units=config.units,
        duration_s=config.label_s + config.duration_s,
        seed=config.seed,
        excitatory_fraction=config.excitatory_fraction,
        noise_uV=10.0,
        min_amplitude_uV=40.0,
        max_amplitude_uV=300.0,
        **_source(output, config),
    )
    wanted = {"settings": simulation.to_dict(), "version": __version__}
    if config.templates is not None:
        wanted["templates_sha256"] = hash_of(Path(config.templates))
    there = _read_json(folder / SIMULATION_FILE)
    found = {name: there.get(name) for name in wanted} | {
        "version": there.get("versions", {}).get("spikewise")
    }
    if found != wanted:
        save_simulation(simulate(config=simulation), folder, overwrite=folder.exists())
    recording, truth = load_recording(folder / "recording"), spikeinterface.load(folder / "truth")
    start, stop = round(config.label_s * recording.get_sampling_frequency()), recording.get_num_samples(0)
    tested = recording.frame_slice(start, stop), truth.frame_slice(start, stop)
    return Scene(folder, (recording, truth), *tested, start)


def _source(output: Path, config: SpeedConfig) -> dict[str, Any]:
    """Return where waveforms and channels come from; the file of a part of a probe is written."""
    if config.templates is not None:
        there = load_mearec_templates(config.templates).probe.get_contact_count()
        if config.channels not in (None, there):
            raise SettingError(
                f"{config.channels} channels were asked for",
                f"the template file {config.templates} has {there}",
                "leave out channels, or give another template file",
            )
        return {"source": "mearec", "templates": config.templates}
    probe = load_probe(PROBE).probes[0]
    most = probe.get_contact_count()
    if config.channels in (None, most):
        return {"probe": PROBE}
    if config.channels > most:
        raise SettingError(
            f"{config.channels} channels were asked for",
            f"1 to {most}, those of a {PROBE}",
            "ask for fewer, or give a template file of a larger probe with templates",
        )
    path = output.absolute() / PROBE_FILE
    part = probe.get_slice(np.arange(config.channels))
    part.set_device_channel_indices(np.arange(config.channels))
    with writing(path):
        probeinterface.write_probeinterface(path, part)
    return {"probe": str(path)}


def train_model(
    output: Path, scene: Scene, config: SpeedConfig, units: UnitsConfig, progress: ProgressCallback
) -> tuple[Path, float | None]:
    """Return the file of the model and how long training took; None where it was there."""
    if config.model is not None:
        return Path(config.model), None
    path, note = output / MODEL_FILE, output / NOTE_FILE
    learning = Config(
        labels=LabelsConfig((0.0, config.label_s), config.labels_per_unit),
        units=units,
        training=TrainingConfig(seed=config.seed),
        sorting=ON_CPU.sorting,
    )
    wanted = {"scene": _read_json(scene.folder / SIMULATION_FILE), "learning": learning.to_dict()}
    there = _read_json(note)
    check_output_file(path, overwrite=bool(there), ending=".safetensors")
    if path.exists() and there == {**wanted, "hash": load_model(path).hash()}:
        return path, None
    started = time.perf_counter()
    model = train(*scene.whole, config=learning, progress=progress)
    if model.facts["interrupted"]:
        raise Interrupted(
            "training was interrupted", f"the simulation is kept in {scene.folder}", "give the command again"
        )
    seconds = time.perf_counter() - started
    save_json({**wanted, "hash": model.hash()}, note)
    save_model(model, path)
    return path, seconds


def _read_json(path: Path) -> dict[str, Any]:
    """Return what a JSON file holds; nothing where there is none, or what is there is no such file."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def open_model(path: Path) -> Model:
    """Load a model that has gates.

    Raises
    ------
    CheckpointError
        If it cannot be loaded.
    SettingError
        If it has several groups or another design.
    """
    model = load_model(path)
    gated_network(model)
    return model


def gated_network(model: Model) -> NeighbourhoodNetwork:
    """Return the network of a model.

    Raises
    ------
    SettingError
        If the model has several groups or another design.
    """
    network = SparseDetector.network_with_gates(
        model.groups[0].network, model.sampling_frequency, model.detection_config
    )
    if network is None or len(model.groups) > 1:
        raise SettingError(
            f"the model has the design {model.network_config.design} and {len(model.groups)} groups",
            "a model of the design neighbourhood, of one group of channels",
            "train one with spikewise train, or leave the model out",
        )
    return network
