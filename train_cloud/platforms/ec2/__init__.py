"""AWS's side of a worker: detect (metadata), decide (notices), act (group). Knows nothing of runs."""
