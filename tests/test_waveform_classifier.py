"""The waveform network, the classifier that is trained with it, and the file that keeps it."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from arrays import random_network
from safetensors import safe_open
from safetensors.torch import save_file

from spikewise.core.config import DetectionConfig, NetworkConfig, PreprocessingConfig
from spikewise.core.errors import CheckpointError, LabelsError, OutputError, WaveformsError
from spikewise.models.checkpoint import GroupModel, Model, load_model, save_model
from spikewise.single_channel.classifier import UNSORTED, load_classifier, save_classifier
from spikewise.single_channel.classifier_training import train_classifier
from spikewise.single_channel.config import WaveClusConfig, WaveformTrainingConfig
from spikewise.single_channel.network import WaveformNetwork
from spikewise.single_channel.snippets import load_snippets
from spikewise.single_channel.wave_clus import simulate_wave_clus

NUM_LABELS = 90
QUICK = WaveformTrainingConfig(epochs=3, windows_per_epoch=960, calibration_fraction=0.0)


def simulate(**settings):
    """Return a simulation and the waveforms of its spikes, overlaps too."""
    simulation = simulate_wave_clus(WaveClusConfig(**({"duration_s": 15.0, "seed": 1} | settings)))
    places = simulation.sample_index[:, None] + np.arange(simulation.shapes.shape[1])
    return simulation, simulation.signal[places].astype(np.float32)


@pytest.fixture(scope="module")
def easy():
    """Spikes of three units that differ; the first 90 are labelled."""
    return simulate(difficulty="easy1", noise_level=0.1)


@pytest.fixture(scope="module")
def noise():
    """Signal without spikes, whose noise is that of `easy`."""
    silent = {"firing_rates_hz": (0.001,), "seed": 101, "duration_s": 5.0}
    return simulate(difficulty="easy1", noise_level=0.1, **silent)[0].signal


@pytest.fixture(scope="module")
def default(easy):
    simulation, waveforms = easy
    config = WaveformTrainingConfig(calibration_fraction=0.0)
    return train_classifier(
        waveforms[:NUM_LABELS], simulation.labels[:NUM_LABELS], config, sampling_frequency=24000.0
    )


@pytest.fixture(scope="module")
def quick(easy):
    simulation, waveforms = easy
    return train_classifier(waveforms[:NUM_LABELS], simulation.labels[:NUM_LABELS], QUICK)


def network_of(num_samples, num_units, **settings):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WaveformNetwork(num_samples, num_units, **settings).eval()


def some_waveforms(count, num_samples):
    return torch.from_numpy(np.random.default_rng(0).standard_normal((count, num_samples)).astype(np.float32))


@pytest.mark.parametrize("num_samples", [8, 12, 64, 65])
@pytest.mark.parametrize(("num_units", "num_heads"), [(2, 1), (3, 2), (17, 2)])
def test_the_network_takes_any_length_and_number_of_units(num_samples, num_units, num_heads):
    network = network_of(num_samples, num_units, num_heads=num_heads)
    scores = network(some_waveforms(5, num_samples))
    assert scores.shape == (5, num_heads, num_units)
    assert len(torch.unique(scores)) == scores.numel()  # each depends on waveform, answer and unit
    assert torch.allclose(network(some_waveforms(5, num_samples)[2:3]), scores[2:3], atol=1e-5)


def test_the_paper_network_has_the_parameters_of_the_paper():
    network = network_of(64, 3)
    convolutions = (3 * 1 * 32 + 32) + (3 * 32 * 64 + 64) + 2 * (3 * 64 * 64 + 64)
    batch_norms = 2 * (32 + 64 + 64 + 64)
    connected = (16 * 64 * 300 + 300) + (300 * 100 + 100) + (100 * 3 + 3)
    assert sum(p.numel() for p in network.parameters()) == convolutions + batch_norms + connected == 369391
    paper = WaveformTrainingConfig(preset="paper").resolved()
    assert (paper.features, paper.hidden, paper.epochs) == ((32, 64, 64, 64), (300, 100), 50)


def test_the_front_leaves_waveforms_alone_until_it_is_set():
    network, waveforms = network_of(20, 3), some_waveforms(4, 20)
    scores = network(waveforms)
    assert torch.equal(scores[:, 0], network.classifier(network.convolutions(waveforms[:, None]).flatten(1)))
    network.front.copy_(torch.eye(20).flip(0))
    assert torch.allclose(network(waveforms.flip(1)), scores, atol=1e-5)
    assert not torch.allclose(network(waveforms), scores, atol=1e-4)
    assert "front" not in dict(network.named_parameters())  # it is not trained


def test_folded_the_network_answers_the_same(default):
    network, waveforms = default.network.eval(), some_waveforms(100, default.num_samples)
    folded = network.folded()
    assert not [layer for layer in folded.modules() if isinstance(layer, torch.nn.BatchNorm1d)]
    with torch.inference_mode():
        torch.testing.assert_close(folded(waveforms), network(waveforms), atol=1e-4, rtol=1e-4)
    assert [layer for layer in network.modules() if isinstance(layer, torch.nn.BatchNorm1d)]


def test_units_that_differ_are_told_apart(easy, default):
    simulation, waveforms = easy
    answer = default.classify(waveforms[NUM_LABELS:])
    correct = answer.labels == simulation.labels[NUM_LABELS:]
    alone = ~simulation.is_overlap[NUM_LABELS:]
    assert correct[alone].mean() >= 0.995
    assert correct[~alone].mean() >= 0.95
    assert answer.labels.dtype == np.int64
    assert answer.unit_ids == (1, 2, 3)
    assert all(type(unit_id) is int for unit_id in answer.unit_ids)
    own, present = default.probabilities(waveforms)
    np.testing.assert_allclose(own.sum(axis=1), 1, atol=1e-5)
    assert own.shape == present.shape == (len(waveforms), 3)
    assert answer.probability == pytest.approx(own.max(axis=1)[NUM_LABELS:])


def test_two_units_in_one_waveform_are_both_found(easy, noise, default):
    simulation, waveforms = easy
    random = np.random.default_rng(0)
    found, own = [], []
    for first in range(3):
        for second in {0, 1, 2} - {first}:
            later = np.pad(simulation.shapes[second], (20, 0))[:64]
            places = random.integers(0, len(noise) - 64, 50)[:, None] + np.arange(64)
            answer = default.classify(simulation.shapes[first] + later + noise[places])
            own.append(np.mean(answer.labels == first + 1))
            found.append(np.mean((answer.labels == first + 1) & (answer.second_labels == second + 1)))
    assert np.mean(own) >= 0.95
    assert np.mean(found) > 0.5
    # and none where there is none
    alone = ~simulation.is_overlap
    alone[:NUM_LABELS] = False
    answer = default.classify(waveforms[alone])
    assert (answer.second_index >= 0).mean() < 0.01
    assert (answer.second_labels == UNSORTED).mean() > 0.99


@pytest.mark.realdata
def test_ten_labels_of_each_unit_are_enough_for_real_spikes(data_folder):
    spikes = load_snippets(data_folder / "wave_clus" / "quiroga_C_Difficult2_noise015_spikes.npz")
    spikes = spikes.select(spikes.is_labelled)
    train = np.sort(np.concatenate([np.flatnonzero(spikes.labels == unit)[:10] for unit in (1, 2, 3)]))
    test = np.setdiff1d(np.arange(len(spikes)), train)
    classifier = train_classifier(spikes.waveforms[train], spikes.labels[train])
    assert (classifier.classify(spikes.waveforms[test]).labels == spikes.labels[test]).mean() >= 0.98


def test_a_seed_gives_the_same_classifier_to_the_bit_and_another_another(easy, quick):
    simulation, waveforms = easy
    labelled = waveforms[:NUM_LABELS], simulation.labels[:NUM_LABELS]
    torch.rand(3)  # the state of global generators has no say
    again = train_classifier(*labelled, QUICK)
    assert again.hash() == quick.hash()
    for one, two in zip(again.probabilities(waveforms), quick.probabilities(waveforms), strict=True):
        assert one.tobytes() == two.tobytes()
    other = train_classifier(*labelled, dataclasses.replace(QUICK, seed=1))
    weights, others = quick.network.state_dict(), other.network.state_dict()
    assert not torch.equal(weights["classifier.1.weight"], others["classifier.1.weight"])
    assert other.hash() != quick.hash()


def test_the_hash_is_that_of_weights_and_settings_but_not_of_facts(quick):
    assert dataclasses.replace(quick, facts={}).hash() == quick.hash()
    assert dataclasses.replace(quick, temperature=1.5).hash() != quick.hash()
    assert dataclasses.replace(quick, unit_ids=(1, 2, 4)).hash() != quick.hash()


def test_ids_of_text_come_back_and_the_unit_of_amplitudes_does_not_matter(easy, quick):
    simulation, waveforms = easy
    names = np.array(["", "c", "a", "b"])[simulation.labels]
    larger = np.rint(waveforms * 2**14).astype(np.int16)
    classifier = train_classifier(larger[:NUM_LABELS], names[:NUM_LABELS], QUICK)
    assert classifier.unit_ids == ("a", "b", "c")
    assert all(type(unit_id) is str for unit_id in classifier.unit_ids)
    labels = classifier.classify(larger).labels
    assert labels.dtype.kind == "U"
    assert (labels[NUM_LABELS:] == names[NUM_LABELS:]).mean() >= 0.97
    assert classifier.scale == pytest.approx(quick.scale * 2**14, rel=1e-3)


def test_what_is_not_sure_is_left_unsorted(easy, quick):
    _, waveforms = easy
    everything = quick.classify(waveforms)
    threshold = float(np.quantile(everything.probability, 0.25))
    sure = quick.classify(waveforms, threshold)
    is_sure = everything.probability >= threshold
    assert 0.7 < is_sure.mean() < 0.8
    np.testing.assert_array_equal(sure.labels[is_sure], everything.labels[is_sure])
    assert (sure.labels[~is_sure] == UNSORTED).all()
    assert (sure.second_index[~is_sure] == -1).all()
    np.testing.assert_array_equal(sure.probability, everything.probability)
    assert (everything.labels != UNSORTED).all()


def test_no_waveforms_have_no_units(quick):
    answer = quick.classify(np.zeros((0, 64)))
    assert len(answer.labels) == len(answer.second_labels) == len(answer.probability) == 0


def test_what_looks_like_the_background_is_left_unsorted(easy, noise, quick):
    simulation, waveforms = easy
    events = noise[: 64 * 1000].reshape(-1, 64)
    labelled = waveforms[:NUM_LABELS], simulation.labels[:NUM_LABELS]
    classifier = train_classifier(*labelled, QUICK, background=events[:100])
    assert classifier.unit_ids == (1, 2, 3)
    assert classifier.facts["num_background"] == 100
    assert (classifier.classify(events[100:]).labels == UNSORTED).mean() >= 0.98
    assert (quick.classify(events[100:]).labels != UNSORTED).all()  # so it had to be learnt
    labels = classifier.classify(waveforms[NUM_LABELS:]).labels
    assert (labels == simulation.labels[NUM_LABELS:]).mean() >= 0.97


def calibration_error(probability, correct, num_bins=10):
    """Expected calibration error: how far confidence is from accuracy, in bins of confidence."""
    bins = np.minimum((probability * num_bins).astype(int), num_bins - 1)
    return sum(
        (bins == k).mean() * abs(probability[bins == k].mean() - correct[bins == k].mean())
        for k in np.unique(bins)
    )


def calibration_errors(config, num_labels, seed):
    """Return the expected calibration errors with the temperature and without, and the classifier."""
    simulation, waveforms = simulate(difficulty="difficult1", noise_level=0.6, seed=seed, duration_s=40.0)
    classifier = train_classifier(waveforms[:num_labels], simulation.labels[:num_labels], config)
    errors = []
    for temperature in (classifier.temperature, 1.0):
        answer = dataclasses.replace(classifier, temperature=temperature).classify(waveforms[num_labels:])
        correct = answer.labels == simulation.labels[num_labels:]
        errors.append(calibration_error(answer.probability, correct))
    return *errors, classifier


def test_calibration_takes_the_confidence_from_a_network_that_learnt_by_heart():
    by_heart = WaveformTrainingConfig(
        epochs=8,
        windows_per_epoch=1600,
        generated=0.0,
        overlaps=0.0,
        shift=0.0,
        amplitude_std=0.0,
        dropout=0.0,
    )
    with_it, without, classifier = calibration_errors(by_heart, 300, seed=4)
    assert classifier.facts["calibration"]["num_spikes"] == pytest.approx(60, abs=3)
    assert classifier.temperature > 1.5
    assert with_it < 0.09
    assert with_it < without - 0.1


def test_without_enough_labels_or_when_not_asked_nothing_is_calibrated(easy, default):
    simulation, waveforms = easy
    assert (default.temperature, default.facts["calibration"]["num_spikes"]) == (1.0, 0)
    config = dataclasses.replace(QUICK, epochs=1, windows_per_epoch=64, calibration_fraction=0.2)
    few = train_classifier(waveforms[:20], simulation.labels[:20], config)
    assert (few.temperature, few.facts["calibration"]["num_spikes"]) == (1.0, 0)


@pytest.mark.slow
def test_probabilities_of_the_default_are_near_the_truth():
    for seed in (3, 4, 5):
        assert calibration_errors(WaveformTrainingConfig(), 150, seed)[0] < 0.09


def test_the_paper_preset_has_one_answer(easy):
    simulation, waveforms = easy
    paper = WaveformTrainingConfig(preset="paper", epochs=30, calibration_fraction=0.0)
    classifier = train_classifier(waveforms[:NUM_LABELS], simulation.labels[:NUM_LABELS], paper)
    assert sum(p.numel() for p in classifier.network.parameters()) == 369391
    assert torch.equal(classifier.network.front, torch.eye(64))
    own, present = classifier.probabilities(waveforms)
    np.testing.assert_array_equal(own, present)
    answer = classifier.classify(waveforms[NUM_LABELS:])
    assert (answer.second_index == -1).all()
    assert (answer.labels == simulation.labels[NUM_LABELS:]).mean() >= 0.95


@pytest.mark.parametrize("num_samples", [8, 12, 65])
def test_short_and_odd_waveforms(num_samples):
    simulation, waveforms = simulate(
        difficulty="easy2",
        noise_level=0.05,
        num_samples=num_samples,
        sampling_frequency=375.0 * max(num_samples, 12),
    )
    config = dataclasses.replace(QUICK, epochs=2)
    classifier = train_classifier(waveforms[:NUM_LABELS], simulation.labels[:NUM_LABELS], config)
    assert classifier.num_samples == num_samples
    labels = classifier.classify(waveforms[NUM_LABELS:]).labels
    assert (labels == simulation.labels[NUM_LABELS:]).mean() >= 0.9


def test_what_is_loaded_is_what_was_saved(easy, default, tmp_path):
    path = tmp_path / "model.safetensors"
    save_classifier(default, path)
    loaded = load_classifier(path)
    assert loaded.hash() == default.hash()
    assert (loaded.unit_ids, loaded.scale, loaded.config) == (default.unit_ids, default.scale, default.config)
    assert (loaded.sampling_frequency, loaded.temperature) == (24000.0, default.temperature)
    assert loaded.facts == default.facts
    for one, two in zip(loaded.probabilities(easy[1]), default.probabilities(easy[1]), strict=True):
        assert one.tobytes() == two.tobytes()
    named = dataclasses.replace(default, unit_ids=("a", "b", "ü"), sampling_frequency=None)
    save_classifier(named, path)
    assert load_classifier(path).unit_ids == ("a", "b", "ü")
    assert load_classifier(path).sampling_frequency is None


def test_a_file_cut_short_or_of_something_else_is_refused(quick, tmp_path):
    path = tmp_path / "model.safetensors"
    save_classifier(quick, path)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:-1], content[:5], b"", b"not a model" * 100):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load_classifier(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="not written by Spikewise"):
        load_classifier(path)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_classifier(tmp_path / "absent.safetensors")


def test_a_model_of_the_other_kind_is_refused(quick, tmp_path):
    group = GroupModel(
        name="0",
        network=random_network(num_channels=3, num_units=2),
        channel_ids=("0", "1", "2"),
        channel_positions_um=np.zeros((3, 2)),
        silenced_channel_ids=(),
        unit_ids=(1, 2),
        thresholds=np.array([0.3, 0.6], dtype=np.float32),
    )
    config = NetworkConfig(spatial_features=32)
    path = tmp_path / "recording.safetensors"
    save_model(Model((group,), 32000.0, config, PreprocessingConfig(), DetectionConfig(), {}), path)
    with pytest.raises(CheckpointError, match="model of `spikewise train`"):
        load_classifier(path)
    save_classifier(quick, path)
    with pytest.raises(CheckpointError, match="model of `spikewise waveforms train`"):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h, t: h.update(format_version=99), "format version 99"),
        (lambda h, t: h.update(num_samples=63), "disagree about samples"),
        (lambda h, t: h.update(num_outputs=4), "disagree about samples or units"),
        (lambda h, t: h["unit_ids"].append(9), "disagree about units"),
        (lambda h, t: h["unit_ids"].clear(), "disagree about units"),
        (lambda h, t: h.update(scale=0.0), "not above zero"),
        (lambda h, t: h.update(temperature=-1.0), "not above zero"),
        (lambda h, t: h.update(temperature="high"), "damaged"),
        (lambda h, t: h["config"].update(colour="red"), "damaged"),
        (lambda h, t: h["config"].update(features=[16, 16, 32, 64]), "damaged"),
        (lambda h, t: h["config"].update(overlaps=0.0), "damaged"),
        (lambda h, t: h.pop("unit_ids"), "damaged"),
        (lambda h, t: t.pop("convolutions.0.weight"), "damaged"),
        (lambda h, t: t.pop("front"), "damaged"),
        (lambda h, t: t["front"].fill_(float("nan")), "not finite"),
    ],
)
def test_edited_files_are_refused(quick, tmp_path, change, message):
    path = tmp_path / "model.safetensors"
    save_classifier(quick, path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["spikewise"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, {"spikewise": json.dumps(header)})
    with pytest.raises(CheckpointError, match=message):
        load_classifier(path)


def test_a_file_that_holds_a_removed_setting_is_read(quick, easy, tmp_path):
    path = tmp_path / "model.safetensors"
    save_classifier(quick, path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["spikewise"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert "label_smoothing" not in header["config"]
    header["config"]["label_smoothing"] = 0.0  # as earlier versions wrote it
    save_file(tensors, path, {"spikewise": json.dumps(header)})
    loaded = load_classifier(path)
    assert loaded.config == quick.config
    for found, expected in zip(loaded.probabilities(easy[1]), quick.probabilities(easy[1]), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_classifier_that_cannot_be_written_leaves_nothing(quick, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        save_classifier(quick, tmp_path / "file" / "model.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


ROWS = np.random.default_rng(0).standard_normal((6, 12))
LABELS = np.array([1, 1, 1, 2, 2, 2])


def with_one(value, row):
    waveforms = ROWS.copy()
    waveforms[row, 2] = value
    return waveforms


@pytest.mark.parametrize(
    ("waveforms", "labels", "kind", "given", "allowed", "remedy"),
    [
        (ROWS, np.ones(6, int), LabelsError, "only the unit 1", "two units or more", "label spikes of other"),
        (ROWS[:0], LABELS[:0], LabelsError, "none at all", "two units or more", "label spikes of other"),
        (
            ROWS,
            [1, 1, 1, 1, 1, 7],
            LabelsError,
            "one labelled spike of the unit 7",
            "2 or more",
            "label more",
        ),
        (ROWS, list("aaaabc"), LabelsError, "of the units b, c", "2 or more", "remove its label"),
        (ROWS, LABELS[:5], LabelsError, r"6 waveforms and labels .*\(5,\)", "one label for each", "belong"),
        (ROWS, LABELS[:, None], LabelsError, r"\(6, 1\)", "one label for each", "belong"),
        (ROWS[:, :7], LABELS, WaveformsError, r"shape \(6, 7\)", "8 samples or more", "one row for each"),
        (ROWS[0], LABELS, WaveformsError, r"shape \(12,\)", "(num_spikes, num_samples)", "one row for each"),
        (ROWS.astype(str), LABELS, WaveformsError, "type <U", "numbers of the shape", "one row for each"),
        (
            with_one(np.nan, 4),
            LABELS,
            WaveformsError,
            "1 of 6 .*number 4",
            "finite",
            "leave",
        ),
        (
            with_one(np.inf, 1),
            LABELS,
            WaveformsError,
            "1 of 6 .*number 1",
            "finite",
            "leave",
        ),
        (
            0 * ROWS,
            LABELS,
            WaveformsError,
            "all waveforms are zero",
            "waveforms of spikes",
            "how they were cut",
        ),
    ],
)
def test_what_cannot_be_learnt_is_refused_in_three_parts(waveforms, labels, kind, given, allowed, remedy):
    with pytest.raises(kind) as caught:
        train_classifier(waveforms, np.asarray(labels))
    assert re.search(given, caught.value.given)
    assert allowed in caught.value.allowed
    assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("waveforms", "given", "allowed"),
    [
        (np.zeros((2, 63)), "63 samples", "trained on waveforms of 64"),
        (np.zeros(64), r"shape \(64,\)", "(num_spikes, num_samples)"),
        (np.full((2, 64), np.nan), "2 of 2 waveforms hold NaN", "finite numbers"),
    ],
)
def test_what_cannot_be_classified_is_refused(quick, waveforms, given, allowed):
    with pytest.raises(WaveformsError, match=given) as caught:
        quick.classify(waveforms)
    assert allowed in caught.value.allowed


def test_background_of_another_length_is_refused():
    with pytest.raises(WaveformsError, match="12 samples") as caught:
        train_classifier(ROWS, LABELS, background=np.zeros((3, 11)))
    assert "as long as" in caught.value.allowed
