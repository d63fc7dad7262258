"""SageMaker on this machine: its API over HTTP, the life cycle of its jobs, and their containers."""
