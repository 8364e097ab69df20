"""Windows carry the labels that the definition gives them, and no window crosses into other time."""

import numpy as np
import pytest
import torch
from arrays import ArrayTraces, spikes_at

from spikewise.core.config import TrainingConfig
from spikewise.learning.examples.training_set import Block, TrainingSet, split_interval

WINDOW, RADIUS, LEFT = 60, 5, 29
RATE = 1000.0


def numbered_traces(*lengths) -> ArrayTraces:
    """Traces whose first channel says the global frame (exact in half precision up to 2048)."""
    segments, first = [], 0
    for length in lengths:
        frames = np.arange(first, first + length)
        segments.append(np.stack([frames, -frames], axis=1))
        first += length
    return ArrayTraces(*segments, sampling_frequency=RATE)


def config(**options) -> TrainingConfig:
    return TrainingConfig(
        **{"noise_windows": "anywhere", "superpositions": 0.0, "min_steps": 0, **options}
    ).resolved()


def centres_of(batch) -> np.ndarray:
    return batch.windows[:, LEFT, 0].numpy().astype(int)


def expected_label(centre, spikes, unit):
    distances = [
        abs(f - centre) for f, u in zip(spikes.global_frame, spikes.unit_index, strict=True) if u == unit
    ]
    return float(any(d <= RADIUS for d in distances))


def test_windows_are_whole_and_labelled_as_the_paper_does():
    spikes = spikes_at([200, 204, 500, 700, 703], [0, 1, 0, 1, 1], 2)
    traces = numbered_traces(2000)
    windows = TrainingSet(
        traces, spikes, [Block(0, 0, 2000, False)], WINDOW, RADIUS, config(windows_per_spike=0, batch_size=16)
    )
    seen = []
    for batch in windows.epoch(seed=0):
        centres = centres_of(batch)
        steps = np.diff(batch.windows[:, :, 0].numpy(), axis=1)
        assert (steps == 1).all()
        assert torch.equal(batch.windows[:, :, 1], -batch.windows[:, :, 0])
        for row, centre in enumerate(centres):
            for unit in range(2):
                assert batch.targets[row, unit] == expected_label(centre, spikes, unit), centre
        assert (batch.weights == 1).all()
        seen += centres.tolist()
    near = {frame + shift for frame in spikes.global_frame.tolist() for shift in range(-RADIUS, RADIUS + 1)}
    assert near <= set(seen)
    assert len(seen) == 2 * 5 * 11  # each window of each spike, and as many of noise
    assert len(set(seen) - near) > 30


def test_the_first_k_train_and_the_others_are_neither_positive_nor_noise():
    frames = np.array([100, 300, 500, 700, 900])
    spikes = spikes_at(frames, [0, 0, 0, 1, 1], 2, positive=[True, True, False, True, False])
    windows = TrainingSet(
        numbered_traces(2000), spikes, [Block(0, 0, 2000, False)], WINDOW, RADIUS, config(windows_per_spike=3)
    )
    assert windows.num_positive_spans == 3
    for epoch in range(20):
        for batch in windows.epoch(epoch):
            centres = centres_of(batch)
            for hidden in (500, 900):
                assert (np.abs(centres - hidden) > LEFT + RADIUS).all()


def test_a_hidden_spike_in_a_labelled_window_says_nothing_of_its_unit():
    spikes = spikes_at([500, 510], [0, 1], 2, positive=[True, False])
    windows = TrainingSet(
        numbered_traces(2000), spikes, [Block(0, 0, 2000, False)], WINDOW, RADIUS, config(windows_per_spike=0)
    )
    for batch in windows.epoch(0):
        near = np.abs(centres_of(batch) - 500) <= RADIUS
        assert near.sum() in (0, 11)
        assert (batch.targets[near, 0] == 1).all()
        assert (batch.weights[near, 0] == 1).all()
        assert (batch.weights[near, 1] == 0).all()


def test_spike_free_noise_holds_no_spike_anywhere_in_its_window():
    frames = np.arange(100, 1900, 200)
    spikes = spikes_at(frames, np.zeros(len(frames)), 1)
    settings = config(noise_windows="spike-free", windows_per_spike=4)
    windows = TrainingSet(numbered_traces(2000), spikes, [Block(0, 0, 2000, False)], WINDOW, RADIUS, settings)
    noise = [c for batch in windows.epoch(0) for c in centres_of(batch)[batch.targets[:, 0].numpy() == 0]]
    assert len(noise) == 4 * len(frames)
    assert min(np.abs(np.array(noise)[:, None] - frames).min(axis=1)) > LEFT


