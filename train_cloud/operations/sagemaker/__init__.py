"""Runs as training jobs of SageMaker: launching them, and what a job does from its first line to its exit code."""
