"""How far units can be trusted: the estimates stand against the truth, and the parts against exact cases."""

import numpy as np
import pandas as pd
import pytest
import spikeinterface
from commands import QUICK, Simulated, assert_told, run, succeed

import spikewise
from spikewise.data.labels.events import match_events
from spikewise.output.trust.estimates import contamination, count_violations
from spikewise.output.trust.injection import InjectedSpikes, InjectedTraces, plan_injection
from spikewise.output.trust.intervals import Fraction, accuracy_of, combine
from spikewise.output.trust.relations import relate_units
from spikewise.output.trust.shapes import UnitShape, _phases, fit_upper_half
from spikewise.output.trust.stretches import Stretch, TrainsOfGroup, choose_stretches
from spikewise.output.unit_table import COLUMNS, read_units

RATE = 30000.0


class Memory:
    """Traces that are held in memory, as a reader gives them."""

    def __init__(self, values: np.ndarray):
        self.values = values.astype(np.float32)
        self.num_segments, self.num_channels, self.sampling_frequency = 1, values.shape[1], RATE

    def num_samples(self, segment_index: int) -> int:
        return len(self.values)

    def read(self, segment_index: int, start: int, stop: int) -> np.ndarray:
        padded = np.pad(self.values, ((max(0, -start), max(0, stop - len(self.values))), (0, 0)))
        first = max(0, -start) + start
        return padded[first : first + stop - start]


def shape_of(channels, size: float = 8.0, peak: int = 40, variation: float = 0.1) -> UnitShape:
    """A bump on some channels; the spike is at sample 40 of 96."""
    times = np.arange(96)
    bump = -size * np.exp(-0.5 * ((times - peak) / 6) ** 2)
    template = bump[:, None] * np.linspace(1, 0.5, len(channels))
    return UnitShape(np.array(channels), _phases(template), 40, 1.0, variation, 0.05, 0.0)


def trains_of(*trains) -> TrainsOfGroup:
    return TrainsOfGroup([[np.asarray(train, dtype=np.int64)] for train in trains], RATE)


def poisson(rng, rate_hz: float, seconds: float, refractory_ms: float = 4.0) -> np.ndarray:
    """A train with a refractory period, in frames."""
    gaps = refractory_ms / 1000 + rng.exponential(1 / rate_hz, size=int(3 * rate_hz * seconds) + 20)
    times = np.cumsum(gaps)
    return np.round(times[times < seconds - 0.01] * RATE).astype(np.int64)


def test_accuracy_follows_from_precision_and_recall():
    tp, fp, fn = 80, 20, 10
    assert accuracy_of(tp / (tp + fp), tp / (tp + fn)) == pytest.approx(tp / (tp + fp + fn))
    assert accuracy_of(1.0, 1.0) == 1.0
    assert accuracy_of(0.0, 1.0) == accuracy_of(1.0, 0.0) == 0.0


def test_intervals_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(400):
        true_precision, true_recall = rng.uniform(0.5, 0.98, 2)
        parts = [Fraction.of(rng.binomial(100, true) / 100, 100) for true in (true_precision, true_recall)]
        value, low, high = combine(*parts)
        assert low <= value <= high
        inside += low <= accuracy_of(true_precision, true_recall) <= high
    assert 0.85 <= inside / 400 <= 0.95


def test_added_spikes_are_where_they_should_be_and_however_traces_are_cut():
    rng = np.random.default_rng(2)
    traces = Memory(rng.normal(size=(3000, 4)))
    shape = shape_of([2, 0])
    spikes = InjectedSpikes(*(np.array(part) for part in ([0, 0], [500, 1500], [0, 0], [0, 4], [1.0, 0.5])))
    added = InjectedTraces(traces, spikes, [shape])
    whole = added.read(0, 0, 3000)
    expected = traces.values.copy()
    expected[460:556, [2, 0]] += shape.phases[0]
    expected[1460:1556, [2, 0]] += 0.5 * shape.phases[4]
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    for start, stop in ((0, 470), (490, 520), (1400, 1501), (1500, 3100), (-50, 600)):
        inside = slice(max(0, start), min(3000, stop))
        got = added.read(0, start, stop)[inside.start - start : inside.stop - start]
        np.testing.assert_array_equal(got, whole[inside])
    # A phase of half a sample moves the peak by half a sample.
    centres = [np.average(np.arange(96), weights=np.abs(shape.phases[k][:, 0])) for k in (0, 4)]
    assert centres[1] - centres[0] == pytest.approx(0.5, abs=0.01)


