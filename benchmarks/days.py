"""A model of one day on recordings of another day, between which the probe has moved.

    python benchmarks/days.py [--shifts 0 37 80] [--seeds 1 2 3] [--without-labels]

Each seed draws 40 units of a probe of 128 channels in two columns. On day 2 the tissue lies some um higher,
every fifth unit is gone and as many are new: half of these lie within some um of the place of a unit that is
gone. A model is learnt on day 1 from 15 labels of each unit (or without labels) and sorts day 2; a model
learnt there in the same way sorts it, too. An id keeps its neuron if its spikes agree with it by at least
0.5. It is given to another neuron if its spikes agree with another one by at least 0.2, and more than with
its own. Each result is a line of ``FOLDER/days.jsonl``; recordings are deleted when they are sorted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import spikeinterface.full as si
from probeinterface import Probe, generate_multi_columns_probe
from scene_benchmark.scoring import agreements
from spikeinterface.core.generate import default_unit_params_range, generate_unit_locations

import spikewise
from spikewise.output.matching import compare_sortings

RATE = 30000.0
NUM_UNITS, NUM_CHANGED = 40, 8
LOOK_ALIKE_UM = 10.0
"""Standard deviation of the distance of some new units from the place of one that is gone."""
LARGEST_SHIFT_UM = 100.0
"""Units that stay are near the probe at any shift from 0 to this."""
KEPT, OTHER = 0.5, 0.2


@dataclass(frozen=True)
class Tissue:
    """All units, in the place of day 1: those that stay, those that go, those that come.

    Attributes
    ----------
    locations : ndarray, shape (num_units, 3)
    params : dict of str to ndarray
        Shapes and sizes, as SpikeInterface's generator takes them.
    """

    locations: np.ndarray
    params: dict[str, np.ndarray]

    def units_of(self, day: int) -> np.ndarray:
        """Return the indices of the units of a day."""
        first = 0 if day == 1 else NUM_CHANGED
        return np.arange(first, first + NUM_UNITS)


def make_probe() -> Probe:
    """Return the probe of the scenes `drift60` and `jump40`."""
    probe = generate_multi_columns_probe(
        num_columns=2, num_contact_per_column=64, xpitch=32, ypitch=20, y_shift_per_column=[0, 10]
    )
    probe.set_device_channel_indices(np.arange(128))
    return probe


def make_tissue(seed: int, probe: Probe) -> Tissue:
    """Draw the units; those that stay are near the probe on both days."""
    rng = np.random.default_rng(seed)
    places = probe.contact_positions
    total = NUM_UNITS + NUM_CHANGED
    params = {name: rng.uniform(*span, total) for name, span in default_unit_params_range.items()}
    low = places[places[:, 1] <= places[:, 1].max() - LARGEST_SHIFT_UM]
    staying = generate_unit_locations(NUM_UNITS - NUM_CHANGED, low, seed=seed)
    gone = generate_unit_locations(NUM_CHANGED, places, seed=seed + 1000)
    new = generate_unit_locations(NUM_CHANGED, places - [0, LARGEST_SHIFT_UM / 2], seed=seed + 2000)
    half = NUM_CHANGED // 2
    new[:half, :2] = gone[:half, :2] + rng.normal(0, LOOK_ALIKE_UM, (half, 2))
    return Tissue(np.concatenate([gone, staying, new]), params)


def make_day(
    tissue: Tissue, probe: Probe, day: int, shift_um: float, seconds: float, seed: int, folder: Path
) -> tuple[si.BaseRecording, si.BaseSorting]:
    """Write the recording of a day; return it with its spikes, whose unit ids are the same on both days."""
    units = tissue.units_of(day)
    own_seed = 10 * seed + day
    drawn = si.generate_sorting(
        num_units=NUM_UNITS,
        sampling_frequency=RATE,
        durations=[seconds],
        firing_rates=(2.0, 12.0),
        refractory_period_ms=4.0,
        seed=own_seed,
    )
    truth = drawn.rename_units([str(unit) for unit in units])
    waveforms = si.generate_templates(
        probe.contact_positions,
        tissue.locations[units] + [0, shift_um, 0],
        RATE,
        ms_before=1.5,
        ms_after=3.0,
        unit_params={name: values[units] for name, values in tissue.params.items()},
    )
    noise = si.generate_noise(
        probe, RATE, durations=[seconds], noise_levels=(8.0, 10.0), spatial_decay=25.0, seed=own_seed
    )
    sizes = np.random.default_rng(own_seed).normal(1, 0.05, len(truth.to_spike_vector()))
    recording = si.InjectTemplatesRecording(
        truth, waveforms, nbefore=45, amplitude_factor=sizes, parent_recording=noise
    )
    recording.set_probe(probe)
    steps = si.astype(recording, "int16", round=True)  # of 1 uV
    shutil.rmtree(folder, ignore_errors=True)
    saved = steps.save(folder=folder, n_jobs=1, progress_bar=False)
    saved.set_channel_gains(1.0)
    saved.set_channel_offsets(0.0)
    return saved, truth


def learn(
    recording: si.BaseRecording, truth: si.BaseSorting, seed: int, with_labels: bool
) -> spikewise.Model:
    """Learn a day; without labels the units get the ids of the neurons that they agree with."""
    if with_labels:
        return spikewise.train(recording, truth, labels_per_unit=15, seed=seed)
    return spikewise.train(recording, seed=seed)


def neurons_of(
    model: spikewise.Model, recording: si.BaseRecording, truth: si.BaseSorting, with_labels: bool
) -> dict[str, str]:
    """Return the neuron of each unit of a model, by its spikes on the day that it was learnt."""
    if with_labels:
        return {str(unit): str(unit) for unit in model.unit_ids}
    found = spikewise.sort(recording, model=model, motion="none", report=False).sorting
    agreement = agreements(compare_sortings(truth, found), found)
    best = agreement.argmax(axis=0)
    return {
        str(unit): str(truth.unit_ids[best[k]])
        for k, unit in enumerate(found.unit_ids)
        if agreement[best[k], k] >= KEPT
    }


def score(
    truth: si.BaseSorting, found: si.BaseSorting, neurons: dict[str, str], staying: list[str]
) -> dict[str, Any]:
    """Compare each id with its neuron, and with all others."""
    agreement = agreements(compare_sortings(truth, found), found)
    row = {str(unit): index for index, unit in enumerate(truth.unit_ids)}
    own = {}
    wrong, silent, spikes = [], 0, 0
    for k, unit in enumerate(map(str, found.unit_ids)):
        neuron = neurons.get(unit)
        if neuron is None:
            continue
        mine = agreement[row[neuron], k] if neuron in row else 0.0
        own[neuron] = max(own.get(neuron, 0.0), float(mine))
        if agreement[:, k].max() >= OTHER and agreement[:, k].max() > mine:
            wrong.append(neuron)
        if neuron not in row:
            count = len(found.get_unit_spike_train(found.unit_ids[k]))
            silent, spikes = silent + (count == 0), spikes + count
    values = np.array([own.get(neuron, 0.0) for neuron in staying])
    counts = np.array([len(truth.get_unit_spike_train(neuron)) for neuron in staying])
    return {
        "accuracy": round(float((values * counts).sum() / counts.sum()), 4),
        "kept": int((values >= KEPT).sum()),
        "staying": len(staying),
        "other_neuron": wrong,
        "gone_silent": silent,
        "gone_spikes": spikes,
        "lost": {n: round(float(v), 2) for n, v in zip(staying, values, strict=True) if v < KEPT},
    }


def measure(seed: int, shift_um: float, options: argparse.Namespace) -> dict[str, Any]:
    """Sort day 2 with the model of day 1, and with one learnt there."""
    probe = make_probe()
    tissue = make_tissue(seed, probe)
    with_labels = not options.without_labels
    staying = [str(unit) for unit in np.intersect1d(tissue.units_of(1), tissue.units_of(2))]
    name = f"{seed}{'' if with_labels else '_without_labels'}"
    file = options.folder / f"day1_{name}.safetensors"
    known = options.folder / f"day1_{name}.json"
    if not (file.exists() and known.exists()):
        day1, truth1 = make_day(tissue, probe, 1, 0.0, options.seconds, seed, options.folder / "day1")
        model = learn(day1, truth1, seed, with_labels)
        known.write_text(json.dumps(neurons_of(model, day1, truth1, with_labels)))
        spikewise.save_model(model, file)
        shutil.rmtree(options.folder / "day1")
    neurons = json.loads(known.read_text())
    day2, truth2 = make_day(tissue, probe, 2, shift_um, options.seconds, seed, options.folder / "day2")
    started = time.perf_counter()
    result = spikewise.sort(day2, model=file, report=False)
    row = {
        "seed": seed,
        "shift_um": shift_um,
        "labels": 15 if with_labels else 0,
        "other_day": score(truth2, result.sorting, neurons, staying),
        "seconds": round(time.perf_counter() - started, 1),
        "motion": result.provenance["motion"],
    }
    if not options.only_model:
        there = learn(day2, truth2, seed, with_labels)
        found = spikewise.sort(day2, model=there, report=False).sorting
        own = neurons_of(there, day2, truth2, with_labels)
        row["learnt_there"] = score(truth2, found, own, staying)
    row["load"] = round(os.getloadavg()[0], 2)
    if not options.keep:
        shutil.rmtree(options.folder / "day2")
    return row


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("bench/days"))
    parser.add_argument("--shifts", type=float, nargs="+", default=[0.0, 37.0, 80.0], help="in um")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--without-labels", action="store_true", help="the units are found on day 1")
    parser.add_argument("--only-model", action="store_true", help="learn nothing on day 2")
    parser.add_argument("--keep", action="store_true", help="keep the last recording")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for seed in options.seeds:
        for shift_um in options.shifts:
            line = json.dumps(measure(seed, shift_um, options))
            print(line, flush=True)
            with (options.folder / "days.jsonl").open("a") as opened:
                opened.write(line + "\n")


if __name__ == "__main__":
    main()
