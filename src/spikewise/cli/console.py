"""What the commands show: results on standard output; progress, warnings and errors on standard error."""

from __future__ import annotations

import json
import logging
from typing import Any

from rich.console import Console

from spikewise.core.progress_bars import err

out = Console(soft_wrap=True)


class WarningsToConsole(logging.Handler):
    """Shows the warnings of the library; other messages go to the log file of the output folder."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Show one warning."""
        err.print(f"note: {record.getMessage()}", style="yellow", markup=False, soft_wrap=True)


def say(*lines: str) -> None:
    """Print lines to standard output, without markup or colours."""
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def times(factor: float) -> str:
    """Return a factor with two digits, or more if it is larger than 100."""
    return f"{factor:.0f}" if factor >= 9.95 else f"{factor:.2g}"


def print_json(**summary: Any) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(summary), flush=True)


def fail(message: str) -> None:
    """Print an error to standard error."""
    err.print(f"error: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
