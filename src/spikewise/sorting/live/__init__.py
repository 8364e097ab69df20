"""Sorting a running stream: the network block by block, and the spikes that are certain."""
