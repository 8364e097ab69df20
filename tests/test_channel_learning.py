"""Which spikes of a channel train, and how its result is judged: cases whose answer is known."""

import numpy as np
import pytest

from spikewise.core.errors import LabelsError, WaveformsError
from spikewise.single_channel.classifier import Classification
from spikewise.single_channel.config import ChannelSortingConfig
from spikewise.single_channel.files import RawChannel
from spikewise.single_channel.labelling import (
    ChannelLabels,
    is_unit,
    label_spikes,
    labels_from_clusters,
    score_result,
    typical_offset,
)
from spikewise.single_channel.snippets import Snippets

RATE = 24000.0
MARGIN = 12  # samples in half a millisecond
PEAKS = np.arange(40) * 500 + 1000
DEFAULT = ChannelSortingConfig()


def found_at(peaks, waveforms=None) -> Snippets:
    waveforms = np.ones((len(peaks), 8)) if waveforms is None else waveforms
    return Snippets(waveforms, sampling_frequency=RATE, sample_index=np.asarray(peaks))


def channel(times=None, labels=None, num_samples=24000) -> RawChannel:
    labels = None if labels is None else np.asarray(labels)
    return RawChannel(np.zeros(num_samples, np.float32), RATE, times, labels)


def sorted_as(*unit_index, unit_ids=(1, 2)) -> Classification:
    index = np.array(unit_index)
    return Classification(unit_ids, index, np.ones(len(index)), np.full(len(index), -1))


def trained_on(start, stop, source="labels") -> ChannelLabels:
    none = np.zeros(0, np.int64)
    return ChannelLabels(none, none, none, (start, stop), {"source": source})


# The usual distance of a label and its peak


@pytest.mark.parametrize("offset", [-60, -21, 0, 1, 22, 60])
def test_the_offset_of_labels_is_found_exactly(offset):
    assert typical_offset(PEAKS - offset, PEAKS, RATE) == offset


def test_the_offset_is_that_of_most_labels():
    strangers = np.random.default_rng(0).integers(1000, 21000, 15)
    peaks = np.sort(np.concatenate([PEAKS, PEAKS + 230]))  # each label has another peak after it
    assert typical_offset(np.concatenate([PEAKS - 22, strangers]), peaks, RATE) == 22


def test_labels_that_scatter_have_their_median_as_offset():
    scatter = np.array([-4, -1, 0, 3, 5] * 8)
    assert typical_offset(PEAKS - 22 + scatter, PEAKS, RATE) == 22


def test_without_a_peak_near_the_offset_is_none():
    assert typical_offset(PEAKS - 61, PEAKS, RATE) == 0
    assert typical_offset(np.zeros(0, np.int64), PEAKS, RATE) == 0
    assert typical_offset(PEAKS, np.zeros(0, np.int64), RATE) == 0


# Which spikes train


@pytest.mark.parametrize("offset", [0, 22], ids=["peaks", "starts"])
def test_labels_meet_their_spikes(offset):
    units = np.array([1, 2, 3, 4] * 10)
    peaks = np.sort(np.concatenate([PEAKS, PEAKS[:-1] + 250]))  # between any two labelled spikes another
    made = label_spikes(found_at(peaks), PEAKS - offset, units, channel(), DEFAULT)
    assert peaks[made.spike_index].tolist() == PEAKS.tolist()
    assert made.labels.tolist() == units.tolist()
    assert peaks[made.background_index].tolist() == (PEAKS[:-1] + 250).tolist()
    assert made.interval == (PEAKS[0] - MARGIN, PEAKS[-1] + 1 + MARGIN)
    assert not made.are_clusters
    assert made.facts == {
        "source": "labels",
        "interval_s": [round((PEAKS[0] - offset) / RATE, 6), round((PEAKS[-1] - offset + 1) / RATE, 6)],
        "num_labels": 40,
        "num_labels_found": 40,
        "offset_ms": round(offset / 24, 4),
        "num_background": 39,
    }


def test_only_the_label_interval_trains():
    events = np.unique(np.random.default_rng(0).integers(1000, 21000, 200))
    events = events[np.abs(events[:, None] - PEAKS).min(axis=1) > 30]
    peaks = np.sort(np.concatenate([PEAKS, events]))
    config = ChannelSortingConfig(label_interval=(5000 / RATE, 10000 / RATE))
    is_inside = (PEAKS >= 5000) & (PEAKS < 10000)
    made = label_spikes(found_at(peaks), PEAKS, np.where(is_inside, 1, 9), channel(), config)
    assert peaks[made.spike_index].tolist() == PEAKS[is_inside].tolist()
    assert set(made.labels.tolist()) == {1}
    assert peaks[made.background_index].tolist() == events[(events >= 5000) & (events < 10000)].tolist()


