"""Units that fire only later: counted as unexplained, found on request, the same however it is cut."""

import json

import numpy as np
import pytest
from arrays import ArrayTraces
from commands import succeed
from probeinterface import generate_multi_columns_probe
from spikeinterface.core import (
    NumpyRecording,
    NumpySorting,
    generate_ground_truth_recording,
    generate_sorting,
    load,
)

import spikewise
from spikewise.discovery.held_traces import MEMORY_BYTES, HeldTraces, cut_traces, spread_parts
from spikewise.discovery.unexplained import COUNTED_S, parts_to_count, parts_to_search
from spikewise.jobs.model.extending import most_spikes, next_ids
from spikewise.models.checkpoint import load_model
from spikewise.models.more_units import last_units
from spikewise.output.unexplained import UnexplainedEvents

RATE = 30000
HALF_S = 12
LATE = 1
"""The unit that fires in the second half only."""
QUICK = {"patches_per_unit": 1000, "unit_steps": 100}
NO_PAGES = {"report": False, "trust": False, "progress": False}


class Ended(BaseException):
    """The end of a process, as far as one in the same process can tell."""


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    """Folder of a recording of 16 channels with four units, its truth, and a model of its first half."""
    folder = tmp_path_factory.mktemp("late")
    whole = generate_sorting(
        num_units=4,
        sampling_frequency=RATE,
        durations=[2.0 * HALF_S],
        firing_rates=12.0,
        refractory_period_ms=4.0,
        seed=3,
    )
    trains = {index: whole.get_unit_spike_train(unit) for index, unit in enumerate(whole.unit_ids)}
    trains[LATE] = trains[LATE][trains[LATE] >= HALF_S * RATE]
    sorting = NumpySorting.from_unit_dict([trains], RATE)
    recording, truth = generate_ground_truth_recording(
        durations=[2.0 * HALF_S], num_channels=16, sorting=sorting, sampling_frequency=RATE, seed=3
    )
    recording.save(folder=folder / "recording", verbose=False)
    truth.save(folder=folder / "truth")
    first = load(folder / "recording").frame_slice(0, HALF_S * RATE)
    labels = truth.frame_slice(0, HALF_S * RATE).select_units([0, 2, 3])
    spikewise.train(first, labels, output=folder / "model.safetensors", progress=False, **QUICK)
    return folder


def sort_late(folder, **options):
    given = {"model": folder / "model.safetensors", **QUICK, **NO_PAGES}
    return spikewise.sort(folder / "recording", **(given | options))


@pytest.fixture(scope="module")
def known_only(late):
    """The sort with the model as it is."""
    return sort_late(late)


@pytest.fixture(scope="module")
def with_new(late, tmp_path_factory):
    """The sort that looks for new units."""
    return sort_late(late, new_units=True, output=tmp_path_factory.mktemp("new") / "out")


def trains_of(sorting):
    return {unit: sorting.get_unit_spike_train(unit) for unit in sorting.unit_ids}


def test_a_unit_that_fires_later_is_found_and_gets_the_next_id(late, with_new):
    assert [int(unit) for unit in with_new.sorting.unit_ids] == [0, 2, 3, 4]
    scores = spikewise.evaluate(load(late / "truth"), with_new.sorting).units
    assert scores.loc[LATE, "tested_unit"] == 4
    assert scores["accuracy"].min() > 0.9
    facts = with_new.provenance["unexplained"]
    assert facts["num_new_units"] == 1
    assert facts["groups"]["0"]["new_unit_ids"] == [4]
    assert list(load_model(with_new.folder).unit_ids) == [0, 2, 3, 4]
    labels = with_new.provenance["model"]["facts"]["groups"][0]
    assert len(labels["num_labels_of_units"]) == labels["num_units"] == 4


def test_spikes_of_known_units_change_only_where_the_new_unit_fires(known_only, with_new):
    before, after = trains_of(known_only.sorting), trains_of(with_new.sorting)
    for unit, train in before.items():
        assert set(after[unit]) <= set(train)
        lost = np.setdiff1d(train, after[unit])
        assert len(lost) < 0.02 * len(train)
        assert all(np.abs(after[4] - sample).min() <= 0.5e-3 * RATE for sample in lost)


def test_without_new_units_the_unexplained_events_are_counted_where_they_are(late, known_only, with_new):
    """With the model of all units hardly any is left, so most are those of the unit without a network."""
    assert [int(unit) for unit in known_only.sorting.unit_ids] == [0, 2, 3]
    complete = sort_late(late, model=with_new.model)
    assert complete.provenance["unexplained"]["num_new_units"] == 0
    events, few = (UnexplainedEvents.of(one.provenance["unexplained"]) for one in (known_only, complete))
    facts = known_only.provenance["unexplained"]["groups"]["0"]
    assert not facts["new_units"]["searched"]
    missed = load(late / "truth").get_unit_spike_train(LATE)
    looked_at = sum(
        int(((missed >= start * RATE) & (missed < stop * RATE)).sum()) for start, stop in facts["parts_s"]
    )
    of_parts = list(zip(facts["parts_s"], facts["num_of_parts"], strict=True))
    in_half = [
        sum(count for (start, _), count in of_parts if later == (start >= HALF_S)) for later in (False, True)
    ]
    assert in_half[1] - in_half[0] > 0.85 * looked_at
    assert events.num_events - few.num_events > 0.85 * looked_at
    assert f"{events.num_events} events" in events.summary()
    part = with_new.model.groups[0]
    assert part.channel_ids[part.waveforms.channel_index[3, 0]] in events.contacts


