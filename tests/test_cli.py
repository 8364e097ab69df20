"""The command from end to end: simulate, train, sort, evaluate, info."""

import csv
import importlib.metadata
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from commands import (
    QUICK,
    RATE,
    Simulated,
    array_options,
    finish,
    run,
    save,
    spike_rows,
    start,
    succeed,
    write_array,
    write_csv,
)
from spikeinterface.core import NumpySorting, append_recordings, load

import spikewise
from spikewise.data.recordings.channels import NOISE_CHUNK_S, draw_chunks


def model_hash(capsys, recording: Path, labels: Path, output: Path, *options) -> str:
    """Hash of the model that training makes of these labels."""
    arguments = ("train", recording, {"--labels": labels, "--output": output, **QUICK}, *options)
    made = succeed(capsys, *arguments).summary["model_hash"]
    assert spikewise.load_model(output).hash() == made
    output.unlink()
    return made


def count_true(table: Path) -> int:
    """Sum of the true spikes in a table of units."""
    with table.open(newline="") as lines:
        return sum(int(row["num_truth"]) for row in csv.DictReader(lines))


def test_simulate_writes_what_it_says(capsys, tmp_path):
    told = succeed(
        capsys,
        "simulate",
        {"--output": tmp_path / "a", "--probe": "tetrode", "--num-units": 3, "--duration-s": 2, "--seed": 4},
    )
    recording, truth = load(tmp_path / "a" / "recording"), load(tmp_path / "a" / "truth")
    assert recording.get_num_channels() == told.summary["channels"] == 4
    assert recording.get_total_duration() == told.summary["recorded_seconds"] == 2
    assert len(truth.unit_ids) == told.summary["units"] == 3
    assert truth.count_total_num_spikes() == told.summary["spikes"] > 0
    made = spikewise.simulate(probe="tetrode", num_units=3, duration_s=2, seed=4)
    np.testing.assert_array_equal(truth.to_spike_vector(), made.sorting.to_spike_vector())


def test_train_then_sort_with_the_model(capsys, tetrode, tmp_path):
    file, output = tmp_path / "model.safetensors", tmp_path / "sorted"
    told = succeed(capsys, "train", tetrode.recording, {"--labels": tetrode.truth, "-o": file, **QUICK})
    model = spikewise.load_model(file)
    truth = load(tetrode.truth)
    assert model.unit_ids == truth.unit_ids.tolist()
    assert told.summary["units"] == len(truth.unit_ids)
    assert told.summary["labels"] == len(tetrode.spikes)
    assert told.summary["model_hash"] == model.hash()
    frames = tetrode.spikes["sample_index"]
    interval_s = [frames[0] / RATE, (frames[-1] + 1) / RATE]
    assert told.summary["label_interval_s"] == pytest.approx(interval_s, abs=1e-9)
    assert f"{len(tetrode.spikes)} spikes: labels of {tetrode.truth}" in told.out
    assert f"between {interval_s[0]:.2f} and {interval_s[1]:.2f} s" in told.out

    told = succeed(capsys, "sort", tetrode.recording, {"--model": file, "-o": output})
    summary, sorting = told.summary, load(output / "sorting")
    assert summary["units"] == sorting.get_num_units() == len(truth.unit_ids)
    assert summary["spikes"] == sorting.count_total_num_spikes() > 0
    assert sorting.unit_ids.tolist() == truth.unit_ids.tolist()
    assert sorting.sampling_frequency == RATE
    assert spikewise.load_model(output).hash() == summary["model_hash"] == model.hash()
    assert summary["learning_seconds"] == 0  # the model was given
    parts = (summary[f"{name}_seconds"] for name in ("preparing", "learning", "sorting", "trust", "report"))
    assert summary["seconds"] == pytest.approx(sum(parts), abs=0.004)
    assert summary["real_time_factor"] == pytest.approx(8 / summary["seconds"], rel=0.05)
    assert f"from file to result {summary['seconds']:.1f} s, with a given model (preparing" in told.out
    assert {item.name for item in output.iterdir()} == {
        "sorting",
        "model.safetensors",
        "provenance.json",
        "spikewise.log",
        "report.html",
        "suggestions.csv",
        "suggestions.json",
        "units.csv",
        "probabilities.npy",
    }