def test_added_spikes_keep_the_refractory_period_and_never_overlap():
    rng = np.random.default_rng(3)
    trains = trains_of(poisson(rng, 12, 20, 5.0), poisson(rng, 5, 20, 3.0), poisson(rng, 8, 20))
    shapes = [shape_of([0, 1]), shape_of([1, 2]), shape_of([5, 6])]
    stretches = choose_stretches([20 * 30000], RATE)
    spikes = plan_injection(shapes, trains, stretches, np.random.default_rng(4))
    again = plan_injection(shapes, trains, stretches, np.random.default_rng(4))
    np.testing.assert_array_equal(spikes.sample_index, again.sample_index)
    np.testing.assert_array_equal(spikes.amplitude, again.amplitude)
    counts = np.bincount(spikes.unit_index)
    assert (counts > 100).all()
    for unit in range(3):
        own = trains.frames[unit][0]
        added = spikes.sample_index[spikes.unit_index == unit]
        gaps = np.abs(added[:, None] - own).min(axis=1)
        assert gaps.min() >= np.quantile(np.diff(own), 0.02) - 1
        assert spikes.amplitude[spikes.unit_index == unit].mean() == pytest.approx(1.0, abs=0.05)
    near = np.isin(spikes.unit_index, [0, 1])  # they share a channel; the third is far away
    assert np.diff(spikes.sample_index[near]).min() >= round(3.2 * RATE / 1000)
    assert np.diff(spikes.sample_index).min() < round(3.2 * RATE / 1000)


def test_more_spikes_are_added_where_a_unit_fires_more():
    trains = trains_of(np.arange(300_000, 590_000, 900))  # silent for 10 s, then active
    stretches = [Stretch(0, 0, 300_000), Stretch(0, 300_000, 600_000)]
    spikes = plan_injection([shape_of([0])], trains, stretches, np.random.default_rng(5))
    late = np.count_nonzero(spikes.sample_index >= 300_000)
    assert late > 5 * (len(spikes) - late) > 0


def test_a_gaussian_is_found_though_small_values_are_missing():
    rng = np.random.default_rng(6)
    values = rng.normal(1.0, 0.1, 20_000)
    mean, spread = fit_upper_half(values)
    assert (mean, spread) == (pytest.approx(1.0, abs=0.01), pytest.approx(0.1, abs=0.01))
    mean, spread = fit_upper_half(values[values > 0.9])  # a sixth is missing
    assert (mean, spread) == (pytest.approx(1.02, abs=0.015), pytest.approx(0.1, abs=0.015))


def test_refractory_violations_tell_the_false_spikes_of_another_neuron():
    rng = np.random.default_rng(7)
    own, other = poisson(rng, 20, 3000), poisson(rng, 4, 3000)
    mixed = np.sort(np.concatenate([own, other]))
    gaps = np.diff(mixed)
    mixed = np.delete(mixed, 1 + np.flatnonzero(gaps < 0.0005 * RATE))  # the detector keeps one of them
    count = count_violations([mixed], RATE)
    false = contamination(count, len(mixed), round(3000 * RATE), RATE)
    assert false == pytest.approx(len(other) / len(mixed), abs=0.03)
    assert count_violations([own], RATE) == 0
    assert contamination(0, len(own), round(3000 * RATE), RATE) == 0


def test_copies_and_parts_of_one_neuron_are_found_and_other_pairs_are_not():
    rng = np.random.default_rng(8)
    neuron, other, third = (poisson(rng, rate, 200) for rate in (15, 10, 10))
    is_first = rng.random(len(neuron)) < 0.6
    copy = np.sort(other[rng.random(len(other)) < 0.9] + 20)
    trains = trains_of(neuron[is_first], neuron[~is_first], other, copy, third)
    shapes = [
        shape_of([0, 1]),
        shape_of([0, 1], size=7.0),
        shape_of([0, 1, 2, 3]),
        shape_of([0, 1, 2, 3], peak=60),
        shape_of([0, 1], size=6.0),
    ]
    found = relate_units(shapes, trains, 6)
    assert found.copy_of.tolist() == [-1, -1, -1, 2, -1]
    assert found.shared[3, 2] > 0.95
    assert found.parts[0, 1] > 0.99
    assert found.partners(0).tolist() == [1]
    assert found.parts[0, 4] < 0.01  # alike, but two neurons: they violate each other's refractory period
    assert found.shared[0, 2] < 0.05


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> Simulated:
    """A tetrode on which some spikes are missed and some false."""
    options = {"num-units": 6, "duration-s": 30, "noise-uv": 12, "seed": 3}
    return Simulated(tmp_path_factory.mktemp("noisy") / "made", **options)


