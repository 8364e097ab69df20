"""The sparse path finds what the dense one finds, and its gates lose hardly anything."""

import numpy as np
import pytest
import torch
from arrays import ArrayTraces

from spikewise.core.config import Config, DetectionConfig, SortingConfig
from spikewise.learning.examples.patch_loops import fill_extremes
from spikewise.learning.examples.training_set import Block
from spikewise.learning.gate_fitting import ANSWER, LOST, fit_gate
from spikewise.learning.thresholds import find_in_block
from spikewise.models.gates import OPEN, block_samples
from spikewise.models.neighbourhood import Backbone, NeighbourhoodNetwork
from spikewise.sorting.batch import detect_in_chunks
from spikewise.sorting.detectors import make_detector
from spikewise.sorting.kernels import Samples, close_gates, overlapping
from spikewise.sorting.loops import PeakRule, block_extremes, keep_promising, open_gates, peaks_of_units
from spikewise.sorting.peaks import LEVELS, find_peaks, smooth_probabilities, triangle_radius
from spikewise.sorting.sparse import SparseNetwork, Tile
from spikewise.sorting.sparse_detector import SparseDetector
from spikewise.sorting.tensor_detector import DenseDetector

RATE = 32000.0
CPU = torch.device("cpu")
SPIKE_FIELDS = ("sample_index", "unit_index", "response")


def make_network(num_channels=6, num_units=5, window=60, seed=0) -> NeighbourhoodNetwork:
    """A network that answers often, with gates that are always open."""
    generator = torch.Generator().manual_seed(seed)
    near = torch.stack([torch.randperm(num_channels, generator=generator)[:4] for _ in range(num_units)])
    network = NeighbourhoodNetwork(Backbone(window, (8, 8)), num_channels, near, 8)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    return network.eval()


@pytest.fixture(scope="module")
def traces() -> ArrayTraces:
    random = np.random.default_rng(0)
    return ArrayTraces(random.normal(size=(150_011, 6)), random.normal(size=(3001, 6)))


def as_arrays(segments):
    return [(s.sample_index.tolist(), s.unit_index.tolist(), s.response.tolist()) for s in segments]


@pytest.mark.parametrize("rate", [32000.0, 24000.0, 10000.0])
def test_with_open_gates_it_finds_what_the_dense_path_finds(traces, rate):
    window = round(60 * rate / RATE)
    network = make_network(window=window)
    signals = ArrayTraces(*traces.segments, sampling_frequency=rate)
    dense = DenseDetector(network, np.full(5, 0.55), rate, DetectionConfig(), CPU)
    sparse = SparseDetector(network, np.full(5, 0.55), rate, DetectionConfig())
    for expected, found in zip(
        detect_in_chunks(dense, signals, 1.0), detect_in_chunks(sparse, signals, 1.0), strict=True
    ):
        spikes = [set(zip(s.sample_index, s.unit_index, strict=True)) for s in (expected, found)]
        assert len(spikes[0]) > 100
        # Products are added in another order: a response may fall to the other side of a level.
        assert len(spikes[0] ^ spikes[1]) <= 0.01 * len(spikes[0])
        common = sorted(spikes[0] & spikes[1])
        heights = [
            dict(zip(zip(s.sample_index, s.unit_index, strict=True), s.response, strict=True))
            for s in (expected, found)
        ]
        np.testing.assert_allclose(
            [heights[0][key] for key in common], [heights[1][key] for key in common], atol=1e-3
        )


@pytest.mark.parametrize("chunk_samples", [150_011, 70_000, 32_768, 9999, 1777])
def test_spikes_do_not_depend_on_the_chunks(traces, chunk_samples):
    network = make_network()
    network.gate_weight[:, 0, 0, 1] = -1.0  # open where the nearest channel falls below a level
    network.gate_level[:] = 2.5
    detector = SparseDetector(network, np.full(5, 0.55), RATE, DetectionConfig())
    whole = detect_in_chunks(detector, traces, 10.0)
    chunked = detect_in_chunks(detector, traces, chunk_samples / RATE)
    assert as_arrays(chunked) == as_arrays(whole)
    assert len(whole[0]) > 100
    assert len(whole[1]) > 3
    middle = find_in_block(detector, traces, Block(0, 40_000, 70_000, held_out=False))
    inside = (whole[0].sample_index >= 40_000) & (whole[0].sample_index < 70_000)
    assert middle.sample_index.tolist() == whole[0].sample_index[inside].tolist()


