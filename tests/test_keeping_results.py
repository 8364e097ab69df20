"""Results are never overwritten unasked, nor lost to an error, a full disk or Ctrl-C."""

import contextlib
import logging
import os
import pty
import resource
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import (
    QUICK,
    Outcome,
    array_options,
    assert_told,
    contents,
    finish,
    run,
    start,
    succeed,
    write_array,
)
from spikeinterface.core import load

import spikewise
from spikewise.jobs.state.log import WARNINGS_OF_OTHERS, log_to


@pytest.fixture(scope="module")
def sorted_once(tetrode) -> Path:
    """A result of `spikewise sort` with labels."""
    folder = tetrode.folder.parent / "sorted"
    settings = {name.strip("-").replace("-", "_"): value for name, value in QUICK.items()}
    spikewise.sort(tetrode.recording, labels=tetrode.truth, output=folder, **settings)
    return folder


@pytest.fixture
def refused(capsys, tmp_path):
    """Run a command that must fail, say the parts of its message in order, and change nothing."""

    def refuse(*arguments, tells):
        before = contents(tmp_path)
        assert_told(run(capsys, *arguments), *tells)
        assert contents(tmp_path) == before

    return refuse


# What exists


def test_nothing_is_overwritten_unasked(refused, tetrode, sorted_once, tmp_path):
    model = {"--model": sorted_once}
    for name, make in {
        "result": lambda path: shutil.copytree(sorted_once, path),
        "empty": Path.mkdir,
    }.items():
        make(tmp_path / name)
        tells = (f"{tmp_path / name} exists already", "not overwritten by default", "add --overwrite")
        refused("sort", tetrode.recording, {"-o": tmp_path / name, **model}, tells=tells)
        refused("simulate", {"-o": tmp_path / name}, tells=("exists already", "A new folder", "--overwrite"))
    file = tmp_path / "m.safetensors"
    file.write_text("mine")
    tells = (f"{file} exists already", "not overwritten by default", "add --overwrite")
    refused("train", tetrode.recording, {"--labels": tetrode.truth, "-o": file}, tells=tells)
    refused("sort", tetrode.recording, {"-o": file, **model}, tells=tells)
    refused("evaluate", tetrode.truth, tetrode.truth, {"--csv": file}, tells=tells)


def test_only_results_are_overwritten(refused, tetrode, sorted_once, tmp_path):
    def refuse(output, tells):
        options = {"--model": sorted_once, "-o": output}
        tells = (str(output), *tells, "overwrites only empty folders", "hoose another name")
        refused("sort", tetrode.recording, options, "--overwrite", tells=tells)

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("mine")
    refuse(tmp_path / "mine", ("holds thesis.tex",))
    (tmp_path / "mine" / "sorting").mkdir()
    refuse(tmp_path / "mine", ("holds thesis.tex",))
    (tmp_path / "mine" / "thesis.tex").unlink()
    refuse(tmp_path / "mine", ("holds sorting",))
    shutil.copytree(sorted_once, tmp_path / "more")
    (tmp_path / "more" / "figure.svg").write_text("mine")
    refuse(tmp_path / "more", ("holds figure.svg",))
    (tmp_path / "file").write_text("mine")
    refuse(tmp_path / "file", ("is a file",))


def test_files_that_are_no_models_or_tables_are_not_overwritten(refused, tetrode, tmp_path):
    shutil.copytree(tetrode.recording, tmp_path / "recording")
    traces = tmp_path / "recording" / "traces_cached_seg0.raw"
    options = {"--labels": tetrode.truth, "-o": traces, **QUICK}
    tells = (f"{traces} is not a file that", "ends in .safetensors", "Choose another name")
    refused("train", tmp_path / "recording", options, "--overwrite", tells=tells)
    tells = (f"{tmp_path} is a folder", "such as model.safetensors", "Add a file name")
    refused("train", tetrode.recording, {**options, "-o": tmp_path}, "--overwrite", tells=tells)
    tells = (f"{traces} is not a file that", "ends in .csv", "Choose another name")
    refused("evaluate", tetrode.truth, tetrode.truth, {"--csv": traces}, "--overwrite", tells=tells)
    tells = ("is not the folder of a simulation", "Only an earlier simulation", "Choose another name")
    refused("simulate", {"-o": tmp_path / "recording"}, "--overwrite", tells=tells)


def test_places_that_cannot_be_written(refused, tetrode, sorted_once, tmp_path):
    (tmp_path / "file").write_text("mine")
    below = tmp_path / "file" / "out"
    tells = (f"{tmp_path / 'file'} cannot be written", "A folder that can be written", "Choose another place")
    refused("sort", tetrode.recording, {"--model": sorted_once, "-o": below}, tells=tells)
    refused("train", tetrode.recording, {"--labels": tetrode.truth, "-o": below}, tells=tells)
    refused("evaluate", tetrode.truth, tetrode.truth, {"--csv": below}, tells=tells)
    refused("simulate", {"-o": below, "--duration-s": 1}, tells=("cannot be written", "A folder", "Choose"))


