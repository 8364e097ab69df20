"""Spike trains that are given: label files, label sets and their intervals, curation."""
