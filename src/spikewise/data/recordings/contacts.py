"""Positions of contacts in the plane of their probe: the one way from any probe to x and depth in um.

All parts of the package read two coordinates of each channel. A probe may be described in three dimensions,
or in other units: :func:`in_plane` turns it into the same probe in two; distances between contacts stay.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from probeinterface import Probe, ProbeGroup

from spikewise.core.errors import ProbeError

_UNITS = {"um": 1.0, "mm": 1e3, "m": 1e6}
_FLAT_UM = 5.0
"""Largest distance of a contact from the plane of its probe; chosen by hand."""


def in_plane(group: ProbeGroup) -> ProbeGroup:
    """Return probes with positions of two dimensions in um; the same object if they have them already.

    Raises
    ------
    ProbeError
        If the contacts of a probe do not lie in a plane.
    """
    if all(probe.ndim == 2 and probe.si_units == "um" for probe in group.probes):
        return group
    flat = ProbeGroup()
    for probe in group.probes:
        flat.add_probe(_flat_probe(probe))
    return flat


def _flat_probe(probe: Probe) -> Probe:
    positions = plane_positions(np.asarray(probe.contact_positions, dtype=float) * _UNITS[probe.si_units])
    flat = Probe(ndim=2, si_units="um", **_names(probe))
    flat.set_contacts(
        positions=positions,
        shapes="circle",
        shape_params={"radius": 5},
        contact_ids=probe.contact_ids,
        shank_ids=probe.shank_ids,
    )
    if probe.device_channel_indices is not None:
        flat.set_device_channel_indices(probe.device_channel_indices)
    return flat


def _names(probe: Probe) -> dict[str, Any]:
    return {
        name: getattr(probe, name, None) for name in ("name", "serial_number", "model_name", "manufacturer")
    }


def plane_positions(positions: np.ndarray) -> np.ndarray:
    """Return (num_contacts, 2) coordinates in the plane of the contacts; the second is the depth.

    A plane of two axes keeps these axes. In any other plane the depth is the direction nearest to z.
    """
    if positions.shape[1] == 2:
        return positions
    for constant, kept in ((2, [0, 1]), (1, [0, 2]), (0, [1, 2])):
        if np.ptp(positions[:, constant]) < 1e-3:
            return positions[:, kept]
    centered = positions - positions.mean(axis=0)
    _, lengths, directions = np.linalg.svd(centered, full_matrices=True)
    away = np.abs(centered @ directions[2]).max()
    if away > _FLAT_UM:
        raise ProbeError(
            f"the contacts of a probe lie up to {away:.1f} um outside of a plane",
            f"contacts of one probe in one plane, within {_FLAT_UM:g} um",
            "set a probe with positions in two dimensions, or one probe for each plane",
        )
    depth = directions[:2].T @ directions[:2, 2]
    if lengths[1] < 1e-6 * lengths[0] or np.linalg.norm(depth) < 1e-6:  # a line, or a level plane
        depth = directions[0] * (-1 if directions[0, 2] < 0 else 1)
    depth = depth / np.linalg.norm(depth)
    across = np.cross(depth, directions[2])
    across = across if across[np.abs(across).argmax()] > 0 else -across
    return positions @ np.stack([across, depth], axis=1)
