"""What runs leave behind as numbers: the result of a stage, the results of a configuration, a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..files import read_json
from .hooks import by_set

__all__ = ["RESULT", "RESULTS", "SECONDS", "beside_earlier", "earlier", "read_result", "read_seconds", "table"]

RESULT = "result.json"  # of a stage
RESULTS = "results.json"  # of a configuration
SECONDS = "seconds.json"  # of a stage, from its first interruption on


def read_result(file: Path) -> dict:
    """The result of a stage.

    Raises:
        DamagedFile: it is not what was written.
    """
    remedy = "Delete this one file: the same command with --resume evaluates the finished stage and writes it again"
    fields = {"stage": str, "metrics": dict, "seconds": float, "steps": int}
    return read_json(file, remedy=remedy, required=fields)


def read_seconds(file: Path) -> float:
    """How long the training of a stage took so far. Errors as of `read_result`."""
    return read_json(file, remedy="Delete this one file: it only holds how long the training took so far", kind=float)


def beside_earlier(results: Sequence[dict], file: Path, names: Sequence[str]) -> list[dict]:
    """This command's results beside those of the configuration's other stages as they are in the file, in order.

    Args:
        names: of the configuration's stages.

    Raises:
        DamagedFile: the file is not what was written.
    """
    rows = {row["stage"]: row for row in earlier(file) if row["stage"] in names}
    rows |= {result["stage"]: result for result in results}
    return sorted(rows.values(), key=lambda row: names.index(row["stage"]) if row["stage"] in names else -1)


def earlier(file: Path) -> list[dict]:
    """The results that a configuration's stages have so far. Errors as of `read_result`."""
    remedy = (
        f"Delete this one file: every stage has its own {RESULT}, and the whole configuration with --resume collects "
        "them again"
    )
    return read_json(file, remedy=remedy, kind=list, required={"stage": str}) if file.is_file() else []


def table(results: Sequence[dict]) -> str:
    """One line a stage: Rank-1, mAP, mINP in percent, and minutes."""
    rows = []
    for r in results:
        for dataset, m in by_set(r["metrics"]).items():
            minutes = f"{r['seconds'] / 60:.1f}" if "seconds" in r else ""
            rows.append(
                [r["stage"] or "run", dataset, *(m.get(k, float("nan")) for k in ("Rank-1", "mAP", "mINP")), minutes]
            )
    headers = ["stage", "data set", "Rank-1", "mAP", "mINP", "minutes"]
    if not any(row[1] for row in rows):
        rows, headers = [[r[0], *r[2:]] for r in rows], [headers[0], *headers[2:]]
    return tabulate(rows, headers=headers, tablefmt="github", floatfmt=".1f")
