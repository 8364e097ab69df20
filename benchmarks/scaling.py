"""Growth of the time of a sort with channels, units, minutes and threads.

    spikewise bench speed -o bench/speed [--templates FILE ...]    # makes the simulation and its model
    python benchmarks/scaling.py --speed bench/speed --output bench/scaling [--minutes 1 4 16 60]

Channels and units are parts of that model, or copies of it side by side: more channels have more units at the
same density; more units are on the same channels. The network and all steps after it are timed on traces in
memory. For minutes, the tested part of the simulation is repeated and sorted from the 16-bit file to the
written result, in a process of its own whose largest memory is reported. The least of three runs counts, for
minutes the only run; a line is fitted to the logarithms. The command writes ``scaling.json`` and
``scaling.png``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from spikeinterface.core import concatenate_recordings

from spikewise import load_recording, sort
from spikewise.core.config import SortingConfig
from spikewise.models.checkpoint import GroupModel, Model
from spikewise.models.neighbourhood import NeighbourhoodNetwork
from spikewise.papers.speed.limits import MemoryTraces, describe_machine
from spikewise.papers.speed.scene import ON_CPU, gated_network, open_model
from spikewise.sorting.batch import detect_in_chunks
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.groups import Preparation, prepare_groups

REPEATS = 3


def with_units(network: NeighbourhoodNetwork, units: np.ndarray, channel_index: np.ndarray, channels: int):
    """Return a network of some units, possibly repeated, on the given channels."""
    index = torch.from_numpy(np.asarray(units))
    part = NeighbourhoodNetwork(
        network.backbone, channels, torch.from_numpy(channel_index), network.units.hidden_weight.shape[2]
    )
    state = {
        name: tensor if name.startswith("backbone.") else tensor[index]
        for name, tensor in network.state_dict().items()
    }
    part.load_state_dict(state | {"channel_index": torch.from_numpy(channel_index)})
    return part.eval()


def of_channels(part: GroupModel, channels: int) -> tuple[NeighbourhoodNetwork, np.ndarray, np.ndarray]:
    """Return the lowest channels with the units that use only these, or copies of all channels.

    Returns
    -------
    network : NeighbourhoodNetwork
    thresholds : ndarray
    chosen : ndarray
        (channels,) channel of the traces for each channel of the network.
    """
    network = part.network
    index, num_channels = network.channel_index.numpy(), network.num_channels
    copies = max(1, channels // num_channels)
    chosen = np.argsort(part.channel_positions_um[:, -1], kind="stable")[:channels]
    new = np.full(num_channels, -1)
    new[chosen] = np.arange(len(chosen))
    units = np.flatnonzero((new[index] >= 0).all(axis=1))
    shifted = np.concatenate([new[index[units]] + num_channels * copy for copy in range(copies)])
    units = np.tile(units, copies)
    return (
        with_units(network, units, shifted, len(chosen) * copies),
        part.thresholds[units],
        np.tile(chosen, copies),
    )


def of_units(part: GroupModel, count: int) -> tuple[NeighbourhoodNetwork, np.ndarray]:
    """Return a number of units, spread over the probe; each is repeated equally often, if possible."""
    index = part.network.channel_index.numpy()
    number = np.arange(count)
    units = number % len(index) if count >= len(index) else number * len(index) // count
    return with_units(part.network, units, index[units], part.network.num_channels), part.thresholds[units]


def seconds_of(
    model: Model, network: NeighbourhoodNetwork, thresholds: np.ndarray, traces: MemoryTraces
) -> float:
    """Return the least time of the network on traces in memory."""
    detector = make_detector(
        network, thresholds, model.sampling_frequency, model.detection_config, SortingConfig(device="cpu")
    )
    detect_in_chunks(detector, traces.first(round(2 * traces.sampling_frequency)), 1.0)  # compiles
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        detect_in_chunks(detector, traces, ON_CPU.sorting.chunk_s)
        taken.append(time.perf_counter() - started)
    return min(taken)


def rows_of_network(model: Model, traces: MemoryTraces, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Time channels, units and threads."""
    part, length = model.groups[0], traces.num_samples(0) / traces.sampling_frequency
    rows = []
    for channels in options.channels:
        network, thresholds, chosen = of_channels(part, channels)
        values = MemoryTraces(traces.by_channel[chosen], traces.sampling_frequency)
        seconds = seconds_of(model, network, thresholds, values)
        rows.append({"what": "channels", "size": channels, "units": len(thresholds), "seconds": seconds})
        print(rows[-1], flush=True)
    for count in options.units:
        seconds = seconds_of(model, *of_units(part, count), traces)
        rows.append({"what": "units", "size": count, "seconds": seconds})
        print(rows[-1], flush=True)
    threads = torch.get_num_threads()
    for count in range(1, threads + 1):
        torch.set_num_threads(count)
        rows.append(
            {
                "what": "threads",
                "size": count,
                "seconds": seconds_of(model, part.network, part.thresholds, traces),
            }
        )
        print(rows[-1], flush=True)
    torch.set_num_threads(threads)
    return [row | {"sorted_s": length} for row in rows]


