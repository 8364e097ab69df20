"""A model of one day on a recording of another: the offset, units that are gone, neurons that are new."""

import dataclasses
import json
import logging

import numpy as np
import pytest
from probeinterface import generate_multi_columns_probe
from spikeinterface.core import NumpyRecording, NumpySorting, generate_sorting
from spikeinterface.core.generate import default_unit_params_range, generate_templates
from spikeinterface.core.motion import Motion

import spikewise
from spikewise.core.config import Config
from spikewise.data.recordings.reader import TraceReader
from spikewise.data.spatial.motion import with_offset
from spikewise.discovery.motion.offset import MovedUnits, find_offset
from spikewise.models.checkpoint import SILENT, load_model, save_model
from spikewise.models.unit_waveforms import UnitWaveforms
from spikewise.output.motions import load_motions
from spikewise.sorting.owner.group_finder import GroupFinder

RATE, SECONDS = 30000.0, 12.0
BEFORE, LENGTH = 45, 105
SHIFT_UM = 37.0
NUM_UNITS = 10
GONE, NEW = 0, NUM_UNITS
"""The new unit lies at the place of the one that is gone, with another shape."""
PROBE = generate_multi_columns_probe(
    num_columns=2, num_contact_per_column=20, xpitch=32, ypitch=20, y_shift_per_column=[0, 10]
)
PROBE.set_device_channel_indices(np.arange(40))
PLACES = PROBE.contact_positions
QUICK = {"patches_per_unit": 150, "unit_steps": 60, "report": False, "trust": False}


def tissue():
    """Locations (11, 3) and shapes of all units, which lie far enough from the ends of the probe."""
    rng = np.random.default_rng(5)
    locations = np.column_stack(
        [rng.uniform(0, 32, NUM_UNITS), np.linspace(30, 320, NUM_UNITS), rng.uniform(10, 20, NUM_UNITS)]
    )
    params = {name: rng.uniform(*span, NUM_UNITS + 1) for name, span in default_unit_params_range.items()}
    params["alpha"] = rng.uniform(250, 500, NUM_UNITS + 1)
    params["spatial_decay"] = rng.uniform(20, 35, NUM_UNITS + 1)
    params["ellipse_shrink"][[GONE, NEW]] = 0.4, 0.9
    params["ellipse_angle"][[GONE, NEW]] = 0.3, 1.8
    return np.concatenate([locations, locations[[GONE]] + [14, 8, 0]]), params


def waveforms_at(units, shift_um):
    """Waveforms (num_units, num_samples, 40) in uV of units whose tissue has moved so far."""
    locations, params = tissue()
    chosen = {name: values[units] for name, values in params.items()}
    moved = locations[units] + [0, shift_um, 0]
    made = generate_templates(PLACES, moved, RATE, ms_before=1.5, ms_after=3.0, unit_params=chosen)
    return made[:, :LENGTH]


def record(units, shift_um, seed, noise_uV=8.0):
    """Traces in uV with spikes of some units, and these."""
    drawn = generate_sorting(
        num_units=len(units), sampling_frequency=RATE, durations=[SECONDS], firing_rates=9.0, seed=seed
    )
    rng = np.random.default_rng(seed)
    traces = noise_uV * rng.standard_normal((round(SECONDS * RATE), 40), np.float32)
    trains = {}
    for waveform, unit, name in zip(waveforms_at(units, shift_um), units, drawn.unit_ids, strict=True):
        train = drawn.get_unit_spike_train(name)
        train = train[(train > 100) & (train < len(traces) - 100)]
        for sample in train:
            traces[sample - BEFORE : sample - BEFORE + LENGTH] += waveform
        trains[str(unit)] = train
    recording = NumpyRecording([traces], RATE)
    recording.set_probe(PROBE)
    recording.set_channel_gains(1.0)
    recording.set_channel_offsets(0.0)
    return recording, NumpySorting.from_unit_dict(trains, RATE)


def as_model(units, noise_uV=8.0):
    """The mean waveforms of units as a model holds them."""
    waveforms = waveforms_at(units, 0.0).transpose(0, 2, 1) / noise_uV  # U, C, S
    shapes = np.linalg.svd(waveforms.reshape(-1, LENGTH), full_matrices=False)[2][:8]
    order = np.argsort(-np.ptp(waveforms, axis=2), axis=1)[:, :24]
    near = np.take_along_axis(waveforms, order[:, :, None], axis=1)
    weights = (near @ shapes.T).astype(np.float32)
    return UnitWaveforms(order.astype(np.int64), weights, shapes.astype(np.float32), BEFORE)


