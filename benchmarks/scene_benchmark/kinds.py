"""The kinds of scenes: which units they have, where these are, when they fire, and in what noise.

Conventions: waveforms are (num_units, num_samples, num_channels) in uV, positions (num_channels, 2) in um,
spike trains in samples. Each maker writes ``recording`` and ``truth`` into a new folder, and returns the
pairs of units that fire together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import spikeinterface.full as si
from probeinterface import Probe, generate_multi_columns_probe, generate_tetrode

import spikewise
from spikewise.core.errors import SettingError
from spikewise.data.simulation.mearec import load_mearec_templates
from spikewise.data.simulation.saving import save_simulation

NUM_CHANNELS = 128
AMPLITUDES_uV = (40.0, 300.0)
"""Smallest and largest peak-to-peak amplitude of the units from a template file."""
LATE_FROM_S, LATE_EVERY = 75.0, 4
"""In ``late`` every fourth unit fires from so many seconds on; earlier if the scene is under 180 s."""
SYNCHRONOUS_SHARE, SYNCHRONOUS_MS = 0.1, 0.3
"""In ``pairs``, the share of a unit's spikes with a spike of its partner, and their largest distance."""
REFRACTORY_MS = 4.0
NEAR_CHANNEL, MIN_SHARED_CHANNELS, MAX_COSINE = 0.25, 0.5, 0.9
"""Partners share half of the channels of the smaller one (those with a quarter of its largest amplitude), and
their waveforms differ: the cosine is smaller than MAX_COSINE."""


@dataclass(frozen=True)
class SceneSettings:
    """What a scene is made from; `noise_uV` and `templates` are None where the generator has its own."""

    name: str
    seed: int
    seconds: float
    num_units: int
    noise_uV: float | None
    templates: Path | None


@dataclass(frozen=True)
class SceneKind:
    """How a kind of scene is made, and its defaults; `make` returns the pairs of synchronous units."""

    make: Callable[[SceneSettings, Path, int], list[tuple]]
    seconds: float
    num_units: int
    noise_uV: float | None = None
    from_templates: bool = False


def _save(recording: si.BaseRecording, truth: si.BaseSorting, folder: Path, jobs: int) -> None:
    recording.save(folder=folder / "recording", n_jobs=jobs, progress_bar=False)
    truth.save(folder=folder / "truth")


def _make_tetrode(settings: SceneSettings, folder: Path, jobs: int) -> list[tuple]:
    recording, truth = si.generate_ground_truth_recording(
        durations=[settings.seconds], num_channels=4, num_units=settings.num_units, seed=settings.seed
    )
    probe = generate_tetrode()
    probe.set_device_channel_indices(np.arange(4))
    recording.set_probe(probe)
    _save(recording, truth, folder, jobs)
    return []


_ZIGZAG = {"drift_mode": "zigzag", "non_rigid_gradient": None, "t_end_drift": None}
_JUMPS = {
    "drift_mode": "bump",
    "non_rigid_gradient": 0.3,
    "t_end_drift": None,
    "bump_interval_s": (20.0, 40.0),
}


def _make_drift60(settings: SceneSettings, folder: Path, jobs: int) -> list[tuple]:
    seconds = settings.seconds
    motion = {**_ZIGZAG, "t_start_drift": 0.2 * seconds, "period_s": 0.8 * seconds}
    return _make_drifting(settings, motion, 30, folder, jobs)


def _make_jump40(settings: SceneSettings, folder: Path, jobs: int) -> list[tuple]:
    return _make_drifting(settings, {**_JUMPS, "t_start_drift": 0.35 * settings.seconds}, 20, folder, jobs)


def _make_drifting(
    settings: SceneSettings, motion: dict[str, Any], reach_um: int, folder: Path, jobs: int
) -> list[tuple]:
    """Make units that move by up to `reach_um` up and down the probe."""
    probe = generate_multi_columns_probe(
        num_columns=2,
        num_contact_per_column=NUM_CHANNELS // 2,
        xpitch=32,
        ypitch=20,
        y_shift_per_column=[0, 10],
    )
    probe.set_device_channel_indices(np.arange(NUM_CHANNELS))
    _, recording, truth = si.generate_drifting_recording(
        num_units=settings.num_units,
        duration=settings.seconds,
        sampling_frequency=30000.0,
        seed=settings.seed,
        probe=probe,
        generate_displacement_vector_kwargs={
            "displacement_sampling_frequency": 5.0,
            "drift_start_um": [0, reach_um],
            "drift_stop_um": [0, -reach_um],
            "drift_step_um": 1,
            "motion_list": [motion],
        },
        generate_sorting_kwargs={"firing_rates": (2.0, 12.0), "refractory_period_ms": REFRACTORY_MS},
        generate_noise_kwargs={"noise_levels": (8.0, 10.0), "spatial_decay": 25.0},
    )
    _save(recording, truth, folder, jobs)
    return []


