"""The loop learns, repeats itself to the bit, keeps its best state, and survives Ctrl-C; thresholds fit."""

import numpy as np
import pytest
import torch
from arrays import ArrayTraces, spikes_at

from spikewise.core.config import DetectionConfig, TrainingConfig
from spikewise.learning.examples.training_set import TrainingSet, split_interval
from spikewise.learning.thresholds import (
    CANDIDATES,
    _best_thresholds,
    _score_peaks,
    choose_thresholds,
    lowest_thresholds,
)
from spikewise.learning.training_loop import TrainingTask, evaluate_loss, train_network
from spikewise.models.esort import EsortNetwork
from spikewise.sorting.batch import detect_in_chunks
from spikewise.sorting.tensor_detector import DenseDetector

RATE, WINDOW, RADIUS = 32000.0, 60, 5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def planted():
    """Four seconds of unit noise on two channels, in which two waveforms fire."""
    random = np.random.default_rng(0)
    traces = random.normal(size=(4 * 32000, 2)).astype(np.float32)
    shape = -np.diff(np.exp(-(np.linspace(-3, 3, 42) ** 2)), append=0)
    shape *= 12 / np.abs(shape).max()
    frames = np.sort(random.choice(np.arange(200, len(traces) - 200, 250), 260, replace=False))
    units = random.integers(0, 2, len(frames))
    for frame, unit in zip(frames, units, strict=True):
        traces[frame - 20 : frame + 22] += np.outer(shape, [1.0, 0.3] if unit == 0 else [-0.3, 1.0])
    return ArrayTraces(traces, sampling_frequency=RATE), spikes_at(frames, units, 2)


@pytest.fixture(scope="module")
def parts(planted):
    traces, spikes = planted
    config = TrainingConfig(epochs=8, batch_size=128).resolved()
    blocks = split_interval(traces, [(0, 96000)], spikes, 0.2)
    sets = [
        TrainingSet(traces, spikes, [b for b in blocks if b.held_out == flag], WINDOW, RADIUS, config)
        for flag in (False, True)
    ]
    return sets, blocks, config


def test_a_trained_network_finds_the_planted_spikes_of_later_time(planted, parts):
    traces, spikes = planted
    (training, held_out), blocks, config = parts
    network = EsortNetwork(2, 2, WINDOW, (8, 16), 32)
    history = train_network(network, TrainingTask(training, held_out), config, CPU)
    assert history.train_loss[-1] < history.train_loss[0] / 5
    detector = DenseDetector(network, lowest_thresholds(2), RATE, DetectionConfig(), CPU)
    thresholds = choose_thresholds(detector, traces, spikes, [b for b in blocks if b.held_out])
    detector = DenseDetector(network, thresholds, RATE, DetectionConfig(), CPU)
    found = detect_in_chunks(detector, traces, 1.0)[0]
    late = found.sample_index >= 96000
    truth = spikes.global_frame >= 96000
    found_pairs = {(f, u) for f, u in zip(found.sample_index[late], found.unit_index[late], strict=True)}
    true_pairs = list(zip(spikes.global_frame[truth], spikes.unit_index[truth], strict=True))
    hits = [
        pair for pair in true_pairs if any((pair[0] + s, pair[1]) in found_pairs for s in (-2, -1, 0, 1, 2))
    ]
    assert len(hits) / (len(true_pairs) + len(found_pairs) - len(hits)) > 0.95


