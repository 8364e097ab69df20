"""Drifting units: their waveforms are found where the saved displacement says, and nothing else changes."""

import json
from dataclasses import replace

import numpy as np
import pytest
import spikeinterface
from commands import run, succeed
from probeinterface import Probe, generate_multi_columns_probe
from probeinterface.io import write_probeinterface
from spikeinterface.core import NumpyRecording
from spikeinterface.generation.drift_tools import move_dense_templates
from spikeinterface.generation.drifting_generator import make_one_displacement_vector

from spikewise.core.config import SimulationConfig
from spikewise.core.errors import SettingError
from spikewise.core.seeds import stage_generator
from spikewise.data.simulation.displacement import draw_displacement, drift_steps
from spikewise.data.simulation.drift import (
    FADE_UM,
    follow_paths,
    move_templates,
)
from spikewise.data.simulation.hybrid import neuropixels_rows
from spikewise.data.simulation.simulate import simulate_recording

DRIFTING = "mearec/templates_neuropixels128_drift_seed99.h5"
STILL = "mearec/templates_neuropixels384_390_seed671.h5"
TETRODE = "mearec/templates_tetrode_seed671.h5"
MEASURED = "templates/templates_np3A_colonell_20units_measured.npz"
QUIET = {"noise_uV": 0.0, "amplitude_std": 0.0}


def drifting(**changes):
    """Twenty seconds of a 16-channel column, 20 um apart; by default up 20 um in the first ten."""
    slow = {"drift": "slow", "drift_um": 20.0, "drift_um_per_min": 120.0}
    return SimulationConfig(**{"num_units": 3, "duration_s": 20.0, **slow, **changes})


def waveform_in(simulation, unit_index, start_s, stop_s, before=20, after=40):
    """Average the traces at three spikes of a unit that are alone; shape (before + after, num_channels)."""
    fs = simulation.recording.sampling_frequency
    spikes = simulation.sorting.to_spike_vector()
    times = spikes["sample_index"]
    gaps = np.diff(times, prepend=-1000, append=simulation.recording.get_num_samples() + 1000)
    alone = (gaps[:-1] > 400) & (gaps[1:] > 400) & (spikes["unit_index"] == unit_index)
    chosen = times[alone & (times >= start_s * fs) & (times < stop_s * fs)][:3]
    assert len(chosen) > 0
    return np.mean(
        [simulation.recording.get_traces(start_frame=t - before, end_frame=t + after) for t in chosen], axis=0
    )


def column(num_channels, pitch_um=20.0):
    return np.column_stack([np.zeros(num_channels), pitch_um * np.arange(num_channels)])


def smooth_templates(positions, centre, decay_um=40.0):
    """One unit: a trough that falls off around `centre`; shape (1, 30, num_channels)."""
    trough = -np.exp(-0.5 * ((np.arange(30) - 10) / 2.0) ** 2)
    falloff = np.exp(-0.5 * (np.linalg.norm(positions - centre, axis=1) / decay_um) ** 2)
    return (100 * trough[:, None] * falloff)[None].astype(np.float32)


@pytest.mark.parametrize(
    ("positions", "rows"),
    [
        (column(12), [0]),
        (generate_multi_columns_probe(2, 12, xpitch=32, ypitch=20).contact_positions, [0, 1]),
    ],
)
def test_a_drift_of_one_pitch_is_the_same_template_one_channel_further(positions, rows):
    templates = np.random.default_rng(0).normal(0, 50, (2, 7, len(positions))).astype(np.float32)
    still, half, moved = move_templates(templates, positions, np.array([0.0, 10.0, 20.0]))
    assert np.array_equal(still, templates)
    by_column = (2, 7, len(rows), 12)
    assert np.array_equal(moved.reshape(by_column)[..., 1:], templates.reshape(by_column)[..., :-1])
    lowest = templates.reshape(by_column)[..., 0]
    np.testing.assert_allclose(moved.reshape(by_column)[..., 0], lowest * np.exp(-20 / FADE_UM), rtol=1e-5)
    assert not np.array_equal(half, still)


