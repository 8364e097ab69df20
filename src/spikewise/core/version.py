"""The version of Spikewise."""

__version__ = "0.1.0"
