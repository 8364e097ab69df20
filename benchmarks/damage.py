"""The effect of damaged signals: accuracy outside the damage, false spikes inside, time of the search.

    python benchmarks/damage.py [--channels 32] [--units 15] [--duration-s 60] [--seeds 0] [-o damage.json]

A simulated recording is sorted without damage and with damage in 2 % of the time: lost packets (zeros),
saturation, stimulation artefacts. The labels are in the first half, which is clean or damaged. The second
half is scored, outside the injected and outside the detected damage, and compared with the undamaged run in
the same time.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import scipy.signal
from spikeinterface.core import NumpyRecording, NumpySorting

import spikewise
from spikewise.data.recordings.conditioning import FILTER_ORDER, bandpass, reference_and_scale
from spikewise.data.recordings.damage import find_damage, measure_limits, reach_samples

STEP_UV = 0.5
BURST_S = 0.02
PULSE_UV = (3000.0, 9000.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--units", type=int, default=15)
    parser.add_argument("--duration-s", type=float, default=60.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--labels-per-unit", type=int, default=30)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    rows = [row for seed in options.seeds for row in measure(options, seed)]
    result = {"rows": rows, "cost": measure_cost()}
    cost = result["cost"]
    print(
        f"looking for damage in 1 s of 384 channels: {1000 * cost['looking_s']:.1f} ms, "
        f"{100 * cost['share']:.1f} % of filter, median and scaling"
    )
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def measure(options: argparse.Namespace, seed: int) -> list[dict]:
    simulation = spikewise.simulate(
        probe=f"linear-{options.channels}", num_units=options.units, duration_s=options.duration_s, seed=seed
    )
    clean = np.rint(simulation.recording.get_traces() / STEP_UV).astype(np.int16)
    rate, half_s = simulation.recording.get_sampling_frequency(), options.duration_s / 2
    damaged, is_damaged = inject(clean, rate, seed)
    first_half = np.arange(len(clean)) < half_s * rate
    scenes = {
        "clean": (clean, "skip"),
        "damaged second half": (np.where(first_half[:, None], clean, damaged), "skip"),
        "damaged": (damaged, "skip"),
        "damaged, kept as it is": (damaged, "keep"),
    }
    found = {}
    for name, (traces, how) in scenes.items():
        recording = NumpyRecording([traces], rate, channel_ids=simulation.recording.channel_ids)
        recording.set_probegroup(simulation.recording.get_probegroup())
        found[name] = spikewise.sort(
            recording,
            labels=simulation.sorting,
            label_interval=(0, half_s),
            labels_per_unit=options.labels_per_unit,
            damage=how,
            seed=seed,
        )
    listed = np.zeros(len(clean), bool)
    for one in found["damaged"].provenance["damage"]["stretches"]:
        if one["channels"] == "all":
            listed[round(one["start_s"] * rate) : round(one["stop_s"] * rate)] = True
    margin = np.ones(2 * round(0.001 * rate) + 1)
    listed = scipy.signal.fftconvolve(listed, margin, mode="same") > 0.5
    rows = []
    for name, result in found.items():
        outside = {
            where: accuracy(simulation.sorting, result.sorting, without, (half_s, options.duration_s))
            for where, without in (("injected", is_damaged), ("listed", listed | is_damaged))
        }
        spikes = result.sorting.to_spike_vector()["sample_index"]
        false_inside = count_false(simulation.sorting, result.sorting, is_damaged)
        rows.append({"seed": seed, "run": name, **outside, "false_inside": false_inside / len(spikes)})
        print(
            f"seed {seed}  {name:24s} accuracy outside injected {outside['injected']:.4f}, outside listed "
            f"{outside['listed']:.4f}; false inside {100 * rows[-1]['false_inside']:.2f} % of all spikes",
            flush=True,
        )
    return rows


def inject(clean: np.ndarray, rate: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Damage 20 ms of every second: in turn lost packets, saturation and stimulation artefacts."""
    rng = np.random.default_rng(seed + 1000)
    damaged, is_damaged = clean.copy(), np.zeros(len(clean), bool)
    length = round(BURST_S * rate)
    time_s = np.arange(length) / rate
    pulses = np.exp(-time_s / 0.002) * np.sign(np.sin(time_s * 2 * np.pi * 500))
    for index in range(int(len(clean) / rate)):
        start = round(index * rate) + int(rng.integers(0, round(rate) - length))
        where = slice(start, start + length)
        if index % 3 == 0:
            damaged[where] = 0
        elif index % 3 == 1:
            damaged[where] = 32767
        else:
            sizes = rng.uniform(*PULSE_UV, clean.shape[1]) / STEP_UV
            damaged[where] = np.clip(clean[where] + pulses[:, None] * sizes, -32768, 32767)
        is_damaged[where] = True
    return damaged, is_damaged


def without(sorting, is_damaged: np.ndarray) -> NumpySorting:
    spikes = sorting.to_spike_vector()
    kept = spikes[~is_damaged[spikes["sample_index"]]]
    return NumpySorting(kept, sorting.sampling_frequency, sorting.unit_ids)


def accuracy(truth, sorting, is_damaged: np.ndarray, interval: tuple[float, float]) -> float:
    scored = (without(one, is_damaged) for one in (truth, sorting))
    return spikewise.evaluate(*scored, interval=interval).accuracy


def count_false(truth, sorting, is_damaged: np.ndarray) -> int:
    """Count spikes in the damage without a true spike of their unit within 0.4 ms."""
    true, spikes = truth.to_spike_vector(), sorting.to_spike_vector()
    radius, number = round(0.0004 * sorting.sampling_frequency), 0
    for unit_index in range(len(sorting.unit_ids)):
        mine = spikes["sample_index"][spikes["unit_index"] == unit_index]
        mine = mine[is_damaged[mine]]
        times = np.sort(true["sample_index"][true["unit_index"] == unit_index])
        near = np.searchsorted(times, mine - radius) < np.searchsorted(times, mine + radius, side="right")
        number += int((~near).sum())
    return number


def measure_cost() -> dict[str, float]:
    """Time the search for damage and the preprocessing of one second of 384 channels: medians of nine."""
    rate, rng = 30000.0, np.random.default_rng(0)
    reach, margin = reach_samples(rate) + 300, 500
    traces = np.rint(rng.normal(0, 3, (30000 + 2 * (reach + margin), 384))).astype(np.int16)
    sections = scipy.signal.butter(FILTER_ORDER, (300, 6000), "bandpass", output="sos", fs=rate)
    gains, offsets = np.ones(384, np.float32), np.zeros(384, np.float32)
    limits = measure_limits(NumpyRecording([traces], rate), None, 0)
    looking, conditioning = [], []
    for _ in range(10):
        started = time.perf_counter()
        find_damage(traces, 0, rate, limits)
        looking.append(time.perf_counter() - started)
        started = time.perf_counter()
        filtered = bandpass(traces[reach:-reach], sections)[margin:-margin]
        reference_and_scale(filtered, np.arange(384), gains, offsets)
        conditioning.append(time.perf_counter() - started)
    looking_s, conditioning_s = (float(np.median(one[1:])) for one in (looking, conditioning))
    return {"looking_s": looking_s, "conditioning_s": conditioning_s, "share": looking_s / conditioning_s}


if __name__ == "__main__":
    sys.exit(main())
