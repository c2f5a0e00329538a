"""Evaluation: figures of several features in one pass, re-ranking and fusion, FastReID's ranking compiled."""

from .evaluator import SAGAEvaluator

__all__ = ["SAGAEvaluator"]
