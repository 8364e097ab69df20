"""Simulated recordings: their truth is where the traces say it is, and the same seed gives the same bits."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import spikeinterface
from scipy.spatial.distance import cdist
from spikeinterface.core import NumpyRecording
from spikeinterface.generation.drift_tools import interpolate_templates

from spikewise.core.config import SimulationConfig
from spikewise.core.errors import MissingExtraError, OutputError, ProbeError, RecordingError, SettingError
from spikewise.data.recordings.probes import load_probe
from spikewise.data.simulation.hybrid import (
    Placement,
    RealUnit,
    load_real_units,
    neuropixels_rows,
    place_units,
    resample_units,
)
from spikewise.data.simulation.saving import save_simulation
from spikewise.data.simulation.simulate import simulate_recording
from spikewise.data.simulation.synthesis import derive_seeds

MEASURED = "templates/templates_np3A_colonell_20units_measured.npz"
GRID = "templates/templates_np3A_colonell_20units_104ch_grid.npz"
KILOSORT = "templates/templates_bombcell_np1_25units_356ch_ksunits.npz"
TETRODE = "mearec/templates_tetrode_seed671.h5"


def short(**changes):
    return replace(SimulationConfig(probe="tetrode", num_units=3, duration_s=2.0), **changes)


def bump(num_samples=60, trough=20, width=3.0):
    return -np.exp(-0.5 * ((np.arange(num_samples) - trough) / width) ** 2).astype(np.float32)


@pytest.fixture
def template_file(tmp_path):
    """Write a file in the layout of measured waveforms: three units on six rows of the staggered shank."""
    positions = neuropixels_rows(6).contact_positions
    arrays = {"n": 3, "fs": 30000, "labels": [7, 8, 9]}
    for k, (trough, depth) in enumerate([(20, 100.0), (25, 200.0), (22, 80.0)]):
        falloff = np.exp(-np.linalg.norm(positions - positions[5], axis=1) / 40)
        arrays[f"waves_{k:02d}"] = (depth * falloff[:, None] * bump(trough=trough)).astype(np.float32)
        arrays[f"pos_{k:02d}"] = positions - 50.0
    path = tmp_path / "units.npz"
    np.savez(path, **arrays)
    return path


def mean_waveform(simulation, unit_id, before=20, after=40):
    """Average the traces at a unit's spikes; shape (before + after, num_channels)."""
    traces = simulation.recording.get_traces()
    train = simulation.sorting.get_unit_spike_train(unit_id, segment_index=0)
    train = train[(train >= before) & (train < len(traces) - after)]
    return np.mean([traces[k - before : k + after] for k in train], axis=0)


def check_truth(simulation, tolerance=1):
    """Check that every unit's mean waveform has the amplitude, channel and time that the truth tells."""
    sorting = simulation.sorting
    amplitude, channel = (sorting.get_property(n) for n in ("peak_amplitude_uV", "main_channel_index"))
    for k, unit_id in enumerate(sorting.unit_ids):
        waveform = mean_waveform(simulation, unit_id)
        sample, found = np.unravel_index(np.argmin(waveform), waveform.shape)
        assert abs(sample - 20) <= tolerance
        assert found == channel[k]
        assert -waveform.min() == pytest.approx(amplitude[k], rel=0.1)
    config = simulation.config
    assert np.all((amplitude >= config.min_amplitude_uV) & (amplitude <= config.max_amplitude_uV))
    assert len(sorting.unit_ids) == config.num_units


def test_generated_units_are_where_the_truth_says():
    config = short(
        noise_uV=0.0, amplitude_std=0.0, excitatory_rate_hz=2.0, inhibitory_rate_hz=2.0, duration_s=10
    )
    simulation = simulate_recording(config)
    check_truth(simulation, tolerance=1)
    assert simulation.recording.get_num_samples() == 300_000
    assert simulation.recording.dtype == "float32"
    assert simulation.recording.get_channel_gains().tolist() == [1.0] * 4
    traces = simulation.recording.get_traces()
    spikes = simulation.sorting.to_spike_vector()["sample_index"]
    far = np.ones(len(traces), dtype=bool)
    for spike in spikes:
        far[max(spike - 30, 0) : spike + 90] = False
    assert far.sum() > 100_000
    assert not traces[far].any()


