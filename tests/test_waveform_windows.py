"""Shifts of waveforms, what labelled spikes have in common, and the windows that are drawn from it."""

import numpy as np
import pytest
import torch
from scipy.linalg import toeplitz

from spikewise.single_channel.config import WaveformTrainingConfig
from spikewise.single_channel.training_windows import (
    SpikeModel,
    WaveformWindows,
    fit_spike_model,
    shift_waveforms,
    shift_with_zeros,
)

NUM_SAMPLES = 64
SAMPLES = np.arange(NUM_SAMPLES)
NOISE = 0.1
CORRELATION = 0.9  # of the noise, from one sample to the next


def shapes_at(time):
    """Return three units' waveforms at any times, (3, *time.shape)."""

    def bump(centre, width):
        return np.exp(-0.5 * ((time - centre) / width) ** 2)

    return np.stack(
        [
            bump(20, 4) - 0.4 * bump(34, 7),
            0.7 * bump(21, 3) - 0.8 * bump(30, 5),
            -0.9 * bump(20, 5) + 0.3 * bump(40, 8),
        ]
    )


SHAPES = shapes_at(SAMPLES)


def coloured_noise(count, random):
    """Noise whose covariance is NOISE**2 * CORRELATION**lag, exactly."""
    root = np.linalg.cholesky(toeplitz(CORRELATION**SAMPLES))
    return NOISE * random.standard_normal((count, NUM_SAMPLES)) @ root.T


def labelled_spikes(counts=(100, 100, 100), largest_shift=2.0, seed=0):
    """Return waveforms (float32), their units, and how much later than its unit's shape each is."""
    random = np.random.default_rng(seed)
    units = random.permutation(np.repeat(np.arange(3), counts))
    shift = random.uniform(-largest_shift, largest_shift, len(units))
    exact = shapes_at(SAMPLES - shift[:, None])[units, np.arange(len(units))]
    return (exact + coloured_noise(len(units), random)).astype(np.float32), units, shift


def mean_errors(model, units, shift):
    """Return the root mean square error of each unit's mean, at the place in time where the model put it."""
    errors = []
    for unit in range(3):
        mine = units == unit
        place = (shift[mine] - model.shift[mine]).mean()
        errors.append(np.sqrt(((model.means[unit] - shapes_at(SAMPLES - place)[unit]) ** 2).mean()))
    return np.array(errors)


def test_shifts_by_whole_samples_are_exact_and_continue_the_edges():
    waveforms = np.random.default_rng(0).standard_normal((3, 20)).astype(np.float32)
    moved = shift_waveforms(waveforms, np.array([3, 0, -5]))
    np.testing.assert_array_equal(moved[0, 3:], waveforms[0, :-3])
    np.testing.assert_array_equal(moved[0, :3], np.repeat(waveforms[0, 0], 3))
    np.testing.assert_array_equal(moved[1], waveforms[1])
    np.testing.assert_array_equal(moved[2, :-5], waveforms[2, 5:])
    np.testing.assert_array_equal(moved[2, -5:], np.repeat(waveforms[2, -1], 5))


@pytest.mark.parametrize("shift", [0.25, 0.5, -0.75, 1.3, -2.6])
def test_shifts_by_fractions_move_later_and_stay_within_one_percent(shift):
    time = np.arange(120)
    for period in (8, 12, 20):
        wave, later = (np.sin(2 * np.pi * t / period) for t in (time, time - shift))
        assert np.abs(shift_waveforms(wave[None], np.array([shift]))[0] - later)[4:-4].max() < 0.01


def test_what_moves_out_leaves_silence():
    waveforms = np.random.default_rng(1).standard_normal((5, 16)).astype(np.float32)
    moved = shift_with_zeros(waveforms, np.array([6, -6, 16, -16, 50]))
    np.testing.assert_array_equal(moved[0], np.concatenate([np.zeros(6), waveforms[0, :-6]]))
    np.testing.assert_array_equal(moved[1], np.concatenate([waveforms[1, 6:], np.zeros(6)]))
    assert not moved[2:].any()
    # a cubic spline reaches two samples far
    between = shift_with_zeros(np.ones((1, 16), np.float32), np.array([6.5]))[0]
    assert not between[:5].any()
    np.testing.assert_array_equal(between[8:], 1)


