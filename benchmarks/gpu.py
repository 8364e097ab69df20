"""Speed, accuracy and memory of sorting on a GPU. No access to the internet is needed.

    python benchmarks/gpu.py --output bench/gpu [--device auto] [--units 200] [--duration-s 50]

A simulation is made and a model trained on its first part, on the CPU; both stay in the folder and are used
again. The rest is sorted on the device, from traces in its memory and from 16-bit samples in the memory of
the host, in float32 and bfloat16; on NVIDIA cards once more with as little memory as a small card has. The
command prints a table and writes ``gpu.json``. ``--device cpu`` runs the same code without a card, to try it
on a few channels; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikeinterface.core import NumpyRecording, NumpySorting

import spikewise
from spikewise.core.config import Config, SortingConfig, UnitsConfig
from spikewise.core.devices import choose_device
from spikewise.core.errors import SettingError, SpikewiseError
from spikewise.core.files import save_json, writing
from spikewise.core.progress import silent
from spikewise.data.recordings.device_reader import DeviceReader
from spikewise.models.checkpoint import Model
from spikewise.papers.speed.config import SpeedConfig
from spikewise.papers.speed.limits import describe_machine
from spikewise.papers.speed.scene import Scene, make_scene, open_model, train_model
from spikewise.sorting.batch import detect_in_chunks
from spikewise.sorting.detector import Detector
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.device_detector import DeviceDetector
from spikewise.sorting.groups import Preparation, prepare_groups
from spikewise.sorting.spikes import Spikes

AIMS = {"device memory, bfloat16": 0.13, "host memory, bfloat16": 0.5}
"""Aims in seconds, for 50 s of 384 channels and 200 units at 32 kHz."""
AIMED_AT = (384, 200, 50.0)
PRECISIONS = ("float32", "bfloat16")
CHUNK_S = SortingConfig().chunk_s
GIB = 2**30
NEAR = 2
"""Largest distance in samples of two spikes that count as the same."""


class DeviceMemoryTraces:
    """Preprocessed traces (num_channels, num_samples) in the memory of a device."""

    num_segments = 1

    def __init__(self, by_channel: torch.Tensor, sampling_frequency: float):
        self.by_channel, self.sampling_frequency = by_channel, sampling_frequency
        self.num_channels = len(by_channel)

    def num_samples(self, segment_index: int) -> int:
        return self.by_channel.shape[1]

    def read(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        return self.read_on_device(segment_index, start, stop, stop).cpu().numpy().T

    def read_on_device(self, segment_index: int, start: int, stop: int, until: int) -> torch.Tensor:
        low, high = max(0, start), min(stop, self.by_channel.shape[1])
        if (low, high) == (start, stop):
            return self.by_channel[:, start:stop]
        traces = self.by_channel.new_zeros(self.num_channels, stop - start)
        if low < high:
            traces[:, low - start : high - start] = self.by_channel[:, low:high]
        return traces

    def settle(self) -> None:
        pass  # nothing is read ahead

    def forget(self) -> None:
        pass  # the traces are all there is


@dataclass(frozen=True)
class Bench:
    """The device, and the model and scene that it is measured on."""

    device: torch.device
    model: Model
    scene: Scene
    raw: NumpyRecording
    repeats: int

    def detector(self, precision: str) -> DeviceDetector:
        part, model = self.model.groups[0], self.model
        given = (part.network, part.thresholds, model.sampling_frequency, model.detection_config)
        return DeviceDetector(*given, self.device, precision)

    def reader(self, damage: str) -> DeviceReader:
        """Return a new reader of the 16-bit samples in the host's memory."""
        config = Config(sorting=SortingConfig(device="cpu", damage=damage))
        (group,) = prepare_groups(self.raw, Preparation.of(config, self.model))
        made = group.preprocessed
        return DeviceReader(made.recording, self.device, repaired=made.repaired)

    def seconds(self, run: Callable[[], Any]) -> dict[str, float]:
        """Time a call, waiting for the device; a first call warms up."""
        run()
        taken = []
        for _ in range(self.repeats):
            synchronise(self.device)
            started = time.perf_counter()
            run()
            synchronise(self.device)
            taken.append(time.perf_counter() - started)
        return {"median": statistics.median(taken), "least": min(taken), "most": max(taken)}

    def accuracy(self, spikes: Spikes) -> float:
        ids = np.array(self.model.unit_ids)
        found = NumpySorting.from_samples_and_labels(
            [spikes.sample_index], [ids[spikes.unit_index]], self.model.sampling_frequency, ids
        )
        return spikewise.evaluate(self.scene.truth, found).accuracy


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def find(detector: Detector, traces: Any) -> Spikes:
    return detect_in_chunks(detector, traces, CHUNK_S)[0]