def test_sort_with_labels_finds_the_spikes_and_evaluate_says_so(capsys, tetrode, tmp_path):
    output = tmp_path / "sorted"
    options = {"--labels": tetrode.truth, "-o": output, **QUICK, "--min-steps": 300}
    told = succeed(capsys, "sort", tetrode.recording, options)
    frames = tetrode.spikes["sample_index"]
    line = f"labels of {tetrode.truth}, between {frames[0] / RATE:.2f} and {(frames[-1] + 1) / RATE:.2f} s"
    assert line in told.out.splitlines()
    provenance = json.loads((output / "provenance.json").read_text())
    assert provenance["result"]["spikes_hash"] == told.summary["spikes_hash"]
    assert provenance["config"]["training"]["min_steps"] == 300

    table = tmp_path / "units.csv"
    scored = succeed(capsys, "evaluate", tetrode.truth, output, {"--csv": table})
    direct = spikewise.evaluate(tetrode.truth, output)
    assert scored.summary["accuracy"] == direct.accuracy > 0.97
    assert f"pooled accuracy {direct.accuracy:.4f}" in scored.out
    rows = table.read_text().splitlines()
    assert len(rows) == 1 + len(load(tetrode.truth).unit_ids)

    half = tmp_path / "half.csv"
    succeed(capsys, "evaluate", tetrode.truth, output, {"--csv": half, "--interval": (4, 8)})
    assert count_true(table) == len(frames)
    assert count_true(half) == np.count_nonzero(frames >= 4 * RATE)


def test_one_seed_gives_one_result_and_another_seed_another_model(capsys, tetrode, tmp_path):
    summaries = [
        succeed(
            capsys,
            "sort",
            tetrode.recording,
            {"--labels": tetrode.truth, "-o": tmp_path / str(index), "--seed": seed, **QUICK},
        ).summary
        for index, seed in enumerate((5, 5, 6))
    ]
    assert summaries[0]["spikes_hash"] == summaries[1]["spikes_hash"]
    assert summaries[0]["model_hash"] == summaries[1]["model_hash"] != summaries[2]["model_hash"]


def test_the_length_of_the_chunks_changes_nothing(capsys, tetrode, trained, tmp_path):
    """A low threshold gives thousands of spikes, of which some lie on the seams."""
    options = {"--model": trained, "-o": tmp_path / "out", "--threshold": 0.01}
    summaries = [
        succeed(capsys, "sort", tetrode.recording, options, "--overwrite", "--chunk-s", chunk_s).summary
        for chunk_s in (0.05, 0.333, 1, 4, 100)
    ]
    assert summaries[0]["spikes"] > 3000
    assert len({summary["spikes_hash"] for summary in summaries}) == 1


def test_labels_outside_the_label_interval_teach_nothing(capsys, tetrode, tmp_path):
    rows = spike_rows(load(tetrode.truth))
    inside = [row for row in rows if row[0] < 4 * RATE]
    random = np.random.default_rng(0)
    garbage = [(sample, random.integers(3), 0) for sample in random.integers(4 * RATE, 8 * RATE, 500)]
    header = "sample_index,unit_id,segment_index"
    files = {
        "all": write_csv(tmp_path / "all.csv", rows, header),
        "inside": write_csv(tmp_path / "inside.csv", inside, header),
        "garbage": write_csv(tmp_path / "garbage.csv", inside + garbage, header),
    }
    model = tmp_path / "m.safetensors"
    hashes = {
        name: model_hash(capsys, tetrode.recording, file, model, "--label-interval", 0, 4)
        for name, file in files.items()
    }
    assert hashes["all"] == hashes["inside"] == hashes["garbage"]
    assert model_hash(capsys, tetrode.recording, files["all"], model) != hashes["all"]


