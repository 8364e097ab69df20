"""Clean signals from a MEArec template file: simulated cells convolved with given spike trains.

MEArec (Buccino & Einevoll 2020, doi:10.1007/s12021-020-09467-7) selects the cells, shifts their waveforms by
fractions of a sample, modulates each spike on each electrode and adds them up. Its noise is not used: it
draws one of a thousand seeds for every ten seconds, so a long recording would repeat.

MEArec does not convolve drifting units. This module reads the waveforms of the cells that MEArec would
select, without shifts by fractions of a sample; a spike has one amplitude on all electrodes.

Conventions: amplitudes in uV; positions in um in the plane of the probe, with the distance from it as third
column; spike times in samples. MEArec writes the signal to a temporary folder, 4 bytes for each sample and
channel (and unit), which is removed when the recording is no longer used; memory stays bounded.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from probeinterface import Probe
from spikeinterface.core import BaseRecording, BaseSorting, NumpyRecording

from spikewise.core.config import SimulationConfig
from spikewise.core.errors import MissingExtraError, SettingError
from spikewise.data.simulation.synthesis import FADE_MS, fade_out

CELL_TYPES = {
    "excitatory": ["PC", "SS", "SP"],
    "inhibitory": ["AC", "BP", "BC", "BTC", "ChC", "DBC", "MC", "NGC"],
}
"""MEArec's names of cell types."""
_BINARY_TYPES = {"excit": CELL_TYPES["excitatory"], "inhib": CELL_TYPES["inhibitory"]}
PLANES = {"xy": (0, 1, 2), "xz": (0, 2, 1), "yz": (1, 2, 0)}
"""Columns of MEArec's positions across and along a probe in this plane, and perpendicular to it."""


@dataclass(frozen=True)
class MearecTemplates:
    """An open template file.

    Attributes
    ----------
    path : Path
    generator : Any
        MEArec's TemplateGenerator.
    sampling_frequency : float
        In Hz.
    probe : probeinterface.Probe
        The probe that the templates were simulated for.
    axes : tuple of int
        Columns of MEArec's positions across and along the probe, and perpendicular to it.
    """

    path: Path
    generator: Any
    sampling_frequency: float
    probe: Probe
    axes: tuple[int, int, int]


@dataclass(frozen=True)
class CellWaveforms:
    """Waveforms of selected cells.

    Attributes
    ----------
    waveforms : numpy.ndarray of float32, shape (num_units, num_positions, num_samples, num_channels)
        In uV, at all positions in the file; both ends fade to zero.
    num_before : int
        Sample of every unit's trough at its first position.
    locations : numpy.ndarray, shape (num_units, num_positions, 3)
        Positions of the cell bodies in um.
    """

    waveforms: np.ndarray
    num_before: int
    locations: np.ndarray


@dataclass(frozen=True)
class CleanSignal:
    """Spikes without noise.

    Attributes
    ----------
    recording : BaseRecording
        In uV, float32, with the channel ids "0", "1", ...
    amplitudes_uV : numpy.ndarray, shape (num_units,)
        Depth of each unit's largest trough.
    main_channel_index : numpy.ndarray of int, shape (num_units,)
    locations : numpy.ndarray, shape (num_units, 3)
        Positions of the cell bodies in um.
    """

    recording: BaseRecording
    amplitudes_uV: np.ndarray
    main_channel_index: np.ndarray
    locations: np.ndarray


def load_mearec_templates(path: str | Path) -> MearecTemplates:
    """Open a MEArec template file.

    Parameters
    ----------
    path : str or Path
        The ``.h5`` file.

    Returns
    -------
    MearecTemplates

    Raises
    ------
    SettingError
        If the file is missing, cannot be read, or is no MEArec template file.
    MissingExtraError
        If MEArec is not installed.
    """
    mearec = _import_mearec()
    path = Path(path)
    if not path.is_file():
        raise _refuse(path, "does not exist")
    try:
        generator = mearec.load_templates(path, return_h5_objects=False, check_suffix=False)
        params, electrodes = generator.info["params"], generator.info["electrodes"]
        sampling_frequency = 1000.0 / float(params["dt"])
        if not (generator.templates.ndim in (3, 4) and len(generator.templates) == len(generator.locations)):
            raise _refuse(path, f"holds templates of shape {generator.templates.shape}")
        axes = PLANES[electrodes.get("plane", "yz")]
        probe = _probe(electrodes, axes)
    except SettingError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _refuse(path, f"cannot be read: {error}") from error
    return MearecTemplates(path, generator, sampling_frequency, probe, axes)


