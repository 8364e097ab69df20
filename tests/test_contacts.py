"""Probes in other forms: three dimensions, other units, other .prb files, the order of files."""

import numpy as np
import pytest
from probeinterface import Probe, ProbeGroup, generate_multi_columns_probe, write_probeinterface
from spikeinterface.core import NumpyRecording
from test_recordings import write_neuralynx

from spikewise.core.config import RecordingConfig
from spikewise.core.errors import ProbeError
from spikewise.data.opening import open_recording
from spikewise.data.recordings.preprocessing import split_groups
from spikewise.data.recordings.probes import attach_probe, load_probe

FLAT = generate_multi_columns_probe(2, 8, xpitch=30, ypitch=20)
WIRING = np.arange(16)[::-1]


def in_space(axes="xy", tilt=None, unit="um"):
    positions = np.zeros((16, 3))
    positions[:, ["xyz".index(axis) for axis in axes]] = FLAT.contact_positions
    if tilt is not None:
        positions = positions @ tilt.T
    return probe_at(positions, unit)


def probe_at(positions, unit="um"):
    probe = Probe(ndim=positions.shape[1], si_units=unit)
    axes = None
    if positions.shape[1] == 3:
        axes = np.tile([[1.0, 0, 0], [0, 1.0, 0]], (len(positions), 1, 1))
    scale = {"um": 1, "mm": 1e-3}[unit]
    probe.set_contacts(positions * scale, plane_axes=axes, shapes="circle", shape_params={"radius": 1})
    probe.set_device_channel_indices(WIRING if len(positions) == 16 else np.arange(len(positions)))
    return probe


def recorded(probe, num_channels=16):
    recording = NumpyRecording([np.zeros((100, num_channels), "int16")], 30000.0)
    group = ProbeGroup()
    group.add_probe(probe)
    recording.set_probegroup(group)
    return recording


def distances(positions):
    return np.linalg.norm(positions[:, None] - positions[None], axis=-1)


@pytest.mark.parametrize("axes", ["xy", "xz", "yz"])
def test_a_plane_of_two_axes_keeps_them(axes):
    attached = attach_probe(recorded(in_space(axes)), None)
    expected = np.empty((16, 2))
    expected[WIRING] = FLAT.contact_positions
    np.testing.assert_allclose(attached.get_channel_locations(), expected)


@pytest.mark.parametrize("angle", [10, 35, 80])
def test_a_tilted_plane_keeps_distances_and_depth(angle):
    a = np.deg2rad(angle)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(0.4), -np.sin(0.4), 0], [np.sin(0.4), np.cos(0.4), 0], [0, 0, 1]])
    attached = attach_probe(recorded(in_space("xz", about_z @ about_x)), None)
    expected = np.empty((16, 2))
    expected[WIRING] = FLAT.contact_positions
    found = attached.get_channel_locations()
    np.testing.assert_allclose(distances(found), distances(expected), atol=1e-6)
    assert np.ptp(found[:, 1]) == pytest.approx(140)  # the shank runs along the depth


def test_a_line_in_space_runs_along_the_depth():
    line = np.c_[np.full(4, 7.0), np.full(4, 9.0), 25.0 * np.arange(4)]
    found = attach_probe(recorded(probe_at(line), 4), None).get_channel_locations()
    assert found.tolist() == [[7, 0], [7, 25], [7, 50], [7, 75]]
    found = attach_probe(
        recorded(probe_at(line @ np.diag([1, 1, 1]) + np.outer(np.arange(4), [1, 2, 0])), 4), None
    )
    assert np.diff(found.get_channel_locations()[:, 1]) == pytest.approx([np.sqrt(25**2 + 5)] * 3)


def test_contacts_outside_of_a_plane_are_told():
    positions = np.random.default_rng(0).uniform(0, 300, (16, 3))
    with pytest.raises(ProbeError, match=r"up to \d+\.\d um outside of a plane.*two dimensions"):
        attach_probe(recorded(probe_at(positions)), None)


