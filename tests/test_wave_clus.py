"""Signals in the manner of Wave_Clus: rates, noise, places between samples, difficulty, and the file."""

import dataclasses
import json

import numpy as np
import pytest
from scipy.io import loadmat
from scipy.optimize import linear_sum_assignment
from scipy.stats import skew
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import confusion_matrix

from spikewise.core.errors import OutputError, SettingError, WaveformsError
from spikewise.single_channel.config import WaveClusConfig
from spikewise.single_channel.files import load_wave_clus_signal
from spikewise.single_channel.snippets import load_snippets
from spikewise.single_channel.spike_shapes import (
    SIMILARITY_BANDS,
    built_in_shapes,
    choose_shapes,
    load_shapes,
    shape_similarity,
)
from spikewise.single_channel.wave_clus import find_overlaps, peak_sample, save_wave_clus, simulate_wave_clus

WAVEMAP = "templates/templates_wavemap_macaquePMd_625units_1ch_normalised.npz"


def simulate(**settings):
    return simulate_wave_clus(WaveClusConfig(**{"duration_s": 5.0, **settings}))


def cut(simulation, where=slice(None)):
    starts = simulation.sample_index[where]
    return simulation.signal[starts[:, None] + np.arange(simulation.shapes.shape[1])]


@pytest.fixture(scope="module")
def silent():
    """Three minutes without noise."""
    return simulate(noise_level=0.0, duration_s=180.0, firing_rates_hz=(40.0, 10.0, 20.0))


@pytest.fixture
def shapes_file(tmp_path):
    """Forty samples at 20 kHz of trough and peak; half of the shapes point downward."""
    time = np.arange(40) / 20.0 - 0.7
    width = np.linspace(0.1, 0.3, 12)[:, None]
    waves = np.exp(-0.5 * (time / width) ** 2) - 0.4 * np.exp(-0.5 * ((time - 0.5) / 0.2) ** 2)
    waves *= np.where(np.arange(12) % 2, -30.0, 5.0)[:, None]
    path = tmp_path / "shapes.npz"
    np.savez(path, waves=waves.astype(np.float32), fs=20000)
    return path


def test_mean_rate_is_what_was_asked_in_spite_of_the_refractory_period(silent):
    # A train with a refractory period has a smaller variance than a Poisson train, so 4 sigma is generous.
    expected = 180 * np.array([40.0, 10.0, 20.0])
    counts = np.bincount(silent.labels, minlength=4)[1:]
    assert np.all(np.abs(counts - expected) < 4 * np.sqrt(expected))
    fast = simulate(num_units=2, firing_rates_hz=(300.0,), noise_level=0.0, duration_s=60.0)
    # Without the correction for 2 ms the rate would be 300 / 1.6 = 187.5 Hz.
    assert np.bincount(fast.labels)[1:] / 60 == pytest.approx([300.0, 300.0], rel=0.02)


def test_trains_are_stationary_from_the_first_sample():
    # Trains that began with a spike or a whole interval would have too many or too few spikes at the start.
    begins = 0
    for seed in range(20):
        truth = simulate(num_units=20, firing_rates_hz=(200.0,), noise_level=0.0, duration_s=1.0, seed=seed)
        begins += np.sum(truth.sample_index < 48)
    expected = 20 * 20 * 200.0 * 48 / 24000
    assert begins == pytest.approx(expected, abs=4 * np.sqrt(expected))


def test_spikes_keep_the_refractory_period_and_come_close_to_it():
    truth = simulate(firing_rates_hz=(150.0,), noise_level=0.0, refractory_ms=2.0, duration_s=20.0)
    for label in (1, 2, 3):
        shortest = np.diff(truth.sample_index[truth.labels == label]).min()
        assert 48 <= shortest < 55
    assert np.diff(truth.sample_index).min() < 5  # units do not wait for one another


