"""Evaluation: what can be ranked by, metrics of several features in one pass, re-ranking and fusion."""
