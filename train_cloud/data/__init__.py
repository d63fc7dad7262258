"""Frames, or any objects, from S3 or a folder into a training: the same batches after any interruption."""
