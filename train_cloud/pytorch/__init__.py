"""Plain PyTorch: a training loop of one's own, made resumable."""