def test_training_and_held_out_windows_share_no_sample():
    frames = np.arange(40, 1990, 37)
    spikes = spikes_at(frames, np.arange(len(frames)) % 3, 3)
    traces = numbered_traces(1200, 800)
    blocks = split_interval(traces, [(0, 2000)], spikes, 0.2)
    samples = {}
    for held_out in (False, True):
        part = [block for block in blocks if block.held_out == held_out]
        windows = TrainingSet(traces, spikes, part, WINDOW, RADIUS, config())
        batches = [*windows.epoch(0), *windows.all_centres()]
        samples[held_out] = {int(s) for batch in batches for s in batch.windows[:, :, 0].flatten()}
    assert samples[False].isdisjoint(samples[True])
    assert len(samples[True]) > 100


def test_blocks_cover_the_interval_once_and_stay_in_their_segment():
    traces = numbered_traces(1200, 800)
    blocks = split_interval(traces, [(50, 1950)], spikes_at([100], [0], 1), 0.2)
    covered = np.concatenate([np.arange(block.start, block.stop) for block in blocks])
    np.testing.assert_array_equal(covered, np.arange(50, 1950))
    assert all((block.start < 1200) == (block.segment_index == 0) for block in blocks)
    assert all(block.stop <= 1200 for block in blocks if block.segment_index == 0)
    share = sum(b.stop - b.start for b in blocks if b.held_out) / 1900
    assert 0.1 < share < 0.3


def test_every_unit_keeps_a_training_spike():
    traces = numbered_traces(2000)
    spikes = spikes_at([10 + 190 * unit for unit in range(10)], np.arange(10), 10)
    blocks = split_interval(traces, [(0, 2000)], spikes, 0.5)
    training = [block for block in blocks if not block.held_out]
    for frame in spikes.global_frame:
        assert any(block.start <= frame < block.stop for block in training)


def test_the_same_seed_gives_the_same_windows_and_another_seed_others():
    spikes = spikes_at(np.arange(50, 1950, 50), np.arange(38) % 2, 2)

    def windows_of(seed):
        windows = TrainingSet(
            numbered_traces(2000), spikes, [Block(0, 0, 2000, False)], WINDOW, RADIUS, config(seed=seed)
        )
        return torch.cat([batch.windows for batch in windows.epoch(seed)])

    assert torch.equal(windows_of(1), windows_of(1))
    assert not torch.equal(windows_of(1), windows_of(2))


@pytest.mark.parametrize("num_spikes", [1, 2])
def test_no_batch_holds_a_single_window(num_spikes):
    spikes = spikes_at([500, 900][:num_spikes], [0] * num_spikes, 1)
    windows = TrainingSet(
        numbered_traces(2000),
        spikes,
        [Block(0, 0, 2000, False)],
        WINDOW,
        RADIUS,
        config(windows_per_spike=4, batch_size=7),
    )
    batches = list(windows.epoch(0))
    assert len(batches) == windows.num_batches()
    assert min(len(batch.windows) for batch in batches) > 1


def test_the_number_of_steps_stays_within_its_bounds_and_all_spikes_take_part():
    spikes = spikes_at(np.arange(50, 1950, 50), np.arange(38) % 2, 2)

    def steps_and_centres(**options):
        settings = config(windows_per_spike=4, batch_size=16, epochs=5, **options)
        windows = TrainingSet(
            numbered_traces(2000), spikes, [Block(0, 0, 2000, False)], WINDOW, RADIUS, settings
        )
        batches = [list(windows.epoch(seed)) for seed in range(5)]
        assert {len(epoch) for epoch in batches} == {windows.num_batches()}
        positive = {
            c for epoch in batches for batch in epoch for c in centres_of(batch)[batch.targets.amax(1) > 0]
        }
        return sum(map(len, batches)), {
            spike for c in positive for spike in spikes.global_frame if abs(c - spike) <= 5
        }

    steps, seen = steps_and_centres(max_steps=20)
    assert steps == 20
    assert len(seen) > 25  # 40 windows for each epoch, of spikes drawn anew
    assert steps_and_centres(min_steps=200)[0] == 200
    assert steps_and_centres()[0] == 5 * 19
