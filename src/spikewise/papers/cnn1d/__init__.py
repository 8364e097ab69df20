"""The experiments of the 1D-CNN (Li et al. 2020): sets, rivals, runs, tables, page."""
