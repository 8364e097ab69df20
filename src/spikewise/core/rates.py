"""Sampling frequencies of one recording that programs tell with different precision."""

from __future__ import annotations

RATE_TOLERANCE = 1e-3
"""Relative difference of two sampling frequencies that are the same: headers round (29999.84 becomes
30000 Hz), and systems calibrate their clocks; chosen by hand."""


def is_same_rate(first_hz: float, second_hz: float) -> bool:
    """Return whether two sampling frequencies can be of the same recording."""
    return abs(first_hz - second_hz) <= RATE_TOLERANCE * max(first_hz, second_hz)


def show_rate(rate_hz: float) -> str:
    """Return a sampling frequency as text, with all digits in which two could differ."""
    return f"{rate_hz:.10g} Hz"
