"""Spikes in a raw single channel."""

import numpy as np
import pytest
from scipy.io import savemat
from scipy.optimize import linear_sum_assignment

from spikewise.core.errors import WaveformsError
from spikewise.single_channel.config import SnippetsConfig, SpikeDetectionConfig
from spikewise.single_channel.raw_channel import bandpass, find_spikes, load_raw_channel

RATE = 24000.0
CONFIG = SpikeDetectionConfig()


def spiky(times, amplitudes, *, noise=1.0, num_samples=48000, seed=0) -> np.ndarray:
    """Noise with spikes, narrow peaks at times that may lie between samples."""
    signal = noise * np.random.default_rng(seed).normal(size=num_samples)
    for time, amplitude in zip(times, amplitudes, strict=True):
        near = np.arange(int(time) - 40, int(time) + 41)
        signal[near] += amplitude * np.exp(-0.5 * ((near - time) / 2.5) ** 2)
    return signal


def matched(found: np.ndarray, true: np.ndarray, tolerance: int) -> int:
    """Largest number of one-to-one pairs within the tolerance."""
    close = np.abs(found[:, None] - true[None]) <= tolerance
    return int(close[linear_sum_assignment(close, maximize=True)].sum())


def test_all_spikes_are_found_where_they_are():
    times = np.arange(500, 47500, 400)
    found = find_spikes(spiky(times, np.full(len(times), -40.0)), RATE, CONFIG)
    assert len(found) == len(times)
    assert np.abs(found.sample_index - times).max() <= 1
    assert found.waveforms.shape == (len(times), 64)
    assert (found.waveforms.argmin(axis=1) == 20).all()
    assert (found.labels, found.sampling_frequency) == (None, RATE)


def test_waveforms_are_those_of_the_filtered_signal():
    signal = spiky([5000], [-60.0])
    config = SpikeDetectionConfig(upsampling=1, before_ms=0.5, after_ms=1.0)
    found = find_spikes(signal, RATE, config)
    peak = found.sample_index[np.abs(found.sample_index - 5000).argmin()]
    row = found.waveforms[found.sample_index == peak][0]
    np.testing.assert_allclose(
        row, bandpass(signal, RATE, config)[peak - 12 : peak + 24], rtol=1e-5, atol=1e-6
    )


def test_shifts_between_samples_are_removed():
    times = np.arange(100) * 400 + 1000 + np.linspace(0, 1, 100, endpoint=False)
    signal = spiky(times, np.full(100, -100.0), noise=0.01)
    signal += 0.2 * np.random.default_rng(1).normal(size=len(signal))
    spread = {}
    for upsampling in (1, 5, 20):
        found = find_spikes(signal, RATE, SpikeDetectionConfig(upsampling=upsampling))
        assert len(found) == 100
        spread[upsampling] = found.waveforms.var(axis=0).mean()
    assert spread[5] < spread[1] / 15
    assert spread[20] < spread[5]


def test_the_band_passes_what_it_should_and_shifts_nothing():
    time_s = np.arange(24000) / RATE
    inside, below = np.sin(2 * np.pi * 1000 * time_s), np.sin(2 * np.pi * 20 * time_s)
    filtered = bandpass(inside + 50 * below + 2044, RATE, CONFIG)[2000:-2000]
    gain = filtered @ inside[2000:-2000] / (inside[2000:-2000] @ inside[2000:-2000])
    assert gain == pytest.approx(1, abs=0.03)  # 0.1 dB, twice
    assert np.std(filtered - gain * inside[2000:-2000]) < 0.02


@pytest.mark.parametrize(
    ("polarity", "expected"),
    [
        ("negative", [2000, 6000, 10000]),
        ("positive", [4000, 8000]),
        ("both", [2000, 4000, 6000, 8000, 10000]),
    ],
)
def test_polarity(polarity, expected):
    # so wide that the filter's counter-peaks stay below the threshold
    signal = spiky([2000, 4000, 6000, 8000, 10000], [-30, 30, -30, 30, -30])
    config = SpikeDetectionConfig(polarity=polarity, detection_threshold=11.0)
    found = find_spikes(signal, RATE, config)
    assert len(found) == len(expected)
    assert np.abs(found.sample_index - expected).max() <= 1


@pytest.mark.parametrize("sign", [1, -1])
def test_auto_takes_the_direction_of_the_larger_peaks(sign):
    times = np.arange(1000, 47000, 500)
    amplitudes = np.where(np.arange(len(times)) % 2, 90.0, -30.0) * sign
    found = find_spikes(spiky(times, amplitudes), RATE, CONFIG)
    peaks = found.waveforms[:, 20]
    assert (np.sign(peaks) == sign).all()
    assert matched(found.sample_index, times[1::2], 2) == len(times[1::2])


