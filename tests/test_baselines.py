"""The rivals of the waveform network, their features, and the scores."""

import itertools
import sys

import numpy as np
import pytest

from spikewise.core.errors import LabelsError, MissingExtraError, SettingError, WaveformsError
from spikewise.papers.cnn1d.baselines import BASELINES, FuzzyCMeans, fuzzy_exponent
from spikewise.papers.cnn1d.features import Correlations, derivative_extrema, wavelet_packets
from spikewise.single_channel.config import WaveClusConfig
from spikewise.single_channel.scores import assign_clusters, classification_accuracy, confusion, macro_f
from spikewise.single_channel.wave_clus import simulate_wave_clus

SUPERVISED = [key for key, make in BASELINES.items() if make(3, 0).is_supervised]
CLUSTERINGS = [key for key in BASELINES if key not in SUPERVISED]


def spikes_of_three_units(num_samples=64, num_spikes=300, noise=0.005, seed=0):
    """Return waveforms of three shapes that are apart in every kind of feature, and their units."""
    time = np.linspace(0, 1, num_samples)
    bumps = [((0.3, 0.08), 1.0), ((0.4, 0.12), -1.0), ((0.45, 0.25), 1.0)]
    shapes = np.stack([sign * np.exp(-(((time - at) / width) ** 2)) for (at, width), sign in bumps])
    random = np.random.default_rng(seed)
    units = random.permutation(np.arange(num_spikes) % 3)
    return (shapes[units] + noise * random.standard_normal((num_spikes, num_samples))), units


def hide(units, known):
    """Return labels: the units of the first `known` spikes, -1 for the others."""
    return np.where(np.arange(len(units)) < known, units, -1)


def score(baseline, waveforms, units):
    predicted = baseline.predict(waveforms)
    return classification_accuracy(
        units, predicted if baseline.is_supervised else assign_clusters(units, predicted)
    )


@pytest.mark.parametrize("num_samples", [64, 12])
@pytest.mark.parametrize("key", BASELINES)
def test_every_rival_separates_what_is_apart(key, num_samples):
    waveforms, units = spikes_of_three_units(num_samples)
    baseline = BASELINES[key](3, 0).fit(waveforms, hide(units, 60))
    unseen, unseen_units = spikes_of_three_units(num_samples, 90, seed=1)
    predicted = baseline.predict(unseen)
    assert predicted.shape == (90,)
    assert predicted.dtype == np.int64
    assert score(baseline, unseen, unseen_units) >= 0.98


@pytest.mark.parametrize("key", BASELINES)
def test_the_names_of_the_units_do_not_matter(key):
    waveforms, units = spikes_of_three_units()
    renamed = np.array([7, 3, 5])[units]
    first = BASELINES[key](3, 0).fit(waveforms, hide(units, 60))
    second = BASELINES[key](3, 0).fit(waveforms, hide(renamed, 60))
    assert score(first, waveforms, units) == score(second, waveforms, renamed)


@pytest.mark.parametrize("key", BASELINES)
def test_one_seed_gives_one_result_and_global_random_state_is_left_alone(key):
    waveforms, units = spikes_of_three_units(noise=0.4)
    np.random.seed(1)  # noqa: NPY002
    first = BASELINES[key](3, 5).fit(waveforms, hide(units, 60)).predict(waveforms)
    after_fit = np.random.random()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    assert np.random.random() == after_fit  # noqa: NPY002
    second = BASELINES[key](3, 5).fit(waveforms, hide(units, 60)).predict(waveforms)
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("key", SUPERVISED)
def test_supervised_rivals_follow_the_labels(key):
    waveforms, units = spikes_of_three_units()
    together = np.minimum(units, 1)  # the last two shapes are called one unit
    predicted = BASELINES[key](2, 0).fit(waveforms, hide(together, 90)).predict(waveforms)
    assert classification_accuracy(together, predicted) >= 0.95


@pytest.mark.parametrize("key", CLUSTERINGS)
def test_clusterings_do_not_look_at_labels(key):
    waveforms, units = spikes_of_three_units(noise=0.3)
    first = BASELINES[key](3, 0).fit(waveforms, units).predict(waveforms)
    second = BASELINES[key](3, 0).fit(waveforms, np.full(len(units), -1)).predict(waveforms)
    np.testing.assert_array_equal(first, second)
    assert set(first) == {0, 1, 2}


@pytest.mark.parametrize("counts", [(5, 5, 5), (5, 5, 1), (1, 1, 1)])
@pytest.mark.parametrize("key", SUPERVISED)
def test_few_labels_are_enough_for_shapes_that_are_apart(key, counts):
    waveforms, units = spikes_of_three_units()
    labels = np.full(len(units), -1)
    for unit, count in enumerate(counts):
        labels[np.flatnonzero(units == unit)[:count]] = unit
    baseline = BASELINES[key](3, 0).fit(waveforms, labels)
    assert score(baseline, waveforms, units) >= 0.9