def device_of(name: str) -> torch.device:
    """Return the device; raise if it is not available."""
    if name == "auto":
        name = "mps" if torch.backends.mps.is_available() else "cuda"
    try:
        return choose_device(name)
    except SettingError as error:
        raise SettingError(
            f"the device {name!r} is not available here",
            "an NVIDIA card that PyTorch can use, or the GPU of Apple silicon",
            "install the driver and a PyTorch with CUDA, or try the code with --device cpu --channels 16 "
            "--units 5 --duration-s 5 --label-s 10",
        ) from error


def in_memory(scene: Scene) -> NumpyRecording:
    """Return the tested part as 16-bit samples in memory."""
    recording = scene.recording
    raw = NumpyRecording(
        [recording.get_traces()], recording.get_sampling_frequency(), channel_ids=recording.channel_ids
    )
    recording.copy_metadata(raw)
    return raw


def on_device(bench: Bench) -> DeviceMemoryTraces:
    """Preprocess all samples, and keep them on the device."""
    reader = bench.reader("keep")
    length, second = reader.num_samples(0), round(reader.sampling_frequency)
    by_channel = torch.empty(reader.num_channels, length, device=bench.device)
    for start in range(0, length, second):
        stop = min(start + second, length)
        by_channel[:, start:stop] = reader.read_on_device(0, start, stop, length)
    reader.settle()
    return DeviceMemoryTraces(by_channel, reader.sampling_frequency)


def read_all(reader: DeviceReader) -> None:
    """Preprocess all traces on the device, without a network."""
    length, second = reader.num_samples(0), round(reader.sampling_frequency)
    for start in range(0, length, second):
        reader.read_on_device(0, start, min(start + second, length), length)
    reader.settle()


def measure_device(bench: Bench) -> tuple[dict[str, Any], dict[str, Spikes]]:
    """Time sorting from traces in the device's memory; also return the spikes of each precision."""
    times, found, traces = {}, {}, on_device(bench)
    for precision in PRECISIONS:
        detector = bench.detector(precision)
        found[precision] = find(detector, traces)
        times[f"device memory, {precision}"] = bench.seconds(lambda d=detector: find(d, traces))
    return times, found


def measure_host(bench: Bench) -> dict[str, Any]:
    """Time sorting from 16-bit samples in the host's memory."""
    readers = {damage: bench.reader(damage) for damage in ("keep", "skip")}

    def fresh(damage: str) -> DeviceReader:
        readers[damage].forget()
        return readers[damage]

    times = {"host memory, preprocessing alone": bench.seconds(lambda: read_all(fresh("keep")))}
    for precision in PRECISIONS:
        detector = bench.detector(precision)
        times[f"host memory, {precision}"] = bench.seconds(lambda d=detector: find(d, fresh("keep")))
    name = "host memory, bfloat16, damage looked for"
    times[name] = bench.seconds(lambda d=detector: find(d, fresh("skip")))
    return times


def measure_accuracy(bench: Bench, found: dict[str, Spikes]) -> dict[str, Any]:
    """Compare with the truth, and with the spikes that the CPU finds with gates."""
    part, model = bench.model.groups[0], bench.model
    on_cpu = SortingConfig(device="cpu")
    (group,) = prepare_groups(bench.raw, Preparation.of(Config(sorting=on_cpu), model))
    sparse = make_detector(
        part.network, part.thresholds, model.sampling_frequency, model.detection_config, on_cpu
    )
    started = time.perf_counter()
    reference = find(sparse, group.reader)
    scores: dict[str, Any] = {
        "cpu_seconds": time.perf_counter() - started,
        "cpu": {"accuracy": bench.accuracy(reference), "spikes": len(reference)},
    }
    for name, spikes in found.items():
        scores[name] = {
            "accuracy": bench.accuracy(spikes),
            "spikes": len(spikes),
            "near_those_of_the_cpu": share_near(reference, spikes),
            "near_those_of_float32": share_near(found["float32"], spikes),
        }
    return scores


def share_near(expected: Spikes, found: Spikes) -> float:
    """Return the fraction of expected spikes with a found one within NEAR samples."""
    near = 0
    for unit in np.unique(expected.unit_index):
        mine = expected.sample_index[expected.unit_index == unit]
        candidates = np.concatenate(([-(10**9)], found.sample_index[found.unit_index == unit], [2 * 10**15]))
        after = np.searchsorted(candidates, mine)
        distance = np.minimum(candidates[after] - mine, mine - candidates[after - 1])
        near += int((distance <= NEAR).sum())
    return near / max(1, len(expected))


def measure_memory(bench: Bench, limit_gib: float, expected: Spikes) -> dict[str, Any] | None:
    """Sort with limited memory; None if the memory of the device cannot be limited."""
    if bench.device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info(bench.device)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit_gib * GIB / total))
    torch.cuda.reset_peak_memory_stats(bench.device)
    try:
        detector, reader = bench.detector("auto"), bench.reader("skip")
        started = time.perf_counter()
        spikes = find(detector, reader)
        seconds = time.perf_counter() - started
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return {
        "limit_gib": limit_gib,
        "peak_allocated_gib": torch.cuda.max_memory_allocated(bench.device) / GIB,
        "peak_reserved_gib": torch.cuda.max_memory_reserved(bench.device) / GIB,
        "tiles_at_once": detector.tiles_at_once,
        "seconds": seconds,
        "spikes": len(spikes),
        "near_those_without_limit": share_near(expected, spikes),
    }


