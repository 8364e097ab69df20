"""The speed benchmark: small runs from end to end, and what its numbers rest on."""

import dataclasses
import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import assert_told, run, succeed

from spikewise.core.config import DetectionConfig, SortingConfig, UnitsConfig
from spikewise.core.errors import Interrupted, SettingError
from spikewise.models.esort import EsortNetwork
from spikewise.models.neighbourhood import Backbone, NeighbourhoodNetwork
from spikewise.papers.speed import scene as speed_scene
from spikewise.papers.speed import speed
from spikewise.papers.speed.config import SpeedConfig
from spikewise.papers.speed.limits import (
    Limits,
    MemoryTraces,
    Stage,
    Work,
    measure_limits,
    preprocessing_work,
    unfolded_probabilities,
)
from spikewise.papers.speed.scene import ON_CPU, make_scene, open_model, train_model
from spikewise.papers.speed.timed_detector import NETWORK_STAGES, TimedDetector
from spikewise.sorting.batch import detect_in_chunks
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.groups import Preparation, prepare_groups

RATE = 32000.0
SMALL = SpeedConfig(
    channels=12, units=4, duration_s=3.0, label_s=4.0, labels_per_unit=10, paper_s=0.05, repeats=4
)
UNITS = UnitsConfig(patches_per_unit=500)
OPTIONS = {"--channels": 12, "--units": 4, "--duration-s": 3, "--label-s": 4, "--repeats": 1}


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of a small benchmark, and its results."""
    folder = tmp_path_factory.mktemp("speed") / "made"
    return folder, speed.measure_speed(folder, SMALL, units=UNITS)


# From end to end


def test_the_results_agree_with_one_another(measured):
    folder, results = measured
    assert json.loads((folder / "speed.json").read_text()) == results
    stages = results["stages"]
    assert [*stages] == ["read", "prepare", "preprocess", *NETWORK_STAGES, "write"]
    in_all = sum(stage["seconds"] for stage in stages.values())
    assert results["end_to_end_seconds"] == results["training_seconds"] + results["sorting_seconds"]
    assert 1 / 30 < in_all / results["sorting_seconds"] < 30  # tenths of a second, whatever else runs
    assert results["paper_form_ratio"] == results["paper_form_seconds"] / results["network_seconds"]
    assert results["other_sorter_ratio"] is None
    assert results["network_seconds"] < results["dense_seconds"]
    limits = Limits(**results["limits"])
    for stage in stages.values():
        work = Work(stage["gflop"], stage["gb"])
        assert stage["share_of_limit"] == limits.share(stage["seconds"], work)


def test_the_stages_make_up_the_network(measured):
    folder, _ = measured
    file = folder / "model.safetensors"
    subject = speed.Subject(make_scene(folder, SMALL), file, open_model(file), SMALL.repeats)
    (group,) = prepare_groups(subject.scene.recording, Preparation.of(ON_CPU, subject.model))
    num_samples = subject.scene.recording.get_num_samples(0)
    traces = MemoryTraces(np.ascontiguousarray(group.reader.read(0, 0, num_samples).T), 30000.0)
    apart = []
    for _ in range(10):  # hundredths of a second are measured, and something else may run meanwhile
        times = speed._time_network(subject, traces)
        apart.append(abs(sum(stage.seconds for stage in times.stages.values()) / times.seconds - 1))
        if apart[-1] < 0.3:
            break
    assert min(apart) < 0.3


def test_the_scores_are_those_of_the_sorter_with_and_without_gates(measured):
    _, results = measured
    assert results["accuracy_sorted"] > 0.9
    assert abs(results["accuracy_fast"] - results["accuracy_dense"]) < 0.01
    assert results["accuracy_fast"] == pytest.approx(results["accuracy_sorted"], abs=0.02)
    assert 0 < results["asked"]["open_blocks_share"] < 0.2
    assert results["scene"] | {"spikes": 0} == {
        "channels": 12,
        "units": 4,
        "spikes": 0,
        "duration_s": 3.0,
        "sampling_frequency": 30000.0,
    }


@pytest.mark.skipif(sys.platform == "win32", reason="cannot be told there")
def test_the_memory_is_that_of_a_process_that_only_sorts(measured):
    assert 0.05 < measured[1]["peak_memory_gib"] < 4


def test_simulation_and_model_are_used_again_unless_settings_change(measured):
    folder, _ = measured
    files = [folder / "scene" / "recording" / "traces_cached_seg0.raw", folder / "model.safetensors"]
    before = [file.stat().st_mtime_ns for file in files]
    scene = make_scene(folder, SMALL)
    assert train_model(folder, scene, SMALL, UNITS, lambda *_: None) == (files[1], None)
    assert [file.stat().st_mtime_ns for file in files] == before
    quicker = dataclasses.replace(UNITS, unit_steps=10)
    taken = train_model(folder, scene, SMALL, quicker, lambda *_: None)[1]
    assert taken > 0
    assert speed.earlier_seconds(folder) == pytest.approx(taken, abs=0.001)  # told when it is used again
    assert train_model(folder, scene, SMALL, quicker, lambda *_: None)[1] is None


@pytest.mark.realdata
def test_a_template_file_brings_its_probe_and_is_read_once(data_folder, tmp_path):
    pytest.importorskip("MEArec")
    file = str(data_folder / "mearec" / "templates_tetrode_seed671.h5")
    config = SpeedConfig(units=2, duration_s=1.0, label_s=1.0, templates=file)
    assert make_scene(tmp_path, config).recording.get_num_channels() == 4
    note = tmp_path / "scene" / "simulation.json"
    before = note.stat().st_mtime_ns
    make_scene(tmp_path, config)
    assert note.stat().st_mtime_ns == before
    make_scene(tmp_path, dataclasses.replace(config, seed=1))
    assert note.stat().st_mtime_ns > before
    with pytest.raises(SettingError, match=r"8 channels were requested.*has 4"):
        make_scene(tmp_path, dataclasses.replace(config, channels=8))


def test_the_stretch_that_is_tested_follows_the_labels(measured):
    scene = make_scene(measured[0], SMALL)
    recording, truth = scene.whole
    assert scene.start == 4 * 30000
    part = slice(scene.start, scene.start + 1000)
    assert np.array_equal(scene.recording.get_traces()[:1000], recording.get_traces()[part])
    samples = truth.to_spike_vector()["sample_index"]
    later = samples[samples >= scene.start] - scene.start
    assert np.array_equal(scene.truth.to_spike_vector()["sample_index"], later)


def test_interrupted_training_leaves_the_simulation_and_no_model(measured, tmp_path, monkeypatch):
    interrupted = SimpleNamespace(facts={"interrupted": True})
    monkeypatch.setattr(speed_scene, "train", lambda *_, **__: interrupted)
    scene = make_scene(measured[0], SMALL)
    with pytest.raises(Interrupted, match="Give the command again"):
        train_model(tmp_path, scene, SMALL, UNITS, lambda *_: None)
    assert not list(tmp_path.iterdir())
    assert (scene.folder / "recording").is_dir()


def test_the_command_measures_a_given_model_and_another_sorter(measured, capsys, monkeypatch):
    folder, _ = measured
    monkeypatch.setattr(speed, "installed_sorters", lambda: ["simple"])
    found = {"simple": make_scene(folder, SMALL).truth}
    monkeypatch.setattr(speed, "run_in_folder", lambda sorter, *_: found[sorter])  # the truth, at once
    monkeypatch.setattr(speed, "peak_gib", lambda *_: None)  # as where it cannot be told
    outcome = succeed(
        capsys,
        *("bench", "speed", "-o", folder, OPTIONS),
        {"--model": folder / "model.safetensors", "--against": "simple, kilosort4"},
    )
    told = outcome.summary
    assert told["training_seconds"] is None
    simple, kilosort4 = told["others"]
    assert simple["accuracy"] == 1.0
    assert told["other_sorter_ratio"] == simple["seconds"] / told["end_to_end_seconds"]
    assert kilosort4["seconds"] is None
    assert kilosort4["reason"] == "kilosort4 is not installed"
    assert "not run: kilosort4, because kilosort4 is not installed" in outcome.out
    assert told["peak_memory_gib"] is None
    assert "memory at most unknown" in outcome.out
    written = json.loads((folder / "speed.json").read_text())
    assert written == {name: told[name] for name in written}
    assert (folder / "speed.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("python", [sys.executable, "/nowhere/python"])
def test_spikesift_that_is_not_there_is_told(measured, python):
    if python == sys.executable and importlib.util.find_spec("spikesift"):
        pytest.skip("it is installed")
    told = speed._run_other("spikesift", make_scene(measured[0], SMALL), 0, python)
    assert (told["seconds"], told["accuracy"]) == (None, None)
    assert python in told["reason"]
    assert "--peers-python" in told["reason"]


def test_spikesift_sorts_the_tested_part(measured):
    pytest.importorskip("spikesift")
    told = speed._run_other("spikesift", make_scene(measured[0], SMALL), 0)
    assert told["seconds"] > 0
    assert 0 <= told["accuracy"] <= 1


def test_a_sorter_that_fails_is_told_with_its_reason(measured, monkeypatch):
    monkeypatch.setattr(speed, "installed_sorters", lambda: ["simple"])

    def fail(*_):
        raise SettingError("it failed", "what it can sort", "ask another")

    monkeypatch.setattr(speed, "run_in_folder", fail)
    told = speed._run_other("simple", make_scene(measured[0], SMALL), 0)
    assert (told["seconds"], told["accuracy"]) == (None, None)
    assert told["reason"].startswith("It failed")


# What cannot be used


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"--duration-s": 0.5}, ("duration_s is 0.5", "at least 1.0")),
        ({"--against": "lupin,lupine"}, ("no sorter 'lupine'", "lupin", "Correct its name")),
        ({"--channels": 385}, ("385 channels", "1 to 384", "fewer")),
        ({"--model": "nowhere.safetensors"}, ("nowhere.safetensors",)),
        ({"--templates": "nowhere.h5"}, ("nowhere.h5",)),
    ],
)
def test_wrong_options_are_told(capsys, tmp_path, options, parts):
    outcome = run(capsys, "bench", "speed", "-o", tmp_path / "made", OPTIONS, options)
    assert_told(outcome, *parts)
    assert not (tmp_path / "made" / "scene").exists()


def test_a_model_without_gates_is_told(capsys, trained, tmp_path):
    outcome = run(capsys, "bench", "speed", "-o", tmp_path / "made", OPTIONS, {"--model": trained})
    assert_told(outcome, "design esort-paper", "design neighbourhood", "spikewise train")


def test_a_place_that_cannot_be_written_is_told(capsys, tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    assert_told(run(capsys, "bench", "speed", "-o", file, OPTIONS), "cannot be written", "folder")
    assert file.read_text() == "mine"


def test_a_model_of_somebody_else_is_not_replaced(measured, tmp_path):
    (tmp_path / "model.safetensors").write_text("mine")
    scene = make_scene(measured[0], SMALL)
    with pytest.raises(OSError, match="exists already"):
        train_model(tmp_path, scene, SMALL, UNITS, lambda *_: None)
    assert (tmp_path / "model.safetensors").read_text() == "mine"


# What the numbers rest on


def test_unfolded_windows_give_what_the_convolution_gives():
    torch.manual_seed(0)
    network = EsortNetwork(5, 3, 20).eval()
    traces = torch.randn(151, 5)
    expected = torch.sigmoid(network(traces[None])[0]).detach()
    found = unfolded_probabilities(network, traces, batch=50)
    assert found.shape == (132, 3)
    assert torch.allclose(found, expected, atol=1e-5)


def test_traces_in_memory_are_zero_outside():
    by_channel = np.arange(12, dtype=np.float32).reshape(2, 6) + 1
    traces = MemoryTraces(by_channel, RATE)
    assert np.array_equal(traces.read(0, 1, 4), by_channel[:, 1:4].T)
    padded = traces.read(0, -2, 8).T
    assert np.array_equal(padded, np.pad(by_channel, ((0, 0), (2, 2))))
    assert not traces.read(0, 7, 9).any()
    assert traces.first(3).num_samples(0) == 3


def random_network() -> NeighbourhoodNetwork:
    """A network whose gates are always open."""
    torch.manual_seed(1)
    near = torch.tensor([[0, 1], [1, 2], [2, 3]])
    network = NeighbourhoodNetwork(Backbone(60, (8, 8)), 4, near, 5).eval()
    for part in network.units.parameters():
        torch.nn.init.normal_(part, std=0.5)
    return network


def test_the_clock_changes_no_spike_and_all_that_is_asked_is_counted():
    network = random_network()
    random = np.random.default_rng(0)
    traces = MemoryTraces(random.standard_normal((4, 20000), dtype=np.float32), RATE)
    settings = (network, np.full(3, 0.4), RATE, DetectionConfig())
    plain = make_detector(*settings, SortingConfig(device="cpu"))
    timed = TimedDetector(*settings)
    (expected,), (found,) = (detect_in_chunks(detector, traces, 0.1) for detector in (plain, timed))
    assert len(expected) > 10
    assert np.array_equal(found.sample_index, expected.sample_index)
    assert np.array_equal(found.unit_index, expected.unit_index)
    asked = timed.evaluated()
    assert asked["open_blocks_share"] == 1.0
    blocks = timed.counts["tiles"] * timed.tile_samples // asked["block_samples"]
    assert asked["open_blocks"] == 3 * blocks
    work = timed.stage_work(len(found))
    # Two filters, 60 to 8 to 8; two channels of 8 features to 5, and these to the logit.
    assert work["temporal"].gflop * 1e9 == pytest.approx(2 * (480 + 64) * asked["channel_outputs"])
    assert work["units"].gflop * 1e9 == pytest.approx(2 * (80 + 5) * asked["unit_outputs"])
    seconds = timed.stage_seconds()
    assert [*seconds] == [*work] == [*NETWORK_STAGES]
    assert min(seconds.values()) > 0
    assert sum(seconds.values()) == pytest.approx(timed.clock.seconds["find"])


def test_a_share_of_the_limit_is_that_of_what_bounds():
    limits = Limits(float32_gflop_per_s=100.0, bfloat16_gflop_per_s=200.0, copy_gb_per_s=10.0)
    assert limits.share(2.0, Work(100.0, 4.0)) == 0.5
    assert limits.share(2.0, Work(10.0, 4.0)) == 0.2
    assert Stage(1.0).to_dict(limits)["share_of_limit"] is None


def test_the_machine_is_measured():
    limits = measure_limits(0.01)
    assert limits.float32_gflop_per_s > 0.1
    assert limits.bfloat16_gflop_per_s > 0.01
    assert limits.copy_gb_per_s > 0.1


def test_the_work_of_preprocessing_is_counted():
    # Five sections of five multiply-adds, there and back; the reference; gain and offset.
    assert preprocessing_work(1000, 10, True, True) == Work(103 * 1e4 / 1e9, 6e4 / 1e9)
    assert preprocessing_work(1000, 10, False, False) == Work(2e4 / 1e9, 6e4 / 1e9)