@pytest.mark.parametrize(
    ("key", "difficulty", "noise_level", "seed", "floor"),
    [
        ("wmsorting_f3", "easy1", 0.15, 0, 0.85),
        ("wmsorting_f10", "difficult1", 0.15, 1, 0.9),
        ("wmsorting_f3", "difficult2", 0.1, 1, 0.9),
    ],
)
def test_overlaps_do_not_pull_the_mixture_of_wmsorting_away(key, difficulty, noise_level, seed, floor):
    """Refined on these spikes (a fifth overlap) a Gaussian leaves its unit: at most 0.66 are right."""
    simulation = simulate_wave_clus(
        WaveClusConfig(difficulty=difficulty, noise_level=noise_level, duration_s=15.0, seed=seed)
    )
    waveforms = simulation.signal[simulation.sample_index[:, None] + np.arange(64)]
    units = simulation.labels - 1
    baseline = BASELINES[key](3, 0).fit(waveforms, hide(units, 120))
    assert score(baseline, waveforms[120:], units[120:]) >= floor


@pytest.mark.parametrize("key", SUPERVISED)
def test_a_supervised_rival_without_labels_of_two_units_says_so(key):
    waveforms, units = spikes_of_three_units()
    with pytest.raises(LabelsError, match="0 units"):
        BASELINES[key](3, 0).fit(waveforms, np.full(len(units), -1))
    with pytest.raises(LabelsError, match="1 units"):
        BASELINES[key](3, 0).fit(waveforms, np.where(units == 0, 0, -1))


@pytest.mark.parametrize("key", BASELINES)
def test_bad_input_is_refused(key):
    waveforms, units = spikes_of_three_units()
    with pytest.raises(SettingError, match="um_units is 0"):
        BASELINES[key](0, 0)
    with pytest.raises(LabelsError, match="for 300 waveforms"):
        BASELINES[key](3, 0).fit(waveforms, units[:-1])
    with pytest.raises(WaveformsError, match="not finite"):
        BASELINES[key](3, 0).fit(np.where(waveforms > 0.9, np.nan, waveforms), units)
    with pytest.raises(WaveformsError, match=r"\(64,\)"):
        BASELINES[key](3, 0).fit(waveforms[0], units)
    with pytest.raises(WaveformsError, match="60 samples"):
        BASELINES[key](3, 0).fit(waveforms, units).predict(waveforms[:, :60])


@pytest.mark.parametrize("key", CLUSTERINGS)
def test_fewer_spikes_than_units_are_refused(key):
    waveforms, units = spikes_of_three_units(num_spikes=3)
    with pytest.raises(WaveformsError, match="3 waveforms for 4 units"):
        BASELINES[key](4, 0).fit(waveforms, units)


@pytest.mark.parametrize(
    ("module", "key", "package"),
    [("skfuzzy.cluster", "pca_fcm_f3", "scikit-fuzzy"), ("pywt", "wmsorting_f3", "PyWavelets")],
)
def test_a_missing_package_is_named(monkeypatch, module, key, package):
    monkeypatch.setitem(sys.modules, module, None)
    waveforms, units = spikes_of_three_units()
    with pytest.raises(MissingExtraError, match=package):
        BASELINES[key](3, 0).fit(waveforms, units)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("key", "floor_005", "floor_015"),
    [
        ("pca_fcm_f3", 0.98, 0.66),
        ("pca_fcm_f10", 0.98, 0.67),
        ("fsde_kmeans_f3", 0.98, 0.86),
        ("corr_fcm_f3", 0.97, 0.70),
        ("corr_fcm_f10", 0.98, 0.71),
        ("fusion_svm_f10", 0.98, 0.93),
        ("wmsorting_f3", 0.97, 0.94),
        ("wmsorting_f10", 0.98, 0.98),
        ("mlp", 0.97, 0.64),
    ],
)
def test_real_spikes_with_a_tenth_labelled(data_folder, key, floor_005, floor_015):
    for name, floor in (("005", floor_005), ("015", floor_015)):
        with np.load(data_folder / "wave_clus" / f"quiroga_C_Difficult2_noise{name}_spikes.npz") as file:
            waveforms, units = file["spikes"], file["labels"].astype(np.int64)
        waveforms, units = waveforms[units > 0], units[units > 0]
        known = np.random.default_rng(0).random(len(units)) < 0.1
        baseline = BASELINES[key](3, 0).fit(waveforms, np.where(known, units, -1))
        assert score(baseline, waveforms[~known], units[~known]) >= floor


def test_fuzzy_exponent():
    # 1 + (1.418 + 22.05) / 100 + 0.25533 * 10 ** (-0.0406 * 6.90776 - 0.1134)
    assert fuzzy_exponent(1000, 10) == pytest.approx(1.33778, abs=1e-4)
    assert fuzzy_exponent(1000, 3) == 2.0


