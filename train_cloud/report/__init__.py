"""The read side: what a run's objects say about it. Loads no torch and writes nothing."""
