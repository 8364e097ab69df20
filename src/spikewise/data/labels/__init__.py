"""Given spike trains: label files, label sets and their intervals, curation, matching of events."""
