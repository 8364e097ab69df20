"""Whether units that were split or merged on purpose are found, and good units left alone.

    python benchmarks/trust_changes.py NAME RECORDING SORTING [NAME RECORDING SORTING ...]

SORTING is a good sorting of the recording: the folder ``sorting`` of a result, or its truth. In two trials
each unit with enough spikes is split in one of four ways. In a third, the pairs of units with the most
similar waveforms are merged. The recording must have one group of channels and one segment. See
docs/trust.md.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import spikeinterface

from spikewise.core.config import Config
from spikewise.data.recordings.reader import TraceReader
from spikewise.output.measures import spike_trains
from spikewise.output.trust.mixtures import Mixture, find_mixtures
from spikewise.output.trust.relations import Relations, compare_shapes, relate_units
from spikewise.output.trust.shapes import UnitShape, measure_shapes
from spikewise.output.trust.stretches import TrainsOfGroup, choose_stretches
from spikewise.sorting.groups import Preparation, prepare_groups

WAYS = ("at random", "in the middle of the recording", "at the median amplitude", "by the interval before")
FEWEST_SPIKES = 100
SHORT_S = 0.1
"""Spikes that follow another within this time are split from the others."""
REACH_UM = 120.0
LEAST_LIKENESS, LEAST_RATIO = 0.3, 0.1
"""Merged units are at least so similar, and the smaller one has at least this part of the larger one's."""
MOST_MERGED = 0.7
"""Fraction of the units that are merged in pairs."""


@dataclass(frozen=True)
class Scene:
    """Prepared traces, the spikes of a good sorting, and the channels near each unit."""

    reader: TraceReader
    trains: list[np.ndarray]
    near: list[np.ndarray]

    def measure(
        self, trains: list[np.ndarray], near: list[np.ndarray]
    ) -> tuple[list[UnitShape | None], Relations, dict[int, Mixture]]:
        """Return shapes, relations and mixtures of some units."""
        of_group = TrainsOfGroup([[train] for train in trains], self.reader.sampling_frequency)
        lengths = [self.reader.num_samples(0)]
        stretches = choose_stretches(lengths, self.reader.sampling_frequency)
        shapes = measure_shapes(self.reader, of_group, stretches, near, np.random.default_rng(1))
        mixtures = find_mixtures(self.reader, of_group, shapes, stretches, lengths)
        return shapes, relate_units(shapes, of_group, self.reader.num_channels, mixtures), mixtures

    def amplitudes(self, shapes: list[UnitShape | None], units: list[int]) -> dict[int, np.ndarray]:
        """Return the amplitude of each spike of some units."""
        found = {unit: np.zeros(len(self.trains[unit])) for unit in units}
        length, margin = round(4 * self.reader.sampling_frequency), 300
        for start in range(0, self.reader.num_samples(0), length):
            block = self.reader.read(0, start - margin, start + length + margin)
            for unit in units:
                here = np.flatnonzero((self.trains[unit] >= start) & (self.trains[unit] < start + length))
                shape = shapes[unit]
                if len(here) and shape is not None:
                    at = self.trains[unit][here] - start + margin
                    found[unit][here] = shape.amplitudes(block, at, 2)
        return found


def open_scene(recording_path: Path, sorting_path: Path) -> Scene:
    """Prepare a recording, and find the channels near each unit."""
    recording = spikeinterface.load(recording_path)
    (group,) = prepare_groups(recording, Preparation.of(Config()))
    trains = [parts[0] for parts in spike_trains(spikeinterface.load(sorting_path))]
    positions = recording.get_channel_locations()
    near = []
    for train in trains:
        chosen = train[(train > 100) & (train < group.reader.num_samples(0) - 100)][:60]
        windows = [group.reader.read(0, int(frame) - 40, int(frame) + 60) for frame in chosen]
        main = int(np.abs(np.median(windows, axis=0)).max(axis=0).argmax()) if windows else 0
        near.append(np.flatnonzero(np.linalg.norm(positions - positions[main], axis=1) <= REACH_UM))
    return Scene(group.reader, trains, near)


