"""From traces to spikes."""