ALL = np.arange(NUM_UNITS)
DAY2 = np.arange(1, NUM_UNITS + 1)


# The offset


@pytest.mark.parametrize("shift_um", [-80.0, SHIFT_UM])
def test_the_offset_is_found(shift_um):
    recording, _ = record(DAY2, shift_um, 1)
    reader = TraceReader(NumpyRecording([recording.get_traces() / 8], RATE))
    estimate = find_offset(reader, PLACES, as_model(ALL))
    assert estimate.facts["used"], estimate.facts
    assert estimate.offset_um == pytest.approx(shift_um, abs=2)


def test_no_offset_is_used_where_nothing_moved(caplog):
    recording, _ = record(DAY2, 0.0, 2)
    reader = TraceReader(NumpyRecording([recording.get_traces() / 8], RATE))
    with caplog.at_level(logging.INFO, "spikewise"):
        estimate = find_offset(reader, PLACES, as_model(ALL))
    assert estimate.offset_um == 0
    assert not estimate.facts["used"]
    assert "of their places" in caplog.text


def test_no_offset_is_invented_for_a_model_of_other_tissue():
    recording, _ = record(ALL[:5], SHIFT_UM, 3)
    reader = TraceReader(NumpyRecording([recording.get_traces() / 8], RATE))
    others = as_model(ALL[5:])
    estimate = find_offset(reader, PLACES, others)
    assert not estimate.facts["used"], estimate.facts


def test_waveforms_are_predicted_where_the_tissue_moved():
    moved = MovedUnits(as_model(ALL[2:3]), PLACES)
    shapes = as_model(ALL[2:3]).shapes
    expected = waveforms_at(ALL[2:3], SHIFT_UM)[0].T / 8
    found = moved.at(SHIFT_UM)[0] @ shapes
    still = moved.at(0.0)[0] @ shapes

    def cosine(a, b):
        return (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b)

    assert cosine(found, expected) > 0.95
    assert cosine(still, expected) < 0.7
    seen = moved.seen(SHIFT_UM)
    back = np.zeros_like(still)
    channels = seen.channel_index[0][seen.channel_index[0] >= 0]
    back[channels] = seen.weights[0, : len(channels)] @ shapes
    assert cosine(back, waveforms_at(ALL[2:3], 0.0)[0].T / 8) > 0.97


def test_an_offset_is_added_to_a_motion():
    motion = Motion([np.array([[1.0, 2.0]])], [np.array([0.5])], np.array([0.0, 100.0]), "y")
    assert with_offset(motion, 37.0, 1).displacement[0].tolist() == [[38.0, 39.0]]
    alone = with_offset(None, -12.0, 2)
    assert alone.num_segments == 2
    assert [values.tolist() for values in alone.displacement] == [[[-12.0]]] * 2


# Sorts


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    recording, truth = record(ALL, 0.0, 4)
    model = spikewise.train(recording, truth, motion="none", patches_per_unit=150, unit_steps=60)
    file = tmp_path_factory.mktemp("day1") / "model.safetensors"
    save_model(model, file)
    return file


@pytest.fixture(scope="module")
def day2(tmp_path_factory):
    """The recording of day 2 in a folder, and its spikes."""
    recording, truth = record(DAY2, SHIFT_UM, 5)
    folder = tmp_path_factory.mktemp("day2")
    recording.save(folder=folder / "recording")
    return folder / "recording", truth


@pytest.fixture(scope="module")
def sorted_day2(model_file, day2, tmp_path_factory):
    output = tmp_path_factory.mktemp("sorted") / "out"
    spikewise.sort(day2[0], model=model_file, output=output, **QUICK)
    return output


def trains(sorting):
    return {str(unit): sorting.get_unit_spike_train(unit).tolist() for unit in sorting.unit_ids}


def agreement(truth, found):
    """tp / (tp + fp + fn) of two trains, spikes at most 12 samples apart."""
    common = sum(np.abs(found - sample).min(initial=99) <= 12 for sample in truth)
    return common / max(1, len(truth) + len(found) - common)


def test_ids_stay_with_their_neurons(sorted_day2, day2):
    found = spikewise.load_result(sorted_day2).sorting
    truth = day2[1]
    for unit in map(str, ALL[1:]):
        train = truth.get_unit_spike_train(unit)
        assert agreement(train, found.get_unit_spike_train(unit)) > 0.9, unit
    new = truth.get_unit_spike_train(str(NEW))
    for unit in map(str, ALL):
        assert agreement(new, found.get_unit_spike_train(unit)) < 0.1, unit
    assert len(found.get_unit_spike_train(str(GONE))) < 10


