"""What another sorter merged is split, what it split is merged, and what is right stays."""

import numpy as np
import pytest
from spikeinterface.core.base import minimum_spike_dtype
from test_patches import RATE, ArrayTraces

from spikewise.data.labels.label_set import LabelSet, kept_spikes, make_sorting, relabelled
from spikewise.discovery.label_cleaning import _is_one_neuron, clean_labels, take_turns

SECONDS = 40


def train(random, rate_hz):
    """A Poisson train with a refractory period of 2 ms."""
    gaps = random.exponential(1 / rate_hz - 0.002, int(2 * rate_hz * SECONDS)) + 0.002
    frames = np.cumsum(gaps * RATE).astype(np.int64)
    return frames[(frames > 200) & (frames < SECONDS * RATE - 200)]


def wave(width, shares):
    return np.stack([-9 * share * np.exp(-(((np.arange(64) - 24) / width) ** 2)) for share in shares], axis=1)


SHAPES = {
    "a": wave(4, (1.0, 0.4, 0.1, 0.0)),
    "b": wave(4, (0.4, 1.0, 0.2, 0.1)),
    "c": wave(7, (0.1, 0.2, 0.6, 1.2)),
}


@pytest.fixture(scope="module")
def scene():
    """Traces in which three neurons fire, and their trains."""
    random = np.random.default_rng(3)
    traces = random.standard_normal((int(SECONDS * RATE), 4)).astype(np.float32)
    trains = {name: train(random, rate) for name, rate in (("a", 25.0), ("b", 8.0), ("c", 8.0))}
    for name, frames in trains.items():
        for frame in frames:
            traces[frame - 24 : frame + 40] += SHAPES[name]
    return ArrayTraces(traces), trains


def labels_of(*trains):
    frames = np.concatenate(trains)
    spikes = np.zeros(len(frames), dtype=minimum_spike_dtype)
    spikes["sample_index"] = frames
    spikes["unit_index"] = np.repeat(np.arange(len(trains)), [len(t) for t in trains])
    return LabelSet(make_sorting(spikes, RATE, np.arange(len(trains)), 1), 0, int(SECONDS * RATE), "made")


def cleaned(scene, *trains):
    label_set, facts = clean_labels(labels_of(*trains), scene[0])
    kept = kept_spikes(label_set, None)
    return [kept.global_frame[kept.unit_index == unit] for unit in range(len(kept.unit_ids))], facts


def overlap(found, true):
    return len(np.intersect1d(found, true)) / len(np.union1d(found, true))


def test_right_units_stay_as_they_are(scene):
    trains = list(scene[1].values())
    found, facts = cleaned(scene, *trains)
    assert facts == {"split": 0, "merged": 0}
    assert all(np.array_equal(one, other) for one, other in zip(found, trains, strict=True))


def test_two_neurons_in_one_unit_are_told_apart(scene):
    a, b, c = scene[1].values()
    found, facts = cleaned(scene, np.union1d(a, b), c)
    assert facts["split"] == 1
    assert len(found) == 3
    for true in (a, b, c):
        assert max(overlap(one, true) for one in found) > 0.95


def test_a_neuron_in_two_units_is_joined(scene):
    a, b, c = scene[1].values()
    half = np.random.default_rng(0).random(len(a)) < 0.5
    found, facts = cleaned(scene, a[half], a[~half], b, c)
    assert facts == {"split": 0, "merged": 1}
    assert max(overlap(one, a) for one in found) == 1


def test_two_shapes_of_one_neuron_stay_together():
    """A unit whose waveform takes one of two forms, yet never fires twice within its refractory period."""
    random = np.random.default_rng(5)
    traces = random.standard_normal((int(SECONDS * RATE), 4)).astype(np.float32)
    frames = train(random, 20.0)
    for index, frame in enumerate(frames):
        traces[frame - 24 : frame + 40] += SHAPES["a"] * (1.0 if index % 2 else 0.4)
    found, facts = cleaned((ArrayTraces(traces), None), frames)
    assert facts["split"] == 0
    assert len(found) == 1


