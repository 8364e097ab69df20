"""The output folder: what a sort leaves on disk, each file whole or not there.

``sorting/`` (a SpikeInterface folder), ``model.safetensors``, ``provenance.json``, ``spikewise.log``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from spikeinterface.core import BaseSorting

from spikewise.errors import OutputError

logger = logging.getLogger(__name__)

SORTING_FOLDER = "sorting"
MODEL_FILE = "model.safetensors"
PROVENANCE_FILE = "provenance.json"
LOG_FILE = "spikewise.log"
_OURS = {SORTING_FOLDER, MODEL_FILE, PROVENANCE_FILE, LOG_FILE}


def check_output(path: Path | str, overwrite: bool) -> Path:
    """Raise unless a result may be written at `path`.

    Raises
    ------
    OutputError
        If something is there and `overwrite` is not set, or what is there was not made by Spikewise, or the
        place cannot be written.
    """
    path = Path(path)
    if path.exists():
        if not overwrite:
            raise OutputError(
                f"{path} exists already",
                "a new name, since results are never overwritten unasked",
                "choose another name or add --overwrite",
            )
        if path.is_dir() and any(path.iterdir()) and not _OURS & {item.name for item in path.iterdir()}:
            raise OutputError(
                f"{path} holds other things than a result of Spikewise",
                "only a result of Spikewise, or an empty folder, is overwritten",
                "choose another name",
            )
    _check_writable(path)
    return path


def check_output_file(path: Path | str, overwrite: bool) -> Path:
    """Raise unless a file may be written at `path`.

    Raises
    ------
    OutputError
        If a file is there and `overwrite` is not set, if a folder is there, or the place cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise OutputError(
            f"{path} is a folder", "the name of a file, such as model.safetensors", "add a file name"
        )
    if path.exists() and not overwrite:
        raise OutputError(
            f"{path} exists already",
            "a new name, since results are never overwritten unasked",
            "choose another name or add --overwrite",
        )
    _check_writable(path)
    return path


def _check_writable(path: Path) -> None:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(
            f"{parent} cannot be written", "a folder that can be written", "choose another place"
        )


@contextmanager
def output_folder(path: Path, overwrite: bool) -> Iterator[Path]:
    """Make the output folder and lend it; what an error leaves behind is never less than what was there.

    A result that is overwritten is put aside until the new one is whole. After an error it comes back; what
    was computed until then (a model, for example) stays too, under the name ``PATH.partial`` in that case.
    """
    path = check_output(path, overwrite)
    previous = path.with_name(path.name + ".previous")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            path.rename(previous)
        path.mkdir()
    try:
        yield path
    except BaseException:
        _keep_what_is_worth_it(path, previous)
        raise
    if previous.exists():
        shutil.rmtree(previous)


def _keep_what_is_worth_it(path: Path, previous: Path) -> None:
    if not (path / MODEL_FILE).exists():
        shutil.rmtree(path)
    elif previous.exists():
        partial = path.with_name(path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        path.rename(partial)
        logger.warning("what was finished is kept in %s", partial)
    else:
        logger.warning("what was finished is kept in %s", path)
    if previous.exists():
        previous.rename(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's errors in writing to `path` into an :class:`OutputError`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}",
            "a folder that can be written and has space",
            "make room or choose another place, then run the command again",
        ) from error


def save_sorting(sorting: BaseSorting, folder: Path) -> None:
    """Write a sorting so that ``spikeinterface.load(folder / "sorting")`` reads it.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    partial = folder / (SORTING_FOLDER + ".partial")
    with writing(folder):
        try:
            sorting.save(folder=partial)
            partial.rename(folder / SORTING_FOLDER)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def save_json(facts: dict[str, Any], path: Path) -> None:
    """Write a dictionary of JSON types, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        partial.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        partial.replace(path)


def spikes_hash(sorting: BaseSorting) -> str:
    """Return the SHA-256 of all spikes: segment, sample and unit id of each, in order."""
    vector = sorting.to_spike_vector()
    digest = hashlib.sha256(json.dumps([str(unit_id) for unit_id in sorting.unit_ids]).encode())
    for name in ("segment_index", "sample_index", "unit_index"):
        digest.update(np.ascontiguousarray(vector[name], dtype=np.int64).tobytes())
    return digest.hexdigest()
