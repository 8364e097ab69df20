"""Sorting a single channel from Python: with labels, without, of waveforms; and on public data."""

import dataclasses
import json

import numpy as np
import pytest
from spikeinterface.core import NumpySorting, load

from spikewise.core.errors import (
    Interrupted,
    LabelsError,
    OutputError,
    RecordingError,
    SettingError,
    WaveformsError,
)
from spikewise.output.store import spikes_hash
from spikewise.single_channel.api import classify_waveforms, simulate_channel, sort_channel, train_waveforms
from spikewise.single_channel.classifier import UNSORTED, load_classifier
from spikewise.single_channel.config import ChannelSortingConfig, WaveClusConfig, WaveformTrainingConfig
from spikewise.single_channel.files import RawChannel
from spikewise.single_channel.scores import assign_clusters
from spikewise.single_channel.snippets import Snippets, load_snippets

QUICK = WaveformTrainingConfig(epochs=3, windows_per_epoch=640, calibration_fraction=0.0)
FIRST_PART = ChannelSortingConfig(label_interval=(0.0, 5.0))
SIGNAL = WaveClusConfig(duration_s=12.0, difficulty="easy1", noise_level=0.1, seed=1)
EASY1 = "wave_clus/quiroga_C_Easy1_noise015_raw50000_gt.npz"
HC1 = "real/hc1_d1492106_4ch_spikes_unlabelled.npz"


@pytest.fixture(scope="module")
def easy() -> RawChannel:
    """Twelve seconds of three units, and their spikes."""
    made = simulate_channel(config=SIGNAL)
    signal = made.signal.astype(np.float32)
    return RawChannel(signal, made.sampling_frequency, made.sample_index, made.labels, made.is_overlap)


@pytest.fixture(scope="module")
def truth(easy) -> NumpySorting:
    return NumpySorting.from_samples_and_labels([easy.sample_index], [easy.labels], easy.sampling_frequency)


@pytest.fixture(scope="module")
def sorted_easy(easy, truth):
    return sort_channel(easy, labels=truth, config=FIRST_PART, training=QUICK)


def spikes_of(easy, part=slice(None)) -> Snippets:
    """Waveforms from the true first samples on, with their units."""
    starts = easy.sample_index[part]
    return Snippets(easy.signal[starts[:, None] + np.arange(64)], easy.labels[part], easy.sampling_frequency)


def found_hash(*arguments, **settings) -> str:
    return sort_channel(*arguments, **settings).provenance["result"]["spikes_hash"]


# A signal with labels


def test_labels_of_the_first_part_sort_the_rest(easy, sorted_easy):
    score = sorted_easy.provenance["truth"]
    assert score["interval"] == "outside of the label interval"
    assert score["num_true_spikes"] == np.count_nonzero(easy.sample_index >= 5.0 * 24000)
    assert score["detection_precision"] >= 0.99
    assert score["detection_recall"] >= 0.91  # two spikes at once are one peak
    assert score["classification_accuracy"] >= 0.97


def test_the_parts_of_a_result_belong_together(sorted_easy):
    result, provenance = sorted_easy, sorted_easy.provenance
    vector = result.sorting.to_spike_vector()
    assert result.sorting.unit_ids.tolist() == [1, 2, 3]
    assert (vector["sample_index"] == result.spikes.sample_index).all()
    assert (result.sorting.unit_ids[vector["unit_index"]] == result.classification.labels).all()
    again = result.model.classify(result.spikes.waveforms)
    assert (again.labels == result.classification.labels).all()
    found = provenance["result"]
    assert found["num_detected"] == found["num_spikes"] == len(vector)
    assert found["spikes_by_unit"] == {
        str(unit): int((result.classification.labels == unit).sum()) for unit in (1, 2, 3)
    }
    assert found["spikes_hash"] == spikes_hash(result.sorting)
    assert provenance["model"]["hash"] == result.model.hash()
    assert provenance["seconds"]["recorded"] == 12.0
    assert provenance["recording"]["num_samples"] == [12 * 24000]
    assert json.loads(json.dumps(provenance)) == provenance


def test_one_seed_gives_one_result_and_another_seed_another_model(easy, truth, sorted_easy):
    again = sort_channel(easy, labels=truth, config=FIRST_PART, training=QUICK)
    assert again.provenance["result"]["spikes_hash"] == sorted_easy.provenance["result"]["spikes_hash"]
    assert again.model.hash() == sorted_easy.model.hash()
    assert again.classification.probability.tobytes() == sorted_easy.classification.probability.tobytes()
    other = dataclasses.replace(QUICK, seed=1)
    assert (
        sort_channel(easy, labels=truth, config=FIRST_PART, training=other).model.hash() != again.model.hash()
    )