def test_fuzzy_c_means_keeps_its_centres_apart_in_many_dimensions():
    from skfuzzy.cluster import cmeans

    random = np.random.default_rng(0)
    units = np.arange(900) % 3
    points = 2.5 * np.eye(10)[units] + random.standard_normal((900, 10))
    fuzzy = FuzzyCMeans(3, 0).fit(points)
    assert classification_accuracy(units, assign_clusters(units, fuzzy.predict(points))) >= 0.9
    customary = cmeans(points.T, 3, 2.0, 1e-6, 1000, init=np.eye(3)[units].T)[0]
    assert np.ptp(customary, axis=0).max() < 0.1  # even from the truth, m = 2 ends in one centre


def test_derivative_extrema_of_a_small_example():
    # first differences 1 2 -1 0, second 1 -3 1; and the same upside down
    waveforms = np.array([[0.0, 1.0, 3.0, 2.0, 2.0], [0.0, -1.0, -3.0, -2.0, -2.0]])
    np.testing.assert_array_equal(derivative_extrema(waveforms), [[2.0, 1.0, -3.0], [1.0, 3.0, -1.0]])


def test_correlations_are_those_of_numpy_and_see_shape_alone():
    waveforms, _ = spikes_of_three_units()
    features = Correlations(3, 0).fit(waveforms)
    expected = np.corrcoef(waveforms[:20], features.references_)[:20, 20:]
    np.testing.assert_allclose(features.transform(waveforms[:20]), expected, atol=1e-10)
    np.testing.assert_allclose(features.transform(5 * waveforms[:20] - 2), expected, atol=1e-10)
    assert not features.transform(np.ones((1, 64))).any()


@pytest.mark.parametrize("num_samples", [64, 12])
def test_wavelet_packets_are_a_rotation(num_samples):
    waveforms, _ = spikes_of_three_units(num_samples)
    coefficients = wavelet_packets(waveforms)
    np.testing.assert_allclose(coefficients @ coefficients.T, waveforms @ waveforms.T, atol=1e-8)


def test_wavelet_packets_go_from_low_to_high_frequencies():
    lowest = np.abs(wavelet_packets(np.ones((1, 64))))[0]
    highest = np.abs(wavelet_packets((-1.0) ** np.arange(64)[None]))[0]
    assert lowest[4:].max() < 1e-9
    assert highest[:-4].max() < 1e-9


def test_wmsorting_learns_from_180_labels_at_most_one_of_each_unit_at_least():
    from spikewise.papers.cnn1d.baselines import _draw_labelled

    labels = np.r_[np.zeros(5000, int), np.ones(5000, int), np.full(500, -1), [2]]
    drawn = _draw_labelled(labels, 180, np.random.default_rng(0))
    assert len(np.unique(drawn)) == 180
    assert set(labels[drawn]) == {0, 1, 2}
    assert 60 <= np.sum(labels[drawn] == 0) <= 120
    assert sorted(_draw_labelled(labels[-510:], 180, np.random.default_rng(0))) == [*range(9), 509]


def test_accuracy_and_macro_f_by_hand():
    true = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    predicted = np.array([0, 0, 0, 1, 1, 0, 1, -1])
    # unit 0: P 3/4, R 3/4, F 3/4; unit 1: P 1/3, R 1/2, F 2/5; unit 2: never predicted, 0
    assert classification_accuracy(true, predicted) == 0.5
    assert macro_f(true, predicted) == pytest.approx((0.75 + 0.4 + 0) / 3)
    np.testing.assert_array_equal(
        confusion(true, predicted, np.array([0, 1, 2])), [[3, 1, 0], [1, 1, 0], [0, 1, 0]]
    )
    np.testing.assert_array_equal(confusion(true, predicted, np.array([1, 0])), [[1, 1], [1, 3]])
    np.testing.assert_array_equal(confusion(true, predicted, np.array([8, 9])), np.zeros((2, 2)))


@pytest.mark.parametrize("num_clusters", [2, 3, 5])
def test_assignment_is_the_best_of_all(num_clusters):
    random = np.random.default_rng(num_clusters)
    true, clusters = random.integers(1, 4, 60), random.integers(0, num_clusters, 60)
    names = [1, 2, 3] + [-1] * max(0, num_clusters - 3)
    best = max(
        np.mean(np.array(names_of)[clusters] == true)
        for names_of in itertools.permutations(names, num_clusters)
    )
    assigned = assign_clusters(true, clusters)
    assert classification_accuracy(true, assigned) == pytest.approx(best)
    assert len(set(zip(assigned, clusters, strict=True))) == num_clusters


def test_clusters_without_a_partner_and_outliers_are_wrong():
    true = np.array([5, 5, 5, 5, 9, 9])
    np.testing.assert_array_equal(assign_clusters(true, np.array([0, 0, 1, -1, 2, 2])), [5, 5, -1, -1, 9, 9])
    np.testing.assert_array_equal(assign_clusters(true, np.full(6, -1)), np.full(6, -1))


@pytest.mark.parametrize("score_of", [classification_accuracy, macro_f, assign_clusters])
def test_scores_refuse_labels_that_do_not_match(score_of):
    with pytest.raises(LabelsError, match="same length"):
        score_of(np.zeros(3, int), np.zeros(4, int))
    with pytest.raises(LabelsError, match="not empty"):
        score_of(np.zeros(0, int), np.zeros(0, int))
