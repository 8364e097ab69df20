"""Single channels in a running stream: detect, align and classify their spikes."""
