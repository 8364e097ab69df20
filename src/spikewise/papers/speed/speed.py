"""How fast the sorter is, and what bounds it: a simulation is sorted, and each stage is timed.

The first seconds of the simulation train, the others are sorted, judged and timed; the traces lie on disk as
16-bit samples. Beside the sorter stand its own network without gates, the network of Han & Wang (arXiv
2409.13067) applied as published, and other sorters of SpikeInterface. Everything runs on the CPU.

Conventions: seconds are those of a clock on the wall and of the whole tested stretch. The sorter and its
stages are timed several times, and the least counts; all else runs once, the two other networks on a part of
the stretch, from which their seconds are scaled up.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikeinterface.core import NumpySorting
from spikeinterface.sorters import installed_sorters

from spikewise.api import SortingResult, evaluate, load_recording, sort
from spikewise.core.config import NetworkConfig, UnitsConfig
from spikewise.core.errors import SpikewiseError
from spikewise.core.files import check_output_file, save_json, writing
from spikewise.core.progress import ProgressCallback, silent
from spikewise.models.checkpoint import Model, save_model
from spikewise.models.esort import EsortNetwork, window_samples
from spikewise.output.store import MODEL_FILE, PROVENANCE_FILE, save_sorting
from spikewise.papers.esort.plan import RIVALS
from spikewise.papers.esort.runs import quietly, rival_parameters
from spikewise.papers.speed.limits import (
    GIGA,
    NETWORK_STAGES,
    Clock,
    MemoryTraces,
    Stage,
    TimedDetector,
    Work,
    describe_machine,
    measure_limits,
    preprocessing_work,
    unfolded_probabilities,
)
from spikewise.papers.speed.scene import (
    ON_CPU,
    Scene,
    SpeedConfig,
    gated_network,
    make_scene,
    open_model,
    train_model,
)
from spikewise.sorting.batch import detect_in_chunks
from spikewise.sorting.detect import Detector, Spikes, make_detector
from spikewise.sorting.groups import prepare_groups

SPEED_FILE, PICTURE_FILE = "speed.json", "speed.png"
STAGES = ("read", "prepare", "preprocess", *NETWORK_STAGES, "write")
_BLOCK_SAMPLES = 30000
_DENSE_S, _LEAST_S = 10.0, 1e-6
_PAPER_BATCH = 1024


@dataclass(frozen=True)
class Subject:
    """What is timed, and how often: a model on a scene."""

    scene: Scene
    model_file: Path
    model: Model
    repeats: int

    def detector(self, sparse: bool = True) -> Detector:
        """Return what finds spikes, as a sort has it."""
        part, model = self.model.groups[0], self.model
        sorting = dataclasses.replace(ON_CPU.sorting, sparse=sparse)
        return make_detector(
            part.network, part.thresholds, model.sampling_frequency, model.detection_config, sorting
        )

    def timed_detector(self) -> TimedDetector:
        """Return the same with a clock."""
        part, model = self.model.groups[0], self.model
        return TimedDetector(
            gated_network(model), part.thresholds, model.sampling_frequency, model.detection_config
        )


@dataclass(frozen=True)
class Whole:
    """The sort from file to file."""

    seconds: float
    result: SortingResult
    peak_gib: float | None


@dataclass(frozen=True)
class NetworkTimes:
    """The network on traces in memory: with its gates, and dense, scaled up from the first seconds."""

    seconds: float
    stages: dict[str, Stage]
    asked: dict[str, Any]
    dense_seconds: float
    accuracy_dense: float
    accuracy_fast: float


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
        Folder; simulation and model in it are used again where the settings are the same.
    config : SpeedConfig, optional
    progress : callable
        Told what was done.
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
        open_model(Path(config.model))  # a wrong one is told before anything is made
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    check_output_file(output / SPEED_FILE, overwrite=True, ending=".json")
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    step = _steps(progress, 6 + len(config.against))
    step("simulation")
    scene = make_scene(output, config)
    step("training")
    model_file, training_s = train_model(output, scene, config, units or UnitsConfig(), progress)
    subject = Subject(scene, model_file, open_model(model_file), config.repeats)
    step("sorting from file to file")
    whole = _sort_whole(subject)
    step("stages")
    traces, stages = _reading_stages(subject, whole.result)
    network = _time_network(subject, traces)
    step("network of the paper")
    paper_s = _paper_seconds(subject, traces, config.paper_s)
    others = []
    for name in config.against:
        step(name)
        others.append(_run_other(name, scene, config.seed))
    step("limits of this machine")
    limits = measure_limits()
    step("done")
    best = min((other["seconds"] for other in others if other["seconds"] is not None), default=None)
    results = {
        "network_seconds": network.seconds,
        "end_to_end_seconds": whole.seconds,
        "training_seconds": training_s,
        "dense_seconds": network.dense_seconds,
        "paper_form_seconds": paper_s,
        "paper_form_ratio": paper_s / network.seconds,
        "other_sorter_ratio": None if best is None else best / whole.seconds,
        "peak_memory_gib": whole.peak_gib,
        "accuracy_dense": network.accuracy_dense,
        "accuracy_fast": network.accuracy_fast,
        "accuracy_sorted": evaluate(scene.truth, whole.result.sorting).accuracy,
        "stages": {name: (stages | network.stages)[name].told(limits) for name in STAGES},
        "asked": network.asked,
        "limits": vars(limits),
        "others": others,
        "load": load,
        **_circumstances(scene, config),
    }
    save_json(results, output / SPEED_FILE)
    draw_speed(results, output / PICTURE_FILE)
    return results


def _sort_whole(subject: Subject) -> Whole:
    """Time ``spikewise.sort`` from the file to the written result; its memory is that of a new process."""
    scene, taken = subject.scene, []
    one_second = scene.recording.frame_slice(0, round(scene.recording.get_sampling_frequency()))
    sort(one_second, model=subject.model, config=ON_CPU)  # compiles what is not yet compiled
    with tempfile.TemporaryDirectory(prefix=".sort-", dir=scene.folder.parent) as place:
        for repeat in range(subject.repeats):
            started = time.perf_counter()
            result = sort(
                scene.recording, model=subject.model_file, output=Path(place) / f"{repeat}", config=ON_CPU
            )
            taken.append(time.perf_counter() - started)
        return Whole(min(taken), result, _peak_gib(subject, Path(place) / "alone"))


def _peak_gib(subject: Subject, output: Path) -> float | None:
    """Return the largest memory of a process that does nothing but sort; None where it cannot be told."""
    call = "import sys; from spikewise.papers.speed.speed import sort_alone; sort_alone(*sys.argv[1:])"
    scene = subject.scene
    given = (scene.folder / "recording", scene.start, subject.model_file, output)
    done = subprocess.run([sys.executable, "-c", call, *map(str, given)], capture_output=True, text=True)
    if done.returncode:
        raise SpikewiseError(
            f"sorting in a process of its own failed: {(done.stderr.splitlines() or [''])[-1]}",
            "a process that ends well",
            "sort a shorter stretch with --duration-s if the memory was not enough",
        )
    return json.loads(done.stdout.splitlines()[-1])


def sort_alone(recording_folder: str, start: str, model_file: str, output: str) -> None:
    """Sort a stretch from `start` on, and print the largest memory of this process so far, in GiB.

    On Linux the resource usage of a process begins with that of its parent, so the kernel is asked for the
    high-water mark of the process's own memory instead.
    """
    recording = load_recording(recording_folder)
    stretch = recording.frame_slice(int(start), recording.get_num_samples(0))
    sort(stretch, model=model_file, output=output, config=ON_CPU)
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        print(int(line.split()[1]) / 2**20)
    elif sys.platform == "win32":
        print("null")
    else:
        import resource

        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30)


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
            (group,) = prepare_groups(raw, ON_CPU, model)
        for start in range(0, num_samples, _BLOCK_SAMPLES):
            stop = min(start + _BLOCK_SAMPLES, num_samples)
            with clock("read"):
                samples[: stop - start] = raw.get_traces(0, start, stop)
            with clock("preprocess"):
                traces = group.preprocessed.recording.get_traces(0, start, stop)
            by_channel[:, start:stop] = traces.T
        with tempfile.TemporaryDirectory(prefix=".write-", dir=subject.scene.folder.parent) as place:
            with clock("write"):
                save_sorting(result.sorting, Path(place))
                save_json(result.provenance, Path(place) / PROVENANCE_FILE)
                save_model(result.model, Path(place) / MODEL_FILE)
            written = sum(path.stat().st_size for path in Path(place).rglob("*") if path.is_file())
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
    """Time the network on traces in memory: as it is, stage by stage, and without gates."""
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
        timed.asked(),
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
    """Return how long the network of the paper takes, a window cut out for each sample, without its peaks.

    Its weights are drawn at random, since they do not change the time.
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


