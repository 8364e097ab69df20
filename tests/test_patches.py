"""Patches made to order: what they hold, where they are cut, and what they are labelled."""

import numpy as np
import pytest

from spikewise.learning.examples.patches import PatchMaker, PatchShape
from spikewise.learning.examples.stored_traces import StoredTraces
from spikewise.learning.examples.training_set import Block
from spikewise.learning.examples.unit_templates import UnitTemplates, estimate_templates

RATE = 32000.0
SHAPE = PatchShape(60, 5)
CENTRE = 50


class ArrayTraces:
    """Traces in memory, in segments."""

    def __init__(self, *segments):
        self.segments = segments
        self.num_segments, self.num_channels = len(segments), segments[0].shape[1]
        self.sampling_frequency = RATE

    def num_samples(self, segment_index):
        return len(self.segments[segment_index])

    def read(self, segment_index, start, stop):
        return self.segments[segment_index][start:stop].astype(np.float32)


def counting(num_samples, num_channels=3):
    """Traces that tell where they are from: the sample, and a tenth of the channel."""
    return np.arange(num_samples)[:, None] + np.arange(num_channels)[None] / 8


def blocks_of(*edges):
    return [Block(segment, start, stop, False) for segment, start, stop in edges]


# Stored traces


def test_a_window_is_the_traces_around_its_frame():
    stored = StoredTraces(ArrayTraces(counting(900)), blocks_of((0, 100, 300), (0, 500, 700)), reach=20)
    columns, which = stored.columns_of(np.array([150, 250, 550, 650]))
    assert which.tolist() == [0, 1, 2, 3]
    windows = stored.windows(columns, before=4, length=10)
    for window, frame in zip(windows.numpy(), (150, 250, 550, 650), strict=True):
        np.testing.assert_allclose(window[0], np.arange(frame - 4, frame + 6), rtol=1e-3)
        np.testing.assert_allclose(window[2], np.arange(frame - 4, frame + 6) + 0.25, rtol=1e-3)


def test_no_window_reaches_over_a_gap_but_over_the_seam_of_neighbours():
    traces = ArrayTraces(counting(900))
    apart = StoredTraces(traces, blocks_of((0, 100, 300), (0, 400, 600)), reach=20)
    frames = np.array([100, 119, 120, 279, 280, 399, 420, 579, 700])
    assert apart.columns_of(frames)[1].tolist() == [2, 3, 6, 7]
    joined = StoredTraces(traces, blocks_of((0, 100, 300), (0, 300, 600)), reach=20)
    assert joined.columns_of(np.array([119, 120, 299, 300, 579, 580]))[1].tolist() == [1, 2, 3, 4]


def test_blocks_of_two_segments_are_read_from_their_own():
    second = counting(500) + 5000
    stored = StoredTraces(ArrayTraces(counting(400), second), blocks_of((0, 0, 200), (1, 450, 850)), reach=10)
    columns, _ = stored.columns_of(np.array([600]))  # sample 200 of the second segment
    np.testing.assert_allclose(stored.windows(columns, 0, 4)[0, 0], [5200, 5201, 5202, 5203], rtol=1e-3)


def test_what_is_stored_is_read_like_any_traces_and_the_rest_is_zero():
    first, second = counting(400) + 1, counting(500) + 1001
    traces = ArrayTraces(first, second)
    stored = StoredTraces(traces, blocks_of((0, 100, 200), (0, 200, 300), (1, 450, 850)), reach=10)
    assert (stored.num_segments, stored.num_samples(1), stored.num_channels) == (2, 500, 3)
    read = stored.read(0, 50, 450)
    np.testing.assert_allclose(read[50:250], first[100:300], rtol=1e-3)
    assert not read[:50].any()
    assert not read[250:].any()
    read = stored.read(1, -20, 480)
    np.testing.assert_allclose(read[70:470], second[50:450], rtol=1e-3)
    assert not read[:70].any()
    assert not read[470:].any()


def test_what_is_stored_is_bounded():
    edges = [(0, start, start + 100) for start in range(0, 1000, 100)]
    stored = StoredTraces(ArrayTraces(counting(1000)), blocks_of(*edges), reach=5, memory_bytes=3 * 2 * 400)
    assert stored.values.shape == (3, 400)
    assert stored.columns_of(np.array([50, 950]))[1].tolist() == [0, 1]  # spread over all of it


# Templates


def spike(num_channels=3):
    wave = -12 * np.exp(-(((np.arange(100) - CENTRE) / 6) ** 2))
    return np.stack([wave * share for share in np.linspace(1, 0.3, num_channels)])  # C, S


def noisy(frames, num_samples=200_000, seed=0, shape=None):
    traces = np.random.default_rng(seed).standard_normal((num_samples, 3))
    for frame in frames:
        traces[frame - CENTRE : frame + CENTRE] += (spike() if shape is None else shape).T
    return traces


POSITIONS = np.array([[0.0, 0.0], [0.0, 20.0], [0.0, 40.0]])


def templates_of(traces, *frames):
    stored = StoredTraces(ArrayTraces(traces), blocks_of((0, 0, len(traces))), reach=120)
    columns = [stored.columns_of(np.asarray(of_unit))[0] for of_unit in frames]
    return stored, columns, estimate_templates(stored, columns, POSITIONS, RATE)


def test_a_template_is_nearer_the_truth_than_the_mean_of_its_few_spikes():
    frames = np.arange(1000, 6000, 1000)
    traces = noisy(frames)
    _, _, templates = templates_of(traces, frames)
    mean = np.mean([traces[frame - CENTRE : frame + CENTRE].T for frame in frames], axis=0)
    assert np.linalg.norm(templates.values[0] - spike()) < 0.8 * np.linalg.norm(mean - spike())