def test_few_other_events_are_no_background():
    for num_events, expected in ((19, 0), (20, 20)):
        peaks = np.sort(np.concatenate([PEAKS, PEAKS[:num_events] + 250]))
        made = label_spikes(found_at(peaks), PEAKS, np.arange(40) % 2, channel(), DEFAULT)
        assert len(made.background_index) == made.facts["num_background"] == expected


def test_a_label_beside_no_spike_is_left_out():
    times = np.append(PEAKS, 1000 + 250)
    made = label_spikes(found_at(PEAKS), times, np.append(np.ones(40, int), 2), channel(), DEFAULT)
    assert (made.facts["num_labels"], made.facts["num_labels_found"]) == (41, 40)
    assert made.labels.tolist() == [1] * 40


@pytest.mark.parametrize(
    ("times", "interval", "given", "allowed", "remedy"),
    [
        (PEAKS, (0.9, 1.0), "none of the 40 labels lies between 0.9 and 1 s", "inside", "label-interval"),
        (PEAKS[:0], None, "none of the 0 labels", "inside", "give labels of this recording"),
        (PEAKS + 200, None, "none of the 40 labels matches a spike", "2.5 ms", "belong together"),
    ],
)
def test_labels_that_cannot_train(times, interval, given, allowed, remedy):
    config = ChannelSortingConfig(label_interval=interval)
    with pytest.raises(LabelsError) as caught:
        label_spikes(found_at(PEAKS), times, np.ones(len(times), int), channel(), config)
    assert given in caught.value.given
    assert allowed in caught.value.allowed
    assert remedy in caught.value.remedy


def test_which_labels_name_a_unit():
    assert is_unit(np.array([0, 3, -1, -7])).tolist() == [True, True, False, False]
    assert is_unit(np.array(["a", "", "-1", "0"])).tolist() == [True, False, False, True]


# Clusters


def two_shapes(num_spikes=200) -> tuple[np.ndarray, np.ndarray]:
    """Waveforms of two units in turn, far apart in white noise."""
    random = np.random.default_rng(0)
    unit = np.arange(num_spikes) % 2
    shapes = np.array([[0, 2, 9, 3, 0, -2, -1, 0, 0, 0], [0, 1, 5, 8, 6, 2, 0, -3, -1, 0]], dtype=float)
    return shapes[unit] + 0.5 * random.normal(size=(num_spikes, 10)), unit


def test_clusters_are_those_of_the_first_stretch():
    waveforms, unit = two_shapes()
    spikes = found_at(np.arange(200) * 240, waveforms)  # 100 each second
    made = labels_from_clusters(spikes, ChannelSortingConfig(stretch_s=1.5), 0)
    assert made.are_clusters
    assert made.spike_index.max() < 150 <= made.spike_index.max() + 10
    assert len(made.background_index) == 0
    agree = made.labels == unit[made.spike_index]
    assert agree.all() or not agree.any()
    assert made.facts["num_spikes"] == 150
    assert made.facts["num_unlabelled"] == 150 - len(made.spike_index)


def test_waveforms_without_times_are_one_stretch():
    waveforms, _ = two_shapes()
    made = labels_from_clusters(Snippets(waveforms), ChannelSortingConfig(stretch_s=1.0), 0)
    assert made.facts["num_spikes"] == 200


def test_one_cluster_cannot_train():
    waveforms, unit = two_shapes()
    with pytest.raises(LabelsError, match=r"100 spikes of the first stretch make 1 unit\. Two units or more"):
        labels_from_clusters(Snippets(waveforms[unit == 0]), DEFAULT, 0)
    with pytest.raises(WaveformsError, match="at least 20 spikes"):
        labels_from_clusters(Snippets(waveforms[:10]), DEFAULT, 0)


# Judging


