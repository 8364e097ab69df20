"""A checkpoint gives back what was saved, and refuses what does not fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from arrays import random_network
from safetensors import safe_open
from safetensors.torch import save_file
from spikeinterface.core import generate_recording

from spikewise.core.config import DetectionConfig, NetworkConfig, PreprocessingConfig
from spikewise.core.errors import CheckpointError, OutputError
from spikewise.models.checkpoint import GroupModel, Model, check_model_fits, load_model, save_model
from spikewise.models.unit_waveforms import UnitWaveforms


@pytest.fixture(scope="module")
def recording():
    return generate_recording(num_channels=3, durations=[1.0], sampling_frequency=32000.0, seed=0)


@pytest.fixture
def model(recording) -> Model:
    group = GroupModel(
        name="0",
        network=random_network(num_channels=3, num_units=2),
        channel_ids=tuple(str(channel_id) for channel_id in recording.channel_ids),
        channel_positions_um=recording.get_channel_locations(),
        silenced_channel_ids=("1",),
        unit_ids=(7, "b"),
        thresholds=np.array([0.3, 0.6], dtype=np.float32),
        waveforms=UnitWaveforms(
            np.array([[2, 0], [1, -1]]),
            np.array([[[1, 2], [3, 4]], [[5, 6], [0, 0]]], np.float32),
            np.arange(10, dtype=np.float32).reshape(2, 5),
            3,
        ),
    )
    config = NetworkConfig(spatial_features=32)
    return Model(
        (group,), 32000.0, config, PreprocessingConfig(freq_min_hz=250.0), DetectionConfig(), {"seed": 3}
    )


def test_what_is_loaded_is_what_was_saved(model, tmp_path):
    save_model(model, tmp_path / "model.safetensors")
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.hash() == model.hash()
    assert loaded.unit_ids == [7, "b"]
    assert loaded.facts == {"seed": 3}
    assert loaded.preprocessing_config == model.preprocessing_config
    assert loaded.groups[0].silenced_channel_ids == ("1",)
    np.testing.assert_array_equal(loaded.groups[0].thresholds, model.groups[0].thresholds)
    traces = torch.randn(1, 100, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.groups[0].network(traces), model.groups[0].network(traces))


def test_waveforms_are_saved_and_a_model_without_them_is_one_of_earlier_versions(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    loaded, made = load_model(path).groups[0].waveforms, model.groups[0].waveforms
    for name in ("channel_index", "weights", "shapes"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(made, name))
    assert loaded.before == 3
    without = replace(model, groups=(replace(model.groups[0], waveforms=None),))
    save_model(without, path)
    assert load_model(path).groups[0].waveforms is None
    assert without.hash() != model.hash()


def test_the_hash_changes_with_a_weight_and_with_a_threshold(model):
    before = model.hash()
    model.groups[0].network.classifier.bias.data[0] += 1e-3
    between = model.hash()
    model.groups[0].thresholds[0] = 0.31
    assert len({before, between, model.hash()}) == 3


def test_a_model_fits_the_recording_that_it_was_made_for(model, recording):
    check_model_fits(model, {"0": recording})


def test_other_rate_probe_or_place_is_refused(model, recording):
    other_rate = generate_recording(num_channels=3, durations=[1.0], sampling_frequency=30000.0)
    with pytest.raises(CheckpointError, match=r"30000 Hz.*32000 Hz"):
        check_model_fits(model, {"0": other_rate})
    other_count = generate_recording(num_channels=5, durations=[1.0], sampling_frequency=32000.0)
    with pytest.raises(CheckpointError, match=r"5 channels.*trained on 3"):
        check_model_fits(model, {"0": other_count})
    with pytest.raises(CheckpointError, match="channel groups A"):
        check_model_fits(model, {"A": recording})
    moved = recording.clone()
    moved.set_channel_locations(recording.get_channel_locations() + [0, 30])
    with pytest.raises(CheckpointError, match=r"30\.0 um"):
        check_model_fits(model, {"0": moved})


def header_and_tensors(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["spikewise"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def write(path, header, tensors):
    save_file(tensors, path, {"spikewise": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(format_version=99), "format version 99"),
        (lambda h, t: h.pop("network"), "damaged"),
        (lambda h, t: h["network"].update(window_ms=5.0), "damaged"),
        (lambda h, t: h["groups"][0]["unit_ids"].append(9), "disagree about units"),
        (lambda h, t: h["groups"][0]["channel_ids"].extend(["x"] * 10**6), "disagree about channels"),
        (lambda h, t: t["0.classifier.weight"].fill_(float("nan")), "not finite"),
        (lambda h, t: t.pop("0.spatial_filter.bias"), "damaged"),
        (lambda h, t: t.pop("0.thresholds"), "damaged"),
        (lambda h, t: t.pop("0.waveform_shapes"), "waveforms are not complete"),
        (lambda h, t: t["0.waveform_channels"].fill_(3), "channels that it does not have"),
        (lambda h, t: t.update({"0.waveform_weights": torch.zeros(2, 3, 2)}), "do not fit its units"),
        (lambda h, t: h["groups"][0].update(waveform_before=5), "begin 5 samples before"),
        (lambda h, t: h["groups"][0].pop("waveform_before"), "damaged"),
    ],
)
def test_damaged_content_is_refused(model, tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    header, tensors = header_and_tensors(path)
    change(header, tensors)
    write(path, header, tensors)
    with pytest.raises(CheckpointError, match=message):
        load_model(path)


def test_a_file_cut_short_or_of_something_else_is_refused(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:5], b"", b"not a checkpoint" * 100):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load_model(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not written by Spikewise"):
        load_model(path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_model(tmp_path / "absent.safetensors")


def test_a_model_that_cannot_be_written_leaves_nothing(model, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        save_model(model, blocked / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
