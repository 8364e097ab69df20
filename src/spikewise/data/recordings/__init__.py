"""Recordings of any format: probes, channels, damage and its repair, filtering, readers of traces."""