def test_spikes_are_whole_sorted_and_of_the_documented_types(silent):
    assert silent.signal.shape == (180 * 24000,)
    assert silent.sample_index.dtype == silent.labels.dtype == np.int64
    assert silent.is_overlap.dtype == bool
    assert np.all(np.diff(silent.sample_index) >= 0)
    assert silent.sample_index[0] >= 0
    assert silent.sample_index[-1] + 64 <= len(silent.signal)
    assert set(silent.labels) == {1, 2, 3}


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_noise_has_the_asked_level_and_no_offset(level):
    noisy, silent = simulate(noise_level=level, seed=4), simulate(noise_level=0.0, seed=4)
    noise = noisy.signal - silent.signal
    assert noise.std() == pytest.approx(level, rel=1e-9)
    assert noise.mean() == pytest.approx(0.0, abs=1e-12)
    outside = np.ones(len(noise), dtype=bool)
    outside[noisy.sample_index[:, None] + np.arange(64)] = False
    assert noisy.signal[outside].std() == pytest.approx(level, rel=0.05)
    assert abs(skew(noise)) < 0.4
    per_second = noise.reshape(5, -1).std(axis=1)
    assert per_second == pytest.approx(level, rel=0.1)  # also in the first and the last second
    assert noise[:240].std() > 0.5 * level
    assert noise[-240:].std() > 0.5 * level


def test_noise_has_the_spectrum_of_the_shapes():
    noise = (
        simulate(noise_level=0.3, duration_s=20.0).signal - simulate(noise_level=0.0, duration_s=20.0).signal
    )
    power = np.mean(np.abs(np.fft.rfft(noise.reshape(-1, 240) * np.hanning(240), axis=1)) ** 2, axis=0)
    base = simulate(num_units=20, noise_level=0.0, seed=8).shapes
    expected = np.mean(np.abs(np.fft.rfft(base, 240, axis=1)) ** 2, axis=0)
    low, high = slice(5, 30), slice(60, 121)  # 0.5 to 3 kHz, above 6 kHz
    assert np.corrcoef(np.log(power[low]), np.log(expected[low]))[0, 1] > 0.95
    assert power[high].sum() < 0.02 * power[low].sum()  # white noise would have 2.4 times as much


def test_shapes_have_a_peak_of_one_and_begin_and_end_at_zero(silent):
    assert silent.shapes.shape == (3, 64)
    assert silent.shapes.max(axis=1) == pytest.approx(1.0)
    assert np.abs(silent.shapes.argmax(axis=1) - 20).max() <= 1
    assert np.abs(silent.shapes[:, [0, -1]]).max() < 0.01
    assert np.abs(silent.shapes).max() <= 1.0 + 1e-12


def test_spikes_fall_between_samples(silent):
    alone = ~silent.is_overlap & (silent.labels == 1)
    waveforms = cut(silent, alone)
    rows = np.arange(len(waveforms))
    top = waveforms.argmax(axis=1)
    left, mid, right = (waveforms[rows, top + k] for k in (-1, 0, 1))
    peak = top + 0.5 * (left - right) / (left - 2 * mid + right)  # of the parabola through three samples
    quarters = np.round((peak - peak.min()) * 4).astype(int)
    counts = np.bincount(quarters)
    assert len(counts) == 4  # spread over 0, 1/4, 1/2 and 3/4 of a sample
    assert counts.min() > 0.8 * counts.mean()


def test_decimated_shape_is_that_of_the_dense_one(silent):
    # A spike that begins on a sample is the shape, and none is larger: the scale survives the decimation.
    waveforms = cut(silent, ~silent.is_overlap & (silent.labels == 2))
    distance = np.abs(waveforms - silent.shapes[1]).max(axis=1)
    assert np.mean(distance < 1e-3) == pytest.approx(0.25, abs=0.06)
    assert waveforms.max() < 1.01


def test_sample_index_is_the_first_sample_of_each_spike():
    truth = simulate(noise_level=0.1, duration_s=60.0)
    assert len(truth.labels) > 3000
    for unit, shape in enumerate(truth.shapes):
        waveforms = cut(truth, ~truth.is_overlap & (truth.labels == unit + 1))
        # On average spikes begin 3/8 of a sample late.
        late = np.interp(np.arange(64) - 0.375, np.arange(64), shape)
        assert np.abs(waveforms.mean(axis=0) - late).max() < 0.05
        assert abs(waveforms.mean(axis=0).argmax() - peak_sample(64)) <= 1


