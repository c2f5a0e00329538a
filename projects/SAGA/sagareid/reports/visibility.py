"""What tools/fit_visibility.py found, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tabulate import tabulate

__all__ = ["text"]

NAMES = {"mask": "a region masked", "distractor": "somebody in front", "both": "both"}


def text(about: Mapping[str, Any]) -> str:
    """A table: rank correlation with the true share, and AUC of "less than half is seen"."""
    rows = []
    for key, name in (("attention", "anchors' attention"), ("crop", "read-out")):
        if about[key] is None:
            rows.append([name, "this head has no anchors", None, None])
            continue
        for condition, found in about[key].items():
            rows.append([name, NAMES[condition], found["rank_correlation"], found["auc_less_than_half"]])
    for i, found in enumerate(about["sixths"], 1):
        rows.append([f"read-out, sixth {i}", NAMES["both"], found["rank_correlation"], found["auc_less_than_half"]])
    both, hidden = about["crop"]["both"], about["less_than_half_seen"]
    heading = f"{both['images']} people of {about['measured_on']}, {hidden:.0%} of them less than half seen:\n\n"
    return heading + tabulate(rows, ["", "hidden by", "rank correlation", "AUC, less than half"], floatfmt=".3f")