def test_between_channels_templates_are_interpolated_as_spikeinterface_does():
    probe = neuropixels_rows(12)
    positions = probe.contact_positions
    templates = smooth_templates(positions, [24.0, 100.0])
    displacements = np.column_stack([np.zeros(3), [3.0, 7.5, 20.0]])
    expected = move_dense_templates(templates, displacements, probe)
    moved = move_templates(templates, positions, displacements[:, 1])
    inside = (positions[:, 0] > 0) & (positions[:, 0] < 48) & (positions[:, 1] >= 20)
    np.testing.assert_allclose(moved[..., inside], expected[..., inside], atol=1e-3)
    # Both outermost columns are on the outline, where that method finds nothing.
    truth = [smooth_templates(positions, [24.0, 100.0 + step]) for step in displacements[:, 1]]
    np.testing.assert_allclose(moved, truth, atol=5.0)


def test_a_column_is_interpolated_and_a_unit_that_leaves_it_fades():
    positions = column(16)
    templates = smooth_templates(positions, [0.0, 290.0])
    steps = np.linspace(0, 100, 41)
    moved = move_templates(templates, positions, steps)
    truth = np.array([smooth_templates(positions, [0.0, 290.0 + step]) for step in steps])
    np.testing.assert_allclose(moved, truth, atol=3.0)
    peaks = -moved.min(axis=(1, 2, 3))
    assert np.all(np.diff(peaks[steps > 10]) < 0)
    assert peaks[-1] < 0.1 * peaks[0]


def test_slow_drift_is_a_triangle_from_its_start():
    config = SimulationConfig(drift="slow", drift_start_s=10.0)
    times, displacement, facts = draw_displacement(config, 400.0)
    expected = np.interp(times, [0, 10, 190, 370, 550], [0, 0, 30, 0, 30])
    np.testing.assert_allclose(displacement, expected, atol=1e-9)
    assert facts == {"mode": "slow", "range_um": 30.0, "start_s": 10.0, "um_per_min": 10.0}
    assert times[-1] >= 400
    np.testing.assert_array_equal(drift_steps(config), np.arange(31))


def test_non_rigid_drift_is_a_sine_that_is_larger_at_the_lower_end():
    times, displacement, facts = draw_displacement(SimulationConfig(drift="non-rigid"), 60.0)
    np.testing.assert_allclose(displacement, 5 - 5 * np.cos(2 * np.pi * times / 15), atol=1e-9)
    assert (facts["range_um"], facts["um_per_min"]) == (10, 80)
    simulation = simulate_recording(drifting(num_units=8, drift="non-rigid", drift_um=None))
    drift = simulation.drift
    depths = simulation.sorting.get_property("gt_unit_locations")[:, 1]
    np.testing.assert_allclose(drift.unit_factors, 1 - 0.5 * np.clip(depths, 0, 300) / 300)
    assert drift.unit_displacements_um.shape == (len(drift.times_s), 8)
    assert np.ptp(drift.unit_displacements_um.max(axis=0)) > 2


def test_a_zigzag_goes_to_both_sides_of_the_place_at_rest():
    """By default that of the scene drift60, whose period of 192 s begins at a fifth of 240 s."""
    config = SimulationConfig(drift="zigzag", drift_start_s=48.0)
    times, displacement, facts = draw_displacement(config, 240.0)
    expected = np.interp(times, [0, 48, 96, 192, 240], [0, 0, 30, -30, 0])
    np.testing.assert_allclose(displacement, expected, atol=1e-9)
    like = {"displacement_sampling_frequency": 10.0, "t_start_drift": 48.0, "period_s": 192.0}
    theirs = make_one_displacement_vector(drift_mode="zigzag", duration=240.0, **like)
    np.testing.assert_allclose(displacement[: len(theirs)], -60.0 * theirs, atol=1e-4)
    assert facts == {"mode": "zigzag", "range_um": 60.0, "start_s": 48.0, "um_per_min": 37.5}
    np.testing.assert_array_equal(drift_steps(config), np.arange(-30, 31))


def test_jumps_alternate_between_both_ends_at_random_times():
    config = SimulationConfig(drift="jump", drift_start_s=84.0)
    times, displacement, facts = draw_displacement(config, 1084.0)
    assert set(displacement) == {-20.0, 0.0, 20.0}
    when = times[1:][np.diff(displacement) != 0]
    between = np.diff([84.0, *when])
    assert between.min() >= 19.9
    assert between.max() <= 40.1
    assert np.ptp(between) > 10
    sides = displacement[1:][np.diff(displacement) != 0]
    np.testing.assert_array_equal(sides, 20.0 * (-1.0) ** np.arange(len(sides)))
    assert not displacement[times < when[0]].any()
    assert facts == {"mode": "jump", "range_um": 40.0, "start_s": 84.0, "period_s": 30.0}
    assert np.array_equal(draw_displacement(config, 1084.0)[1], displacement)
    assert not np.array_equal(draw_displacement(replace(config, seed=1), 1084.0)[1], displacement)


