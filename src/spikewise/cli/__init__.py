"""The command ``spikewise``: it parses, calls and prints; it holds no logic."""
