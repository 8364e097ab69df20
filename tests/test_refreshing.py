"""Units learnt anew while a recording is sorted follow what changes, keep their ids, and can be resumed."""

import dataclasses

import numpy as np
import pytest
import torch
from commands import Simulated, assert_told, run, succeed
from spikeinterface.core import load
from test_resume import Ended, ending

import spikewise
from spikewise.jobs.refreshing import _with_units
from spikewise.models.checkpoint import load_model

QUICK_UNITS = {"patches_per_unit": 600, "unit_steps": 90}
EVERY = {"refresh_min": 0.1, "shard_s": 2.0, "label_interval": (0.0, 6.0)}


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Simulated:
    """Eighteen seconds of six units."""
    folder = tmp_path_factory.mktemp("refresh") / "made"
    return Simulated(folder, **{"probe": "linear-16", "num-units": 6, "duration-s": 18, "seed": 4})


@pytest.fixture(scope="module")
def refreshed(scene):
    return spikewise.sort(scene.recording, labels=scene.truth, **EVERY, **QUICK_UNITS)


def test_each_period_learns_from_the_one_before(scene, refreshed):
    truth = load(scene.truth)
    told = refreshed.provenance["refreshed"]
    assert len(told) == 2  # three periods of six seconds
    enough = [
        sum(
            len(truth.get_unit_spike_train(unit, start_frame=start, end_frame=start + 6 * 30000)) >= 10
            for unit in truth.unit_ids
        )
        for start in (0, 6 * 30000)
    ]
    assert [sum(groups.values()) for groups in told] == enough
    assert refreshed.sorting.unit_ids.tolist() == truth.unit_ids.tolist()
    performance = spikewise.evaluate(truth, refreshed.sorting, interval=(6, 18))
    assert performance.accuracy > 0.9  # it learns little from little


def test_the_first_period_is_that_of_the_model_alone(scene, refreshed):
    plain = spikewise.sort(scene.recording, model=refreshed.model)
    rate = plain.sorting.sampling_frequency
    ours, theirs = (made.sorting.to_spike_vector() for made in (refreshed, plain))
    for begin, end, is_same in ((0, 6 * rate - 50, True), (6 * rate + 50, 18 * rate, False)):
        parts = [one[(one["sample_index"] >= begin) & (one["sample_index"] < end)] for one in (ours, theirs)]
        assert np.array_equal(*parts) == is_same
    assert "refreshed" not in plain.provenance


def test_units_that_are_not_learnt_anew_stay_as_they_were(scene, refreshed):
    part, units, rest = refreshed.model.groups[0], np.array([1, 4]), [0, 2, 3, 5]
    two = load(scene.truth).select_units(load(scene.truth).unit_ids[units])
    learnt = spikewise.train(scene.recording, two, seed=9, **QUICK_UNITS).groups[0]
    learnt = dataclasses.replace(learnt, thresholds=np.float32([0.25, 0.75]))
    before = {name: tensor.clone() for name, tensor in part.network.state_dict().items()}
    made = _with_units(part, learnt, units)
    new = learnt.network.state_dict()
    assert not torch.equal(before["units.bias"][units], new["units.bias"])
    for name, tensor in made.network.state_dict().items():
        if name.startswith("backbone."):
            assert torch.equal(tensor, before[name])
        else:
            assert torch.equal(tensor[units], new[name])
            assert torch.equal(tensor[rest], before[name][rest])
        assert torch.equal(part.network.state_dict()[name], before[name])
    assert made.thresholds[units].tolist() == [0.25, 0.75]
    assert made.thresholds[rest].tolist() == part.thresholds[rest].tolist()
    assert made.unit_ids == part.unit_ids


@pytest.mark.parametrize(("stage", "after"), [("sorting", 6), ("learning", 10)])
def test_it_goes_on_where_it_was_ended(scene, refreshed, tmp_path, stage, after):
    given = {"labels": scene.truth, "output": tmp_path / "out", **EVERY, **QUICK_UNITS}
    with pytest.raises(Ended):
        spikewise.sort(scene.recording, progress=ending(stage, after), **given)
    resumed = spikewise.sort(scene.recording, resume=True, **given)
    assert resumed.provenance["result"] == refreshed.provenance["result"]
    assert resumed.provenance["refreshed"] == refreshed.provenance["refreshed"]
    assert load_model(tmp_path / "out").hash() == refreshed.model.hash()


def test_the_length_of_shards_changes_nothing(scene, refreshed):
    other = spikewise.sort(scene.recording, labels=scene.truth, **{**EVERY, "shard_s": 5.0}, **QUICK_UNITS)
    assert other.provenance["result"] == refreshed.provenance["result"]


def test_the_dense_design_is_refused(capsys, tetrode, trained, tmp_path):
    options = {"--model": trained, "-o": tmp_path / "out", "--refresh-min": 0.1}
    outcome = run(capsys, "sort", tetrode.recording, options)
    assert_told(
        outcome, "refresh_min is given with a model of the design esort-paper", "Leave refresh_min out"
    )
    options = {"--model": trained, "-o": tmp_path / "again"}
    assert succeed(capsys, "sort", tetrode.recording, options).summary["spikes"] > 100
