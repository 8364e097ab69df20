"""From prepared traces to spikes: groups of channels, detectors, compiled loops, peaks, damage."""