def test_one_spike_of_another_unit_on_top_does_not_move_a_unit():
    frames = np.arange(1000, 6000, 1000)
    traces = noisy(frames)
    traces[3000 - CENTRE : 3000 + CENTRE, 2] += 20 * spike()[0]
    _, _, templates = templates_of(traces, frames)
    assert np.abs(templates.values[0]).max(axis=1).argmax() == 0
    assert templates.positions_um[0][1] < 20


def test_the_nearest_channels_come_first():
    nothing = np.zeros((1, 3, 100), np.float32)
    templates = UnitTemplates(nothing, CENTRE, np.array([[0.0, 30.1]]), np.array([1]))
    assert templates.nearest_channels(POSITIONS, 2).tolist() == [[2, 1]]
    assert templates.nearest_channels(POSITIONS, 9).tolist() == [[2, 1, 0]]


# Patches


@pytest.fixture(scope="module")
def maker():
    """Two units whose spikes are far larger than the noise, on all three channels."""
    frames = np.arange(1000, 190_000, 3000)
    other = frames + 1500
    traces = 0.01 * np.random.default_rng(0).standard_normal((200_000, 3))
    for unit, of_unit in enumerate((frames, other)):
        for frame in of_unit:
            traces[frame - CENTRE : frame + CENTRE] += (spike() if unit == 0 else spike()[::-1]).T
    stored, columns, templates = templates_of(traces, frames, other)
    near = templates.nearest_channels(POSITIONS, 3)
    return PatchMaker(stored, templates, near, columns, columns, SHAPE)


def troughs(patches, channel):
    """The depth and the place of the deepest trough on a channel, from the window's centre."""
    depth, place = patches[:, channel].min(dim=1)
    return depth.numpy(), place.numpy() - SHAPE.left


def test_a_patch_with_the_unit_has_its_trough_near_the_centre(maker):
    patches, targets = maker.make(0, 2000, np.random.default_rng(1))
    own = int(np.flatnonzero(maker.channel_index[0] == 0)[0])
    depth, place = troughs(patches[targets == 1], own)
    assert targets.mean() == pytest.approx(0.4, abs=0.01)
    assert (depth < -12 * 0.75).all()
    assert (np.abs(place) <= SHAPE.label_radius + 4).mean() > 0.95  # another may pull the trough


def test_a_patch_without_the_unit_has_no_lone_spike_of_it_at_the_centre(maker):
    patches, targets = maker.make(0, 2000, np.random.default_rng(1))
    first, last = (int(np.flatnonzero(maker.channel_index[0] == k)[0]) for k in (0, 2))
    without = patches[targets == 0]
    depth, place = troughs(without, first)
    lone = (depth < -9) & (without[:, last].min(dim=1).values.numpy() > -5)  # nothing of the other unit
    assert lone.sum() > 20  # its own spikes off the centre are there
    assert (np.abs(place[lone]) > SHAPE.label_radius).all()


def test_the_other_unit_is_seen_at_all_lags_with_and_without(maker):
    patches, targets = maker.make(0, 4000, np.random.default_rng(1))
    last = int(np.flatnonzero(maker.channel_index[0] == 2)[0])
    for kind in (0, 1):
        depth, place = troughs(patches[targets == kind], last)
        spread = np.histogram(place[depth < -9], bins=6, range=(-30, 30))[0]
        assert (spread > 20).all(), (kind, spread)


def test_the_same_random_numbers_make_the_same_patches(maker):
    one, two = (maker.make(1, 50, np.random.default_rng(7))[0] for _ in range(2))
    assert (one == two).all()


def test_units_without_labels_and_recordings_full_of_spikes_still_give_patches(maker):
    everywhere = np.arange(200_000)
    crowded = PatchMaker(
        maker.stored, maker.templates, maker.channel_index, [np.empty(0, int)] * 2, [everywhere] * 2, SHAPE
    )
    patches, targets = crowded.make(0, 100, np.random.default_rng(0))
    assert patches.shape == (100, 3, 60)
    assert targets.sum() == 40


def test_patches_of_the_recording_as_it_is_weigh_more(maker):
    drawn = maker.draw(0, 2000, np.random.default_rng(1))
    plain = drawn.importance > 1
    assert 0.05 < plain.mean() < 0.6
    assert not drawn.targets[plain].any()
    patches = np.empty((2000, 3, SHAPE.window_samples), np.float32)
    drawn.fill(0, patches)
    in_order = np.empty_like(patches)
    in_order[drawn.slots] = patches
    trace = maker.stored.values[maker.channel_index[0, 0]].float().numpy()
    every = np.lib.stride_tricks.sliding_window_view(trace, SHAPE.window_samples)
    known = {window[-20:].tobytes() for window in every}
    is_there = np.array([patch[0, -20:].tobytes() in known for patch in in_order])
    assert is_there[plain].all()
    assert not is_there[~plain & (drawn.targets == 0)].all()


def test_likeness_is_the_cosine_at_the_best_lag():
    random = np.random.default_rng(0)
    values = np.zeros((3, 4, 80), np.float32)
    values[0, :2, 20:40] = random.normal(size=(2, 20))
    values[1] = 3 * np.roll(values[0], 4, axis=1)
    values[2, 2, 20:40] = 1
    templates = UnitTemplates(values, 30, np.zeros((3, 2)), np.ones(3, int))
    likeness = templates.likeness(0, np.array([1, 2]), np.arange(4))
    np.testing.assert_allclose(likeness, [1, 0], atol=1e-5)
