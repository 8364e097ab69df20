"""Real units for simulated recordings: measured mean waveforms, placed on a probe.

Conventions: waveforms are in microvolts with shape (num_samples, num_sites), positions in micrometres with
shape (num_sites, 2), x across and y along the probe. The main site of a unit has its deepest trough; the
unit's amplitude is the depth of this trough, and the spike time is its sample.

Two layouts of NumPy archives are read:

- measured waveforms: ``n``, ``fs``, and for each unit k ``waves_kk`` (num_sites, num_samples) in uV and
  ``pos_kk`` (num_sites, 2), with optional ``labels`` (n,);
- Kilosort templates: ``templates_whitened`` (num_units, num_samples, num_channels),
  ``whitening_mat_inv`` (num_channels, num_channels), ``pos`` (num_channels, 2), ``fs``, and the fitted
  ``clusters_first15`` and ``amplitudes_first15`` of their spikes. Unwhitening and the mean amplitude give the
  waveform in steps of the converter. A step is 2.34375 uV at gain 500, the default of Neuropixels 1.0; the
  file does not contain its gain, so this factor is an assumption. Units without amplitudes are left out, and
  sites below 5 % of the main site too.

If the sites of a unit coincide with channels of the probe, its waveforms stay as measured. Otherwise they are
interpolated between its sites (cubic), and are zero outside the convex hull of the sites.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from probeinterface import Probe
from scipy.interpolate import CloughTocher2DInterpolator
from scipy.spatial import KDTree

from spikewise.core.errors import SettingError
from spikewise.core.untrusted import load_npz, parsing
from spikewise.data.simulation.synthesis import FADE_MS, fade_out

logger = logging.getLogger(__name__)

UV_PER_STEP_GAIN_500 = 2.34375
"""Step of the converter of a Neuropixels 1.0 at gain 500: 1.2 V / 1024 / 500."""
MIN_SITE_FRACTION = 0.05
"""Sites of Kilosort templates below this fraction of the main amplitude are left out; chosen by hand."""
SAME_SITE_UM = 1.0
"""A site and a channel that are closer have one position; chosen by hand."""
MIN_MATCHED_FRACTION = 0.75
"""Fewest sites on channels at a location, as a fraction of the most at any location; chosen by hand."""
MAX_OFFSET_UM = 8.0
"""Largest random offset of a unit from a channel, along each axis; chosen by hand."""
MAX_LOCATIONS = 10
"""Locations that are tried for a unit; chosen by hand."""


@dataclass(frozen=True)
class RealUnit:
    """One measured unit.

    Attributes
    ----------
    unit_id : str
        Its label in the file.
    waveforms : numpy.ndarray of float32, shape (num_samples, num_sites)
        Mean waveform in uV.
    positions : numpy.ndarray, shape (num_sites, 2)
        Positions of its sites in um; each unit has its own origin.
    """

    unit_id: str
    waveforms: np.ndarray
    positions: np.ndarray

    @property
    def main_site(self) -> int:
        """Index of the site with the deepest trough."""
        return int(np.argmin(self.waveforms.min(axis=0)))


@dataclass(frozen=True)
class PlacedUnits:
    """Units on the channels of a probe.

    Attributes
    ----------
    unit_ids : tuple of str
    templates : numpy.ndarray of float32, shape (num_units, num_samples, num_channels)
        In uV; every trough is at sample `num_before`, and both ends fade to zero.
    num_before : int
    locations : numpy.ndarray, shape (num_units, 2)
        Position in um of each unit's main site.
    """

    unit_ids: tuple[str, ...]
    templates: np.ndarray
    num_before: int
    locations: np.ndarray


def load_real_units(path: str | Path) -> tuple[tuple[RealUnit, ...], float]:
    """Read real units from a template file.

    Parameters
    ----------
    path : str or Path
        A ``.npz`` file in one of the layouts of this module.

    Returns
    -------
    units : tuple of RealUnit
    sampling_frequency : float
        In Hz.

    Raises
    ------
    SettingError
        If the file is missing, cannot be read, or holds no multi-channel templates.
    """
    path = Path(path)
    if not path.is_file():
        raise _refuse(path, "does not exist")
    with parsing(lambda reason: _refuse(path, f"cannot be read: {reason}")):
        arrays = load_npz(path)
    if {"fs", "n", "waves_00", "pos_00"} <= arrays.keys():
        read = _measured_units
    elif {"fs", "templates_whitened", "whitening_mat_inv", "pos", "amplitudes_first15"} <= arrays.keys():
        read = _kilosort_units
    else:
        raise _refuse(path, f"holds {', '.join(arrays) or 'no named arrays'}")
    with parsing(lambda reason: _refuse(path, f"is damaged ({reason})")):
        units = tuple(read(arrays))
        sampling_frequency = float(arrays["fs"])
        for unit in units:
            _check_unit(path, unit)
        if not (np.isfinite(sampling_frequency) and sampling_frequency > 0):
            raise ValueError(f"its sampling frequency is {sampling_frequency}")
    return units, sampling_frequency


def neuropixels_rows(num_rows: int) -> Probe:
    """Return `num_rows` rows of a staggered Neuropixels shank (option 3A and 1.0), two sites each."""
    row = np.repeat(np.arange(num_rows), 2)
    x = np.where(row % 2 == 0, 16.0, 0.0) + np.tile([0.0, 32.0], num_rows)
    probe = Probe(ndim=2, si_units="um")
    probe.set_contacts(np.column_stack([x, row * 20.0]), shapes="square", shape_params={"width": 12})
    probe.set_device_channel_indices(np.arange(row.size))
    return probe


def own_probe(units: Iterable[RealUnit], num_units: int) -> Probe:
    """Return a part of the measured units' shank that is long enough for `num_units` of them."""
    longest = max(float(np.ptp(unit.positions[:, 1])) for unit in units)
    return neuropixels_rows(2 * int(np.ceil((longest + 40.0 * num_units) / 40.0)))


