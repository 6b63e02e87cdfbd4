"""Training with the FAFM objective: the loop, its checkpoints, its log."""
