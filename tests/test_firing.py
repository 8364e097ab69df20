"""Intervals, rates and compared spikes of units, and components of look-alike pairs: exact small cases."""

import itertools

import numpy as np
import pytest
from arrays import ArrayTraces

from spikewise.output import firing
from spikewise.output.features import PairWaveforms
from spikewise.output.firing import measure_firing
from spikewise.output.measures import measure_units, spike_trains
from spikewise.output.pairs import UnitPair, likely_pairs
from spikewise.output.report.page import write_report
from spikewise.output.report.page_data import TraceScale
from spikewise.output.samples import sample_spikes

from test_report import RATE, page_json, read_page, small_result, words  # isort: skip


def firing_of(result):
    return measure_firing(result, spike_trains(result.sorting))


def test_intervals_are_counted_within_segments_and_rates_over_all_of_them():
    # Intervals of unit a: 1.4 ms (a violation), 1.5 ms, 100 ms (too long); the second segment has one spike.
    first, second = [(1000, 0), (1014, 0), (1029, 0), (2029, 0), (5000, 1)], [(3, 0)]
    result = small_result([first, second], ["a", "b"], [20_000, 10_000])
    found = firing_of(result)
    assert np.flatnonzero(found.intervals[0]).tolist() == [2, 3]  # 1.0 to 1.5 ms, 1.5 to 2.0 ms
    assert found.intervals.sum(axis=1).tolist() == [2, 0]
    assert found.rate_bin_s == 1.0
    assert found.counts.tolist() == [[4, 0, 1], [1, 0, 0]]


def test_all_spikes_are_compared_and_no_pair_lies_across_segments():
    result = small_result([[(9_990, 0)], [(5, 1), (7000, 0)]], ["a", "b"], [10_000, 10_000])
    found = firing_of(result)
    assert found.compared_units.tolist() == [0, 1, 0]
    assert found.compared_frames[1] - found.compared_frames[0] > 0.1 * RATE  # and not 15 frames
    assert found.compared_frames[2] - found.compared_frames[1] == 6995
    assert found.compared_s == 2.0


def test_of_a_long_recording_whole_stretches_are_compared(monkeypatch):
    monkeypatch.setattr(firing, "MAX_COMPARED_SPIKES", 45)
    monkeypatch.setattr(firing, "STRETCH_S", 1.0)
    frames = np.arange(500, 100_000, 1000)  # ten spikes in each of ten seconds
    result = small_result([[(int(frame), 0) for frame in frames]], ["a"], [100_000])
    found = firing_of(result)
    assert (len(found.compared_frames), found.compared_s) == (40, 4.0)
    steps = np.diff(found.compared_frames)
    assert (steps == 1000).sum() == 36  # all spikes of four stretches
    assert (steps[steps != 1000] == 2000).all()  # and a gap of 100 ms between two of them
    monkeypatch.setattr(firing, "MAX_COMPARED_SPIKES", 5)
    assert len(firing_of(result).compared_frames) == 5


def two_sizes():
    """Two units of one shape on the same channel of three, of 8 and 16 noise s.d., and noise that doubles."""
    generator = np.random.default_rng(3)
    traces = generator.normal(0, 1, (40_000, 3)).astype(np.float32)
    traces[20_000:] *= 2
    spikes = sorted((int(frame), unit) for unit in (0, 1) for frame in range(300 + 150 * unit, 39_000, 300))
    for frame, unit in spikes:
        traces[frame] -= 8.0 * (1 + unit) * np.array([0.5, 1.0, 0.2], np.float32)
    result = small_result([spikes], ["small", "large"], [40_000])
    return result, {"0": ArrayTraces(traces, sampling_frequency=RATE)}