def test_in_the_mode_jump_the_lower_end_moves_most():
    config = drifting(num_units=8, drift="jump", drift_um_per_min=None, drift_period_s=2.0)
    drift = simulate_recording(config).drift
    depths = simulate_recording(without_drift(config)).sorting.get_property("gt_unit_locations")[:, 1]
    np.testing.assert_allclose(drift.unit_factors, 1 - 0.7 * np.clip(depths, 0, 300) / 300)


def test_units_of_a_zigzag_are_one_channel_further_and_one_channel_back():
    config = drifting(duration_s=66.0, drift="zigzag", drift_um=40.0, drift_um_per_min=60.0, seed=2, **QUIET)
    config = replace(config, drift_start_s=5.0, excitatory_rate_hz=15.0)
    simulation = simulate_recording(config)
    ends = 0
    for k, channel in enumerate(simulation.sorting.get_property("main_channel_index")):
        first = waveform_in(simulation, k, 0, 5)
        for at, moved in ((25, 1), (65, -1)):  # 20 s up, 40 s down; for 0.8 s all spikes have the last step
            there = waveform_in(simulation, k, at - 0.4, at + 0.4)
            if 0 <= channel + moved < 16:
                assert np.argmin(there.min(axis=0)) == channel + moved
                ends += 1
            same = slice(1, None), slice(None, -1)
            into, of = same if moved == 1 else same[::-1]
            np.testing.assert_allclose(there[:, into], first[:, of], atol=1e-3)
    assert ends >= 4


def test_fast_drift_jumps_by_a_third_of_its_range_or_more():
    config = SimulationConfig(drift="fast", drift_start_s=5.0, drift_period_s=2.0)
    times, displacement, facts = draw_displacement(config, 100.0)
    jumps = np.diff(displacement)
    when = times[1:][jumps != 0]
    np.testing.assert_allclose(when, np.arange(7, 101, 2))
    assert np.all((np.abs(jumps[jumps != 0]) >= 5 - 1e-9) & (np.abs(jumps[jumps != 0]) <= 15))
    assert not displacement[times < 7].any()
    assert displacement.min() >= 0
    assert displacement.max() <= 15
    assert len(np.unique(displacement)) > 30
    assert facts["period_s"] == 2
    assert draw_displacement(replace(config, drift_period_s=None), 35.0)[2]["period_s"] == 5
    assert draw_displacement(replace(config, drift_period_s=None), 3600.0)[2]["period_s"] == 60
    other = draw_displacement(replace(config, seed=1), 100.0)[1]
    assert not np.array_equal(other, displacement)
    drawn_elsewhere = stage_generator(0, "drift").uniform(0, 10)
    assert displacement[times >= 7][0] == pytest.approx(5 + drawn_elsewhere)


def test_at_the_height_of_a_slow_drift_units_are_one_channel_further():
    config = drifting(duration_s=26.0, drift_start_s=5.0, drift_um_per_min=60.0, seed=2, **QUIET)
    simulation = simulate_recording(replace(config, excitatory_rate_hz=15.0))
    positions = simulation.recording.get_channel_locations()
    for k, channel in enumerate(simulation.sorting.get_property("main_channel_index")):
        # 20 um in 20 s: for 0.8 s around the height all spikes have the template of the last step.
        first, last = waveform_in(simulation, k, 0, 5), waveform_in(simulation, k, 24.6, 25.4)
        half = waveform_in(simulation, k, 14.6, 15.4)
        assert np.argmin(first.min(axis=0)) == channel < 15
        assert np.argmin(last.min(axis=0)) == channel + 1
        np.testing.assert_allclose(last[:, 1:], first[:, :-1], atol=1e-3)
        expected = move_templates(first[None], positions, np.array([10.0]))[0, 0]
        np.testing.assert_allclose(half, expected, atol=0.02 * np.abs(first).max())


