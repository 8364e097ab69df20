"""The commands for single-channel waveforms: what they write is true, and bad input is told."""

import json

import numpy as np
import pandas as pd
import pytest
from arrays import random_network
from commands import assert_told, contents, run, succeed, words
from safetensors import safe_open
from scipy.io import savemat
from spikeinterface.core import NumpySorting, load

from spikewise.cli import main as cli
from spikewise.core.config import DetectionConfig, NetworkConfig, PreprocessingConfig
from spikewise.models.checkpoint import GroupModel, Model, save_model
from spikewise.single_channel.api import train_waveforms
from spikewise.single_channel.classifier import load_classifier
from spikewise.single_channel.config import WaveClusConfig, WaveformTrainingConfig
from spikewise.single_channel.raw_channel import load_raw_channel
from spikewise.single_channel.snippets import load_snippets
from spikewise.single_channel.wave_clus import simulate_wave_clus

QUICK = {"--epochs": 3, "--windows-per-epoch": 640, "--calibration-fraction": 0}
"""Options of a training that takes a third of a second."""

MADE = {"--duration-s": 12, "--difficulty": "easy1", "--noise-level": 0.1, "--seed": 1}
NAMES = np.array(["", "basket", "chandelier", "martinotti"])


@pytest.fixture(scope="module")
def signal(tmp_path_factory):
    """Twelve seconds of three units."""
    file = tmp_path_factory.mktemp("signal") / "signal.mat"
    assert cli.main(words("waveforms", "simulate", {"-o": file, **MADE})) == 0
    return file


@pytest.fixture(scope="module")
def spikes(signal):
    return load_snippets(signal)


@pytest.fixture(scope="module")
def files(spikes, tmp_path_factory):
    """The first 200 spikes, which train; the others; and a model of the first."""
    folder = tmp_path_factory.mktemp("files")
    parts = {"train": slice(0, 200), "test": slice(200, None)}
    for name, part in parts.items():
        np.savez(
            folder / f"{name}.npz", waveforms=spikes.waveforms[part], labels=spikes.labels[part], fs=24000
        )
    config = WaveformTrainingConfig(epochs=3, windows_per_epoch=640, calibration_fraction=0.0)
    train_waveforms(folder / "train.npz", output=folder / "model.safetensors", config=config)
    return folder


def classified(capsys, waveforms, model, output, *options) -> pd.DataFrame:
    succeed(capsys, "waveforms", "classify", waveforms, {"--model": model, "-o": output}, *options)
    return pd.read_csv(output)


# Training and classifying


def test_train_then_classify_spikes_that_did_not_train(capsys, spikes, files, tmp_path):
    model, table = tmp_path / "model.safetensors", tmp_path / "spikes.csv"
    told = succeed(capsys, "waveforms", "train", files / "train.npz", {"-o": model, **QUICK})
    assert (told.summary["command"], told.summary["units"], told.summary["labels"]) == (
        "waveforms train",
        3,
        200,
    )
    assert told.summary["model_hash"] == load_classifier(model).hash()
    assert told.summary["output"] == str(model)
    assert "3 units learnt from 200 labelled waveforms" in told.out

    arguments = ("waveforms", "classify", files / "test.npz", {"--model": model, "-o": table})
    told = succeed(capsys, *arguments)
    rows = pd.read_csv(table)
    assert list(rows.columns) == ["index", "label", "probability"]
    assert rows["index"].tolist() == list(range(len(spikes) - 200))
    assert set(rows["label"]) == {1, 2, 3}
    assert np.mean(rows["label"] == spikes.labels[200:]) >= 0.97
    assert rows["probability"].between(1 / 3, 1).all()
    assert (told.summary["waveforms"], told.summary["units"], told.summary["unsorted"]) == (len(rows), 3, 0)


def test_rows_are_in_the_order_of_the_waveforms(capsys, spikes, files, tmp_path):
    order = np.random.default_rng(0).permutation(len(spikes))
    np.save(tmp_path / "ordered.npy", spikes.waveforms)
    np.save(tmp_path / "mixed.npy", spikes.waveforms[order])
    model = files / "model.safetensors"
    ordered = classified(capsys, tmp_path / "ordered.npy", model, tmp_path / "ordered.csv")
    mixed = classified(capsys, tmp_path / "mixed.npy", model, tmp_path / "mixed.csv")
    assert (mixed["label"].to_numpy() == ordered["label"].to_numpy()[order]).all()
    np.testing.assert_allclose(mixed["probability"], ordered["probability"].to_numpy()[order], atol=2e-6)