@pytest.fixture(scope="module")
def sorted_noisy(noisy, tmp_path_factory):
    """The result of a sort of it, in a folder."""
    output = tmp_path_factory.mktemp("noisy") / "out"
    labels = {"labels": noisy.truth, "label_interval": (0.0, 10.0), "unit_steps": 150, "report": False}
    return spikewise.sort(noisy.recording, output=output, **labels)


def table_of(result) -> pd.DataFrame:
    """The table in the folder of a result."""
    return read_units(result.folder, result.sorting.unit_ids)


def test_the_estimates_of_a_sort_are_near_the_truth(noisy, sorted_noisy):
    table = table_of(sorted_noisy)
    assert list(table.columns) == list(COLUMNS)
    truth = spikewise.evaluate(noisy.truth, sorted_noisy.sorting).units
    true = truth.set_index("tested_unit").loc[list(table["unit_id"])]
    assert true["accuracy"].min() < 0.9 < true["accuracy"].max()  # else the test shows little
    for name, most in (("accuracy", 0.05), ("precision", 0.04), ("recall", 0.05)):
        errors = table[f"estimated_{name}"].to_numpy() - true[name].to_numpy()
        assert np.abs(errors).mean() < most, name
        assert (table[f"estimated_{name}_low"] <= table[f"estimated_{name}"]).all()
        assert (table[f"estimated_{name}_high"] >= table[f"estimated_{name}"]).all()
    order = pd.Series(table["estimated_accuracy"].to_numpy()).corr(
        pd.Series(true["accuracy"].to_numpy()), method="spearman"
    )
    assert order > 0.8