def test_chunks_that_end_where_the_next_output_is_that_of_another_tile(traces, monkeypatch):
    """The last samples of a chunk are interpolated from an output that may be the first of the next tile."""
    monkeypatch.setattr("spikewise.sorting.sparse_detector._TILE_SAMPLES", (16, 64))
    monkeypatch.setattr("spikewise.sorting.sparse_detector._TILE_VALUES", 64 * 6)
    network = make_network()
    network.gate_weight[:, 0, 0, 1] = -1.0
    network.gate_level[:] = 1.0
    detector = SparseDetector(network, np.full(5, 0.3), RATE, DetectionConfig())
    assert detector.tile_samples == 64
    assert detector.stride > 1
    num_samples = 300 * 64
    (whole,) = as_arrays([detector.find(traces, 0, 0, num_samples)])
    for offset in (-1, 0, 1):
        ends = [*(np.arange(1, 300) * 64 - detector.context + offset).tolist(), num_samples]
        parts = [detector.find(traces, 0, start, stop) for start, stop in zip([0, *ends], ends, strict=False)]
        joined = [np.concatenate([getattr(p, name) for p in parts]).tolist() for name in SPIKE_FIELDS]
        assert joined == list(whole), offset
    assert len(whole[0]) > 1000


def test_a_closed_gate_finds_nothing_and_touches_no_other_unit(traces):
    network = make_network()
    every = detect_in_chunks(SparseDetector(network, np.full(5, 0.55), RATE, DetectionConfig()), traces, 4.0)
    network.gate_level[2] = -OPEN
    some = detect_in_chunks(SparseDetector(network, np.full(5, 0.55), RATE, DetectionConfig()), traces, 4.0)
    assert 2 in every[0].unit_index
    others = every[0].unit_index != 2
    assert some[0].sample_index.tolist() == every[0].sample_index[others].tolist()
    assert some[0].unit_index.tolist() == every[0].unit_index[others].tolist()
    network.gate_level[:] = -OPEN
    assert not len(
        detect_in_chunks(SparseDetector(network, np.full(5, 0.55), RATE, DetectionConfig()), traces, 4.0)[0]
    )


@pytest.mark.parametrize(
    "traces",
    [
        np.arange(12, dtype=np.float32).reshape(4, 3),
        np.arange(40, dtype=np.float32).reshape(4, 10).T[2:7],
        np.arange(12, dtype=np.float64).reshape(3, 4).T,
        np.arange(40, dtype=np.float32).reshape(4, 10).T[::-1],
        np.arange(5, dtype=np.float32).reshape(5, 1),
    ],
    ids=["by sample", "a stretch by channel", "other type", "backwards", "one channel"],
)
def test_a_tile_holds_the_samples_of_each_channel(traces):
    tile = Tile.of(traces)
    num_samples, num_channels = traces.shape
    places = np.arange(num_channels)[:, None] * tile.step + np.arange(num_samples)
    assert tile.values[places].T.tolist() == traces.tolist()
    assert tile.num_channels == num_channels


def test_gates_open_where_the_definition_says():
    random = np.random.default_rng(1)
    signal = random.normal(size=(3, 64 * 8 + 5)).astype(np.float32)
    extremes = np.empty((3, 2, 64), np.float32)
    tile = Tile.of(signal.T)
    block_extremes(tile.values, tile.step, 5, 8, extremes)
    blocks = signal[:, 5:].reshape(3, 64, 8)
    np.testing.assert_array_equal(extremes, np.stack([blocks.min(2), blocks.max(2)], 1))
    for count in (16, 37):  # sixteen blocks at a time, the last of which may overlap those before
        fewer = np.empty((3, 2, count), np.float32)
        block_extremes(tile.values, tile.step, 5, 8, fewer)
        np.testing.assert_array_equal(fewer, extremes[:, :, :count])
    of_four = np.empty((3, 2, 128), np.float32)
    block_extremes(tile.values, tile.step, 5, 4, of_four)
    halves = signal[:, 5:].reshape(3, 128, 4)
    np.testing.assert_array_equal(of_four, np.stack([halves.min(2), halves.max(2)], 1))
    weight = random.normal(size=(2, 2, 2, 3)).astype(np.float32)
    channel_index = np.array([[0, 2], [1, 0]])
    around = [
        np.stack([extremes[channels][:, :, k : k + 62] for k in range(3)], 2) for channels in channel_index
    ]
    scores = [(weight[unit][..., None] * around[unit]).sum((0, 1, 2)) for unit in range(2)]
    level = np.quantile(scores, 0.8, axis=1).astype(np.float32)
    is_open = np.empty((2, 60), np.bool_)
    open_gates(extremes, channel_index, weight, level, is_open)
    for unit in range(2):
        passed = scores[unit] > level[unit]
        beside = np.convolve(passed, np.ones(3), "valid") > 0
        assert is_open[unit].tolist() == beside.tolist()
        assert 5 < beside.sum() < 55