def test_rates_refractory_period_and_cell_types():
    config = short(
        num_units=10, duration_s=60.0, excitatory_fraction=0.7, refractory_ms=3.0, min_distance_um=0.0
    )
    sorting = simulate_recording(config).sorting
    assert sorting.get_property("cell_type").tolist() == ["E"] * 7 + ["I"] * 3
    rates = [len(sorting.get_unit_spike_train(u, 0)) / 60 for u in sorting.unit_ids]
    assert 3.5 < np.mean(rates[:7]) < 6.5
    assert 10 < np.mean(rates[7:]) < 20
    assert np.std(rates[:7]) > 0.3
    gaps = [np.diff(sorting.get_unit_spike_train(u, 0)).min() for u in sorting.unit_ids]
    assert min(gaps) > 90


def test_distance_between_units_and_spread_over_tetrodes():
    config = short(probe="tetrode-2", num_units=6, min_distance_um=20.0, duration_s=0.5)
    simulation = simulate_recording(config)
    locations = simulation.sorting.get_property("gt_unit_locations")
    assert np.min(cdist(locations, locations) + 1000 * np.eye(6)) >= 20
    group = simulation.recording.get_channel_groups()[simulation.sorting.get_property("main_channel_index")]
    assert sorted(np.unique(group, return_counts=True)[1]) == [3, 3]


def test_noise_has_the_deviation_and_correlation_asked_for():
    config = short(
        probe="linear-4", noise_uV=20.0, min_amplitude_uV=1.0, excitatory_rate_hz=0.01, duration_s=3.0
    )
    config = replace(config, excitatory_fraction=1.0, num_units=1)
    white = simulate_recording(config).recording.get_traces()
    np.testing.assert_allclose(white.std(axis=0), 20, rtol=0.03)
    assert np.abs(np.corrcoef(white.T) - np.eye(4)).max() < 0.02
    correlated = simulate_recording(replace(config, noise_correlation_um=40.0)).recording.get_traces()
    np.testing.assert_allclose(correlated.std(axis=0), 20, rtol=0.03)
    distance = 20.0 * np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    np.testing.assert_allclose(np.corrcoef(correlated.T), 0.5 ** (distance / 40), atol=0.03)


def test_amplitudes_vary_from_spike_to_spike():
    config = short(
        num_units=1, noise_uV=0.0, excitatory_rate_hz=20.0, duration_s=10.0, excitatory_fraction=1.0
    )
    for spread in (0.0, 0.2):
        simulation = simulate_recording(replace(config, amplitude_std=spread))
        train = simulation.sorting.get_unit_spike_train("0", 0)
        alone = np.diff(train, prepend=-1000, append=10**6)
        train = train[(alone[:-1] > 200) & (alone[1:] > 200)]
        channel = simulation.sorting.get_property("main_channel_index")[0]
        depth = -simulation.recording.get_traces()[train, channel]
        assert depth.std() / depth.mean() == pytest.approx(spread, abs=0.2 * spread + 1e-6)


def test_reading_in_pieces_changes_nothing():
    recording = simulate_recording(short(noise_correlation_um=20.0)).recording
    whole = recording.get_traces()
    for start, stop in ((0, 7), (29_995, 30_005), (30_000, 60_000), (12_345, 51_234)):
        assert np.array_equal(recording.get_traces(start_frame=start, end_frame=stop), whole[start:stop])


def assert_same_seed_same_bits(config):
    first, second = simulate_recording(config), simulate_recording(config)
    traces = first.recording.get_traces()
    spikes = first.sorting.to_spike_vector()
    assert np.array_equal(traces, second.recording.get_traces())
    assert np.array_equal(spikes, second.sorting.to_spike_vector())
    other = simulate_recording(replace(config, seed=1))
    assert not np.array_equal(traces, other.recording.get_traces())
    assert not np.array_equal(spikes, other.sorting.to_spike_vector())


