"""Ranked lists: one match, the lists as a table, and as a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tabulate import tabulate

from ..files import write_atomically, write_json

__all__ = ["Match", "table", "write_matches"]


@dataclass(frozen=True)
class Match:
    """One place of a ranked list."""

    query: str
    rank: int
    similarity: float
    path: str


def table(matches: Sequence[Sequence[Match]]) -> str:
    """Ranked lists as text."""
    cells = [[m.query if m.rank == 1 else "", m.rank, m.similarity, m.path] for ranked in matches for m in ranked]
    return tabulate(cells, ["query", "rank", "similarity", "path"], floatfmt=".4f")


def write_matches(matches: Sequence[Sequence[Match]], path: str | Path) -> None:
    """Write ranked lists as .json (a list of {"query", "matches"}) or .csv (query, rank, similarity, path).

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix == ".json":
        lists = [{"query": ranked[0].query, "matches": [asdict(m) for m in ranked]} for ranked in matches if ranked]
        write_json(path, lists)
    elif path.suffix == ".csv":

        def write(temporary: str) -> None:
            with open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                writer = csv.writer(file)
                writer.writerow(["query", "rank", "similarity", "path"])
                writer.writerows([m.query, m.rank, f"{m.similarity:.6f}", m.path] for ranked in matches for m in ranked)

        write_atomically(path, write)
    else:
        raise ValueError(f"{path}: write matches to a .json or a .csv file")