@pytest.mark.parametrize("window", [8, 19, 24, 60])
def test_second_gates_are_closed_where_the_definition_says(window):
    random = np.random.default_rng(window)
    signal = random.normal(size=(5, 8 * 50 + window)).astype(np.float32)
    weight = random.normal(size=(3, 2, window)).astype(np.float32)
    channel_index = np.array([[0, 4], [3, 1], [2, 2]])
    windows = np.lib.stride_tricks.sliding_window_view(signal, window, axis=1)[:, : 8 * 50 : 8]
    scores = np.einsum("nmw,nmbw->nb", weight, windows[channel_index])
    level = np.array([0.0, 1.0, -1.0], np.float32)
    was_open = random.random((3, 50)) < 0.7
    is_open = was_open.copy()
    tile = Tile.of(signal.T)
    close_gates(
        Samples(tile.values, tile.step), 8, channel_index, overlapping(weight), window, level, is_open
    )
    assert is_open.tolist() == (was_open & (scores > level[:, None])).tolist()
    assert 10 < is_open.sum() < 130


def test_blocks_stay_open_where_they_or_those_beside_them_answer():
    is_open = np.ones((2, 13), np.bool_)
    is_open[0, 5] = False
    is_known = np.ones((2, 13), np.bool_)
    is_known[1, 6] = False
    probabilities = np.zeros((2, 13), np.float32)
    probabilities[:, 6] = 0.9  # of the second unit not known: what was left there by others
    keep_promising(is_open, is_known, probabilities, np.float32(0.02))
    assert np.flatnonzero(is_open[0]).tolist() == [0, 1, 2, 4, 6, 7, 8, 10, 11, 12]
    assert np.flatnonzero(is_open[1]).tolist() == [0, 1, 2, 10, 11, 12]


@pytest.mark.parametrize(
    ("features", "hidden", "window", "block", "stride"),
    [((16, 16), 32, 60, 8, 4), ((8, 20), 8, 19, 4, 2), ((33, 5), 17, 7, 1, 1)],
)
def test_kernels_compute_the_network(features, hidden, window, block, stride):
    generator = torch.Generator().manual_seed(1)
    near = torch.tensor([[0, 3, 1], [5, 2, 4]])
    network = NeighbourhoodNetwork(Backbone(window, features), 6, near, hidden).eval()
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3
    samples = torch.randn(block * 40 + window - 1 + 32, 6, generator=generator)
    sparse = SparseNetwork(network, block, stride, 0, block * 40)  # a plateau too short for a glimpse
    asked, counts = sparse.evaluate(Tile.of(samples.numpy()))
    num_outputs = 40 * block // stride
    expected = torch.sigmoid(network(samples[None], stride)[0]).detach().numpy()[:num_outputs]
    assert asked.block.tolist() == 2 * list(range(40))
    assert counts.tolist() == [80, 0, 6 * num_outputs, 2 * num_outputs]  # each channel is seen by one unit
    found = asked.probabilities.reshape(2, num_outputs).T
    np.testing.assert_allclose(found, expected, atol=2e-5)
    assert expected.std() > 0.05


def test_a_window_with_no_room_for_the_gates_is_refused():
    with pytest.raises(ValueError, match="no room for blocks of 8"):
        SparseNetwork(make_network(window=32), 8, 4, 0, 80)


