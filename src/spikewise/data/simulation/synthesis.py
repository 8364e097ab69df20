"""The parts of a simulated recording: seeds, spike trains, noise, generated units, and their sum.

Conventions: traces and templates in uV, positions in um, times in samples. The recordings of this module
compute their traces when they are read, in blocks on a fixed grid, so any reading gives the same traces.
"""

from __future__ import annotations

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
from spikewise.core.seeds import stage_seed

STREAMS = ("rates", "spike_trains", "templates", "amplitudes", "noise")
"""Random stages, each with its own seed."""
RATE_SPREAD = 0.2
"""Relative standard deviation of the firing rates of one cell type; chosen by hand."""
MIN_RATE_HZ = 0.01
"""Lowest firing rate that is drawn; chosen by hand."""
MIN_AMPLITUDE_FACTOR = 0.1
"""Smallest factor by which a spike's amplitude varies; chosen by hand."""
GENERATED_MS = (1.0, 3.0)
"""Length of a generated waveform before and after the trough; SpikeInterface's default."""
FADE_MS = 0.5
"""Time within which both ends of a measured or simulated waveform fade to zero; chosen by hand."""
CANDIDATE_ROUNDS = 50
"""How often candidates are drawn for units that are still missing; chosen by hand."""


@dataclass(frozen=True)
class Units:
    """Units on a probe: templates (num_units, num_samples, num_channels) in uV, and their locations in um."""

    unit_ids: tuple[str, ...]
    templates: np.ndarray
    num_before: int
    locations: np.ndarray


def derive_seeds(seed: int) -> dict[str, int]:
    """Return a seed of 31 bits for each random stage; it depends only on `seed` and the stage's name."""
    return {name: stage_seed(seed, name) >> 1 for name in STREAMS}


def draw_units(carrier: BaseRecording, config: SimulationConfig, seed: int) -> Units:
    """Draw units around the channels until enough have the wanted amplitude and distance.

    Units are spread evenly over the channel groups of `carrier`. There are fewer units than wanted if
    CANDIDATE_ROUNDS rounds of candidates have no more.
    """
    rng = np.random.default_rng(seed)
    positions = carrier.get_channel_locations()[:, :2]
    groups = carrier.get_channel_groups()
    group_ids = np.unique(groups)
    share = -(-config.num_units // group_ids.size)
    fs = carrier.sampling_frequency
    chosen: list[tuple[np.ndarray, int]] = []
    locations = np.zeros((0, 3))
    for group_id in np.tile(rng.permutation(group_ids), CANDIDATE_ROUNDS):
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
    # Below 11 kHz the rise of a spike can be shorter than a sample, so its number of samples is 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        templates = generate_templates(positions, locations, fs, *GENERATED_MS, seed=rng.integers(2**31))
    return templates, locations


def draw_spike_trains(
    unit_ids: tuple[str, ...], fs: float, num_samples: int, config: SimulationConfig, seeds: dict[str, int]
) -> NumpySorting:
    """Draw Poisson trains with a refractory period, excitatory units first."""
    num_units = len(unit_ids)
    excitatory = np.arange(num_units) < round(config.excitatory_fraction * num_units)
    mean = np.where(excitatory, config.excitatory_rate_hz, config.inhibitory_rate_hz)
    rng = np.random.default_rng(seeds["rates"])
    spread = 1 + RATE_SPREAD * np.clip(rng.standard_normal(num_units), -3, 3)
    generated = generate_sorting(
        num_units=num_units,
        sampling_frequency=fs,
        durations=[num_samples / fs],
        firing_rates=np.maximum(mean * spread, MIN_RATE_HZ),
        refractory_period_ms=config.refractory_ms,
        seed=seeds["spike_trains"],
    )
    sorting = NumpySorting(generated.to_spike_vector(), fs, np.asarray(unit_ids))
    sorting.set_property("cell_type", np.where(excitatory, "E", "I"))
    return sorting


def make_noise(
    probe: Probe | ProbeGroup, fs: float, config: SimulationConfig, seeds: dict[str, int]
) -> BaseRecording:
    """Return noise on all channels of a probe, computed one second at a time when it is read."""
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
        # Half a sample more: the generator truncates the product of duration and frequency.
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
    factor = np.maximum(1 + config.amplitude_std * rng.standard_normal(num_spikes), MIN_AMPLITUDE_FACTOR)
    return InjectTemplatesRecording(
        sorting,
        units.templates,
        nbefore=units.num_before,
        amplitude_factor=factor.astype(np.float32),
        parent_recording=background,
    )


def fade_out(num_samples: int) -> np.ndarray:
    """Return factors (num_samples,) that fall from almost 1 to almost 0 along half a cosine."""
    return 0.5 * (1 + np.cos(np.pi * np.arange(1, num_samples + 1) / (num_samples + 1)))


def _attach(recording: BaseRecording, probe: Probe | ProbeGroup) -> None:
    if isinstance(probe, ProbeGroup):
        recording.set_probegroup(probe)
    else:
        recording.set_probe(probe)