def test_the_same_spikes_give_the_same_units(scene):
    """Clusters of a unit that is hard to cut hang on where the search for them begins."""
    random = np.random.default_rng(5)
    a, b, c = scene[1].values()
    doubtful = np.union1d(np.union1d(a[random.random(len(a)) < 0.3], b[random.random(len(b)) < 0.8]), c[::5])
    shifted = np.sort(doubtful + random.integers(-6, 7, len(doubtful)))
    first, _ = cleaned(scene, shifted)
    for _ in range(4):
        again, _ = cleaned(scene, shifted)
        assert len(again) == len(first)
        assert all(np.array_equal(one, other) for one, other in zip(again, first, strict=True))


@pytest.fixture(scope="module")
def jumping():
    """Traces of a probe that jumps every 8 s, on which two neurons lie side by side, and their trains."""
    random = np.random.default_rng(8)
    traces = random.standard_normal((int(SECONDS * RATE), 16)).astype(np.float32)
    trains = [train(random, 5.0), train(random, 6.0)]
    places = np.arange(16)
    for frames, place, width in zip(trains, (6.0, 8.5), (4, 6), strict=True):
        for frame in frames:
            at = place + 0.7 * (int(frame / RATE / 8) % 2)
            traces[frame - 24 : frame + 40] += wave(width, np.exp(-(((places - at) / 1.2) ** 2)))
    return ArrayTraces(traces), trains


def test_a_neuron_that_jumps_is_joined_and_its_neighbour_is_not(jumping):
    """Before and after jumps it is a unit of its own, as a sorter that follows no drift has it."""
    pieces = [frames[((frames / RATE / 8).astype(int) % 2) == at] for frames in jumping[1] for at in range(2)]
    found, facts = cleaned(jumping, *pieces)
    assert facts["merged"] == 2
    assert sorted(map(len, found)) == sorted(map(len, jumping[1]))
    assert all(max(overlap(one, true) for one in found) == 1 for true in jumping[1])


def test_neurons_that_are_alike_and_fire_at_the_same_time_stay_apart(jumping):
    found, facts = cleaned(jumping, *jumping[1])
    assert facts == {"split": 0, "merged": 0}
    assert all(np.array_equal(one, other) for one, other in zip(found, jumping[1], strict=True))


def test_turns_are_told_from_chance_and_from_too_few_spikes():
    random = np.random.default_rng(2)
    one, other = np.sort(random.integers(0, 10**6, (2, 50)))
    assert not take_turns(one, other, 0.95)
    assert take_turns(one, other + 10**6, 0.81)
    assert not take_turns(one, other + 10**6, 0.79)
    assert not take_turns(one[:5], other[:5] + 10**6, 0.95)
    assert not take_turns(one[:1], other + 10**6, 0.95)
    half = np.concatenate([other[::3], other[1::3] + 10**6, other[2::3] + 10**6])
    ratio_between = take_turns(one, np.sort(half), 0.95), take_turns(one, np.sort(half), 0.85)
    assert ratio_between == (True, False)


def test_refractory_periods_tell_neurons_apart():
    random = np.random.default_rng(1)
    one, other = train(random, 30.0), train(random, 30.0)
    duration = int(SECONDS * RATE)
    assert not _is_one_neuron(one, other, RATE, duration)
    half = random.random(len(one)) < 0.5
    assert _is_one_neuron(one[half], one[~half], RATE, duration)
    assert not _is_one_neuron(one[:5], other[:5], RATE, duration)  # too few to tell


def test_relabelled_units_lie_in_their_segments(scene):
    label_set = LabelSet(labels_of(np.array([10, 20])).sorting, 0, 1000, "made", (0, 600))
    made = relabelled(label_set, [np.array([700, 5]), np.array([599, 600])])
    assert made.sorting.get_unit_spike_train(0, segment_index=0).tolist() == [5]
    assert made.sorting.get_unit_spike_train(0, segment_index=1).tolist() == [100]
    assert made.sorting.get_unit_spike_train(1, segment_index=0).tolist() == [599]
    assert made.sorting.get_unit_spike_train(1, segment_index=1).tolist() == [0]


def test_a_spike_at_the_very_end_is_no_hindrance(scene):
    trains = scene[1]
    last = int(SECONDS * RATE) - 1
    found, facts = cleaned(scene, np.append(np.union1d(trains["a"], trains["c"]), last))
    assert facts["split"] == 1
    assert len(found) == 2
    assert max(overlap(train, trains["a"]) for train in found) > 0.95
    assert max(overlap(train, trains["c"]) for train in found) > 0.95