def _run_other(name: str, scene: Scene, seed: int) -> dict[str, Any]:
    """Run another sorter on the tested stretch; return seconds and accuracy, or why there are none."""
    _, sorter, _ = RIVALS.get(name, (name, name, {}))
    told = {"name": name, "seconds": None, "accuracy": None, "parameters": None, "reason": None}
    if sorter not in installed_sorters():
        return told | {"reason": f"{sorter} is not installed"}
    parameters = rival_parameters(name, scene.recording, seed) if name in RIVALS else {}
    try:
        with tempfile.TemporaryDirectory(prefix=".sorter-", dir=scene.folder.parent) as place:
            started = time.perf_counter()
            found = quietly(sorter, scene.recording, Path(place), parameters, seed)
            seconds = time.perf_counter() - started
    except SpikewiseError as error:
        return told | {"reason": str(error), "parameters": parameters}
    accuracy = evaluate(scene.truth, found).accuracy
    return told | {"seconds": seconds, "accuracy": accuracy, "parameters": parameters}


def _circumstances(scene: Scene, config: SpeedConfig) -> dict[str, Any]:
    """Return what was sorted, and where."""
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
    """Return what tells that a step begins, and with it that those before are done."""
    begun = itertools.count()

    def begin(name: str) -> None:
        progress("benchmark", next(begun), total, name)

    return begin