def test_signal_is_the_sum_of_overlapping_spikes(silent):
    waveforms = [cut(silent, ~silent.is_overlap & (silent.labels == k)) for k in (1, 2, 3)]
    means = [w.mean(axis=0) for w in waveforms]
    total = np.zeros_like(silent.signal)
    for start, label in zip(silent.sample_index, silent.labels, strict=True):
        total[start : start + 64] += means[label - 1]
    inside = silent.sample_index[silent.is_overlap][:, None] + np.arange(64)
    residual = (silent.signal - total)[inside]
    assert residual.std() < 0.1 * silent.signal[inside].std()


def test_overlap_flags_agree_with_brute_force(silent):
    first = silent.sample_index[:1500]
    shared = np.abs(first[:, None] - first[None]) < 64
    np.fill_diagonal(shared, False)
    assert np.array_equal(find_overlaps(first, 64), shared.any(axis=1))
    assert np.array_equal(silent.is_overlap[:1400], shared.any(axis=1)[:1400])
    assert find_overlaps(np.array([0, 64, 127, 400]), 64).tolist() == [False, True, True, False]
    assert find_overlaps(np.empty(0, dtype=np.int64), 64).tolist() == []
    assert find_overlaps(np.array([5]), 64).tolist() == [False]


def test_similarity_of_exact_cases():
    similarity = shape_similarity(np.array([[0.0, 1.0], [1.0, 0.0], [0.0, -1.0], [0.0, 3.0]]))
    assert np.diag(similarity).tolist() == [1.0] * 4
    assert similarity[0, 1:].tolist() == [0.0, -1.0, 0.6]  # 2 * 3 / (1 + 9)
    assert np.array_equal(similarity, similarity.T)


@pytest.mark.parametrize("difficulty", list(SIMILARITY_BANDS))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_each_pair_lies_in_the_band_of_its_difficulty(difficulty, seed):
    truth = simulate(difficulty=difficulty, seed=seed, noise_level=0.0, duration_s=1.0)
    low, high = SIMILARITY_BANDS[difficulty]
    pairs = shape_similarity(truth.shapes)[np.triu_indices(3, 1)]
    assert low <= pairs.min()
    assert pairs.max() <= high
    assert np.array(truth.facts["similarity"])[np.triu_indices(3, 1)] == pytest.approx(pairs)
    assert len(set(truth.facts["shape_indices"])) == 3


def pca_accuracy(truth):
    """Return the part of the spikes that k-means on three principal components gives to its unit."""
    features = PCA(3, random_state=0).fit_transform(cut(truth))
    found = KMeans(3, n_init=5, random_state=0).fit_predict(features)
    confusion = confusion_matrix(truth.labels - 1, found)
    return confusion[linear_sum_assignment(-confusion)].sum() / len(found)


def test_difficulties_are_in_order_for_principal_components():
    scores = {
        name: np.mean(
            [
                pca_accuracy(simulate(difficulty=name, seed=k, noise_level=0.2, duration_s=10.0))
                for k in range(3)
            ]
        )
        for name in ("easy1", "easy2", "difficult2", "difficult1")
    }
    assert scores["easy1"] > 0.93
    assert scores["easy1"] > max(scores["easy2"], scores["difficult2"]) + 0.01
    assert min(scores["easy2"], scores["difficult2"]) > scores["difficult1"] + 0.05


def autocorrelation(signal, lag):
    return np.mean(signal[lag:] * signal[:-lag]) / np.mean(signal**2)


def test_the_noise_is_as_smooth_as_that_of_the_public_files():
    silent = {"noise_level": 0.15, "duration_s": 20.0, "firing_rates_hz": (0.001,)}
    noise = simulate(**silent).signal
    assert autocorrelation(noise, 1) == pytest.approx(0.976, abs=0.015)
    assert autocorrelation(noise, 4) == pytest.approx(0.73, abs=0.08)
    # made of shapes as they are, and of such that are twice as long
    alike, longer = (simulate(noise_widening=factor, **silent).signal for factor in (1.0, 2.0))
    assert autocorrelation(longer, 4) == pytest.approx(autocorrelation(alike, 2), abs=0.03)
    assert autocorrelation(alike, 4) < autocorrelation(noise, 4) < autocorrelation(longer, 4)


