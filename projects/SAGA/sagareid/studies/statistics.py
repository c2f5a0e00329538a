"""Intervals of means over queries, by the bootstrap.

Q queries, R resamples. Every set of values sees the same resamples, so that differences are paired.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Bootstrap", "Interval"]


class Interval(NamedTuple):
    """A mean and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


class Bootstrap:
    """Percentile bootstrap (Efron and Tibshirani 1993, chapter 13) of means over queries."""

    def __init__(self, num_query: int, *, resamples: int = 1000, seed: int = 0):
        """Draw the resamples.

        Raises:
            ValueError: fewer than one query or resample.
        """
        if num_query < 1 or resamples < 1:
            raise ValueError(f"bootstrap of {num_query} queries, {resamples} resamples; expected at least one of each")
        counts = np.random.default_rng(seed).multinomial(num_query, np.full(num_query, 1 / num_query), size=resamples)
        self.weights = (counts / num_query).astype(np.float32)  # (R, Q): how often a resample holds each query

    def interval(self, values: np.ndarray) -> Interval:
        """The interval of the mean of (Q,) values; for a paired difference, pass the differences by query."""
        means = self.weights @ np.asarray(values, np.float32)
        low, high = np.percentile(means, [2.5, 97.5])
        return Interval(float(np.mean(values)), float(low), float(high))