def test_labels_outside_the_label_interval_teach_nothing(easy, sorted_easy):
    later = easy.sample_index >= 6 * 24000
    labels = np.where(later, 1 + np.random.default_rng(0).integers(3, size=len(later)), easy.labels)
    garbage = NumpySorting.from_samples_and_labels([easy.sample_index], [labels], easy.sampling_frequency)
    assert sort_channel(easy, labels=garbage, config=FIRST_PART, training=QUICK).model.hash() == (
        sorted_easy.model.hash()
    )
    wider = dataclasses.replace(FIRST_PART, label_interval=(0.0, 12.0))
    assert sort_channel(easy, labels=garbage, config=wider, training=QUICK).model.hash() != (
        sorted_easy.model.hash()
    )


def test_unlikely_spikes_are_left_unsorted(easy, truth, sorted_easy):
    config = dataclasses.replace(FIRST_PART, min_probability=0.9)
    sure = sort_channel(easy, labels=truth, config=config, training=QUICK)
    unlikely = sorted_easy.classification.probability < 0.9
    assert 0 < unlikely.sum() < len(unlikely) / 4
    assert ((sure.classification.labels == UNSORTED) == unlikely).all()
    assert sure.provenance["result"]["num_unsorted"] == unlikely.sum()
    assert sure.sorting.count_total_num_spikes() == len(unlikely) - unlikely.sum()


def test_other_events_of_the_labelled_stretch_are_not_given_to_units(easy):
    """Of three units only two are labelled, so the spikes of the third are what is no unit."""
    known = easy.labels != 3
    labels = NumpySorting.from_samples_and_labels([easy.sample_index[known]], [easy.labels[known]], 24000.0)
    result = sort_channel(easy, labels=labels, config=FIRST_PART, training=QUICK)
    assert result.provenance["labels"]["num_background"] > 50
    alone = ~easy.is_overlap & (easy.sample_index >= 5 * 24000)
    for unit in (1, 2, 3):
        peaks = easy.sample_index[alone & (easy.labels == unit)] + 20
        near = np.abs(result.spikes.sample_index[:, None] - peaks).min(axis=1) <= 4
        expected = unit if unit != 3 else UNSORTED
        assert np.mean(result.classification.labels[near] == expected) >= 0.95


def test_interrupted_training_keeps_the_model(easy, truth, tmp_path):
    def stop(stage, done, total, note):
        if stage == "train" and done > 0:
            raise KeyboardInterrupt

    options = {"labels": truth, "config": FIRST_PART, "training": QUICK, "progress": stop}
    with pytest.raises(Interrupted, match="The best model so far is") as caught:
        sort_channel(easy, output=tmp_path / "out", **options)
    assert caught.value.exit_code == 130
    assert load_classifier(tmp_path / "out" / "model.safetensors").facts["interrupted"]
    with pytest.raises(Interrupted, match="Nothing was saved"):
        sort_channel(easy, **options)


# A signal without labels, and waveforms


def test_without_labels_the_first_stretch_is_clustered(easy):
    config = ChannelSortingConfig(stretch_s=6.0)
    result = sort_channel(easy, config=config, training=QUICK)
    assert result.provenance["labels"]["source"] == "clusters"
    assert result.provenance["labels"]["num_spikes"] == (result.spikes.sample_index < 6 * 24000).sum()
    assert result.provenance["result"]["num_units"] == 3
    score = result.provenance["truth"]
    assert (score["interval"], score["num_true_spikes"]) == ("all", len(easy.labels))
    assert score["classification_accuracy"] >= 0.97
    assert found_hash(easy, config=config, training=QUICK) == result.provenance["result"]["spikes_hash"]


def test_waveforms_without_times_give_a_table_alone(easy, tmp_path):
    given = spikes_of(easy, ~easy.is_overlap)
    result = sort_channel(Snippets(given.waveforms, name="no times"), training=QUICK, output=tmp_path / "out")
    assert result.sorting is None
    assert result.provenance["result"]["spikes_hash"] is None
    names = {item.name for item in (tmp_path / "out").iterdir()}
    assert names == {"spikes.csv", "model.safetensors", "provenance.json", "spikewise.log"}
    header, *rows = (tmp_path / "out" / "spikes.csv").read_text().splitlines()
    assert header == "index,label,probability,second_label"
    assert [int(row.split(",")[0]) for row in rows] == list(range(len(given)))
    assert [int(row.split(",")[1]) for row in rows] == result.classification.labels.tolist()
    clusters = result.classification.labels
    agree = sum(np.bincount(clusters[given.labels == unit]).max() for unit in (1, 2, 3))
    assert (len(result.classification.unit_ids), agree >= 0.99 * len(given)) == (3, True)


def test_waveforms_with_times_give_a_sorting_in_order_of_time(easy, tmp_path):
    order = np.random.default_rng(0).permutation(len(easy.labels))
    given = spikes_of(easy)
    given = Snippets(given.waveforms[order], None, 24000.0, easy.sample_index[order])
    result = sort_channel(given, training=QUICK, output=tmp_path / "out")
    vector = load(tmp_path / "out" / "sorting").to_spike_vector()
    assert (vector["sample_index"] == easy.sample_index).all()
    assert (vector["unit_index"] == result.classification.unit_index[np.argsort(order)]).all()


