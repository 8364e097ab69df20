"""How late the spikes of a live stream come: channels x lengths of blocks.

    python benchmarks/live.py OUTPUT [--channels 32 128 384] [--blocks 1 5 20] [--seconds 60] [--scene FOLDER]

For each number of channels, a scene of a Neuropixels 1.0 with as many units per channel as 200 on 384 is
simulated, and a model of the live filter learnt from 15 labels a unit of its first 30 s. `--scene` names a
finished simulation for the largest number of channels. Then 20 s of the rest are replayed in a loop, at their
own rate. The spikes go to a result folder and to UDP. Delays are

- from the arrival of a spike's last needed sample until the sinks have the spike, and
- from the spike itself, if the last sample of a block was recorded when the block came.

Prints a table, and writes live.json. It also compares the spikes of the stream with those of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import spikeinterface
from spikeinterface.core import BaseRecording

import spikewise
from spikewise.core.threads import one_thread_each
from spikewise.jobs.live.replay import wait_until
from spikewise.jobs.live.source import Chunk, StreamFacts
from spikewise.papers.speed.config import SpeedConfig
from spikewise.papers.speed.scene import make_scene

LABEL_S, LOOP_S = 30.0, 20.0
UNITS_PER_CHANNEL = 200 / 384


class Loop:
    """Samples of a recording again and again, in real time."""

    def __init__(self, recording: BaseRecording, block_ms: float, seconds: float):
        self._rate = recording.get_sampling_frequency()
        self._samples = np.ascontiguousarray(recording.get_traces())
        self._block = round(block_ms * self._rate / 1000)
        self._num_samples = round(seconds * self._rate)

    def open(self) -> StreamFacts:
        return StreamFacts(self._samples.shape[1], self._rate, str(self._samples.dtype))

    def chunks(self) -> Iterator[Chunk]:
        begin, sent = time.perf_counter(), 0
        while sent < self._num_samples:
            for first in range(0, len(self._samples), self._block):
                block = self._samples[first : first + self._block]
                sent += len(block)
                if sent > self._num_samples:
                    return
                due = begin + sent / self._rate
                wait_until(due)
                yield Chunk(block, received_s=due)

    def close(self) -> None:
        pass


def prepare(output: Path, channels: int, scene: Path | None) -> tuple[BaseRecording, Path]:
    """Return the recording after the labels, and the model; both are made once."""
    folder = output / str(channels)
    folder.mkdir(parents=True, exist_ok=True)
    if scene is None:
        config = SpeedConfig(
            channels=channels,
            units=max(4, round(UNITS_PER_CHANNEL * channels)),
            duration_s=LOOP_S,
            label_s=LABEL_S,
        )
        recording, truth = make_scene(folder, config).whole
    else:
        recording = spikewise.load_recording(scene / "recording")
        truth = spikeinterface.load(scene / "truth")
    model = folder / "live.safetensors"
    if not model.exists():
        spikewise.train(
            recording,
            truth,
            output=model,
            filter="live",
            label_interval=(0.0, LABEL_S),
            labels_per_unit=15,
            device="cpu",
        )
    start = round(LABEL_S * recording.get_sampling_frequency())
    stop = min(recording.get_num_samples(0), start + round(LOOP_S * recording.get_sampling_frequency()))
    return recording.frame_slice(start, stop), model


def is_same(recording: BaseRecording, model: Path, folder: Path) -> bool:
    """Whether a stream and a file give the same spikes."""
    spikewise.stream(recording, model=model, sinks=folder, overwrite=True, speed="fast")
    streamed = spikeinterface.load(folder / "sorting").to_spike_vector()
    expected = spikewise.sort(recording, model=model, report=False, device="cpu").sorting.to_spike_vector()
    names = ["sample_index", "unit_index"]
    return len(streamed) == len(expected) and all((streamed[n] == expected[n]).all() for n in names)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 128, 384])
    parser.add_argument("--blocks", type=float, nargs="+", default=[1.0, 5.0, 20.0], help="ms")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--scene", type=Path, help="a simulation for the largest number of channels")
    options = parser.parse_args()
    rows = []
    for channels in options.channels:
        scene = options.scene if channels == max(options.channels) else None
        recording, model = prepare(options.output, channels, scene)
        same = is_same(recording, model, options.output / "result")
        for block_ms in options.blocks:
            source = Loop(recording, block_ms, options.seconds)
            sinks = [str(options.output / "result"), "udp://127.0.0.1:9"]
            load, cpu = os.getloadavg()[0], time.process_time()
            with one_thread_each():
                result = spikewise.stream(source, model=model, sinks=sinks, overwrite=True)
            cpu_share = (time.process_time() - cpu) / options.seconds
            row = {"channels": channels, "block_ms": block_ms, "same_as_file": same, "load": round(load, 1)}
            row |= {"cpu_share": round(cpu_share, 3), **result.summary()}
            rows.append(row)
            print(json.dumps(row), flush=True)
    (options.output / "live.json").write_text(json.dumps(rows, indent=2) + "\n")
    print("\n| channels | block | delay p50 / p99 / max | from the peak p50 / p99 | busy | lost | same |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in rows:
        delay, peak = row["delay"], row["delay_from_peak"]
        print(
            f"| {row['channels']} | {row['block_ms']:g} ms | {delay['p50_ms']:.2f} / {delay['p99_ms']:.2f} / "
            f"{delay['max_ms']:.1f} ms | {peak['p50_ms']:.2f} / {peak['p99_ms']:.2f} ms | "
            f"{row['busy_share']:.0%} | {row['num_missing']} | {row['same_as_file']} |"
        )


if __name__ == "__main__":
    main()