def describe_device(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"type": device.type, "threads": torch.get_num_threads()}
    facts = torch.cuda.get_device_properties(device)
    return {
        "type": device.type,
        "name": facts.name,
        "memory_gib": facts.total_memory / GIB,
        "multiprocessors": facts.multi_processor_count,
        "capability": list(torch.cuda.get_device_capability(device)),
        "cuda": torch.version.cuda,
    }


def as_table(results: dict[str, Any]) -> str:
    """Return the results as a table."""
    scene = results["scene"]
    lines = [
        f"{scene['duration_s']:g} s of {scene['channels']} channels, {scene['units']} units, "
        f"{scene['sampling_frequency']:g} Hz on {results['device'].get('name', results['device']['type'])}",
        f"{'seconds':<44}{'median':>9}{'least':>9}{'most':>9}{'aim':>9}",
    ]
    for name, taken in results["seconds"].items():
        is_aimed_at = (scene["channels"], scene["units"], scene["duration_s"]) == AIMED_AT
        aim = AIMS.get(name) if is_aimed_at else None
        row = "".join(f"{taken[key]:9.3f}" for key in ("median", "least", "most"))
        lines.append(f"{name:<44}{row}{'' if aim is None else format(aim, '9.2f')}")
    if results["training_seconds"] is not None:
        lines.append(f"{'training, on the CPU':<44}{results['training_seconds']:9.1f}")
    accuracy = results["accuracy"]
    lines.append(f"{'accuracy':<44}{'truth':>9}{'spikes':>9}{'near CPU':>9}")
    for name in ("cpu", "float32", "bfloat16"):
        near = accuracy[name].get("near_those_of_the_cpu", 1.0)
        lines.append(f"{name:<44}{accuracy[name]['accuracy']:9.4f}{accuracy[name]['spikes']:9d}{near:9.4f}")
    if memory := results["memory"]:
        lines.append(
            f"within {memory['limit_gib']:g} GiB: {memory['seconds']:.2f} s, at most "
            f"{memory['peak_reserved_gib']:.2f} GiB, {memory['tiles_at_once']} tiles at once, "
            f"{memory['near_those_without_limit']:.4f} of the spikes"
        )
    return "\n".join(lines)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything, and write ``gpu.json``."""
    device = device_of(options.device)
    config = SpeedConfig(
        channels=options.channels,
        units=options.units,
        duration_s=options.duration_s,
        label_s=options.label_s,
        labels_per_unit=options.labels_per_unit,
        templates=options.templates,
        model=options.model,
        seed=options.seed,
    )
    if config.model is not None:
        open_model(Path(config.model))
    with writing(options.output):
        options.output.mkdir(parents=True, exist_ok=True)
    scene = make_scene(options.output, config)
    units = UnitsConfig(patches_per_unit=options.patches_per_unit)
    file, training_s = train_model(options.output, scene, config, units, silent)
    training_s = training_s or trained_before(options.output)
    bench = Bench(device, open_model(file), scene, in_memory(scene), options.repeats)
    times, found = measure_device(bench)
    times |= measure_host(bench)
    results = {
        "device": describe_device(device),
        "machine": describe_machine(),
        "scene": {
            "channels": scene.recording.get_num_channels(),
            "units": len(bench.model.unit_ids),
            "duration_s": scene.recording.get_total_duration(),
            "sampling_frequency": scene.recording.get_sampling_frequency(),
            "true_spikes": int(scene.truth.count_total_num_spikes()),
        },
        "settings": config.to_dict(),
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "seconds": times,
        "aims": AIMS,
        "training_seconds": training_s,
        "accuracy": measure_accuracy(bench, found),
        "memory": measure_memory(bench, options.memory_gib, found["bfloat16"]),
    }
    save_json(results, options.output / "gpu.json")
    return results


def trained_before(output: Path) -> float | None:
    """Return the seconds of training of the run that trained; None if it did not finish."""
    file = output / "gpu.json"
    return json.loads(file.read_text())["training_seconds"] if file.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("bench/gpu"))
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    parser.add_argument("--channels", type=int)
    parser.add_argument("--units", type=int, default=200)
    parser.add_argument("--duration-s", type=float, default=50.0)
    parser.add_argument("--label-s", type=float, default=30.0)
    parser.add_argument("--labels-per-unit", type=int, default=15)
    parser.add_argument("--patches-per-unit", type=int)
    parser.add_argument("--templates", help="MEArec template file; default: waveforms of a generator")
    parser.add_argument("--model", help="a model of the same simulation; default: one is trained")
    parser.add_argument("--memory-gib", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        results = measure(options)
    except SpikewiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(as_table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