def sort_long(speed: str, start: str, minutes: str) -> None:
    """Sort the tested part, repeated; print seconds and the largest memory of this process."""
    whole = load_recording(Path(speed) / "scene" / "recording")
    stretch = whole.frame_slice(int(start), whole.get_num_samples(0))
    times = math.ceil(60 * float(minutes) / stretch.get_total_duration())
    end = round(60 * float(minutes) * whole.get_sampling_frequency())
    recording = concatenate_recordings([stretch] * times).frame_slice(0, end)
    model = Path(speed) / "model.safetensors"
    sort(stretch, model=model, config=ON_CPU)  # compiles, and reads the file into memory
    with tempfile.TemporaryDirectory(prefix="spikewise-") as place:
        started = time.perf_counter()
        sort(recording, model=model, output=Path(place) / "out", config=ON_CPU)
        seconds = time.perf_counter() - started
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")
    )
    print(json.dumps({"seconds": seconds, "peak_gib": int(line.split()[1]) / 2**20}))


def rows_of_minutes(speed: Path, start: int, minutes: list[float]) -> list[dict[str, Any]]:
    """Time whole sorts, each in a process of its own."""
    rows = []
    for size in minutes:
        given = ["--alone", str(speed), str(start), str(size)]
        done = subprocess.run([sys.executable, __file__, *given], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        rows.append({"what": "minutes", "size": size, **json.loads(done.stdout.splitlines()[-1])})
        print(rows[-1], flush=True)
    return rows


def exponent(rows: list[dict[str, Any]]) -> float | None:
    """Return the slope of the logarithm of seconds over that of the size."""
    if len(rows) < 2:
        return None
    sizes, seconds = (np.log([row[name] for row in rows]) for name in ("size", "seconds"))
    return float(np.polyfit(sizes, seconds, 1)[0])


def draw(results: dict[str, Any], file: Path) -> None:
    """Draw seconds over channels, units and minutes, with the fitted lines."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = [kind for kind in ("channels", "units", "minutes") if kind in results["exponents"]]
    figure, every = pyplot.subplots(1, len(kinds), figsize=(3.4 * len(kinds), 3.0), layout="constrained")
    for kind, axes in zip(kinds, np.atleast_1d(every), strict=True):
        rows = [row for row in results["rows"] if row["what"] == kind]
        sizes = np.array([row["size"] for row in rows], float)
        seconds = np.array([row["seconds"] for row in rows])
        slope = results["exponents"][kind]
        axes.loglog(sizes, seconds, "o", color="#1f6f8b")
        if slope is not None:
            level = np.exp(np.mean(np.log(seconds) - slope * np.log(sizes)))
            axes.loglog(sizes, level * sizes**slope, "-", color="0.6", linewidth=1)
            axes.set_title(f"seconds ~ {kind}$^{{{slope:.2f}}}$", fontsize=10)
        axes.set(xlabel=kind, ylabel="seconds")
        axes.set_xticks(sizes, [f"{size:g}" for size in sizes], fontsize=8)
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure, write, draw."""
    if sys.argv[1:2] == ["--alone"]:
        sort_long(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--speed", type=Path, default=Path("bench/speed"))
    parser.add_argument("--output", type=Path, default=Path("bench/scaling"))
    parser.add_argument("--channels", type=int, nargs="*", default=[32, 64, 128, 256, 384, 768, 1536])
    parser.add_argument("--units", type=int, nargs="*", default=[10, 25, 50, 100, 200, 500, 1000])
    parser.add_argument("--minutes", type=float, nargs="*", default=[1, 4, 16, 60])
    parser.add_argument("--seconds", type=float, default=10.0, help="traces in memory")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    model = open_model(options.speed / "model.safetensors")
    gated_network(model)
    whole = load_recording(options.speed / "scene" / "recording")
    speed_results = json.loads((options.speed / "speed.json").read_text())
    rate = whole.get_sampling_frequency()
    start = round(speed_results["settings"]["label_s"] * rate)
    load = os.getloadavg()[0]
    (group,) = prepare_groups(whole, Preparation.of(ON_CPU, model))
    traces = MemoryTraces(
        np.ascontiguousarray(group.reader.read(0, start, start + round(options.seconds * rate)).T), rate
    )
    rows = rows_of_network(model, traces, options)
    rows += rows_of_minutes(options.speed, start, options.minutes)
    kinds = {row["what"]: None for row in rows}
    results = {
        "rows": rows,
        "exponents": {kind: exponent([row for row in rows if row["what"] == kind]) for kind in kinds},
        "threads": torch.get_num_threads(),
        "load": load,
        "machine": describe_machine(),
    }
    (options.output / "scaling.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    draw(results, options.output / "scaling.png")
    print(json.dumps(results["exponents"]))


if __name__ == "__main__":
    main()