def test_same_seed_same_bits(template_file):
    assert_same_seed_same_bits(short())
    assert_same_seed_same_bits(short(source="hybrid", templates=str(template_file), probe=None))


def test_stages_have_seeds_of_their_own():
    seeds = derive_seeds(0)
    assert len(set(seeds.values())) == len(seeds) == 5
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert set(derive_seeds(1).values()).isdisjoint(seeds.values())
    quiet, loud = (simulate_recording(short(noise_uV=level)) for level in (0.0, 30.0))
    assert np.array_equal(quiet.sorting.to_spike_vector(), loud.sorting.to_spike_vector())
    white = simulate_recording(short(noise_uV=15.0)).recording.get_traces() - quiet.recording.get_traces()
    double = loud.recording.get_traces() - quiet.recording.get_traces()
    np.testing.assert_allclose(double, 2 * white, atol=1e-3)


def test_measured_units_keep_their_waveform_on_their_own_probe(template_file):
    config = short(source="hybrid", templates=str(template_file), probe=None, noise_uV=0.0, amplitude_std=0.0)
    config = replace(config, excitatory_rate_hz=1.0, inhibitory_rate_hz=1.0, duration_s=10.0)
    simulation = simulate_recording(config)
    check_truth(simulation, tolerance=0)
    units, fs = load_real_units(template_file)
    assert fs == 30000
    assert set(simulation.sorting.unit_ids) == {"7", "8", "9"} == {unit.unit_id for unit in units}
    positions = simulation.recording.get_channel_locations()
    spikes = simulation.sorting.to_spike_vector()["sample_index"]
    for k, unit_id in enumerate(simulation.sorting.unit_ids):
        unit = units[int(unit_id) - 7]
        place = simulation.sorting.get_property("gt_unit_locations")[k]
        sites = unit.positions - unit.positions[unit.main_site] + place
        distance, channels = cdist(sites, positions).min(axis=1), cdist(sites, positions).argmin(axis=1)
        on_probe = distance < 0.01
        assert on_probe.mean() >= 0.75
        trough = int(np.argmin(unit.waveforms[:, unit.main_site]))
        alone = [
            t
            for t in simulation.sorting.get_unit_spike_train(unit_id, 0)
            if np.sum(np.abs(spikes - t) < 200) == 1 and 100 < t < 299_000
        ]
        start = alone[0] - trough
        traces = simulation.recording.get_traces(start_frame=start, end_frame=start + 60)
        assert np.array_equal(traces[:, channels[on_probe]], unit.waveforms[:, on_probe])


def test_waveforms_between_sites_are_interpolated_and_fade_at_both_ends(template_file):
    units, fs = load_real_units(template_file)
    channels = np.array([[10.0, 33.0], [25.0, 47.0], [500.0, 47.0], [507.0, 52.0]])
    placement = Placement(1, (1.0, 1000.0), 0.0)
    placed = place_units(units, channels, fs, placement, np.random.default_rng(1))
    assert placed.locations[0, 0] < 100
    unit = next(unit for unit in units if unit.unit_id == placed.unit_ids[0])
    sites = unit.positions - unit.positions[unit.main_site] + placed.locations[0]
    expected = interpolate_templates(unit.waveforms[None], sites, channels)[0]
    trough = int(np.argmin(unit.waveforms[:, unit.main_site]))
    start = placed.num_before - trough
    inner = placed.templates[0, start : start + 60]
    np.testing.assert_allclose(inner, expected, atol=1e-3)
    assert np.abs(expected[:, :2]).max() > 10
    assert not placed.templates[0, :, 2:].any()
    tail = placed.templates[0, start + 60 :, 0]
    assert len(tail) >= 15
    assert np.all(np.abs(np.diff(tail)) <= np.abs(inner[-1, 0]) * 0.2 + 1e-6)
    assert abs(tail[-1]) <= abs(inner[-1, 0]) * 0.02 + 1e-6