def test_means_are_known_to_the_noise_and_shifts_are_found():
    waveforms, units, shift = labelled_spikes()
    model = fit_spike_model(waveforms, units, 3)
    assert model.means.shape == (3, NUM_SAMPLES)
    assert model.is_described.all()
    assert (mean_errors(model, units, shift) < 2 * NOISE / np.sqrt(100)).all()
    plain = np.stack([waveforms[units == unit].mean(axis=0) for unit in range(3)])
    assert (plain.min(axis=1) > model.means.min(axis=1)).all()  # spikes that are not aligned blur
    for unit in range(3):
        mine = units == unit
        # also the sign: a spike that comes later has a larger shift
        assert np.corrcoef(model.shift[mine], shift[mine])[0, 1] > 0.85


def test_noise_is_stationary_positive_definite_and_that_of_the_spikes():
    waveforms, units, _ = labelled_spikes((200, 200, 200), largest_shift=0.0)
    covariance = fit_spike_model(waveforms, units, 3).covariance
    np.testing.assert_array_equal(covariance, toeplitz(covariance[0]))
    assert np.linalg.eigvalsh(covariance).min() > 0
    expected = NOISE**2 * CORRELATION**SAMPLES * (1 - SAMPLES / NUM_SAMPLES)  # the biased estimate's mean
    # the shifts that fit best take a part of the noise away
    assert covariance[0, 0] == pytest.approx(NOISE**2, rel=0.15)
    assert np.abs(covariance[0] - expected).max() < 0.15 * NOISE**2


def test_whitening_makes_the_noise_white():
    waveforms, units, _ = labelled_spikes()
    model = fit_spike_model(waveforms, units, 3)
    whitening = model.whitening()
    np.testing.assert_allclose(whitening @ model.covariance @ whitening.T, np.eye(NUM_SAMPLES), atol=1e-3)
    np.testing.assert_allclose(whitening, whitening.T, atol=1e-5)
    noise = coloured_noise(4000, np.random.default_rng(9))
    lag_one = np.mean((noise @ whitening)[:, 20:40] * (noise @ whitening)[:, 21:41])
    assert abs(lag_one) < 0.15 * (noise @ whitening)[:, 20:40].var()  # 0.9 before


def test_a_fifth_of_spoilt_spikes_does_not_spoil_a_unit():
    waveforms, units, shift = labelled_spikes()
    spoilt = np.flatnonzero(units == 0)[:20]
    other = np.repeat(2 * SHAPES[1][None], 20, axis=0)
    waveforms[spoilt] += shift_with_zeros(other, np.linspace(5, 12, 20)).astype(np.float32)
    model = fit_spike_model(waveforms, units, 3)
    good = np.ones(len(units), bool)
    good[spoilt] = False
    plain = waveforms[units == 0].mean(axis=0)
    assert np.sqrt(((plain - shapes_at(SAMPLES)[0]) ** 2).mean()) > 0.08  # so the mean of all is spoilt
    kept_shift = np.where(good, shift, model.shift)  # the spoilt ones have no say in where the mean is
    assert mean_errors(model, units, kept_shift)[0] < 3 * NOISE / np.sqrt(80)
    assert model.is_described.all()
    assert model.covariance[0, 0] == pytest.approx(NOISE**2, rel=0.2)


def test_a_unit_of_several_shapes_is_not_described_and_does_not_count_as_noise():
    waveforms, units, _ = labelled_spikes()
    random = np.random.default_rng(4)
    mixed = units == 2
    weights = random.uniform(-1, 1, (int(mixed.sum()), 2)).astype(np.float32)
    waveforms[mixed] += weights @ SHAPES[:2].astype(np.float32)
    model = fit_spike_model(waveforms, units, 3)
    assert model.is_described.tolist() == [True, True, False]
    assert model.covariance[0, 0] == pytest.approx(NOISE**2, rel=0.2)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_spikes_of_a_unit_are_enough(count):
    waveforms, units, _ = labelled_spikes((count, 40, 40), largest_shift=0.5)
    model = fit_spike_model(waveforms, units, 3)
    assert np.corrcoef(model.means[0], SHAPES[0])[0, 1] > 0.9
    assert np.isfinite(model.covariance).all()
    assert np.linalg.eigvalsh(model.covariance).min() > 0


