"""The command ``spikewise``: parse, call, print; no logic."""