def test_labels_are_those_of_the_file_also_as_text(capsys, spikes, files, tmp_path):
    table = pd.DataFrame(spikes.waveforms[:200]).assign(unit=NAMES[spikes.labels[:200]])
    table.loc[:19, "unit"] = ""
    table.to_csv(tmp_path / "named.csv", index=False)
    model = tmp_path / "named.safetensors"
    told = succeed(capsys, "waveforms", "train", tmp_path / "named.csv", {"-o": model, **QUICK})
    assert told.summary["labels"] == 180
    assert load_classifier(model).unit_ids == ("basket", "chandelier", "martinotti")
    rows = classified(capsys, files / "test.npz", model, tmp_path / "out.csv")
    assert np.mean(rows["label"] == NAMES[spikes.labels[200:]]) >= 0.97


def test_unlikely_waveforms_are_left_unsorted(capsys, files, tmp_path):
    waveforms, model = files / "test.npz", files / "model.safetensors"
    every = classified(capsys, waveforms, model, tmp_path / "all.csv")
    options = {"--model": model, "-o": tmp_path / "sure.csv", "--min-probability": 0.9}
    told = succeed(capsys, "waveforms", "classify", waveforms, options)
    sure = pd.read_csv(tmp_path / "sure.csv")
    unlikely = every["probability"] < 0.9
    assert 0 < unlikely.sum() < len(every) / 4
    assert (sure["label"] == every["label"].where(~unlikely, -1)).all()
    assert (sure["probability"] == every["probability"]).all()
    assert told.summary["unsorted"] == unlikely.sum()
    assert f"{unlikely.sum()} left unsorted" in told.out


def test_second_units_are_asked_for(capsys, files, tmp_path):
    options = {"--model": files / "model.safetensors", "-o": tmp_path / "two.csv"}
    told = succeed(capsys, "waveforms", "classify", files / "test.npz", options, "--second-units")
    rows = pd.read_csv(tmp_path / "two.csv")
    has_second = rows["second_label"] != -1
    assert 0 < told.summary["second"] == has_second.sum() < len(rows)
    assert (rows["second_label"] != rows["label"])[has_second].all()


def test_waveforms_without_a_unit_do_not_train(capsys, spikes, files, tmp_path):
    garbage = np.random.default_rng(0).normal(size=(50, 64))
    waveforms = np.concatenate([garbage, spikes.waveforms[:200]])
    np.savez(
        tmp_path / "more.npz", waveforms=waveforms, labels=np.append([-1] * 50, spikes.labels[:200]), fs=24000
    )
    model = tmp_path / "model.safetensors"
    told = succeed(capsys, "waveforms", "train", tmp_path / "more.npz", {"-o": model, **QUICK})
    assert told.summary["labels"] == 200
    assert told.summary["model_hash"] == load_classifier(files / "model.safetensors").hash()


def test_one_seed_gives_one_model_and_one_table(capsys, files, tmp_path):
    weights, tables = [], []
    for index, seed in enumerate((5, 5, 6)):
        model, table = tmp_path / f"{index}.safetensors", tmp_path / f"{index}.csv"
        succeed(capsys, "waveforms", "train", files / "train.npz", {"-o": model, **QUICK, "--seed": seed})
        with safe_open(model, framework="np") as file:
            weights.append({name: file.get_tensor(name).tobytes() for name in file.keys()})  # noqa: SIM118
        classified(capsys, files / "test.npz", model, table)
        tables.append(table.read_bytes())
    assert weights[0] == weights[1] != weights[2]
    assert tables[0] == tables[1] != tables[2]


