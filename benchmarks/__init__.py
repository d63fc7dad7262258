"""What train-cloud costs, measured against what Stable-Baselines3 offers: ``make bench`` (docs/benchmarks.md)."""
