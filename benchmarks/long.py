"""Sort a long recording of many channels, and record the memory.

    python benchmarks/long.py --output bench/long [--minutes 30] [--channels 384] [--units 100]

The recording is generated while it is read (SpikeInterface's generator), so that its length needs neither
disk nor memory. The model is trained on the first half minute. The command writes ``memory.json`` and
``memory.png``: resident memory each second, with the stage. To resume an interrupted run, give the same
command again.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from pathlib import Path
from typing import Any

import psutil

import spikewise

GIB = 2**30


class MemoryLog:
    """Records the resident memory of this process each second; a progress callback that records stages."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float, str]] = []
        self.stage, self.note = "prepare", ""
        self._started, self._printed = time.monotonic(), 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryLog:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._thread.join()

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        self.stage = stage
        if time.monotonic() - self._printed > 15:
            self._printed = time.monotonic()
            print(f"{self._seconds():.0f} s: {stage} {done:.0f} of {total:.0f}, {note}", flush=True)

    def _seconds(self) -> float:
        return time.monotonic() - self._started

    def _watch(self) -> None:
        process = psutil.Process()
        while not self._is_over.wait(1.0):
            self.samples.append((round(self._seconds(), 1), process.memory_info().rss / GIB, self.stage))


def measure(
    output: Path, minutes: float, channels: int, units: int, label_s: float, model: Path | None
) -> dict[str, Any]:
    """Sort, and return the memory and the speed."""
    probe = "neuropixels-1.0" if channels == 384 else f"linear-{channels}"
    scene = spikewise.simulate(
        probe=probe, num_units=units, duration_s=60 * minutes, seed=0, min_amplitude_uV=60.0
    )
    learning: dict[str, Any] = {
        "labels": scene.sorting,
        "label_interval": (0, label_s),
        "labels_per_unit": 30,
    }
    with MemoryLog() as log:
        result = spikewise.sort(
            scene.recording,
            output=output / "sorted",
            resume=True,
            progress=log,
            **({"model": model} if model else learning),
        )
    performance = spikewise.evaluate(
        scene.sorting, result.sorting, interval=(label_s, min(60 * minutes, label_s + 120))
    )
    sorting = [(at, rss) for at, rss, stage in log.samples if stage == "sort"]
    later = [rss for at, rss in sorting if at > sorting[0][0] + 60]
    return {
        "minutes": minutes,
        "channels": channels,
        "units": units,
        "spikes": result.provenance["result"]["num_spikes"],
        "spikes_hash": result.provenance["result"]["spikes_hash"],
        "real_time_factor": result.provenance["real_time_factor"],
        "threads": result.provenance["machine"]["threads"],
        "accuracy": performance.accuracy,
        "peak_gib": max(rss for _, rss, _ in log.samples),
        "peak_sorting_gib": max(rss for _, rss in sorting),
        "after_first_minute_gib": [min(later), max(later)] if later else None,
        "samples": log.samples,
    }


def draw(facts: dict[str, Any], file: Path) -> None:
    """Draw memory over time, one colour for each stage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 3.2), layout="constrained")
    for stage in dict.fromkeys(stage for _, _, stage in facts["samples"]):
        points = [(at / 60, rss) for at, rss, name in facts["samples"] if name == stage]
        axes.plot(*zip(*points, strict=True), ".", markersize=3, label=stage)
    axes.axhline(2.5, color="0.6", linewidth=0.8, linestyle="--")
    axes.set(xlabel="minutes of work", ylabel="resident memory (GiB)", ylim=(0, None))
    axes.set_title(f"{facts['minutes']:g} minutes of {facts['channels']} channels, {facts['units']} units")
    axes.legend(markerscale=3, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("bench/long"))
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--channels", type=int, default=384)
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--label-s", type=float, default=30.0)
    parser.add_argument("--model", type=Path, default=None)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    facts = measure(
        options.output, options.minutes, options.channels, options.units, options.label_s, options.model
    )
    (options.output / "memory.json").write_text(json.dumps(facts) + "\n", encoding="utf-8")
    draw(facts, options.output / "memory.png")
    print(json.dumps({name: value for name, value in facts.items() if name != "samples"}, indent=2))


if __name__ == "__main__":
    main()