@dataclass(frozen=True)
class Cells:
    """Waveforms of a template file on the middle of its probe, of the units of fitting amplitude."""

    waveforms: np.ndarray
    positions_um: np.ndarray
    sampling_frequency: float

    def choose(self, index: np.ndarray) -> Cells:
        return dataclasses.replace(self, waveforms=self.waveforms[index])


def _load_cells(path: Path, num_units: int) -> Cells:
    templates = load_mearec_templates(path)
    sites = templates.probe.contact_positions
    first = len(sites) // 2 - NUM_CHANNELS // 2
    middle = np.sort(np.argsort(sites[:, 1], kind="stable")[max(first, 0) : first + NUM_CHANNELS])
    waveforms = np.asarray(templates.generator.templates)  # (num_units, num_channels, num_samples)
    if waveforms.ndim != 3:
        raise SettingError(
            f"the template file {path} holds drifting units",
            "these scenes need units that stay",
            "give another file with --templates",
        )
    size = np.ptp(waveforms, axis=2)
    low, high = AMPLITUDES_uV
    fitting = np.isin(size.argmax(axis=1), middle) & (size.max(axis=1) >= low) & (size.max(axis=1) <= high)
    if fitting.sum() < num_units:
        raise SettingError(
            f"{num_units} units are asked for",
            f"{path} holds {fitting.sum()} of {low:g} to {high:g} uV on its middle {len(middle)} channels",
            "ask for fewer with --units, or give another file with --templates",
        )
    chosen = waveforms[np.flatnonzero(fitting)][:, middle].transpose(0, 2, 1).astype(np.float32)
    return Cells(chosen, sites[middle], templates.sampling_frequency)


def _make_plain(settings: SceneSettings, folder: Path, jobs: int) -> list[tuple]:
    return _make_from_templates(settings, None, folder, jobs)


def _make_late(settings: SceneSettings, folder: Path, jobs: int) -> list[tuple]:
    from_s = min(LATE_FROM_S, LATE_FROM_S / 180 * settings.seconds)
    return _make_from_templates(settings, from_s, folder, jobs)


def _make_from_templates(
    settings: SceneSettings, late_from_s: float | None, folder: Path, jobs: int
) -> list[tuple]:
    assert settings.templates is not None
    rng = np.random.default_rng(settings.seed)
    cells = _load_cells(settings.templates, settings.num_units)
    chosen = np.sort(rng.choice(len(cells.waveforms), settings.num_units, replace=False))
    truth = _poisson(settings, rng.uniform(1, 15, settings.num_units), cells.sampling_frequency)
    if late_from_s is not None:
        trains = {unit_id: truth.get_unit_spike_train(unit_id) for unit_id in truth.unit_ids}
        for unit_id in list(trains)[::LATE_EVERY]:
            trains[unit_id] = trains[unit_id][trains[unit_id] > late_from_s * cells.sampling_frequency]
        truth = si.NumpySorting.from_unit_dict(trains, cells.sampling_frequency)
    _save(_inject(settings, truth, cells.choose(chosen), rng), truth, folder, jobs)
    return []


def _poisson(settings: SceneSettings, rates: np.ndarray, sampling_frequency: float) -> si.BaseSorting:
    return si.generate_sorting(
        num_units=settings.num_units,
        sampling_frequency=sampling_frequency,
        durations=[settings.seconds],
        firing_rates=rates,
        refractory_period_ms=REFRACTORY_MS,
        seed=settings.seed,
    )


def _inject(
    settings: SceneSettings, truth: si.BaseSorting, cells: Cells, rng: np.random.Generator
) -> si.BaseRecording:
    """Return white noise with the spikes in it; each spike has a size of its own, 8 % apart."""
    waveforms, rate = cells.waveforms, cells.sampling_frequency
    noise = si.NoiseGeneratorRecording(
        num_channels=waveforms.shape[2],
        sampling_frequency=rate,
        durations=[settings.seconds],
        noise_levels=settings.noise_uV,
        seed=settings.seed,
    )
    main_channel = np.ptp(waveforms, axis=1).argmax(axis=1)
    num_before = int(waveforms[np.arange(len(waveforms)), :, main_channel].mean(axis=0).argmin())
    sizes = rng.normal(1, 0.08, len(truth.to_spike_vector())).clip(0.6, 1.4)
    recording = si.InjectTemplatesRecording(
        truth, waveforms, nbefore=num_before, amplitude_factor=sizes, parent_recording=noise
    )
    probe = Probe(ndim=2, si_units="um")
    probe.set_contacts(positions=cells.positions_um, shapes="square", shape_params={"width": 12})
    probe.set_device_channel_indices(np.arange(len(cells.positions_um)))
    recording.set_probe(probe)
    return recording