def convolve_mearec(
    templates: MearecTemplates,
    truth: BaseSorting,
    num_samples: int,
    config: SimulationConfig,
    seeds: dict[str, int],
) -> CleanSignal:
    """Convolve selected templates with spike trains.

    Parameters
    ----------
    templates : MearecTemplates
    truth : BaseSorting
        One segment, its units with the property ``cell_type`` ("E" before "I").
    num_samples : int
        Length of the signal.
    config : SimulationConfig
        Amplitudes, distance, and spread are used.
    seeds : dict of str to int
        ``templates`` selects the cells, ``amplitudes`` shifts and modulates their spikes.

    Returns
    -------
    CleanSignal

    Raises
    ------
    SettingError
        If the file holds too few templates of the wanted amplitudes, types and distance.
    """
    mearec = _import_mearec()
    fs = truth.sampling_frequency
    params = {
        "spiketrains": {},
        "cell_types": CELL_TYPES,
        "templates": {
            "min_amp": config.min_amplitude_uV,
            "max_amp": config.max_amplitude_uV,
            "min_dist": config.min_distance_um,
        },
        "recordings": {
            "fs": None if fs == templates.sampling_frequency else fs,
            "dtype": "float32",
            "noise_level": 0,
            "filter": False,
            "modulation": "electrode",
            "sdrand": config.amplitude_std,
            "chunk_duration": 10,
        },
        "seeds": {
            "spiketrains": 0,
            "templates": seeds["templates"],
            "convolution": seeds["amplitudes"],
            "noise": 0,
        },
    }
    folder = Path(tempfile.mkdtemp(prefix="spikewise-mearec-"))
    try:
        with _untouched_global_seed(), np.errstate(divide="ignore"):
            generated = mearec.gen_recordings(
                params=params,
                tempgen=templates.generator,
                spgen=_spike_trains(mearec, truth, num_samples),
                verbose=False,
                tmp_folder=folder,
                n_jobs=1,
            )
        signal = _clean_signal(generated, templates, fs, num_samples)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, RuntimeError) and "Templates could not be selected" in str(error):
            raise _too_few(templates, config) from error
        raise
    weakref.finalize(signal.recording, shutil.rmtree, folder, ignore_errors=True)
    return signal


def select_mearec_cells(
    templates: MearecTemplates, truth: BaseSorting, config: SimulationConfig, seeds: dict[str, int]
) -> CellWaveforms:
    """Select the same cells as :func:`convolve_mearec`, and return their waveforms.

    Parameters
    ----------
    templates : MearecTemplates
    truth : BaseSorting
        Its units have the property ``cell_type`` ("E" before "I").
    config : SimulationConfig
        Amplitudes and distance are used.
    seeds : dict of str to int
        ``templates`` selects the cells.

    Returns
    -------
    CellWaveforms
        At the sampling frequency of `truth`.

    Raises
    ------
    SettingError
        If the file holds too few templates of the wanted amplitudes, types and distance.
    """
    from MEArec.tools import get_binary_cat, select_templates

    generator = templates.generator
    waveforms, locations = np.asarray(generator.templates), np.asarray(generator.locations)
    if waveforms.ndim == 3:
        waveforms, locations = waveforms[:, None], locations[:, None]
    num_excitatory = int(np.sum(truth.get_property("cell_type") == "E"))
    with _untouched_global_seed():
        np.random.seed(seeds["templates"])  # noqa: NPY002
        try:
            chosen, types = select_templates(
                locations[:, 0],
                waveforms[:, 0],
                get_binary_cat(generator.celltypes, **_BINARY_TYPES),
                num_excitatory,
                len(truth.unit_ids) - num_excitatory,
                min_dist=config.min_distance_um,
                min_amp=config.min_amplitude_uV,
                max_amp=config.max_amplitude_uV,
            )
        except RuntimeError as error:
            raise _too_few(templates, config) from error
    chosen = np.asarray(chosen)[np.argsort(types)]
    ratio = Fraction(truth.sampling_frequency / templates.sampling_frequency).limit_denominator(1000)
    from scipy.signal import resample_poly  # only here: it takes a second

    selected = resample_poly(waveforms[chosen], ratio.numerator, ratio.denominator, axis=-1, padtype="line")
    aligned, num_before = _align(selected.swapaxes(2, 3), round(FADE_MS / 1000 * truth.sampling_frequency))
    return CellWaveforms(aligned, num_before, locations[chosen][:, :, list(templates.axes)])


