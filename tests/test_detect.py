"""Triangle, peaks, tiles: exact small cases, and the same spikes however a recording is cut."""

import numpy as np
import pytest
import torch
from arrays import ArrayTraces, random_network

from spikewise.core.config import DetectionConfig
from spikewise.core.devices import choose_device
from spikewise.core.errors import SettingError
from spikewise.sorting.batch import detect_in_chunks
from spikewise.sorting.detector import label_radius_samples, stride_samples, tile_samples
from spikewise.sorting.peaks import find_peaks, smooth_probabilities, triangle_kernel, triangle_radius
from spikewise.sorting.spikes import Spikes
from spikewise.sorting.tensor_detector import DenseDetector

RATE = 32000.0


def test_the_triangle_of_the_paper_has_17_points_and_a_perfect_plateau_peaks_at_one():
    assert triangle_kernel(5).tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 8, 7, 6, 5, 4, 3, 2, 1]
    plateau = torch.zeros(100, 1)
    plateau[45:56] = 1
    response = smooth_probabilities(plateau, 5)[:, 0]
    assert response.max() == pytest.approx(1.0)
    assert response.argmax() + triangle_radius(5) == 50


@pytest.mark.parametrize("label_radius", [1, 2, 3, 5, 8])
def test_the_peak_of_a_plateau_is_its_middle_for_any_label_radius(label_radius):
    plateau = torch.zeros(100, 1)
    plateau[50 - label_radius : 51 + label_radius] = 1
    response = smooth_probabilities(plateau, label_radius)
    padding = torch.zeros(20, 1)
    sample_index, _ = find_peaks(torch.cat([padding, response, padding]), torch.tensor([0.5]), 20)
    assert (sample_index + triangle_radius(label_radius)).tolist() == [50]


def peaks_of(responses, thresholds, merge_radius):
    """Brute force over the definition."""
    found = []
    for sample in range(merge_radius, len(responses) - merge_radius):
        for unit in range(responses.shape[1]):
            here = responses[sample, unit]
            before = responses[sample - merge_radius : sample, unit]
            after = responses[sample + 1 : sample + 1 + merge_radius, unit]
            if here > thresholds[unit] and (here > before).all() and (here >= after).all():
                found.append((sample - merge_radius, unit))
    return found


@pytest.mark.parametrize("merge_radius", [1, 3, 16])
def test_peaks_are_those_of_the_definition(merge_radius):
    random = np.random.default_rng(0)
    responses = random.integers(0, 12, (300, 4)) / 10  # ties are many
    thresholds = np.array([0.2, 0.5, 0.9, 1.0])
    sample_index, unit_index = find_peaks(torch.tensor(responses), torch.tensor(thresholds), merge_radius)
    found = list(zip(sample_index.tolist(), unit_index.tolist(), strict=True))
    assert found == peaks_of(responses, thresholds, merge_radius)
    assert len(found) > 5


def test_of_two_peaks_of_one_unit_within_the_merge_radius_the_highest_stays():
    responses = torch.zeros(100, 2)
    responses[40, 0], responses[50, 0], responses[48, 1], responses[80, 0] = 0.8, 0.9, 0.7, 0.6
    sample_index, unit_index = find_peaks(responses, torch.tensor([0.5, 0.5]), 16)
    assert list(zip((sample_index + 16).tolist(), unit_index.tolist(), strict=True)) == [
        (48, 1),
        (50, 0),
        (80, 0),
    ]


@pytest.fixture(scope="module")
def detector() -> DenseDetector:
    network = random_network(num_channels=3, num_units=4)
    return DenseDetector(network, np.full(4, 0.58), RATE, DetectionConfig(), torch.device("cpu"))


@pytest.fixture(scope="module")
def traces() -> ArrayTraces:
    random = np.random.default_rng(0)
    return ArrayTraces(random.normal(size=(20011, 3)), random.normal(size=(3001, 3)))


def as_arrays(segments: list[Spikes]):
    return [(s.sample_index.tolist(), s.unit_index.tolist(), s.response.tolist()) for s in segments]


