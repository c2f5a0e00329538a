"""Features of an earlier extraction, taken over where the model and the image are the same. F feature width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..files import parse_json, read_npz
from .feature_set import about_parquet, whole_parquet
from .options import REMEDY

__all__ = ["Earlier"]

# What decides a feature beside the image.
MODEL = ("checkpoint_sha256", "feature", "width", "dtype")


class Earlier:
    """The features of one file, or of the shards of a folder, by the name of their image.

    Attributes:
        states: size and time of each image when it was read, by name.
        has_visibility: whether all say how much is seen of a person.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]):
        """
        Args:
            about: the model that features are wanted of.

        Raises:
            ValueError: they are of another model, or do not say which images they are of.
        """
        self._files = [path] if path.is_file() else sorted(path.glob("part-*.parquet"))
        self._place: dict[str, tuple[int, int]] = {}
        self.states: dict[str, str] = {}
        self._held: tuple[int, np.ndarray] | None = None  # the features of the file that was read last
        parquet = [file for file in self._files if file.suffix != ".npz"]
        self.has_visibility = len(parquet) == len(self._files) and all(map(_has_visibility, parquet))
        for number, file in enumerate(self._files):
            found, names, states = _read(file)
            if differing := [key for key in MODEL if found.get(key) != about[key]]:
                raise ValueError(
                    f"{path} holds features of another {differing[0]}, so none can be kept; --overwrite discards them, "
                    "or name another output"
                )
            self.states |= zip(names, states)
            self._place |= {name: (number, row) for row, name in enumerate(names)}

    def features(self, names: Sequence[str]) -> np.ndarray:
        """(m, F) of names that are in `states`."""
        return np.stack([self._of_file(number)[row] for number, row in map(self._place.__getitem__, names)])

    def visibility(self, names: Sequence[str]) -> np.ndarray:
        """(m,) shares of names that are in `states`; where `has_visibility`."""
        places = [self._place[name] for name in names]
        columns = {}
        for number in {number for number, _ in places}:
            with whole_parquet(self._files[number]):
                columns[number] = pq.read_table(self._files[number], columns=["visibility"])["visibility"].to_numpy()
        return np.array([columns[number][row] for number, row in places])

    def _of_file(self, number: int) -> np.ndarray:
        if self._held is None or self._held[0] != number:
            self._held = number, _features(self._files[number])
        return self._held[1]


def _has_visibility(file: Path) -> bool:
    with whole_parquet(file):
        return "visibility" in pq.read_schema(file).names


def _read(file: Path) -> tuple[dict[str, Any], list[str], list[str]]:
    """What a file says of its model, the names of its images, and their states."""
    if file.suffix == ".npz":
        arrays = read_npz(file, remedy=REMEDY, only=("paths", "states", "about"))
        if arrays.keys() == {"paths", "states", "about"}:
            about = parse_json(str(arrays["about"]), file, remedy=REMEDY)
            return about, arrays["paths"].tolist(), arrays["states"].tolist()
    else:
        with whole_parquet(file):
            schema = pq.read_schema(file)
            if "state" in schema.names:
                table = pq.read_table(file, columns=["path", "state"])
                return about_parquet(schema, file), table["path"].to_pylist(), table["state"].to_pylist()
    raise ValueError(
        f"{file} does not say of which state of its images it is: it was written by an earlier version, or by other "
        "code. Extract once with --overwrite, then --update works"
    )


def _features(file: Path) -> np.ndarray:
    """(n, F)."""
    if file.suffix == ".npz":
        return read_npz(file, remedy=REMEDY, only=("features",))["features"]
    with whole_parquet(file):
        column = pq.read_table(file, columns=["feature"])["feature"]
        return column.combine_chunks().flatten().to_numpy().reshape(len(column), -1)