@pytest.mark.realdata
def test_measured_shapes_give_the_noise_of_a_public_file(data_folder):
    with np.load(data_folder / "wave_clus" / "quiroga_C_Easy1_noise015_raw50000_gt.npz") as public:
        signal, starts = public["data"].ravel().astype(float), public["times"].ravel().astype(int)
    is_noise = np.ones(len(signal), dtype=bool)
    for start in starts:
        is_noise[max(0, start - 4) : start + 68] = False
    measured = signal[is_noise] - signal[is_noise].mean()
    shapes = next((data_folder / "templates").glob("templates_wavemap*.npz"))
    noise = simulate(shapes=str(shapes), noise_level=0.15, duration_s=10.0, firing_rates_hz=(0.001,)).signal
    assert measured.std() == pytest.approx(noise.std(), rel=0.03)
    for lag in (1, 2, 3, 4):
        assert autocorrelation(noise, lag) == pytest.approx(autocorrelation(measured, lag), abs=0.02)


def test_a_seed_gives_the_same_signal_to_the_bit_and_another_another():
    first, again, other = (simulate(duration_s=2.0, seed=seed) for seed in (3, 3, 4))
    assert first.signal.tobytes() == again.signal.tobytes()
    assert first.sample_index.tobytes() == again.sample_index.tobytes()
    assert first.labels.tobytes() == again.labels.tobytes()
    assert first.facts == again.facts
    assert first.facts["shape_indices"] != other.facts["shape_indices"]
    assert not np.array_equal(first.sample_index, other.sample_index)


def test_the_noise_level_leaves_spikes_and_shapes_where_they_are():
    low, high = simulate(noise_level=0.05), simulate(noise_level=0.4)
    assert np.array_equal(low.sample_index, high.sample_index)
    assert np.array_equal(low.labels, high.labels)
    assert np.array_equal(low.shapes, high.shapes)


@pytest.mark.parametrize("difficulty", [None, *SIMILARITY_BANDS])
def test_one_seed_has_the_same_units_however_they_fire_and_at_all_noise_levels(difficulty):
    first = simulate(difficulty=difficulty, seed=5, duration_s=1.0, noise_level=0.05)
    for changes in ({"noise_level": 0.4}, {"firing_rates_hz": (3.0, 50.0, 9.0)}, {"duration_s": 3.0}):
        other = simulate(**{"difficulty": difficulty, "seed": 5, "duration_s": 1.0, **changes})
        assert np.array_equal(other.shapes, first.shapes)
        assert other.facts["shape_indices"] == first.facts["shape_indices"]


def test_short_waveforms_and_unbalanced_units():
    rates = (40.0, 2.0, 10.0, 1.0, 20.0)
    truth = simulate(
        num_samples=12, sampling_frequency=24414.0625, num_units=5, firing_rates_hz=rates, duration_s=60.0
    )
    assert truth.shapes.shape == (5, 12)
    assert truth.shapes.argmax(axis=1).tolist() == [4] * 5
    assert len(truth.signal) == round(60 * 24414.0625)
    counts = np.bincount(truth.labels, minlength=6)[1:]
    assert np.all(np.abs(counts - 60 * np.array(rates)) < 4 * np.sqrt(60 * np.array(rates)))


def test_built_in_shapes_are_finite_and_always_the_same():
    shapes = built_in_shapes()
    assert shapes.shape == (300, 500)
    assert np.isfinite(shapes).all()
    assert np.array_equal(shapes, built_in_shapes())
    assert len(np.unique(shapes.round(3), axis=0)) == 300


