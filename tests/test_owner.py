"""Who fired: exact small cases with known spikes, and the same decisions however a recording is cut."""

import dataclasses

import numpy as np
import pytest
import torch
from arrays import ArrayTraces, random_network
from commands import Simulated
from spikeinterface.core import generate_recording, load

import spikewise
import spikewise.sorting.owner.search as owner_search
from spikewise.core.config import DetectionConfig
from spikewise.data.recordings.reader import TraceReader
from spikewise.learning.examples.stored_traces import StoredTraces
from spikewise.learning.examples.training_set import Block
from spikewise.learning.examples.unit_templates import measure_waveforms
from spikewise.models.unit_waveforms import UnitWaveforms
from spikewise.sorting.owner.loops import fill_waveforms
from spikewise.sorting.owner.search import OwnerRule, OwnerSearch
from spikewise.sorting.spikes import Spikes
from spikewise.sorting.tensor_detector import DenseDetector

RATE = 32000.0
BEFORE, LENGTH, NUM_CHANNELS = 48, 112, 6
THRESHOLD = 0.5


def make_waveforms() -> UnitWaveforms:
    """Units 0 and 1 look alike, unit 2 shares their channels with another shape, 3 is far, 4 is not known."""
    time = (np.arange(LENGTH) - BEFORE) / 32
    trough = -np.exp(-((time / 0.12) ** 2)) + 0.4 * np.exp(-(((time - 0.4) / 0.25) ** 2))
    wide = -np.exp(-((time / 0.3) ** 2)) + 0.3 * np.exp(-(((time - 0.9) / 0.3) ** 2))
    shapes = np.stack([trough, wide]).astype(np.float32)
    weights = np.zeros((5, 3, 2), np.float32)
    weights[0, :, 0] = 12, 8, 4
    weights[1, :, 0] = 12, 5, 7
    weights[2, :, 1] = 5, 9, 4
    weights[3, :2, 0] = 9, 5
    channels = np.array([[0, 1, 2], [0, 1, 2], [1, 2, 0], [4, 5, -1], [-1, -1, -1]])
    return UnitWaveforms(channels, weights, shapes, BEFORE)


WAVEFORMS = make_waveforms()


def traces_of(spikes, num_samples=2000, noise=1.0, seed=0):
    """Traces (num_samples, NUM_CHANNELS) of spikes (sample, unit, amplitude)."""
    traces = noise * np.random.default_rng(seed).normal(size=(num_samples, NUM_CHANNELS)).astype(np.float32)
    whole = np.empty((*WAVEFORMS.weights.shape[:2], LENGTH), np.float32)
    fill_waveforms(WAVEFORMS.weights, WAVEFORMS.shapes, whole)
    for sample, unit, amplitude in spikes:
        for near, channel in enumerate(WAVEFORMS.channel_index[unit]):
            if channel >= 0:
                first = sample - BEFORE
                traces[first : first + LENGTH, channel] += amplitude * whole[unit, near]
    return traces


def resolve(traces, candidates, noise=None, is_live=False):
    """Return (sample, unit) of the candidates (sample, unit, response) that are spikes."""
    rule = OwnerRule(WAVEFORMS, np.full(5, THRESHOLD), RATE, noise, is_live)
    sample, unit, response = zip(*sorted(candidates), strict=True)
    found = Spikes(np.array(sample), np.array(unit), np.array(response, np.float32))
    spikes = rule.resolve(found, lambda start, stop: ArrayTraces(traces).read(0, start, stop))
    return list(zip(spikes.sample_index.tolist(), spikes.unit_index.tolist(), strict=True))


@pytest.mark.parametrize("is_live", [False, True])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("unit", [0, 1])
def test_of_two_units_that_claim_one_spike_the_one_that_fired_keeps_it(unit, seed, is_live):
    traces = traces_of([(500, unit, 1.0)], seed=seed)
    for responses in ((0.9, 0.8), (0.8, 0.9)):
        candidates = [(500, 0, responses[0]), (501, 1, responses[1])]
        assert [found for _, found in resolve(traces, candidates, is_live=is_live)] == [unit]


