"""Numbers that several rooms share; numbers of one module are at the top of that module."""

REFRACTORY_MS = 1.5
"""Two spikes of one neuron are rarely closer; the threshold of SpikeInterface's ISI violations."""
COINCIDENCE_MS = 0.4
"""Spikes of two trains at most so far apart count as one spike; SpikeInterface's default ``delta_time``."""
MIN_ARRAY_CHANNELS = 16
"""From so many channels on, a spike reaches only a part of a group; chosen by hand.

The median over the channels then leaves spikes alone, and the waveforms of different neurons differ enough
to recognise a neuron that jumped along the probe.
"""