def test_each_spike_has_a_probability_that_tells_right_from_false(noisy, sorted_noisy):
    probabilities = np.load(sorted_noisy.folder / "probabilities.npy", allow_pickle=False)
    spikes = sorted_noisy.sorting.to_spike_vector()
    assert probabilities.dtype == np.float32
    assert probabilities.shape == spikes.shape
    assert ((probabilities > 0) & (probabilities < 1)).all()
    truth = spikeinterface.load(noisy.truth)
    is_right = np.zeros(len(spikes), bool)
    for unit, unit_id in enumerate(sorted_noisy.sorting.unit_ids):
        of_unit = np.flatnonzero(spikes["unit_index"] == unit)
        true = truth.get_unit_spike_train(unit_id)
        pairs = match_events(spikes["sample_index"][of_unit], true, 12)
        is_right[of_unit[pairs[:, 0]]] = True
        mean = table_of(sorted_noisy)["estimated_precision"][unit]
        assert probabilities[of_unit].mean() == pytest.approx(mean, abs=0.02)
    assert np.count_nonzero(~is_right) > 10
    # Calibrated: of the doubtful spikes about as many are false as the probabilities say.
    doubtful = np.argsort(probabilities)[: len(probabilities) // 10]
    false = np.count_nonzero(~is_right[doubtful])
    assert false == pytest.approx((1 - probabilities[doubtful]).sum(), rel=0.6)
    assert false > 0.3 * np.count_nonzero(~is_right)


def test_the_table_is_kept_and_the_same_seed_gives_it_again(noisy, sorted_noisy, capsys, tmp_path):
    folder = sorted_noisy.folder
    kept = read_units(folder, sorted_noisy.sorting.unit_ids)
    assert kept.set_index("unit_id")["estimated_recall"].equals(sorted_noisy.units["estimated_recall"])
    again = spikewise.validate(folder, noisy.recording)
    pd.testing.assert_frame_equal(again, kept, check_dtype=False, rtol=1e-4)
    other = spikewise.validate(folder, noisy.recording, seed=77)
    assert (other["estimated_accuracy"] != again["estimated_accuracy"]).any()
    written = tmp_path / "table.csv"
    told = succeed(capsys, "validate", folder, {"--recording": noisy.recording, "--output": written})
    assert told.summary["units"] == len(again)
    num_good = int((again["estimated_accuracy"] >= 0.9).sum())
    assert told.summary["good"] == num_good
    assert f"{len(again)} units, {num_good} expected above 0.9" in told.out
    assert written.read_text() == (folder / "units.csv").read_text()
    properties = spikeinterface.load(folder / "sorting").get_property("estimated_accuracy")
    np.testing.assert_array_equal(properties, again["estimated_accuracy"])


def test_the_spikes_are_found_again_as_in_the_sort(noisy, sorted_noisy, tmp_path):
    """Where the network alone decides about spikes, and where the traces decide, too."""
    given = {"model": sorted_noisy.model, "output": tmp_path / "out", "report": False}
    plain = table_of(spikewise.sort(noisy.recording, explain=False, **given))
    again = spikewise.validate(tmp_path / "out", noisy.recording)
    pd.testing.assert_frame_equal(again, plain, check_dtype=False, rtol=1e-6)
    explained = table_of(sorted_noisy)
    assert not np.allclose(explained["estimated_recall"], plain["estimated_recall"], atol=0.01)


def test_exports_carry_the_estimates_and_keep_good_units(noisy, sorted_noisy, tmp_path):
    table = table_of(sorted_noisy)
    spikewise.export_phy(sorted_noisy, noisy.recording, tmp_path / "all", traces="none")
    for name in ("group", "KSLabel"):
        labels = pd.read_csv(tmp_path / "all" / f"cluster_{name}.tsv", sep="\t")[name]
        assert labels.tolist() == ["good" if v == "good" else "mua" for v in table["verdict"]]
    assert (tmp_path / "all" / "cluster_ContamPct.tsv").exists()
    expected = pd.read_csv(tmp_path / "all" / "cluster_estimated_accuracy.tsv", sep="\t")
    np.testing.assert_allclose(expected["estimated_accuracy"], table["estimated_accuracy"], atol=6e-4)
    kept = spikewise.export_phy(sorted_noisy, noisy.recording, tmp_path / "good", traces="none", keep="good")
    is_good = (table["verdict"] == "good").to_numpy()
    assert 0 < is_good.sum() < len(is_good)
    assert kept.num_units == is_good.sum()
    assert kept.num_spikes == table["num_spikes"][is_good].sum()


def test_a_table_of_another_result_or_a_missing_one_is_an_error(noisy, sorted_noisy, capsys, tmp_path):
    folder = sorted_noisy.folder
    recording = {"--recording": noisy.recording}
    assert_told(run(capsys, "validate", folder, recording), "units.csv", "exists", "--overwrite")
    text = (folder / "units.csv").read_text()
    try:
        (folder / "units.csv").write_text(text.replace("unit_id", "unit"))
        report = {"-o": tmp_path / "report.html"}
        assert_told(run(capsys, "report", folder, report), "units.csv", "no column unit_id", "validate")
        succeed(capsys, "validate", folder, recording, "--overwrite")  # as the message says
        assert table_of(sorted_noisy)["verdict"].isin(["good", "usable", "poor"]).all()
        (folder / "units.csv").unlink()
        export = {"-o": tmp_path / "phy", "--keep": "good", **recording}
        assert_told(run(capsys, "export", "phy", folder, export), "no units.csv", "spikewise validate")
    finally:
        (folder / "units.csv").write_text(text)
    output = {"-o": tmp_path / "t.csv"}
    assert_told(run(capsys, "validate", noisy.truth, recording), "No file is named", "--output")
    assert_told(run(capsys, "validate", tmp_path / "none", recording | output), "none")


def test_a_sort_without_the_estimates_has_no_table(tetrode, trained, tmp_path):
    spikewise.sort(tetrode.recording, model=trained, output=tmp_path / "out", trust=False, report=False)
    assert not (tmp_path / "out" / "units.csv").exists()


def test_the_units_of_another_sorter_are_judged(tetrode):
    """It finds all spikes of one unit, half of those of the next, and adds false ones to the third."""
    truth = spikeinterface.load(tetrode.truth)
    rng = np.random.default_rng(9)
    first, second, third = (truth.get_unit_spike_train(unit) for unit in truth.unit_ids)
    false = np.sort(rng.integers(1000, 7 * 30000, size=len(third) // 2))
    trains = {"a": first, "b": second[::2], "c": np.unique(np.concatenate([third, false]))}
    sorting = spikeinterface.NumpySorting.from_unit_dict([trains], RATE)
    settings = {name.strip("-").replace("-", "_"): value for name, value in QUICK.items()}
    table = spikewise.validate(sorting, tetrode.recording, **settings).set_index("unit_id")
    assert table.loc["a", "estimated_accuracy"] > 0.9
    assert table.loc["b", "estimated_recall"] == pytest.approx(0.5, abs=0.15)
    assert table.loc["c", "estimated_precision"] == pytest.approx(2 / 3, abs=0.15)
    assert table.loc["a", "verdict"] == "good"
    assert table.loc["b", "verdict"] == "poor"