def resample_units(units: Iterable[RealUnit], source_hz: float, target_hz: float) -> tuple[RealUnit, ...]:
    """Return the units at another sampling frequency."""
    from scipy.signal import resample_poly  # only here: it takes a second

    ratio = Fraction(target_hz / source_hz).limit_denominator(1000)
    if ratio == 1:
        return tuple(units)
    return tuple(
        replace(
            unit,
            waveforms=resample_poly(
                unit.waveforms, ratio.numerator, ratio.denominator, axis=0, padtype="line"
            ).astype(np.float32),
        )
        for unit in units
    )


@dataclass(frozen=True)
class Placement:
    """Requirements for placed units.

    Attributes
    ----------
    num_units : int
    amplitude_range_uV : tuple of float
        Smallest and largest amplitude on the probe.
    min_distance_um : float
        Distance between main sites, as far as the probe has space.
    """

    num_units: int
    amplitude_range_uV: tuple[float, float]
    min_distance_um: float


def place_units(
    units: Iterable[RealUnit],
    channel_positions: np.ndarray,
    sampling_frequency: float,
    placement: Placement,
    rng: np.random.Generator,
) -> PlacedUnits:
    """Place randomly drawn units at random locations of a probe.

    Parameters
    ----------
    units : iterable of RealUnit
        Units at `sampling_frequency`.
    channel_positions : numpy.ndarray, shape (num_channels, 2)
        In um.
    sampling_frequency : float
        In Hz.
    placement : Placement
        How many units, how large, how far apart.
    rng : numpy.random.Generator

    Returns
    -------
    PlacedUnits
        Has fewer units than wanted if too few reach the amplitude range.
    """
    units = tuple(units)
    tree = KDTree(channel_positions)
    chosen: list[RealUnit] = []
    locations: list[np.ndarray] = []
    for unit_index in rng.permutation(len(units)):
        if len(chosen) == placement.num_units:
            break
        unit = units[unit_index]
        for location in _possible_locations(unit, tree, placement.min_distance_um, locations, rng):
            waveforms = _waveforms_at(unit, location, tree)
            if placement.amplitude_range_uV[0] <= -waveforms.min() <= placement.amplitude_range_uV[1]:
                chosen.append(replace(unit, waveforms=waveforms, positions=np.asarray(channel_positions)))
                locations.append(location)
                break
        else:
            logger.debug("Unit %s reaches the amplitude range nowhere on the probe", unit.unit_id)
    templates, num_before = _align(chosen, round(FADE_MS / 1000 * sampling_frequency))
    unit_ids = tuple(unit.unit_id for unit in chosen)
    return PlacedUnits(unit_ids, templates, num_before, np.reshape(locations, (len(chosen), 2)))


def _possible_locations(
    unit: RealUnit, tree: KDTree, min_distance_um: float, taken: list[np.ndarray], rng: np.random.Generator
) -> np.ndarray:
    """Return locations for the unit's main site, the best first, shape (at most MAX_LOCATIONS, 2).

    If the unit's sites coincide with channels somewhere, these are the locations without interpolation.
    Otherwise they are near any channel.
    """
    locations = tree.data[rng.permutation(tree.n)]
    fitting = _fits(unit, locations, tree)
    if fitting.any():
        locations = locations[fitting]
    else:
        locations = locations + rng.uniform(-MAX_OFFSET_UM, MAX_OFFSET_UM, locations.shape)
    if taken:
        distance, _ = KDTree(np.asarray(taken)).query(locations)
        locations = locations[np.argsort(-np.minimum(distance, min_distance_um), kind="stable")]
    return locations[:MAX_LOCATIONS]


def _fits(unit: RealUnit, locations: np.ndarray, tree: KDTree) -> np.ndarray:
    """Return at which locations the unit's sites coincide with channels; shape (num_locations,).

    They coincide if all sites are channels, or if all channels between the sites are sites. A location also
    needs about as many sites on channels as the best one, so that the unit does not extend beyond the side of
    the probe.
    """
    sites = unit.positions - unit.positions[unit.main_site]
    to_channel, _ = tree.query(locations[:, None, :] + sites)
    channels = np.asarray(tree.data) - locations[:, None, :]
    among = ((channels >= sites.min(axis=0)) & (channels <= sites.max(axis=0))).all(axis=2)
    to_site, _ = KDTree(sites).query(channels)
    matched = np.sum(to_channel < SAME_SITE_UM, axis=1)
    exact = (matched == len(sites)) | ((to_site < SAME_SITE_UM) | ~among).all(axis=1)
    return exact & (matched >= MIN_MATCHED_FRACTION * matched[exact].max(initial=0))


