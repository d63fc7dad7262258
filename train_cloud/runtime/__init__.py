"""The composition roots: where learning, checkpoints, run state and the machine are joined."""
