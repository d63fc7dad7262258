"""Environments: how the state of one is taken in mid-episode and put into another process."""