# Errors after the work has begun


def test_an_error_leaves_the_earlier_result(refused, tetrode, sorted_once, tmp_path):
    shutil.copytree(sorted_once, tmp_path / "out")
    traces = tetrode.traces.copy()
    traces[:, 2] = 0
    file = write_array(tmp_path / "traces.npy", traces)
    options = {"-o": tmp_path / "out", **array_options()}
    tells = ("1 of 4 channels are unusable: 2 (constant)", "must vary", "--exclude-channels")
    for source in ({"--labels": tetrode.truth}, {"--model": sorted_once}):
        refused("sort", file, {**options, **source}, "--overwrite", tells=tells)


def test_an_unreadable_input_leaves_the_earlier_result(refused, tetrode, sorted_once, tmp_path):
    shutil.copytree(sorted_once, tmp_path / "out")
    (tmp_path / "labels.csv").write_text("sample_index,unit_id\n")
    options = {"--labels": tmp_path / "labels.csv", "-o": tmp_path / "out"}
    tells = ("There are no labels", "At least two", "Label more")
    refused("sort", tetrode.recording, options, "--overwrite", tells=tells)


MANY = {**QUICK, "--epochs": 1, "--min-steps": 0, "--threshold": 0.01}
"""Options of a bad training that finds thousands of spikes, more bytes than its model has."""

# A full disk. A limit on the size of files acts as one that is full after so many bytes.


