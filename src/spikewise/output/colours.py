"""The colours of units, the same in every figure."""

from __future__ import annotations

COLOURS = (
    "#3b7dd8", "#d9541e", "#2a8f4e", "#c2459b", "#a9741a",
    "#0f8f99", "#8a62d6", "#d1435b", "#6b8a1f", "#5580a3",
)  # fmt: skip
"""Units take these in turn. Each has a contrast ratio of at least 3 to both the light and the dark page."""


def colour_of(unit_index: int) -> str:
    """Return the colour of a unit in all figures."""
    return COLOURS[unit_index % len(COLOURS)]
