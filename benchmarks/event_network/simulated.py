"""Windows around simulated events on many probes, with the unit of each.

A *place* is a contact with the contacts around it. Where a probe repeats itself, its places are one, so many
units can be compared there. A unit belongs to the place if its energy at the contact is at least OWN of its
largest. Waveforms are those of MEArec's template files and of SpikeInterface's generator, filtered like
traces, with a peak-to-peak size of 1 on their largest contact. The file of 384 channels is left out: scenes
are made of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.signal import butter, sosfiltfilt
from spikeinterface.core.generate import generate_templates, generate_unit_locations

from event_network.network import BEFORE, LENGTH, NEAR, RADIUS_UM, RATE
from spikewise.data.recordings.probes import load_probe
from spikewise.data.simulation.mearec import load_mearec_templates
from spikewise.discovery.neighbours import channels_within, distances
from spikewise.discovery.spike_shapes import load_shapes

PROBES = {"linear-16": 150, "square-6": 250, "neuropixels-2.0": 250, "neuropixels-ultra": 150, "tetrode": 250}
"""Probes of the generator, and how many units are drawn around 40 of their contacts."""
DRIFTS = (0, 10, 20, 29)
"""Positions of each cell of the drifting template file that are used."""
STEPS, PAD = 4, 56
"""Steps of a sample at which waveforms are kept, and samples kept on both sides of a window."""
OWN, SEEN, FEWEST = 0.6, 0.08, 8
"""Energy of units that belong to a place and of those that are seen there, relative to their largest; fewest
units that belong to a place."""
AMPLITUDES_UV, NOISE_UV, FILTERED = (35.0, 300.0), (7.0, 20.0), 0.6
"""Peak-to-peak sizes, deviations of white noise, and what the filter leaves of the latter."""
WEAKEST = 5.5
"""Smallest norm of a unit, in noise deviations: smaller ones are scaled up."""
SPIKES, OTHERS = 24, 56
"""Spikes of each unit, and events that are no centred spike, of one draw."""
OVERLAPPED, LARGEST_OVERLAP = 0.3, 30.0
WIDTHS_UM = (0.0, 18.0, 36.0)
_BAND = butter(2, [300, 6000], "bandpass", fs=RATE, output="sos")


@dataclass(frozen=True)
class Place:
    """Waveforms seen at a contact.

    Attributes
    ----------
    offsets_um, is_there : ndarray, shape (NEAR, 2) and (NEAR,)
        Where the contacts are, the nearest first.
    waveforms : ndarray of float16, shape (num_units, NEAR, STEPS * (LENGTH + 2 * PAD))
    own : ndarray of int
        The units that belong to the place.
    """

    offsets_um: np.ndarray
    is_there: np.ndarray
    waveforms: np.ndarray
    own: np.ndarray


def make_places(templates: Path, seed: int) -> list[Place]:
    """Return the places of all probes; `templates` is the folder of MEArec's files."""
    random = np.random.default_rng(seed)
    seen: dict[tuple, list] = {}
    dense = load_mearec_templates(templates / "templates_neuropixels128_drift_seed99.h5")
    for drift in DRIFTS:
        waveforms = np.asarray(dense.generator.templates)[:, drift].transpose(0, 2, 1)
        _see(waveforms, dense.probe.contact_positions[:, :2], seen)
    tetrode = load_mearec_templates(templates / "templates_tetrode_seed671.h5")
    waveforms = np.asarray(tetrode.generator.templates).transpose(0, 2, 1)
    _see(waveforms, tetrode.probe.contact_positions[:, :2], seen)
    for name, count in PROBES.items():
        sites = np.asarray(load_probe(name, None).probes[0].contact_positions)[:, :2]
        middle = sites[np.argsort(sites[:, 1])[len(sites) // 2]]
        far = np.linalg.norm(sites - middle, axis=1)
        sites = sites[far < np.sort(far)[min(len(sites) - 1, 40)] + 1]
        seeds = random.integers(2**31, size=2).tolist()
        cells = generate_unit_locations(count, sites, margin_um=10.0, minimum_distance=None, seed=seeds[0])
        waveforms = generate_templates(sites, cells, RATE, 2.0, 4.0, seed=seeds[1])
        _see(waveforms[np.ptp(waveforms, axis=1).max(axis=1) > 10], sites, seen)
    return [_place(key, units) for key, units in seen.items() if sum(own for _, own in units) >= FEWEST]


def _see(waveforms: np.ndarray, positions: np.ndarray, seen: dict[tuple, list]) -> None:
    """Add what each contact sees of waveforms (units, samples, contacts) to the place like it."""
    padded = np.pad(waveforms.astype(np.float64), ((0, 0), (300, 300), (0, 0)), "edge")
    filtered = sosfiltfilt(_BAND, padded, axis=1)
    near = channels_within(distances(positions), RADIUS_UM, NEAR)
    energy = (filtered**2).sum(axis=1)
    span = LENGTH + 2 * PAD
    for unit, of_unit in zip(filtered, energy, strict=True):
        size = np.ptp(unit, axis=0).max()
        for contact in np.flatnonzero(of_unit > SEEN * of_unit.max()):
            around = near[contact][near[contact] >= 0]
            start = int(unit[:, contact].argmin()) - BEFORE - PAD
            if start < 0 or start + span > len(unit):
                continue
            spline = CubicSpline(np.arange(span), unit[start : start + span, around], axis=0)
            kept = np.zeros((NEAR, STEPS * span), np.float16)
            kept[: len(around)] = spline(np.arange(STEPS * span) / STEPS).T / size
            key = tuple(map(tuple, np.round(positions[around] - positions[contact]).astype(int).tolist()))
            seen.setdefault(key, []).append((kept, of_unit[contact] >= OWN * of_unit.max()))


def _place(key: tuple, units: list) -> Place:
    offsets, is_there = np.zeros((NEAR, 2), np.float32), np.zeros(NEAR, np.float32)
    offsets[: len(key)], is_there[: len(key)] = key, 1
    own = np.flatnonzero([is_own for _, is_own in units])
    return Place(offsets, is_there, np.stack([waveform for waveform, _ in units]), own)


class EventDraw:
    """Draws events of a place: spikes of some of its units, and events that are no centred spike."""

    def __init__(self, random: np.random.Generator):
        self.random = random
        noise = sosfiltfilt(_BAND, random.normal(size=3_000_000)).astype(np.float32)
        self._noise = noise / noise.std()
        self._bank = load_shapes(RATE).bank

    def draw(self, place: Place) -> tuple[np.ndarray, np.ndarray]:
        """Return windows (N, NEAR, LENGTH), and the unit of each; -1: no spike is centred."""
        random, size = self.random, self._sizes(place)
        count = min(int(random.integers(2, 9)), len(place.own))
        units = random.choice(place.own, count, replace=False)
        for unit in units:
            norm = size[unit] * np.linalg.norm(_windows(place, np.array([unit]), np.zeros(1, int)))
            if norm < WEAKEST:
                size[unit] *= WEAKEST / norm * np.exp(random.uniform(0, 0.5))
        label = np.repeat(np.arange(count), SPIKES)
        of = units[label]
        amplitude = size[of] * random.normal(1, 0.07, len(of)).clip(0.7, 1.3)
        shift = np.rint(random.normal(0, 1, len(of)) * np.minimum(3, 14 / np.maximum(1, size[of])))
        shift = shift.astype(int) + random.integers(-1, 2, len(of)) + random.integers(-2, 3, count)[label]
        spikes = _windows(place, of, shift) * amplitude[:, None, None]
        others, peaks = self._others(place, size)
        windows = np.concatenate([spikes, others])
        overlapped = np.flatnonzero(random.random(len(windows)) < OVERLAPPED)
        of = random.integers(0, len(place.waveforms), len(overlapped))
        added = _windows(place, of, self._away(20, len(of)))
        windows[overlapped] += added * np.minimum(size[of], LARGEST_OVERLAP)[:, None, None]
        windows += self._noise_of(place, len(windows))
        # The noise given the response that made it an event; the other kinds have no peak.
        response = 4 + random.exponential(0.5, OTHERS) - (windows[-OTHERS:] * peaks).sum(axis=(1, 2))
        windows[-OTHERS:] += response[:, None, None] * peaks
        return windows.astype(np.float32), np.concatenate([label, np.full(OTHERS, -1)])

    def _sizes(self, place: Place) -> np.ndarray:
        """Return peak-to-peak sizes of all units, in standard deviations of filtered noise."""
        low, high = np.log(AMPLITUDES_UV)
        noise = FILTERED * self.random.uniform(*NOISE_UV)
        return np.exp(self.random.uniform(low, high, len(place.waveforms))) / noise

    def _others(self, place: Place, size: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return windows with a spike off the centre, with the spike of another place, or with none.

        With them the shapes (OTHERS, NEAR, LENGTH) of norm 1 to which noise responds; 0 for the first two.
        """
        random = self.random
        kind = random.integers(0, 3, OTHERS)
        of = random.integers(0, len(place.waveforms), OTHERS)
        shift = np.where(kind == 0, self._away(40, OTHERS), random.integers(-6, 7, OTHERS))
        is_spike = (kind == 0) | ((kind == 1) & ~np.isin(of, place.own))
        windows = _windows(place, of, shift) * (size[of] * is_spike)[:, None, None]
        far = np.linalg.norm(place.offsets_um, axis=1)
        peaks = np.zeros((OTHERS, NEAR, LENGTH), np.float32)
        for index in np.flatnonzero(~is_spike):
            width = WIDTHS_UM[random.integers(len(WIDTHS_UM))]
            weights = place.is_there * (np.exp(-0.5 * (far / width) ** 2) if width else far == 0)
            weights[weights < 0.08] = 0
            shape = self._bank[random.integers(len(self._bank))]
            peaks[index] = np.outer(weights / np.linalg.norm(weights), shape)
        return windows, peaks

    def _away(self, least: int, count: int) -> np.ndarray:
        """Return shifts of at least so many steps, in both directions."""
        return self.random.integers(least, PAD * STEPS, count) * self.random.choice([-1, 1], count)

    def _noise_of(self, place: Place, count: int) -> np.ndarray:
        """Return noise (count, NEAR, LENGTH); that of near contacts is sometimes alike."""
        there = int(place.is_there.sum())
        start = self.random.integers(0, len(self._noise) - LENGTH, (count, there))
        noise = np.zeros((count, NEAR, LENGTH), np.float32)
        noise[:, :there] = self._noise[start[..., None] + np.arange(LENGTH)]
        if self.random.random() < 0.3:
            half = self.random.choice([15.0, 30.0, 50.0])
            alike = 0.5 ** (distances(place.offsets_um[:there]) / half) + 1e-6 * np.eye(there)
            noise[:, :there] = np.einsum("ij,njl->nil", np.linalg.cholesky(alike), noise[:, :there])
        return noise


def _windows(place: Place, units: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return the windows (N, NEAR, LENGTH) of units, shifted by steps of a sample."""
    at = (PAD + np.arange(LENGTH)) * STEPS + shift[:, None]
    contacts = np.arange(NEAR)[None, :, None]
    return place.waveforms[units[:, None, None], contacts, at[:, None, :]].astype(np.float32)
