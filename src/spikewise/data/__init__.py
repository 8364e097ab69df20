"""Input: recordings, labels, simulations."""
