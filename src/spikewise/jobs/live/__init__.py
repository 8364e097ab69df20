"""Sorting live: sources of samples, sinks of spikes, and the loop between them."""
