"""The default design from end to end: few labels, filters of other recordings, no labels."""

import json

import numpy as np
import pytest
import torch
from arrays import ArrayTraces
from commands import Simulated, assert_told, run, succeed
from probeinterface import Probe
from safetensors import safe_open
from safetensors.torch import save_file
from spikeinterface.core import load

import spikewise
from spikewise.core.config import Config
from spikewise.core.errors import CheckpointError, SettingError
from spikewise.learning.rounds import UnitLearner
from spikewise.models.gates import OPEN

SMALL = {"patches_per_unit": 1500, "unit_steps": 150}
"""Effort that is enough for a few units that differ."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Simulated:
    """Five units on eight channels; no test changes it."""
    folder = tmp_path_factory.mktemp("scene") / "made"
    return Simulated(folder, **{"probe": "linear-8", "num-units": 5, "duration-s": 16, "seed": 22})


def accuracy(scene, seed=0, **options):
    """Accuracy on the second half, after learning from the first."""
    options = SMALL | options
    result = spikewise.sort(scene.recording, labels=scene.truth, label_interval=(0, 8), seed=seed, **options)
    return spikewise.evaluate(load(scene.truth), result.sorting, interval=(8, 16)).accuracy, result


def test_five_labels_of_each_unit_are_enough(scene):
    found, result = accuracy(scene, labels_per_unit=5)
    assert found > 0.9
    facts = result.model.facts["groups"][0]
    labelled, known = facts["num_confident_spikes"]
    assert labelled == 25
    assert known > 4 * labelled  # the second round knows what the first found
    assert facts["train_loss"][1] < 0.3


def test_pretrained_filters_lead_by_a_stated_margin(scene):
    """After ten small steps, filters learnt from these few labels alone fall behind by at least 0.25.

    This is about the networks, so they alone decide (``explain=False``).
    """
    few = {"labels_per_unit": 4, "patches_per_unit": 300, "unit_steps": 10, "rounds": 1}
    few |= {"unit_learning_rate": 3e-3, "explain": False}
    shipped = [accuracy(scene, seed, **few)[0] for seed in (0, 1)]
    scratch = [accuracy(scene, seed, **few, pretrained="none")[0] for seed in (0, 1)]
    assert np.mean(shipped) > np.mean(scratch) + 0.25, (shipped, scratch)


def test_the_same_seed_gives_the_same_spikes_however_it_is_cut(scene):
    one = accuracy(scene, labels_per_unit=10)[1]
    again = accuracy(scene, labels_per_unit=10, chunk_s=0.7)[1]
    other = accuracy(scene, labels_per_unit=10, seed=1)[1]
    assert one.provenance["result"]["spikes_hash"] == again.provenance["result"]["spikes_hash"]
    assert one.model.hash() == again.model.hash()
    assert one.model.hash() != other.model.hash()


def test_a_model_comes_back_from_its_file_and_finds_the_same(scene, tmp_path):
    file = tmp_path / "m.safetensors"
    model = spikewise.train(scene.recording, scene.truth, output=file, **SMALL)
    assert spikewise.load_model(file).hash() == model.hash()
    one, other = (spikewise.sort(scene.recording, model=given).sorting for given in (model, file))
    assert np.array_equal(one.to_spike_vector(), other.to_spike_vector())


def test_gates_lose_no_spike_of_a_thousand(scene):
    model = accuracy(scene, labels_per_unit=15)[1].model
    assert (model.groups[0].network.gate_level > OPEN).all()  # all are fitted
    found = []
    for sparse in (True, False):
        spikes = spikewise.sort(scene.recording, model=model, sparse=sparse).sorting.to_spike_vector()
        found.append({(int(s["sample_index"]), int(s["unit_index"])) for s in spikes})
    assert len(found[1]) > 500
    assert len(found[0] ^ found[1]) <= 0.001 * len(found[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t["0.channel_index"].fill_(8), "channels that it does not have"),
        (lambda t: t.update({"0.channel_index": t["0.channel_index"].float()}), "not numbers of channels"),
        (lambda t: t.update({"0.backbone.filter1.weight": torch.zeros(4, 9)}), "9 samples"),
        (lambda t: t.update({"0.units.bias": torch.zeros(9, 1)}), "units"),
        (lambda t: t.pop("0.units.weight"), "damaged"),
    ],
)
def test_damaged_weights_are_refused(scene, tmp_path, change, message):
    file = tmp_path / "m.safetensors"
    options = {"patches_per_unit": 100, "unit_steps": 10, "rounds": 1}
    spikewise.train(scene.recording, scene.truth, output=file, **options)
    with safe_open(file, framework="pt") as opened:
        header, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, file, header)
    with pytest.raises(CheckpointError, match=message):
        spikewise.load_model(file)


def test_settings_of_the_other_design_are_refused():
    with pytest.raises(SettingError, match=r"epochs.*neighbourhood.*esort-paper"):
        Config.from_options(epochs=3)
    with pytest.raises(SettingError, match=r"rounds.*esort-paper.*neighbourhood"):
        Config.from_options(design="esort-paper", rounds=1)
    assert Config.from_options(preset="paper").design == "esort-paper"
    assert Config.from_options().design == "neighbourhood"


def test_effort_is_shared_out_among_the_units():
    units = Config().units
    assert units.effort(1) == (60_000, 4500)
    assert units.effort(50) == (10_000, 750)
    assert units.effort(500) == (8000, 600)
    assert Config.from_options(patches_per_unit=200).units.effort(500) == (200, 15)


@pytest.mark.parametrize(
    ("pitch_um", "columns", "expected"), [(6.0, 8, 32), (20.0, 2, 12), (15.0, 1, 12), (10.0, 4, 20)]
)
def test_units_see_more_channels_where_these_lie_closer(pitch_um, columns, expected):
    count = np.arange(48)
    positions = np.column_stack([count % columns, count // columns]) * pitch_um
    traces = ArrayTraces(np.zeros((10, 48)))
    assert UnitLearner(traces, positions, 60, Config())._num_near() == pytest.approx(expected, abs=2)
    assert UnitLearner(traces, positions, 60, Config.from_options(near_channels=7))._num_near() == 7


def test_units_that_jump_are_found_where_drift_is_expected():
    """A probe at rest while it is labelled, that jumps up to 15 um afterwards: a lead of at least 0.05."""
    jumps = {"drift": "fast", "drift_start_s": 7.0, "drift_period_s": 1.0}
    moving = spikewise.simulate(probe="linear-24", num_units=14, duration_s=16, seed=4, noise_uV=8.0, **jumps)
    labels = {"labels": moving.sorting, "label_interval": (0, 7), "seed": 0, **SMALL}
    found = {}
    for furthest in (15.0, 0.0):
        sorting = spikewise.sort(moving.recording, drift_um=furthest, **labels).sorting
        found[furthest] = spikewise.evaluate(moving.sorting, sorting, interval=(9, 16)).accuracy
    assert found[15.0] > found[0.0] + 0.05, found


def test_a_window_shorter_than_a_template_is_learnt_where_drift_is_expected():
    simulation = spikewise.simulate(probe="linear-16", num_units=3, duration_s=8, seed=3)
    options = {
        "label_interval": (0, 5),
        "window_ms": 0.5,
        "pretrained": "none",
        "drift_um": 15.0,
        "seed": 0,
        **SMALL,
    }
    sorting = spikewise.sort(simulation.recording, labels=simulation.sorting, **options).sorting
    assert spikewise.evaluate(simulation.sorting, sorting, interval=(5, 8)).accuracy > 0.8


def test_a_probe_along_which_nothing_can_be_moved_is_learnt_without_unless_drift_is_asked_for():
    """Channels on a slanted line: no way to tell a waveform beside it."""
    simulation = spikewise.simulate(probe="linear-16", num_units=2, duration_s=6, seed=3)
    recording = simulation.recording
    places = recording.get_channel_locations()
    slanted = Probe(ndim=2)
    slanted.set_contacts(places + places[:, 1:] * [[0.5, 0.0]], shapes="circle", shape_params={"radius": 5})
    slanted.set_device_channel_indices(np.arange(len(places)))
    recording.set_probe(slanted)
    small = {"patches_per_unit": 100, "unit_steps": 10, "rounds": 1}
    assert spikewise.train(recording, simulation.sorting, **small).unit_ids
    with pytest.raises(SettingError, match="slanted line"):
        spikewise.train(recording, simulation.sorting, drift_um=10.0, **small)


def test_filters_are_pretrained_and_used_by_command(capsys, scene, tetrode, tmp_path):
    filters = tmp_path / "filters.safetensors"
    folders = (scene.folder, tetrode.folder)
    quick = {"--patches-per-unit": 60, "--steps": 20, "-o": filters}
    summary = succeed(capsys, "pretrain", *folders, quick).summary
    assert (summary["units"], summary["recordings"]) == (8, 2)
    options = {"--labels": scene.truth, "--pretrained": filters, "-o": tmp_path / "m.safetensors"}
    small = {"--patches-per-unit": 100, "--unit-steps": 10, "--rounds": 1}
    succeed(capsys, "train", scene.recording, options, small)
    facts = spikewise.load_model(tmp_path / "m.safetensors").facts
    assert facts["pretrained_hash"] == summary["hash"]


def test_what_cannot_be_pretrained_on_is_told(capsys, scene, tmp_path):
    output = {"-o": tmp_path / "f.safetensors"}
    assert_told(run(capsys, "pretrain", tmp_path, output), "holds no recording with its truth", "--labels")
    labels = {"--labels": scene.truth}
    assert_told(run(capsys, "pretrain", scene.recording, scene.recording, labels, output), "1 labels for 2")
    assert_told(run(capsys, "pretrain", scene.folder, {**output, "--steps": 2}), "Steps is 2", "At least 10")
    assert not (tmp_path / "f.safetensors").exists()


def test_provenance_tells_of_filters_rounds_and_design(capsys, scene, tmp_path):
    small = {"--patches-per-unit": 100, "--unit-steps": 10}
    succeed(capsys, "sort", scene.recording, {"--labels": scene.truth, "-o": tmp_path / "out", **small})
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["config"]["network"]["design"] == "neighbourhood"
    facts = provenance["model"]["facts"]
    assert facts["units"]["rounds"] == 2
    assert len(facts["groups"][0]["train_loss"]) == 2
    assert len(facts["pretrained_hash"]) == 64
