"""Recordings with known spikes: from a generator, from MEArec templates, or from real waveforms.

Conventions
-----------
Traces are in microvolts (float32) and are computed when they are read, so a recording may be hours long, and
any reading gives the same traces. A spike time is the sample of the trough on the main channel. Every random
stage has its own seed, derived from one seed and the name of the stage. So the same settings give the same
traces and spikes to the bit, and a change to one stage does not change the others.

Spike trains and noise are the same for all sources: Poisson trains with a refractory period and rates that
vary by 20 %; white noise, or noise whose correlation halves with every `noise_correlation_um`. Excitatory
units come first. The units of the true sorting have the properties ``cell_type``, ``peak_amplitude_uV``,
``main_channel_index`` and ``gt_unit_locations``. Drifting units have these values at rest; the units, spikes
and noise are those of the same settings without drift.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import BaseRecording, BaseSorting, NumpySorting
from spikeinterface.core.operatorrecordings import AddRecordings
from spikeinterface.preprocessing import scale_to_uV

from spikewise.core.config import SimulationConfig
from spikewise.core.errors import ProbeError, RecordingError, SettingError
from spikewise.data.recordings.probes import load_probe
from spikewise.data.simulation.displacement import drift_steps
from spikewise.data.simulation.drift import Drift, follow_paths, inject_drifting_units
from spikewise.data.simulation.hybrid import (
    Placement,
    load_real_units,
    own_probe,
    place_units,
    resample_units,
)
from spikewise.data.simulation.mearec import (
    MearecTemplates,
    convolve_mearec,
    load_mearec_templates,
    select_mearec_cells,
)
from spikewise.data.simulation.synthesis import (
    Units,
    derive_seeds,
    draw_spike_trains,
    draw_units,
    inject_units,
    make_noise,
)

logger = logging.getLogger(__name__)

_Parts = tuple[BaseRecording, BaseSorting, Drift | None]


@dataclass(frozen=True)
class Simulation:
    """A simulated recording and its truth.

    Attributes
    ----------
    recording : BaseRecording
        Traces in uV, float32, computed when they are read; with a probe.
    sorting : BaseSorting
        The true spikes.
    config : SimulationConfig
        Its settings.
    facts : dict
        Its origin, in JSON types: seeds, versions, template file, numbers of units and spikes.
    drift : Drift or None
        How the units moved.
    """

    recording: BaseRecording
    sorting: BaseSorting
    config: SimulationConfig
    facts: dict[str, Any]
    drift: Drift | None = None


def simulate_recording(config: SimulationConfig, base_recording: BaseRecording | None = None) -> Simulation:
    """Simulate a recording with known spikes.

    Parameters
    ----------
    config : SimulationConfig
        Source, units, noise, and seed.
    base_recording : BaseRecording, optional
        Recording to which a hybrid's units are added, instead of noise. It needs a probe and gains to
        microvolts; the truth does not contain its own spikes.

    Returns
    -------
    Simulation

    Raises
    ------
    SettingError
        If settings contradict each other, the template file cannot be used or holds too few units, or the
        units cannot drift so far on this probe or in this file.
    ProbeError
        If the probe is unknown, or too few units are visible on it.
    RecordingError
        If the base recording has no probe or no gains.
    MissingExtraError
        If MEArec is needed and not installed.
    """
    _check_request(config, base_recording)
    seeds = derive_seeds(config.seed)
    if config.source == "mearec":
        recording, sorting, drift = _from_mearec(config, seeds)
    elif config.source == "hybrid":
        recording, sorting, drift = _from_real_units(config, seeds, base_recording)
    else:
        recording, sorting, drift = _from_generator(config, seeds)
    recording.set_channel_gains(1.0)
    recording.set_channel_offsets(0.0)
    facts = _facts(config, seeds, recording, sorting) | ({"drift": drift.facts} if drift else {})
    return Simulation(recording, sorting, config, facts, drift)


def _from_generator(config: SimulationConfig, seeds: dict[str, int]) -> _Parts:
    """Add waveforms of SpikeInterface's generator to noise."""
    fs = config.sampling_frequency or 30000.0
    probe = load_probe(config.probe or "linear-16", None)
    noise = make_noise(probe, fs, config, seeds)
    units = draw_units(noise, config, seeds["templates"])
    _check_enough(len(units.unit_ids), config)
    sorting = draw_spike_trains(units.unit_ids, fs, noise.get_num_samples(0), config, seeds)
    return _inject(noise, sorting, units, config, seeds)


def _from_mearec(config: SimulationConfig, seeds: dict[str, int]) -> _Parts:
    """Add MEArec's signal, or its drifting cells, to noise."""
    templates = load_mearec_templates(str(config.templates))
    fs = config.sampling_frequency or templates.sampling_frequency
    noise = make_noise(templates.probe, fs, config, seeds)
    num_samples = noise.get_num_samples(0)
    unit_ids = tuple(f"#{k}" for k in range(config.num_units))
    sorting = draw_spike_trains(unit_ids, fs, num_samples, config, seeds)
    if config.drift != "none":
        return _drifting_cells(templates, noise, sorting, config, seeds)
    signal = convolve_mearec(templates, sorting, num_samples, config, seeds)
    sorting.set_property("peak_amplitude_uV", signal.amplitudes_uV)
    sorting.set_property("main_channel_index", signal.main_channel_index)
    sorting.set_property("gt_unit_locations", signal.locations)
    recording = AddRecordings(noise, signal.recording)
    noise.copy_metadata(recording)
    return recording, sorting, None


