"""The output folder: what a sort leaves on disk, each file whole or not there.

``sorting/`` (a SpikeInterface folder), ``model.safetensors``, ``provenance.json``, ``spikewise.log``, and
where another sorter made the labels ``bootstrap/<group>/`` (a SpikeInterface folder of them); for a single
channel ``spikes.csv`` too, with the probability of each spike. ``report.html`` tells of it all. Until all of
it is there, ``unfinished/`` holds what is done so far; see :mod:`spikewise.jobs.unfinished`.
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

logger = logging.getLogger(__name__)

SORTING_FOLDER = "sorting"
MODEL_FILE = "model.safetensors"
PROVENANCE_FILE = "provenance.json"
LOG_FILE = "spikewise.log"
BOOTSTRAP_FOLDER = "bootstrap"
SPIKES_FILE = "spikes.csv"
REPORT_FILE = "report.html"
UNFINISHED_FOLDER = "unfinished"
_JOB_FILE = f"{UNFINISHED_FOLDER}/job.json"
_MARKS = {MODEL_FILE, PROVENANCE_FILE, LOG_FILE, UNFINISHED_FOLDER}
_HASHED_AT_ONCE = 2**20
_OURS = _MARKS | {SORTING_FOLDER, BOOTSTRAP_FOLDER, SPIKES_FILE, REPORT_FILE}


def check_output(path: Path | str, overwrite: bool, resume: bool = False) -> Path:
    """Raise unless a result may be written at `path`, or continued.

    Raises
    ------
    OutputError
        If something is there and `overwrite` is not set, or what is there is a file or holds anything that
        Spikewise did not make, or the place cannot be written.
    """
    path = Path(path)
    with writing(path):
        if path.exists() and not (resume and unfinished_place(path)):
            if not overwrite and (path / _JOB_FILE).exists():
                raise OutputError(
                    f"{path} holds a sort that was not finished",
                    "it can be continued, or begun anew",
                    "continue it with --resume, or begin anew with --overwrite",
                )
            _check_may_replace(path, overwrite)
            _check_is_result(path)
        _check_writable(path)
    return path


def unfinished_place(path: Path) -> Path | None:
    """Return where the sort into `path` that was begun last and not finished is; None if there is none."""
    beside = path.absolute().parent.glob(f"{glob.escape(path.name)}.new*") if path.name else ()
    begun = [place for place in (path, *beside) if (place / _JOB_FILE).exists()]
    if begun:
        return max(begun, key=lambda place: (place / _JOB_FILE).stat().st_mtime_ns)
    return path if _is_just_made(path) else None


def _is_just_made(path: Path) -> bool:
    """Tell whether a sort was ended before it could say what it is of."""
    return path.is_dir() and {item.name for item in path.iterdir()} <= {LOG_FILE, UNFINISHED_FOLDER}


def _check_is_result(path: Path) -> None:
    """Raise unless all that would be lost at `path` was made by Spikewise."""
    allowed = "only a folder that holds a result of Spikewise and nothing else, or nothing, is overwritten"
    if not path.is_dir():
        raise OutputError(f"{path} is a file", allowed, "choose another name")
    names = sorted(item.name for item in path.iterdir())
    others = [name for name in names if not _is_ours(name)]
    if others or (names and not _MARKS & set(names)):
        what = ", ".join((others or names)[:5]) + (" and more" if len(others or names) > 5 else "")
        raise OutputError(f"{path} holds {what}", allowed, "move it away, or choose another name")


def _is_ours(name: str) -> bool:
    return (
        name.removesuffix(".partial") in _OURS
        or name.startswith(".bootstrap-")
        or (name.startswith("bootstrap_") and name.endswith(".log"))
    )


@contextmanager
def output_folder(path: Path, overwrite: bool, resume: bool = False) -> Iterator[Path]:
    """Make a folder and lend it; when all went well it is the output folder.

    A result that is overwritten stays where it is until the new one, made beside it as ``PATH.new``, is
    whole. What an error leaves behind is what was finished, or nothing. With `resume` the folder of a sort
    that was not finished is lent, if there is one.
    """
    path = check_output(path, overwrite, resume)
    if path.is_symlink() or path.name in ("", ".."):
        path = path.resolve()
    begun = unfinished_place(path) if resume else None
    if begun is not None:
        place = path if begun.absolute() == path.absolute() else begun
    else:
        with writing(path):
            place = _free_name(path, "new") if path.exists() else path
            place.mkdir(parents=True)
    try:
        yield place
        if place != path:
            _replace(path, place)
    except BaseException:
        _tell_what_is_kept(place, may_remove=begun is None)
        raise


def _tell_what_is_kept(place: Path, may_remove: bool) -> None:
    """Say what an error left, and how to go on with it; a new folder without anything finished is removed."""
    unfinished, has_model = place / UNFINISHED_FOLDER, (place / MODEL_FILE).exists()
    is_begun = (place / _JOB_FILE).exists()
    if is_begun and (has_model or any(map(_is_worth_keeping, unfinished.iterdir()))):
        logger.warning("what was finished is kept in %s; go on with --resume", place)
    elif has_model:
        logger.warning("what was finished is kept in %s", place)
    elif may_remove:
        shutil.rmtree(place, ignore_errors=True)


def _is_worth_keeping(item: Path) -> bool:
    if item.is_dir():
        return (item / "manifest.jsonl").exists()
    return item.name.startswith(("labels-", "training-", "group-")) and not item.name.endswith(".partial")


def _replace(path: Path, place: Path) -> None:
    """Put the finished folder in the place of the earlier one, which goes last."""
    with writing(path):
        if not path.exists():  # an earlier process was ended between the two names
            place.rename(path)
            return
        previous = _free_name(path, "previous")
        path.rename(previous)
        try:
            place.rename(path)
        except OSError:
            previous.rename(path)
            raise
    shutil.rmtree(previous, ignore_errors=True)
    if previous.exists():
        logger.warning("the earlier result could not be removed; it is %s", previous)


def _free_name(path: Path, ending: str) -> Path:
    """Return a name beside `path` that nothing has yet."""
    names = itertools.chain(
        [f"{path.name}.{ending}"], (f"{path.name}.{ending}{k}" for k in itertools.count(2))
    )
    return next(place for place in map(path.with_name, names) if not os.path.lexists(place))


def save_sorting(sorting: BaseSorting, folder: Path) -> None:
    """Write a sorting so that ``spikeinterface.load(folder / "sorting")`` reads it.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    partial = folder / (SORTING_FOLDER + ".partial")
    with writing(folder):
        for left in (partial, folder / SORTING_FOLDER):  # of a process that was ended
            shutil.rmtree(left, ignore_errors=True)
        try:
            with warnings.catch_warnings():  # that it has no source beside itself, which is so
                warnings.filterwarnings("ignore", message="The extractor is not serializable")
                sorting.save(folder=partial)
            sync_tree(partial)
            partial.rename(folder / SORTING_FOLDER)
            sync_folder(folder)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def load_sorting_folder(folder: Path) -> BaseSorting:
    """Return the sorting of a result, its spikes mapped into memory."""
    is_empty = np.load(folder / SORTING_FOLDER / "spikes.npy", mmap_mode="r").size == 0
    return NumpyFolderSorting(folder / SORTING_FOLDER, mmap_mode=None if is_empty else "r")


def is_finished_result(path: Path) -> bool:
    """Tell whether a folder holds a whole result, and there is none to be continued."""
    return (path / PROVENANCE_FILE).exists() and unfinished_place(path) is None


def spikes_hash(sorting: BaseSorting) -> str:
    """Return the SHA-256 of all spikes: segment, sample and unit id of each, in order."""
    vector = sorting.to_spike_vector()
    digest = hashlib.sha256(json.dumps([str(unit_id) for unit_id in sorting.unit_ids]).encode())
    for name in ("segment_index", "sample_index", "unit_index"):
        for first in range(0, len(vector), _HASHED_AT_ONCE):
            digest.update(vector[name][first : first + _HASHED_AT_ONCE].astype(np.int64).tobytes())
    return digest.hexdigest()
