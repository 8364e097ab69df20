"""The path for GPUs gives what the reference gives; all of it runs on torch's CPU device as well."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from arrays import ArrayTraces
from commands import Simulated
from spikeinterface.core import NumpyRecording, load
from test_sparse import make_network

import spikewise
from spikewise.core.config import Config, DetectionConfig, SortingConfig
from spikewise.core.errors import RecordingError, SpikewiseError
from spikewise.data.recordings.conditioning import ConditionedRecording
from spikewise.data.recordings.device_conditioning import Conditioning, DeviceConditioner, medians
from spikewise.data.recordings.device_reader import DeviceReader, DeviceTraces, make_reader
from spikewise.data.recordings.reader import TraceReader
from spikewise.data.recordings.repair import RepairedRecording
from spikewise.jobs.finder import Finder
from spikewise.jobs.state.shards import Shard
from spikewise.models.grouped import GroupedNetwork, plan_groups
from spikewise.sorting.batch import detect_in_chunks
from spikewise.sorting.damaged import drop_damaged_spikes
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.device_detector import DeviceDetector, choose_dtype
from spikewise.sorting.device_memory import free_bytes, is_out_of_memory, memory_errors
from spikewise.sorting.groups import Preparation, prepare_groups
from spikewise.sorting.spikes import Spikes
from spikewise.sorting.tensor_detector import DenseDetector

RATE = 32000.0
CPU = torch.device("cpu")
NO_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA card")
ON_CARD = pytest.param("cuda", marks=[pytest.mark.gpu, NO_CARD])


@pytest.fixture(params=["cpu", ON_CARD])
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module")
def traces() -> ArrayTraces:
    random = np.random.default_rng(0)
    return ArrayTraces(random.normal(size=(150_011, 6)), random.normal(size=(3001, 6)))


def detector_of(network, device, precision="float32", rate=RATE) -> DeviceDetector:
    thresholds = np.full(network.num_units, 0.55)
    return DeviceDetector(network, thresholds, rate, DetectionConfig(), device, precision)


def as_arrays(segments: list[Spikes]):
    return [(s.sample_index.tolist(), s.unit_index.tolist(), s.response.tolist()) for s in segments]


# The network


@pytest.mark.parametrize(("num_channels", "num_units", "stride"), [(6, 5, 4), (40, 37, 1), (40, 37, 4)])
def test_groups_give_the_probabilities_of_the_network(num_channels, num_units, stride, device):
    network = make_network(num_channels, num_units)
    grouped = GroupedNetwork(network, 501, stride, device, torch.float32)
    tile = torch.randn(num_channels, grouped.num_samples, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = torch.sigmoid(network(tile.T[None], stride)[0])[:501].T
    found = grouped(tile.to(device)).cpu()
    assert found.shape == (num_units, 501)
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_neighbouring_units_on_shuffled_channels_take_few_channels_and_no_gather():
    random = np.random.default_rng(0)
    shuffled = random.permutation(96)
    first = np.sort(random.integers(0, 84, 50))
    order, groups = plan_groups(shuffled[first[:, None] + np.arange(12)], 96)
    assert sorted(order) == list(range(96))
    assert sorted(np.concatenate([group.units for group in groups])) == list(range(50))
    assert not any(group.is_gathered for group in groups)
    needed = [len(np.unique(first[group.units, None] + np.arange(12))) for group in groups]
    assert sum(len(group.channels) for group in groups) <= 1.5 * sum(needed)


def test_units_far_apart_are_gathered():
    far = np.arange(12) * 40
    order, groups = plan_groups(np.stack([far, far + 1]), 500)
    assert sorted(order) == list(range(500))
    (group,) = groups
    assert set(order[group.channels]) >= {*far, *(far + 1)}
    assert len(group.channels) <= 48


@pytest.mark.parametrize("rate", [32000.0, 24000.0, 10000.0])
def test_it_finds_what_the_dense_path_finds(traces, rate, device):
    network = make_network(window=round(60 * rate / RATE))
    signals = ArrayTraces(*traces.segments, sampling_frequency=rate)
    dense = DenseDetector(network, np.full(5, 0.55), rate, DetectionConfig(), CPU)
    ours = detector_of(network, device, rate=rate)
    for expected, found in zip(
        detect_in_chunks(dense, signals, 1.0), detect_in_chunks(ours, signals, 1.0), strict=True
    ):
        assert len(expected) > 50
        np.testing.assert_array_equal(found.sample_index, expected.sample_index)
        np.testing.assert_array_equal(found.unit_index, expected.unit_index)
        np.testing.assert_allclose(found.response, expected.response, atol=1e-4)


def test_one_padded_stretch_gives_the_same(traces, device):
    ours = detector_of(make_network(), device)
    (expected, _) = detect_in_chunks(ours, traces, 10.0)
    found = ours.detect(traces.read(0, *ours.padded_interval(0, 150_011)), 0, 150_011)
    assert as_arrays([found]) == as_arrays([expected])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("chunk_samples", [70_000, 9999, 1777])
def test_spikes_do_not_depend_on_the_chunks(traces, chunk_samples, precision, device):
    detector = detector_of(make_network(), device, precision)
    whole = detect_in_chunks(detector, traces, 10.0)
    detector.tiles_at_once = 1
    assert as_arrays(detect_in_chunks(detector, traces, chunk_samples / RATE)) == as_arrays(whole)
    assert len(whole[0]) > 100


def test_precision_follows_the_device():
    assert choose_dtype("auto", CPU) == choose_dtype("float32", CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16


# Preprocessing


def raw_traces(num_samples: int, num_channels: int, dtype: str = "int16") -> np.ndarray:
    """Noise on slow waves and an offset, as raw recordings have."""
    random = np.random.default_rng(3)
    time = np.arange(num_samples)[:, None] / RATE
    slow = 40 * np.sin(2 * np.pi * 5 * time + np.arange(num_channels))
    return (random.normal(0, 10, (num_samples, num_channels)) + slow + 60).astype(dtype)


def conditioned(*segments: np.ndarray, band_hz=(300.0, 6000.0), repair=True):
    """What a sort has: raw, repaired, conditioned with one channel silenced."""
    recording = NumpyRecording(list(segments), RATE)
    num_channels = segments[0].shape[1]
    repaired = RepairedRecording(recording, np.full(num_channels, 60.0), np.full(num_channels, 10.0), 20.0)
    good = np.arange(num_channels) != 3
    view = ConditionedRecording(repaired if repair else recording, band_hz, good, 0.1 * good, 0.01 * good)
    return view, repaired if repair else None


def assert_nearly_all_equal(found: np.ndarray, expected: np.ndarray):
    """Values on either side of the middle between two steps are rounded to different ones."""
    np.testing.assert_allclose(found, expected, atol=1.001 / 128, rtol=0)
    assert np.mean(found != expected) < 0.01


@pytest.mark.parametrize("values", [5, 6])
def test_medians_are_means_of_the_two_in_the_middle(values, device):
    rows = np.random.default_rng(0).integers(-3, 3, (500, values)).astype(np.float32)
    found = medians(torch.from_numpy(rows).to(device)).cpu().numpy()
    np.testing.assert_array_equal(found, np.median(rows, axis=1))


@pytest.mark.parametrize("dtype", ["int8", "int16", ">i2", "float32"])
@pytest.mark.parametrize("band_hz", [(300.0, 6000.0), (300.0, 400.0), None])
def test_traces_on_the_device_are_those_of_the_host(dtype, band_hz, device):
    segments = [raw_traces(70_020, 8, dtype), raw_traces(40, 8, dtype)]
    view, repaired = conditioned(*segments, band_hz=band_hz, repair=dtype != ">i2")
    host, ours = TraceReader(view, repaired=repaired), DeviceReader(view, device, repaired=repaired)
    for segment_index, start, stop in (
        (0, -100, 65_000),
        (0, 31_990, 32_010),
        (0, 60_000, 70_100),
        (1, -5, 50),
    ):
        found = ours.read_on_device(segment_index, start, stop, stop)
        assert found.device.type == device.type
        expected = host.read(segment_index, start, stop)
        assert_nearly_all_equal(found.cpu().numpy().T, expected)
    ours.settle()


def test_many_channels_are_filtered_in_parts(device, monkeypatch):
    from spikewise.data.recordings import device_conditioning

    view, _ = conditioned(raw_traces(2000, 9))
    raw = torch.from_numpy(raw_traces(2000, 9)).to(device)
    expected = DeviceConditioner(Conditioning.of(view), 2000, device)(raw, 0, 0)
    monkeypatch.setattr(device_conditioning, "_VALUES_AT_ONCE", 20_000)
    found = DeviceConditioner(Conditioning.of(view), 2000, device)(raw, 0, 0)
    assert_nearly_all_equal(found.cpu().numpy(), expected.cpu().numpy())


def test_damage_is_bridged_and_told_as_on_the_host(device):
    raw = raw_traces(70_000, 8)
    raw[40_000:40_400] += 5000
    raw[33_000:33_100, 2] = 0
    view, repaired = conditioned(raw)
    host, ours = TraceReader(view, repaired=repaired), DeviceReader(view, device, repaired=repaired)
    found = ours.read_on_device(0, 20_000, 60_000, 60_000).cpu().numpy().T
    assert_nearly_all_equal(found, host.read(0, 20_000, 60_000))
    told = host.damage(0, 20_000, 60_000)
    assert set(told["kind"]) == {1, 4}
    np.testing.assert_array_equal(ours.damage(0, 20_000, 60_000), told)


def test_numbers_that_are_not_finite_are_refused_as_on_the_host(traces, device):
    raw = raw_traces(70_000, 6, "float32")
    raw[40_000, 2] = np.nan
    view, _ = conditioned(raw, repair=False)
    with pytest.raises(RecordingError, match="1 channels are NaN or infinite") as expected:
        TraceReader(view).read(0, 32_000, 64_000)
    with pytest.raises(RecordingError) as found:
        detect_in_chunks(detector_of(make_network(), device), DeviceReader(view, device), 4.0)
    assert str(found.value) == str(expected.value)


def test_an_error_of_reading_is_told_and_not_kept(device, monkeypatch):
    view, repaired = conditioned(raw_traces(70_000, 6))
    reader = DeviceReader(view, device, repaired=repaired)
    segment = view.get_parent().segments[0]
    reading = segment.get_traces

    def fail(*given, **options):
        raise OSError("the disk is gone")

    monkeypatch.setattr(segment, "get_traces", fail)
    with pytest.raises(RecordingError, match="the disk is gone"):
        reader.read_on_device(0, 0, 100, 70_000)
    monkeypatch.setattr(segment, "get_traces", reading)
    assert reader.read_on_device(0, 0, 100, 70_000).shape == (6, 100)
    reader.settle()


def test_a_reader_is_made_for_the_device_where_it_can_be():
    view, repaired = conditioned(raw_traces(2000, 6))
    assert not isinstance(make_reader(view, CPU, repaired), DeviceReader)
    wide, _ = conditioned(raw_traces(2000, 6, "int32"))
    reader = make_reader(wide, torch.device("cuda"))
    assert isinstance(reader, TraceReader)
    assert not isinstance(reader, DeviceTraces)


# Both together


@pytest.fixture(scope="module")
def raw_reader():
    raw = raw_traces(150_000, 6)
    raw[70_000:70_300] += 5000
    return conditioned(raw)


@pytest.mark.parametrize("chunk_samples", [150_000, 64_000, 9999, 1777])
def test_spikes_in_raw_traces_do_not_depend_on_the_chunks(raw_reader, chunk_samples, device):
    view, repaired = raw_reader
    detector = detector_of(make_network(), device)
    whole = detect_in_chunks(detector, DeviceReader(view, device, repaired=repaired), 10.0)
    reader = DeviceReader(view, device, repaired=repaired)
    found = detect_in_chunks(detector, reader, chunk_samples / RATE)
    assert as_arrays(found) == as_arrays(whole)
    assert len(whole[0]) > 100
    damaged = drop_damaged_spikes(whole[0], reader, detector.network, (0, 0, 150_000))
    assert damaged.damage.num_dropped > 0


class Limited:
    """Memory of so many bytes for each stretch."""

    def __init__(self, limit: int):
        self.limit = limit
        self.refused = 0

    def __call__(self, shape, **options):
        made = torch.empty(shape, **options)
        if made.nbytes > self.limit:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is")
        return made


def test_where_memory_is_short_stretches_are_halved_and_spikes_the_same(raw_reader, device):
    view, repaired = raw_reader
    whole = detect_in_chunks(
        detector_of(make_network(), device), DeviceReader(view, device, repaired=repaired), 10.0
    )
    small = detector_of(make_network(), device)
    small.tile_samples = 2048
    small._grouped = GroupedNetwork(small.network, 513, 4, device, torch.float32)
    small._run = small._grouped
    before = detect_in_chunks(small, DeviceReader(view, device, repaired=repaired), 10.0)
    small.tiles_at_once = 64
    small.allocate = Limited(5 * 6 * 513 * 4)
    found = detect_in_chunks(small, DeviceReader(view, device, repaired=repaired), 10.0)
    assert small.allocate.refused == 4  # 64, 32, 16, 8
    assert small.tiles_at_once == 4
    assert as_arrays(found) == as_arrays(before)
    assert abs(len(found[0]) - len(whole[0])) <= 0.01 * len(whole[0])


def test_a_device_too_small_for_a_tile_is_told(traces, device):
    detector = detector_of(make_network(), device)
    detector.allocate = Limited(1000)
    with pytest.raises(SpikewiseError, match="sort with --device cpu"):
        detect_in_chunks(detector, traces, 10.0)


def test_other_errors_are_not_taken_for_too_little_memory(traces, device):
    detector = detector_of(make_network(), device)

    def fail(*given, **options):
        raise RuntimeError("an illegal instruction")

    detector.allocate = fail
    with pytest.raises(RuntimeError, match="illegal"):
        detect_in_chunks(detector, traces, 10.0)
    assert is_out_of_memory(RuntimeError("MPS backend out of memory"))
    assert free_bytes(device) > 2**20


def test_weights_that_do_not_fit_are_told(device):
    with (
        pytest.raises(SpikewiseError, match="too little memory for the weights"),
        memory_errors(device, "the weights"),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="something else"), memory_errors(device, "the weights"):
        raise RuntimeError("something else")


# A trained network


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> Simulated:
    """Six units on sixteen channels; no test changes it."""
    folder = tmp_path_factory.mktemp("scene") / "made"
    return Simulated(folder, **{"probe": "linear-16", "num-units": 6, "duration-s": 16, "seed": 4})


@pytest.fixture(scope="module")
def model(scene):
    return spikewise.train(
        scene.recording, scene.truth, label_interval=(0, 6), patches_per_unit=800, unit_steps=100
    )


def find_all(model, reader, device, precision) -> Spikes:
    part = model.groups[0]
    detector = DeviceDetector(
        part.network, part.thresholds, model.sampling_frequency, DetectionConfig(), device, precision
    )
    return detect_in_chunks(detector, reader, 4.0)[0]


def accuracy(scene, model, spikes: Spikes) -> float:
    from spikeinterface.core import NumpySorting

    found = NumpySorting.from_samples_and_labels(
        [spikes.sample_index],
        [np.array(model.unit_ids)[spikes.unit_index]],
        model.sampling_frequency,
        model.unit_ids,
    )
    return spikewise.evaluate(load(scene.truth), found, interval=(6, 16)).accuracy


def test_bfloat16_costs_hardly_any_accuracy_and_moves_hardly_a_spike(scene, model, device):
    (group,) = prepare_groups(load(scene.recording), Preparation.of(Config(), model))
    reader = DeviceReader(group.preprocessed.recording, device, repaired=group.preprocessed.repaired)
    exact, rough = (find_all(model, reader, device, precision) for precision in ("float32", "bfloat16"))
    scores = [accuracy(scene, model, spikes) for spikes in (exact, rough)]
    assert scores[0] > 0.9
    assert abs(scores[0] - scores[1]) < 0.002
    near = 0
    for unit in range(6):
        ours, others = (s.sample_index[s.unit_index == unit] for s in (exact, rough))
        near += int((np.abs(ours[:, None] - others[None]).min(axis=1) <= 2).sum())
    assert near >= 0.995 * len(exact)
    assert len(exact) > 300


def test_the_device_finds_what_a_dense_sort_finds(scene, model, device):
    (group,) = prepare_groups(load(scene.recording), Preparation.of(Config(), model))
    reader = DeviceReader(group.preprocessed.recording, device, repaired=group.preprocessed.repaired)
    found = find_all(model, reader, device, "float32")
    expected = spikewise.sort(scene.recording, model=model, sparse=False, device="cpu", report=False)
    spikes = expected.sorting.to_spike_vector()
    theirs = set(zip(spikes["sample_index"].tolist(), spikes["unit_index"].tolist(), strict=True))
    ours = set(zip(found.sample_index.tolist(), found.unit_index.tolist(), strict=True))
    assert len(theirs) > 300
    assert len(ours ^ theirs) <= 0.005 * len(theirs)


def test_on_the_cpu_a_sort_is_as_before(scene, model):
    (group,) = prepare_groups(
        load(scene.recording), Preparation.of(Config(sorting=SortingConfig(device="cpu")), model)
    )
    assert type(group.reader) is TraceReader
    part = model.groups[0]
    dense = SortingConfig(device="cpu", sparse=False)
    detector = make_detector(part.network, part.thresholds, 30000.0, DetectionConfig(), dense)
    assert type(detector) is DenseDetector


@pytest.mark.gpu
@NO_CARD
def test_a_sort_on_a_card_is_that_of_the_device_path(scene, model):
    config = Config(sorting=SortingConfig(device="cuda", precision="float32", explain=False))
    groups = prepare_groups(load(scene.recording), Preparation.of(config, model))
    assert isinstance(groups[0].reader, DeviceReader)
    found = found_in_shards(groups, model, config.sorting, 50_000)
    whole = find_all(model, groups[0].reader, torch.device("cuda"), "float32")
    assert as_arrays([found]) == as_arrays([whole])


@pytest.mark.gpu
@NO_CARD
def test_owners_on_a_card_are_nearly_those_of_the_cpu_and_the_same_for_any_cut(scene, model):
    found = {}
    for device, length in (("cuda", 50_000), ("cuda", 130_000), ("cpu", 130_000)):
        config = Config(sorting=SortingConfig(device=device, precision="float32"))
        groups = prepare_groups(load(scene.recording), Preparation.of(config, model))
        found[device, length] = found_in_shards(groups, model, config.sorting, length)
    assert as_arrays([found["cuda", 50_000]]) == as_arrays([found["cuda", 130_000]])
    ours, theirs = (
        set(zip(one.sample_index.tolist(), one.unit_index.tolist(), strict=True))
        for one in (found["cuda", 130_000], found["cpu", 130_000])
    )
    assert len(theirs) > 300
    assert len(ours ^ theirs) <= 0.005 * len(theirs)


def found_in_shards(groups, model, sorting: SortingConfig, length: int) -> Spikes:
    """The spikes of a recording that is sorted in shards of some samples."""
    finder, stop = Finder(groups, model, sorting), groups[0].recording.get_num_samples(0)
    return Spikes.concatenate(
        [
            finder.find(Shard(0, 0, start, min(start + length, stop)), lambda *told: None).spikes
            for start in range(0, stop, length)
        ]
    )


@pytest.mark.gpu
@NO_CARD
def test_a_card_of_little_memory_finds_the_same(raw_reader):
    card = torch.device("cuda")
    view, repaired = raw_reader
    whole = detect_in_chunks(
        detector_of(make_network(), card), DeviceReader(view, card, repaired=repaired), 10.0
    )
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(1.0, 2**30 / total))
    try:
        reader = DeviceReader(view, card, repaired=repaired)
        found = detect_in_chunks(detector_of(make_network(), card), reader, 10.0)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert as_arrays(found) == as_arrays(whole)
