"""Sorts many recordings, one after the other, each as :func:`spikewise.sort` does, with its own folder.

A list holds for each recording the paths ``recording`` and ``output``, and if needed ``labels`` or ``model``.
It is a TOML file with a table ``[[recordings]]`` for each recording, or a CSV file with a column for each
name. Paths are relative to the list. If a recording fails, the others are still sorted. If the work is
interrupted, the same list continues it.
"""

from __future__ import annotations

import csv
import logging
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from spikewise.core.config import Config
from spikewise.core.errors import SettingError, SpikewiseError
from spikewise.core.progress import ProgressCallback, expect, silent
from spikewise.jobs.sort import sort
from spikewise.output.store import is_finished_result

logger = logging.getLogger(__name__)

MAX_LIST_BYTES = 2**24
"""Larger lists are refused. Chosen by hand."""
State = Literal["waiting", "sorting", "done", "done before", "failed"]


@dataclass(frozen=True)
class Entry:
    """One recording of a list: where it is, where its result goes, its labels or its model."""

    recording: Path
    output: Path
    labels: Path | None = None
    model: Path | None = None


@dataclass
class Job:
    """An entry and its state; `num_units`, `num_spikes` and `seconds` are set once it is done."""

    entry: Entry
    state: State = "waiting"
    num_units: int | None = None
    num_spikes: int | None = None
    seconds: float | None = None
    message: str = ""


def read_list(path: Path | str) -> list[Entry]:
    """Read a list of recordings.

    Raises
    ------
    SettingError
        If it cannot be read, is empty, lacks a name, has an unknown one, or two recordings share an output.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_LIST_BYTES:
            raise _bad(path, f"it is larger than {MAX_LIST_BYTES} bytes")
        text = path.read_text(encoding="utf-8-sig")
        rows = tomllib.loads(text).get("recordings") if _is_toml(path) else _rows(text)
    except (OSError, ValueError, csv.Error) as error:
        raise _bad(path, str(error)) from error
    if not isinstance(rows, list) or not rows:
        raise _bad(path, "it names no recording")
    entries = [_entry(path, number, row) for number, row in enumerate(rows, 1)]
    seen: dict[Path, int] = {}
    for number, entry in enumerate(entries, 1):
        earlier = seen.setdefault(entry.output.absolute(), number)
        if earlier != number:
            raise _bad(path, f"recordings {earlier} and {number} have the same output {entry.output}")
    return entries


def sort_many(
    entries: Sequence[Entry],
    config: Config | None = None,
    *,
    progress: ProgressCallback = silent,
    report: Callable[[Sequence[Job]], None] = lambda jobs: None,
) -> list[Job]:
    """Sort each recording of a list; finished ones are skipped, unfinished ones continue.

    Parameters
    ----------
    entries : sequence of Entry
    config : Config, optional
        The settings for all recordings.
    progress : callable
        Called with the progress of each recording.
    report : callable
        Called with all jobs whenever a state changes.

    Returns
    -------
    list of Job
    """
    jobs = [Job(entry) for entry in entries]
    report(jobs)
    for number, job in enumerate(jobs, 1):
        job.state = "sorting"
        report(jobs)
        _run(job, config or Config(), _Named(progress, f"{number}/{len(jobs)} "))
        report(jobs)
    return jobs


def _run(job: Job, config: Config, progress: ProgressCallback) -> None:
    entry = job.entry
    was_finished = is_finished_result(entry.output)
    try:
        result = sort(
            entry.recording,
            labels=entry.labels,
            model=entry.model,
            output=entry.output,
            resume=True,
            config=config,
            progress=progress,
        )
    except (SpikewiseError, MemoryError, OSError) as error:
        job.state, job.message = "failed", str(error) or type(error).__name__
        logger.warning("%s failed: %s", entry.recording, job.message)
        return
    found = result.provenance["result"]
    job.state = "done before" if was_finished else "done"
    job.num_units, job.num_spikes = found["num_units"], found["num_spikes"]
    job.seconds = result.provenance["seconds"]["total"]


class _Named:
    """The progress of one of many recordings, which the name of each stage begins with."""

    def __init__(self, progress: ProgressCallback, prefix: str):
        self._progress, self._prefix = progress, prefix

    def __call__(self, stage: str, done: float, total: float, note: str = "") -> None:
        self._progress(self._prefix + stage, done, total, note)

    def expect(self, seconds: Mapping[str, float]) -> None:
        """Pass on the expected seconds of stages."""
        expect(self._progress, {self._prefix + stage: value for stage, value in seconds.items()})


def _is_toml(path: Path) -> bool:
    return path.suffix.lower() == ".toml"


def _rows(text: str) -> list[dict[str, Any]]:
    """Return the rows of a CSV file as dictionaries, without cells that are empty."""
    reader = csv.DictReader(text.splitlines(), strict=True)
    return [{name: cell for name, cell in row.items() if cell} for row in reader]


def _entry(path: Path, number: int, row: Any) -> Entry:
    names = [field.name for field in fields(Entry)]
    if not isinstance(row, dict) or not all(isinstance(value, str) for value in row.values()):
        raise _bad(path, f"recording {number} is not made of names and paths")
    unknown = [name for name in row if name not in names]
    missing = [name for name in names[:2] if not row.get(name)]
    if unknown or missing:
        what = f"has the unknown {unknown[0]!r}" if unknown else f"has no {missing[0]}"
        raise _bad(path, f"recording {number} {what}")
    if "labels" in row and "model" in row:
        raise _bad(path, f"recording {number} has both labels and a model")
    return Entry(**{name: path.parent / value for name, value in row.items()})


def _bad(path: Path, reason: str) -> SettingError:
    return SettingError(
        f"the list {path} cannot be used: {reason}",
        "TOML with a table [[recordings]] for each, or CSV: recording, output, perhaps labels or model",
        "correct it",
    )