def test_traces_outside_the_label_interval_teach_nothing(capsys, tetrode, tmp_path):
    """Only the time from which noise levels are measured may count, so all other time is spoilt."""
    measured = np.zeros(len(tetrode.traces), dtype=bool)
    for _, begin, end in draw_chunks(load(tetrode.recording), NOISE_CHUNK_S, seed=0):
        measured[begin:end] = True
    measured[:RATE] = measured[-RATE:] = True
    spoilt, also_inside = tetrode.traces.copy(), tetrode.traces.copy()
    free = np.flatnonzero(~measured)
    assert np.count_nonzero(free >= 4 * RATE) > RATE // 2
    spoilt[free[free >= 4 * RATE]] *= -3
    also_inside[free[free < 4 * RATE]] *= -3
    model, options = tmp_path / "m.safetensors", ("--no-bandpass", "--label-interval", 0, 4, array_options())
    hashes = [
        model_hash(capsys, write_array(tmp_path / "traces.npy", traces), tetrode.truth, model, *options)
        for traces in (tetrode.traces, spoilt, also_inside)
    ]
    assert hashes[0] == hashes[1] != hashes[2]


def test_labels_per_unit_counts_those_that_train(capsys, tetrode, tmp_path):
    counts = np.bincount(tetrode.spikes["unit_index"])
    options = {"--labels": tetrode.truth, "-o": tmp_path / "m.safetensors", **QUICK}
    told = succeed(capsys, "train", tetrode.recording, options, "--labels-per-unit", 40)
    assert counts.min() < 40 < counts.max()
    assert told.summary["labels"] == np.minimum(counts, 40).sum()
    succeeded = succeed(capsys, "train", tetrode.recording, options, "--overwrite", "--label-interval", 0, 4)
    assert succeeded.summary["labels"] == np.count_nonzero(tetrode.spikes["sample_index"] < 4 * RATE)
    assert succeeded.summary["label_interval_s"] == [0, 4]


def test_a_csv_of_labels_gives_its_ids_and_the_same_model(capsys, tetrode, trained, tmp_path):
    spikes = tetrode.spikes
    seconds = [(spike["sample_index"] / RATE, spike["unit_index"]) for spike in spikes]
    labels = write_csv(tmp_path / "labels.csv", seconds, "time_s,unit_id")
    model = tmp_path / "m.safetensors"
    options = {"--labels": labels, "-o": model, **QUICK}
    succeed(capsys, "train", tetrode.recording, options)
    assert spikewise.load_model(model).unit_ids == [0, 1, 2]
    network, other = (spikewise.load_model(file).groups[0].network for file in (model, trained))
    np.testing.assert_array_equal(network.classifier.weight.detach(), other.classifier.weight.detach())

    write_csv(labels, [(time_s, f"{10 * unit}a") for time_s, unit in seconds], "time_s,unit_id")
    output = {"--labels": labels, "-o": tmp_path / "out", **QUICK}
    told = succeed(capsys, "sort", tetrode.recording, output)
    assert load(tmp_path / "out" / "sorting").unit_ids.tolist() == ["0a", "10a", "20a"]
    assert told.summary["units"] == 3


def test_tetrodes_are_sorted_one_by_one_and_joined(capsys, tmp_path):
    made = Simulated(tmp_path / "two", **{"probe": "tetrode-2", "num-units": 4, "seed": 3})
    recording, truth = load(made.recording), load(made.truth)
    mains = truth.get_property("main_channel_index") // 4
    assert set(mains) == {0, 1}
    options = {"--labels": made.truth, **QUICK}
    interval = ("--label-interval", 0, 8)
    succeed(capsys, "sort", made.recording, {"-o": tmp_path / "both", **options}, *interval)
    both = load(tmp_path / "both" / "sorting")
    assert sorted(both.unit_ids) == sorted(truth.unit_ids)
    groups = dict(zip(both.unit_ids, both.get_property("group"), strict=True))
    expected = recording.get_property("group")[truth.get_property("main_channel_index")]
    assert [groups[unit_id] for unit_id in truth.unit_ids] == [str(name) for name in expected]
    assert spikewise.evaluate(truth, both).accuracy > 0.9

    second = save(recording.select_channels(recording.channel_ids[4:]), tmp_path / "second")
    own_labels = save(truth.select_units(truth.unit_ids[mains == 1]), tmp_path / "own")
    alone = {**options, "--labels": own_labels, "-o": tmp_path / "alone"}
    succeed(capsys, "sort", second, alone, *interval)
    sorting = load(tmp_path / "alone" / "sorting")
    for unit_id in sorting.unit_ids:
        np.testing.assert_array_equal(
            sorting.get_unit_spike_train(unit_id), both.get_unit_spike_train(unit_id)
        )