@pytest.mark.parametrize("cut", [{"chunk_s": 0.7}, {"shard_s": 5.0}])
def test_the_same_spikes_however_it_is_cut(late, with_new, cut):
    again = sort_late(late, new_units=True, **cut)
    assert again.provenance["result"] == with_new.provenance["result"]
    assert again.provenance["model"]["hash"] == with_new.provenance["model"]["hash"]


@pytest.mark.parametrize(
    ("stage", "after"), [("looking", 2), ("learning", 5), ("sorting new", 3), ("writing", 1)]
)
def test_an_interrupted_sort_continues_with_the_same_units(late, with_new, tmp_path, stage, after):
    count = 0

    def ending(name, done, total, note=""):
        nonlocal count
        count += name.startswith(stage)
        if count == after:
            raise Ended

    given = {"new_units": True, "output": tmp_path / "out", "shard_s": 5.0}
    with pytest.raises(Ended):
        sort_late(late, **given | {"progress": ending})
    resumed = sort_late(late, resume=True, **given)
    assert resumed.provenance["result"] == with_new.provenance["result"]
    assert resumed.provenance["model"]["hash"] == with_new.provenance["model"]["hash"]
    assert not (tmp_path / "out" / "unfinished").exists()


def test_workers_find_the_same_spikes(late, with_new):
    far = sort_late(late, new_units=True, cluster="local:1", shard_s=5.0)
    assert far.provenance["result"] == with_new.provenance["result"]


def test_labels_of_the_first_half_and_a_stop_after_the_result_is_written(late, with_new, tmp_path):
    """The model that was learnt has been replaced by the one with new units when the sort goes on."""
    labels = load(late / "truth").select_units([0, 2, 3])
    given = {"labels": labels, "model": None, "label_interval": (0, HALF_S), "new_units": True}
    whole = sort_late(late, **given)
    assert [int(unit) for unit in whole.sorting.unit_ids] == [0, 2, 3, 4]

    def ending(name, done, total, note=""):
        if name == "report":
            raise Ended

    with pytest.raises(Ended):
        sort_late(late, output=tmp_path / "out", **given | {"progress": ending, "report": True})
    resumed = sort_late(late, output=tmp_path / "out", resume=True, **given | {"report": True})
    assert resumed.provenance["result"] == whole.provenance["result"]
    assert resumed.provenance["model"]["hash"] == whole.provenance["model"]["hash"]
    assert "Unexplained events" in (tmp_path / "out" / "report.html").read_text()


def test_the_command_tells_what_no_unit_explains(capsys, late, tmp_path):
    options = {"--model": late / "model.safetensors", "-o": tmp_path / "out"}
    outcome = succeed(capsys, "sort", late / "recording", options, "--no-report", "--no-trust")
    assert outcome.summary["new_units"] == 0
    assert outcome.summary["unexplained_hz"] > 5
    assert "events in 20 s that were looked at again" in outcome.out + outcome.err
    assert "that were looked at again" in (tmp_path / "out" / "spikewise.log").read_text()


def test_nothing_is_found_where_no_unit_fires(late):
    """Noise alone: the model finds no spike, and no event is a unit."""
    noise = np.random.default_rng(0).normal(size=(6 * RATE, 16)).astype(np.float32) * 3
    silent = NumpyRecording([noise], RATE)
    silent.set_probe(load(late / "recording").get_probe(), in_place=True)
    result = spikewise.sort(silent, model=late / "model.safetensors", new_units=True, **NO_PAGES)
    facts = result.provenance["unexplained"]
    assert facts["num_new_units"] == 0
    assert facts["groups"]["0"]["num_unexplained"] < 12
    assert len(result.sorting.to_spike_vector()) < 5


def test_a_search_of_the_whole_recording_is_not_done_again(late):
    recording = load(late / "recording")
    result = spikewise.sort(recording, **QUICK, **NO_PAGES)
    facts = result.provenance["unexplained"]["groups"]["0"]
    assert not facts["new_units"]["searched"]
    assert "looked at the whole recording" in facts["new_units"]["reason"]
    scores = spikewise.evaluate(load(late / "truth"), result.sorting)
    assert (scores.units["accuracy"] > 0.9).sum() >= 2


