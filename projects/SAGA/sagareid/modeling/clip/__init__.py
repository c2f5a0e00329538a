"""CLIP's towers, weights and text side."""
