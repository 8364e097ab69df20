"""Write files completely or not at all, and wait until they are on the disk."""

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
    """Yield a temporary path beside `path`; the file written there becomes `path` if no error occurs.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # it may be a link to another file
        try:
            yield partial
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(
            f"the output {path} cannot be written: {error.strerror or error}",
            "a folder that can be written and has space",
            "make room or choose another place, then run the command again",
        ) from error


def sync_folder(folder: Path) -> None:
    """Wait until the names of a folder's files are on the disk, on systems that support this."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def sync_tree(folder: Path) -> None:
    """Wait until all files below a folder are on the disk."""
    for path, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(path, name), "rb") as file:
                os.fsync(file.fileno())
        sync_folder(Path(path))


def check_output_file(path: Path | str, overwrite: bool, ending: str | None = None) -> Path:
    """Raise unless a file may be written at `path`.

    With `ending`, only a file with this ending is overwritten, so that a model does not replace a recording.

    Raises
    ------
    OutputError
        If the file exists and `overwrite` is not set or its ending differs, if a folder exists there, or the
        path cannot be written.
    """
    path = Path(path)
    with writing(path):
        if path.is_dir():
            example = f"such as model{ending}" if ending else "such as report.html"
            raise OutputError(
                f"the output {path} is a folder", f"the name of a file, {example}", "add a file name"
            )
        if path.exists():
            _check_may_replace(path, overwrite)
            if ending and path.suffix.lower() != ending:
                raise OutputError(
                    f"the output {path} is not a file that Spikewise writes here",
                    f"only a file that ends in {ending} is overwritten",
                    "choose another name",
                )
        _check_writable(path)
    return path


def _check_may_replace(path: Path, overwrite: bool) -> None:
    if not overwrite:
        raise OutputError(
            f"the output {path} exists already",
            "a new name: results are not overwritten by default",
            "choose another name or add --overwrite",
        )


def _check_writable(path: Path) -> None:
    parent = path.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise OutputError(
            f"the folder {parent} cannot be written", "a folder that can be written", "choose another place"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's errors while writing to `path` into an :class:`OutputError`."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(
            f"the output {path} cannot be written: {error.strerror or f'only a part was written ({error})'}",
            "a folder that can be written and has space",
            "make room or choose another place, then run the command again",
        ) from error


def save_json(facts: dict[str, Any], path: Path) -> None:
    """Write a dictionary of JSON types, completely or not at all.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with writing(path):
        partial.unlink(missing_ok=True)  # it may be a link to another file
        with open(partial, "w", encoding="utf-8") as file:
            file.write(json.dumps(facts, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        sync_folder(path.parent)
