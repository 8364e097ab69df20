"""The studies of the paper's experiments."""

from types import SimpleNamespace

import numpy as np
import pytest
from paper_data import made_set

from spikewise.core.errors import WaveformsError
from spikewise.papers.cnn1d import studies as paper_studies
from spikewise.papers.cnn1d.config import PapersConfig
from spikewise.papers.cnn1d.experiments import run_cnn_paper
from spikewise.papers.cnn1d.runs import division_of
from spikewise.papers.cnn1d.studies import draw_noise, make_pairs, take_points
from spikewise.single_channel.config import WAVEFORM_PRESETS
from spikewise.single_channel.training_windows import shift_with_zeros


@pytest.fixture(scope="module")
def item(tmp_path_factory):
    return made_set(tmp_path_factory.mktemp("sets"), "C_Easy1_noise005")


def test_pairs_are_two_units_with_their_lag_and_size():
    generator = np.random.default_rng(0)
    means = generator.normal(size=(3, 64)).cumsum(axis=1)
    lag, ratio = generator.uniform(0, 64, 300), generator.uniform(0.5, 1, 300)
    waveforms, first, second = make_pairs(means, np.zeros((300, 64)), lag, ratio, generator)
    assert (first != second).all()
    assert {*zip(first, second, strict=True)} == {(a, b) for a in range(3) for b in range(3) if a != b}
    later = waveforms - means[first]
    np.testing.assert_allclose(later, ratio[:, None] * shift_with_zeros(means[second], lag), atol=1e-4)
    before = np.arange(64) < lag[:, None] - 2
    assert np.abs(later[before]).max() < 1e-4


@pytest.mark.parametrize(
    ("answers", "both_right", "one_right", "second_named"),
    [
        (lambda first, second, other: (first, second), 100, 100, 100),
        (lambda first, second, other: (second, first), 100, 100, 100),
        (lambda first, second, other: (first, other), 0, 100, 100),
        (lambda first, second, other: (second, np.full_like(first, -1)), 0, 100, 0),
        (lambda first, second, other: (other, second), 0, 0, 100),
    ],
)
def test_answers_to_pairs_are_scored(item, monkeypatch, answers, both_right, one_right, second_named):
    drawn = {}

    def remember(*given):
        waveforms, first, second = make_pairs(*given)
        drawn["units"] = (first, second, 3 - first - second)
        return waveforms, first, second

    class Classifier:
        def classify(self, waveforms):
            labels, second_labels = answers(*drawn["units"])
            return SimpleNamespace(labels=labels, second_labels=second_labels)

    monkeypatch.setattr(paper_studies, "make_pairs", remember)
    monkeypatch.setattr(paper_studies, "_trained_on_half", lambda *_: (Classifier(), None))
    shares = paper_studies.study_pairs(item, ["default"], 0)
    pairs = shares[shares["ratio_to"] > 0]
    assert len(pairs) == 2 * 8
    assert (pairs["both_right"] == both_right).all()
    assert (pairs["one_right"] == one_right).all()
    assert (pairs["second_named"] == second_named).all()
    assert (shares[shares["ratio_to"] == 0]["both_right"] == 0).all()


@pytest.mark.slow
def test_most_pairs_a_third_of_a_waveform_apart_are_told(tmp_path):
    item = made_set(tmp_path, "C_Easy1_noise005", duration_s=20.0)
    pairs = paper_studies.study_pairs(item, ["default", "paper"], 0)
    apart = pairs[(pairs["ratio_from"] == 0.75) & pairs["lag_from"].between(16, 31)].groupby("method").mean()
    assert apart.loc["default", "both_right"] > 60
    assert apart.loc["paper", "both_right"] == 0
    assert apart.loc["paper", "one_right"] > 60


def test_noise_is_taken_from_where_there_is_no_spike():
    signal, index = np.zeros(2000), np.array([100, 300, 1500])
    for begin in index:
        signal[begin : begin + 64] = 1
    noise = draw_noise(signal, index, 64, 500, np.random.default_rng(0))
    assert noise.shape == (500, 64)
    assert not noise.any()
    exact = np.zeros(192)
    exact[[0, 63, 128, 191]] = 1
    assert not draw_noise(exact, np.array([0, 128]), 64, 5, np.random.default_rng(0)).any()
    with pytest.raises(WaveformsError, match="64 samples without a spike"):
        draw_noise(signal[:190], np.array([0, 60, 120]), 64, 5, np.random.default_rng(0))


def test_fewer_points():
    waveforms = np.random.default_rng(0).normal(size=(5, 64))
    np.testing.assert_array_equal(take_points(waveforms, 64), waveforms)
    np.testing.assert_array_equal(take_points(waveforms, 16), waveforms[:, ::4])
    line = np.linspace(0, 63, 64)[None]
    np.testing.assert_allclose(take_points(line, 48), np.arange(48)[None] * 64 / 48, atol=1e-5)


def test_studies_of_a_small_set(tmp_path, monkeypatch):
    quick = {"epochs": 3, "windows_per_epoch": 1000}
    monkeypatch.setitem(WAVEFORM_PRESETS, "default", WAVEFORM_PRESETS["default"] | quick)
    config = PapersConfig(
        sets=("C_Easy1_noise015",), methods=("default",), duration_s=5.0, num_seeds=1, experiments=(6,),
        num_jobs=1,
    )  # fmt: skip
    results = run_cnn_paper(tmp_path / "out", None, config)
    studies, item = results.studies, results.sets[0]
    _, test = division_of(item, 6, 0, 0)
    counts = (
        studies["confusion"].pivot(index="true_unit", columns="predicted_unit", values="count").to_numpy()
    )
    assert counts.sum() == len(test)
    right = 100 * np.trace(counts) / len(test)
    assert results.rows["accuracy"].item() == pytest.approx(right, abs=1e-3)
    wrong = studies["misclassified"]
    assert (wrong["kind"] == "wrong").sum() == len(test) - np.trace(counts)
    assert (wrong["kind"] == "mean").sum() == 3
    is_wrong = wrong["kind"] == "wrong"
    assert (wrong["true_unit"] != wrong["predicted_unit"])[is_wrong].all()
    assert studies["losses"]["epoch"].tolist() == [1, 2, 3]
    assert studies["losses"]["loss"].iloc[-1] < studies["losses"]["loss"].iloc[0]
    few = studies["labels_per_unit"]
    assert few["num_test"].nunique() == 1
    assert few["labels_per_unit"].tolist() == [5, 10, 20, 40]  # each at most half of about 100
    assert few["accuracy"].iloc[-1] > 85
    points = studies["sampling_points"].set_index("num_points")
    assert points.loc[16, "published"] == 99.14
    assert points.loc[64, "accuracy"] > 90
    pairs = studies["overlapping_pairs"]
    two = pairs[pairs["ratio_to"] > 0]
    assert (two["both_right"] <= two["second_named"] + 1e-9).all()
    assert two["one_right"].mean() > 80
    assert pairs[pairs["ratio_to"] == 0]["both_right"].eq(0).all()
    assert pairs[pairs["ratio_to"] == 0]["second_named"].mean() < 30
    page = results.page.read_text()
    assert "can never have both right" in page
    assert (results.output / "figures" / "overlapping_pairs.png").stat().st_size > 10_000