def test_of_close_peaks_the_largest_is_kept():
    times = [5000, 5020, 9000, 9050]  # 0.8 and 2.1 ms apart
    signal = spiky(times, [-40, -80, -80, -40])
    found = find_spikes(signal, RATE, SpikeDetectionConfig(refractory_ms=1.5, detection_threshold=8.0))
    assert np.abs(found.sample_index - [5020, 9000, 9050]).max() <= 1
    every = find_spikes(signal, RATE, SpikeDetectionConfig(refractory_ms=0.5, detection_threshold=8.0))
    assert np.abs(every.sample_index - times).max() <= 1


def test_noise_alone_gives_few_spikes_and_a_high_threshold_none():
    noise = np.random.default_rng(0).normal(size=240000)
    assert len(find_spikes(noise, RATE, CONFIG)) < 20  # 10 s
    none = find_spikes(noise, RATE, SpikeDetectionConfig(detection_threshold=20.0))
    assert none.waveforms.shape == (0, 64)


def test_spikes_at_the_ends_are_left_out():
    found = find_spikes(spiky([40, 2000, 47958], [-60, -60, -60]), RATE, CONFIG)
    assert matched(found.sample_index, np.array([40, 2000]), 1) == 2
    assert found.sample_index.max() < 47957


def test_whole_numbers_with_an_offset_give_the_same():
    times = np.arange(500, 47500, 400)
    signal = np.rint(10 * spiky(times, np.full(len(times), -40.0)))
    found = find_spikes((signal + 2044).astype(np.int16)[None], RATE, CONFIG)
    same = find_spikes(signal, RATE, CONFIG)
    assert found.sample_index.tolist() == same.sample_index.tolist()
    np.testing.assert_allclose(found.waveforms, same.waveforms, atol=1e-4)


def with_nan() -> np.ndarray:
    signal = spiky([], [])
    signal[[70, 90]] = np.nan, np.inf
    return signal


@pytest.mark.parametrize(
    ("signal", "words"),
    [
        (np.empty(0), "shape"),
        (np.ones((4, 1000)), r"shape \(4, 1000\)"),
        (np.ones(1000, dtype=complex), "complex"),
        (np.array(["a"] * 1000), "one channel"),
        (np.arange(50.0), "50 samples. At least 66"),
        (np.full(1000, 7), "7 throughout"),
        (with_nan(), "2 samples .* first sample 70"),
    ],
)
def test_signals_that_cannot_be_used(signal, words):
    with pytest.raises(WaveformsError, match=words):
        find_spikes(signal, RATE, CONFIG)


def test_other_input_that_cannot_be_used():
    signal = spiky([2000], [-60])
    blanked = np.zeros(48000)
    blanked[40000] = 1.0
    with pytest.raises(WaveformsError, match="zero most of the time"):
        find_spikes(blanked, RATE, CONFIG)
    with pytest.raises(WaveformsError, match="Above 0 Hz"):
        find_spikes(signal, 0.0, CONFIG)
    with pytest.raises(WaveformsError, match="begins at 300 Hz, the signal has 600 Hz"):
        find_spikes(signal, 600.0, SpikeDetectionConfig(before_ms=5, after_ms=5))


def test_raw_files(tmp_path):
    signal = np.arange(100, dtype=np.int16)
    np.save(tmp_path / "a.npy", signal)
    np.savez(tmp_path / "b.npz", traces=signal[None], fs=15000)
    savemat(tmp_path / "c.mat", {"data": signal[None], "sr": 30000})
    with pytest.raises(WaveformsError, match="does not hold its sampling frequency"):
        load_raw_channel(tmp_path / "a.npy")
    channels = [
        load_raw_channel(tmp_path / "a.npy", SnippetsConfig(sampling_frequency=20000)),
        load_raw_channel(tmp_path / "b.npz"),
        load_raw_channel(tmp_path / "c.mat"),
    ]
    assert [channel.sampling_frequency for channel in channels] == [20000, 15000, 30000]
    for channel in channels:
        assert (channel.signal == signal).all()
        assert channel.sample_index is None
        assert channel.labels is None
    np.savez(tmp_path / "d.npz", data=signal, times=[5, 50], labels=[1, 2], fs=24000)
    assert load_raw_channel(tmp_path / "d.npz").sample_index.tolist() == [5, 50]
    (tmp_path / "e.txt").write_text("1 2 3")
    with pytest.raises(WaveformsError, match="cannot be read"):
        load_raw_channel(tmp_path / "e.txt", SnippetsConfig(sampling_frequency=20000))


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("polarity", "least_recall", "least_precision"), [("auto", 0.89, 0.95), ("both", 0.95, 0.95)]
)
def test_true_spikes_of_a_public_simulation(data_folder, polarity, least_recall, least_precision):
    channel = load_raw_channel(data_folder / "wave_clus" / "quiroga_C_Easy1_noise015_raw50000_gt.npz")
    config = SpikeDetectionConfig(polarity=polarity)
    found = find_spikes(channel.signal, channel.sampling_frequency, config)
    true_peaks = channel.sample_index + 22
    matches = matched(found.sample_index, true_peaks, round(channel.sampling_frequency / 1000))
    assert len(true_peaks) == 121
    assert matches / len(true_peaks) >= least_recall
    assert matches / len(found) >= least_precision