def test_components_of_two_sizes_are_two_clouds_and_the_noise_is_measured_in_each_second():
    result, readers = two_sizes()
    units = measure_units(result, readers)[0]
    similarity = np.array([[1.0, 0.99], [0.99, 1.0]])
    pairs = likely_pairs(result.sorting, spike_trains(result.sorting), result.num_samples, similarity)
    found = sample_spikes(result, units, readers, pairs)
    (features,) = found.pair_features
    assert features.channel_ids == ("ch1", "ch0", "ch2")
    assert len(features.first) > 100
    assert features.first[:, 0].max() < features.second[:, 0].min()
    # The distance of the means is that of the waveforms: 8 noise s.d. times the norm of the shape.
    apart = features.second.mean(axis=0) - features.first.mean(axis=0)
    assert apart[0] == pytest.approx(8 * np.linalg.norm([0.5, 1.0, 0.2]), rel=0.03)
    assert abs(apart[1]) < 0.5
    assert found.seconds_s.tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]
    np.testing.assert_allclose(found.noise, [[1, 1, 2, 2]] * 2, rtol=0.1)


def test_a_pair_without_a_sampled_spike_has_no_components():
    result, readers = two_sizes()
    units = measure_units(result, readers)[0]
    pair = UnitPair(0, 1, 0.9, 0.0, 0, 0.0, "alike", np.zeros(100))
    (features,) = PairWaveforms([pair], units).features()
    assert features.first.shape == features.second.shape == (0, 2)


def pair_with(shared, num_refractory, num_expected, verdict):
    return UnitPair(0, 1, 0.9, shared, num_refractory, num_expected, verdict, np.zeros(100))


@pytest.mark.parametrize(
    ("pair", "told"),
    [
        (pair_with(0.413, 3, 20.0, "duplicate"), ["41.3 %", "at least 20 %"]),
        (pair_with(0.01, 4, 20.0, "split"), ["1.0 %", "Only 4 pairs", "0.20 times", "by chance (20)"]),
        (pair_with(0.0, 19, 20.0, "alike"), ["19 pairs", "0.95 times", "at most 0.3 times"]),
        (pair_with(0.0, 0, 2.5, "alike"), ["Too few spikes", "by chance 2.5 pairs", "10 are needed"]),
    ],
)
def test_a_pair_says_why_it_has_its_verdict(pair, told):
    assert [part for part in told if part not in pair.reason] == []


def test_the_page_leads_to_phy(tmp_path):
    result, readers = two_sizes()
    result.provenance["recording"]["path"] = "/data/my recording"
    folder = tmp_path / "out"
    folder.mkdir()
    page = read_page(write_report(result, folder / "a.html", readers=readers))
    assert "spikewise export phy OUT --recording '/data/my recording' -o phy" in words(page)
    (folder / "provenance.json").touch()
    (folder / "phy").mkdir()
    (folder / "phy" / "params.py").touch()
    page = read_page(write_report(result, folder / "b.html", readers=readers))
    assert "phy/params.py" in page.references
    assert f"phy template-gui {folder}/phy/params.py" in words(page)


def test_spikes_of_the_page_are_those_of_the_recording(tmp_path):
    """All that a page without the recording has: the times for correlograms, rates and intervals."""
    result, _ = two_sizes()
    data = page_json(write_report(result, tmp_path / "r.html"))
    compared = data["firing"]["compared"]
    assert compared["frames_per_ms"] == 10
    assert compared["seconds"] == 4.0
    assert (data["groups"][0]["is_uV"], data["groups"][0]["scale"]) == (False, [1.0] * 3)
    names = [(part["type"], part["shape"]) for part in (compared["unit"], compared["step"])]
    total = result.sorting.count_total_num_spikes()
    assert names == [("uint16", [total]), ("uint32", [total])]
    assert list(itertools.chain(data["firing"]["counts"]["shape"])) == [2, 4]


def test_sizes_over_the_noise_are_those_of_this_recording(tmp_path):
    """A model divides by the noise that it learnt: here it was half of that of this recording."""
    result, readers = two_sizes()
    scales = {"0": TraceScale(np.array([1.0, 3.0, 1.0]), 2.0)}
    page = read_page(write_report(result, tmp_path / "a.html", readers=readers, scales=scales))
    row = dict(zip(page.rows[0], page.rows[2], strict=True))
    assert float(row["SNR"]) == pytest.approx(16 / 2, rel=0.05)
    assert float(row["amplitude (µV)"]) == pytest.approx(16 * 3, rel=0.05)
    path = write_report(result, tmp_path / "b.html", readers=readers, scales={"0": TraceScale(None, 2.0)})
    assert page_json(path)["groups"][0]["scale"] == [0.5] * 3
