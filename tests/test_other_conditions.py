"""A model sorts recordings whose noise, gain or sign of gain differs from that of its training."""

import logging

import numpy as np
import pytest
from spikeinterface.core import NumpyRecording

import spikewise
from spikewise.core.errors import CheckpointError
from spikewise.models.channel_noise import ChannelNoise, noise_ratio

SMALL = {"rounds": 1, "patches_per_unit": 6000, "unit_steps": 500, "seed": 0}


def simulated(noise_uV):
    return spikewise.simulate(probe="linear-8", num_units=4, duration_s=12, seed=1, noise_uV=noise_uV)


@pytest.fixture(scope="module")
def quiet():
    return simulated(10.0)


@pytest.fixture(scope="module")
def model(quiet):
    return spikewise.train(quiet.recording, quiet.sorting, label_interval=(0, 6), **SMALL)


def as_recorded(recording, factor, gain_to_uV):
    """The recording in another unit, with the gain that its file tells; None: it tells none."""
    traces = (recording.get_traces() * factor).astype("float32")
    changed = NumpyRecording([traces], recording.sampling_frequency)
    changed.set_probe(recording.get_probe())
    if gain_to_uV is not None:
        changed.set_channel_gains(gain_to_uV)
        changed.set_channel_offsets(0.0)
    return changed


def accuracy(quiet, result):
    return spikewise.evaluate(quiet.sorting, result.sorting, interval=(6, 12)).accuracy


@pytest.fixture
def told(caplog):
    caplog.set_level(logging.WARNING, logger="spikewise")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize("noise_uV", [7.0, 15.0, 20.0])
def test_more_or_less_noise_costs_hardly_anything_and_is_told(quiet, model, noise_uV, told):
    other = simulated(noise_uV)
    np.testing.assert_array_equal(other.sorting.to_spike_vector(), quiet.sorting.to_spike_vector())
    result = spikewise.sort(other.recording, model=model, report=False)
    assert accuracy(quiet, result) > (0.97 if noise_uV < 20 else 0.95)
    assert result.provenance["noise_ratio"]["0"] == pytest.approx(noise_uV / 10, rel=0.03)
    assert f"noise is {result.provenance['noise_ratio']['0']:.3g} times" in told()[0]
    assert ("may be missed" in told()[0]) == (noise_uV > 10)


@pytest.mark.parametrize(
    ("factor", "gain_to_uV"), [(-1, -1.0), (2, 0.5), (1 / 0.195, 0.195), (-100, -0.01)], ids=str
)
def test_another_gain_gives_the_same_spikes(quiet, model, factor, gain_to_uV, told):
    expected = spikewise.sort(quiet.recording, model=model, report=False).sorting.to_spike_vector()
    recording = as_recorded(quiet.recording, factor, gain_to_uV)
    found = spikewise.sort(recording, model=model, report=False).sorting.to_spike_vector()
    shared = np.intersect1d(
        expected["sample_index"] * 100 + expected["unit_index"],
        found["sample_index"] * 100 + found["unit_index"],
    )
    assert len(shared) >= 0.995 * max(len(expected), len(found))
    assert not told()


def test_inverted_samples_teach_the_same_units(quiet):
    inverted = as_recorded(quiet.recording, -1, -1.0)
    learnt = spikewise.train(inverted, quiet.sorting, label_interval=(0, 6), **SMALL)
    assert accuracy(quiet, spikewise.sort(quiet.recording, model=learnt, report=False)) > 0.97


@pytest.mark.parametrize("factor", [2, 0.5, 10])
def test_an_unknown_gain_is_told(quiet, model, factor, told):
    recording = as_recorded(quiet.recording, factor, None)
    result = spikewise.sort(recording, model=model, report=False)
    assert accuracy(quiet, result) > 0.97
    (message,) = told()
    assert "the gain of the recording is not known: give --gain-to-uv" in message
    assert "divided by its own noise" in message


def test_a_wrong_gain_is_told(quiet, model, told):
    result = spikewise.sort(as_recorded(quiet.recording, 1000, 1.0), model=model, report=False)
    assert accuracy(quiet, result) > 0.97
    assert "1e+03 times that of the training; each channel is divided by its own noise" in told()[0]


