"""Compare two ways of finding and embedding events, in the search for units without labels.

    python benchmarks/events.py train NETWORK [--steps 1000] [--seed 0]
    python benchmarks/events.py compare SCENE... --network NETWORK [--ways bank embed] [--seconds 60]

SCENE is a folder of ``benchmarks/scenes.py`` (``recording`` and ``truth``). The ways are ``bank`` (what
Spikewise does: a bank of shapes finds events, their principal components are clustered), ``embed`` (the
network's embedding is clustered), ``judge`` (the bank's events above a lower threshold, of which the network
keeps some) and ``both``. MEArec's template files are in the folder that SPIKEWISE_DATA names (by default
``../shared/data`` beside the repository).
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import spikeinterface as si
import torch
from event_network.judging import WAYS, plugged_in
from event_network.network import load_network, save_network
from event_network.simulated import make_places
from event_network.training import train
from scene_benchmark.scoring import score

from spikewise.core.config import Config
from spikewise.data.recordings.reader import Traces
from spikewise.discovery.discover import Discovered, discover_units
from spikewise.discovery.held_traces import UNIT
from spikewise.sorting.groups import Preparation, prepare_groups

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPIKEWISE_DATA", REPOSITORY.parent / "shared" / "data"))


def learn(options: argparse.Namespace) -> None:
    """Train the network and write it."""
    started = time.process_time()
    places = make_places(DATA / "mearec", options.seed)
    made = time.process_time()
    print(f"{len(places)} places, {sum(len(place.waveforms) for place in places)} waveforms", flush=True)
    network, loss = train(places, options.steps, options.seed)
    facts = {"steps": str(options.steps), "seed": str(options.seed), "loss": f"{loss:.4f}"}
    save_network(network, options.network, facts)
    seconds = made - started, time.process_time() - made
    print(f"{options.network} {facts} CPU seconds: places %.0f, training %.0f" % seconds)


class PreparedTraces:
    """Prepared traces in memory, in the steps of the search, so that all ways share them."""

    def __init__(self, traces: Traces):
        self.sampling_frequency = traces.sampling_frequency
        self.num_segments, self.num_channels = 1, traces.num_channels
        self._steps = np.empty((traces.num_samples(0), traces.num_channels), np.int16)
        length = round(traces.sampling_frequency)
        for start in range(0, len(self._steps), length):
            part = self._steps[start : start + length]
            part[:] = np.clip(np.rint(traces.read(0, start, start + len(part)) / UNIT), -32767, 32767)

    def num_samples(self, segment_index: int) -> int:
        return len(self._steps)

    def read(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        return self._steps[start:stop] * np.float32(UNIT)


def compare(options: argparse.Namespace) -> None:
    """Find the units of each scene in each way, and print a line for each."""
    network = None if options.network is None else load_network(options.network)
    for folder in options.scenes:
        recording, truth = si.load(folder / "recording"), si.load(folder / "truth")
        if options.seconds is not None:
            last = min(recording.get_num_samples(0), round(options.seconds * recording.sampling_frequency))
            recording, truth = recording.frame_slice(0, last), truth.frame_slice(0, last)
        group = prepare_groups(recording, Preparation.of(Config()))[0]
        traces = PreparedTraces(group.reader)
        positions = group.recording.get_channel_locations()
        for way in options.ways:
            with plugged_in(way, network, positions, options.probability) as judge:
                started = time.process_time()
                found = discover_units(traces, positions, 0)
                seconds = time.process_time() - started
            result = _scores(truth, found, traces)
            facts = {name: found.facts.get(name) for name in ("num_events", "num_clusters", "num_merged")}
            times = {"cpu_s": round(seconds, 1), "of_network": round(judge.seconds if judge else 0.0, 1)}
            print(folder.name, way, json.dumps(result | facts | times), flush=True)


def _scores(truth: si.BaseSorting, found: Discovered, traces: PreparedTraces) -> dict[str, Any]:
    """Return the scores of the units that were found."""
    trains = {str(index): train for index, train in enumerate(found.trains)}
    sorting = si.NumpySorting.from_unit_dict([trains], traces.sampling_frequency)
    result = score(truth, sorting, traces.num_samples(0), [], 0.3)
    kept = ("accuracy", "units_above_0.8", "true_units", "units_found", "spurious_units")
    return {name: result[name] for name in kept}


def main() -> None:
    """Train or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    learning = commands.add_parser("train")
    learning.add_argument("network", type=Path)
    learning.add_argument("--steps", type=int, default=1000)
    learning.add_argument("--seed", type=int, default=0)
    learning.set_defaults(run=learn)
    comparing = commands.add_parser("compare")
    comparing.add_argument("scenes", type=Path, nargs="+")
    comparing.add_argument("--network", type=Path)
    comparing.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    comparing.add_argument("--seconds", type=float, help="of each scene, from its beginning")
    comparing.add_argument("--probability", type=float, default=0.5, help="of events that are kept")
    comparing.set_defaults(run=compare)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.run(options)


if __name__ == "__main__":
    main()