def _drifting_cells(
    templates: MearecTemplates,
    noise: BaseRecording,
    sorting: NumpySorting,
    config: SimulationConfig,
    seeds: dict[str, int],
) -> _Parts:
    """Add moving cells to noise; they follow the positions of the template file if it has several.

    A cell that moves both ways rests so far along its path that it can move as far back.
    """
    cells = select_mearec_cells(templates, sorting, config, seeds)
    resting, location = cells.waveforms[:, 0], cells.locations[:, 0]
    moved = None
    if cells.waveforms.shape[1] > 1:
        steps = drift_steps(config)
        rest_um = -float(steps.min())
        moved = follow_paths(cells.waveforms, cells.locations, steps + rest_um)
        if rest_um > 0:
            resting = follow_paths(cells.waveforms, cells.locations, np.array([rest_um]))[0]
            location = location + np.array([0.0, rest_um, 0.0])
    units = Units(tuple(sorting.unit_ids), resting, cells.num_before, location)
    recording, drift = inject_drifting_units(noise, sorting, units, config, seeds, moved)
    return recording, sorting, drift


def _from_real_units(
    config: SimulationConfig, seeds: dict[str, int], base_recording: BaseRecording | None
) -> _Parts:
    """Add measured waveforms to noise, or to a given recording."""
    units, own_fs = load_real_units(str(config.templates))
    if config.num_units > len(units):
        raise SettingError(
            f"{config.num_units} units were requested",
            f"{config.templates} holds {len(units)}",
            "ask for fewer units or give another template file",
        )
    if base_recording is not None:
        background = scale_to_uV(base_recording)
    else:
        probe = load_probe(config.probe, None) if config.probe else own_probe(units, config.num_units)
        background = make_noise(probe, config.sampling_frequency or own_fs, config, seeds)
    fs = background.sampling_frequency
    amplitudes = (config.min_amplitude_uV, config.max_amplitude_uV)
    placed = place_units(
        resample_units(units, own_fs, fs),
        background.get_channel_locations()[:, :2],
        fs,
        Placement(config.num_units, amplitudes, config.min_distance_um),
        np.random.default_rng(seeds["templates"]),
    )
    _check_enough(len(placed.unit_ids), config)
    num_samples = background.get_num_samples(0)
    sorting = draw_spike_trains(placed.unit_ids, fs, num_samples, config, seeds)
    chosen = Units(placed.unit_ids, placed.templates, placed.num_before, placed.locations)
    return _inject(background, sorting, chosen, config, seeds)


def _inject(
    background: BaseRecording,
    sorting: NumpySorting,
    units: Units,
    config: SimulationConfig,
    seeds: dict[str, int],
) -> _Parts:
    """Add the units to the background; drifting units are interpolated between its channels."""
    if config.drift == "none":
        return inject_units(background, sorting, units, config, seeds), sorting, None
    recording, drift = inject_drifting_units(background, sorting, units, config, seeds)
    return recording, sorting, drift


def _check_request(config: SimulationConfig, base_recording: BaseRecording | None) -> None:
    """Raise if settings contradict each other or the base recording."""
    problem = None
    if config.source == "generator" and config.templates is not None:
        problem = ("a template file is given for the generator, which makes its own", "leave out templates")
    elif config.source != "generator" and config.templates is None:
        problem = (f"the source {config.source} has no template file", "give one with templates")
    elif config.source == "mearec" and config.probe is not None:
        problem = (
            f"the probe {config.probe!r} is given for MEArec templates, which were simulated for their own",
            "leave out probe, or use another template file",
        )
    elif base_recording is not None and config.source != "hybrid":
        problem = (f"a base recording is given for the source {config.source}", "use the source hybrid")
    elif base_recording is not None and (config.probe is not None or config.sampling_frequency is not None):
        problem = (
            "a probe or a sampling frequency is given besides a base recording, which has its own",
            "leave out probe and sampling_frequency",
        )
    if problem:
        raise SettingError(
            problem[0],
            "the generator takes no template file; mearec and hybrid take one, and only hybrid a recording",
            problem[1],
        )
    if base_recording is not None:
        _check_base(base_recording)


def _check_base(recording: BaseRecording) -> None:
    problem = None
    if not recording.has_probe():
        problem = "no probe"
    elif not recording.has_scaleable_traces():
        problem = "no gain to microvolts"
    elif recording.get_num_segments() != 1:
        problem = f"{recording.get_num_segments()} segments"
    if problem:
        raise RecordingError(
            f"the base recording has {problem}",
            "a hybrid needs one segment, a probe, and gains to microvolts",
            "attach what is missing, or simulate without a base recording",
        )


def _check_enough(num_found: int, config: SimulationConfig) -> None:
    if num_found < config.num_units:
        raise ProbeError(
            f"only {num_found} of {config.num_units} units were found that the probe sees with "
            f"{config.min_amplitude_uV:g} to {config.max_amplitude_uV:g} uV",
            f"units must have that amplitude and lie {config.min_distance_um:g} um apart",
            "ask for fewer units, a smaller min_distance_um, a wider range of amplitudes, or another probe",
        )


def _facts(
    config: SimulationConfig, seeds: dict[str, int], recording: BaseRecording, sorting: BaseSorting
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "settings": config.to_dict(),
        "seeds": seeds,
        "versions": {name: version(name) for name in ("spikewise", "spikeinterface", "numpy")},
        "num_channels": recording.get_num_channels(),
        "sampling_frequency": recording.sampling_frequency,
        "num_samples": recording.get_num_samples(0),
        "num_units": len(sorting.unit_ids),
        "num_spikes": int(sorting.to_spike_vector().size),
    }
    if config.source == "mearec":
        facts["versions"]["MEArec"] = version("MEArec")
    if config.templates is not None:
        content = Path(config.templates).read_bytes()
        facts["templates_sha256"] = hashlib.sha256(content).hexdigest()
    return facts
