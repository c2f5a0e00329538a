"""Published and foreign checkpoints, in and out."""
