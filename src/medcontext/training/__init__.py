"""Training: configuration, run folder, loop, validation and checkpoints."""
