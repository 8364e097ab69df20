"""The speed of the sorter and its limits: a simulation is sorted, and each stage is timed.

The model is trained on the first seconds of the simulation; the rest is sorted, scored and timed. The traces
are on disk as 16-bit samples. The sorter is compared with its own network without gates, with the network of
Han & Wang (arXiv 2409.13067) applied as published, and with other sorters of SpikeInterface. Everything runs
on the CPU.

Conventions: seconds are wall-clock time for the whole tested part. The sorter and its stages are timed
several times, and the least time counts. Everything else runs once; the two other networks run on the
beginning of the tested part, and their seconds are scaled up.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikeinterface.core import BaseSorting, NumpySorting
from spikeinterface.sorters import installed_sorters

from spikewise.api import SortingResult, evaluate, sort
from spikewise.core.config import NetworkConfig, UnitsConfig
from spikewise.core.errors import SpikewiseError
from spikewise.core.files import check_output_file, save_json, writing
from spikewise.core.progress import ProgressCallback, silent
from spikewise.models.checkpoint import Model, save_model
from spikewise.models.esort import EsortNetwork, window_samples
from spikewise.output.store import MODEL_FILE, PROVENANCE_FILE, save_sorting
from spikewise.papers.esort.methods import RIVALS
from spikewise.papers.esort.runs import rival_parameters, run_in_folder
from spikewise.papers.speed.config import SpeedConfig
from spikewise.papers.speed.limits import (
    GIGA,
    Clock,
    Limits,
    MemoryTraces,
    Stage,
    Work,
    describe_machine,
    measure_limits,
    preprocessing_work,
    unfolded_probabilities,
)
from spikewise.papers.speed.memory import peak_gib
from spikewise.papers.speed.scene import (
    ON_CPU,
    Scene,
    earlier_seconds,
    gated_network,
    make_scene,
    open_model,
    train_model,
)
from spikewise.papers.speed.spikesift import NAME as SPIKESIFT
from spikewise.papers.speed.spikesift import run_spikesift
from spikewise.papers.speed.timed_detector import NETWORK_STAGES, TimedDetector
from spikewise.sorting.batch import detect_in_chunks
from spikewise.sorting.detector import Detector
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.groups import Preparation, prepare_groups
from spikewise.sorting.spikes import Spikes

SPEED_FILE, PICTURE_FILE = "speed.json", "speed.png"
STAGES = ("read", "prepare", "preprocess", *NETWORK_STAGES, "write")
_BLOCK_SAMPLES = 30000
"""Samples that are read and preprocessed at once."""
_DENSE_S = 10.0
"""Length on which the network runs without gates."""
_LEAST_S = 1e-6
"""Least seconds of preprocessing, whose time is a difference of two."""
_PAPER_BATCH = 1024
"""Windows in a batch: the batch size of Han & Wang."""


@dataclass(frozen=True)
class Subject:
    """A model and a scene to time it on."""

    scene: Scene
    model_file: Path
    model: Model
    repeats: int

    def detector(self, sparse: bool = True) -> Detector:
        """Return the detector of a sort."""
        part, model = self.model.groups[0], self.model
        sorting = dataclasses.replace(ON_CPU.sorting, sparse=sparse)
        return make_detector(
            part.network, part.thresholds, model.sampling_frequency, model.detection_config, sorting
        )

    def timed_detector(self) -> TimedDetector:
        """Return the same detector with a clock."""
        part, model = self.model.groups[0], self.model
        return TimedDetector(
            gated_network(model), part.thresholds, model.sampling_frequency, model.detection_config
        )


@dataclass(frozen=True)
class Whole:
    """The sort from the file of the recording to the files of the result."""

    seconds: float
    result: SortingResult
    peak_gib: float | None


@dataclass(frozen=True)
class NetworkTimes:
    """Times of the network on traces in memory: with gates, and without (scaled up from a part)."""

    seconds: float
    stages: dict[str, Stage]
    evaluated: dict[str, Any]
    dense_seconds: float
    accuracy_dense: float
    accuracy_fast: float


@dataclass(frozen=True)
class Measurements:
    """All that was measured on a scene."""

    training_s: float | None
    whole: Whole
    reading_stages: dict[str, Stage]
    network: NetworkTimes
    paper_s: float
    others: list[dict[str, Any]]

    def to_dict(self, truth: BaseSorting, limits: Limits) -> dict[str, Any]:
        """Return the measurements in JSON types."""
        network, whole = self.network, self.whole
        stages = self.reading_stages | network.stages
        best = min((other["seconds"] for other in self.others if other["seconds"] is not None), default=None)
        in_all = whole.seconds + (self.training_s or 0.0)
        return {
            "network_seconds": network.seconds,
            "end_to_end_seconds": in_all,
            "sorting_seconds": whole.seconds,
            "training_seconds": self.training_s,
            "dense_seconds": network.dense_seconds,
            "paper_form_seconds": self.paper_s,
            "paper_form_ratio": self.paper_s / network.seconds,
            "other_sorter_ratio": None if best is None else best / in_all,
            "peak_memory_gib": whole.peak_gib,
            "accuracy_dense": network.accuracy_dense,
            "accuracy_fast": network.accuracy_fast,
            "accuracy_sorted": evaluate(truth, whole.result.sorting).accuracy,
            "stages": {name: stages[name].to_dict(limits) for name in STAGES},
            "asked": network.evaluated,
            "limits": vars(limits),
            "others": self.others,
        }


def measure_speed(
    output: Path | str,
    config: SpeedConfig | None = None,
    progress: ProgressCallback = silent,
    units: UnitsConfig | None = None,
) -> dict[str, Any]:
    """Sort a simulation, time each stage, and write ``speed.json`` and ``speed.png``.

    Parameters
    ----------
    output : path
        Folder; simulation and model in it are used again if the settings are the same.
    config : SpeedConfig, optional
    progress : callable
        Called with the progress.
    units : UnitsConfig, optional
        How the units are learnt.

    Returns
    -------
    dict
        What ``speed.json`` holds, in JSON types.

    Raises
    ------
    SpikewiseError
        If a setting, the template file or the model cannot be used, or the folder cannot be written.
    Interrupted
        If training was interrupted; the simulation is kept.
    """
    from spikewise.papers.figures import require_matplotlib
    from spikewise.papers.speed.figure import draw_speed

    require_matplotlib()
    output, config = Path(output), config or SpeedConfig()
    if config.model is not None:
        open_model(Path(config.model))  # refuse a wrong model before anything is made
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    check_output_file(output / SPEED_FILE, overwrite=True, ending=".json")
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    step = _steps(progress, 6 + len(config.against))
    step("simulation")
    scene = make_scene(output, config)
    step("training")
    model_file, training_s = train_model(output, scene, config, units or UnitsConfig(), progress)
    if training_s is None and config.model is None:
        training_s = earlier_seconds(output)
    subject = Subject(scene, model_file, open_model(model_file), config.repeats)
    step("sorting from file to file")
    whole = _sort_whole(subject)
    step("stages")
    traces, reading_stages = _reading_stages(subject, whole.result)
    network = _time_network(subject, traces)
    step("network of the paper")
    paper_s = _paper_seconds(subject, traces, config.paper_s)
    others = []
    for name in config.against:
        step(name)
        others.append(_run_other(name, scene, config.seed, config.peers_python))
    step("limits of this machine")
    limits = measure_limits()
    step("done")
    measured = Measurements(training_s, whole, reading_stages, network, paper_s, others)
    results = {
        **measured.to_dict(scene.truth, limits),
        "load": load,
        **_describe_run(scene, config),
    }
    save_json(results, output / SPEED_FILE)
    draw_speed(results, output / PICTURE_FILE)
    return results


def _sort_whole(subject: Subject) -> Whole:
    """Time ``spikewise.sort`` from the file to the written result; measure its memory in a new process."""
    scene, taken = subject.scene, []
    one_second = scene.recording.frame_slice(0, round(scene.recording.get_sampling_frequency()))
    sort(one_second, model=subject.model, config=ON_CPU)  # compiles the loops that are not compiled yet
    with tempfile.TemporaryDirectory(prefix=".sort-", dir=scene.folder.parent) as folder:
        for repeat in range(subject.repeats):
            started = time.perf_counter()
            result = sort(
                scene.recording, model=subject.model_file, output=Path(folder) / f"{repeat}", config=ON_CPU
            )
            taken.append(time.perf_counter() - started)
        return Whole(min(taken), result, peak_gib(scene, subject.model_file, Path(folder) / "alone"))


def _reading_stages(subject: Subject, result: SortingResult) -> tuple[MemoryTraces, dict[str, Stage]]:
    """Return the preprocessed traces, and the stages before and after the network."""
    raw, model = subject.scene.recording, subject.model
    num_samples, num_channels = raw.get_num_samples(0), raw.get_num_channels()
    by_channel = np.empty((num_channels, num_samples), np.float32)
    samples = np.empty((_BLOCK_SAMPLES, num_channels), raw.get_dtype())
    taken = []
    for _ in range(subject.repeats):
        clock = Clock()
        with clock("prepare"):
            (group,) = prepare_groups(raw, Preparation.of(ON_CPU, model))
        for start in range(0, num_samples, _BLOCK_SAMPLES):
            stop = min(start + _BLOCK_SAMPLES, num_samples)
            with clock("read"):
                samples[: stop - start] = raw.get_traces(0, start, stop)
            with clock("preprocess"):
                traces = group.preprocessed.recording.get_traces(0, start, stop)
            by_channel[:, start:stop] = traces.T
        with tempfile.TemporaryDirectory(prefix=".write-", dir=subject.scene.folder.parent) as folder:
            with clock("write"):
                save_sorting(result.sorting, Path(folder))
                save_json(result.provenance, Path(folder) / PROVENANCE_FILE)
                save_model(result.model, Path(folder) / MODEL_FILE)
            written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        taken.append(clock.seconds)
    least = {name: min(seconds[name] for seconds in taken) for name in taken[0]}
    has_reference = any(step.startswith("common median reference over") for step in group.preprocessed.steps)
    conditioning = preprocessing_work(
        num_samples, num_channels, model.preprocessing_config.bandpass, has_reference
    )
    return MemoryTraces(by_channel, model.sampling_frequency), {
        "prepare": Stage(least["prepare"]),
        "read": Stage(least["read"], Work(0, 4 * num_samples * num_channels / GIGA)),
        "preprocess": Stage(max(least["preprocess"] - least["read"], _LEAST_S), conditioning),
        "write": Stage(least["write"], Work(0, written / GIGA)),
    }


def _time_network(subject: Subject, traces: MemoryTraces) -> NetworkTimes:
    """Time the network on traces in memory: as in a sort, stage by stage, and without gates."""
    fast = subject.detector()
    taken, staged = [], []
    for _ in range(subject.repeats):
        taken.append(_detect(fast, traces)[1])
        timed = subject.timed_detector()
        spikes, _ = _detect(timed, traces)
        staged.append(timed.stage_seconds())
    work = timed.stage_work(len(spikes))
    beginning = traces.first(round(_DENSE_S * traces.sampling_frequency))
    truth = subject.scene.truth.frame_slice(0, beginning.num_samples(0))
    dense_spikes, dense_s = _detect(subject.detector(sparse=False), beginning)
    fast_spikes, _ = _detect(fast, beginning)
    return NetworkTimes(
        min(taken),
        {name: Stage(min(part[name] for part in staged), work[name]) for name in NETWORK_STAGES},
        timed.evaluated(),
        dense_s * traces.num_samples(0) / beginning.num_samples(0),
        evaluate(truth, _as_sorting(dense_spikes, subject.model)).accuracy,
        evaluate(truth, _as_sorting(fast_spikes, subject.model)).accuracy,
    )


def _detect(detector: Detector, traces: MemoryTraces) -> tuple[Spikes, float]:
    started = time.perf_counter()
    (found,) = detect_in_chunks(detector, traces, ON_CPU.sorting.chunk_s)
    return found, time.perf_counter() - started


def _as_sorting(spikes: Spikes, model: Model) -> NumpySorting:
    return NumpySorting.from_samples_and_labels(
        [spikes.sample_index], [spikes.unit_index], model.sampling_frequency, np.arange(len(model.unit_ids))
    )


def _paper_seconds(subject: Subject, traces: MemoryTraces, paper_s: float) -> float:
    """Return the seconds of the network of the paper, without those of finding its peaks.

    A window is cut for each sample. The weights are random, since they do not change the time.
    """
    sizes, rate = NetworkConfig(), traces.sampling_frequency
    network = EsortNetwork(
        traces.num_channels,
        len(subject.model.unit_ids),
        window_samples(sizes, rate),
        sizes.temporal_features,
        sizes.spatial_features,
    ).eval()
    part = torch.from_numpy(traces.by_channel[:, : round(paper_s * rate)].T.copy(order="C"))
    unfolded_probabilities(network, part[: 2 * network.window_samples], _PAPER_BATCH)  # warms up
    started = time.perf_counter()
    probabilities = unfolded_probabilities(network, part, _PAPER_BATCH)
    return (time.perf_counter() - started) * traces.num_samples(0) / len(probabilities)


def _run_other(name: str, scene: Scene, seed: int, peers_python: str | None = None) -> dict[str, Any]:
    """Run another sorter on the tested part; return seconds and accuracy, or the reason for their absence."""
    if name == SPIKESIFT:
        return _run_spikesift(scene, peers_python or sys.executable)
    _, sorter, _ = RIVALS.get(name, (name, name, {}))
    row = {"name": name, "seconds": None, "accuracy": None, "parameters": None, "reason": None}
    if sorter not in installed_sorters():
        return row | {"reason": f"{sorter} is not installed"}
    parameters = rival_parameters(name, scene.recording, seed) if name in RIVALS else {}
    try:
        with tempfile.TemporaryDirectory(prefix=".sorter-", dir=scene.folder.parent) as folder:
            started = time.perf_counter()
            found = run_in_folder(sorter, scene.recording, Path(folder), parameters, seed)
            seconds = time.perf_counter() - started
    except SpikewiseError as error:
        return row | {"reason": str(error), "parameters": parameters}
    accuracy = evaluate(scene.truth, found).accuracy
    return row | {"seconds": seconds, "accuracy": accuracy, "parameters": parameters}


def _run_spikesift(scene: Scene, python: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(("seconds", "accuracy", "reason"))
    row |= {"name": SPIKESIFT, "parameters": {}}
    try:
        with tempfile.TemporaryDirectory(prefix=".sorter-", dir=scene.folder.parent) as folder:
            found, seconds = run_spikesift(python, scene.whole[0], scene.start, Path(folder))
    except SpikewiseError as error:
        return row | {"reason": str(error)}
    return row | {"seconds": seconds, "accuracy": evaluate(scene.truth, found).accuracy}


def _describe_run(scene: Scene, config: SpeedConfig) -> dict[str, Any]:
    """Return the facts about the scene, the machine and the settings."""
    recording = scene.recording
    return {
        "scene": {
            "channels": recording.get_num_channels(),
            "units": scene.truth.get_num_units(),
            "spikes": int(scene.truth.count_total_num_spikes()),
            "duration_s": float(recording.get_total_duration()),
            "sampling_frequency": float(recording.get_sampling_frequency()),
        },
        "threads": torch.get_num_threads(),
        "machine": describe_machine(),
        "settings": config.to_dict(),
    }


def _steps(progress: ProgressCallback, total: int) -> Callable[[str], None]:
    """Return a function that reports the beginning of a step."""
    numbers = itertools.count()

    def begin(name: str) -> None:
        progress(name, 0, 1, f"step {next(numbers) + 1} of {total + 1}")

    return begin
