"""Ranked lists: one match, the lists as a table, and as a file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..files import write_atomically, write_json

__all__ = ["NOBODY", "Match", "nobody_below", "table", "write_matches"]

NOBODY = "nobody"  # the answer where no image reaches the threshold


@dataclass(frozen=True)
class Match:
    """One place of a ranked list; of rank 0, with the best similarity that there was, the answer NOBODY."""

    query: str
    rank: int
    similarity: float
    path: str

    @property
    def nobody(self) -> bool:
        return self.rank == 0


def nobody_below(matches: Sequence[Sequence[Match]], threshold: float) -> list[list[Match]]:
    """Ranked lists without the matches below a similarity; a list that has none left holds the answer NOBODY alone."""
    answers = []
    for ranked in matches:
        kept = [match for match in ranked if match.similarity >= threshold]
        answers.append(kept or [Match(m.query, 0, m.similarity, NOBODY) for m in ranked[:1]])
    return answers


def table(matches: Sequence[Sequence[Match]]) -> str:
    """Ranked lists as text."""
    cells = [
        [m.query if m.rank <= 1 else "", "" if m.nobody else m.rank, m.similarity, m.path]
        for ranked in matches
        for m in ranked
    ]
    return tabulate(cells, ["query", "rank", "similarity", "path"], floatfmt=".4f")


def write_matches(matches: Sequence[Sequence[Match]], path: str | Path) -> None:
    """Write ranked lists as .json (a list of {"query", "matches"}) or .csv (query, rank, similarity, path).

    The answer NOBODY is {"query", "nobody": true, "best_similarity", "matches": []}, or a line of rank 0.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix == ".json":
        write_json(path, [_as_json(ranked) for ranked in matches if ranked])
    elif path.suffix == ".csv":

        def write(temporary: str) -> None:
            with open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                writer = csv.writer(file)
                writer.writerow(["query", "rank", "similarity", "path"])
                writer.writerows([m.query, m.rank, f"{m.similarity:.6f}", m.path] for ranked in matches for m in ranked)

        write_atomically(path, write)
    else:
        raise ValueError(f"{path}: write matches to a .json or a .csv file")


def _as_json(ranked: Sequence[Match]) -> dict[str, Any]:
    first = ranked[0]
    if first.nobody:
        return {"query": first.query, "nobody": True, "best_similarity": first.similarity, "matches": []}
    return {"query": first.query, "matches": [asdict(m) for m in ranked]}