def test_shapes_of_a_file_keep_their_form_in_time_and_point_upward(shapes_file):
    waves, fs = load_shapes(shapes_file)
    assert (waves.shape, fs) == ((12, 40), 20000.0)
    truth = simulate(shapes=str(shapes_file), num_units=12, noise_level=0.0, duration_s=1.0)
    assert truth.shapes.max(axis=1) == pytest.approx(1.0)
    assert truth.facts["shapes"] == str(shapes_file)
    time = np.arange(64) / 24.0 - 20 / 24.0
    for shape, row in zip(truth.shapes, truth.facts["shape_indices"], strict=True):
        width = np.linspace(0.1, 0.3, 12)[row]
        core = slice(14, 44)  # neither end fades here
        fine = np.linspace(-1, 2, 30001)
        form = np.exp(-0.5 * (fine / width) ** 2) - 0.4 * np.exp(-0.5 * ((fine - 0.5) / 0.2) ** 2)
        top = fine[form.argmax()]
        expected = np.interp(time + top, fine, form) / form.max()
        assert np.abs(shape - expected)[core].max() < 0.02


def test_shapes_that_tell_no_frequency_are_taken_at_that_of_the_result(tmp_path):
    waves = simulate(num_units=4, noise_level=0.0, duration_s=1.0).shapes
    np.save(tmp_path / "waves.npy", waves)
    assert load_shapes(tmp_path / "waves.npy")[1] is None
    truth = simulate(shapes=str(tmp_path / "waves.npy"), num_units=4, noise_level=0.0, duration_s=1.0)
    again = waves[truth.facts["shape_indices"]]
    assert np.abs(truth.shapes - again)[:, 10:50].max() < 0.06


def test_the_file_has_the_public_layout_and_counts_from_one(tmp_path):
    truth = simulate(noise_level=0.1)
    save_wave_clus(truth, tmp_path / "C_Mine.mat")
    assert [file.name for file in tmp_path.iterdir()] == ["C_Mine.mat"]
    read = loadmat(tmp_path / "C_Mine.mat")
    assert read["data"].shape == (1, 5 * 24000)
    assert np.array_equal(read["data"][0], truth.signal)
    assert read["samplingInterval"].item() == pytest.approx(1000 / 24000)
    assert read["spike_times"].shape == (1, 1)
    assert read["spike_times"][0, 0].shape == (1, len(truth.labels))
    assert np.array_equal(read["spike_times"][0, 0][0], truth.sample_index + 1)
    assert np.array_equal(read["spike_class"][0, 0][0], truth.labels)
    assert np.array_equal(read["spike_class"][0, 1][0], truth.is_overlap)
    assert np.array_equal(read["shapes"], truth.shapes)
    assert json.loads(read["facts"].item()) == truth.facts
    assert truth.facts["settings"]["noise_level"] == 0.1


def test_the_file_is_read_as_a_public_one(tmp_path):
    truth = simulate(noise_level=0.05)
    save_wave_clus(truth, tmp_path / "mine.mat")
    snippets = load_snippets(tmp_path / "mine.mat")
    assert snippets.waveforms == pytest.approx(cut(truth), abs=1e-6)
    assert np.array_equal(snippets.labels, truth.labels)
    assert np.array_equal(snippets.is_overlap, truth.is_overlap)
    assert np.array_equal(snippets.sample_index, truth.sample_index)
    raw = load_wave_clus_signal(tmp_path / "mine.mat")
    assert raw.sampling_frequency == pytest.approx(24000.0)


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path):
    truth = simulate(duration_s=1.0)
    (tmp_path / "folder.mat").mkdir()
    (tmp_path / "file").write_text("kept")
    for path in (tmp_path / "folder.mat", tmp_path / "missing" / "a.mat", tmp_path / "file" / "a.mat"):
        with pytest.raises(OutputError, match="cannot be written"):
            save_wave_clus(truth, path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["file", "folder.mat"]
    broken = dataclasses.replace(truth, shapes=np.array([object()]))
    (tmp_path / "earlier.mat").write_text("earlier")
    with pytest.raises(TypeError):
        save_wave_clus(broken, tmp_path / "earlier.mat")
    assert (tmp_path / "earlier.mat").read_text() == "earlier"
    assert not (tmp_path / "earlier.mat.partial").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"firing_rates_hz": (20.0, 10.0)}, "2 rates, and there are 3 units"),
        ({"firing_rates_hz": (500.0,)}, "leaves no time between spikes"),
        ({"difficulty": "easy1", "num_units": 20}, "no 20 of the 300 shapes are easy1"),
    ],
)
def test_settings_that_do_not_fit(settings, words):
    with pytest.raises(SettingError, match=f"(?i){words}"):
        simulate(**settings)