def _align(waveforms: np.ndarray, num_fade: int) -> tuple[np.ndarray, int]:
    """Align the troughs of all units, at their first position, at one sample; fade both ends to zero.

    `waveforms` has the shape (num_units, num_positions, num_samples, num_channels).
    """
    num_samples = waveforms.shape[2]
    first = waveforms[:, 0].min(axis=2)
    troughs = first.argmin(axis=1)
    num_before = int(troughs.max()) + num_fade
    length = num_before - int(troughs.min()) + num_samples + num_fade
    fade = fade_out(num_fade)[:, None]
    aligned = np.zeros((*waveforms.shape[:2], length, waveforms.shape[3]), dtype=np.float32)
    for out, unit, trough in zip(aligned, waveforms, troughs, strict=True):
        start = num_before - trough
        stop = start + num_samples
        out[:, start:stop] = unit
        out[:, start - num_fade : start] = fade[::-1] * unit[:, :1]
        out[:, stop : stop + num_fade] = fade * unit[:, -1:]
    return aligned, num_before


def _clean_signal(generated: Any, templates: MearecTemplates, fs: float, num_samples: int) -> CleanSignal:
    traces = generated.recordings
    if traces.shape[0] != num_samples:
        raise RuntimeError(f"MEArec made {traces.shape[0]} samples instead of {num_samples}")
    channel_ids = [str(k) for k in range(traces.shape[1])]
    depth = -generated.original_templates.min(axis=2)
    return CleanSignal(
        NumpyRecording([np.asarray(traces)], fs, channel_ids=channel_ids),
        depth.max(axis=1).astype(float),
        depth.argmax(axis=1),
        np.asarray(generated.template_locations, dtype=float)[:, list(templates.axes)],
    )


def _spike_trains(mearec: ModuleType, truth: BaseSorting, num_samples: int) -> Any:
    """Return the true spike trains for MEArec, half a sample later: it truncates seconds to samples."""
    import neo
    import quantities

    fs = truth.sampling_frequency
    spike_trains = []
    for unit_id, cell_type in zip(truth.unit_ids, truth.get_property("cell_type"), strict=True):
        times = (truth.get_unit_spike_train(unit_id, segment_index=0) + 0.5) / fs
        train = neo.SpikeTrain(times, t_stop=(num_samples + 0.5) / fs, units=quantities.s)
        train.annotate(cell_type=str(cell_type))
        spike_trains.append(train)
    return mearec.SpikeTrainGenerator(spiketrains=spike_trains, params={})


def _probe(electrodes: dict[str, Any], axes: tuple[int, int, int]) -> Probe:
    import MEAutility

    positions = MEAutility.return_mea(info=electrodes).positions[:, list(axes[:2])]
    probe = Probe(ndim=2, si_units="um", model_name=str(electrodes.get("electrode_name", "")))
    probe.set_contacts(positions, shapes="circle", shape_params={"radius": 5.0})
    probe.set_device_channel_indices(np.arange(len(positions)))
    return probe


@contextlib.contextmanager
def _untouched_global_seed() -> Iterator[None]:
    """Restore NumPy's global random state, which MEArec seeds."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


def _import_mearec() -> ModuleType:
    try:
        import MEArec
    except ImportError as error:
        raise MissingExtraError("MEArec", "simulate", "A simulation with MEArec") from error
    return MEArec


def _too_few(templates: MearecTemplates, config: SimulationConfig) -> SettingError:
    from MEArec.tools import get_binary_cat

    waveforms = templates.generator.templates
    depth = -(waveforms[:, 0] if waveforms.ndim == 4 else waveforms).min(axis=(1, 2))
    suitable = (depth > config.min_amplitude_uV) & (depth < config.max_amplitude_uV)
    excitatory = get_binary_cat(templates.generator.celltypes, **_BINARY_TYPES) == "E"
    return SettingError(
        f"{config.num_units} units were requested, {config.excitatory_fraction:.0%} of them excitatory, "
        f"at least {config.min_distance_um:g} um apart",
        f"{templates.path} holds {suitable.sum()} templates of {config.min_amplitude_uV:g} to "
        f"{config.max_amplitude_uV:g} uV, {np.sum(suitable & excitatory)} of them excitatory",
        "ask for fewer units, a smaller min_distance_um, or a wider range of amplitudes",
    )


def _refuse(path: Path, problem: str) -> SettingError:
    return SettingError(
        f"the template file {path} {problem}",
        "the source mearec needs a template file (.h5) made by MEArec",
        "give such a file with --templates",
    )
