"""Files that are written whole or not at all, and are on the disk when they are said to be."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from spikewise.core.errors import OutputError


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a name beside `path`; what was written there becomes `path` if all went well.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # it may be a link to anywhere
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or error}",
            "a folder that can be written and has space",
            "make room or choose another place, then run the command again",
        ) from error


def sync_folder(folder: Path) -> None:
    """Wait until the disk knows the names of a folder's files; not all systems can be asked to."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_tree(folder: Path) -> None:
    """Wait until the disk has all files below a folder."""
    for place, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(place, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(place))


def check_output_file(path: Path | str, overwrite: bool, ending: str | None = None) -> Path:
    """Raise unless a file may be written at `path`.

    With `ending`, only a file whose name ends so is overwritten: a model does not replace a recording.

    Raises
    ------
    OutputError
        If a file is there and `overwrite` is not set or its ending is another, if a folder is there, or the
        place cannot be written.
    """
    path = Path(path)
    with writing(path):
        if path.is_dir():
            example = f"such as model{ending}" if ending else "such as report.html"
            raise OutputError(f"{path} is a folder", f"the name of a file, {example}", "add a file name")
        if path.exists():
            _check_may_replace(path, overwrite)
            if ending and path.suffix.lower() != ending:
                raise OutputError(
                    f"{path} is not a file that Spikewise writes here",
                    f"only a file that ends in {ending} is overwritten",
                    "choose another name",
                )
        _check_writable(path)
    return path


def _check_may_replace(path: Path, overwrite: bool) -> None:
    if not overwrite:
        raise OutputError(
            f"{path} exists already",
            "a new name, since results are never overwritten unasked",
            "choose another name or add --overwrite",
        )


def _check_writable(path: Path) -> None:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(
            f"{parent} cannot be written", "a folder that can be written", "choose another place"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's errors in writing to `path` into an :class:`OutputError`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"{path} cannot be written: {error.strerror or f'only a part of it was ({error})'}",
            "a folder that can be written and has space",
            "make room or choose another place, then run the command again",
        ) from error


def save_json(facts: dict[str, Any], path: Path) -> None:
    """Write a dictionary of JSON types, whole or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        partial.unlink(missing_ok=True)  # it may be a link to anywhere
        with open(partial, "w", encoding="utf-8") as file:
            file.write(json.dumps(facts, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