def config(**changes):
    """Settings that draw labelled spikes as they are, unless told otherwise."""
    values = {
        "windows_per_epoch": 2000,
        "generated": 0.0,
        "generated_labels": 10**6,
        "overlaps": 0.0,
        "shift": 0.0,
        "amplitude_std": 0.0,
    }
    return WaveformTrainingConfig(**(values | changes)).resolved()


def exact_model(num_spikes, means=SHAPES, noise=1e-5, is_described=(True, True, True), is_clean=True):
    """A model whose spikes are all at their unit's place."""
    return SpikeModel(
        np.asarray(means, np.float32),
        np.zeros(num_spikes),
        noise**2 * toeplitz(CORRELATION**SAMPLES),
        np.array(is_described),
        np.broadcast_to(is_clean, num_spikes),
    )


def epoch_of(windows, seed=0):
    """Return the waveforms, the units that they are aligned to, and the units present, of one epoch."""
    batches = list(windows.epoch(seed))
    assert len(batches) == windows.num_batches()
    targets = torch.cat([batch.targets for batch in batches]).numpy()
    return torch.cat([batch.windows for batch in batches]).numpy(), targets[:, 0], targets[:, 1]


def weights_of(windows, seed=0):
    """Return how much the unit counts, (B, N), and how much each unit's presence, (B, N)."""
    weights = torch.cat([batch.weights for batch in windows.epoch(seed)]).numpy()
    assert weights.dtype == np.float32
    return weights[:, 0], weights[:, 1]


def drawn(model=None, spikes=None, seed=0, **changes):
    waveforms, units, _ = spikes or labelled_spikes()
    windows = WaveformWindows(waveforms, units, model or exact_model(len(units)), config(**changes))
    return epoch_of(windows, seed)


def are_labelled_spikes(windows, waveforms):
    known = {row.tobytes() for row in waveforms}
    return np.array([row.tobytes() in known for row in windows])


def test_a_seed_draws_the_same_windows_and_another_others():
    settings = {"generated": 0.5, "overlaps": 0.3, "shift": 0.02, "amplitude_std": 0.05}
    first, again, other = (drawn(seed=seed, **settings) for seed in (3, 3, 4))
    for one, two in zip(first, again, strict=True):
        assert one.tobytes() == two.tobytes()
    assert not np.array_equal(first[0], other[0])
    assert first[0].dtype == first[1].dtype == np.float32


def test_batches_have_nearly_the_same_size():
    waveforms, units, _ = labelled_spikes()
    windows = WaveformWindows(
        waveforms, units, exact_model(300), config(windows_per_epoch=130, batch_size=64)
    )
    sizes = [len(batch.windows) for batch in windows.epoch(0)]
    assert sum(sizes) == 130
    assert len(sizes) == windows.num_batches() == 3
    assert max(sizes) - min(sizes) <= 1


def test_units_are_drawn_alike_often_whatever_their_number_of_labels():
    spikes = labelled_spikes((5, 50, 500))
    windows, own, present = drawn(exact_model(555), spikes)
    assert windows.shape == (2000, NUM_SAMPLES)
    assert sorted(own.sum(axis=0).tolist()) == [666, 667, 667]
    assert (own.sum(axis=1) == 1).all()
    np.testing.assert_array_equal(own, present)  # without overlaps
    # they are spikes of that unit, and all spikes of the rarest have their turn
    unit_of = {row.tobytes(): unit for row, unit in zip(spikes[0], spikes[1], strict=True)}
    assert [unit_of[row.tobytes()] for row in windows] == own.argmax(axis=1).tolist()
    assert len({row.tobytes() for row in windows[own[:, 0] == 1]}) == 5


@pytest.mark.parametrize("generated", [0.0, 0.3, 1.0])
def test_the_fraction_that_is_made(generated):
    spikes = labelled_spikes()
    windows, own, _ = drawn(spikes=spikes, generated=generated)
    is_made = ~are_labelled_spikes(windows, spikes[0])
    assert is_made.mean() == pytest.approx(generated, abs=4 * np.sqrt(generated * (1 - generated) / 2000))
    np.testing.assert_allclose(windows[is_made], SHAPES[own.argmax(axis=1)][is_made], atol=1e-4)