@pytest.mark.parametrize("is_live", [False, True])
@pytest.mark.parametrize("lag", [0, 3, 9, 20])
@pytest.mark.parametrize(("one", "other"), [(0, 1), (0, 2), (1, 2)])
def test_both_of_two_units_that_fired_together_are_found(one, other, lag, is_live):
    traces = traces_of([(500, one, 1.0), (500 + lag, other, 1.0)])
    candidates = [(500, one, 0.95), (500 + lag, other, 0.9)]
    assert sorted(resolve(traces, candidates, is_live=is_live)) == [(500, one), (500 + lag, other)]


@pytest.mark.parametrize("is_live", [False, True])
def test_a_weak_answer_counts_where_it_explains_the_traces_and_only_there(is_live):
    traces = traces_of([(500, 0, 1.0), (506, 2, 1.0), (1200, 1, 1.0)])
    candidates = [(500, 0, 1.0), (506, 2, 0.15), (900, 2, 0.3), (1200, 1, 1.0), (1203, 2, 0.3)]
    assert resolve(traces, candidates, is_live=is_live) == [(500, 0), (506, 2), (1200, 1)]


def test_a_live_decision_knows_nothing_that_comes_after_its_margin():
    rule = OwnerRule(WAVEFORMS, np.full(5, THRESHOLD), RATE, is_live=True)
    assert 1000 * rule.margins[1] / RATE <= 1.25  # a stream waits so long
    spikes = [(500, 0, 1.0), (506, 2, 1.0), (540, 1, 1.0), (560, 0, 1.0), (580, 2, 1.0), (620, 1, 1.0)]
    traces = traces_of(spikes)
    candidates = [(sample, unit, 0.15 + 0.1 * unit) for sample, unit, _ in spikes] + [(543, 0, 0.9)]
    whole = resolve(traces, candidates, is_live=True)
    for sample in {sample for sample, _, _ in candidates}:
        known = [one for one in candidates if one[0] <= sample + rule.margins[1]]
        found = resolve(traces, known, is_live=True)
        assert [one for one in found if one[0] <= sample] == [one for one in whole if one[0] <= sample]


def test_a_unit_far_away_changes_nothing():
    traces = traces_of([(500, 0, 1.0), (502, 3, 1.0)])
    assert resolve(traces, [(500, 0, 0.9), (502, 3, 0.9)]) == [(500, 0), (502, 3)]
    assert resolve(traces, [(502, 3, 0.9)]) == [(502, 3)]


def test_a_unit_that_has_moved_keeps_its_spikes_where_it_is_alone():
    moved = [(500, 0, 0.5), (900, 2, 0.45), (1300, 3, 0.6)]
    candidates = [(sample, unit, 0.9) for sample, unit, _ in moved]
    assert resolve(traces_of(moved), candidates) == [(sample, unit) for sample, unit, _ in moved]


def test_the_network_decides_for_a_unit_whose_waveform_is_not_known():
    traces = traces_of([(500, 0, 1.0)])
    assert resolve(traces, [(500, 0, 0.9), (503, 4, 0.6), (900, 4, 0.4)]) == [(500, 0), (503, 4)]


def test_overlaps_and_products_are_those_of_the_definition():
    rule = OwnerRule(WAVEFORMS, np.full(5, THRESHOLD), RATE)
    whole = np.zeros((5, NUM_CHANNELS, LENGTH), np.float64)
    for unit, channels in enumerate(WAVEFORMS.channel_index):
        for near, channel in enumerate(channels[channels >= 0]):
            whole[unit, channel] = WAVEFORMS.weights[unit, near] @ WAVEFORMS.shapes
    skipped, length = BEFORE - rule.waveforms.before, rule.waveforms.middles.shape[2]
    middle = whole[:, :, skipped : skipped + length]
    overlaps, half = rule.overlaps, rule.overlaps.products.shape[1] // 2
    for one, other, shift in [(0, 0, 0), (0, 1, 5), (1, 2, -17), (2, 0, 40), (0, 2, -60)]:
        padded = np.pad(whole[other], ((0, 0), (200, 200)))
        part = padded[:, 200 + skipped - shift :][:, :length]
        found = overlaps.products[overlaps.pair[one, other], half + shift]
        assert found == pytest.approx(np.sum(middle[one] * part), rel=1e-4, abs=1e-2)
    assert overlaps.pair[0, 3] == overlaps.pair[3, 2] == overlaps.pair[4, 4] == -1
    np.testing.assert_allclose(
        overlaps.energy[:4], (middle[:4] * whole[:4, :, skipped:][:, :, :length]).sum((1, 2)), rtol=1e-4
    )
    assert overlaps.energy[4] == 0


