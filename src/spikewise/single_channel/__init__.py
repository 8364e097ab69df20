"""Sorting one electrode: waveforms, the 1D-CNN of Li et al. 2020, and all that feeds it."""
