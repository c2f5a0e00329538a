"""What is known of images beside their pictures: from a table, or from their paths. n images.

The table is a CSV file with a column `path`, as the images are named below their folder. The pattern is a regular
expression that is searched in that path; its named groups are columns. `camera` and `track` are texts, `time` is a
moment (`gallery.columns.parse_time`), `visibility` a number; of the others the kind is that of all their values.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.csv

from ..errors import did_you_mean, first_few, first_line
from .gallery.columns import NAME, STANDARD, arrow_type, inferred, to_kind

__all__ = ["Metadata"]

logger = logging.getLogger(__name__)

RESERVED = ("path", "feature", "state")
EXAMPLE = r"such as 'c(?P<camera>\d+)/(?P<time>\d{8}T\d{6})_(?P<track>\d+)'"


class Metadata:
    """Columns of images.

    Attributes:
        columns: the kind of each by its name.
        key: another text whenever a value is another; "" without columns.
    """

    def __init__(self, names: Sequence[str], columns: dict[str, Sequence[str | None]], source: str = ""):
        """
        Args:
            names: of the images. columns: a text, or None, for each of them.

        Raises:
            ValueError: a column's name that a filter could not name, or a value of another kind than its column's.
        """
        self._place = {name: i for i, name in enumerate(names)}
        self._values: dict[str, pa.Array] = {}
        self.columns: dict[str, str] = {}
        for column, texts in columns.items():
            _check_name(column, source)
            kind = "text" if column == "id" else STANDARD.get(column) or inferred(texts)
            self.columns[column] = kind
            self._values[column] = _typed(column, texts, kind, source)
        self.key = ""
        if columns:
            values = json.dumps([self.columns, {name: list(texts) for name, texts in columns.items()}], sort_keys=True)
            self.key = hashlib.sha256(values.encode(errors="surrogateescape")).hexdigest()

    @classmethod
    def read(cls, names: Sequence[str], *, table: str | Path | None = None, pattern: str | None = None) -> Metadata:
        """Columns of images from a table, from their paths, or from both.

        Images that the table lacks, or whose path has no match, have no values; how many is logged.

        Raises:
            FileNotFoundError: no such table.
            ValueError: no table or pattern, one that is about none of the images, or a column of both.
        """
        columns: dict[str, Sequence[str | None]] = {}
        if table is not None:
            columns |= _from_table(Path(table), names)
        if pattern is not None:
            of_paths = _from_pattern(pattern, names)
            if both := sorted(of_paths.keys() & columns.keys()):
                raise ValueError(f"column {both[0]!r} is in {table} and a group of the pattern; take it out of one")
            columns |= of_paths
        sources = [str(table)] if table is not None else []
        return cls(names, columns, " and ".join([*sources, *(["the pattern"] if pattern is not None else [])]))

    def of(self, names: Sequence[str]) -> dict[str, pa.Array]:
        """The columns of some of the images, in their order."""
        places = pa.array([self._place[name] for name in names], pa.int64())
        return {column: values.take(places) for column, values in self._values.items()}


def _check_name(name: str, source: str) -> None:
    if name in RESERVED or not NAME.fullmatch(name):
        raise ValueError(
            f"{source}: no column can be called {name!r}; expected letters, digits and _, and none of "
            f"{', '.join(RESERVED)}, and, or, not, in, between"
        )


def _typed(column: str, texts: Sequence[str | None], kind: str, source: str) -> pa.Array:
    if kind == "boolean":
        return pa.array([None if text is None else text.lower() == "true" for text in texts], pa.bool_())
    values = pa.array(texts, pa.string())
    if kind == "text":
        return values
    return to_kind(column, values, kind, source).cast(arrow_type(kind))


def _from_table(path: Path, names: Sequence[str]) -> dict[str, Sequence[str | None]]:
    if not path.is_file():
        raise FileNotFoundError(f"no table at {path}; expected a CSV file with a column `path`")
    try:
        with open(path, "rb") as file:
            header = file.readline().decode("utf-8-sig").strip()
        titles = next(csv.reader([header]), [])
        options = pyarrow.csv.ConvertOptions(
            column_types=dict.fromkeys(titles, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        table = pyarrow.csv.read_csv(path, convert_options=options)
    except (UnicodeDecodeError, pa.ArrowException) as error:
        raise ValueError(
            f"{path} is no CSV file ({first_line(error)}); expected a header and a column `path`"
        ) from None
    if "path" not in table.column_names:
        hint = did_you_mean("path", table.column_names)
        raise ValueError(
            f"{path} has the columns {first_few(table.column_names, 9)}; expected `path` among them.{hint}"
        )
    if doubles := [name for name in table.column_names if table.column_names.count(name) > 1]:
        raise ValueError(f"{path} has {doubles[0]!r} twice; expected each column once")
    place: dict[str, int] = {}
    for row, name in enumerate(table["path"].to_pylist()):
        if name in place:
            raise ValueError(f"{path} has {name} in lines {place[name] + 2} and {row + 2}; expected each image once")
        place[name] = row
    places = [place.get(name) for name in names]
    _say_missing(names, places, f"{path} has no line", f"its first is {next(iter(place), 'none')}, an image")
    taken = table.drop_columns(["path"]).take(pa.array(places, pa.int64()))
    return {name: taken[name].to_pylist() for name in taken.column_names}


def _from_pattern(pattern: str, names: Sequence[str]) -> dict[str, Sequence[str | None]]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is no regular expression: {error}") from None
    if not compiled.groupindex:
        raise ValueError(f"the pattern {pattern!r} has no named group, which is a column; {EXAMPLE}")
    found = [compiled.search(name) for name in names]
    _say_missing(names, found, f"the pattern {pattern!r} is not found", "an image")
    return {group: [match and match[group] for match in found] for group in compiled.groupindex}


def _say_missing(names: Sequence[str], found: Sequence[object], what: str, example: str) -> None:
    missing = [name for name, one in zip(names, found) if one is None]
    if len(missing) == len(names):
        raise ValueError(f"{what} for any of the {len(names)} images; {example} is called {names[0]}")
    if missing:
        logger.warning(
            "%s for %d of %d images, such as %s: they have no values", what, len(missing), len(names), missing[0]
        )