def without_drift(config):
    nothing = {"drift_um": None, "drift_um_per_min": None, "drift_period_s": None, "drift_start_s": 0.0}
    return replace(config, drift="none", **nothing)


def test_before_the_drift_the_recording_is_that_without_drift():
    config = drifting(drift_start_s=10.0)
    simulation, still = simulate_recording(config), simulate_recording(without_drift(config))
    traces, resting = simulation.recording.get_traces(), still.recording.get_traces()
    assert np.array_equal(traces[:299_000], resting[:299_000])
    assert np.abs(traces - resting)[320_000:].max() > 10
    assert np.array_equal(simulation.sorting.to_spike_vector(), still.sorting.to_spike_vector())
    for name in still.sorting.get_property_keys():
        assert np.array_equal(simulation.sorting.get_property(name), still.sorting.get_property(name))
    assert still.drift is None
    assert "drift" not in still.facts
    assert traces.dtype == np.float32


def test_reading_in_pieces_changes_nothing_and_the_same_seed_gives_the_same_bits():
    config = drifting(duration_s=2.0, drift="fast", drift_um_per_min=None, noise_correlation_um=20.0)
    recording = simulate_recording(config).recording
    whole = recording.get_traces()
    for start, stop in ((0, 7), (29_995, 30_005), (30_000, 60_000), (12_345, 51_234)):
        assert np.array_equal(recording.get_traces(start_frame=start, end_frame=stop), whole[start:stop])
    some = recording.get_traces(start_frame=100, end_frame=40_000, channel_ids=recording.channel_ids[[3, 9]])
    assert np.array_equal(some, whole[100:40_000, [3, 9]])
    assert np.array_equal(simulate_recording(config).recording.get_traces(), whole)
    assert not np.array_equal(simulate_recording(replace(config, seed=1)).recording.get_traces(), whole)


def test_saved_drift_is_read_back(tmp_path, capsys):
    folder = tmp_path / "sim"
    options = ["--drift", "non-rigid", "--drift-um", "12", "--duration-s", "2", "--num-units", "3"]
    succeed(capsys, "simulate", "-o", folder, *options)
    facts = json.loads((folder / "simulation.json").read_text())
    assert facts["drift"] == {"mode": "non-rigid", "range_um": 12.0, "start_s": 0.0, "um_per_min": 80.0}
    drift = simulate_recording(SimulationConfig.from_dict(facts["settings"])).drift
    with np.load(folder / "drift.npz", allow_pickle=False) as saved:
        assert set(saved) == {
            "times_s",
            "displacement_um",
            "unit_ids",
            "unit_factors",
            "steps_um",
            "peak_amplitudes_uV",
        }
        for name in saved:
            assert np.array_equal(saved[name], np.asarray(getattr(drift, name)))
        truth = spikeinterface.load(folder / "truth")
        assert saved["unit_ids"].tolist() == truth.unit_ids.tolist()
        np.testing.assert_allclose(saved["peak_amplitudes_uV"][0], truth.get_property("peak_amplitude_uV"))
    assert spikeinterface.load(folder / "recording").get_num_samples() == 60_000