def test_spikes_of_unknown_neurons_are_left_out():
    foreign = traces_of([])
    whole = np.empty((*WAVEFORMS.weights.shape[:2], LENGTH), np.float32)
    fill_waveforms(WAVEFORMS.weights, WAVEFORMS.shapes, whole)
    for channel, size in zip([0, 1, 2], [1.1, -0.9, 1.4], strict=True):  # of unit 0 and of no unit
        foreign[500 - BEFORE : 500 - BEFORE + LENGTH, channel] += size * whole[0, channel]
    own = traces_of([(900, 0, 0.8), (1300, 0, 1.0), (1312, 2, 1.1)], noise=0)
    candidates = [(500, 0, 0.9), (900, 0, 0.9), (1300, 0, 0.9), (1312, 2, 0.9)]
    assert resolve(foreign + own, candidates) == [(s, u) for s, u, _ in candidates]
    assert resolve(foreign + own, candidates, noise=1.0) == [(s, u) for s, u, _ in candidates[1:]]


@pytest.fixture(scope="module", params=[(None, False), (1.0, False), (None, True)])
def detector_and_traces(request):
    """A network that answers at random to traces with many overlapping spikes."""
    random = np.random.default_rng(1)
    spikes = [(int(s), int(u), 1.0) for s, u in random.integers((100, 0), (19900, 4), (900, 2))]
    traces = ArrayTraces(traces_of(spikes, 20011), traces_of([(700, 0, 1.0)], 3001))
    rule = OwnerRule(WAVEFORMS, np.full(5, 0.58, np.float32), RATE, *request.param)
    rule.lowest = np.full(5, 0.52, np.float32)
    network = random_network(num_channels=NUM_CHANNELS, num_units=5)
    detector = DenseDetector(network, rule.lowest, RATE, DetectionConfig(), torch.device("cpu"))
    return detector, rule, traces


def as_lists(spikes):
    return spikes.sample_index.tolist(), spikes.unit_index.tolist(), spikes.response.tolist()


@pytest.mark.parametrize("length", [7000, 1777, 300])
@pytest.mark.parametrize("at_once", [2**24, 1500 * NUM_CHANNELS])
def test_decisions_do_not_depend_on_the_cut(detector_and_traces, monkeypatch, length, at_once):
    detector, rule, traces = detector_and_traces

    def find(stretch):
        search = OwnerSearch(detector.search(traces, 0), rule, traces, 0)
        return Spikes.concatenate([search.find(a, min(a + stretch, 20011)) for a in range(0, 20011, stretch)])

    whole, candidates = find(20011), detector.find(traces, 0, 0, 20011)
    monkeypatch.setattr(owner_search, "_VALUES", at_once)
    assert as_lists(find(length)) == as_lists(whole)
    found = candidates.response > rule.thresholds[candidates.unit_index]
    assert 100 < len(whole) < len(candidates)
    assert whole.sample_index.tolist() != candidates.sample_index[found].tolist()


def test_replaced_units_have_the_new_waveforms_and_others_the_old():
    random = np.random.default_rng(0)
    new = UnitWaveforms(
        np.array([[5, 4, 3]]),
        random.normal(size=(1, 3, 4)).astype(np.float32),
        random.normal(size=(4, LENGTH)).astype(np.float32),
        BEFORE,
    )
    merged = WAVEFORMS.with_units(new, np.array([1]))
    assert merged.channel_index[1].tolist() == [5, 4, 3]
    np.testing.assert_allclose(merged.weights[1] @ merged.shapes, new.weights[0] @ new.shapes, rtol=1e-5)
    for unit in (0, 2, 3, 4):
        np.testing.assert_array_equal(
            merged.weights[unit] @ merged.shapes, WAVEFORMS.weights[unit] @ WAVEFORMS.shapes
        )


