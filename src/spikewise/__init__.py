"""Spike sorting with neural networks."""