def test_fifteen_hundred_channels_without_labels():
    """Three units far from each other among 1,500 channels."""
    rate, seconds = 10000, 2.5
    probe = generate_multi_columns_probe(
        num_columns=4, num_contact_per_column=375, xpitch=20, ypitch=20, contact_shapes="circle"
    )
    probe.set_device_channel_indices(np.arange(1500))
    random = np.random.default_rng(5)
    traces = random.normal(size=(round(seconds * rate), 1500)).astype(np.float32)
    positions = probe.contact_positions
    time_ms = np.arange(-10, 20) / rate * 1000
    shape = -np.exp(-((time_ms / 0.15) ** 2)) + 0.4 * np.exp(-(((time_ms - 0.6) / 0.3) ** 2))
    trains = {}
    for unit, channel in enumerate((100, 700, 1300)):
        times = np.cumsum(random.integers(80, 700, size=55))
        times = times[times < len(traces) - 30]
        size = 12 * np.exp(-np.linalg.norm(positions - positions[channel], axis=1) / 25)
        for time in times:
            traces[time - 10 : time + 20] += np.outer(shape, size)
        trains[unit] = times
    recording = NumpyRecording([traces * 10], rate)
    recording.set_probe(probe, in_place=True)
    result = spikewise.sort(recording, **QUICK, **NO_PAGES)
    found = np.sort(result.sorting.to_spike_vector()["sample_index"])
    true = np.sort(np.concatenate(list(trains.values())))
    away = np.abs(found[:, None] - true[None])
    assert 3 <= result.sorting.get_num_units() <= 6
    assert (away.min(axis=1) <= 5).mean() > 0.95
    assert (away.min(axis=0) <= 5).mean() > 0.9


# Parts


def test_ids_that_come_next():
    assert next_ids([0, 2, 7], 2) == [8, 9]
    assert next_ids(["a", "12"], 1) == ["13"]
    assert next_ids(["a"], 2) == ["0", "1"]
    assert next_ids([], 1) == [0]
    assert not set(next_ids([3, "x", -5], 3)) & {3, "x", -5}


def test_units_are_learnt_where_they_fire_most():
    stretches = [(0, 100), (100, 200), (300, 400)]
    often, seldom = np.array([10, 20, 110, 120, 130, 140]), np.array([350, 360])
    assert most_spikes(stretches, [often, seldom], 200) == ((100, 200), (300, 400))
    assert most_spikes(stretches, [often], 100) == ((100, 200),)
    assert most_spikes(stretches, [often], 10) == ((100, 200),)


def test_parts_depend_on_the_recording_and_not_on_what_was_seen():
    class Long(ArrayTraces):
        def num_samples(self, segment_index):
            return 3600 * RATE

    traces = Long(np.zeros((10, 2), np.float32), sampling_frequency=RATE)
    counted = parts_to_count(traces)
    assert len(counted) == COUNTED_S
    assert counted[0][1] == 0
    assert counted[-1][2] == 3600 * RATE
    assert parts_to_search(traces, is_searched=True) == []  # 432 MB: all was seen
    traces.num_channels = 128
    seen = spread_parts(traces, MEMORY_BYTES)
    second = parts_to_search(traces, is_searched=True)
    assert not set(seen) & set(second)
    assert sum(stop - start for _, start, stop, _ in second) * 256 <= MEMORY_BYTES
    assert second[0][1] < 30 * RATE
    assert second[-1][2] > 3570 * RATE
    assert parts_to_search(traces, is_searched=False) == seen


def test_columns_are_those_of_the_frames():
    traces = ArrayTraces(np.zeros((7 * RATE, 2), np.float32), sampling_frequency=RATE)
    parts = [cut_traces(traces, RATE)[index] for index in (1, 2, 5)]
    held = HeldTraces(traces, parts=parts)
    frames, inside = held.frames_of(np.arange(held.num_columns))
    assert np.array_equal(held.held_columns(frames[inside]), np.flatnonzero(inside))
    assert len(held.held_columns(np.array([0, RATE - 1, 3 * RATE, 6 * RATE]))) == 0
    assert held.stretches == ((RATE, 2 * RATE), (2 * RATE, 3 * RATE), (5 * RATE, 6 * RATE))


def test_networks_of_known_units_stay_as_they_are(late, with_new):
    known, both = (model.groups[0] for model in (load_model(late / "model.safetensors"), with_new.model))
    for name, tensor in known.network.state_dict().items():
        more = both.network.state_dict()[name]
        assert np.array_equal(more if name.startswith("backbone.") else more[:3], tensor)
    last = last_units(both, 3)
    assert last.unit_ids == (4,)
    assert np.array_equal(last.network.units.bias[0].detach(), both.network.units.bias[3].detach())
    assert np.array_equal(
        both.waveforms.channel_index[:3, : known.waveforms.channel_index.shape[1]],
        known.waveforms.channel_index,
    )
    old = known.waveforms.weights @ known.waveforms.shapes
    new = both.waveforms.weights[:3, : old.shape[1]] @ both.waveforms.shapes
    assert np.allclose(old, new, atol=1e-5)


@pytest.mark.parametrize("facts", [None, {}, [], {"groups": 3}, {"groups": {"0": {}}}, {"groups": {}}])
def test_a_provenance_of_another_kind_has_no_unexplained_events(facts):
    assert UnexplainedEvents.of(facts) is None
    assert json.dumps(facts) is not None
