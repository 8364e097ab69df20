"""The log of an output folder: what the library logs during a sort."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spikewise.core.files import writing
from spikewise.output.store import LOG_FILE

logger = logging.getLogger(__name__)

WARNINGS_OF_OTHERS = "py.warnings"
"""The logger to which Python's warnings go."""


class _LogFile(logging.FileHandler):
    """A log file; if it cannot be written, the sort continues without it."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Stop writing; if the disk is full, writing the results raises its own error."""
        self.setLevel(logging.CRITICAL + 1)

    def close(self) -> None:
        """Close the file; lines that could not be written are lost."""
        try:
            super().close()
        except OSError as error:
            logger.warning("the log %s is not complete: %s", self.baseFilename, error.strerror)


class _Once(logging.Filter):
    """Lets a warning of another library pass once, however often it comes."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is new, or not a warning of another library."""
        if record.name != WARNINGS_OF_OTHERS:
            return True
        message = record.getMessage()
        is_new = message not in self._told
        self._told.add(message)
        return is_new


@contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Write what the library logs to a file in the output folder."""
    with writing(folder):
        handler = _LogFile(folder / LOG_FILE, encoding="utf-8")
    handler.addFilter(_Once())
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    library = logging.getLogger("spikewise")
    level = library.level
    library.setLevel(min(level or logging.INFO, logging.INFO))
    warnings_of_others = logging.getLogger(WARNINGS_OF_OTHERS)
    library.addHandler(handler)
    warnings_of_others.addHandler(handler)
    try:
        yield
    except Exception:
        logger.info("the sort ended with an error", exc_info=True)
        raise
    finally:
        library.removeHandler(handler)
        warnings_of_others.removeHandler(handler)
        library.setLevel(level)
        handler.close()
