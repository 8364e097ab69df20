"""Sums over near channels: traces as if the probe had stood still, and whitened ones; files of motion."""
