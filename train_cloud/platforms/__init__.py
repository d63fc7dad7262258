"""Where a run's process lives: what it says of itself, when it goes, how the run leaves it for good."""