def test_measured_waveforms_are_those_that_fired():
    random = np.random.default_rng(2)
    samples = np.sort(random.choice(np.arange(200, 59800, 130), 300, replace=False))
    units = random.integers(0, 3, 300)
    traces = ArrayTraces(
        traces_of([(int(s), int(u), 1.0) for s, u in zip(samples, units, strict=True)], 60000)
    )
    stored = StoredTraces(traces, [Block(0, 0, 60000, False)], 150)
    positions = np.stack([np.zeros(NUM_CHANNELS), 40.0 * np.arange(NUM_CHANNELS)], axis=1)
    columns = [stored.columns_of(samples[units == unit])[0] for unit in range(3)] + [np.empty(0, np.int64)]
    measured = measure_waveforms(stored, columns, positions, RATE)
    assert measured.shapes.shape[1] == LENGTH
    for unit in range(3):
        truth, found = np.zeros((2, NUM_CHANNELS, LENGTH))
        for near, channel in enumerate(WAVEFORMS.channel_index[unit]):
            truth[channel] = WAVEFORMS.weights[unit, near] @ WAVEFORMS.shapes
        for near, channel in enumerate(measured.channel_index[unit]):
            if channel >= 0:
                found[channel] = measured.weights[unit, near] @ measured.shapes
        assert np.linalg.norm(found - truth) < 0.1 * np.linalg.norm(truth)
        main = np.linalg.norm(truth, axis=1).argmax()
        assert measured.channel_index[unit, 0] == main
    assert (measured.channel_index[3] == -1).all()
    assert not measured.weights[3].any()


def test_samples_that_were_just_read_are_read_again_from_memory():
    random = np.random.default_rng(0)
    recording = generate_recording(num_channels=2, durations=[12.0], sampling_frequency=1000.0, seed=0)
    reader, keeping = TraceReader(recording), TraceReader(recording)
    keeping.keep(8000)
    for start in random.permutation(4000).tolist()[:5]:
        np.testing.assert_array_equal(
            reader.read(0, start, start + 8000), keeping.read(0, start, start + 8000)
        )
    first = keeping.read(0, 3000, 4000)
    keeping.read(0, 4000, 11000)
    assert np.shares_memory(keeping.read(0, 3000, 4000), first)
    first = reader.read(0, 3000, 4000)
    reader.read(0, 4000, 11000)
    assert not np.shares_memory(reader.read(0, 3000, 4000), first)


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Simulated:
    """Sixteen seconds of twelve units that fire often; no test changes it."""
    folder = tmp_path_factory.mktemp("owner") / "made"
    return Simulated(
        folder,
        **{"probe": "linear-16", "num-units": 12, "excitatory-rate-hz": 15, "duration-s": 16, "seed": 5},
    )


@pytest.fixture(scope="module")
def model(scene):
    return spikewise.train(
        scene.recording, scene.truth, label_interval=(0, 8), patches_per_unit=800, unit_steps=100
    )


def sort(scene, model, **settings):
    result = spikewise.sort(scene.recording, model=model, report=False, **settings)
    return result.provenance["result"]["spikes_hash"], result.sorting


def test_a_sort_lets_the_traces_decide_unless_it_is_told_not_to(scene, model):
    truth = load(scene.truth)
    explained, found = sort(scene, model)
    plain, found_plain = sort(scene, model, explain=False)
    assert explained != plain
    accuracy, accuracy_plain = (
        spikewise.evaluate(truth, sorting, interval=(8, 16)).accuracy for sorting in (found, found_plain)
    )
    assert accuracy > accuracy_plain > 0.8


def test_a_sort_in_parts_decides_alike(scene, model):
    whole, _ = sort(scene, model)
    for settings in ({"chunk_s": 0.3, "shard_s": 1.7}, {"chunk_s": 9.0, "shard_s": 5.0}):
        assert sort(scene, model, **settings)[0] == whole


def test_a_model_of_an_earlier_version_sorts_as_before(scene, model):
    groups = tuple(dataclasses.replace(group, waveforms=None) for group in model.groups)
    earlier = dataclasses.replace(model, groups=groups)
    assert sort(scene, earlier)[0] == sort(scene, model, explain=False)[0]
