"""Any recording: formats, probes, channels, damage and its repair, filtering, readers of traces."""
