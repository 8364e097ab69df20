"""The motion of the tissue along the probe, estimated from the events that discovery searches."""
