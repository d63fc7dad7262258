"""Pipelines: which session is next, what it begins with, and whether it has met what it had to."""
