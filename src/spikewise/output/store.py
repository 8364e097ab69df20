"""The output folder of a sort. Each file in it is either complete or absent.

- ``sorting/``: the spikes, a SpikeInterface folder
- ``model.safetensors``, ``provenance.json``, ``spikewise.log``
- ``bootstrap/<group>/``: the labels, a SpikeInterface folder, if another sorter made them
- ``motion/<group>/``: the motion that was removed from the traces, in SpikeInterface's format
- ``spikes.csv``: the probability of each spike, for a single channel
- ``units.csv``: how far each unit can be trusted; see :mod:`spikewise.output.unit_table`
- ``suggestions.csv``, ``suggestions.json``: changes that would probably make the result better
- ``probabilities.npy``: the probability that each spike is right
- ``report.html``: the report
- ``unfinished/``: the parts that are done so far, until the sort is complete; see
  :mod:`spikewise.jobs.state.unfinished`
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from spikeinterface.core import BaseSorting, NumpyFolderSorting

from spikewise.core.errors import OutputError
from spikewise.core.files import _check_may_replace, _check_writable, sync_folder, sync_tree, writing
from spikewise.output.unit_table import (
    PROBABILITIES_FILE,
    SUGGESTED_CURATION_FILE,
    SUGGESTIONS_FILE,
    UNITS_FILE,
)

logger = logging.getLogger(__name__)

SORTING_FOLDER = "sorting"
MODEL_FILE = "model.safetensors"
PROVENANCE_FILE = "provenance.json"
LOG_FILE = "spikewise.log"
BOOTSTRAP_FOLDER = "bootstrap"
MOTION_FOLDER = "motion"
SPIKES_FILE = "spikes.csv"
REPORT_FILE = "report.html"
UNFINISHED_FOLDER = "unfinished"
_JOB_FILE = f"{UNFINISHED_FOLDER}/job.json"
_MARKS = {MODEL_FILE, PROVENANCE_FILE, LOG_FILE, UNFINISHED_FOLDER}
"""A folder that holds one of these was written by Spikewise."""
_TABLES = {SPIKES_FILE, UNITS_FILE, PROBABILITIES_FILE, SUGGESTIONS_FILE, SUGGESTED_CURATION_FILE}
_FOLDERS = {SORTING_FOLDER, BOOTSTRAP_FOLDER, MOTION_FOLDER}
_OWN_NAMES = _MARKS | _TABLES | _FOLDERS | {REPORT_FILE}
"""Everything that Spikewise writes into an output folder."""
_HASHED_AT_ONCE = 2**20
"""Spikes that are hashed at once; it bounds the memory."""


def check_output(path: Path | str, overwrite: bool, resume: bool = False) -> Path:
    """Raise unless a sort may write or continue a result at `path`.

    Raises
    ------
    OutputError
        If `path` exists and `overwrite` is not set; if it is a file, or a folder with anything that Spikewise
        did not write; or if it cannot be written.
    """
    path = Path(path)
    with writing(path):
        if path.exists() and not (resume and unfinished_folder(path)):
            if not overwrite and (path / _JOB_FILE).exists():
                raise OutputError(
                    f"the output {path} holds a sort that was not finished",
                    "it can be continued, or started again",
                    "continue it with --resume, or start again with --overwrite",
                )
            _check_may_replace(path, overwrite)
            _check_is_result(path)
        _check_writable(path)
    return path


def unfinished_folder(path: Path) -> Path | None:
    """Return the folder of the latest unfinished sort into `path`; None if there is none."""
    beside = path.absolute().parent.glob(f"{glob.escape(path.name)}.new*") if path.name else ()
    unfinished = [folder for folder in (path, *beside) if (folder / _JOB_FILE).exists()]
    if unfinished:
        return max(unfinished, key=lambda folder: (folder / _JOB_FILE).stat().st_mtime_ns)
    return path if _is_just_created(path) else None


def _is_just_created(path: Path) -> bool:
    """Return whether a sort created the folder, but ended before it wrote its job file."""
    return path.is_dir() and {item.name for item in path.iterdir()} <= {LOG_FILE, UNFINISHED_FOLDER}


def _check_is_result(path: Path) -> None:
    """Raise unless Spikewise wrote everything that overwriting `path` would delete."""
    allowed = "Spikewise overwrites only empty folders, and folders that hold nothing but its own result"
    if not path.is_dir():
        raise OutputError(f"the output {path} is a file", allowed, "choose another name")
    names = sorted(item.name for item in path.iterdir())
    others = [name for name in names if not _is_own(name)]
    if others or (names and not _MARKS & set(names)):
        what = ", ".join((others or names)[:5]) + (" and more" if len(others or names) > 5 else "")
        raise OutputError(f"the output {path} holds {what}", allowed, "move it away, or choose another name")


def _is_own(name: str) -> bool:
    """Return whether Spikewise writes a file or folder of this name."""
    return (
        name.removesuffix(".partial") in _OWN_NAMES
        or name.startswith(".bootstrap-")
        or (name.startswith("bootstrap_") and name.endswith(".log"))
    )


@contextmanager
def output_folder(path: Path, overwrite: bool, resume: bool = False) -> Iterator[Path]:
    """Create the folder to write a result into, and make it the output folder when the block succeeds.

    A result that is overwritten stays in place until the new one is complete; the new one is written beside
    it, as ``PATH.new``. After an error, finished parts are kept; without any, the folder is removed.

    Parameters
    ----------
    path : Path
        The output folder.
    overwrite : bool
        Whether a result at `path` may be replaced.
    resume : bool
        Whether to continue in the folder of an unfinished sort, if there is one.

    Yields
    ------
    Path
        The folder to write into.

    Raises
    ------
    OutputError
        As :func:`check_output`.
    """
    path = check_output(path, overwrite, resume)
    if path.is_symlink() or path.name in ("", ".."):
        path = path.resolve()
    unfinished = unfinished_folder(path) if resume else None
    if unfinished is not None:
        folder = path if unfinished.absolute() == path.absolute() else unfinished
    else:
        with writing(path):
            folder = _free_name(path, "new") if path.exists() else path
            folder.mkdir(parents=True)
    try:
        yield folder
        if folder != path:
            _replace(path, folder)
    except BaseException:
        _keep_finished_parts(folder, may_remove=unfinished is None)
        raise


def _keep_finished_parts(folder: Path, may_remove: bool) -> None:
    """Log what an error left and how to continue; remove a new folder in which nothing is finished."""
    unfinished, has_model = folder / UNFINISHED_FOLDER, (folder / MODEL_FILE).exists()
    is_started = (folder / _JOB_FILE).exists()
    if is_started and (has_model or any(map(_is_worth_keeping, unfinished.iterdir()))):
        logger.warning("the finished parts are kept in %s; continue with --resume", folder)
    elif has_model:
        logger.warning("the finished parts are kept in %s", folder)
    elif may_remove:
        shutil.rmtree(folder, ignore_errors=True)


def _is_worth_keeping(item: Path) -> bool:
    """Return whether an entry of the unfinished folder is a finished part of the work."""
    if item.is_dir():
        return (item / "manifest.jsonl").exists()
    return item.name.startswith(("labels-", "training-", "group-")) and not item.name.endswith(".partial")


def _replace(path: Path, folder: Path) -> None:
    """Rename the finished folder to `path`; the earlier result is deleted last."""
    with writing(path):
        if not path.exists():  # an earlier process ended between the two renames below
            folder.rename(path)
            return
        previous = _free_name(path, "previous")
        path.rename(previous)
        try:
            folder.rename(path)
        except OSError:
            previous.rename(path)
            raise
    shutil.rmtree(previous, ignore_errors=True)
    if previous.exists():
        logger.warning("the earlier result could not be removed; it is in %s", previous)


def _free_name(path: Path, ending: str) -> Path:
    """Return a path beside `path` that does not exist: PATH.new, PATH.new2 and so on."""
    names = itertools.chain(
        [f"{path.name}.{ending}"], (f"{path.name}.{ending}{k}" for k in itertools.count(2))
    )
    return next(free for free in map(path.with_name, names) if not os.path.lexists(free))


def save_sorting(sorting: BaseSorting, folder: Path) -> None:
    """Write a sorting so that ``spikeinterface.load(folder / "sorting")`` reads it.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    partial = folder / (SORTING_FOLDER + ".partial")
    with writing(folder):
        for leftover in (partial, folder / SORTING_FOLDER):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            with warnings.catch_warnings():  # the spikes are in memory, so they have no file as their source
                warnings.filterwarnings("ignore", message="The extractor is not serializable")
                sorting.save(folder=partial)
            sync_tree(partial)
            partial.rename(folder / SORTING_FOLDER)
            sync_folder(folder)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def load_sorting_folder(folder: Path) -> BaseSorting:
    """Return the sorting of a result; its spikes are memory-mapped."""
    is_empty = np.load(folder / SORTING_FOLDER / "spikes.npy", mmap_mode="r").size == 0
    return NumpyFolderSorting(folder / SORTING_FOLDER, mmap_mode=None if is_empty else "r")


def is_finished_result(path: Path) -> bool:
    """Return whether a folder holds a complete result, and no unfinished sort waits to be continued."""
    return (path / PROVENANCE_FILE).exists() and unfinished_folder(path) is None


def spikes_hash(sorting: BaseSorting) -> str:
    """Return the SHA-256 of the unit ids and of the segment, sample and unit of each spike, in order."""
    vector = sorting.to_spike_vector()
    digest = hashlib.sha256(json.dumps([str(unit_id) for unit_id in sorting.unit_ids]).encode())
    for name in ("segment_index", "sample_index", "unit_index"):
        for first in range(0, len(vector), _HASHED_AT_ONCE):
            digest.update(vector[name][first : first + _HASHED_AT_ONCE].astype(np.int64).tobytes())
    return digest.hexdigest()