def test_the_paper_preset_trains_the_network_as_published(capsys, spikes, files, tmp_path):
    model = tmp_path / "paper.safetensors"
    options = {"-o": model, "--preset": "paper", "--epochs": 25, "--calibration-fraction": 0}
    succeed(capsys, "waveforms", "train", files / "train.npz", options)
    classifier = load_classifier(model)
    assert sum(p.numel() for p in classifier.network.parameters()) == 369391
    assert classifier.config.preset == "paper"
    rows = classified(capsys, files / "test.npz", model, tmp_path / "paper.csv")
    assert np.mean(rows["label"] == spikes.labels[200:]) >= 0.9


def test_calibration_tells_what_it_held_out(capsys, files, tmp_path):
    options = {"-o": tmp_path / "m.safetensors", **QUICK, "--calibration-fraction": 0.2}
    told = succeed(capsys, "waveforms", "train", files / "train.npz", options)
    facts = load_classifier(tmp_path / "m.safetensors").facts["calibration"]
    assert 35 <= facts["num_spikes"] <= 40
    assert told.summary["held_out_accuracy"] == facts["accuracy"] >= 0.9
    assert f"accuracy on the last {facts['num_spikes']} labels" in told.out


def test_overwrite_replaces(capsys, files, tmp_path):
    table = tmp_path / "spikes.csv"
    table.write_text("earlier")
    rows = classified(capsys, files / "test.npz", files / "model.safetensors", table, "--overwrite")
    assert len(rows) == len(load_snippets(files / "test.npz"))
    assert [item.name for item in tmp_path.iterdir()] == ["spikes.csv"]


# Simulating and sorting


def test_simulate_writes_what_it_says(capsys, signal, tmp_path):
    told = succeed(capsys, "waveforms", "simulate", {"-o": tmp_path / "again.mat", **MADE})
    settings = WaveClusConfig(duration_s=12.0, difficulty="easy1", noise_level=0.1, seed=1)
    made, read = simulate_wave_clus(settings), load_raw_channel(tmp_path / "again.mat")
    assert (read.signal == made.signal.astype(np.float32)).all()
    assert (read.sample_index == made.sample_index).all()
    assert (read.labels == made.labels).all()
    summary = told.summary
    assert (summary["units"], summary["spikes"], summary["recorded_seconds"]) == (3, len(made.labels), 12)
    assert summary["overlapping"] == made.is_overlap.sum()
    header = 128  # bytes, with the date
    assert (tmp_path / "again.mat").read_bytes()[header:] == signal.read_bytes()[header:]
    succeed(capsys, "waveforms", "simulate", {"-o": tmp_path / "other.mat", **MADE, "--seed": 2})
    assert load_raw_channel(tmp_path / "other.mat").sample_index.tolist() != read.sample_index.tolist()


def test_sort_with_the_labels_of_the_first_part(capsys, signal, tmp_path):
    output = tmp_path / "out"
    options = {"-o": output, "--labels": signal, "--label-interval": (0, 5), **QUICK}
    told = succeed(capsys, "waveforms", "sort", signal, options)
    names = {"spikes.csv", "sorting", "model.safetensors", "provenance.json", "spikewise.log"}
    assert {item.name for item in output.iterdir()} == names
    summary, rows, sorting = told.summary, pd.read_csv(output / "spikes.csv"), load(output / "sorting")
    assert list(rows.columns) == ["index", "sample_index", "label", "probability", "second_label"]
    vector = sorting.to_spike_vector()
    assert (rows["sample_index"] == vector["sample_index"]).all()
    assert (rows["label"] == sorting.unit_ids[vector["unit_index"]]).all()
    assert (summary["units"], summary["spikes"], summary["unsorted"]) == (3, len(rows), 0)
    assert summary["seconds"] == pytest.approx(
        summary["learning_seconds"] + summary["sorting_seconds"], abs=0.002
    )
    assert summary["recorded_seconds"] == 12
    assert summary["model_hash"] == load_classifier(output / "model.safetensors").hash()
    provenance = json.loads((output / "provenance.json").read_text())
    assert summary["truth"] == provenance["truth"]
    assert summary["spikes_hash"] == provenance["result"]["spikes_hash"]
    assert summary["truth"]["classification_accuracy"] >= 0.97
    assert (
        f"{summary['truth']['detection_recall']:.1%} of {summary['truth']['num_true_spikes']} found"
        in told.out
    )


