"""One-to-one matching and scores: hand-computed cases, exhaustive matching, and SpikeInterface's own."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching
from spikeinterface.comparison import compare_sorter_to_ground_truth
from spikeinterface.core import NumpySorting, generate_sorting

from spikewise.core.config import EvaluationConfig
from spikewise.core.errors import LabelsError, SettingError
from spikewise.data.labels import events
from spikewise.data.labels.events import match_events
from spikewise.output.matching import agreement, compare_sortings

FS = 30000.0
DELTA = 12  # 0.4 ms


def sorting_of(*segments, fs=FS):
    """Build a sorting from one dictionary of unit id to frames for each segment."""
    return NumpySorting.from_unit_dict(
        [{unit: np.asarray(frames, dtype="int64") for unit, frames in seg.items()} for seg in segments], fs
    )


def perturb(truth, rng):
    """Make a sorting with jitter, missing, false, merged, split and invented units from a true one."""
    segments = []
    for segment_index in range(truth.get_num_segments()):
        trains = {u: truth.get_unit_spike_train(u, segment_index) for u in truth.unit_ids}
        last = max(train[-1] for train in trains.values())
        found = {}
        for unit, train in trains.items():
            kept = train[rng.random(train.size) < 0.9]
            kept = np.abs(kept + rng.integers(-15, 16, kept.size))
            found[unit] = np.sort(np.append(kept, rng.integers(0, last, train.size // 10)))
        a, b, c, d = list(found)[:4]
        found["merged"] = np.sort(np.append(found.pop(a), found.pop(b)))
        half = rng.random(found[c].size) < 0.6
        found["split1"], found["split2"] = found[c][half], found.pop(c)[~half]
        found["invented"] = np.sort(rng.integers(0, last, 50))
        del found[d]
        segments.append({str(unit): train for unit, train in found.items()})
    return sorting_of(*segments)


@pytest.mark.parametrize(
    ("a", "b", "pairs"),
    [
        ([100], [112], [(0, 0)]),  # the limit is included
        ([100], [113], []),
        ([100], [88], [(0, 0)]),
        ([100], [87], []),
        ([100, 110], [105], [(0, 0)]),  # one event matches once
        ([105], [100, 110], [(0, 0)]),
        ([100, 110], [105, 115], [(0, 0), (1, 1)]),
        ([100, 102, 104], [99, 103], [(0, 0), (1, 1)]),
        ([100, 110, 120], [110, 120, 130], [(0, 0), (1, 1), (2, 2)]),  # nearest first would find two
        ([500, 100], [101, 499], [(1, 0), (0, 1)]),  # in any order; matches come in order of time
        ([], [100], []),
        ([], [], []),
    ],
)
def test_match_events_by_hand(a, b, pairs):
    matches = match_events(np.array(a, dtype=int), np.array(b, dtype=int), DELTA)
    assert matches.dtype == np.int64
    assert [tuple(pair) for pair in matches] == pairs


def test_match_events_of_unsigned_and_of_real_times():
    assert match_events(np.array([3], dtype="uint64"), np.array([1], dtype="uint64"), 5).tolist() == [[0, 0]]
    assert match_events(np.array([0.5, 2.0]), np.array([2.25], dtype="float32"), 0.25).tolist() == [[1, 0]]
    assert match_events(np.array([3], dtype="uint16"), np.array([2.5]), 0.4).size == 0


@pytest.mark.parametrize("seed", range(20))
def test_match_events_finds_the_largest_matching(seed):
    rng = np.random.default_rng(seed)
    a, b = np.sort(rng.integers(0, 600, 60)), np.sort(rng.integers(0, 600, 50))
    possible = np.abs(a[:, None] - b[None, :]) <= DELTA
    largest = np.count_nonzero(maximum_bipartite_matching(csr_matrix(possible)) >= 0)
    matches = match_events(a, b, DELTA)
    assert len(matches) == largest > 30
    assert np.unique(matches[:, 0]).size == np.unique(matches[:, 1]).size == len(matches)
    assert possible[matches[:, 0], matches[:, 1]].all()


@pytest.mark.parametrize(
    ("a", "delta"), [([[1, 2]], 1), ([1.0, math.nan], 1), (["x"], 1), ([1.0], -1), ([1.0], math.nan)]
)
def test_match_events_refuses(a, delta):
    with pytest.raises(SettingError):
        match_events(np.array(a), np.array([1.0]), delta)


def test_scores_by_hand():
    truth = sorting_of({"a": [100, 1000, 2000, 3000], "b": [500, 1500], "c": [7000]})
    tested = sorting_of({7: [105, 1013, 2000, 3012, 4000], 8: [1500, 510], 9: [9000, 9100, 9200]})
    result = compare_sortings(truth, tested)
    # a: 100, 2000 and 3000 match; 1000 is 13 frames off, so one missed, and two false (1013, 4000).
    assert result.units.loc["a"].to_dict() == {
        "tested_unit": 7,
        "num_truth": 4,
        "num_tested": 5,
        "tp": 3,
        "fp": 2,
        "fn": 1,
        "accuracy": 0.5,
        "precision": 0.6,
        "recall": 0.75,
    }
    assert result.units.loc["b", ["tested_unit", "tp", "fp", "fn", "accuracy"]].tolist() == [8, 2, 0, 0, 1.0]
    assert result.units.loc["c", "tested_unit"] is None
    assert result.units.loc["c", ["num_tested", "tp", "fp", "fn", "accuracy"]].tolist() == [0, 0, 0, 1, 0.0]
    assert result.unmatched_units == (9,)
    assert result.num_unmatched_spikes == 3
    assert result.accuracy == 5 / 9
    assert result.precision == 5 / 7
    assert result.recall == 5 / 7
    assert result.accuracy_all_spikes == 5 / 12


def test_the_pairing_is_the_best_as_a_whole():
    # Unit a agrees best with 1 (4 of 5), but b has only 1; a-2 and b-1 together make more.
    truth = sorting_of({"a": [0, 100, 200, 300, 400], "b": [0, 100, 200, 300]})
    tested = sorting_of({1: [0, 100, 200, 300], 2: [100, 200, 300, 400]})
    result = compare_sortings(truth, tested, EvaluationConfig(match_score=0.1))
    assert result.units["tested_unit"].to_dict() == {"a": 2, "b": 1}


@pytest.mark.parametrize(("match_score", "tested_unit"), [(0.5, 1), (0.51, None)])
def test_least_agreement_is_included(match_score, tested_unit):
    truth, tested = sorting_of({"a": [100, 200, 300]}), sorting_of({1: [100, 200, 900]})
    result = compare_sortings(truth, tested, EvaluationConfig(match_score=match_score))
    assert result.units.loc["a", "tested_unit"] == tested_unit
    assert result.unmatched_units == (() if tested_unit else (1,))


def test_no_common_spike_never_pairs():
    truth, tested = sorting_of({"a": [100]}), sorting_of({1: [900]})
    assert compare_sortings(truth, tested, EvaluationConfig(match_score=0.0)).unmatched_units == (1,)


def test_reach_is_a_whole_number_of_frames():
    truth, tested = sorting_of({"a": [100]}, fs=32000.0), sorting_of({1: [112]}, fs=32000.0)
    assert compare_sortings(truth, tested).accuracy == 1.0  # 12.8 frames are 12
    truth, tested = sorting_of({"a": [100]}, fs=32000.0), sorting_of({1: [113]}, fs=32000.0)
    assert compare_sortings(truth, tested).accuracy == 0.0


def reference(truth, tested):
    return compare_sorter_to_ground_truth(
        truth, tested, delta_time=0.4, match_score=0.5, match_mode="hungarian", exhaustive_gt=True
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("block", [50, events.CANDIDATES_PER_BLOCK])
def test_equal_to_spikeinterface(seed, block, monkeypatch):
    monkeypatch.setattr(events, "CANDIDATES_PER_BLOCK", block)
    truth = generate_sorting(
        num_units=12, durations=[20.0, 8.0], firing_rates=20.0, refractory_period_ms=4.0, seed=seed
    )
    tested = perturb(truth, np.random.default_rng(seed))
    expected, result = reference(truth, tested), compare_sortings(truth, tested)
    table = expected.count_score
    assert set(result.units["tested_unit"].dropna()) >= {"5", "6", "7"}
    for name in ("tp", "fn", "fp"):
        assert result.units[name].tolist() == table[name].tolist()
    ours = ["" if unit is None else unit for unit in result.units["tested_unit"]]
    assert ours == expected.hungarian_match_12.tolist()
    performance = expected.get_performance()
    for name in ("accuracy", "precision", "recall"):
        np.testing.assert_allclose(result.units[name], performance[name].astype(float), rtol=1e-12)
    tp, fn, fp = (int(table[name].sum()) for name in ("tp", "fn", "fp"))
    assert result.accuracy == tp / (tp + fn + fp)
    matched = set(expected.hungarian_match_12)
    spikes = tested.count_num_spikes_per_unit(outputs="dict")
    false = sum(count for unit, count in spikes.items() if unit not in matched)
    assert result.num_unmatched_spikes == false > 0
    assert result.accuracy_all_spikes == tp / (tp + fn + fp + false)


def test_bursts_are_where_spikeinterface_counts_a_spike_twice():
    truth, tested = sorting_of({"a": [100, 101, 102]}), sorting_of({"a": [99, 103, 5000]})
    assert reference(truth, tested).count_score.loc["a", "tp"] == 3  # of two spikes in reach
    assert compare_sortings(truth, tested).units.loc["a", "tp"] == 2


@pytest.mark.parametrize("seed", range(5))
def test_in_dense_bursts_spikeinterface_counts_at_least_as_many(seed):
    rng = np.random.default_rng(seed)
    truth, tested = (sorting_of({u: np.sort(rng.integers(0, 3000, 150)) for u in "abc"}) for _ in range(2))
    config = EvaluationConfig(match_score=0.0)
    ours = compare_sortings(truth, tested, config)
    theirs = reference(truth, tested).match_event_count
    for unit, row in ours.units.iterrows():
        possible = np.abs(
            truth.get_unit_spike_train(unit, 0)[:, None]
            - tested.get_unit_spike_train(row["tested_unit"], 0)[None, :]
        )
        largest = np.count_nonzero(maximum_bipartite_matching(csr_matrix(possible <= DELTA)) >= 0)
        assert row["tp"] == largest <= theirs.at[unit, row["tested_unit"]]


def test_segments_do_not_mix():
    truth = sorting_of({"a": [100, 900]}, {"a": [500]})
    tested = sorting_of({1: [100, 500]}, {1: [500, 900]})
    result = compare_sortings(truth, tested, EvaluationConfig(match_score=0.1))
    assert result.units.loc["a", ["tp", "fp", "fn"]].tolist() == [2, 2, 1]


def test_interval_is_half_open_and_edges_are_no_errors():
    # 0.1 s to 0.2 s are the frames 3000 to 6000.
    truth = sorting_of({"a": [1000, 2995, 3000, 4000, 5999, 6000]})
    tested = sorting_of({1: [1005, 3001, 3006, 4000, 5000, 6005, 6006]})
    result = compare_sortings(truth, tested, EvaluationConfig(interval=(0.1, 0.2)))
    # In the truth: 3000, 4000, 5999. The pair 2995-3001 belongs to the time before, 5999-6005 to the
    # time compared; 5000 is false.
    assert result.units.loc["a", ["num_truth", "tp", "fp", "fn"]].tolist() == [3, 3, 1, 0]
    before = compare_sortings(truth, tested, EvaluationConfig(interval=(0.0, 0.1)))
    assert before.units.loc["a", ["num_truth", "tp", "fp", "fn"]].tolist() == [2, 2, 0, 0]
    after = compare_sortings(truth, tested, EvaluationConfig(interval=(0.2, 9.0)))
    assert after.units.loc["a", ["num_truth", "tp", "fp", "fn"]].tolist() == [1, 1, 0, 0]


def test_a_pair_across_the_edge_does_not_lower_the_agreement():
    truth, tested = sorting_of({"a": [2995, 4000]}), sorting_of({1: [3001, 4000]})
    config = EvaluationConfig(interval=(0.1, 0.2), match_score=0.9)
    assert compare_sortings(truth, tested, config).units.loc["a", "tested_unit"] == 1


def test_intervals_that_tile_the_time_add_up():
    truth = generate_sorting(num_units=6, durations=[20.0], firing_rates=20.0, seed=3)
    tested = perturb(truth, np.random.default_rng(3))
    config = EvaluationConfig(match_score=0.01)
    whole = compare_sortings(truth, tested, config).units
    edges = [0.0, 7.0001, 7.5, 30.0]
    parts = [
        compare_sortings(truth, tested, EvaluationConfig(interval=pair, match_score=0.01)).units
        for pair in itertools.pairwise(edges)
    ]
    same = [unit for unit in whole.index if len({part.loc[unit, "tested_unit"] for part in parts}) == 1]
    assert len(same) >= 3
    for name in ("num_truth", "tp", "fp", "fn"):
        assert sum(part.loc[same, name] for part in parts).tolist() == whole.loc[same, name].tolist()


def test_interval_over_segments():
    truth = sorting_of({"a": [100, 2000]}, {"a": [100, 2000]})
    tested = sorting_of({1: [100, 2000]}, {1: [100, 2500]})
    # Segments of 3000 frames (0.1 s): 0.05 s to 0.15 s are 1500.. of the first and ..1500 of the second.
    config = EvaluationConfig(interval=(0.05, 0.15))
    result = compare_sortings(truth, tested, config, num_samples=[3000, 3000])
    assert result.units.loc["a", ["num_truth", "tp", "fp", "fn"]].tolist() == [2, 2, 0, 0]
    later = compare_sortings(truth, tested, EvaluationConfig(interval=(0.1, 0.2)), num_samples=[3000, 3000])
    assert later.units.loc["a", "num_truth"] == 2
    for lengths in (None, [3000]):
        with pytest.raises(SettingError, match="num_samples"):
            compare_sortings(truth, tested, config, num_samples=lengths)


def test_unit_without_spikes_in_the_interval_has_no_score():
    truth = sorting_of({"a": [100], "b": [9000]})
    result = compare_sortings(truth, truth, EvaluationConfig(interval=(0.0, 0.1)))
    assert result.accuracy == 1.0
    assert result.units.loc["a", "recall"] == 1.0
    assert math.isnan(result.units.loc["b", "accuracy"])
    assert result.num_unmatched_spikes == 0


@pytest.mark.parametrize("trains", [{}, {1: []}])
def test_an_empty_tested_sorting_scores_zero(trains):
    truth = sorting_of({"a": [100, 200]})
    tested = sorting_of(trains)
    result = compare_sortings(truth, tested)
    assert (result.accuracy, result.precision, result.recall, result.accuracy_all_spikes) == (0, 0, 0, 0)
    assert result.units.loc["a", ["tp", "fp", "fn"]].tolist() == [0, 0, 2]
    assert result.unmatched_units == tuple(trains)


def test_what_cannot_be_compared():
    truth, tested = sorting_of({"a": [100]}), sorting_of({1: [100]})
    with pytest.raises(LabelsError, match="sampling frequencies: 30000 Hz and 25000 Hz"):
        compare_sortings(truth, sorting_of({1: [100]}, fs=25000.0))
    with pytest.raises(LabelsError, match="segments: 1 and 2"):
        compare_sortings(truth, sorting_of({1: [100]}, {1: [100]}))
    for empty in (sorting_of({}), sorting_of({"a": []})):
        with pytest.raises(LabelsError, match="no spike at all"):
            compare_sortings(empty, tested)
    with pytest.raises(LabelsError, match="between 1 and 2 s"):
        compare_sortings(truth, tested, EvaluationConfig(interval=(1.0, 2.0)))
    for interval in ((-1.0, 2.0), (2.0, 2.0), (0.0, math.nan)):
        with pytest.raises(SettingError, match=r"(?i)interval"):
            compare_sortings(truth, tested, EvaluationConfig(interval=interval))


def test_to_dict_is_json():
    truth = sorting_of({3: [100, 200], 5: [9000], 6: [500]})
    tested = sorting_of({0: [100, 200], 1: [700]})
    result = compare_sortings(truth, tested, EvaluationConfig(interval=(0.0, 0.1)))
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["accuracy"] == 2 / 3
    assert written["unmatched_units"] == [1]
    assert written["units"][0] == {
        "truth_unit": 3,
        "tested_unit": 0,
        "num_truth": 2,
        "num_tested": 2,
        "tp": 2,
        "fp": 0,
        "fn": 0,
        "accuracy": 1.0,
        "precision": 1.0,
        "recall": 1.0,
    }
    assert written["units"][1]["accuracy"] is None
    assert written["units"][2]["tested_unit"] is None


def test_agreement_by_hand():
    a = sorting_of({"x": [100, 200, 300], "y": [5000]})
    b = sorting_of({1: [100, 200, 400], 2: [8000, 8100]})
    result = agreement(a, b)
    assert result.units.to_dict(orient="records") == [
        {"unit_a": "x", "unit_b": 1, "num_a": 3, "num_b": 3, "num_common": 2, "agreement": 0.5}
    ]
    assert result.fraction_units == 2 / 4
    assert result.fraction_spikes == 2 / 7  # 4 + 5 spikes, two of them common


def test_agreement_is_symmetric_with_pairs_across_the_edge():
    a, b = sorting_of({"x": [2995, 4000, 6100]}), sorting_of({1: [3001, 4000]})
    config = EvaluationConfig(interval=(0.1, 0.2), match_score=0.1)
    result, swapped = agreement(a, b, config), agreement(b, a, config)
    assert result.units.loc[0, ["num_a", "num_b", "num_common"]].tolist() == [2, 2, 2]
    assert swapped.units.loc[0, ["num_a", "num_b", "num_common"]].tolist() == [2, 2, 2]
    assert result.fraction_spikes == swapped.fraction_spikes == 1.0
    empty = agreement(sorting_of({}), sorting_of({}))
    assert math.isnan(empty.fraction_spikes)
    assert math.isnan(empty.fraction_units)
    assert agreement(a, sorting_of({})).fraction_spikes == 0.0
