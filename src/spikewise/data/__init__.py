"""What comes in: recordings, labels, simulations."""
