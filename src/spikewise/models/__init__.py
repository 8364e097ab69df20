"""Networks, pretrained filters and model files; how they are learnt is in :mod:`spikewise.learning`."""