def test_without_the_offset_the_ids_are_lost(model_file, day2):
    found = spikewise.sort(day2[0], model=model_file, motion="none", **QUICK).sorting
    kept = [
        agreement(day2[1].get_unit_spike_train(str(unit)), found.get_unit_spike_train(str(unit))) > 0.5
        for unit in ALL[1:]
    ]
    assert sum(kept) < 3


def test_the_offset_is_kept_with_the_result(sorted_day2, model_file, day2):
    facts = json.loads((sorted_day2 / "provenance.json").read_text())["motion"]["0"]
    assert facts["offset"]["used"]
    assert facts["offset"]["offset_um"] == pytest.approx(SHIFT_UM, abs=2)
    assert "the tissue lies" in (sorted_day2 / "spikewise.log").read_text()
    motion = load_motions(sorted_day2, ["0"], 1)["0"]
    assert motion.displacement[0].tolist() == [[facts["offset"]["offset_um"]]]
    kept = load_model(sorted_day2)  # the model as it was: a unit that is gone may come back
    assert kept.hash() == load_model(model_file).hash()
    assert (kept.groups[0].thresholds < 1).all()


@pytest.mark.parametrize("given", [{"shard_s": 3.0, "chunk_s": 0.7}, {"cluster": "local:1"}])
def test_the_spikes_are_the_same_however_they_are_found(sorted_day2, model_file, day2, given):
    again = spikewise.sort(day2[0], model=model_file, **QUICK, **given)
    assert trains(again.sorting) == trains(spikewise.load_result(sorted_day2).sorting)


def test_a_sort_that_goes_on_does_not_search_the_offset_again(
    sorted_day2, model_file, day2, tmp_path, monkeypatch
):
    class Ended(BaseException):
        pass

    def tell(stage, done, total, note=""):
        if stage == "sorting" and done > ends_s[0]:
            raise Ended

    ends_s = [3.0, 7.0]

    given = {"model": model_file, "output": tmp_path / "out", "shard_s": 2.0, "chunk_s": 1.0, **QUICK}
    while ends_s:  # ended twice: the motion that is kept has the offset once
        with pytest.raises(Ended):
            spikewise.sort(day2[0], progress=tell, resume=True, **given)
        ends_s.pop(0)
        monkeypatch.setattr("spikewise.jobs.model.placing.find_offset", None)
    result = spikewise.sort(day2[0], resume=True, **given)
    assert trains(result.sorting) == trains(spikewise.load_result(sorted_day2).sorting)
    assert load_motions(tmp_path / "out", ["0"], 1) == load_motions(sorted_day2, ["0"], 1)


def test_where_nothing_moved_the_spikes_are_those_of_a_sort_without_motion(model_file):
    recording, _ = record(ALL, 0.0, 6)
    followed = spikewise.sort(recording, model=model_file, **QUICK)
    assert followed.provenance["motion"]["0"]["offset"]["used"] is False
    plain = spikewise.sort(recording, model=model_file, motion="none", **QUICK)
    assert trains(followed.sorting) == trains(plain.sorting)


def test_units_are_relearnt_in_traces_without_the_offset(model_file, day2):
    result = spikewise.sort(day2[0], model=model_file, refresh_min=0.1, **QUICK)
    (relearnt,) = result.provenance["refreshed"]
    assert relearnt["0"] >= NUM_UNITS - 2
    for unit in map(str, ALL[2:]):  # the new neuron lies beside unit 1, too
        train, found = (s.get_unit_spike_train(unit) for s in (day2[1], result.sorting))
        half = round(SECONDS / 2 * RATE)
        assert agreement(train[train > half], found[found > half]) > 0.85, unit


def test_a_unit_that_is_not_there_stays_silent(model_file, tmp_path):
    model = load_model(model_file)
    (part,) = model.groups
    thresholds = part.thresholds.copy()
    thresholds[3] = SILENT
    silent = dataclasses.replace(part, thresholds=thresholds, residual_noise=1.5)
    changed = dataclasses.replace(model, groups=(silent,))
    save_model(changed, tmp_path / "silent.safetensors")
    loaded = load_model(tmp_path / "silent.safetensors")
    assert loaded.groups[0].residual_noise == 1.5
    assert loaded.hash() == changed.hash() != model.hash()
    recording, _ = record(ALL, 0.0, 7)
    reader = TraceReader(NumpyRecording([recording.get_traces() / 8], RATE))
    spikes = GroupFinder(loaded.groups[0], loaded, Config().sorting, threshold=0.5).find(reader, 0, 0, 90000)
    counts = np.bincount(spikes.unit_index, minlength=NUM_UNITS)
    assert counts[3] == 0
    assert (np.delete(counts, 3) > 10).all()
