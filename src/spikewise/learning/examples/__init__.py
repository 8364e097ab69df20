"""What networks learn from: labelled spikes, windows and patches made of them, mean waveforms."""