def test_segments_stay_segments(capsys, tetrode, tmp_path):
    recording, spikes = load(tetrode.recording), tetrode.spikes
    cut = 5 * RATE
    parts = append_recordings([recording.frame_slice(0, cut), recording.frame_slice(cut, 8 * RATE)])
    two = spikes.copy()
    two["segment_index"] = spikes["sample_index"] >= cut
    two["sample_index"] -= cut * two["segment_index"]
    truth = NumpySorting(two, RATE, load(tetrode.truth).unit_ids)
    output = tmp_path / "out"
    told = succeed(
        capsys,
        "sort",
        save(parts, tmp_path / "parts"),
        {"--labels": save(truth, tmp_path / "truth"), "-o": output, **QUICK},
    )
    sorting = load(output / "sorting")
    assert sorting.get_num_segments() == 2
    assert told.summary["recorded_seconds"] == 8
    scores = spikewise.evaluate(truth, output)
    assert scores.accuracy > 0.9
    assert sorting.to_spike_vector(concatenated=False)[1]["sample_index"].max() < 3 * RATE


def test_a_model_sorts_another_recording_of_the_same_probe(capsys, tetrode, tmp_path):
    recording, truth = load(tetrode.recording), load(tetrode.truth)
    first = save(recording.frame_slice(0, 5 * RATE), tmp_path / "first")
    second = save(recording.frame_slice(5 * RATE, 8 * RATE), tmp_path / "second")
    labels = save(truth.frame_slice(0, 5 * RATE), tmp_path / "labels")
    model = tmp_path / "m.safetensors"
    succeed(capsys, "train", first, {"--labels": labels, "-o": model, **QUICK})
    told = succeed(capsys, "sort", second, {"--model": model, "-o": tmp_path / "out"})
    assert told.summary["recorded_seconds"] == 3
    scores = spikewise.evaluate(truth.frame_slice(5 * RATE, 8 * RATE), tmp_path / "out")
    assert scores.accuracy > 0.9


@pytest.mark.slow
def test_without_labels_another_sorter_makes_them(capsys, tmp_path):
    made = Simulated(tmp_path / "made", **{"num-units": 2, "noise-uv": 5, "seed": 2, "duration-s": 12})
    output = tmp_path / "out"
    told = succeed(capsys, "sort", made.recording, {"-o": output, "--bootstrap": "spykingcircus2", **QUICK})
    assert told.summary["label_interval_s"] == [0, 12]
    assert "units found by SpyKING CIRCUS 2, between 0.00 and 12.00 s" in told.out
    facts = json.loads((output / "provenance.json").read_text())["labels"]["groups"]["0"]
    sorting = load(output / "sorting")
    assert sorting.unit_ids.tolist() == list(range(facts["num_units_kept"])) == [0, 1]
    kept = load(output / "bootstrap" / "0")
    assert kept.unit_ids.tolist() == [0, 1]
    assert spikewise.evaluate(made.truth, kept).accuracy > 0.9
    assert spikewise.evaluate(made.truth, output).accuracy > 0.9


def test_an_earlier_result_is_replaced_when_asked(capsys, tetrode, trained, tmp_path):
    output = tmp_path / "out"
    options = {"--model": trained, "-o": output}
    first = succeed(capsys, "sort", tetrode.recording, options, "--threshold", 0.3).summary
    second = succeed(capsys, "sort", tetrode.recording, options, "--threshold", 0.9, "--overwrite").summary
    assert first["spikes"] > second["spikes"] == load(output / "sorting").count_total_num_spikes()
    assert [item.name for item in tmp_path.iterdir()] == ["out"]

    link = tmp_path / "link"
    link.symlink_to(output)
    succeed(capsys, "sort", tetrode.recording, {**options, "-o": link}, "--threshold", 0.3, "--overwrite")
    assert load(output / "sorting").count_total_num_spikes() == first["spikes"]
    assert link.is_symlink()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["link", "out"]