# What cannot be used


def refused(kind, call, *arguments, tells, **settings):
    """The call must raise an error whose three parts tell these."""
    with pytest.raises(kind) as caught:
        call(*arguments, **settings)
    assert caught.value.exit_code == 2
    error = caught.value
    for part, told in zip(tells, (error.given, error.allowed, error.remedy), strict=True):
        assert part in told


def test_labels_of_another_signal(easy):
    def labels(samples, rate):
        return NumpySorting.from_samples_and_labels([np.array(samples)], [np.arange(len(samples))], rate)

    tells = ("sampling frequency of 30000 Hz", "24000 Hz", "give the labels of this")
    refused(LabelsError, sort_channel, easy, labels=labels([5, 9], 30000.0), tells=tells)
    tells = ("1 of 2 labels lie outside", "samples 0 to 287999", "give the labels of this recording")
    refused(LabelsError, sort_channel, easy, labels=labels([5, 288000], 24000.0), tells=tells)


def test_labels_for_waveforms(easy, truth):
    tells = ("labels are given for waveforms", "the signal of a channel", "spikewise waveforms train")
    refused(LabelsError, sort_channel, spikes_of(easy), labels=truth, tells=tells)


def test_no_spikes(easy):
    tells = ("no spike was found", "peaks above 4 standard", "--detection-threshold")
    refused(RecordingError, sort_channel, Snippets(np.zeros((0, 64))), tells=tells)
    silent = RawChannel(np.zeros(24000, np.float32), 24000.0)
    tells = ("the signal is 0.0 throughout", "a signal that changes", "another channel")
    refused(WaveformsError, sort_channel, silent, tells=tells)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_probabilities_that_are_none(sorted_easy, easy, value):
    tells = (f"min_probability is {value}", "at least 0.0 and at most 1.0", "change it")
    refused(
        SettingError,
        classify_waveforms,
        spikes_of(easy),
        sorted_easy.model,
        min_probability=value,
        tells=tells,
    )


def test_waveforms_without_labels_do_not_train(easy):
    tells = ("holds waveforms without labels", "the unit of each", "spikewise waveforms sort")
    refused(LabelsError, train_waveforms, Snippets(spikes_of(easy).waveforms), tells=tells)


def test_a_table_does_not_replace_the_waveforms(sorted_easy, easy, tmp_path):
    table = tmp_path / "waveforms.csv"
    np.savetxt(table, spikes_of(easy, slice(0, 5)).waveforms, delimiter=",")
    before = table.read_bytes()
    tells = ("is the file of the waveforms", "another file", "another name")
    options = {"output": table, "overwrite": True, "tells": tells}
    refused(OutputError, classify_waveforms, table, sorted_easy.model, **options)
    assert table.read_bytes() == before


def test_a_simulation_goes_to_a_mat_file(tmp_path):
    tells = ("sim.npz", "ends in .mat", "change the name")
    refused(OutputError, simulate_channel, output=tmp_path / "sim.npz", config=SIGNAL, tells=tells)
    assert not list(tmp_path.iterdir())


# Public data


@pytest.mark.realdata
def test_a_public_simulation_with_labels_of_its_first_part(data_folder):
    path = data_folder / EASY1
    config = ChannelSortingConfig(label_interval=(0.0, 1.2))
    result = sort_channel(path, labels=path, config=config, training=QUICK)
    assert result.provenance["labels"]["num_labels"] == 69
    assert result.provenance["labels"]["offset_ms"] == 0.9167  # a spike's peak is its 22nd sample
    score = result.provenance["truth"]
    assert score["num_true_spikes"] == 52
    assert score["detection_precision"] >= 0.93
    assert score["detection_recall"] >= 0.83
    assert score["classification_accuracy"] >= 0.97


@pytest.mark.realdata
def test_a_public_simulation_without_labels(data_folder):
    result = sort_channel(data_folder / EASY1, training=QUICK)
    assert result.provenance["result"]["num_units"] == 3
    score = result.provenance["truth"]
    assert score["num_true_spikes"] == 121
    assert score["detection_precision"] >= 0.94
    assert score["detection_recall"] >= 0.88
    assert score["classification_accuracy"] >= 0.97


@pytest.mark.realdata
def test_units_of_measured_waveforms_are_the_same_from_either_half(data_folder):
    """Each half is clustered and learnt by itself; what both models say of all waveforms must agree."""
    waveforms = load_snippets(data_folder / HC1)
    assert waveforms.waveforms.shape == (6277, 40)
    answers = []
    for half in (0, 1):
        result = sort_channel(waveforms.select(slice(half, None, 2)), training=QUICK)
        assert result.sorting is None
        answers.append(result.model.classify(waveforms.waveforms).labels)
    assert len(np.unique(answers[0])) >= 2
    agreement = np.mean(assign_clusters(*answers) == answers[0])
    assert agreement >= 0.98
