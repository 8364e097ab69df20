"""The simulation of the speed benchmark, and the model that is trained on its first part.

Both stay in the folder of the benchmark, each with its settings; they are made again if the settings differ.
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
from spikewise.core.untrusted import read_json
from spikewise.core.version import __version__
from spikewise.data.recordings.probes import load_probe
from spikewise.data.simulation.mearec import load_mearec_templates
from spikewise.data.simulation.saving import save_simulation
from spikewise.models.checkpoint import Model, load_model, save_model
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.output.store import MODEL_FILE
from spikewise.papers.cnn1d.folder import hash_of
from spikewise.papers.speed.config import SpeedConfig
from spikewise.sorting.sparse_detector import network_with_gates

PROBE = "neuropixels-1.0"
SCENE, SIMULATION_FILE, NOTE_FILE, PROBE_FILE = "scene", "simulation.json", "model.json", "probe.json"
ON_CPU = Config(sorting=SortingConfig(device="cpu", report=False))


@dataclass(frozen=True)
class Scene:
    """A simulation, and the part of it that is tested.

    Attributes
    ----------
    folder : Path
    whole : (BaseRecording, BaseSorting)
        The whole simulation, with its true spikes.
    recording, truth
        The tested part, from sample `start` on.
    start : int
    """

    folder: Path
    whole: tuple[BaseRecording, BaseSorting]
    recording: BaseRecording
    truth: BaseSorting
    start: int


def make_scene(output: Path, config: SpeedConfig) -> Scene:
    """Return the simulation; make it if the folder holds none with these settings."""
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
    expected = {"settings": simulation.to_dict(), "version": __version__}
    if config.templates is not None:
        expected["templates_sha256"] = hash_of(Path(config.templates))
    saved = _read_json(folder / SIMULATION_FILE)
    found = {name: saved.get(name) for name in expected} | {
        "version": saved.get("versions", {}).get("spikewise")
    }
    if found != expected:
        save_simulation(simulate(config=simulation), folder, overwrite=folder.exists())
    recording, truth = load_recording(folder / "recording"), spikeinterface.load(folder / "truth")
    start, stop = round(config.label_s * recording.get_sampling_frequency()), recording.get_num_samples(0)
    tested = recording.frame_slice(start, stop), truth.frame_slice(start, stop)
    return Scene(folder, (recording, truth), *tested, start)


def _source(output: Path, config: SpeedConfig) -> dict[str, Any]:
    """Return the settings of waveforms and channels; write the file of a part of a probe."""
    if config.templates is not None:
        num_contacts = load_mearec_templates(config.templates).probe.get_contact_count()
        if config.channels not in (None, num_contacts):
            raise SettingError(
                f"{config.channels} channels were requested",
                f"the template file {config.templates} has {num_contacts}",
                "leave out channels, or give another template file",
            )
        return {"source": "mearec", "templates": config.templates}
    probe = load_probe(PROBE).probes[0]
    most = probe.get_contact_count()
    if config.channels in (None, most):
        return {"probe": PROBE}
    if config.channels > most:
        raise SettingError(
            f"{config.channels} channels were requested",
            f"1 to {most}, those of a {PROBE}",
            "request fewer, or give a template file of a larger probe with templates",
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
    """Return the file of the model, and the seconds of training; None if the model was there already."""
    if config.model is not None:
        return Path(config.model), None
    path, note = output / MODEL_FILE, output / NOTE_FILE
    learning = Config(
        labels=LabelsConfig((0.0, config.label_s), config.labels_per_unit),
        units=units,
        training=TrainingConfig(seed=config.seed),
        sorting=ON_CPU.sorting,
    )
    settings = {"scene": _read_json(scene.folder / SIMULATION_FILE), "learning": learning.to_dict()}
    saved = _read_json(note)
    saved.pop("seconds", None)
    check_output_file(path, overwrite=bool(saved), ending=".safetensors")
    if path.exists() and saved == {**settings, "hash": load_model(path).hash()}:
        return path, None
    started = time.perf_counter()
    model = train(*scene.whole, config=learning, progress=progress)
    if model.facts["interrupted"]:
        raise Interrupted(
            "training was interrupted", f"the simulation is kept in {scene.folder}", "give the command again"
        )
    seconds = time.perf_counter() - started
    save_json({**settings, "hash": model.hash(), "seconds": round(seconds, 3)}, note)
    save_model(model, path)
    return path, seconds


def earlier_seconds(output: Path) -> float | None:
    """Return the seconds that training took when the model in a folder was made; None if nobody knows."""
    seconds = _read_json(output / NOTE_FILE).get("seconds")
    return float(seconds) if isinstance(seconds, int | float) else None


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if the file is missing or holds something else."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def open_model(path: Path) -> Model:
    """Load a model with gates.

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
    network = network_with_gates(model.groups[0].network, model.sampling_frequency, model.detection_config)
    if network is None or len(model.groups) > 1:
        raise SettingError(
            f"the model has the design {model.network_config.design} and {len(model.groups)} groups",
            "a model of the design neighbourhood, of one group of channels",
            "train one with spikewise train, or leave the model out",
        )
    return network