def test_sort_without_labels_and_what_other_commands_make_of_it(capsys, signal, tmp_path):
    """From a simulation to spikes, and the scores that `evaluate` gives them."""
    output = tmp_path / "out"
    summary = succeed(capsys, "waveforms", "sort", signal, {"-o": output, **QUICK}).summary
    assert summary["units"] == 3
    assert summary["truth"]["interval"] == "all"
    channel = load_raw_channel(signal)
    truth = NumpySorting.from_samples_and_labels([channel.sample_index + 20], [channel.labels], 24000.0)
    truth.save(folder=tmp_path / "truth")
    scores = succeed(capsys, "evaluate", tmp_path / "truth", output).summary
    assert scores["precision"] >= 0.96
    assert scores["recall"] >= 0.88  # two spikes at once are one peak
    assert scores["accuracy"] >= 0.87
    refusal = run(capsys, "report", output, {"-o": tmp_path / "report.html"})
    assert_told(
        refusal, "is a model of `spikewise waveforms train`", "A model of `spikewise train`", "Choose"
    )


def test_sort_takes_labels_with_names_and_leaves_the_unlikely(capsys, signal, tmp_path):
    channel = load_raw_channel(signal)
    first = channel.sample_index < 5 * 24000
    times_s, names = channel.sample_index[first] / 24000, NAMES[channel.labels[first]]
    pd.DataFrame({"time_s": times_s, "unit_id": names}).to_csv(tmp_path / "labels.csv", index=False)
    options = {"-o": tmp_path / "out", "--labels": tmp_path / "labels.csv", "--min-probability": 0.9, **QUICK}
    summary = succeed(capsys, "waveforms", "sort", signal, options).summary
    sorting = load(tmp_path / "out" / "sorting")
    assert sorting.unit_ids.tolist() == NAMES[1:].tolist()
    rows = pd.read_csv(tmp_path / "out" / "spikes.csv")
    assert set(rows["label"]) == {*NAMES[1:], "-1"}
    assert (rows["probability"] < 0.9).sum() == (rows["label"] == "-1").sum() == summary["unsorted"]
    assert sorting.count_total_num_spikes() == summary["spikes"] == len(rows) - summary["unsorted"]
    again = succeed(capsys, "waveforms", "sort", signal, options, "--overwrite").summary
    assert again["spikes_hash"] == summary["spikes_hash"]


# Bad input. Each is given with --overwrite and an earlier result in its place, which must stay.


@pytest.fixture
def refused(capsys, tmp_path):
    """Run a command that must fail, say the parts of its message in order, and change nothing."""

    def refuse(*arguments, tells):
        before = contents(tmp_path)
        outcome = run(capsys, "waveforms", *arguments)
        assert_told(outcome, *tells)
        assert contents(tmp_path) == before

    return refuse


@pytest.fixture
def earlier(files, tmp_path):
    """A model that was there before, as options."""
    (tmp_path / "m.safetensors").write_bytes((files / "model.safetensors").read_bytes())
    return ("-o", tmp_path / "m.safetensors", "--overwrite")


@pytest.fixture
def earlier_table(tmp_path):
    (tmp_path / "spikes.csv").write_text("index,label,probability\n0,1,0.5\n")
    return ("-o", tmp_path / "spikes.csv", "--overwrite")


@pytest.fixture
def earlier_folder(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "provenance.json").write_text("{}")
    return ("-o", tmp_path / "out", "--overwrite")


ROWS = np.random.default_rng(0).normal(size=(20, 64))
LABELS = np.arange(20) % 2
WITH_NAN = np.where(np.arange(20)[:, None] == 3, np.nan, ROWS)


