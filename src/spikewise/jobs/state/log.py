"""The log of an output folder: what the library logs during a sort."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from spikewise.core.files import writing
from spikewise.output.store import LOG_FILE

logger = logging.getLogger(__name__)


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


@contextmanager
def log_to(folder: Path) -> Iterator[None]:
    """Write what the library logs to a file in the output folder."""
    with writing(folder):
        handler = _LogFile(folder / LOG_FILE, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    library = logging.getLogger("spikewise")
    level = library.level
    library.setLevel(min(level or logging.INFO, logging.INFO))
    warnings_of_others = logging.getLogger("py.warnings")
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
