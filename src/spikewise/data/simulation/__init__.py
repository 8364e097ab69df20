"""Recordings with known spikes: from a generator, MEArec templates or real units, with drift."""