def test_units_that_the_probe_does_not_see_are_left_out(template_file):
    units, fs = load_real_units(template_file)
    probe = neuropixels_rows(12)
    for amplitudes, seen in (((90.0, 1000.0), {"7", "8"}), ((150.0, 1000.0), {"8"}), ((1.0, 90.0), {"9"})):
        placement = Placement(3, amplitudes, 10.0)
        placed = place_units(units, probe.contact_positions, fs, placement, np.random.default_rng(0))
        assert set(placed.unit_ids) == seen
        assert placed.templates.shape[::2] == (len(seen), 24)
    nothing = place_units(
        units, probe.contact_positions, fs, Placement(3, (5e3, 6e3), 0), np.random.default_rng(0)
    )
    assert nothing.unit_ids == ()


def test_placed_units_keep_their_distance_where_there_is_room(template_file):
    units, fs = load_real_units(template_file)
    positions = neuropixels_rows(60).contact_positions
    for seed in range(5):
        placement = Placement(3, (1.0, 1000.0), 150.0)
        locations = place_units(units, positions, fs, placement, np.random.default_rng(seed)).locations
        assert np.min(cdist(locations, locations) + 1e4 * np.eye(3)) >= 150


def test_resampled_units_keep_their_shape_in_time():
    waveforms = 100 * np.column_stack([bump(90, 30, 6.0)] * 4)
    unit = RealUnit("a", waveforms, np.array([[0, 0], [0, 20], [20, 0], [20, 20]], dtype=float))
    (same,) = resample_units([unit], 30000.0, 30000.0)
    assert same is unit
    (faster,) = resample_units([unit], 30000.0, 40000.0)
    assert faster.waveforms.shape == (120, 4)
    assert np.argmin(faster.waveforms[:, 0]) == 40
    np.testing.assert_allclose(faster.waveforms[:, 0], 100 * bump(120, 40, 8.0), atol=1.0)
    # A level that does not reach zero at the ends stays a level.
    (level,) = resample_units([replace(unit, waveforms=waveforms + 50)], 30000.0, 40000.0)
    np.testing.assert_allclose(level.waveforms[:4], 50, atol=1.0)
    np.testing.assert_allclose(level.waveforms[-4:], 50, atol=1.0)


def test_ends_that_are_not_zero_fade_smoothly():
    positions = neuropixels_rows(2).contact_positions
    unit = RealUnit("a", 100 * np.column_stack([bump()] * 4) + np.float32(20), positions)
    placed = place_units([unit], positions, 30000.0, Placement(1, (1.0, 1e3), 0.0), np.random.default_rng(0))
    template = placed.templates[0]
    assert template.shape == (60 + 2 * 15, 4)
    assert placed.num_before == 15 + 20
    head, tail = template[:16, 0], template[-16:, 0]
    assert np.all(np.diff(head) > 0)
    assert np.all(np.diff(tail) < 0)
    assert np.abs(np.diff(template[:, 0])).max() < 30
    assert max(head[0], tail[-1]) < 0.5


def test_hybrid_in_a_recording_adds_only_the_units(template_file):
    rng = np.random.default_rng(0)
    base = NumpyRecording([rng.integers(-100, 100, (30_000, 24)).astype("int16")], 30000.0)
    base.set_probe(neuropixels_rows(12))
    base.set_channel_gains(0.5)
    base.set_channel_offsets(3.0)
    config = short(source="hybrid", templates=str(template_file), probe=None, duration_s=60.0)
    simulation = simulate_recording(config, base)
    assert simulation.recording.get_num_samples() == 30_000
    assert simulation.sorting.to_spike_vector()["sample_index"].max() < 30_000
    added = simulation.recording.get_traces() - base.get_traces(return_in_uV=True)
    simulation = simulate_recording(replace(config, duration_s=1.0, noise_uV=0.0))
    spikes = simulation.sorting.to_spike_vector()["sample_index"]
    touched = np.zeros(30_000, dtype=bool)
    for spike in spikes:
        touched[max(spike - 60, 0) : spike + 90] = True
    assert np.abs(added[~touched]).max() < 1e-3
    assert added.min() < -70


