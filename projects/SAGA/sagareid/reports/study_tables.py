"""The results of an occlusion study as tables.

`results` are records of study.json: one per model, condition, level and feature, in percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from ..evaluation.tables import legend, without_gaps
from ..studies.occlusion_study import METRICS
from ..studies.options import CLEAN

__all__ = [
    "COLUMNS",
    "SHARES",
    "TITLES",
    "WORDS",
    "cells_of",
    "conditions_of",
    "features_of",
    "full_table",
    "legend_of",
    "models_giving",
    "records_of",
    "share_cells",
    "summary",
]


TITLES = {
    "mask": "Masked: identity signal absent",
    "distractor": "Another person in front: identity signal confused",
}
WORDS = {"mask": "masked", "distractor": "behind another person"}
COLUMNS = ("hidden", "model", "feature", *METRICS, "difference in mAP", "spread", "weight on occluder / its area")
SHARES = ("condition", "level", "of the visible person: mean", "std", "least", "most", "of the picture")


def records_of(model: str, feature: str, condition: str, results: Sequence[dict]) -> list[dict]:
    """The records of a model and a feature by level; the one with nothing hidden comes first."""
    same = [r for r in results if r["model"] == model and r["feature"] == feature]
    return sorted((r for r in same if r["condition"] in (CLEAN, condition)), key=lambda r: r["level"])


def models_giving(results: Sequence[dict], feature: str) -> list[str]:
    """The models that give the feature, in the order of the study."""
    return list(dict.fromkeys(r["model"] for r in results if r["feature"] == feature))


def features_of(results: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(r["feature"] for r in results))


def conditions_of(results: Sequence[dict]) -> list[str]:
    """The conditions under which something is hidden; `CLEAN` alone where nothing ever is."""
    return [c for c in dict.fromkeys(r["condition"] for r in results) if c != CLEAN] or [CLEAN]


def summary(results: Sequence[dict], tablefmt: str = "pipe") -> str:
    """One small table for each condition, metric and feature: models by levels, in percent."""
    blocks = []
    features = features_of(results)
    for feature in features:
        for condition in conditions_of(results):
            for metric in METRICS:
                rows, head = [], []
                for model in models_giving(results, feature):
                    records = records_of(model, feature, condition, results)
                    head = [f"{metric}, {WORDS.get(condition, condition)}", *(f"{r['level']:.0%}" for r in records)]
                    rows.append([model, *(f"{r[metric]['mean']:.1f}" for r in records)])
                title = [f"feature: {feature}\n"] if len(features) > 1 else []
                blocks.append("\n".join([*title, tabulate(rows, head, tablefmt=tablefmt, disable_numparse=True)]))
    return "\n\n".join(blocks)


def _interval(estimate: Mapping[str, float] | None, sign: str = "") -> str:
    if estimate is None:
        return ""
    return f"{estimate['mean']:{sign}.1f} [{estimate['low']:{sign}.1f}, {estimate['high']:{sign}.1f}]"


def cells_of(record: Mapping[str, Any]) -> list[str]:
    """A record as the cells under `COLUMNS`."""
    attention = record.get("attention", {}).get("occluder")
    over_seeds = record["mAP"]["spread"]
    return [
        f"{record['level']:.0%}",
        record["model"],
        record["row"],
        *(_interval(record[m]) for m in METRICS),
        _interval(record["mAP"].get("difference"), "+"),
        "" if over_seeds is None else f"{over_seeds:.1f}",
        "" if attention is None else f"{attention['weight']:.1f} / {attention['area']:.1f}",
    ]


def share_cells(record: Mapping[str, Any]) -> list[str]:
    """What was covered under one condition at one level, as the cells under `SHARES`."""
    shares = [f"{record['share'][k]:.1f}" for k in ("mean", "std", "min", "max")]
    return [
        WORDS[record["condition"]],
        f"{100 * record['level']:.0f}",
        *shares,
        f"{record['area']['occluder']:.1f}",
    ]


def legend_of(results: Sequence[Mapping[str, Any]]) -> str:
    """What the features and metrics of a study are, in a line."""
    return legend([*(r["feature"] for r in results), *(r["row"] for r in results), *METRICS])


def full_table(results: Sequence[dict], shares: Sequence[dict], head: str) -> str:
    """Markdown: `head`, the small tables, every metric with its interval, and the shares that were really covered."""
    parts = [head, legend_of(results), summary(results)]
    for condition in conditions_of(results):
        rows = [cells_of(r) for r in results if r["condition"] in (CLEAN, condition)]
        headers, rows = without_gaps(COLUMNS, rows)
        table = tabulate(rows, headers, "pipe", disable_numparse=True)
        parts.append(f"## {TITLES.get(condition, condition)}\n\n{table}")
    if shares:
        table = tabulate([share_cells(s) for s in shares], SHARES, "pipe", disable_numparse=True)
        parts.append(f"## What was covered (%)\n\n{table}")
    return "\n\n".join(parts) + "\n"