@pytest.mark.parametrize(
    ("arrays", "tells"),
    [
        ({"labels": LABELS * 0 + 4}, ("only the unit 4", "Two units or more", "Label spikes of other units")),
        ({"labels": LABELS * 0 - 1}, ("none at all", "Two units or more", "Label spikes of other units")),
        (
            {"labels": np.append(LABELS[:-1], 7)},
            ("only one labelled spike of the unit 7", "2 or more of each", "Label more of its spikes"),
        ),
        ({"labels": LABELS[:-1]}, ("20 waveforms, but its labels has 19", "One for each", "Correct labels")),
        (
            {"labels": LABELS, "waveforms": WITH_NAN},
            ("1 of 20 waveforms", "row 3", "Finite numbers", "Remove or repair"),
        ),
        ({"labels": LABELS, "waveforms": ROWS[:, :7]}, ("have 7 samples", "At least 8", "Cut longer")),
        ({}, ("waveforms without labels", "the unit of each", "--labels-key")),
        ({"labels": LABELS + 0.5}, ("not all whole", "Whole numbers", "Correct")),
    ],
)
def test_waveforms_that_cannot_train(refused, earlier, tmp_path, arrays, tells):
    np.savez(tmp_path / "waveforms.npz", **{"waveforms": ROWS, **arrays})
    refused("train", tmp_path / "waveforms.npz", *earlier, QUICK, tells=tells)


@pytest.mark.parametrize("ending", ["mat", "npz", "npy", "csv"])
def test_empty_and_damaged_files(refused, earlier, earlier_folder, tmp_path, ending):
    file = tmp_path / f"empty.{ending}"
    file.write_bytes(b"")
    refused("train", file, *earlier, QUICK, tells=(f"{file} is empty", "rite or copy it again"))
    sort = ("sort", file, *earlier_folder, QUICK)
    refused(*sort, tells=(str(file), "ead" if ending in ("npz", "npy") else "is empty", "."))
    file.write_bytes(b"not what the ending says\n" * 40)
    refused("train", file, *earlier, QUICK, tells=(str(file), ".", "."))
    refused(*sort, tells=(str(file), ".", "."))


def test_python_objects_stay_closed(refused, earlier, earlier_table, earlier_folder, files, tmp_path):
    file = tmp_path / "objects.npy"
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    tells = (f"{file} cannot be read", "no Python objects", "rite it again")
    refused("train", file, *earlier, QUICK, tells=tells)
    refused("classify", file, "--model", files / "model.safetensors", *earlier_table, tells=tells)
    tells = (f"{file} cannot be read", "Python objects are refused", "Save the traces again")
    refused("sort", file, *earlier_folder, QUICK, tells=tells)


def test_a_mat_file_of_something_else(refused, earlier, earlier_folder, tmp_path):
    file = tmp_path / "other.mat"
    savemat(file, {"other": np.ones((2, 3, 4))})
    tells = ("holds other (2, 3, 4)", "spike_times, spike_class, samplingInterval", "waveforms_key")
    refused("train", file, *earlier, QUICK, tells=tells)
    tells = ("holds other (2, 3, 4)", "a signal called data", "Rename")
    refused("sort", file, *earlier_folder, QUICK, tells=tells)


@pytest.mark.parametrize(
    ("arrays", "tells"),
    [
        (
            {"waveforms": ROWS[:, :20]},
            ("have 20 samples", "trained on waveforms of 64", "Cut them to the same length"),
        ),
        (
            {"waveforms": ROWS, "fs": 30000},
            ("sampled at 30000 Hz", "trained at 24000 Hz", "Resample them"),
        ),
        ({"waveforms": WITH_NAN}, ("1 of 20 waveforms", "Finite numbers", "Remove or repair")),
    ],
)
def test_waveforms_that_do_not_fit_the_model(refused, earlier_table, files, tmp_path, arrays, tells):
    np.savez(tmp_path / "waveforms.npz", **arrays)
    model = files / "model.safetensors"
    refused("classify", tmp_path / "waveforms.npz", "--model", model, *earlier_table, tells=tells)