def test_units_drift_in_a_given_recording(tmp_path):
    positions = neuropixels_rows(6).contact_positions
    arrays = {"n": 1, "fs": 30000, "pos_00": positions}
    arrays["waves_00"] = 2 * smooth_templates(positions, positions[5])[0].T
    np.savez(tmp_path / "unit.npz", **arrays)
    base = NumpyRecording([np.full((60_000, 40), 7, dtype="int16")], 30000.0)
    base.set_probe(neuropixels_rows(20))
    base.set_channel_gains(0.5)
    base.set_channel_offsets(0.0)
    config = drifting(source="hybrid", templates=str(tmp_path / "unit.npz"), num_units=1, **QUIET)
    config = replace(config, excitatory_rate_hz=10.0, drift_um_per_min=1200.0)
    simulation = simulate_recording(config, base)
    traces = simulation.recording.get_traces()
    assert np.median(traces) == 3.5
    spikes = simulation.sorting.to_spike_vector()["sample_index"]
    drift = simulation.drift
    moved = drift.displacement_um[(spikes / 3000).astype(int)]
    far, near = spikes[np.argmax(moved)], spikes[np.argmin(moved)]
    assert moved.max() - moved.min() > 15
    weights = {t: 3.5 - traces[t - 10 : t + 20].min(axis=0) for t in (far, near)}
    depth = {t: np.average(base.get_channel_locations()[:, 1], weights=w) for t, w in weights.items()}
    assert depth[far] - depth[near] == pytest.approx(moved.max() - moved.min(), abs=3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"drift_um": 10.0}, "drift_um is given with the drift 'none'"),
        ({"drift_start_s": 1.0}, "drift_start_s is given"),
        ({"drift": "fast", "drift_um_per_min": 5.0}, "drift_um_per_min is given with the drift 'fast'"),
        ({"drift": "slow", "drift_period_s": 5.0}, "drift_period_s is given with the drift 'slow'"),
        ({"drift": "jump", "drift_um_per_min": 5.0}, "drift_um_per_min is given with the drift 'jump'"),
        ({"drift": "zigzag", "drift_period_s": 5.0}, "drift_period_s is given with the drift 'zigzag'"),
        ({"drift": "slow", "drift_um": 0.0}, "at least"),
        ({"drift": "sideways"}, "must be one of"),
    ],
)
def test_drift_settings_that_contradict_each_other(changes, message):
    with pytest.raises(SettingError, match=message):
        SimulationConfig(**changes)


def test_drifts_that_cannot_be_made(tmp_path, capsys):
    with pytest.raises(SettingError, match="drift starts at 30 s"):
        simulate_recording(drifting(drift_start_s=30.0))
    with pytest.raises(SettingError, match="along a probe of"):
        simulate_recording(drifting(probe="tetrode"))
    with pytest.raises(SettingError, match="on 2 probes"):
        simulate_recording(drifting(probe="tetrode-2"))
    slanted = Probe(ndim=2, si_units="um")
    slanted.set_contacts(column(8) + column(8)[:, ::-1])
    slanted.set_device_channel_indices(np.arange(8))
    write_probeinterface(tmp_path / "slanted.json", slanted)
    with pytest.raises(SettingError, match="slanted line"):
        simulate_recording(drifting(probe=str(tmp_path / "slanted.json")))
    outcome = run(capsys, "simulate", "-o", tmp_path / "s", "--drift", "slow", "--drift-um", "200")
    assert outcome.code == 2
    assert "twice as long as the drift" in outcome.err


def test_paths_are_followed_linearly_and_end_where_the_file_ends():
    waveforms = np.arange(3.0)[None, :, None, None] ** 2 * np.ones((2, 1, 4, 5))
    locations = np.zeros((2, 3, 3))
    locations[..., 1] = [[0.0, 4.0, 8.0], [10.0, 12.0, 14.0]]
    moved = follow_paths(waveforms, locations, np.array([0.0, 1.0, 3.0, 4.0]))
    np.testing.assert_allclose(moved[:, 0, 0, 0], [0, 0.25, 0.75, 1])
    np.testing.assert_allclose(moved[:, 1, 0, 0], [0, 0.5, 2.5, 4])
    with pytest.raises(SettingError, match="allows a drift of 4 um"):
        follow_paths(waveforms, locations, np.array([0.0, 5.0]))
    with pytest.raises(SettingError, match="do not drift up"):
        follow_paths(waveforms, -locations, np.array([0.0, 1.0]))
    locations[0, :, 2] = [0.0, 2.0, 4.0]
    with pytest.raises(SettingError, match="do not drift up"):
        follow_paths(waveforms, locations, np.array([0.0, 1.0]))