def test_the_same_seed_trains_the_same_network_to_the_bit(parts):
    (training, held_out), _, _ = parts

    def weights(seed):
        network = EsortNetwork(2, 2, WINDOW, (8, 16), 32)
        settings = TrainingConfig(epochs=2, batch_size=128, seed=seed).resolved()
        train_network(network, TrainingTask(training, held_out), settings, CPU)
        return torch.cat([value.float().flatten() for value in network.state_dict().values()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_training_leaves_the_global_random_state_alone(parts):
    (training, held_out), _, _ = parts
    network = EsortNetwork(2, 2, WINDOW)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    settings = TrainingConfig(epochs=1).resolved()
    train_network(network, TrainingTask(training, held_out), settings, CPU)
    assert torch.equal(torch.rand(3), expected)


class Interrupting:
    """The training set, with a Ctrl-C in the given epoch."""

    def __init__(self, windows, epoch):
        self.windows, self.left = windows, epoch

    def epoch(self, seed):
        for index, batch in enumerate(self.windows.epoch(seed)):
            if self.left == 0 and index == 1:
                raise KeyboardInterrupt
            yield batch
        self.left -= 1

    def num_batches(self):
        return self.windows.num_batches()


def test_ctrl_c_keeps_the_best_state_so_far(parts):
    (training, held_out), _, _ = parts
    config = TrainingConfig(epochs=6, batch_size=128).resolved()
    network = EsortNetwork(2, 2, WINDOW, (8, 16), 32)
    history = train_network(network, TrainingTask(Interrupting(training, 2), held_out), config, CPU)
    assert history.interrupted
    assert len(history.train_loss) == 2
    assert evaluate_loss(network, held_out, CPU) == pytest.approx(min(history.held_out_loss), rel=1e-5)


def test_the_state_of_the_lowest_held_out_loss_is_kept(parts):
    (training, held_out), _, _ = parts
    config = TrainingConfig(epochs=8, batch_size=128, learning_rate=0.3, schedule="constant")
    network = EsortNetwork(2, 2, WINDOW, (8, 16), 32)
    history = train_network(network, TrainingTask(training, held_out), config.resolved(), CPU)
    assert len(history.held_out_loss) == 8
    assert history.best_epoch == int(np.argmin(history.held_out_loss)) < 7
    assert evaluate_loss(network, held_out, CPU) == pytest.approx(min(history.held_out_loss), rel=1e-5)


def test_a_preset_fills_only_what_is_not_given():
    paper = TrainingConfig(preset="paper", epochs=7).resolved()
    assert (paper.epochs, paper.batch_size, paper.learning_rate, paper.schedule) == (
        7,
        1024,
        5e-3,
        "constant",
    )
    assert (paper.windows_per_spike, paper.noise_windows) == (0, "spike-free")
    assert TrainingConfig(preset="paper").resolved().epochs == 50


def test_peaks_are_hits_false_or_unknown():
    frames = np.array([100, 105, 300, 500, 700])
    responses = np.array([0.6, 0.8, 0.4, 0.9, 0.7], dtype=np.float32)
    hits, false = _score_peaks(
        frames, responses, true=np.array([102, 900]), unknown=np.array([498]), delta=12
    )
    assert hits.tolist() == pytest.approx([0.8])
    assert false.tolist() == pytest.approx([0.6, 0.4, 0.7])


@pytest.mark.parametrize("num_true", [0.0, 12.0])
def test_where_nothing_speaks_for_a_threshold_it_is_the_usual_one(num_true):
    tp, fp = np.full((2, len(CANDIDATES)), num_true), np.zeros((2, len(CANDIDATES)))
    tp[:, -1] = num_true - 0.5  # one spike is missed above 0.9: everything below looks alike
    thresholds = _best_thresholds(tp, fp, np.full(2, num_true))
    assert thresholds == pytest.approx([0.51, 0.51], abs=0.03)


def test_a_unit_with_many_spikes_chooses_its_threshold_and_one_with_few_follows_the_rest():
    num_candidates = len(CANDIDATES)
    tp = np.zeros((2, num_candidates))
    fp = np.zeros((2, num_candidates))
    tp[0], fp[0, :20] = 500, 400  # false peaks up to candidate 19: the best is above
    tp[1, :5], fp[1] = 1, 0  # its one spike responds low
    thresholds = _best_thresholds(tp, fp, np.array([500.0, 1.0]))
    assert thresholds[0] > 0.55
    assert thresholds[1] > 0.55
    tp[1, :5] = 800
    assert _best_thresholds(tp, fp, np.array([500.0, 800.0]))[1] < 0.21
