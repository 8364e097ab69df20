"""Recordings with known spikes: a generator, MEArec templates, real units, drift."""