def test_of_a_unit_with_many_labels_fewer_are_made():
    spikes = labelled_spikes((25, 100, 400))
    windows, own, _ = drawn(
        exact_model(525), spikes, generated=0.8, generated_labels=50, windows_per_epoch=6000
    )
    is_made = ~are_labelled_spikes(windows, spikes[0])
    shares = [is_made[own[:, unit] == 1].mean() for unit in range(3)]
    assert shares == pytest.approx([0.8, 0.4, 0.1], abs=0.045)  # 4 standard deviations


def test_a_unit_that_its_mean_does_not_describe_is_neither_made_nor_added():
    spikes = labelled_spikes()
    model = exact_model(300, is_described=(True, True, False))
    windows, own, _ = drawn(model, spikes, generated=1.0)
    np.testing.assert_array_equal(are_labelled_spikes(windows, spikes[0]), own[:, 2] == 1)
    _, own, present = drawn(model, spikes, generated=1.0, overlaps=1.0)
    np.testing.assert_array_equal(present[:, 2], own[:, 2])
    assert present[own[:, 2] == 0].sum(axis=1).max() == 2  # the two others are added to each other


def test_made_spikes_have_the_noise_the_spread_and_the_shifts_that_were_asked_for():
    noisy = exact_model(300, means=np.zeros((3, NUM_SAMPLES)), noise=NOISE)
    windows, _, _ = drawn(noisy, generated=1.0, windows_per_epoch=6000)
    measured = windows.T @ windows / len(windows)
    assert np.abs(measured - NOISE**2 * toeplitz(CORRELATION**SAMPLES)).max() < 0.1 * NOISE**2
    windows, own, _ = drawn(generated=1.0, amplitude_std=0.1)
    size = (windows * SHAPES[own.argmax(axis=1)]).sum(axis=1) / (SHAPES**2).sum(axis=1)[own.argmax(axis=1)]
    assert size.mean() == pytest.approx(1.0, abs=0.01)
    assert size.std() == pytest.approx(0.1, rel=0.1)
    narrow = np.repeat(np.exp(-0.5 * ((SAMPLES - 30) / 3) ** 2)[None], 3, axis=0)
    windows, _, _ = drawn(exact_model(300, narrow), generated=1.0, shift=2 / 64)
    place = windows @ SAMPLES / windows.sum(axis=1) - 30
    assert np.abs(place).max() < 2.05
    assert place.std() == pytest.approx(2 / np.sqrt(3), rel=0.05)


def test_labelled_spikes_are_shifted_too():
    narrow = np.exp(-0.5 * ((SAMPLES - 30) / 3) ** 2)
    spikes = np.repeat(narrow[None], 6, axis=0).astype(np.float32), np.arange(6) % 3, np.zeros(6)
    windows, _, _ = drawn(exact_model(6), spikes, shift=1 / 64)
    place = windows @ SAMPLES / windows.sum(axis=1) - 30
    assert np.abs(place).max() < 1.05
    assert place.std() == pytest.approx(1 / np.sqrt(3), rel=0.05)


def test_the_fraction_to_which_another_unit_is_added():
    spikes = labelled_spikes()
    windows, own, present = drawn(spikes=spikes, overlaps=0.25)
    is_sum = ~are_labelled_spikes(windows, spikes[0])
    assert is_sum.mean() == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 2000))
    assert (present >= own).all()  # the unit itself stays
    assert (present[is_sum].sum(axis=1) <= 2).all()
    np.testing.assert_array_equal(present[~is_sum], own[~is_sum])


def test_another_unit_is_present_where_its_peak_lies_in_the_window():
    places = np.array([10, 30, 50])
    means = np.exp(-0.5 * ((SAMPLES - places[:, None]) / 2) ** 2) * np.array([[1], [-1], [1]])
    windows, own, present = drawn(exact_model(300, means), generated=1.0, overlaps=1.0)
    added = windows - means[own.argmax(axis=1)]
    peak = np.abs(added).argmax(axis=1)
    height = np.abs(added).max(axis=1)
    is_inside = (peak > 0) & (peak < NUM_SAMPLES - 1) & (height > 0.3)
    is_gone = height < 0.05
    assert is_inside.mean() > 0.3
    assert is_gone.mean() > 0.3
    assert is_inside.mean() + is_gone.mean() > 0.9  # the rest is cut by the window's edge
    assert (present[is_inside].sum(axis=1) == 2).all()
    assert (present[is_gone].sum(axis=1) == 1).all()
    # which one is present: only the second unit points downward
    second = (present - own).argmax(axis=1)
    sign = np.sign(added[np.arange(len(added)), peak])
    np.testing.assert_array_equal(second[is_inside] == 1, sign[is_inside] < 0)
    assert height[is_inside].min() > 0.55
    assert height.max() < 1.45