def _waveforms_at(unit: RealUnit, location: np.ndarray, tree: KDTree) -> np.ndarray:
    """Return the unit's waveforms on all channels, shape (num_samples, num_channels)."""
    sites = unit.positions + (location - unit.positions[unit.main_site])
    channels = np.asarray(tree.data)
    waveforms = np.zeros((unit.waveforms.shape[0], tree.n), dtype=np.float32)
    distance, site = KDTree(sites).query(channels)
    same = distance < SAME_SITE_UM
    waveforms[:, same] = unit.waveforms[:, site[same]]
    among = ((channels >= sites.min(axis=0)) & (channels <= sites.max(axis=0))).all(axis=1) & ~same
    if among.any():
        between = CloughTocher2DInterpolator(sites, unit.waveforms.T, fill_value=0.0)
        waveforms[:, among] = between(channels[among]).T
    return waveforms


def _align(units: list[RealUnit], num_fade: int) -> tuple[np.ndarray, int]:
    """Align the troughs at one sample and fade both ends to zero over `num_fade` samples.

    Returns the templates (num_units, num_samples, num_channels) and the sample of the troughs.
    """
    if not units:
        return np.zeros((0, 1, 1), dtype=np.float32), 0
    troughs = [int(np.argmin(unit.waveforms[:, unit.main_site])) for unit in units]
    num_before = max(troughs) + num_fade
    num_after = max(len(unit.waveforms) - trough for unit, trough in zip(units, troughs, strict=True))
    fade = fade_out(num_fade)
    shape = (len(units), num_before + num_after + num_fade, units[0].waveforms.shape[1])
    templates = np.zeros(shape, dtype=np.float32)
    for template, unit, trough in zip(templates, units, troughs, strict=True):
        start = num_before - trough
        stop = start + len(unit.waveforms)
        template[start:stop] = unit.waveforms
        template[start - num_fade : start] = fade[::-1, None] * unit.waveforms[0]
        template[stop : stop + num_fade] = fade[:, None] * unit.waveforms[-1]
    return templates, num_before


def _measured_units(arrays: dict[str, np.ndarray]) -> Iterable[RealUnit]:
    num_units = int(arrays["n"])
    if num_units > len(arrays):
        raise ValueError(f"it claims {num_units} units in {len(arrays)} arrays")
    labels = arrays.get("labels", np.arange(num_units))
    for k in range(num_units):
        waveforms, positions = arrays[f"waves_{k:02d}"], arrays[f"pos_{k:02d}"]
        yield RealUnit(str(labels[k]), waveforms.T.astype(np.float32), positions.astype(np.float64))


def _kilosort_units(arrays: dict[str, np.ndarray]) -> Iterable[RealUnit]:
    positions = arrays["pos"].astype(np.float64)
    for k in np.unique(arrays["clusters_first15"]):
        steps = arrays["amplitudes_first15"][arrays["clusters_first15"] == k].mean()
        waveforms = arrays["templates_whitened"][k] @ arrays["whitening_mat_inv"]
        waveforms = (waveforms * (steps * UV_PER_STEP_GAIN_500)).astype(np.float32)
        # The first samples are padding, exactly zero; the waveform starts after them.
        waveforms = waveforms[int(np.argmax(np.any(waveforms != 0, axis=1))) :]
        depth = -waveforms.min(axis=0)
        kept = depth >= MIN_SITE_FRACTION * depth.max()
        yield RealUnit(str(k), waveforms[:, kept], positions[kept])


def _check_unit(path: Path, unit: RealUnit) -> None:
    """Raise unless the unit has a trough, and sites that allow interpolation."""
    num_sites = unit.waveforms.shape[-1]
    problem = None
    if unit.waveforms.ndim != 2 or unit.positions.shape != (num_sites, 2):
        problem = f"waveforms {unit.waveforms.shape} and positions {unit.positions.shape} that do not fit"
    elif not (np.isfinite(unit.waveforms).all() and np.isfinite(unit.positions).all()):
        problem = "values that are not finite"
    elif np.linalg.matrix_rank(unit.positions - unit.positions.mean(axis=0), tol=1e-3) < 2:
        problem = "sites on one line"
    elif unit.waveforms.min() >= 0:
        problem = "no trough"
    if problem:
        raise _refuse(path, f"gives unit {unit.unit_id} {problem}")


def _refuse(path: Path, problem: str) -> SettingError:
    return SettingError(
        f"the template file {path} {problem}",
        "a hybrid needs a .npz file of mean waveforms with site positions (waves_00, pos_00, ...) "
        "or of whitened Kilosort templates with their inverse (templates_whitened, whitening_mat_inv, ...)",
        "give such a file with --templates",
    )