def test_units_without_spikes():
    truth = simulate(firing_rates_hz=(0.001,), noise_level=0.0, duration_s=1.0)
    assert len(truth.sample_index) == len(truth.labels) == len(truth.is_overlap) == 0
    assert not truth.signal.any()


def test_no_refractory_period_allows_any_rate():
    truth = simulate(firing_rates_hz=(1000.0,), refractory_ms=0.0, noise_level=0.0)
    assert len(truth.labels) == pytest.approx(15000, rel=0.05)


def test_more_units_than_shapes():
    with pytest.raises(SettingError, match="At most 2"):
        choose_shapes(np.eye(2), 3, None, 0)


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        ({"other": np.ones((3, 30))}, "holds other"),
        ({"waves": np.ones(30)}, "is an array of float64"),
        ({"waves": np.array([["a"] * 9] * 3)}, "is an array of <U1"),
        ({"waves": np.eye(3)}, "has 3 samples for each shape"),
        ({"waves": np.eye(9)[:1]}, "is an array of float64"),
        ({"waves": np.where(np.eye(9) > 0, np.nan, 0)}, "row 0 of waves .* is not finite"),
        ({"waves": np.vstack([np.eye(9), np.full(9, 2.0)])}, "row 9 of waves .* is constant"),
        ({"waves": np.eye(9), "fs": 0}, "one number of at least 100 Hz"),
        ({"waves": np.eye(9), "fs": [3e4, 3e4]}, "one number of at least 100 Hz"),
        ({"waves": np.eye(9), "fs": np.nan}, "one number of at least 100 Hz"),
        ({"waves": np.eye(9), "fs": "fast"}, "one number of at least 100 Hz"),
    ],
)
def test_arrays_that_are_no_shapes(tmp_path, contents, words):
    np.savez(tmp_path / "shapes.npz", **contents)
    with pytest.raises(WaveformsError, match=f"(?i){words}"):
        load_shapes(tmp_path / "shapes.npz")


def test_files_that_are_no_shapes(tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    (tmp_path / "text.npy").write_text("not an array")
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for name in ("broken.npz", "text.npy", "objects.npy"):
        with pytest.raises(WaveformsError, match="cannot be read"):
            load_shapes(tmp_path / name)
    with pytest.raises(WaveformsError, match="There is no file"):
        load_shapes(tmp_path / "none.npz")
    with pytest.raises(WaveformsError, match=r"An \.npy, or an \.npz"):
        load_shapes(tmp_path / "shapes.csv")


@pytest.mark.realdata
@pytest.mark.parametrize("difficulty", list(SIMILARITY_BANDS))
def test_measured_shapes_hold_units_of_each_difficulty(data_folder, difficulty):
    path = str(data_folder / WAVEMAP)
    truth = simulate(shapes=path, difficulty=difficulty, noise_level=0.1, duration_s=2.0)
    low, high = SIMILARITY_BANDS[difficulty]
    pairs = shape_similarity(truth.shapes)[np.triu_indices(3, 1)]
    assert low <= pairs.min() <= pairs.max() <= high
    assert truth.shapes.max(axis=1) == pytest.approx(1.0)
    assert max(truth.facts["shape_indices"]) < 625


@pytest.mark.realdata
def test_similarities_of_the_public_units_are_those_that_the_bands_name(data_folder):
    with np.load(data_folder / "wave_clus/quiroga_C_Difficult2_noise005_spikes.npz") as real:
        spikes, labels = real["spikes"], real["labels"]
    means = np.array([spikes[labels == label].mean(axis=0) for label in (1, 2, 3)])
    pairs = shape_similarity(means / means.max(axis=1, keepdims=True))[np.triu_indices(3, 1)]
    assert np.sort(pairs) == pytest.approx([0.80, 0.84, 0.97], abs=0.01)
