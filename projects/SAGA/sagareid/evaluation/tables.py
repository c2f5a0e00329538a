"""Tables of results: what their rows and columns mean, and no empty cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..registry import EVALUATION_FEATURE_REGISTRY, parts

__all__ = ["METRICS", "NOTHING", "legend", "without_gaps"]

NOTHING = "–"  # in a cell that has no value

# What stands in a column of features and is none.
CHOICES = {
    "result": "by the feature of TEST.FEATURE (auto: fusion where there is one, else concat, else the only one)",
    "auto": "each model's result, the feature of its TEST.FEATURE",
}
METRICS = {
    "Rank-1": "queries whose most similar image is right",
    "mAP": "mean of the queries' average precision",
    "mINP": "how early a query's last right image comes",
    "metric": "mean of Rank-1 and mAP, which chooses states",
}


def legend(names: Iterable[str]) -> str:
    """In a line: what features and metrics of these names are; names without a meaning are left out."""
    features = {name: feature.meaning for name, feature in parts(EVALUATION_FEATURE_REGISTRY).items()}
    meanings = {name: meaning for name, meaning in (CHOICES | features | METRICS).items() if meaning}
    return "; ".join(f"{name}: {meanings[name]}" for name in dict.fromkeys(names) if name in meanings)


def without_gaps(headers: Sequence[Any], rows: Sequence[Sequence[Any]]) -> tuple[list[Any], list[list[Any]]]:
    """Leave out columns that are empty in every row; `NOTHING` stands in the other empty cells (None or "")."""
    kept = [i for i in range(len(headers)) if not rows or any(row[i] not in (None, "") for row in rows)]
    filled = [[NOTHING if row[i] in (None, "") else row[i] for i in kept] for row in rows]
    return [headers[i] for i in kept], filled
