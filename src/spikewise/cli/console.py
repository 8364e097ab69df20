"""What the commands show: results on standard output; progress, warnings and errors on standard error."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from spikewise.core.progress import ProgressCallback

out = Console(soft_wrap=True)
err = Console(stderr=True)


class WarningsToConsole(logging.Handler):
    """Shows the library's warnings; the rest goes to the log file of the output folder."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Show one warning."""
        err.print(f"note: {record.getMessage()}", style="yellow", markup=False, soft_wrap=True)


@contextmanager
def progress_bars() -> Iterator[ProgressCallback]:
    """Show a bar for each stage, with a note and the time left."""
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=err, transient=False) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: float, total: float, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note=note)
            bars.update(tasks[stage], completed=done, total=total, note=note)

        yield show


def say(*lines: str) -> None:
    """Print lines as they are."""
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def print_json(**summary: Any) -> None:
    """Print one JSON object on one line."""
    print(json.dumps(summary), flush=True)


def fail(message: str) -> None:
    """Print an error."""
    err.print(f"error: {message}", style="red", highlight=False, markup=False, soft_wrap=True)
