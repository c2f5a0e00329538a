"""Drawn people: their data set, their captions, and the small CLIP that learns from them."""
