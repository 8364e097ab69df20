"""Suggested changes: units to merge, to remove and to split are found, kept, shown and accepted."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from commands import assert_told, run, succeed
from test_trust import RATE, Memory, poisson, shape_of, trains_of

import spikewise
from spikewise.core.errors import SettingError
from spikewise.output.trust.divisions import find_division
from spikewise.output.trust.estimates import estimate_units
from spikewise.output.trust.injection import InjectedSpikes
from spikewise.output.trust.mixtures import find_mixtures
from spikewise.output.trust.relations import relate_units
from spikewise.output.trust.shapes import _phases, measure_shapes
from spikewise.output.trust.stretches import choose_stretches
from spikewise.output.trust.suggestions import as_curation, suggest, table_of
from spikewise.output.trust.trial import Trial
from spikewise.output.unit_table import SUGGESTION_COLUMNS, read_suggestions

SECONDS = 40
LARGE = np.array([9.0, 6.0, 3.0, 1.0])
OTHER = np.array([3.0, 7.0, 9.0, 2.0])
FEW_CHANNELS = np.array([0, 1, 2, 3])


def traces_with(rng, *spikes) -> Memory:
    """Noise of 1 on four channels, with bumps; each of `spikes` is (frames, sizes on the channels)."""
    values = rng.normal(size=(SECONDS * 30000, 4)).astype(np.float32)
    bump = -np.exp(-0.5 * ((np.arange(60) - 30) / 6) ** 2)
    for frames, sizes in spikes:
        for frame, size in zip(frames, np.broadcast_to(sizes, (len(frames), 4)), strict=True):
            values[frame - 30 : frame + 30] += bump[:, None] * size
    return Memory(values)


def inside(frames: np.ndarray) -> np.ndarray:
    return frames[(frames > 3000) & (frames < SECONDS * 30000 - 3000)]


def measured(traces, trains, seed=0):
    """Shapes, relations and mixtures of the units of some traces."""
    stretches = choose_stretches([SECONDS * 30000], RATE)
    near = [FEW_CHANNELS] * trains.num_units
    shapes = measure_shapes(traces, trains, stretches, near, np.random.default_rng(seed))
    mixtures = find_mixtures(traces, trains, shapes, stretches, [SECONDS * 30000])
    return shapes, relate_units(shapes, trains, 4, mixtures)


def perfect(num_units: int) -> Trial:
    """A trial in which all 100 added spikes of each unit were found."""
    units = np.repeat(np.arange(num_units), 100)
    zeros = np.zeros(len(units), np.int64)
    injected = InjectedSpikes(zeros, np.arange(len(units)) * 1000, units, zeros, np.ones(len(units)))
    none = np.empty(0, np.int64)
    takes = np.zeros((num_units, num_units), np.int64)
    return Trial(injected, np.ones(len(units)), takes, none, none, none, none, none)


def suggested(traces, trains):
    """The changes that are suggested, and the estimates."""
    _, relations = measured(traces, trains)
    trial = perfect(trains.num_units)
    estimates = estimate_units(trial, trains, relations, [SECONDS * 30000])
    ids = [f"u{unit}" for unit in range(trains.num_units)]
    return suggest(estimates, trial, trains.counts(), relations, ids), estimates, relations


def test_a_unit_of_two_neurons_is_split_as_it_should_be():
    rng = np.random.default_rng(1)
    one, two, third = (inside(poisson(rng, rate, SECONDS)) for rate in (15, 10, 12))
    traces = traces_with(rng, (one, LARGE), (two, OTHER), (third, LARGE[::-1]))
    both = np.sort(np.concatenate([one, two]))
    found, estimates, relations = suggested(traces, trains_of(both, third))
    assert [(change.change, change.units) for change in found] == [("split", (0,))]
    (split,) = found
    assert split.probability > 0.95
    assert "two shapes" in split.reason
    assert split.accuracy_after > 0.9 > split.accuracy_before
    share = len(two) / len(both)
    assert split.accuracy_before == pytest.approx(1 - share, abs=0.05)
    assert estimates[0].precision.value == pytest.approx(1 - share, abs=0.05)
    assert 1 not in relations.mixtures
    curation = as_curation(found, ["u0", "u1"])
    (part,) = curation["splits"][0]["indices"]
    is_two = np.isin(both[part], two)
    assert max(is_two.mean(), 1 - is_two.mean()) > 0.97
    assert len(part) in (pytest.approx(len(two), rel=0.05), pytest.approx(len(one), rel=0.05))


def test_a_neuron_whose_spikes_have_two_sizes_is_not_split():
    rng = np.random.default_rng(2)
    own = inside(poisson(rng, 40, SECONDS))
    is_small = rng.random(len(own)) < 0.4
    sizes = np.where(is_small[:, None], 0.5 * LARGE, LARGE)
    found, _, relations = suggested(traces_with(rng, (own, sizes)), trains_of(own))
    assert relations.mixtures[0].smaller_share == pytest.approx(is_small.mean(), abs=0.03)
    assert relations.mixtures[0].probability < 0.1  # both keep each other's refractory period
    assert found == []
    # It moved in the middle of the recording: the shapes are two, but never at the same time.
    sizes = np.where((own < own[len(own) // 2])[:, None], LARGE, OTHER)
    shapes, relations = measured(traces_with(rng, (own, sizes)), trains_of(own))
    assert shapes[0].division is not None
    assert relations.mixtures == {}


@pytest.mark.parametrize("how", ["at random", "by time", "by size"])
def test_parts_of_one_neuron_are_merged_and_two_neurons_are_not(how):
    rng = np.random.default_rng(3)
    own, other = inside(poisson(rng, 30, SECONDS)), inside(poisson(rng, 20, SECONDS))
    factor = rng.normal(1, 0.1, len(own))
    traces = traces_with(rng, (own, LARGE * factor[:, None]), (other, 0.75 * LARGE + 0.35 * OTHER))
    is_first = {"at random": rng.random(len(own)) < 0.5, "by time": own < own.mean(), "by size": factor < 1}[
        how
    ]
    found, estimates, _ = suggested(traces, trains_of(own[is_first], own[~is_first], other))
    assert [(change.change, set(change.units)) for change in found] == [("merge", {0, 1})]
    (merge,) = found
    assert merge.accuracy_before == pytest.approx(0.5, abs=0.06)
    assert merge.accuracy_after > 0.9
    assert ("hardly fire" in merge.reason) == (how == "by time")
    assert estimates[2].accuracy[0] > 0.97
    assert as_curation(found, [7, 8, 9])["merges"] == [{"unit_ids": [[7, 8, 9][u] for u in merge.units]}]


def test_a_copy_is_removed_and_the_table_has_the_largest_gain_first():
    rng = np.random.default_rng(4)
    own, parts = poisson(rng, 10, 200), poisson(rng, 20, 200)
    is_first = rng.random(len(parts)) < 0.5
    copy = np.sort(own[rng.random(len(own)) < 0.9] + 20)
    trains = trains_of(own, copy, parts[is_first], parts[~is_first])
    shapes = [shape_of([0, 1, 2, 3]), shape_of([0, 1, 2, 3], peak=60), shape_of([5]), shape_of([5])]
    relations = relate_units(shapes, trains, 6)
    trial = perfect(4)
    estimates = estimate_units(trial, trains, relations, [200 * 30000])
    found = suggest(estimates, trial, trains.counts(), relations, [1, 2, 3, 4])
    table = table_of(found, [1, 2, 3, 4])
    assert list(table.columns) == list(SUGGESTION_COLUMNS)
    assert dict(zip(table["change"], table["unit_ids"], strict=True))["remove"] == "2 1"
    assert sorted(table["change"]) == ["merge", "remove"]
    assert table["gain"].is_monotonic_decreasing
    np.testing.assert_allclose(table["gain"], table["accuracy_after"] - table["accuracy_before"])
    assert as_curation(found, [1, 2, 3, 4])["removed"] == [2]


def test_noise_and_overlaps_do_not_divide_a_unit():
    rng = np.random.default_rng(5)
    shape = shape_of([0, 1, 2]).waveform
    windows = shape * rng.normal(1, 0.15, (200, 1, 1)) + rng.normal(size=(200, *shape.shape))
    assert find_division(windows, 40, RATE) is None
    for index in range(0, 200, 4):  # a quarter of them overlaps with another spike, anywhere
        windows[index] += np.roll(shape, rng.integers(-40, 40), axis=0)[:, ::-1]
    assert find_division(windows, 40, RATE) is None
    other = windows.copy()
    other[::3] += 8 * np.exp(-0.5 * ((np.arange(96) - 44) / 5) ** 2)[:, None] * np.array([0, 0, 1])
    division = find_division(other, 40, RATE)
    assert np.mean(division.is_second == (np.arange(200) % 3 == 0)) in (
        pytest.approx(1, abs=0.1),
        pytest.approx(0, abs=0.1),
    )
    np.testing.assert_array_equal(division.assign(other), division.is_second)
    assert _phases(shape).shape == (8, *shape.shape)


@pytest.fixture(scope="module")
def result(tetrode, trained, tmp_path_factory):
    """A sort of the tetrode with its tables; no test changes it."""
    output = tmp_path_factory.mktemp("suggested") / "sorted"
    options = {"model": trained, "output": output, "report": False, "auto_merge": True}
    spikewise.sort(tetrode.recording, **options)
    return output


@pytest.fixture
def copied(result, tmp_path):
    """A copy without curation, in which units 0 and 1 are suggested to be merged, and unit 2 to be split."""
    folder = shutil.copytree(result, tmp_path / "sorted")
    (folder / "curation.json").unlink()
    ids = spikewise.load_result(folder).sorting.unit_ids.tolist()
    rows = [
        ("merge", f"{ids[0]} {ids[1]}", 0.9, 0.5, 0.9, 0.4, "their waveforms are the same"),
        ("split", f"{ids[2]}", 0.8, 0.6, 0.8, 0.2, "its spikes have two shapes"),
    ]
    pd.DataFrame(rows, columns=list(SUGGESTION_COLUMNS)).to_csv(folder / "suggestions.csv", index=False)
    curation = json.loads((folder / "suggestions.json").read_text())
    curation["merges"] = [{"unit_ids": ids[:2]}]
    curation["splits"] = [{"unit_id": ids[2], "mode": "indices", "indices": [[0, 2, 4]]}]
    (folder / "suggestions.json").write_text(json.dumps(curation))
    return folder


def test_a_sort_keeps_its_suggestions_and_auto_merge_accepts_them(result, tetrode):
    table = read_suggestions(result)
    assert list(table.columns) == list(SUGGESTION_COLUMNS)
    accepted = json.loads((result / "curation.json").read_text())
    suggestions = json.loads((result / "suggestions.json").read_text())
    assert accepted["merges"] == suggestions["merges"]
    assert accepted["removed"] == suggestions["removed"]
    assert accepted["splits"] == []
    with pytest.raises(SettingError, match="without output"):
        spikewise.sort(tetrode.recording, model=result / "model.safetensors", auto_merge=True)


def test_suggestions_are_accepted_and_applied(capsys, copied):
    loaded = spikewise.load_result(copied)
    ids = loaded.sorting.unit_ids.tolist()
    assert loaded.suggestions["change"].tolist() == ["merge", "split"]
    assert loaded.curated.unit_ids.tolist() == ids
    told = succeed(capsys, "curate", copied)
    assert told.summary["changes"] == 2
    assert f"merge {ids[0]} {ids[1]}: their waveforms are the same" in told.out
    counts = loaded.curated.count_num_spikes_per_unit()
    before = loaded.sorting.count_num_spikes_per_unit()
    assert len(counts) == len(ids)  # one fewer, one more
    assert sorted(counts.values()) == sorted(
        [before[ids[0]] + before[ids[1]], 3, before[ids[2]] - 3, *(before[unit] for unit in ids[3:])]
    )
    assert_told(run(capsys, "curate", copied), "has a curation already", "--overwrite")
    merged = loaded.curate(["merge"], overwrite=True)
    assert len(merged.unit_ids) == len(ids) - 1
    (copied / "curation.json").unlink()
    (copied / "suggestions.csv").unlink()
    assert_told(run(capsys, "curate", copied), "has no suggestions", "spikewise validate")


def test_the_report_shows_suggestions_and_says_which_file_is_damaged(capsys, copied, tmp_path):
    succeed(capsys, "report", copied, {"--output": tmp_path / "report.html"})
    page = (tmp_path / "report.html").read_text()
    assert "Suggested changes: 2" in page
    assert "its spikes have two shapes" in page
    (copied / "suggestions.csv").write_text("change,unit_ids\nmerge,1 2\n")
    arguments = {"--output": tmp_path / "other.html"}
    assert_told(run(capsys, "report", copied, arguments), "suggestions.csv", "no column probability")