@pytest.mark.parametrize("chunk_samples", [20011, 10000, 4096, 1777, 300, 64])
def test_spikes_do_not_depend_on_the_chunks(detector, traces, chunk_samples):
    whole = detect_in_chunks(detector, traces, 10.0)
    chunked = detect_in_chunks(detector, traces, chunk_samples / RATE)
    assert as_arrays(chunked) == as_arrays(whole)
    assert len(whole[0]) > 100
    assert len(whole[1]) > 10


def test_a_spike_on_a_seam_is_found_once(detector, traces):
    whole = detect_in_chunks(detector, traces, 10.0)[0]
    for seam in whole.sample_index[20:30].tolist():
        first = detector.detect(traces.read(0, *detector.padded_interval(0, seam)), 0, seam)
        second = detector.detect(traces.read(0, *detector.padded_interval(seam, 20011)), seam, 20011)
        assert as_arrays([Spikes.concatenate([first, second])]) == as_arrays([whole])


def test_the_detector_sees_exactly_what_the_network_computes_on_the_whole(detector, traces):
    """Tiles and margins against one pass of the network over everything, padded with zeros."""
    start, stop = 1500, 15000
    detector = DenseDetector(detector.network, np.full(4, 0.58), RATE, DetectionConfig(), torch.device("cpu"))
    detector.stride = 1
    responses, first = detector.responses(traces.read(0, *detector.padded_interval(start, stop)), start, stop)
    reach = triangle_radius(detector.label_radius)
    low, high = first - reach, first + len(responses) + reach
    network = detector.network
    padded = torch.tensor(traces.read(0, low - network.left_margin, high + network.right_margin))
    with torch.no_grad():
        expected = smooth_probabilities(torch.sigmoid(network(padded[None])[0]), detector.label_radius)
    torch.testing.assert_close(responses, expected, atol=1e-3, rtol=0)  # a level is 1 / 4096


def test_between_outputs_probability_is_interpolated(detector, traces):
    assert detector.stride == 2
    padded = traces.read(0, *detector.padded_interval(0, 5000))
    sparse = detector._probabilities(padded, 1)
    network = detector.network
    with torch.no_grad():
        dense = torch.sigmoid(network(torch.tensor(padded)[None])[0])[: detector.tile_samples + 1]
    torch.testing.assert_close(sparse[::2], dense[:-1:2], atol=1e-5, rtol=0)
    torch.testing.assert_close(sparse[1::2], (dense[:-1:2] + dense[2::2]) / 2, atol=1e-5, rtol=0)


def test_strides_leave_two_outputs_or_more_to_the_shortest_plateau():
    assert [stride_samples(radius, 2) for radius in (1, 2, 3, 4, 5, 8)] == [1, 1, 1, 2, 2, 2]
    assert [stride_samples(radius, 4) for radius in (1, 2, 3, 4, 5, 8)] == [1, 1, 1, 2, 4, 4]


def test_the_same_traces_give_the_same_bits_at_any_place_in_memory(detector, traces):
    padded = traces.read(0, *detector.padded_interval(0, 5000))
    buffer = np.zeros(padded.size + 7, dtype=np.float32)
    shifted = buffer[7:].reshape(padded.shape)
    shifted[:] = padded
    expected, _ = detector.responses(padded, 0, 5000)
    responses, _ = detector.responses(shifted, 0, 5000)
    assert torch.equal(responses, expected)


def test_smoothing_gives_the_same_bits_wherever_a_stretch_begins():
    probabilities = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0))
    whole = smooth_probabilities(probabilities, 5)
    for begin in (1, 2, 3, 7, 1000, 4900):
        assert torch.equal(smooth_probabilities(probabilities[begin:], 5), whole[begin:])


def test_tiles_are_larger_on_fewer_channels():
    assert [tile_samples(count, 2**19, (1024, 8192)) for count in (5120, 384, 128, 64, 1)] == [
        1024,
        1024,
        4096,
        8192,
        8192,
    ]


def test_radii_follow_the_sampling_frequency():
    assert label_radius_samples(DetectionConfig(), 32000) == 5
    assert label_radius_samples(DetectionConfig(), 30000) == 5
    assert label_radius_samples(DetectionConfig(), 15000) == 2


def test_a_device_that_is_not_there_is_refused():
    if torch.backends.mps.is_available():
        pytest.skip("this machine has every device that could be missing")
    with pytest.raises(SettingError, match="Available: cpu"):
        choose_device("mps")