@pytest.mark.parametrize(("stride", "label_radius", "merge_radius"), [(2, 5, 16), (1, 2, 5), (2, 4, 1)])
def test_peaks_among_blocks_are_those_of_the_dense_postprocessing(stride, label_radius, merge_radius):
    random = np.random.default_rng(label_radius)
    block, num_blocks, num_units = 8, 400, 3
    asked = random.random((num_units, num_blocks)) < 0.4
    unit_index, blocks = np.nonzero(asked)
    probabilities = random.random((len(blocks), block // stride)).astype(np.float32)
    outputs = np.zeros((num_units, num_blocks, block // stride), np.float32)
    outputs[unit_index, blocks] = probabilities
    outputs = torch.from_numpy(outputs.reshape(num_units, -1))
    dense = torch.zeros(num_units, num_blocks * block)
    dense[:, ::stride] = outputs
    if stride == 2:  # nothing is interpolated into a block that was not asked
        after = torch.cat([outputs[:, 1:], torch.zeros(num_units, 1)], dim=1)
        between = torch.lerp(outputs, after, 0.5)
        last = torch.arange(between.shape[1]) % (block // stride) == block // stride - 1
        is_asked = torch.from_numpy(asked).repeat_interleave(block // stride, dim=1)
        dense[:, 1::2] = torch.where(is_asked | ~last, between, torch.zeros(1))
    context = triangle_radius(label_radius) + merge_radius
    padded = torch.nn.functional.pad(dense, (context, context)).T
    thresholds = torch.tensor([0.3, 0.5, 0.6])
    responses = smooth_probabilities(padded, label_radius)
    expected = find_peaks(responses, thresholds, merge_radius)
    found = peaks_of_units(
        np.searchsorted(unit_index, np.arange(num_units + 1)),
        blocks,
        probabilities,
        thresholds.numpy(),
        (0, num_blocks * block),
        PeakRule(block, LEVELS, label_radius, triangle_radius(label_radius), merge_radius),
    )
    order = np.lexsort((found[1], found[0]))
    assert len(order) > 30
    assert found[0][order].tolist() == expected[0].tolist()
    assert found[1][order].tolist() == expected[1].tolist()
    heights = responses[expected[0] + merge_radius, expected[1]]
    np.testing.assert_array_equal(found[2][order], heights.numpy())


def gate_inputs(patches, block, random):
    """Extremes of three blocks; the centre of each patch lies at a random sample of the middle one."""
    begins = (patches.shape[2] - 1) // 2 - random.integers(block, size=len(patches)) - block
    extremes = np.empty((*patches.shape[:2], 2, 3), np.float32)
    fill_extremes(patches.numpy(), np.arange(len(patches)), begins, block, extremes)
    return torch.from_numpy(extremes).flatten(1)


def test_a_gate_lets_through_what_the_network_answers():
    random = np.random.default_rng(0)
    patches = torch.from_numpy(random.normal(size=(6000, 3, 60)).astype(np.float32))
    patches[:2000, 0, 27:32] -= 8
    probabilities = torch.zeros(6000)
    probabilities[:2000] = 0.9
    weight, level = fit_gate(gate_inputs(patches, 8, random), probabilities)
    assert probabilities[0] > ANSWER
    again = torch.from_numpy(random.normal(size=(6000, 3, 60)).astype(np.float32))
    again[:2000, 0, 27:32] -= 8
    passed = gate_inputs(again, 8, random) @ weight > level
    assert passed[:2000].float().mean() > 1 - 2 * LOST
    assert passed[2000:].float().mean() < 0.05


def test_a_gate_stays_open_where_there_is_nothing_to_fit():
    weight, level = fit_gate(torch.randn(500, 6), torch.full((500,), 0.01))
    assert level == OPEN
    assert not weight.any()


def test_blocks_are_a_quarter_of_a_millisecond_and_whole_strides():
    assert block_samples(32000.0, 2) == 8
    assert block_samples(30000.0, 2) == 8
    assert block_samples(10000.0, 1) == 2
    assert block_samples(1000.0, 2) == 2


def test_what_is_switched_off_or_has_no_room_takes_the_dense_path():
    thresholds, detection = np.full(5, 0.5), DetectionConfig()
    chosen = make_detector(make_network(), thresholds, RATE, detection, SortingConfig())
    assert isinstance(chosen, SparseDetector)
    off = make_detector(
        make_network(), thresholds, RATE, detection, Config.from_options(sparse=False).sorting
    )
    assert isinstance(off, DenseDetector)
    narrow = make_detector(make_network(window=16), thresholds, RATE, detection, SortingConfig())
    assert isinstance(narrow, DenseDetector)
