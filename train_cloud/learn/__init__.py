"""All that knows torch and Stable-Baselines3: building, exact capture, the callback, export. Knows no store."""
