"""Experiments: many runs of one file, trained, watched and compared together."""
