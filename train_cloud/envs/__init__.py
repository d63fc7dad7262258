"""Environments: how the state of one is taken in mid-episode and put into another process."""

TRIALS = "TRAIN_CLOUD_TRIALS"
"""Set by an experiment for its runs: a folder with what trials of their environments found."""