def test_base_recordings_that_cannot_be_used(template_file):
    config = short(source="hybrid", templates=str(template_file), probe=None)
    base = NumpyRecording([np.zeros((3000, 24), dtype="int16")], 30000.0)
    base.set_channel_gains(1.0)
    base.set_channel_offsets(0.0)
    with pytest.raises(RecordingError, match="no probe"):
        simulate_recording(config, base)
    base = NumpyRecording([np.zeros((3000, 24), dtype="int16")] * 2, 30000.0)
    base.set_probe(neuropixels_rows(12))
    with pytest.raises(RecordingError, match="no gain"):
        simulate_recording(config, base)
    base.set_channel_gains(1.0)
    base.set_channel_offsets(0.0)
    with pytest.raises(RecordingError, match="2 segments"):
        simulate_recording(config, base)
    for changes in ({"probe": "tetrode"}, {"sampling_frequency": 20000.0}):
        with pytest.raises(SettingError, match="besides a base recording"):
            simulate_recording(replace(config, **changes), base)
    with pytest.raises(SettingError, match="source generator"):
        simulate_recording(short(), base)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"templates": "x.npz"}, "makes its own"),
        ({"source": "hybrid"}, "no template file"),
        ({"source": "mearec"}, "no template file"),
        ({"source": "mearec", "templates": "x.h5"}, "simulated for their own"),
        ({"source": "hybrid", "templates": "absent.npz"}, "does not exist"),
    ],
)
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(SettingError, match=message):
        simulate_recording(short(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"min_amplitude_uV": 200.0, "max_amplitude_uV": 100.0},
        {"inhibitory_rate_hz": 300.0, "refractory_ms": 2.0},
        {"num_units": 0},
        {"source": "neuron"},
    ],
)
def test_settings_out_of_range(changes):
    with pytest.raises(SettingError):
        short(**changes)


def test_a_probe_that_sees_too_few_units():
    with pytest.raises(ProbeError, match="nly 0 of 3 units"):
        simulate_recording(short(min_amplitude_uV=5000.0, max_amplitude_uV=6000.0))
    with pytest.raises(ProbeError, match=r"nly \d+ of 40 units"):
        simulate_recording(short(num_units=40, min_distance_um=30.0))


def test_more_units_than_templates(template_file):
    with pytest.raises(SettingError, match="holds 3"):
        simulate_recording(short(source="hybrid", templates=str(template_file), num_units=4))


def test_template_files_that_are_none(template_file, tmp_path):
    whole = dict(np.load(template_file))
    bad = tmp_path / "bad.npz"

    def refused(message):
        with pytest.raises(SettingError, match=message):
            load_real_units(bad)

    bad.write_bytes(template_file.read_bytes()[:3000])
    refused("cannot be read")
    bad.write_text("not an archive")
    refused("cannot be read")
    np.savez(bad, waves=np.zeros((5, 48)))
    refused("holds waves")
    np.savez(bad, **{**whole, "waves_01": np.array([{}], dtype=object)})
    refused("cannot be read")
    np.savez(bad, **{name: value for name, value in whole.items() if name != "pos_02"})
    refused("damaged")
    np.savez(bad, **{**whole, "pos_01": np.zeros((5, 2))})
    refused("do not fit")
    np.savez(bad, **{**whole, "waves_01": whole["waves_01"] * np.nan})
    refused("not finite")
    np.savez(bad, **{**whole, "pos_01": whole["pos_01"] * [0.0, 1.0]})
    refused("one line")
    np.savez(bad, **{**whole, "waves_01": -whole["waves_01"]})
    refused("no trough")
    with bad.open("wb") as file:
        np.save(file, np.zeros(3))
    refused("cannot be read")


def test_saved_simulation_is_read_back(tmp_path):
    simulation = simulate_recording(short())
    folder = save_simulation(simulation, tmp_path / "a" / "sim")
    assert sorted(path.name for path in folder.iterdir()) == ["recording", "simulation.json", "truth"]
    assert not [*folder.rglob("*.pkl"), *folder.rglob("provenance.json")]
    recording, truth = (spikeinterface.load(folder / name) for name in ("recording", "truth"))
    assert recording.dtype == "int16"
    assert recording.get_channel_gains().tolist() == [0.195] * 4
    expected = simulation.recording.get_traces()
    assert np.abs(recording.get_traces(return_in_uV=True) - expected).max() <= 0.195 / 2 * 1.001
    assert np.array_equal(recording.get_channel_locations(), simulation.recording.get_channel_locations())
    assert np.array_equal(truth.to_spike_vector(), simulation.sorting.to_spike_vector())
    assert truth.unit_ids.tolist() == simulation.sorting.unit_ids.tolist()
    assert truth.get_property("cell_type").tolist() == ["E", "E", "I"]
    facts = json.loads((folder / "simulation.json").read_text())
    assert SimulationConfig.from_dict(facts["settings"]) == simulation.config
    assert facts["seeds"] == derive_seeds(0)
    assert facts["num_spikes"] == truth.to_spike_vector().size
    assert facts["versions"]["spikeinterface"] == spikeinterface.__version__


