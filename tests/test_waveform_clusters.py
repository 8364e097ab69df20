"""Units of waveforms without labels."""

import numpy as np
import pytest
from sklearn.decomposition import PCA

from spikewise.core.errors import SettingError, WaveformsError
from spikewise.single_channel.clusters import cluster_waveforms
from spikewise.single_channel.config import WaveClusConfig
from spikewise.single_channel.scores import assign_clusters, classification_accuracy
from spikewise.single_channel.wave_clus import simulate_wave_clus

TIME = np.linspace(0, 1, 64)


def bump(centre, width):
    return np.exp(-(((TIME - centre) / width) ** 2))


SHAPES = np.stack([bump(0.3, 0.08), bump(0.3, 0.08) - 0.6 * bump(0.6, 0.15), bump(0.35, 0.2)])


def coloured_noise(num_spikes, scale, random):
    """Noise that, like a recording's, varies slowly more than fast: running sums of white noise, leaking."""
    white = random.standard_normal((num_spikes, 164))
    kernel = 0.9 ** np.arange(60)
    noise = np.stack([np.convolve(row, kernel)[100:164] for row in white])
    return scale * noise / noise.std()


def simulate(counts, noise=0.1, seed=0):
    """Return shuffled waveforms of the first shapes, and their units."""
    random = np.random.default_rng(seed)
    units = random.permutation(np.repeat(np.arange(len(counts)), counts))
    return SHAPES[units] + coloured_noise(len(units), noise, random), units


def accuracy(units, clusters):
    return classification_accuracy(units, assign_clusters(units, clusters.labels))


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("counts", [(600,), (500, 400), (600, 300, 150)])
def test_finds_the_units_and_numbers_them_by_size(counts, seed):
    waveforms, units = simulate(counts, seed=seed)
    clusters = cluster_waveforms(waveforms, seed)
    assert clusters.num_units == len(counts)
    assert clusters.labels.dtype == np.int64
    assert np.mean(clusters.labels == units) >= 0.98  # the units are in order of size


def test_finds_a_difference_smaller_than_the_noise():
    # The shapes differ by a fast ripple, hidden in slow noise: five principal components vary more.
    random = np.random.default_rng(0)
    units = random.permutation(np.arange(1500) % 2)
    ripple = 0.4 * np.sin(2 * np.pi * 9 * TIME) * bump(0.4, 0.2)
    waveforms = bump(0.3, 0.1) + units[:, None] * ripple
    waveforms = waveforms + coloured_noise(1500, 0.4, random)
    components = PCA(5, random_state=0).fit_transform(waveforms)
    assert max(abs(np.corrcoef(components.T, units)[-1, :-1])) < 0.2
    clusters = cluster_waveforms(waveforms, 0)
    assert clusters.num_units == 2
    assert accuracy(units, clusters) >= 0.95


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_spikes_cut_on_whole_samples_of_smooth_noise_stay_one_unit(seed):
    """Between two samples a spike begins at four places, and so smooth a noise does not hide which."""
    simulation = simulate_wave_clus(
        WaveClusConfig(difficulty="difficult2", noise_level=0.1, duration_s=15.0, seed=seed)
    )
    alone = ~simulation.is_overlap
    places = simulation.sample_index[alone, None] + np.arange(64)
    clusters = cluster_waveforms(simulation.signal[places], 0)
    assert clusters.num_units == 3
    assert accuracy(simulation.labels[alone], clusters) >= 0.98


def test_a_unit_that_varies_in_time_and_amplitude_stays_one():
    random = np.random.default_rng(0)
    shifts, heights = random.uniform(-0.03, 0.03, 1500), random.uniform(0.5, 1.0, 1500)
    waveforms = heights[:, None] * np.exp(-(((TIME - 0.3 - shifts[:, None]) / 0.08) ** 2))
    waveforms = waveforms + coloured_noise(1500, 0.02, random)
    clusters = cluster_waveforms(waveforms, 0)
    assert clusters.facts["num_components"] > 1  # so that merging had something to do
    assert clusters.num_units == 1


def test_overlaps_and_artefacts_get_no_label():
    waveforms, units = simulate((500, 400, 300))
    random = np.random.default_rng(1)
    shifts = random.integers(8, 30, 100)
    overlaps = waveforms[:100] + np.stack([np.roll(SHAPES[0], shift) for shift in shifts])
    artefacts = 5 * random.standard_normal((30, 64))
    clusters = cluster_waveforms(np.concatenate([waveforms, overlaps, artefacts]), 0)
    assert clusters.num_units == 3
    assert np.mean(clusters.labels[1200:1300] == -1) >= 0.8
    assert np.all(clusters.labels[1300:] == -1)
    assert np.mean(clusters.labels[:1200] == units) >= 0.97
    assert clusters.facts["num_unlabelled"] == np.sum(clusters.labels == -1)


