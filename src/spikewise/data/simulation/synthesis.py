"""The parts of a simulated recording: seeds, spike trains, noise, generated units, and their sum.

Conventions: traces and templates in uV, positions in um, times in samples. A recording made here
computes its traces when they are read, in blocks on a fixed grid, so they do not depend on how they are
read.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from probeinterface import Probe, ProbeGroup
from spikeinterface.core import BaseRecording, NumpyRecording, NumpySorting
from spikeinterface.core.core_tools import ms_to_samples
from spikeinterface.core.generate import (
    InjectTemplatesRecording,
    generate_sorting,
    generate_templates,
    generate_unit_locations,
)
from spikeinterface.generation.noise_tools import NoiseGeneratorRecording

from spikewise.core.config import SimulationConfig

STREAMS = ("rates", "spike_trains", "templates", "amplitudes", "noise")
RATE_SPREAD = 0.2
LEAST_RATE_HZ = 0.01
LEAST_AMPLITUDE_FACTOR = 0.1
GENERATED_MS = (1.0, 3.0)
ROUNDS_OF_CANDIDATES = 50


@dataclass(frozen=True)
class Units:
    """Units on a probe: templates (num_units, num_samples, num_channels) in uV and where they sit."""

    unit_ids: tuple[str, ...]
    templates: np.ndarray
    num_before: int
    locations: np.ndarray


def derive_seeds(seed: int) -> dict[str, int]:
    """Return a seed for each random stage; a stage's seed depends on `seed` and its name alone."""
    return {
        name: int(np.random.SeedSequence([seed, zlib.crc32(name.encode())]).generate_state(1)[0] >> 1)
        for name in STREAMS
    }


def draw_units(carrier: BaseRecording, config: SimulationConfig, seed: int) -> Units:
    """Draw units around the channels until enough have the amplitude and the room asked for.

    Units are spread evenly over the channel groups of `carrier`. There may be fewer than asked for: where
    ROUNDS_OF_CANDIDATES rounds of candidates hold no more.
    """
    rng = np.random.default_rng(seed)
    positions = carrier.get_channel_locations()[:, :2]
    groups = carrier.get_channel_groups()
    group_ids = np.unique(groups)
    share = -(-config.num_units // group_ids.size)
    fs = carrier.sampling_frequency
    chosen: list[tuple[np.ndarray, int]] = []
    locations = np.zeros((0, 3))
    for group_id in np.tile(rng.permutation(group_ids), ROUNDS_OF_CANDIDATES):
        room = min(share - sum(group == group_id for _, group in chosen), config.num_units - len(chosen))
        if room <= 0:
            continue
        channels = positions[groups == group_id]
        for template, location in zip(*_candidates(channels, positions, share, fs, rng), strict=True):
            apart = np.linalg.norm(locations - location, axis=1) >= config.min_distance_um
            visible = config.min_amplitude_uV <= -template.min() <= config.max_amplitude_uV
            if visible and apart.all() and room > 0:
                chosen.append((template, group_id))
                locations = np.vstack([locations, location])
                room -= 1
    shape = (0, sum(ms_to_samples(ms, fs) for ms in GENERATED_MS), len(positions))
    templates = np.stack([t for t, _ in chosen]) if chosen else np.zeros(shape, dtype=np.float32)
    unit_ids = tuple(str(k) for k in range(len(chosen)))
    return Units(unit_ids, templates, ms_to_samples(GENERATED_MS[0], fs), locations)


def _candidates(
    channels: np.ndarray, positions: np.ndarray, num: int, fs: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Draw units around `channels`; return their templates at all `positions` and their locations."""
    locations = generate_unit_locations(
        num, channels, margin_um=10.0, minimum_distance=None, seed=rng.integers(2**31)
    )
    # Below 11 kHz the rise of a spike can take less than a sample, by whose length it is divided.
    with np.errstate(divide="ignore", invalid="ignore"):
        templates = generate_templates(positions, locations, fs, *GENERATED_MS, seed=rng.integers(2**31))
    return templates, locations


def draw_spike_trains(
    unit_ids: tuple[str, ...], fs: float, num_samples: int, config: SimulationConfig, seeds: dict[str, int]
) -> NumpySorting:
    """Poisson trains with a refractory period, excitatory units first."""
    num_units = len(unit_ids)
    excitatory = np.arange(num_units) < round(config.excitatory_fraction * num_units)
    mean = np.where(excitatory, config.excitatory_rate_hz, config.inhibitory_rate_hz)
    rng = np.random.default_rng(seeds["rates"])
    spread = 1 + RATE_SPREAD * np.clip(rng.standard_normal(num_units), -3, 3)
    generated = generate_sorting(
        num_units=num_units,
        sampling_frequency=fs,
        durations=[num_samples / fs],
        firing_rates=np.maximum(mean * spread, LEAST_RATE_HZ),
        refractory_period_ms=config.refractory_ms,
        seed=seeds["spike_trains"],
    )
    sorting = NumpySorting(generated.to_spike_vector(), fs, np.asarray(unit_ids))
    sorting.set_property("cell_type", np.where(excitatory, "E", "I"))
    return sorting


def make_noise(
    probe: Probe | ProbeGroup, fs: float, config: SimulationConfig, seeds: dict[str, int]
) -> BaseRecording:
    """Noise on all channels of a probe, made a second at a time when read."""
    num_channels = probe.get_contact_count()
    covariance = None
    if config.noise_correlation_um is not None:
        carrier = NumpyRecording([np.zeros((1, num_channels), dtype=np.float32)], fs)
        _attach(carrier, probe)
        positions = carrier.get_channel_locations()
        distance = np.linalg.norm(positions[:, None] - positions[None], axis=2)
        covariance = 0.5 ** (distance / config.noise_correlation_um)
    noise = NoiseGeneratorRecording(
        num_channels=num_channels,
        sampling_frequency=fs,
        # Half a sample more, since the generator truncates the product of both.
        durations=[(round(config.duration_s * fs) + 0.5) / fs],
        noise_levels=config.noise_uV,
        cov_matrix=covariance,
        dtype="float32",
        seed=seeds["noise"],
        strategy="on_the_fly",
        noise_block_size=int(fs),
    )
    _attach(noise, probe)
    return noise


def inject_units(
    background: BaseRecording,
    sorting: NumpySorting,
    units: Units,
    config: SimulationConfig,
    seeds: dict[str, int],
) -> BaseRecording:
    """Add the units' waveforms to the background at their spikes."""
    depth = -units.templates.min(axis=1)
    sorting.set_property("peak_amplitude_uV", depth.max(axis=1).astype(float))
    sorting.set_property("main_channel_index", depth.argmax(axis=1))
    sorting.set_property("gt_unit_locations", units.locations)
    rng = np.random.default_rng(seeds["amplitudes"])
    num_spikes = sorting.to_spike_vector().size
    factor = np.maximum(1 + config.amplitude_std * rng.standard_normal(num_spikes), LEAST_AMPLITUDE_FACTOR)
    return InjectTemplatesRecording(
        sorting,
        units.templates,
        nbefore=units.num_before,
        amplitude_factor=factor.astype(np.float32),
        parent_recording=background,
    )


def _attach(recording: BaseRecording, probe: Probe | ProbeGroup) -> None:
    if isinstance(probe, ProbeGroup):
        recording.set_probegroup(probe)
    else:
        recording.set_probe(probe)
