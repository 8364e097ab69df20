"""Positions of channels: probe files, a catalogue of common probes, and attaching probes to recordings.

Positions are in micrometres. The wiring of a probe gives the channel of each contact: contact ``i`` is
channel ``device_channel_indices[i]``. A catalogue probe has the usual layout of its kind, wired in the order
of its contacts unless its entry says otherwise. The file of the acquisition system (probeinterface, SpikeGLX
.meta) contains the real wiring of a recording, and is the better choice.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import probeinterface
from probeinterface import Probe, ProbeGroup
from probeinterface.neuropixels_tools import build_neuropixels_probe
from spikeinterface.core import BaseRecording

from spikewise.core.errors import ProbeError
from spikewise.core.untrusted import parsing
from spikewise.data.recordings.channels import SilencedRecording
from spikewise.data.recordings.contacts import in_plane, plane_positions

TETRODE_SPACING_UM = 300.0
"""Distance between the tetrodes of ``tetrode-N``; only for display, since each is sorted separately."""
LINEAR_PITCH_UM = 20.0
"""Distance between the contacts of ``linear-N``; chosen by hand."""
SQUARE_PITCH_UM = 15.0
"""Distance between the contacts of ``square-N``; chosen by hand."""

# Blocks of 48 channels that read the lowest two blocks of 48 electrodes of each shank
# (SpikeGLX, "IMRO tables", type 24).
_FOUR_SHANK_BLOCKS = ((0, 2), (1, 3), (4, 6), (5, 7))


@dataclass(frozen=True)
class _Entry:
    """One name of the catalogue: its number of channels for a given N, and how it is built."""

    count: Callable[[int], int]
    build: Callable[[int], Probe | ProbeGroup]


def catalogue_names() -> list[str]:
    """Return the names that :func:`load_probe` knows; N stands for a number, as in ``linear-16``."""
    return list(_CATALOGUE)


def load_probe(name_or_path: str | Path, num_channels: int | None = None) -> ProbeGroup:
    """Load a probe from a file or the catalogue, wired to the channels of a recording.

    Parameters
    ----------
    name_or_path : str or Path
        A probeinterface ``.json``, a ``.prb``, a SpikeGLX ``.meta`` or ``.imro``, a MEArec ``.h5``; or a
        name of :func:`catalogue_names`; or ``manufacturer:probe`` of the probeinterface library, which is
        downloaded.
    num_channels : int, optional
        Number of channels of the recording; the probe must have the same number. None accepts any number.

    Returns
    -------
    ProbeGroup
        Contacts with positions in um; each channel, numbered from 0, has one contact.

    Raises
    ------
    ProbeError
        If there is no such probe, the file cannot be read, or the number of channels differs.
    """
    path = Path(name_or_path)
    if os.path.isfile(path) or path.suffix.lower() in _READERS:
        probe = _read_file(path)
    elif ":" in str(name_or_path):
        probe = _from_library(str(name_or_path))
    else:
        probe = _from_catalogue(str(name_or_path), num_channels)
    with parsing(lambda reason: _unreadable(path, reason)):  # a file may hold anything
        group = _as_group(probe)
        if not all(np.isfinite(one.contact_positions).all() for one in group.probes):
            raise ValueError("a contact has no finite position")
        group = in_plane(group)
        _wire(group, str(name_or_path), num_channels)
        _move_apart(group)
    return group


def attach_probe(recording: BaseRecording, probe_setting: str | Path | None) -> BaseRecording:
    """Return the recording with channel positions.

    Parameters
    ----------
    recording : BaseRecording
        The recording; it is not changed.
    probe_setting : str, Path or None
        What :func:`load_probe` accepts. None keeps the probe of the recording.

    Returns
    -------
    BaseRecording
        The recording with a probe. A single channel without a probe is placed at the origin.

    Raises
    ------
    ProbeError
        If the probe cannot be loaded or does not fit, or there are no positions and none are given.
    """
    num_channels = recording.get_num_channels()
    if probe_setting is None:
        if _has_positions(recording):
            return _in_plane(recording)
        if num_channels > 1:
            raise ProbeError(
                f"the recording has no positions of its {num_channels} channels",
                "several channels are sorted only with their positions",
                "give --probe with a probeinterface file or a name such as "
                f"{', '.join(catalogue_names())} (N is a number)",
            )
        probe_setting = "linear-1"
    group = load_probe(probe_setting, num_channels)
    attached = SilencedRecording(recording, [])  # a view: clone() would copy arrays into memory
    attached.set_probegroup(group, check_overlap=False)
    return attached


def _has_positions(recording: BaseRecording) -> bool:
    if not recording.has_probe():
        return False
    return all(np.isfinite(probe.contact_positions).all() for probe in recording.get_probegroup().probes)


def _in_plane(recording: BaseRecording) -> BaseRecording:
    """Return a recording whose probe has two dimensions, in um; its groups stay."""
    given = recording.get_probegroup()
    flat = in_plane(given)
    if flat is given:
        return recording
    _move_apart(flat)
    groups = recording.get_property("group")
    attached = SilencedRecording(recording, [])
    attached.set_probegroup(flat, check_overlap=False)
    if groups is not None:
        attached.set_property("group", groups)
    return attached


def _read_file(path: Path) -> Probe | ProbeGroup:
    read = _READERS.get(path.suffix.lower())
    if read is None or not os.path.isfile(path):
        raise ProbeError(
            f"the probe file {path} " + ("does not exist" if read else f"ends in {path.suffix!r}"),
            f"a probe file ends in {', '.join(_READERS)}",
            "correct the path, or write the probe with probeinterface.write_probeinterface",
        )
    with parsing(lambda reason: _unreadable(path, reason)):
        return read(path)


def _unreadable(path: Path, reason: str) -> ProbeError:
    return ProbeError(
        f"the probe file {path} cannot be read: {reason}",
        f"a {path.suffix} file is read by probeinterface",
        "check that the file is complete, or write it again with probeinterface.write_probeinterface",
    )


def _read_prb(path: Path) -> ProbeGroup:
    """Read a .prb file, which is Python code, after checking that it only computes values.

    The geometry of a group is a dictionary by channel, or a list in the order of its channels.
    """
    tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    for node in ast.walk(tree):
        calls_other = isinstance(node, ast.Call) and getattr(node.func, "id", None) not in _PRB_CALLS
        if calls_other or not isinstance(node, _PRB_NODES):
            line = f" in line {node.lineno}" if hasattr(node, "lineno") else ""
            raise ProbeError(
                f"the probe file {path} holds the code {type(node).__name__}{line}",
                f"a .prb file may hold only values and the functions {', '.join(sorted(_PRB_CALLS))}",
                "write its channel_groups out as plain lists and numbers",
            )
    values: dict[str, Any] = {"__builtins__": {name: getattr(builtins, name) for name in _PRB_CALLS}}
    exec(compile(tree, str(path), "exec"), values)
    groups = {name.lower(): value for name, value in values.items()}.get("channel_groups")
    if not isinstance(groups, dict | list) or not groups:
        raise ValueError("it has no channel_groups")
    found = ProbeGroup()
    for one in groups.values() if isinstance(groups, dict) else groups:
        found.add_probe(_prb_probe(one))
    return found


def _prb_probe(group: dict[str, Any]) -> Probe:
    channels = np.array(list(group["channels"]), dtype=np.int64)
    geometry = group["geometry"]
    if isinstance(geometry, dict):
        missing = [int(channel) for channel in channels if channel not in geometry]
        if missing:
            raise ValueError(f"the geometry has no position of the channels {missing[:10]}")
        positions = np.array([geometry[channel] for channel in channels], dtype=float)
    else:
        positions = np.array(list(geometry), dtype=float)
    if positions.ndim != 2 or positions.shape[1] not in (2, 3) or len(positions) != len(channels):
        raise ValueError(
            f"its geometry has the shape {positions.shape} and its channels are {len(channels)}; "
            "each channel has one position of two or three numbers"
        )
    probe = Probe(ndim=2, si_units="um")
    probe.set_contacts(plane_positions(positions), shapes="circle", shape_params={"radius": 5})
    probe.create_auto_shape(probe_type="tip")
    probe.set_device_channel_indices(channels)
    return probe


_PRB_CALLS = {"range", "list", "dict", "tuple", "zip", "enumerate", "len", "int", "float"}
_PRB_NODES = (
    *(ast.Module, ast.Expr, ast.Assign, ast.Name, ast.Load, ast.Store, ast.Constant, ast.keyword),
    *(ast.Dict, ast.List, ast.Tuple, ast.Subscript, ast.ListComp, ast.DictComp, ast.comprehension),
    *(ast.Call, ast.UnaryOp, ast.USub, ast.UAdd, ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.Div),
    *(ast.FloorDiv, ast.Mod),
)
_READERS: dict[str, Callable[[Path], Probe | ProbeGroup]] = {
    ".json": probeinterface.read_probeinterface,
    ".prb": _read_prb,
    ".meta": probeinterface.read_spikeglx,
    ".imro": probeinterface.read_imro,
    ".h5": probeinterface.read_mearec,
}


def _from_library(name: str) -> Probe:
    manufacturer, _, model = name.partition(":")
    try:
        return probeinterface.get_probe(manufacturer, model)
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise ProbeError(
            f"the probe {name!r} cannot be fetched: {type(error).__name__}: {error}",
            "MANUFACTURER:PROBE names a probe of the probeinterface library, which needs the network",
            "check the name in the probeinterface library, or download its .json file and give its path",
        ) from error


def _from_catalogue(name: str, num_channels: int | None) -> Probe | ProbeGroup:
    key, size = name.lower(), 1
    numbered = re.fullmatch(r"([a-z]+)-(\d+)", key)
    if numbered:
        key, size = f"{numbered[1]}-N", int(numbered[2])
    entry = _CATALOGUE.get(key)
    if entry is None or size < 1:
        names = catalogue_names()
        close = difflib.get_close_matches(name.lower(), names, n=1)
        raise ProbeError(
            f"there is no probe {name!r}",
            f"known are {', '.join(names)} (N is a number from 1), and files ending in {', '.join(_READERS)}",
            f"did you mean {close[0]!r}?" if close else "give one of these",
        )
    _check_count(name, entry.count(size), num_channels)
    return entry.build(size)


def _check_count(name: str, probe_channels: int, num_channels: int | None) -> None:
    if num_channels is not None and probe_channels != num_channels:
        raise ProbeError(
            f"the probe {name} has {probe_channels} connected channels and the recording has {num_channels}",
            "they must have the same number",
            "give the probe that the recording was made with",
        )


def _as_group(probe: Probe | ProbeGroup) -> ProbeGroup:
    if isinstance(probe, ProbeGroup):
        return probe
    group = ProbeGroup()
    group.add_probe(probe)
    return group


def _wire(group: ProbeGroup, name: str, num_channels: int | None) -> None:
    """Check that the probe has one contact for each channel; without wiring, contacts are in order."""
    if all(probe.device_channel_indices is None for probe in group.probes):
        group.set_global_device_channel_indices(np.arange(group.get_contact_count()))
    wiring = group.get_global_device_channel_indices()["device_channel_indices"]
    connected = np.sort(wiring[wiring >= 0])
    _check_count(name, connected.size, num_channels)
    if connected.size == 0 or not np.array_equal(connected, np.arange(connected.size)):
        raise _wrong_wiring(connected, name)


def _wrong_wiring(connected: np.ndarray, name: str) -> ProbeError:
    """Return an error that says how the channels are numbered; `connected` are their numbers in order."""
    last = connected.size - 1
    if connected.size and np.array_equal(connected, np.arange(1, connected.size + 1)):
        return ProbeError(
            f"the contacts of the probe {name} are wired to the channels 1 to {last + 1}: it counts from 1",
            f"channels are counted from 0, here to {last}",
            "subtract 1 from each number of device_channel_indices (or of the channels of a .prb file)",
        )
    numbers, counts = np.unique(connected, return_counts=True)
    twice = ", ".join(map(str, numbers[counts > 1][:10].tolist()))
    missing = ", ".join(map(str, np.setdiff1d(np.arange(connected.size), numbers)[:10].tolist()))
    return ProbeError(
        f"the contacts of the probe {name} are wired to {numbers.size} different channels"
        + (f", from {numbers[0]} to {numbers[-1]}" if numbers.size else "")
        + (f"; twice: {twice}" if twice else "")
        + (f"; missing: {missing}" if missing else ""),
        "each channel of the recording, numbered from 0, must have one contact",
        "correct device_channel_indices in the probe file",
    )


def _move_apart(group: ProbeGroup) -> None:
    """Move probes apart if two contacts of different probes share a position.

    Files of several tetrodes often give the same coordinates to each tetrode; the distances between tetrodes
    are then unknown.
    """
    positions = group.get_global_contact_positions()
    if len(np.unique(positions, axis=0)) == len(positions):
        return
    right = -np.inf
    for probe in group.probes:
        x = probe.contact_positions[:, 0]
        shift = np.zeros(probe.ndim)
        shift[0] = 0.0 if np.isinf(right) else right + TETRODE_SPACING_UM - x.min()
        probe.move(shift)
        right = probe.contact_positions[:, 0].max()


def _neuropixels(part_number: str, contacts: np.ndarray) -> Probe:
    probe = build_neuropixels_probe(part_number).get_slice(contacts)
    probe.set_device_channel_indices(np.arange(contacts.size))
    return probe


def _neuropixels_four_shanks(_: int) -> Probe:
    """Build the lowest 96 electrodes of each of the four shanks of a Neuropixels 2.0."""
    contacts = np.concatenate([1280 * shank + np.arange(96) for shank in range(4)])
    probe = _neuropixels("NP2013", contacts)
    blocks = np.array(_FOUR_SHANK_BLOCKS).ravel()
    probe.set_device_channel_indices((48 * blocks[:, np.newaxis] + np.arange(48)).ravel())
    return probe


def _tetrodes(count: int) -> ProbeGroup:
    group = ProbeGroup()
    for index in range(count):
        tetrode = probeinterface.generate_tetrode()
        tetrode.move([TETRODE_SPACING_UM * index, 0.0])
        group.add_probe(tetrode)
    return group


def _linear(count: int) -> Probe:
    return probeinterface.generate_linear_probe(count, ypitch=LINEAR_PITCH_UM)


def _square(side: int) -> Probe:
    return probeinterface.generate_multi_columns_probe(
        side, side, xpitch=SQUARE_PITCH_UM, ypitch=SQUARE_PITCH_UM
    )


_CATALOGUE = {
    "neuropixels-1.0": _Entry(lambda _: 384, lambda _: _neuropixels("NP1000", np.arange(384))),
    "neuropixels-2.0": _Entry(lambda _: 384, lambda _: _neuropixels("NP2003", np.arange(384))),
    "neuropixels-2.0-4shank": _Entry(lambda _: 384, _neuropixels_four_shanks),
    "neuropixels-ultra": _Entry(lambda _: 384, lambda _: _neuropixels("NP1100", np.arange(384))),
    "tetrode": _Entry(lambda _: 4, lambda _: probeinterface.generate_tetrode()),
    "stereotrode": _Entry(lambda _: 2, lambda _: _linear(2)),
    "linear-N": _Entry(lambda n: n, _linear),
    "square-N": _Entry(lambda n: n * n, _square),
    "tetrode-N": _Entry(lambda n: 4 * n, _tetrodes),
}
