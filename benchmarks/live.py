"""How late the spikes of a live stream come: channels x lengths of blocks, and a single channel.

    python benchmarks/live.py OUTPUT [--channels 32 128 384] [--blocks 1 5 20] [--seconds 60]
                              [--longest 300] [--scene FOLDER]

For each number of channels, a scene of a Neuropixels 1.0 with as many units per channel as 200 on 384 is
simulated, and a model of the live filter learnt from 15 labels a unit of its first 30 s. `--scene` names a
finished simulation for the largest number of channels. Then 20 s of the rest are replayed in a loop, at their
own rate, for `--seconds`; the largest number of channels in the shortest blocks for `--longest`. The spikes
go to a result folder and to UDP. A single channel of 24 kHz is replayed likewise, in blocks of 1 ms. Delays
are

- from the arrival of a spike's last needed sample until the sinks have the spike, and
- from the spike itself, if the last sample of a block was recorded when the block came.

Prints a table, and writes live.json and live.md. It also compares the spikes of the stream with those of the
file. Run it on a computer that does nothing else: the table tells the load before each row, and how often the
computer took the processor away from the stream.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import spikeinterface
from spikeinterface.core import BaseRecording, NumpyRecording

import spikewise
from spikewise.core.threads import one_thread_each
from spikewise.jobs.live.loop import StreamResult
from spikewise.jobs.live.replay import wait_until
from spikewise.jobs.live.source import Chunk, StreamFacts
from spikewise.papers.speed.config import SpeedConfig
from spikewise.papers.speed.scene import make_scene
from spikewise.single_channel.config import (
    ChannelSortingConfig,
    SpikeDetectionConfig,
    WaveClusConfig,
    WaveformTrainingConfig,
)

LABEL_S, LOOP_S = 30.0, 20.0
UNITS_PER_CHANNEL = 200 / 384


class Loop:
    """Samples of a recording again and again, in real time."""

    def __init__(self, recording: BaseRecording, block_ms: float, seconds: float):
        self._rate = recording.get_sampling_frequency()
        self._samples = np.array(recording.get_traces(), order="C")  # not a mapped file, which is read late
        self._block = round(block_ms * self._rate / 1000)
        self._num_samples = round(seconds * self._rate)

    def __len__(self) -> int:
        """Return the samples of a block."""
        return self._block

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


def measure(name: str, seconds: float, run: Callable[[], StreamResult]) -> dict[str, Any]:
    """Return a row of the table."""
    load, cpu, before = os.getloadavg()[0], time.process_time(), resource.getrusage(resource.RUSAGE_SELF)
    with one_thread_each():
        result = run()
    after = resource.getrusage(resource.RUSAGE_SELF)
    row = {
        "stream": name,
        "load": round(load, 1),
        "cpu_share": round((time.process_time() - cpu) / seconds, 3),
        "interruptions_per_s": round((after.ru_nivcsw - before.ru_nivcsw) / seconds, 1),
        **result.summary(),
    }
    print(json.dumps(row), flush=True)
    return row


def measure_probe(options: argparse.Namespace, channels: int) -> list[dict[str, Any]]:
    """Return the rows of one number of channels."""
    is_largest = channels == max(options.channels)
    recording, model = prepare(options.output, channels, options.scene if is_largest else None)
    result = options.output / "result"
    same, rows = is_same(recording, model, result), []
    for block_ms in options.blocks:
        is_longest = is_largest and block_ms == min(options.blocks)
        seconds = max(options.seconds, options.longest) if is_longest else options.seconds
        source = Loop(recording, block_ms, seconds)
        run = partial(
            spikewise.stream, source, model=model, sinks=[str(result), "udp://127.0.0.1:9"], overwrite=True
        )
        row = measure(f"{channels} channels, blocks of {block_ms:g} ms", seconds, run)
        lost = round(seconds * recording.get_sampling_frequency()) - row["num_samples"] >= len(source)
        rows.append({**row, "seconds": seconds, "same_as_file": same, "is_any_lost": lost})
    return rows


def measure_single(options: argparse.Namespace) -> dict[str, Any]:
    """Return the row of a single channel."""
    folder = options.output / "single"
    file = folder / "simulated.mat"
    folder.mkdir(parents=True, exist_ok=True)
    config = WaveClusConfig(duration_s=2 * LOOP_S, difficulty="easy1", noise_level=0.1, seed=3)
    simulated = spikewise.simulate_channel(output=file, config=config, overwrite=True)
    sorted_ = spikewise.sort_channel(
        file,
        labels=file,
        config=ChannelSortingConfig(label_interval=(0, LOOP_S)),
        detection=SpikeDetectionConfig(filter="live"),
        training=WaveformTrainingConfig(epochs=5),
    )
    rate = simulated.sampling_frequency
    signal = simulated.signal[round(LOOP_S * rate) :, np.newaxis].astype(np.float32)
    recording = NumpyRecording([signal], rate)
    source = Loop(recording, 1.0, options.seconds)
    sinks = [str(options.output / "result"), "udp://127.0.0.1:9"]
    run = partial(spikewise.stream_channels, source, models=sorted_.model, sinks=sinks, overwrite=True)
    row = measure("1 channel, 1D-CNN, blocks of 1 ms", options.seconds, run)
    lost = round(options.seconds * rate) - row["num_samples"] >= len(source)
    return {**row, "seconds": options.seconds, "same_as_file": None, "is_any_lost": lost}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows in Markdown; the last is what RT-Sort reports."""
    lines = [
        "| stream | seconds | delay: median / 99 % / largest | from the peak: median / 99 % | CPU | lost "
        "| same |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        delay, peak = row["delay"], row["delay_from_peak"]
        same = {True: "yes", False: "no", None: ""}[row["same_as_file"]]
        lines.append(
            f"| {row['stream']} | {row['seconds']:g} | "
            f"{delay['p50_ms']:.2f} / {delay['p99_ms']:.2f} / {delay['max_ms']:.1f} ms | "
            f"{peak['p50_ms']:.2f} / {peak['p99_ms']:.2f} ms | {row['cpu_share']:.0%} | "
            f"{'yes' if row['is_any_lost'] or row['num_missing'] else 'none'} | {same} |"
        )
    lines.append("| RT-Sort as published, on a GPU | | | 7.6 / 11.0 ms | | | |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output", type=Path)
    parser.add_argument("--channels", type=int, nargs="+", default=[32, 128, 384])
    parser.add_argument("--blocks", type=float, nargs="+", default=[1.0, 5.0, 20.0], help="ms")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--longest", type=float, default=300.0, help="seconds of the hardest row")
    parser.add_argument("--scene", type=Path, help="a simulation for the largest number of channels")
    parser.add_argument("--no-single", action="store_true", help="leave the single channel out")
    options = parser.parse_args()
    rows = [] if options.no_single else [measure_single(options)]
    for channels in options.channels:
        rows += measure_probe(options, channels)
    (options.output / "live.json").write_text(json.dumps(rows, indent=2) + "\n")
    (options.output / "live.md").write_text(table(rows) + "\n")
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