@contextlib.contextmanager
def file_limit(num_bytes: int) -> Iterator[None]:
    """Let writing a larger file fail, in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_no_space_for_the_model(capsys, tetrode, sorted_once, tmp_path):
    size = (sorted_once / "model.safetensors").stat().st_size
    shutil.copytree(sorted_once, tmp_path / "earlier")
    before = contents(tmp_path)
    options = {"--labels": tetrode.truth, **QUICK}
    runs = [
        ("train", tetrode.recording, {**options, "-o": tmp_path / "m.safetensors"}),
        ("sort", tetrode.recording, {**options, "-o": tmp_path / "out"}),
        ("sort", tetrode.recording, {**options, "-o": tmp_path / "earlier"}, "--overwrite"),
    ]
    for arguments in runs:
        with file_limit(size // 2):
            outcome = run(capsys, *arguments)
        assert_told(outcome, "The model cannot be written to", "File too large", "has space", "Make room")
        assert contents(tmp_path) == before


def test_no_space_in_a_process_of_its_own(tetrode, sorted_once, tmp_path):
    size = (sorted_once / "model.safetensors").stat().st_size // 2
    options = {"--labels": tetrode.truth, **QUICK, "-o": tmp_path / "out"}
    process = start(
        "sort",
        tetrode.recording,
        options,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert_told(finish(process), "The model cannot be written to", "File too large", "has space", "Make room")
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("is_there", [False, True])
def test_no_space_for_the_sorting(capsys, tetrode, sorted_once, tmp_path, is_there):
    """The model that was finished is kept, and the earlier result too."""
    output, kept = tmp_path / "out", tmp_path / ("out.new" if is_there else "out")
    if is_there:
        shutil.copytree(sorted_once, output)
    size = (sorted_once / "model.safetensors").stat().st_size
    arguments = ("sort", tetrode.recording, {"--labels": tetrode.truth, **MANY, "-o": output}, "--overwrite")
    with file_limit(size + 2000):
        outcome = run(capsys, *arguments)
    shards = kept / "unfinished" / "shards"
    assert_told(outcome, f"{shards} cannot be written: File too large", "has space", "Make room")
    assert f"the finished parts are kept in {kept}; continue with --resume" in outcome.err
    assert {item.name for item in kept.iterdir()} == {"model.safetensors", "spikewise.log", "unfinished"}
    if is_there:
        assert contents(output) == contents(sorted_once)
    told = succeed(capsys, "sort", tetrode.recording, {"--model": kept, "-o": tmp_path / "again"})
    assert told.summary["spikes"] > 0
    resumed = succeed(capsys, *arguments, "--resume").summary
    assert resumed["spikes_hash"] == told.summary["spikes_hash"]
    assert spikewise.load_model(output).hash() == spikewise.load_model(tmp_path / "again").hash()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["again", "out"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount")
def test_a_disk_that_is_full(capsys, small_disk, tmp_path, tetrode, sorted_once):
    def fill(left: int) -> None:
        (small_disk / "filling").unlink(missing_ok=True)
        (small_disk / "filling").write_bytes(bytes(4096 * (free_bytes(small_disk) // 4096 - left // 4096)))

    size = (sorted_once / "model.safetensors").stat().st_size
    many = {"--labels": tetrode.truth, **MANY}
    outputs = {"sort": small_disk / "out", "train": small_disk / "m.safetensors"}
    for left, command in ((0, "sort"), (size // 2, "sort"), (size // 2, "train")):
        fill(left)
        before = contents(small_disk)
        outcome = run(capsys, command, tetrode.recording, {**many, "-o": outputs[command]})
        assert_told(outcome, "cannot be written", "No space left on device", "has space", "Make room")
        assert contents(small_disk) == before
    fill(size + 20000)
    outcome = run(capsys, "sort", tetrode.recording, {**many, "-o": outputs["sort"]})
    assert_told(outcome, "cannot be written: No space left on device", "has space", "Make room")
    assert spikewise.load_model(outputs["sort"]).unit_ids == ["0", "1", "2"]
    assert not (outputs["sort"] / "sorting").exists()
    (small_disk / "filling").unlink()
    resumed = succeed(capsys, "sort", tetrode.recording, {**many, "-o": outputs["sort"]}, "--resume").summary
    told = succeed(capsys, "sort", tetrode.recording, {**many, "-o": tmp_path / "whole"}).summary
    assert resumed["spikes_hash"] == told["spikes_hash"]
    assert resumed["model_hash"] == told["model_hash"]
    shutil.rmtree(outputs["sort"])
    fill(0)
    tells = ("cannot be written", "No space left on device", "A folder on a disk with space", "Choose")
    before = contents(small_disk)
    assert_told(run(capsys, "simulate", {"-o": small_disk / "made", "--duration-s": 1}), *tells)
    assert contents(small_disk) == before


def free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


# Ctrl-C


def interrupt(sign: str, *arguments) -> Outcome:
    """Run the command on a terminal, and send Ctrl-C when its progress shows the sign."""
    terminal, end = pty.openpty()
    # Where the tests run in the background, their processes inherit that Ctrl-C is ignored.
    process = start(*arguments, stderr=end, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    os.close(end)
    shown, is_sent, deadline = "", False, time.monotonic() + 120
    while time.monotonic() < deadline and select.select([terminal], [], [], 60)[0]:
        try:
            piece = os.read(terminal, 4096)
        except OSError:  # so Linux tells that the other end is closed
            break
        shown += piece.decode(errors="replace")
        if not piece:
            break
        if sign in shown and not is_sent:
            process.send_signal(signal.SIGINT)
            is_sent = True
    os.close(terminal)
    out = process.communicate(timeout=10)[0]
    assert is_sent, shown
    assert "Traceback" not in shown + out
    return Outcome(process.returncode, out, shown)


ENDLESS = {**QUICK, "--epochs": 100000}


def test_an_interrupted_training_gives_its_model(capsys, tetrode, tmp_path):
    file = tmp_path / "m.safetensors"
    outcome = interrupt(
        "loss", "train", tetrode.recording, {"--labels": tetrode.truth, "-o": file, **ENDLESS}
    )
    assert outcome.code == 130, outcome.err
    assert f"Training was interrupted. The best model so far is {file}." in outcome.err
    model = spikewise.load_model(file)
    assert model.facts["interrupted"]
    told = succeed(capsys, "sort", tetrode.recording, {"--model": file, "-o": tmp_path / "out"})
    assert told.summary["units"] == 3
    assert load(tmp_path / "out" / "sorting").unit_ids.tolist() == load(tetrode.truth).unit_ids.tolist()


def test_an_interrupted_sort_keeps_its_model_and_the_earlier_result(capsys, tetrode, sorted_once, tmp_path):
    output, kept = tmp_path / "out", tmp_path / "out.new"
    shutil.copytree(sorted_once, output)
    options = {"--labels": tetrode.truth, "-o": output, **ENDLESS}
    outcome = interrupt("loss", "sort", tetrode.recording, options, "--overwrite")
    assert outcome.code == 130, outcome.err
    file = kept / "model.safetensors"
    assert f"Training was interrupted. The best model so far is {file}. Sort with --model" in outcome.err
    assert {item.name for item in kept.iterdir()} == {"model.safetensors", "spikewise.log", "unfinished"}
    assert contents(output) == contents(sorted_once)
    assert spikewise.load_model(file).facts["interrupted"]
    told = succeed(capsys, "sort", tetrode.recording, {"--model": file, "-o": tmp_path / "again"})
    assert told.summary["units"] == 3


def test_ctrl_c_while_spikes_are_found(tetrode, sorted_once, tmp_path):
    options = {"--model": sorted_once, "-o": tmp_path / "out", "--chunk-s": 0.001}
    outcome = interrupt("spikes", "sort", tetrode.recording, options)
    assert outcome.code == 130, outcome.err
    assert "Interrupted." in outcome.err
    assert contents(tmp_path) == {}


def test_a_warning_of_another_library_is_written_once(tmp_path):
    with log_to(tmp_path):
        for _ in range(30):
            logging.getLogger(WARNINGS_OF_OTHERS).warning("the same again")
            logging.getLogger("spikewise").info("a step")
        logging.getLogger(WARNINGS_OF_OTHERS).warning("another")
    lines = (tmp_path / "spikewise.log").read_text().splitlines()
    assert sum("the same again" in line for line in lines) == 1
    assert sum("a step" in line for line in lines) == 30
    assert sum("another" in line for line in lines) == 1