def _make_pairs(settings: SceneSettings, folder: Path, jobs: int) -> list[tuple]:
    assert settings.templates is not None
    rng = np.random.default_rng(settings.seed)
    num_pairs, left = divmod(settings.num_units, 2)
    if left:
        raise SettingError(
            f"{settings.num_units} units are asked for", "units come in pairs", "give an even --units"
        )
    cells = _load_cells(settings.templates, settings.num_units)
    chosen = choose_partners(cells.waveforms, num_pairs, rng)
    rates = np.repeat(rng.uniform(1, 15, num_pairs), 2)
    drawn = _poisson(settings, rates, cells.sampling_frequency)
    trains = {unit_id: drawn.get_unit_spike_train(unit_id) for unit_id in drawn.unit_ids}
    ids = list(trains)
    pairs = list(zip(ids[::2], ids[1::2], strict=True))
    num_samples = round(settings.seconds * cells.sampling_frequency)
    for a, b in pairs:
        trains[b] = synchronise(trains[a], trains[b], cells.sampling_frequency, num_samples, rng)
    truth = si.NumpySorting.from_unit_dict(trains, cells.sampling_frequency)
    _save(_inject(settings, truth, cells.choose(chosen.ravel()), rng), truth, folder, jobs)
    return pairs


def choose_partners(waveforms: np.ndarray, num_pairs: int, rng: np.random.Generator) -> np.ndarray:
    """Draw pairs of units that share channels and differ in shape.

    Returns
    -------
    ndarray of int, shape (num_pairs, 2)
        Indices of units, each at most once.

    Raises
    ------
    SettingError
        If there are too few such units.
    """
    size = np.ptp(waveforms, axis=1)
    near = (size >= NEAR_CHANNEL * size.max(axis=1, keepdims=True)).astype(int)
    smaller = np.minimum(near.sum(axis=1)[:, None], near.sum(axis=1)[None, :])
    flat = waveforms.reshape(len(waveforms), -1)
    length = np.linalg.norm(flat, axis=1)
    fitting = (near @ near.T >= MIN_SHARED_CHANNELS * smaller) & (
        flat @ flat.T < MAX_COSINE * np.outer(length, length)
    )
    free = np.ones(len(waveforms), dtype=bool)
    chosen: list[tuple[int, int]] = []
    for first in rng.permutation(len(waveforms)):
        partners = np.flatnonzero(fitting[first] & free)
        if len(chosen) < num_pairs and free[first] and partners.size:
            second = int(rng.choice(partners))
            chosen.append((int(first), second))
            free[[first, second]] = False
    if len(chosen) < num_pairs:
        raise SettingError(
            f"{num_pairs} pairs of units are asked for",
            f"the template file holds {len(chosen)} that share channels and differ in shape",
            "ask for fewer with --units, or give another file with --templates",
        )
    return np.array(chosen)


def synchronise(
    train_a: np.ndarray, train_b: np.ndarray, rate: float, num_samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the second train with a share of its spikes moved next to spikes of the first.

    It stays as long as it was, and refractory. The lags are uniform within SYNCHRONOUS_MS on both sides.
    """
    reach, refractory = (int(limit / 1000 * rate) for limit in (SYNCHRONOUS_MS, REFRACTORY_MS))
    inside = train_a[(train_a >= reach) & (train_a < num_samples - reach)]
    count = min(round(SYNCHRONOUS_SHARE * (len(train_a) + len(train_b)) / 2), len(inside), len(train_b))
    events = np.sort(rng.choice(inside, count, replace=False)) + rng.integers(-reach, reach + 1, count)
    distance = np.abs(train_b[:, None] - events[None, :]).min(axis=1, initial=num_samples)
    kept = train_b[distance > refractory]
    kept = rng.choice(kept, min(len(kept), len(train_b) - count), replace=False)
    return np.sort(np.concatenate([kept, events]))


def _make_mearec384(settings: SceneSettings, folder: Path, jobs: int) -> list[tuple]:
    """Convolve with MEArec, on the whole probe of the template file; saved in steps of 16 bits."""
    simulation = spikewise.simulate(
        source="mearec",
        templates=str(settings.templates),
        num_units=settings.num_units,
        duration_s=settings.seconds,
        noise_uV=settings.noise_uV,
        min_amplitude_uV=AMPLITUDES_uV[0],
        max_amplitude_uV=AMPLITUDES_uV[1],
        seed=settings.seed,
    )
    save_simulation(simulation, folder)
    return []


SCENES = {
    "plain": SceneKind(_make_plain, 180.0, 50, 15.0, from_templates=True),
    "late": SceneKind(_make_late, 180.0, 50, 12.0, from_templates=True),
    "drift60": SceneKind(_make_drift60, 240.0, 40),
    "jump40": SceneKind(_make_jump40, 240.0, 40),
    "tetrode": SceneKind(_make_tetrode, 240.0, 8),
    "pairs": SceneKind(_make_pairs, 120.0, 40, 12.0, from_templates=True),
    "mearec384": SceneKind(_make_mearec384, 60.0, 100, 10.0, from_templates=True),
}
