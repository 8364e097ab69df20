"""Files that are written whole or not at all."""

from __future__ import annotations

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
