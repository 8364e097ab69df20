"""The colours of units, the same on every picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

COLOURS = (
    "#3b7dd8", "#d9541e", "#2a8f4e", "#c2459b", "#a9741a",
    "#0f8f99", "#8a62d6", "#d1435b", "#6b8a1f", "#5580a3",
)  # fmt: skip
"""Units take them in turn; each has a contrast of at least 3 to white and to the dark page."""


def colour_of(unit_index: int) -> str:
    """Return the colour of a unit on all pictures."""
    return COLOURS[unit_index % len(COLOURS)]