def test_what_lies_beside_the_output_is_left_alone(capsys, tetrode, trained, tmp_path):
    for name in ("out.new", "out.previous", "out.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    options = {"--model": trained, "-o": tmp_path / "out"}
    succeed(capsys, "sort", tetrode.recording, options)
    succeed(capsys, "sort", tetrode.recording, options, "--overwrite")
    names = ["out", "out.new", "out.partial", "out.previous"]
    assert sorted(item.name for item in tmp_path.iterdir()) == names
    assert all((tmp_path / name / "mine.txt").read_text() == "mine" for name in names[1:])


def test_overwriting_replaces_models_tables_and_simulations(capsys, tetrode, trained, tmp_path):
    model, table = tmp_path / "m.safetensors", tmp_path / "t.csv"
    shutil.copy(trained, model)
    options = {"--labels": tetrode.truth, "-o": model, **QUICK, "--seed": 9}
    told = succeed(capsys, "train", tetrode.recording, options, "--overwrite")
    assert spikewise.load_model(model).hash() == told.summary["model_hash"]
    assert told.summary["model_hash"] != spikewise.load_model(trained).hash()
    table.write_text("old")
    succeed(capsys, "evaluate", tetrode.truth, tetrode.truth, {"--csv": table}, "--overwrite")
    assert "accuracy" in table.read_text()
    made = Simulated(tmp_path / "made", **{"duration-s": 1})
    again = {"--output": made.folder, "--probe": "tetrode", "--num-units": 2, "--duration-s": 2}
    succeed(capsys, "simulate", again, "--overwrite")
    assert load(made.recording).get_total_duration() == 2
    assert sorted(item.name for item in tmp_path.iterdir()) == ["m.safetensors", "made", "t.csv"]


def test_info_of_a_recording_and_of_the_installation(capsys, tetrode):
    told = succeed(capsys, "info", tetrode.recording)
    facts = {
        "command": "info",
        "path": str(tetrode.recording),
        "sampling_frequency": 30000.0,
        "num_channels": 4,
        "num_segments": 1,
        "num_samples": [240000],
        "dtype": "int16",
        "duration_s": 8.0,
        "groups": {"0": "4 channels"},
    }
    assert told.summary == facts
    assert "num_samples: [240000]" in told.out

    told = succeed(capsys, "info")
    assert told.summary["spikewise"] == spikewise.__version__
    assert told.summary["packages"]["spikeinterface"] == importlib.metadata.version("spikeinterface")
    assert told.summary["bootstrap sorters"]["tridesclous2"] == "installed"
    assert "tetrode-N" in told.out
    assert "nwb: Neurodata Without Borders" in told.out
    assert ".mat: simulation of Wave_Clus" in told.out


def test_warnings_are_shown_once_each_time(capsys, tetrode, tmp_path):
    rows = [(sample, unit) for sample, unit, _ in spike_rows(load(tetrode.truth))]
    labels = write_csv(tmp_path / "twice.csv", [*rows, rows[0]])
    for name in ("a", "b"):
        options = {"--labels": labels, "-o": tmp_path / f"{name}.safetensors", **QUICK}
        outcome = run(capsys, "train", tetrode.recording, options)
        assert outcome.code == 0
        assert outcome.err.count("1 labels repeat unit and sample of another") == 1


def test_a_process_of_its_own_prints_results_on_one_stream_and_progress_on_the_other(
    tetrode, trained, tmp_path
):
    options = {"--model": trained, "-o": tmp_path / "out"}
    outcome = finish(start("sort", tetrode.recording, options, "--json"))
    assert outcome.code == 0, outcome.err
    assert outcome.summary["command"] == "sort"
    assert outcome.out.splitlines()[-2] == f"result in {tmp_path / 'out'}, with report.html"
    lines = [line.split(":")[0] for line in outcome.err.splitlines() if " s" in line]
    assert lines[0] == "starting"
    assert {"sorting", "report"} <= set(lines)
    assert all(re.search(r": [\d.]+ s( \(|$)", line) for line in outcome.err.splitlines())
    assert "sorting:" not in outcome.out
    assert "Warning" not in outcome.err


def test_help_lists_every_command_and_each_setting():
    outcome = finish(start("--help"))
    assert outcome.code == 0
    commands = ("sort", "train", "evaluate", "simulate", "info")
    assert all(f"│ {name} " in outcome.out for name in commands)
    outcome = finish(start("sort", "--help-advanced"))
    assert "--label-interval" in outcome.out
    assert "--unusable-channels" in outcome.out