@pytest.mark.realdata
def test_units_of_a_drift_file_follow_its_positions(data_folder):
    h5py = pytest.importorskip("h5py")
    config = drifting(source="mearec", templates=str(data_folder / DRIFTING), num_units=4, duration_s=14.0)
    config = replace(config, drift="fast", drift_um=100.0, drift_um_per_min=None, drift_period_s=7.0, **QUIET)
    simulation = simulate_recording(replace(config, min_distance_um=100.0))
    still = simulate_recording(without_drift(replace(config, min_distance_um=100.0, duration_s=0.5)))
    for name in ("peak_amplitude_uV", "main_channel_index", "gt_unit_locations"):
        expected = still.sorting.get_property(name)
        np.testing.assert_allclose(simulation.sorting.get_property(name), expected)
    level = np.round(simulation.drift.displacement_um[simulation.drift.times_s == 10.0][0])
    assert level >= 33
    with h5py.File(data_folder / DRIFTING) as file:
        cells, paths = file["templates"][()], file["locations"][()]
    for k, location in enumerate(simulation.sorting.get_property("gt_unit_locations")):
        cell = int(np.argmin(np.linalg.norm(paths[:, 0, [1, 2, 0]] - location, axis=1)))
        trough = waveform_in(simulation, k, 0, 7).min(axis=1).argmin()
        assert trough == 20
        place = level / 100 * 29
        share = place - int(place)
        path = (1 - share) * cells[cell, int(place)] + share * cells[cell, int(place) + 1]
        for waveform, expected in (
            (waveform_in(simulation, k, 0, 7, 60, 160), cells[cell, 0]),
            (waveform_in(simulation, k, 7, 14, 60, 160), path),
        ):
            amplitudes = -expected.min(axis=1)
            np.testing.assert_allclose(-waveform.min(axis=0), amplitudes, atol=0.01 * amplitudes.max())


@pytest.mark.realdata
def test_a_file_with_too_few_cells_to_drift(data_folder):
    pytest.importorskip("MEArec")
    with pytest.raises(SettingError, match="templates of 50 to 300 uV"):
        simulate_recording(drifting(source="mearec", templates=str(data_folder / TETRODE), num_units=600))


@pytest.mark.realdata
@pytest.mark.parametrize(("source", "name"), [("mearec", STILL), ("hybrid", MEASURED)])
def test_units_of_still_files_drift_between_the_channels(data_folder, source, name):
    config = drifting(source=source, templates=str(data_folder / name), num_units=2, duration_s=2.0)
    config = replace(config, excitatory_rate_hz=15.0, sampling_frequency=24000.0)
    simulation = simulate_recording(replace(config, drift_um=20.0, drift_um_per_min=1200.0, **QUIET))
    drift = simulation.drift
    depth = simulation.recording.get_channel_locations()[:, 1]
    for unit_id in simulation.sorting.unit_ids:
        train = simulation.sorting.get_unit_spike_train(unit_id, 0)
        moved = drift.displacement_um[(train / simulation.recording.sampling_frequency * 10).astype(int)]
        ends = train[np.argmin(moved)], train[np.argmax(moved)]
        size = [
            -simulation.recording.get_traces(start_frame=t - 10, end_frame=t + 10).min(axis=0) for t in ends
        ]
        rest = simulation.recording.get_traces(start_frame=ends[0] - 10, end_frame=ends[0] + 10)
        assert abs(rest.min(axis=1).argmin() - 10) <= 1
        before, after = (np.average(depth[s > 0.3 * s.max()], weights=s[s > 0.3 * s.max()]) for s in size)
        assert np.ptp(moved) > 15
        assert after - before == pytest.approx(np.ptp(moved), abs=8)


@pytest.mark.realdata
def test_cells_of_a_drift_file_zigzag_around_the_middle_of_their_way(data_folder):
    h5py = pytest.importorskip("h5py")
    config = drifting(source="mearec", templates=str(data_folder / DRIFTING), num_units=4, duration_s=20.0)
    config = replace(
        config, drift="zigzag", drift_um=80.0, drift_um_per_min=600.0, drift_start_s=6.0, **QUIET
    )
    simulation = simulate_recording(config)
    with h5py.File(data_folder / DRIFTING) as file:
        cells, paths = file["templates"][()], file["locations"][()]
    for k, location in enumerate(simulation.sorting.get_property("gt_unit_locations")):
        start = location - [0.0, 40.0, 0.0]
        cell = int(np.argmin(np.linalg.norm(paths[:, 0, [1, 2, 0]] - start, axis=1)))
        np.testing.assert_allclose(paths[cell, 0, [1, 2, 0]], start, atol=1e-3)
        along = paths[cell, :, 2] - paths[cell, 0, 2]
        place = np.interp(40.0, along, np.arange(len(along)))
        share = place - int(place)
        resting = (1 - share) * cells[cell, int(place)] + share * cells[cell, int(place) + 1]
        amplitudes = -resting.min(axis=1)
        waveform = waveform_in(simulation, k, 0, 6, 60, 160)
        np.testing.assert_allclose(-waveform.min(axis=0), amplitudes, atol=0.01 * amplitudes.max())
