"""The cell of an occlusion study, and the file that keeps it.

Q queries (V of them with a match), n images, N patches in a (h, w) grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..files import damaged, read_npz, write_atomically

__all__ = ["Cell"]


@dataclass
class Cell:
    """The result of one model under one condition at one level.

    Attributes:
        queries: (V,) which queries have a match.
        rows: feature asked for -> the evaluator's name of the feature that was ranked by.
        values: (feature, metric) -> (V,) values in 0..1.
        nearest: feature -> (V, 10 or fewer) gallery indices by rank.
        share: (n,) covered share of the visible person in the occluded images; empty where none are occluded.
        area: "occluder" and, with masks, "person" (what of the person still shows) -> (n,) share of the picture.
        on: the same names -> (Q,) share of the head's patch weights there; empty for a head without weights or where
            the queries are not occluded.
        weights: (Q, h, w) patch weights; None for a head without.
    """

    queries: np.ndarray
    rows: dict[str, str]
    values: dict[tuple[str, str], np.ndarray]
    nearest: dict[str, np.ndarray]
    share: np.ndarray
    area: dict[str, np.ndarray]
    on: dict[str, np.ndarray]
    weights: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Write the cell, whole or not at all."""
        arrays: dict[str, Any] = {"queries": self.queries, "share": self.share}
        arrays |= {f"row/{f}": np.array(row) for f, row in self.rows.items()}
        arrays |= {f"value/{f}/{m}": v.astype(np.float32) for (f, m), v in self.values.items()}
        arrays |= {f"nearest/{f}": v.astype(np.int32) for f, v in self.nearest.items()}
        arrays |= {f"area/{k}": v for k, v in self.area.items()} | {f"on/{k}": v for k, v in self.on.items()}
        if self.weights is not None:
            arrays["weights"] = self.weights.astype(np.float16)

        def write(temporary: str) -> None:
            with open(temporary, "wb") as file:  # given a path, numpy would add a suffix of its own
                np.savez_compressed(file, **arrays)

        write_atomically(path, write)

    @classmethod
    def load(cls, path: Path) -> Cell:
        """The cell that `save` wrote.

        Raises:
            DamagedFile: it is not whole.
        """
        remedy = "Delete this one file: the same command with --resume computes it again"
        arrays = read_npz(path, remedy=remedy)
        if missing := sorted({"queries", "share"} - arrays.keys()):
            raise damaged(path, f"it has no array {missing[0]!r}", remedy)
        by: dict[str, dict[str, np.ndarray]] = {kind: {} for kind in ("row", "value", "nearest", "area", "on")}
        for name, value in arrays.items():
            kind, _, rest = name.partition("/")
            if kind in by and rest:
                by[kind][rest] = value
        return cls(
            queries=arrays["queries"],
            rows={f: str(row) for f, row in by["row"].items()},
            values={(k.rpartition("/")[0], k.rpartition("/")[2]): v for k, v in by["value"].items()},
            nearest=by["nearest"],
            share=arrays["share"],
            area=by["area"],
            on=by["on"],
            weights=arrays.get("weights"),
        )