def test_a_unit_with_too_few_spikes_is_dropped():
    waveforms, units = simulate((500, 400, 10), noise=0.05)
    clusters = cluster_waveforms(waveforms, 0)
    assert clusters.num_units == 2
    assert np.all(clusters.labels[units == 2] == -1)


def test_of_more_than_5000_spikes_the_rest_is_predicted():
    waveforms, units = simulate((6000, 3000, 1000))
    clusters = cluster_waveforms(waveforms, 0)
    assert 4800 <= clusters.facts["num_fitted"] <= 5000
    assert clusters.facts["num_spikes"] == len(clusters.labels) == 10000
    assert np.mean(clusters.labels == units) >= 0.98


def test_one_seed_gives_one_result_in_any_unit_of_amplitude():
    waveforms, _ = simulate((300, 200, 100))
    first, second = cluster_waveforms(waveforms, 3), cluster_waveforms(waveforms, 3)
    np.testing.assert_array_equal(first.labels, second.labels)
    np.testing.assert_array_equal(first.labels, cluster_waveforms(1000 * waveforms, 3).labels)
    np.testing.assert_array_equal(first.labels, cluster_waveforms(1e-5 * waveforms, 3).labels)


def test_max_units_keeps_the_largest():
    waveforms, units = simulate((500, 400, 300))
    clusters = cluster_waveforms(waveforms, 0, max_units=2)
    assert clusters.num_units == 2
    assert np.mean(clusters.labels[units < 2] == units[units < 2]) >= 0.97
    assert np.mean(clusters.labels[units == 2] == -1) >= 0.97


@pytest.mark.parametrize("waveforms", [np.zeros((50, 20)), np.ones((50, 20)), np.tile(SHAPES[0], (30, 1))])
def test_waveforms_all_alike_are_one_unit(waveforms):
    clusters = cluster_waveforms(waveforms, 0)
    assert clusters.num_units == 1
    assert not clusters.labels.any()


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_spikes_without_noise():
    units = np.repeat([0, 1, 2], [60, 50, 40])
    clusters = cluster_waveforms(SHAPES[units], 0)
    np.testing.assert_array_equal(clusters.labels, units)


@pytest.mark.parametrize("num_samples", [4, 12])
def test_short_waveforms(num_samples):
    random = np.random.default_rng(0)
    units = np.sort(np.arange(400) % 2)
    waveforms = 10.0 * units[:, None] + random.standard_normal((400, num_samples))
    clusters = cluster_waveforms(waveforms, 0)
    assert clusters.num_units == 2
    assert accuracy(units, clusters) >= 0.97


def test_twenty_spikes_are_enough_not_to_fail():
    waveforms, _ = simulate((20,))
    assert cluster_waveforms(waveforms, 0).facts["num_spikes"] == 20
    with pytest.raises(WaveformsError, match="at least 20 spikes"):
        cluster_waveforms(waveforms[:19], 0)


def test_bad_input_is_refused():
    waveforms, _ = simulate((30,))
    with pytest.raises(WaveformsError, match=r"the shape \(64,\)"):
        cluster_waveforms(waveforms[0], 0)
    with pytest.raises(WaveformsError, match="2 waveforms hold values"):
        cluster_waveforms(np.where(np.arange(30)[:, None] < 2, np.inf, waveforms), 0)
    with pytest.raises(SettingError, match="ax_units is 0"):
        cluster_waveforms(waveforms, 0, max_units=0)


@pytest.mark.realdata
@pytest.mark.parametrize(("noise", "floor"), [("005", 0.95), ("015", 0.97)])
def test_real_spikes_of_three_units(data_folder, noise, floor):
    with np.load(data_folder / "wave_clus" / f"quiroga_C_Difficult2_noise{noise}_spikes.npz") as file:
        waveforms, units = file["spikes"], file["labels"].astype(np.int64)
    clusters = cluster_waveforms(waveforms, 0)
    assert clusters.num_units == 3
    isolated = units > 0
    assigned = assign_clusters(units[isolated], clusters.labels[isolated])
    assert classification_accuracy(units[isolated], assigned) >= floor
    assert np.mean(clusters.labels[~isolated] == -1) >= 0.45  # overlaps, of which many look like one spike


@pytest.mark.realdata
@pytest.mark.parametrize("simulation", [1, 5])
def test_real_single_units_beside_multi_unit_activity(data_folder, simulation):
    with np.load(data_folder / "martinez2009" / f"martinez2009_simulation{simulation}_spikes.npz") as file:
        waveforms, units = file["spikes_thr"], file["labels_thr"].astype(np.int64)
    clusters = cluster_waveforms(waveforms, 0)
    assert clusters.num_units == 3
    assert accuracy(units, clusters) >= 0.97