def split_units(scene: Scene, shapes: list[UnitShape | None], trial: int) -> list[dict]:
    """Split every second unit; return which pairs were called one neuron, and which units two."""
    rng = np.random.default_rng(trial)
    enough = [
        u for u, train in enumerate(scene.trains) if len(train) >= FEWEST_SPIKES and shapes[u] is not None
    ]
    ways = {
        unit: WAYS[(number + 2 * trial) % len(WAYS)]
        for number, unit in enumerate(enough)
        if (number + trial) % 2 == 0 or len(enough) < 20
    }
    amplitudes = scene.amplitudes(shapes, [unit for unit, way in ways.items() if way == WAYS[2]])
    trains, near, origin = [], [], []
    for unit, train in enumerate(scene.trains):
        sizes = amplitudes.get(unit, np.empty(0))
        is_first = _first_part(ways.get(unit), train, sizes, rng, scene.reader.sampling_frequency)
        for part in (train[is_first], train[~is_first]):
            if len(part):
                trains.append(part)
                near.append(scene.near[unit])
                origin.append(unit)
    _, relations, mixtures = scene.measure(trains, near)
    rows = [
        {"case": "one unit that is whole, split", "found": unit in mixtures} for unit in range(len(trains))
    ]
    for a in range(len(trains)):
        for b in range(a):
            is_called = bool(relations.parts[a, b] >= 0.5)
            if origin[a] == origin[b]:
                rows.append({"case": f"split {ways[origin[a]]}, merged", "found": is_called})
            elif relations.likeness[a, b] > 0:
                rows.append({"case": "two neurons, merged", "found": is_called})
    return rows


def _first_part(
    way: str | None, train: np.ndarray, sizes: np.ndarray, rng: np.random.Generator, rate: float
) -> np.ndarray:
    """Return which spikes of a unit go to its first part; all where it is not split."""
    if way == WAYS[0]:
        return rng.random(len(train)) < 0.5
    if way == WAYS[1]:
        return np.arange(len(train)) < len(train) // 2
    if way == WAYS[2]:
        return sizes < np.median(sizes)
    if way == WAYS[3]:
        return np.diff(train, prepend=-np.inf) < SHORT_S * rate
    return np.ones(len(train), bool)


def merge_units(scene: Scene, shapes: list[UnitShape | None]) -> list[dict]:
    """Merge the most similar pairs; return which of all units were called two neurons."""
    counts = np.array([len(train) for train in scene.trains])
    likeness = compare_shapes(shapes, scene.reader.num_channels, scene.reader.sampling_frequency)
    enough = [unit for unit in range(len(counts)) if counts[unit] >= FEWEST_SPIKES]
    pairs: list[tuple[int, int]] = []
    used: set[int] = set()
    for a, b in sorted(((a, b) for a in enough for b in enough if b < a), key=lambda pair: -likeness[pair]):
        is_fitting = likeness[a, b] >= LEAST_LIKENESS and min(counts[[a, b]]) >= LEAST_RATIO * max(
            counts[[a, b]]
        )
        if is_fitting and not used & {a, b} and len(used) < MOST_MERGED * len(enough):
            used |= {a, b}
            pairs.append((a, b))
    whole = [unit for unit in range(len(counts)) if unit not in used]
    trains = [np.sort(np.concatenate([scene.trains[a], scene.trains[b]])) for a, b in pairs]
    near = [np.union1d(scene.near[a], scene.near[b]) for a, b in pairs]
    _, _, mixtures = scene.measure(
        trains + [scene.trains[unit] for unit in whole], near + [scene.near[unit] for unit in whole]
    )
    is_two = [
        unit in mixtures and mixtures[unit].probability >= 0.5 for unit in range(len(trains) + len(whole))
    ]
    names = ["two neurons in a unit, split"] * len(pairs) + ["one neuron, split"] * len(whole)
    return [{"case": name, "found": found} for name, found in zip(names, is_two, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scenes", nargs="+", help="NAME RECORDING SORTING of each")
    scenes = parser.parse_args().scenes
    rows = []
    for name, recording, sorting in zip(scenes[::3], scenes[1::3], scenes[2::3], strict=True):
        scene = open_scene(Path(recording), Path(sorting))
        shapes, _, _ = scene.measure(scene.trains, scene.near)
        found = [row for trial in range(2) for row in split_units(scene, shapes, trial)]
        rows += [{"scene": name, **row} for row in found + merge_units(scene, shapes)]
    table = pd.DataFrame(rows).groupby(["scene", "case"], sort=False)["found"].agg(["sum", "count"])
    print(table.rename(columns={"sum": "suggested", "count": "of"}).to_string())


if __name__ == "__main__":
    main()
