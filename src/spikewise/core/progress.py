"""Progress reports of the library to its caller; the library does not print."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[str, float, float, str], None]
"""Called with the name of the stage, the work done, the total work, and a note such as the loss."""


def silent(stage: str, done: float, total: float, note: str = "") -> None:
    """Ignore the progress."""