def test_nothing_is_overwritten_by_accident(tmp_path):
    simulation = simulate_recording(short(duration_s=0.2))
    folder = save_simulation(simulation, tmp_path / "sim")
    with pytest.raises(OutputError, match="exists already"):
        save_simulation(simulation, folder)
    (folder / "old").touch()
    save_simulation(simulation, folder, overwrite=True)
    assert not (folder / "old").exists()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter").touch()
    with pytest.raises(OutputError, match="not the folder of a simulation"):
        save_simulation(simulation, other, overwrite=True)
    assert (other / "chapter").exists()
    with pytest.raises(OutputError, match="cannot be written"):
        save_simulation(simulation, other / "chapter" / "sim")


def test_a_failure_leaves_nothing_behind(tmp_path):
    simulation = simulate_recording(short(gain_uV=0.001))
    with pytest.raises(OutputError, match=r"exceed 32\.767 uV"):
        save_simulation(simulation, tmp_path / "sim")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_save_keeps_the_old_folder(tmp_path, monkeypatch):
    simulation = simulate_recording(short(duration_s=0.2))
    folder = save_simulation(simulation, tmp_path / "sim")
    monkeypatch.setattr(type(simulation.sorting), "save", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_simulation(simulation, folder, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["sim"]
    assert spikeinterface.load(folder / "truth").to_spike_vector().size == simulation.facts["num_spikes"]


def test_mearec_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "MEArec", None)
    with pytest.raises(MissingExtraError, match=r"spikewise\[simulate\]"):
        simulate_recording(short(source="mearec", templates="x.h5", probe=None))


def test_files_that_are_no_mearec_templates(tmp_path):
    h5py = pytest.importorskip("h5py")
    pytest.importorskip("MEArec")
    bad = tmp_path / "bad.h5"
    config = short(source="mearec", templates=str(bad), probe=None)
    with pytest.raises(SettingError, match="does not exist"):
        simulate_recording(config)
    bad.write_text("text")
    with pytest.raises(SettingError, match="cannot be read"):
        simulate_recording(config)
    with h5py.File(bad, "w") as file:
        file["recordings"] = np.zeros((10, 4))
    with pytest.raises(SettingError, match="cannot be read"):
        simulate_recording(config)


@pytest.mark.realdata
def test_mearec_recording(data_folder):
    config = short(source="mearec", templates=str(data_folder / TETRODE), probe=None, duration_s=8.0)
    random_state = np.random.get_state()[1].copy()  # noqa: NPY002
    simulation = simulate_recording(replace(config, noise_uV=0.0, excitatory_rate_hz=10.0))
    assert np.array_equal(np.random.get_state()[1], random_state)  # noqa: NPY002
    check_truth(simulation, tolerance=1)
    assert simulation.sorting.unit_ids.tolist() == ["#0", "#1", "#2"]
    assert simulation.recording.sampling_frequency == 32000
    assert simulation.recording.get_num_samples() == 256_000
    positions = simulation.recording.get_channel_locations()
    assert np.ptp(positions, axis=0).max() == pytest.approx(16, rel=0.5)
    assert_same_seed_same_bits(config)
    # The file's cells lie 10 to 80 um off the wires along MEArec's first axis, here the one across.
    across = simulation.sorting.get_property("gt_unit_locations")[:, 0]
    assert across.min() >= 10
    assert np.ptp(simulation.sorting.get_property("gt_unit_locations")[:, 1]) > 5
    noisy = simulate_recording(replace(config, noise_uV=12.0, excitatory_rate_hz=10.0)).recording.get_traces()
    noise = noisy - simulation.recording.get_traces()
    np.testing.assert_allclose(noise.std(axis=0), 12.0, rtol=0.02)


@pytest.mark.realdata
def test_mearec_amplitudes_vary_from_spike_to_spike(data_folder):
    config = short(source="mearec", templates=str(data_folder / TETRODE), probe=None, num_units=2)
    config = replace(config, noise_uV=0.0, duration_s=8.0, excitatory_fraction=0.5)
    spreads = []
    for spread in (0.0, 0.2):
        simulation = simulate_recording(replace(config, amplitude_std=spread))
        train = simulation.sorting.get_unit_spike_train("#1", 0)
        spikes = simulation.sorting.to_spike_vector()["sample_index"]
        train = [t for t in train if np.sum(np.abs(spikes - t) < 500) == 1]
        channel = simulation.sorting.get_property("main_channel_index")[1]
        depth = -simulation.recording.get_traces()[train, channel]
        spreads.append(depth.std() / depth.mean())
    assert spreads[0] < 0.05
    assert 0.1 < spreads[1] < 0.3


@pytest.mark.realdata
def test_mearec_with_too_many_units(data_folder):
    config = short(source="mearec", templates=str(data_folder / TETRODE), probe=None, duration_s=0.2)
    with pytest.raises(SettingError, match="templates of 50 to 300 uV"):
        simulate_recording(replace(config, num_units=600))


@pytest.mark.realdata
def test_real_units_keep_their_waveform_on_neuropixels(data_folder):
    units, fs = load_real_units(data_folder / MEASURED)
    assert (len(units), fs) == (20, 30000.0)
    assert [unit.unit_id for unit in units[:3]] == ["472", "127", "81"]
    positions = load_probe("neuropixels-1.0", None).get_global_contact_positions()
    placement = Placement(8, (50.0, 320.0), 10.0)
    placed = place_units(units, positions, fs, placement, np.random.default_rng(0))
    assert len(placed.unit_ids) == 8
    for k, unit_id in enumerate(placed.unit_ids):
        unit = next(unit for unit in units if unit.unit_id == unit_id)
        sites = unit.positions - unit.positions[unit.main_site] + placed.locations[k]
        distance = cdist(sites, positions)
        on_probe = distance.min(axis=1) < 0.5
        assert on_probe.mean() >= 0.75
        start = placed.num_before - int(np.argmin(unit.waveforms[:, unit.main_site]))
        template = placed.templates[k, start : start + 81]
        assert np.array_equal(template[:, distance.argmin(axis=1)[on_probe]], unit.waveforms[:, on_probe])
        assert -template.min() == pytest.approx(-unit.waveforms.min())


@pytest.mark.realdata
@pytest.mark.parametrize("name", [MEASURED, GRID, KILOSORT])
@pytest.mark.parametrize("probe", [None, "tetrode"])
def test_real_units_on_any_probe(data_folder, name, probe):
    config = short(source="hybrid", templates=str(data_folder / name), probe=probe, num_units=4, noise_uV=0.0)
    simulation = simulate_recording(replace(config, duration_s=10.0, sampling_frequency=32000.0))
    check_truth(simulation)


@pytest.mark.realdata
def test_kilosort_templates_become_microvolts(data_folder):
    units, fs = load_real_units(data_folder / KILOSORT)
    assert (len(units), fs) == (15, 30000.0)
    depth = {unit.unit_id: -unit.waveforms.min() for unit in units}
    # Unwhitened trough 1.5232 x mean amplitude 22.928 x 2.34375 uV.
    assert depth["0"] == pytest.approx(34.924156 * 2.34375, rel=1e-4)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["wavemap_macaquePMd_625units_1ch_normalised", "tinsM045_83units_1ch"])
def test_single_channel_templates_are_refused(data_folder, name):
    with pytest.raises(SettingError, match=r"needs a \.npz file of mean waveforms with site positions"):
        load_real_units(data_folder / "templates" / f"templates_{name}.npz")