@pytest.mark.parametrize("axes", ["xy", "xz"])
def test_a_probe_in_millimetres_becomes_one_in_micrometres(axes, tmp_path):
    probe = in_space(axes, unit="mm")
    expected = np.empty((16, 2))
    expected[WIRING] = FLAT.contact_positions
    np.testing.assert_allclose(attach_probe(recorded(probe), None).get_channel_locations(), expected)
    write_probeinterface(tmp_path / "probe.json", probe)
    bare = NumpyRecording([np.zeros((100, 16), "int16")], 30000.0)
    attached = attach_probe(bare, tmp_path / "probe.json")
    np.testing.assert_allclose(attached.get_channel_locations(), expected)


def test_groups_stay_when_probes_are_laid_flat():
    group = ProbeGroup()
    for index in range(2):
        line = np.c_[np.full(4, 200.0 * index), np.zeros(4), 25.0 * np.arange(4)]
        probe = probe_at(line)
        probe.set_device_channel_indices(2 * np.arange(4) + index)  # the channels of the shanks alternate
        group.add_probe(probe)
    recording = NumpyRecording([np.zeros((100, 8), "int16")], 30000.0)
    recording.set_probegroup(group)
    recording.set_property("group", np.array(["a", "b"] * 4))
    parts = split_groups(attach_probe(recording, None))
    assert parts["a"].get_channel_locations().tolist() == [[0, 0], [0, 25], [0, 50], [0, 75]]
    assert parts["b"].get_channel_locations()[:, 0].tolist() == [200] * 4


PRB = {
    "a list in the order of the channels": (
        "{0: {'channels': [2, 0, 1], 'geometry': [[0, 40], (0, 0), [0, 20]]}}"
    ),
    "three dimensions": (
        "{0: {'channels': [0, 1, 2], 'geometry': {0: (0, 5, 0), 1: (0, 5, 20), 2: (0, 5, 40)}}}"
    ),
    "computed": "{0: dict(channels=range(3), geometry={c: [0, 20 * c] for c in range(3)}, graph=[])}",
    "a list of groups": "[{'channels': range(3), 'geometry': {0: [0, 0], 1: [0, 20], 2: [0, 40]}}]",
}


@pytest.mark.parametrize("form", PRB)
def test_forms_of_prb_files(form, tmp_path):
    (tmp_path / "a.prb").write_text(f"total_nb_channels = 3\nradius = 100\nchannel_groups = {PRB[form]}\n")
    group = load_probe(tmp_path / "a.prb", 3)
    positions = np.empty((3, 2))
    wiring = group.get_global_device_channel_indices()["device_channel_indices"]
    positions[wiring] = group.get_global_contact_positions()
    assert positions.tolist() == [[0, 0], [0, 20], [0, 40]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{0: {'channels': [0, 1, 2], 'geometry': {0: [0, 0]}}}", r"no position of the channels \[1, 2\]"),
        ("{0: {'channels': [0, 1], 'geometry': [[0, 0]]}}", r"each channel has one position"),
        ("{}", "no channel_groups"),
    ],
)
def test_prb_files_that_lack_positions(text, told, tmp_path):
    (tmp_path / "a.prb").write_text(f"channel_groups = {text}\n")
    with pytest.raises(ProbeError, match=told):
        load_probe(tmp_path / "a.prb")


def test_contact_i_is_channel_number_i(tmp_path):
    """A folder of one file for each channel: by name, CSC10 comes before CSC2."""
    for number in range(12):
        write_neuralynx(tmp_path / f"CSC{number}.ncs", number, np.full(1024, number, "int16"))
    recording, _ = open_recording(tmp_path, RecordingConfig(probe="linear-12"))
    assert recording.get_traces()[0].tolist() == list(range(12))
    assert recording.get_channel_locations()[:, 1].tolist() == [20 * number for number in range(12)]
