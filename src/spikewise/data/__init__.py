"""What comes in: recordings, labels, simulations, training sets."""
