"""Files that are written whole or not at all, and are on the disk when they are said to be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spikewise.errors import OutputError


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
