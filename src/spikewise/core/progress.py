"""How the library tells its caller how far it is, without printing."""

from __future__ import annotations

from collections.abc import Callable

ProgressCallback = Callable[[str, float, float, str], None]
"""Called with the stage's name, what is done, what there is in all, and a note such as the loss."""


def silent(stage: str, done: float, total: float, note: str = "") -> None:
    """Take no notice."""
