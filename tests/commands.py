"""Running the command in tests, and the tiny recordings that it runs on."""

import hashlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from spikeinterface.core import BaseRecording, BaseSorting, load

from spikewise.cli import main as cli

RATE = 30000
"""Sampling frequency of all recordings here, Hz."""

QUICK = {
    "--design": "esort-paper",
    "--epochs": 2,
    "--spatial-features": 16,
    "--batch-size": 64,
    "--min-steps": 150,
}
"""Options of a training that takes a second and finds nearly all spikes of the tetrode."""


@dataclass(frozen=True)
class Outcome:
    """What a run of the command gave."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict:
        """The JSON object of the last line."""
        return json.loads(self.out.splitlines()[-1])


def words(*arguments) -> list[str]:
    """Arguments as text; dictionaries are options, later ones win, and None takes an option away."""
    plain = [str(argument) for argument in arguments if not isinstance(argument, dict)]
    options = {name: value for given in arguments if isinstance(given, dict) for name, value in given.items()}
    for name, value in options.items():
        if value is not None:
            plain += [name, *map(str, value if isinstance(value, tuple) else (value,))]
    return plain


def run(capsys, *arguments) -> Outcome:
    """Run the command in this process."""
    capsys.readouterr()
    try:
        code = cli.main(words(*arguments))
    finally:
        logging.captureWarnings(False)
    captured = capsys.readouterr()
    return Outcome(code, captured.out, captured.err)


def succeed(capsys, *arguments) -> Outcome:
    """Run the command, which must succeed, with ``--json``."""
    outcome = run(capsys, *arguments, "--json")
    assert outcome.code == 0, outcome.err
    return outcome


def start(*arguments, **options) -> subprocess.Popen:
    """Start the command in a process of its own."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(
        [sys.executable, "-m", "spikewise", *words(*arguments)],
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
        **(pipes | options),
    )


def finish(process: subprocess.Popen, timeout_s: float = 60) -> Outcome:
    """Wait until a process ends."""
    out, err = process.communicate(timeout=timeout_s)
    return Outcome(process.returncode, out, err)


def contents(folder: Path) -> dict[str, str]:
    """Everything below a folder: what each file holds, and what is a folder or link."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = "folder"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def assert_told(outcome: Outcome, *parts: str) -> None:
    """Assert exit code 2 and one error message, no traceback, that tells all the parts in their order."""
    assert outcome.code == 2, outcome.err
    assert "Traceback" not in outcome.err + outcome.out
    messages = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
    assert len(messages) == 1, outcome.err
    place = 0
    for part in parts:
        found = messages[0].find(part, place)
        assert found >= 0, f"{part!r} is not told, or not in its place: {messages[0]}"
        place = found + len(part)


class Simulated:
    """A tetrode of a few seconds and its spikes, made by the command; ``folder`` holds both."""

    def __init__(self, folder: Path, **options):
        settings = {"probe": "tetrode", "num-units": 3, "duration-s": 8, "seed": 1} | options
        arguments = {f"--{name}": value for name, value in settings.items()}
        assert cli.main(words("simulate", {"--output": folder, **arguments})) == 0
        self.folder = folder
        self.recording = folder / "recording"
        self.truth = folder / "truth"

    @property
    def traces(self) -> np.ndarray:
        """Traces (num_samples, num_channels) in steps of the converter."""
        return load(self.recording).get_traces()

    @property
    def spikes(self) -> np.ndarray:
        """True spikes with their sample, unit and segment index."""
        return load(self.truth).to_spike_vector()


def array_options(probe: str | None = "tetrode") -> dict:
    """Options with which a .npy is read."""
    return {"--sampling-frequency": RATE, "--probe": probe}


def write_array(file: Path, traces: np.ndarray) -> Path:
    np.save(file, traces)
    return file


def write_csv(file: Path, rows, header: str = "sample_index,unit_id") -> Path:
    file.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n", encoding="utf-8")
    return file


def spike_rows(sorting: BaseSorting) -> list[tuple]:
    """Rows of a CSV of labels: sample, unit id, segment."""
    spikes = sorting.to_spike_vector()
    ids = sorting.unit_ids[spikes["unit_index"]]
    return list(zip(spikes["sample_index"], ids, spikes["segment_index"], strict=True))


def save(extractor: BaseRecording | BaseSorting, folder: Path) -> Path:
    """Save a recording or sorting as SpikeInterface does."""
    options = {"n_jobs": 1, "progress_bar": False} if isinstance(extractor, BaseRecording) else {}
    extractor.save(folder=folder, **options)
    return folder
