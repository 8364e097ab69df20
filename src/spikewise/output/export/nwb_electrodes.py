"""The electrodes of an NWB file: their places on the probe, their brain area, and what the probe is.

Conventions: ``rel_x`` and ``rel_y`` are the coordinates of the contacts on the probe, in um; ``location`` is
the brain area. A table of electrodes that is there already stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from spikeinterface.core import BaseRecording

if TYPE_CHECKING:
    from pynwb import NWBFile

_DEVICE = "Probe"
_COORDINATES = {
    "rel_x": "Position of the contact across the probe, um",
    "rel_y": "Position along the probe, um",
}
UNKNOWN = "unknown"
"""Brain area that is not told; NWB requires a text."""


def add_electrodes(nwbfile: NWBFile, recording: BaseRecording, location: str | None) -> list[int]:
    """Add the electrodes of a recording to a file, unless they are there.

    Parameters
    ----------
    nwbfile : NWBFile
    recording : BaseRecording
        The recording, with a probe. Its property ``brain_area`` tells the brain area of each channel.
    location : str, optional
        Brain area of all channels, if the recording does not tell it.

    Returns
    -------
    list of int
        The row of each channel in the table of electrodes.
    """
    from neuroconv.tools.spikeinterface import add_recording_metadata_to_nwbfile
    from neuroconv.tools.spikeinterface.spikeinterface import _build_channel_id_to_electrodes_table_map

    if nwbfile.electrodes is None or len(nwbfile.electrodes) == 0:
        described = _with_places(recording, location)
        add_recording_metadata_to_nwbfile(described, nwbfile, metadata=_metadata(described))
    else:
        described = recording
        add_recording_metadata_to_nwbfile(recording, nwbfile)
    rows = _build_channel_id_to_electrodes_table_map(described, nwbfile)
    return [rows[channel_id] for channel_id in recording.channel_ids]


def _with_places(recording: BaseRecording, location: str | None) -> BaseRecording:
    """Return a copy of a recording whose channels tell their place on the probe and their brain area."""
    described = recording.clone()
    if recording.has_probe():
        for name, values in zip(_COORDINATES, recording.get_channel_locations()[:, :2].T, strict=True):
            described.set_property(name, values.astype(float))
    areas = described.get_property("brain_area")
    if areas is None or not any(str(area) for area in areas):
        described.set_property("brain_area", np.full(recording.get_num_channels(), location or UNKNOWN))
    return described


def _metadata(recording: BaseRecording) -> dict[str, Any]:
    """Return what neuroconv writes about the probe and its groups of channels."""
    names = recording.get_property("group_name")
    if names is None:
        names = recording.get_channel_groups()
    areas = recording.get_property("brain_area")
    groups = []
    for name in dict.fromkeys(map(str, names)):
        inside = dict.fromkeys(str(area) for area, of in zip(areas, names, strict=True) if str(of) == name)
        about = f"Channels of group {name}, sorted together."
        groups.append({"name": name, "description": about, "location": ", ".join(inside), "device": _DEVICE})
    return {
        "Ecephys": {
            "Device": [{"name": _DEVICE, **_about_probe(recording)}],
            "ElectrodeGroup": groups,
            "Electrodes": [{"name": name, "description": about} for name, about in _COORDINATES.items()],
        }
    }


def _about_probe(recording: BaseRecording) -> dict[str, str]:
    """Return description and manufacturer of the probe, as far as the recording tells them."""
    probe = recording.get_probegroup().probes[0] if recording.has_probe() else None
    facts = {} if probe is None else probe.annotations
    model = facts.get("model_name") or facts.get("probe_name") or facts.get("name")
    count = recording.get_num_channels()
    about = {"description": f"{model or 'Probe or wires'}, {count} channels recorded."}
    if facts.get("manufacturer"):
        about["manufacturer"] = str(facts["manufacturer"])
    return about