def test_files_that_are_no_model(refused, earlier_table, files, tmp_path):
    def refuse(model, tells):
        refused("classify", files / "test.npz", "--model", model, *earlier_table, tells=tells)

    refuse(tmp_path / "none", ("There is no checkpoint at", "A .safetensors file", "Check the path"))
    content = (files / "model.safetensors").read_bytes()
    for part in (b"", content[:100], content[: len(content) // 2], content[:-1]):
        (tmp_path / "cut.safetensors").write_bytes(part)
        refuse(tmp_path / "cut.safetensors", ("is damaged", "An intact .safetensors file", "Copy it again"))
    refuse(files / "test.npz", ("is damaged or not a checkpoint", "An intact", "Copy it again"))
    save_model(recording_model(), tmp_path / "recording.safetensors")
    tells = ("model of `spikewise train`", "A model of `spikewise waveforms train`", "Choose the model")
    refuse(tmp_path / "recording.safetensors", tells)


def recording_model() -> Model:
    """A model as `spikewise train` writes it, of no use."""
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
    return Model((group,), 32000.0, config, PreprocessingConfig(), DetectionConfig(), {})


def test_labels_that_do_not_fit_the_signal(refused, earlier_folder, signal, tmp_path):
    labels = tmp_path / "labels.csv"
    sort = ("sort", signal, *earlier_folder, QUICK)
    labels.write_text("sample_index,unit_id\n50,1\n90,2\n288000,2\n")
    tells = ("1 of 3 labels lie outside the recording", "0 to 287999", "Give the labels of this recording")
    refused(*sort, "--labels", labels, tells=tells)
    labels.write_text("place,neuron\n1,1\n")
    refused(
        *sort, "--labels", labels, tells=("The header of", "sample_index,unit_id", "Correct the first line")
    )
    NumpySorting.from_samples_and_labels([np.arange(9)], [np.arange(9)], 3e4).save(folder=tmp_path / "rate")
    tells = ("frequency of 30000 Hz", "24000 Hz", "Give the labels of this recording")
    refused(*sort, "--labels", tmp_path / "rate", tells=tells)
    tells = ("labels lies between 20 and 30 s", "inside the label interval", "Widen --label-interval")
    refused(*sort, "--labels", signal, "--label-interval", 20, 30, tells=tells)
    tells = ("5 to 4 s", "end after its start", "START END")
    refused(*sort, "--labels", signal, "--label-interval", 5, 4, tells=tells)


def test_a_signal_without_spikes(refused, earlier_folder, tmp_path):
    file = tmp_path / "noise.npz"
    np.savez(file, data=np.random.default_rng(0).normal(size=120000), fs=24000)
    sort = ("sort", file, *earlier_folder, QUICK)
    refused(*sort, tells=("waveforms to cluster have the shape", "at least 20 spikes", "Give more spikes"))
    tells = ("No spike was found", "above 20 standard deviations", "Lower --detection-threshold")
    refused(*sort, "--detection-threshold", 20, tells=tells)
    refused(*sort, "--labels", file, tells=("a signal without spikes", "holds both", "Give labels"))
    np.savez(file, data=np.full(120000, 3.0), fs=24000)
    refused(*sort, tells=("is 3.0 throughout", "A signal that changes", "Choose another channel"))


def test_signals_of_several_channels(refused, earlier_folder, tmp_path):
    file = tmp_path / "two.npy"
    np.save(file, np.random.default_rng(0).normal(size=(24000, 2)).astype(np.float32))
    options = {"--sampling-frequency": 24000, **QUICK}
    tells = ("the channels 0, 1", "one of its channels", "Choose one with --channel")
    refused("sort", file, *earlier_folder, options, tells=tells)
    tells = ("channel '7' was requested", "one of its channels", "Choose one with --channel")
    refused("sort", file, *earlier_folder, options, "--channel", 7, tells=tells)


def test_results_are_not_overwritten_unasked(
    refused, earlier, earlier_table, earlier_folder, files, signal, tmp_path
):
    tells = ("exists already", "not overwritten by default", "add --overwrite")
    refused("train", files / "train.npz", *earlier[:2], QUICK, tells=tells)
    model = ("--model", files / "model.safetensors")
    refused("classify", files / "test.npz", *model, *earlier_table[:2], tells=tells)
    refused("sort", signal, *earlier_folder[:2], QUICK, tells=tells)
    (tmp_path / "sim.mat").write_text("earlier")
    refused("simulate", "-o", tmp_path / "sim.mat", MADE, tells=tells)


def test_options_that_cannot_be(refused, earlier_table, files, tmp_path):
    tells = ("sim.npz", "A name that ends in .mat", "Change the name")
    refused("simulate", "-o", tmp_path / "sim.npz", MADE, tells=tells)
    options = ("--model", files / "model.safetensors", "--min-probability", 2)
    tells = ("min_probability is 2.0", "at most 1.0", "Change it")
    refused("classify", files / "test.npz", *options, *earlier_table, tells=tells)
