"""Ranked lists: one match, the lists as a table, and as a file."""

from __future__ import annotations

import csv
import datetime as dt
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ..files import write_atomically, write_json

__all__ = ["NOBODY", "Match", "nobody_below", "table", "write_matches"]

NOBODY = "nobody"  # the answer where no image reaches the threshold


@dataclass(frozen=True)
class Match:
    """One place of a ranked list; of rank 0, with the best similarity that there was (NaN: none), the answer NOBODY.

    Attributes:
        values: of the gallery's columns, by name.
    """

    query: str
    rank: int
    similarity: float
    path: str
    values: dict[str, Any] = field(default_factory=dict)

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
    columns = _columns(matches)
    cells = [
        [m.query if m.rank <= 1 else "", "" if m.nobody else m.rank, _number(m, 4), m.path, *_cells(m, columns)]
        for ranked in matches
        for m in ranked
    ]
    return tabulate(cells, ["query", "rank", "similarity", "path", *columns], disable_numparse=True)


def _columns(matches: Sequence[Sequence[Match]]) -> list[str]:
    return list(dict.fromkeys(name for ranked in matches for m in ranked for name in m.values))


def _cells(match: Match, columns: Sequence[str]) -> list[str]:
    found = [_plain(match.values.get(name)) for name in columns]
    return ["" if value is None else str(value) for value in found]


def _number(match: Match, digits: int) -> str:
    return "" if math.isnan(match.similarity) else f"{match.similarity:.{digits}f}"


def _plain(value: Any) -> Any:
    """A value of a column as JSON has it: times in ISO 8601."""
    return value.isoformat() if isinstance(value, dt.datetime) else value


def write_matches(matches: Sequence[Sequence[Match]], path: str | Path) -> None:
    """Write ranked lists as .json (a list of {"query", "matches"}) or .csv (query, rank, similarity, path, and the
    gallery's columns).

    The answer NOBODY is {"query", "nobody": true, "best_similarity", "matches": []}, or a line of rank 0.

    Raises:
        ValueError: another suffix.
    """
    path = Path(path)
    if path.suffix == ".json":
        write_json(path, [_as_json(ranked) for ranked in matches if ranked])
    elif path.suffix == ".csv":
        columns = _columns(matches)

        def write(temporary: str) -> None:
            with open(temporary, "w", newline="", encoding="utf-8", errors="backslashreplace") as file:
                writer = csv.writer(file)
                writer.writerow(["query", "rank", "similarity", "path", *columns])
                writer.writerows(
                    [m.query, m.rank, _number(m, 6), m.path, *_cells(m, columns)] for ranked in matches for m in ranked
                )

        write_atomically(path, write)
    else:
        raise ValueError(f"{path}: write matches to a .json or a .csv file")


def _as_json(ranked: Sequence[Match]) -> dict[str, Any]:
    first = ranked[0]
    if first.nobody:
        best = None if math.isnan(first.similarity) else first.similarity
        return {"query": first.query, "nobody": True, "best_similarity": best, "matches": []}
    return {"query": first.query, "matches": [_match_as_json(m) for m in ranked]}


def _match_as_json(match: Match) -> dict[str, Any]:
    found = {"query": match.query, "rank": match.rank, "similarity": match.similarity, "path": match.path}
    return found | ({"values": {k: _plain(v) for k, v in match.values.items()}} if match.values else {})
