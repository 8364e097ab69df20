"""Bad input to the command: exit code 2, a message that says what to do, and nothing lost or left behind."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import (
    QUICK,
    RATE,
    array_options,
    assert_told,
    contents,
    run,
    save,
    spike_rows,
    write_array,
    write_csv,
)
from safetensors import safe_open
from safetensors.torch import save_file
from spikeinterface.core import NumpySorting, load

import spikewise
from spikewise.data.recordings.channels import NOISE_CHUNK_S, draw_chunks


@pytest.fixture
def refused(capsys, tmp_path):
    """Run a command that must fail, say the parts of its message in order, and change nothing."""

    def refuse(*arguments, tells):
        before = contents(tmp_path)
        outcome = run(capsys, *arguments)
        assert_told(outcome, *tells)
        assert contents(tmp_path) == before
        return outcome

    return refuse


@pytest.fixture
def refused_recording(refused, tetrode, tmp_path):
    """Sort, train and describe a recording that none of them can use; each must tell the same."""

    def refuse(recording, *arguments, tells, describe=True):
        labels = {"--labels": tetrode.truth, **QUICK}
        refused("sort", recording, {"-o": tmp_path / "out", **labels}, *arguments, tells=tells)
        refused("train", recording, {"-o": tmp_path / "m.safetensors", **labels}, *arguments, tells=tells)
        if describe:
            refused("info", recording, *arguments, tells=tells)

    return refuse


@pytest.fixture
def refused_labels(refused, tetrode, tmp_path):
    """Sort the tetrode with labels that cannot be used."""

    def refuse(labels, *arguments, tells):
        options = {"--labels": labels, "-o": tmp_path / "out", **QUICK}
        refused("sort", tetrode.recording, options, *arguments, tells=tells)

    return refuse


# Recordings that cannot be read


def test_missing_paths(refused, refused_recording, refused_labels, tetrode, tmp_path):
    missing = tmp_path / "missing"
    tells = (f"The recording {missing} does not exist", "A file or folder is needed", "Correct the path")
    refused_recording(missing, tells=tells)
    tells = (f"There are no labels at {missing}", "A file or folder that exists", "Check the path")
    refused_labels(missing, tells=tells)
    refused("evaluate", missing, tetrode.truth, tells=tells)
    refused("evaluate", tetrode.truth, missing, tells=tells)
    tells = (f"There is no checkpoint at {missing}", "A .safetensors file", "Check the path")
    refused("sort", tetrode.recording, {"--model": missing, "-o": tmp_path / "out"}, tells=tells)


def test_names_that_the_system_refuses(refused, refused_recording, refused_labels, tetrode, tmp_path):
    name = tmp_path / ("x" * 300)
    refused_recording(name, tells=("File name too long", "complete, undamaged recording", "Check"))
    refused_labels(name, tells=("File name too long", "can be read", "Check the path"))
    tells = ("cannot be written: File name too long", "A folder that can be written", "another place")
    refused("sort", tetrode.recording, {"--labels": tetrode.truth, "-o": name}, tells=tells)
    refused("train", tetrode.recording, {"--labels": tetrode.truth, "-o": name}, tells=tells)
    refused("simulate", {"-o": name, "--duration-s": 1}, tells=("File name too long", "A folder", "Choose"))
    tells = ("There is no probe", "Known are", "Give one of these")
    refused_recording(tetrode.recording, {"--probe": name.name}, tells=tells)


def test_a_file_cut_inside_a_frame(refused_recording, tetrode, tmp_path):
    shutil.copytree(tetrode.recording, tmp_path / "cut")
    file = tmp_path / "cut" / "traces_cached_seg0.raw"
    os.truncate(file, 8 * 120000 + 3)
    tells = (f"{file} holds 960003 bytes", "120000 frames and 3 bytes", "has 8 bytes", "Copy the file again")
    refused_recording(tmp_path / "cut", tells=(*tells[:3], "copy the file again"))


@pytest.mark.parametrize("name", ["damaged.nwb", "damaged.h5", "damaged.npy", "damaged.npz", "damaged.rhd"])
@pytest.mark.parametrize("content", [b"", b"not what the ending says" * 40])
def test_damaged_files(refused_recording, tmp_path, name, content):
    file = tmp_path / name
    file.write_bytes(content)
    refused_recording(file, array_options(), tells=(str(file), "cannot be read", "omplete", "."))


def test_an_array_cut_short(refused_recording, tetrode, tmp_path):
    file = write_array(tmp_path / "traces.npy", tetrode.traces)
    os.truncate(file, file.stat().st_size // 2)
    refused_recording(file, array_options(), tells=(str(file), "cannot be read", "complete", "."))


def test_unknown_formats(refused_recording, tetrode, tmp_path):
    file = tmp_path / "traces.xyz"
    file.write_bytes(bytes(1000))
    refused_recording(file, tells=("ends in '.xyz'", "Formats are spikeinterface, zarr", "--format"))
    refused_recording(tmp_path, tells=(f"The format of {tmp_path} is not known", "Formats are", "--format"))
    tells = ("There is no format 'nwbb'", "Known are spikeinterface", "Did you mean 'nwb'?")
    refused_recording(tetrode.recording, {"--format": "nwbb"}, tells=tells)


def test_what_the_file_does_not_tell(refused_recording, tetrode, tmp_path):
    file = write_array(tmp_path / "traces.npy", tetrode.traces)
    tells = (
        f"{file} does not contain its sampling frequency",
        "It is given",
        "Give --sampling-frequency in Hz",
    )
    refused_recording(file, {"--probe": "tetrode"}, tells=tells)
    tells = ("has no positions of its 4 channels", "only with their positions", "Give --probe")
    refused_recording(file, array_options(probe=None), tells=tells)
    raw = tmp_path / "traces.dat"
    raw.write_bytes(tetrode.traces.tobytes())
    tells = ("does not contain its num_channels, dtype", "needs", "Give --num-channels --dtype")
    refused_recording(raw, array_options(), tells=tells)


def test_probes_that_do_not_fit(refused_recording, tetrode, tmp_path):
    file = write_array(tmp_path / "three.npy", tetrode.traces[:, :3])
    tells = (
        "The probe tetrode has 4 connected channels and the recording has 3",
        "They must have the same number",
        "Give the probe",
    )
    refused_recording(file, array_options(), tells=tells)
    tells = ("There is no probe 'tetrod'", "Known are", "Did you mean 'tetrode'?")
    refused_recording(tetrode.recording, {"--probe": "tetrod"}, tells=tells)
    probe = tmp_path / "probe.json"
    probe.write_text("{")
    tells = (f"{probe} cannot be read", "is read by probeinterface", "write it again")
    refused_recording(tetrode.recording, {"--probe": probe}, tells=tells)


# Channels that cannot be used


@pytest.mark.parametrize(
    ("value", "reason"),
    [(0, "constant"), (7, "constant"), (np.nan, "NaN or infinite"), (np.inf, "NaN or infinite")],
)
def test_unusable_channels(capsys, refused, refused_recording, tetrode, tmp_path, value, reason):
    traces = tetrode.traces.astype(np.float32)
    traces[:, 1] = value
    file = write_array(tmp_path / "traces.npy", traces)
    tells = (f"1 of 4 channels are unusable: 1 ({reason})", "must vary and hold finite", "--exclude-channels")
    refused_recording(file, array_options(), tells=tells, describe=False)

    silence = ("--unusable-channels", "silence")
    options = {"--labels": tetrode.truth, "-o": tmp_path / "out", **QUICK}
    outcome = run(capsys, "sort", file, array_options(), options, *silence)
    assert outcome.code == 0, outcome.err
    assert f"silenced 1 channel: 1 ({reason})" in outcome.out
    assert spikewise.load_model(tmp_path / "out").groups[0].silenced_channel_ids == ("1",)
    assert spikewise.evaluate(tetrode.truth, tmp_path / "out").accuracy > 0.7
    shutil.rmtree(tmp_path / "out")

    traces[:] = value
    write_array(file, traces)
    tells = (f"All channels of the recording are unusable: 0 ({reason}), 1", "must vary", "Check")
    refused_recording(file, array_options(), *silence, tells=tells, describe=False)


def test_channels_to_exclude(refused_recording, tetrode):
    tells = ("The recording has no channel 9", "Its channels are 0, 1, 2, 3", "Correct --exclude-channels")
    refused_recording(tetrode.recording, "--exclude-channels", "9", tells=tells, describe=False)
    every = [word for name in "0123" for word in ("--exclude-channels", name)]
    tells = ("No channel is left of 4", "At least one usable channel", "Exclude fewer")
    refused_recording(tetrode.recording, *every, tells=tells, describe=False)


# Recordings that are too short


@pytest.mark.parametrize("bandpass", ["--bandpass", "--no-bandpass"])
def test_shorter_than_a_window(refused, tetrode, trained, tmp_path, bandpass):
    file = write_array(tmp_path / "short.npy", tetrode.traces[:55])
    tells = (
        "The recording has 55 samples",
        "At least 56",
        "window lasts 1.875 ms",
        "Give a longer recording",
    )
    labels = write_csv(tmp_path / "labels.csv", [(20, 1), (40, 1)])
    options = {"-o": tmp_path / "out", **array_options()}
    for source in ({"--labels": labels}, {"--model": trained}, {}):
        refused("sort", file, {**options, **source}, bandpass, tells=tells)


def test_one_window_is_enough_for_a_model_but_not_to_learn(capsys, refused, tetrode, trained, tmp_path):
    file = write_array(tmp_path / "short.npy", tetrode.traces[:56])
    outcome = run(capsys, "sort", file, {"--model": trained, "-o": tmp_path / "out", **array_options()})
    assert outcome.code == 0, outcome.err
    shutil.rmtree(tmp_path / "out")
    labels = write_csv(tmp_path / "labels.csv", [(20, 1), (40, 1)])
    options = {"--labels": labels, "-o": tmp_path / "out", **array_options()}
    tells = ("No label of group 0 can be learnt from", "with 56 samples around them", "Label more spikes")
    refused("sort", file, options, tells=tells)


def test_too_short_for_another_sorter(refused, tetrode, tmp_path):
    file = write_array(tmp_path / "short.npy", tetrode.traces[: 2 * RATE - 1])
    tells = ("The recording lasts 2.000 s", "At least 2 s, better 60 s", "or give labels")
    options = {"-o": tmp_path / "out", "--bootstrap": "lupin", **array_options()}
    refused("sort", file, options, tells=tells)


# Labels


@pytest.mark.parametrize(
    ("rows", "tells"),
    [
        (
            [(5, 1), (240000, 1)],
            ("1 of 2 labels lie outside", "sample 240000", "0 to 239999", "Give the labels"),
        ),
        ([(5, 1), (-1, 1)], ("Line 3 of", "sample_index '-1'", "At least 0", "Correct the line")),
        ([(5, 1), (1e30, 1)], ("Line 3 of", "sample_index '1e+30'", "At least 0", "Correct the line")),
        ([(50000, 1), (1.5, 1)], ("Line 3 of", "sample_index '1.5'", "A whole number", "Correct the line")),
        ([("x", 1), ("y", 1)], ("Line 2 of", "sample_index 'x'", "A number", "Correct the line (2 in all)")),
        ([(5, 1), (9, "")], ("Line 3 of", "unit_id ''", "A unit id", "Correct the line")),
        ([(5, 1), (9, "NaN")], ("Line 3 of", "unit_id 'NaN'", "A unit id", "Correct the line")),
        ([(5, 1, 2), (9, 1, 2)], ("cannot be read as CSV", "sample_index,unit_id", "Check that the file is")),
        ([], ("There are no labels", "At least two labelled spikes", "leave the labels out")),
        ([(50000, 1)], ("There is only one label", "At least two labelled spikes", "leave the labels out")),
        ([(50000, 1), (50000, 1)], ("There is only one label", "At least two", "leave the labels out")),
        ([(50000, 1), (50020, 1)], ("No label of group 0 can be learnt from", "56 samples", "Label more")),
    ],
)
def test_labels_in_a_csv(refused_labels, tmp_path, rows, tells):
    refused_labels(write_csv(tmp_path / "labels.csv", rows), tells=tells)


def test_labels_with_another_header(refused_labels, tmp_path):
    labels = write_csv(tmp_path / "labels.csv", [(5, 1), (9, 1)], "place,neuron")
    refused_labels(labels, tells=("The header of", "'place,neuron'", "sample_index,unit_id", "first line"))


def test_labels_of_a_unit_without_spikes(refused_labels, tetrode, tmp_path):
    sorting = NumpySorting(tetrode.spikes, RATE, ["a", "b", "c", "silent"])
    tells = (
        "The units silent have no label in the label interval",
        "At least one label of each unit",
        "remove",
    )
    refused_labels(save(sorting, tmp_path / "labels"), tells=tells)


def test_labels_of_another_rate_or_with_more_segments(refused_labels, tetrode, tmp_path):
    sorting = NumpySorting(tetrode.spikes, 25000, [0, 1, 2])
    tells = ("sampling frequency of 25000 Hz", "That of the recording, 30000 Hz", "Give the labels of this")
    refused_labels(save(sorting, tmp_path / "rate"), tells=tells)
    spikes = tetrode.spikes.copy()
    spikes["segment_index"][len(spikes) // 2 :] = 1
    tells = ("The labels have 2 segments", "which has 1", "Give the labels of this recording")
    refused_labels(save(NumpySorting(spikes, RATE, [0, 1, 2]), tmp_path / "segments"), tells=tells)


def test_a_unit_outside_the_label_interval(refused_labels, tetrode, tmp_path):
    rows = [row[:2] for row in spike_rows(load(tetrode.truth)) if row[1] != "1" or row[0] > 4 * RATE]
    labels = write_csv(tmp_path / "labels.csv", rows)
    tells = (
        "The units 1 have no label in the label interval, 0 to 4 s",
        "At least one",
        "Widen label_interval",
    )
    refused_labels(labels, "--label-interval", 0, 4, tells=tells)
    first = min(row[0] for row in rows)
    tells = ("No label lies in the label interval", "labels of every unit", "leave it out")
    refused_labels(labels, "--label-interval", 0, first / RATE, tells=tells)


@pytest.mark.parametrize(
    ("interval", "tells"),
    [
        ((4, 9), ("4 to 9 s", "the end of the recording, 8.000000 s", "Change label_interval")),
        ((0, "inf"), ("label_interval is (0.0, inf)", "It must be finite", "Change it")),
        ((0, "nan"), ("label_interval is (0.0, nan)", "It must be finite", "Change it")),
        ((5, 4), ("5 to 4 s", "end after its start", "START END")),
        ((-1, 4), ("-1 to 4 s", "start at 0 or later", "START END")),
        ((4, 4.00001), ("4 to 4.00001 s", "At least one sample", "Change label_interval")),
    ],
)
def test_label_intervals_that_do_not_fit(refused_labels, tetrode, interval, tells):
    refused_labels(tetrode.truth, "--label-interval", *interval, tells=tells)


def test_folders_that_hold_no_labels(refused_labels, tetrode, tmp_path):
    tells = ("The format of the labels", "Known: Phy:", "Give a path of one of these kinds")
    refused_labels(tetrode.recording, tells=tells)
    (tmp_path / "phy").mkdir()
    (tmp_path / "phy" / "spike_times.npy").write_bytes(b"damaged")
    tells = ("has no file with the units of its spikes", "spike_clusters.npy", "Export the folder again")
    refused_labels(tmp_path / "phy", tells=tells)
    (tmp_path / "phy" / "spike_clusters.npy").write_bytes(b"damaged")
    refused_labels(tmp_path / "phy", tells=("cannot be read as Phy", "Phy or Kilosort folder", "Check that"))


# Models


def change_header(file: Path, changed: Path, **values) -> Path:
    """Copy a model with other values in its header."""
    with safe_open(file, framework="pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        header = json.loads(opened.metadata()["spikewise"])
    save_file(tensors, changed, {"spikewise": json.dumps({**header, **values})})
    return changed


def test_models_of_another_version_or_damaged(refused, tetrode, trained, tmp_path):
    def refuse(model, tells):
        refused("sort", tetrode.recording, {"--model": model, "-o": tmp_path / "out"}, tells=tells)

    later = change_header(trained, tmp_path / "later.safetensors", format_version=99)
    refuse(later, ("has format version 99", "reads version 1", "Train again, or install the Spikewise"))
    content = trained.read_bytes()
    cut = tmp_path / "cut.safetensors"
    for part in (b"", content[: len(content) // 2], content[:100], b"PK" + content[2:]):
        cut.write_bytes(part)
        refuse(cut, (f"The checkpoint {cut} is damaged", "An intact .safetensors file", "Copy it again"))
    save_file({}, cut)
    refuse(cut, ("was not written by Spikewise", "A checkpoint of `spikewise train`", "Check the path"))
    refuse(write_csv(tmp_path / "no.csv", []), ("is damaged or not a checkpoint", "An intact", "Copy it"))


def test_models_of_another_rate_or_probe(refused, tetrode, trained, tmp_path):
    def refuse(recording, *arguments, tells):
        options = {"--model": trained, "-o": tmp_path / "out"}
        refused("sort", recording, *arguments, options, tells=tells)

    file = write_array(tmp_path / "traces.npy", tetrode.traces)
    tells = ("is sampled at 25000 Hz", "was trained at 30000 Hz", "Resample the recording")
    refuse(file, array_options() | {"--sampling-frequency": 25000}, tells=tells)
    tells = ("lie up to", "um from those of the checkpoint", "The same positions", "same probe")
    refuse(file, array_options("linear-4"), tells=tells)
    three = write_array(tmp_path / "three.npy", tetrode.traces[:, :3])
    tells = ("has 3 channels in group '0'", "was trained on 4", "Sort a recording of the same probe")
    refuse(three, array_options("linear-3"), tells=tells)
    tells = ("has the channel groups 0", "was trained on 7", "same probes")
    with safe_open(trained, framework="pt") as opened:
        groups = json.loads(opened.metadata()["spikewise"])["groups"]
    trained = change_header(trained, tmp_path / "7.safetensors", groups=[{**groups[0], "name": "7"}])
    refuse(tetrode.recording, tells=tells)


def test_channels_that_the_model_does_not_know_are_told(capsys, tetrode, trained, tmp_path):
    eight = write_array(tmp_path / "eight.npy", np.tile(tetrode.traces, 2))
    options = {"--model": trained, "-o": tmp_path / "out", **array_options("tetrode-2")}
    outcome = run(capsys, "sort", eight, options)
    assert outcome.code == 0
    assert "the model knows no group 1: its channels are not sorted" in outcome.err
    assert set(load(tmp_path / "out" / "sorting").get_property("group")) == {"0"}


def test_a_model_that_meets_nan_far_inside_leaves_nothing(refused, tetrode, trained, tmp_path):
    traces = tetrode.traces.astype(np.float32)
    free = np.ones(len(traces), dtype=bool)
    for _, begin, end in draw_chunks(load(tetrode.recording), NOISE_CHUNK_S, seed=0):
        free[begin:end] = False
    traces[np.flatnonzero(free[: 7 * RATE])[-1], 3] = np.nan
    file = write_array(tmp_path / "traces.npy", traces)
    tells = (
        "The traces of 1 channels are NaN or infinite at",
        "3",
        "must be a finite number",
        "Cut this time",
    )
    options = {"--model": trained, "-o": tmp_path / "out", "--damage": "keep", **array_options()}
    refused("sort", file, options, tells=tells)


# Options


@pytest.mark.parametrize(
    ("words", "tells"),
    [
        (["--epoch", 3], ("Unknown option: --epoch", "Did you mean", "--help")),
        (["--epochs", "many"], ("Invalid value for --epochs", "many", "--help")),
        (["--epochs", 0], ("setting epochs is 0", "It must be at least 1", "Change it")),
        (["--threshold", 2], ("setting threshold is 2.0", "at least 0.01 and at most 0.99", "Change it")),
        (["--window-ms", "nan"], ("window_ms is nan", "at least 0.5 and at most 10.0", "Change it")),
        (["--seed", -1], ("setting seed is -1", "at least 0", "Change it")),
        (["--chunk-s", 0], ("chunk_s is 0", "at least 0.001", "Change it")),
        (["--labels-per-unit", 0], ("labels_per_unit is 0", "at least 1", "Change it")),
        (["--freq-min-hz", 7000], ("from 7000 to 6000 Hz", "must lie above", "Change freq_min_hz")),
        (["--device", "tpu"], ('"tpu" for --device', 'Choose from: "auto", "cpu"', "--help")),
        (["--bootstrap", "magic"], ('"magic" for --bootstrap', 'Choose from: "spikewise"', "--help")),
        (["--label-interval", 1], ("--label-interval requires 2", "Only got 1", "--help")),
        (["--learning-rate", 1e30], ("rate of 1e+30 gave numbers that are not finite", "0.005", "Lower")),
        (["--learning-rate", "inf"], ("learning_rate is inf", "It must be finite", "Change it")),
        (["surplus"], ("Unused Tokens: ['surplus']", "--help")),
        (["--chunk-s", "inf"], ("chunk_s is inf", "finite", "Change it")),
        (["--temporal-features", 0, 16], ("temporal_features is", "at least 1", "Change it")),
    ],
)
def test_options_of_sort(refused, tetrode, tmp_path, words, tells):
    quick = {name: value for name, value in QUICK.items() if name not in words}
    options = {"--labels": tetrode.truth, "-o": tmp_path / "out", **quick}
    refused("sort", tetrode.recording, options, *words, tells=tells)


def test_a_training_of_four_steps(capsys, tetrode, tmp_path):
    options = {"--labels": tetrode.truth, "-o": tmp_path / "m.safetensors", **QUICK, "--min-steps": 4}
    few = {"--batch-size": 100000, "--epochs": 4}
    assert run(capsys, "train", tetrode.recording, {**options, **few}).code == 0


def test_arguments_that_are_missing_or_contradict(refused, tetrode, trained, tmp_path):
    refused("sort", tells=("--recording requires an argument", "--help"))
    refused("sort", tetrode.recording, tells=("--output requires an argument", "--help"))
    refused("sorte", tells=('Unknown command "sorte"', "Did you mean", "--help"))
    both = {"--labels": tetrode.truth, "--model": trained, "-o": tmp_path / "out"}
    tells = ("Both labels and a model are given", "One of them, or none", "Leave one out")
    refused("sort", tetrode.recording, both, tells=tells)


def test_a_device_that_is_not_here(refused, tetrode, trained, tmp_path):
    import torch

    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    absent = [name for name, is_here in here.items() if not is_here]
    options = {"--model": trained, "-o": tmp_path / "out", "--device": absent[0]}
    tells = (f"The device '{absent[0]}' is not available here", "Available: cpu", "Choose one of these")
    refused("sort", tetrode.recording, options, tells=tells)
    missing = {**options, "--model": None}  # told before anything is read
    refused("sort", tmp_path / "missing", missing, tells=tells)
    refused("train", tmp_path / "missing", {**missing, "-o": tmp_path / "m.safetensors"}, tells=tells)


def test_simulations_that_cannot_be_made(refused, tmp_path):
    def refuse(*options, tells):
        refused("simulate", {"-o": tmp_path / "out"}, *options, tells=tells)

    refuse("--num-units", 0, tells=("num_units is 0", "at least 1", "Change it"))
    refuse("--source", "mearec", tells=("has no template file", "mearec and hybrid take one", "Give one"))
    refuse("--probe", "square", tells=("There is no probe 'square'", "Known are", "Did you mean 'square-N'?"))
    refuse(
        "--probe", "tetrode", "--num-units", 200, "--duration-s", 1, tells=("Only", "of 200", "Ask for fewer")
    )


# Sorters that make the labels


def test_a_sorter_that_is_not_installed(refused, tetrode, tmp_path):
    from spikeinterface.sorters import installed_sorters

    if "kilosort4" in installed_sorters():
        pytest.skip("kilosort4 is installed")
    options = {"-o": tmp_path / "out", "--bootstrap": "kilosort4"}
    tells = ("The sorter kilosort4 is not installed", "Installed: lupin", "Install kilosort4", "give labels")
    refused("sort", tetrode.recording, options, tells=tells)
    refused("train", tetrode.recording, {**options, "-o": tmp_path / "m.safetensors"}, tells=tells)


@pytest.mark.slow
def test_noise_without_spikes(refused, tmp_path):
    noise = np.random.default_rng(0).normal(0, 10, (6 * RATE, 4)).astype(np.float32)
    file = write_array(tmp_path / "noise.npy", noise)
    options = {"-o": tmp_path / "out", "--bootstrap": "spykingcircus2", **array_options()}
    tells = ("Spykingcircus2", "initial interval", "Read ", "choose another sorter", "or give labels")
    outcome = refused("sort", file, options, tells=tells)
    log = Path(re.search(r"Read (\S+\.log)", outcome.err)[1])
    assert "spykingcircus2" in log.read_text()
    log.unlink()
    log.parent.rmdir()


# Comparing


def test_sortings_of_different_rates_cannot_be_compared(refused, tetrode, tmp_path):
    slower = save(NumpySorting(tetrode.spikes, 25000, [0, 1, 2]), tmp_path / "slower")
    refused("evaluate", tetrode.truth, slower, tells=("30000", "25000", "."))


def test_tables_that_tell_no_rate(refused, tetrode, tmp_path):
    table = write_csv(tmp_path / "spikes.csv", [(5, 1), (9, 1)])
    tells = (f"{table} does not contain the sampling frequency", "The recording, which has it", "--recording")
    refused("evaluate", tetrode.truth, table, tells=tells)
    refused("evaluate", table, tetrode.truth, tells=tells)


def test_comparisons_outside_the_time_or_with_wrong_settings(refused, tetrode):
    refused(
        "evaluate",
        tetrode.truth,
        tetrode.truth,
        "--match-score",
        2,
        tells=("match_score", "at most 1", "Change"),
    )
    refused("evaluate", tetrode.truth, tetrode.truth, "--interval", 5, 4, tells=("5", "4", "."))