def test_the_report_tells_the_noise_of_the_recording(quiet, model, tmp_path):
    from spikewise.output.measures import measure_units
    from spikewise.output.result import StoredResult
    from spikewise.output.result_groups import groups_of

    sizes = []
    for noise_uV in (10.0, 15.0):
        recording = simulated(noise_uV).recording
        made = spikewise.sort(recording, model=model, report=False)
        result = StoredResult(made.sorting, made.model, made.provenance)
        readers = {group.name: group.reader for group in groups_of(result, recording)}
        units, true = measure_units(result, readers, quiet.sorting)
        sizes.append(([unit.snr for unit in units], true))
    for low, high in zip(*(np.array(part) for part in sizes), strict=True):
        np.testing.assert_allclose(np.divide(low, high), 1.5, rtol=0.15)


def test_one_noisy_channel_does_not_outweigh_the_others(quiet, model, told):
    noisy = as_recorded(quiet.recording, 1, 1.0)
    traces = noisy.get_traces().copy()
    traces[:, 3] += np.random.default_rng(0).normal(0, 80, len(traces))
    changed = NumpyRecording([traces], noisy.sampling_frequency)
    changed.set_probe(noisy.get_probe())
    changed.set_channel_gains(1.0), changed.set_channel_offsets(0.0)
    assert accuracy(quiet, spikewise.sort(changed, model=model, report=False)) > 0.75
    assert told() == ["channels with much more noise than in training count less: 3"]


def test_the_noise_stands_in_the_file_of_the_model(quiet, model, tmp_path):
    spikewise.save_model(model, tmp_path / "model.safetensors")
    read = spikewise.load_model(tmp_path / "model.safetensors")
    assert read.hash() == model.hash()
    noise = read.groups[0].noise
    np.testing.assert_array_equal(noise.levels, model.groups[0].noise.levels)
    np.testing.assert_array_equal(noise.gains_to_uV, np.ones(8))


def test_a_model_of_an_earlier_version_divides_by_the_noise_of_each_recording(quiet, model):
    from dataclasses import replace

    earlier = replace(model, groups=tuple(replace(group, noise=None) for group in model.groups))
    assert accuracy(quiet, spikewise.sort(quiet.recording, model=earlier, report=False)) > 0.97


def test_scales():
    noise = ChannelNoise(np.array([10.0, 20.0, 0.0]), np.array([1.0, 1.0, 1.0]))
    measured = np.array([15.0, 30.0, 5.0])
    np.testing.assert_array_equal(noise.scale_of(measured, np.ones(3)), [10, 20, 0])
    np.testing.assert_array_equal(noise.scale_of(measured / 2, np.full(3, 2.0)), [5, 10, 0])
    np.testing.assert_array_equal(noise.scale_of(measured, -np.ones(3)), [-10, -20, 0])
    np.testing.assert_array_equal(noise.scale_of(measured, None), measured)  # 1.5 times: the gain may differ
    np.testing.assert_array_equal(noise.scale_of(measured / 1.5, None), [10, 20, 0])
    np.testing.assert_array_equal(noise.scale_of(5 * measured, np.ones(3)), 5 * measured)
    unknown = ChannelNoise(noise.levels, None)
    np.testing.assert_array_equal(unknown.scale_of(measured, None), [10, 20, 0])
    np.testing.assert_array_equal(unknown.scale_of(measured * 3, None), measured * 3)
    assert noise_ratio(measured, noise.levels) == 1.5


@pytest.mark.parametrize("levels", [[1.0], [1.0, -1.0], [1.0, np.nan]])
def test_a_damaged_noise_is_refused(levels):
    with pytest.raises(ValueError, match="noise of the channels"):
        ChannelNoise.from_dict({"noise_levels": levels, "gains_to_uV": None}, 2)


def test_another_rate_is_refused(quiet, model):
    other = NumpyRecording([quiet.recording.get_traces()], quiet.recording.sampling_frequency * 1.01)
    other.set_probe(quiet.recording.get_probe())
    with pytest.raises(CheckpointError, match="sampled at"):
        spikewise.sort(other, model=model, report=False)