def test_nobody_knows_what_else_is_in_a_spike_that_does_not_look_clean():
    waveforms, units, _ = labelled_spikes()
    is_clean = np.arange(300) % 3 != 0
    model = exact_model(300, is_clean=is_clean)
    windows = WaveformWindows(waveforms, units, model, config())
    drawn_waveforms, own, _ = epoch_of(windows)
    counts, known = weights_of(windows)
    clean = {row.tobytes() for row in waveforms[is_clean]}
    is_known = np.array([row.tobytes() in clean for row in drawn_waveforms])
    assert 0.6 < is_known.mean() < 0.73
    assert (counts == 1).all()
    np.testing.assert_array_equal(known, np.where(is_known[:, None], 1, own))
    # what is made is known
    assert (weights_of(WaveformWindows(waveforms, units, model, config(generated=1.0)))[1] == 1).all()


def test_a_spike_with_a_large_remainder_does_not_look_clean():
    waveforms, units, _ = labelled_spikes()
    waveforms[::10] += SHAPES[(units[::10] + 1) % 3].astype(np.float32)
    model = fit_spike_model(waveforms, units, 3)
    assert not model.is_clean[::10].any()
    assert model.is_clean.mean() > 0.7  # noise of few degrees of freedom has a wide spread of power


def test_the_unit_of_an_overlap_counts_less_and_not_at_all_where_both_fall_together():
    means = np.exp(-0.5 * ((SAMPLES - 30) / 2) ** 2) * np.array([[1], [-1], [1]])
    waveforms, units, _ = labelled_spikes()
    settings = config(generated=1.0, overlaps=0.5)
    windows = WaveformWindows(waveforms, units, exact_model(300, means), settings)
    made, own, _ = epoch_of(windows)
    counts, known = weights_of(windows)
    assert (known == 1).all()
    assert (counts == counts[:, :1]).all()
    added = made - means[own.argmax(axis=1)]
    height, lag = np.abs(added).max(axis=1), np.abs(added).argmax(axis=1) - 30
    assert set(np.unique(counts)) == {np.float32(0), np.float32(0.3), np.float32(1)}
    shown = height > 0.3
    assert (counts[shown & (lag == 0), 0] == 0).all()
    assert (counts[shown & (np.abs(lag) >= 2), 0] == np.float32(0.3)).all()
    assert (counts[:, 0] == 1).mean() == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / 2000))


def test_the_paper_sees_each_labelled_spike_once_and_unchanged():
    waveforms, units, _ = labelled_spikes((20, 30, 80))
    paper = WaveformTrainingConfig(preset="paper").resolved()
    windows = WaveformWindows(waveforms, units, exact_model(130), paper)
    unit_of = {row.tobytes(): unit for row, unit in zip(waveforms, units, strict=True)}
    orders = []
    for seed in (0, 1):
        drawn_waveforms, own, present = epoch_of(windows, seed)
        orders.append([row.tobytes() for row in drawn_waveforms])
        assert sorted(orders[-1]) == sorted(unit_of)
        assert [unit_of[row] for row in orders[-1]] == own.argmax(axis=1).tolist()
        np.testing.assert_array_equal(own, present)
        assert (np.stack(weights_of(windows, seed)) == 1).all()
    assert orders[0] != orders[1]


def test_all_centres_are_the_labelled_spikes_in_order():
    waveforms, units, _ = labelled_spikes()
    windows = WaveformWindows(waveforms, units, exact_model(300), config(overlaps=1.0, generated=1.0))
    batches = list(windows.all_centres())
    np.testing.assert_array_equal(torch.cat([batch.windows for batch in batches]).numpy(), waveforms)
    targets = torch.cat([batch.targets for batch in batches]).numpy()
    np.testing.assert_array_equal(targets[:, 0], np.eye(3)[units])
    np.testing.assert_array_equal(targets[:, 1], np.eye(3)[units])