def test_scores_are_counted_exactly():
    """Eight true spikes after the training: six found, of which four get their unit; two false events."""
    times = np.arange(10) * 1000 + 1000
    truth = channel(times - 22, [1, 2] * 5)
    # the spikes at 1000 and 2000 trained, those at 5000 and 6000 are missed
    peaks = np.array([1000, 2000, 3000, 4000, 6500, 7000, 8000, 8600, 9000, 10000])
    classes = sorted_as(0, 1, 0, 1, 0, 0, 0, 1, -1, 1)  # 8000 gets the other unit, 9000 none
    score = score_result(truth, found_at(peaks), classes, trained_on(900, 2500))
    assert score == {
        "interval": "outside of the label interval",
        "offset_ms": round(22 / 24, 4),
        "num_true_spikes": 8,
        "num_spikes": 8,
        "detection_precision": 0.75,
        "detection_recall": 0.75,
        "classification_accuracy": round(4 / 6, 4),
    }


def test_a_peak_counts_as_found_within_half_a_millisecond():
    times = np.arange(10) * 1000 + 1000
    for distance, recall in ((MARGIN, 1.0), (MARGIN + 1, 0.9)):
        peaks = times.copy()
        peaks[4] += distance
        classes = sorted_as(*[0] * 10)
        score = score_result(channel(times, [1] * 10), found_at(peaks), classes, trained_on(0, 0))
        assert score["detection_recall"] == score["detection_precision"] == recall


def test_test_and_training_share_no_spike():
    """Labels that a person put on the peaks, in a file whose own times are the spikes' first samples."""
    truth = channel(PEAKS - 22, np.arange(40) % 2)
    config = ChannelSortingConfig(label_interval=(0.0, (PEAKS[19] + 1) / RATE))
    examples = label_spikes(found_at(PEAKS), PEAKS, np.arange(40) % 2, truth, config)
    assert len(examples.spike_index) == 20
    score = score_result(truth, found_at(PEAKS), sorted_as(*[0] * 40), examples)
    assert score["num_spikes"] == score["num_true_spikes"] == 20  # PEAKS[19] is none of them


def test_a_spike_that_trained_at_the_edge_is_no_test():
    """The label is the interval's last, its peak a few samples later than usual and beyond its end."""
    peaks = PEAKS.copy()
    peaks[19] += 10
    config = ChannelSortingConfig(label_interval=(0.0, (PEAKS[19] + 1) / RATE))
    truth = channel(PEAKS, np.arange(40) % 2)
    examples = label_spikes(found_at(peaks), PEAKS, np.arange(40) % 2, truth, config)
    assert 19 in examples.spike_index
    assert score_result(truth, found_at(peaks), sorted_as(*[0] * 40), examples)["num_spikes"] == 20


def test_clusters_are_judged_by_the_best_assignment_over_all_time():
    times = np.arange(9) * 1000 + 1000
    truth = channel(times, list("aaabbbccc"))
    classes = sorted_as(2, 2, 0, 0, 0, 0, 1, 1, -1, unit_ids=(0, 1, 2))
    score = score_result(truth, found_at(times), classes, trained_on(0, 24000, source="clusters"))
    assert score["interval"] == "all"
    assert score["num_true_spikes"] == 9
    assert score["classification_accuracy"] == round(7 / 9, 4)


def test_units_are_the_same_as_number_and_as_text():
    times = np.arange(4) * 1000 + 1000
    classes = sorted_as(0, 1, 0, 0, unit_ids=("1", "2"))
    score = score_result(channel(times, [1, 2, 1, 2]), found_at(times), classes, trained_on(0, 0))
    assert score["classification_accuracy"] == 0.75


def test_true_events_without_a_unit_are_found_but_not_classified():
    times = np.arange(4) * 1000 + 1000
    score = score_result(
        channel(times, [1, 1, -1, -1]), found_at(times), sorted_as(0, 0, -1, 0), trained_on(0, 0)
    )
    assert (score["detection_recall"], score["classification_accuracy"]) == (1.0, 1.0)


@pytest.mark.parametrize("source", ["labels", "clusters"])
def test_without_a_true_spike_that_was_found_no_accuracy_is_told(source):
    score = score_result(
        channel(PEAKS, [1] * 40), found_at(PEAKS + 200), sorted_as(*[0] * 40), trained_on(0, 0, source)
    )
    assert (score["detection_recall"], score["classification_accuracy"]) == (0.0, None)


def test_nothing_is_judged_without_true_spikes_that_test():
    classes, spikes = sorted_as(*[0] * 40), found_at(PEAKS)
    assert score_result(channel(), spikes, classes, trained_on(0, 0)) is None
    assert score_result(channel(PEAKS[:0], PEAKS[:0]), spikes, classes, trained_on(0, 0, "clusters")) is None
    assert score_result(channel(PEAKS, [1] * 40), spikes, classes, trained_on(0, 24000)) is None
