"""Looking at trained models."""
