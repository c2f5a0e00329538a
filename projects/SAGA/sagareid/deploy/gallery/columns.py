"""What is known of an image beside its feature: names, kinds and values of columns.

Times are microseconds in UTC; a time without an offset counts as UTC, wherever it is written, so that a camera system
that writes local times everywhere compares local times.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Sequence

import pyarrow as pa

__all__ = [
    "KINDS",
    "NAME",
    "OWN",
    "STANDARD",
    "arrow_type",
    "clock_of",
    "inferred",
    "kind_of",
    "parse_age",
    "parse_time",
    "to_kind",
]

# The kinds of a column, and how Arrow and Parquet hold them.
KINDS = {
    "text": pa.string(),
    "integer": pa.int64(),
    "number": pa.float64(),
    "time": pa.timestamp("us", "UTC"),
    "boolean": pa.bool_(),
}
# Columns whose kind is fixed: names of cameras and tracks are texts even where they are digits.
STANDARD = {"camera": "text", "time": "time", "track": "text", "visibility": "number"}
# Columns of a file of features that are no metadata.
OWN = ("id", "path", "feature", "state")

_TIME = re.compile(r"(\d{4}-\d{2}-\d{2}|\d{8})(?:[Tt _-](.+))?")
# How a value of a kind is written, where a column does not say of which it is.
_FORMS = {
    "integer": re.compile(r"-?\d{1,18}"),
    "number": re.compile(r"-?\d{1,18}(\.\d+)?([eE][+-]?\d{1,3})?"),
    "boolean": re.compile(r"true|false", re.IGNORECASE),
    "time": re.compile(r"\d{4}-\d{2}-\d{2}([Tt _]\d{2}[:-]\d{2}([:-]\d{2}(\.\d+)?)?(Z|[+-]\d{2}:\d{2})?)?"),
}
# What a filter can name.
NAME = re.compile(r"(?!(?:and|or|not|in|between)$)[^\W\d]\w*", re.IGNORECASE)
_AGE = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def arrow_type(kind: str) -> pa.DataType:
    """The Arrow type of a kind."""
    return KINDS[kind]


def kind_of(name: str, type: pa.DataType) -> str:
    """The kind of a column of some Arrow type.

    Raises:
        ValueError: of a type that is neither text, number, time nor boolean.
    """
    if name in STANDARD:
        return STANDARD[name]
    if pa.types.is_dictionary(type):
        type = type.value_type
    tests = {
        "text": lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_null(t),
        "integer": pa.types.is_integer,
        "number": lambda t: pa.types.is_floating(t) or pa.types.is_decimal(t),
        "time": lambda t: pa.types.is_timestamp(t) or pa.types.is_date(t),
        "boolean": pa.types.is_boolean,
    }
    for kind, fits in tests.items():
        if fits(type):
            return kind
    raise ValueError(f"column {name!r} is of type {type}; expected texts, numbers, times, or true and false")


def parse_time(text: str) -> dt.datetime:
    """A moment from a text: ISO 8601 (2026-11-28T08:00:30.5+01:00, 20261128T080030), also with a space, `_` or `-` for
    the T and `-` between the parts of the time, as file names have it; or seconds since 1970.

    Raises:
        ValueError: it is neither.
    """
    text = text.strip()
    try:
        if re.fullmatch(r"\d{9,10}(\.\d+)?", text):
            return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(seconds=float(text))
        match = _TIME.fullmatch(text)
        if match is None:
            raise ValueError
        day, clock = match.groups()
        if clock is None:
            found = dt.datetime.fromisoformat(day)
        else:
            clock = re.sub(r"^(\d{2})-(\d{2})-(\d{2})", r"\1:\2:\3", clock)
            clock = re.sub(r"^(\d):", r"0\1:", clock)
            found = dt.datetime.fromisoformat(f"{day}T{clock}")
    except (ValueError, OverflowError):
        raise ValueError(
            f"{text!r} is no time; expected ISO 8601, such as 2026-11-28T08:00:30, or seconds since 1970"
        ) from None
    return found.replace(tzinfo=dt.UTC) if found.tzinfo is None else found.astimezone(dt.UTC)


def clock_of(text: str) -> int:
    """Microseconds since midnight of a time of day, such as 8:00 or 08:00:30.5.

    Raises:
        ValueError: there is no such time.
    """
    try:
        clock = dt.time.fromisoformat(re.sub(r"^(\d):", r"0\1:", text))
    except ValueError:
        raise ValueError(f"{text!r} is no time of day; expected 0:00 to 23:59:59") from None
    return ((clock.hour * 60 + clock.minute) * 60 + clock.second) * 1_000_000 + clock.microsecond


def parse_age(text: str) -> dt.timedelta:
    """A duration such as 30d, 12h, 90m, 2w or 45s.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is no age; expected a number and s, m, h, d or w, such as 30d")
    try:
        return dt.timedelta(seconds=float(match[1]) * _AGE[match[2]])
    except OverflowError:
        raise ValueError(f"{text!r} is longer ago than time is counted") from None


def to_kind(name: str, column: pa.Array | pa.ChunkedArray, kind: str, source: str) -> pa.Array | pa.ChunkedArray:
    """A column as its kind; texts become times by `parse_time`.

    Raises:
        ValueError: a value that is none of the kind; the message names `source` and the value.
    """
    if isinstance(column.type, pa.DictionaryType):
        column = column.cast(column.type.value_type)
    wanted = arrow_type(kind)
    if column.type == wanted:
        return column
    try:
        if kind == "time" and pa.types.is_string(column.type):
            values = [None if text in (None, "") else parse_time(text) for text in column.to_pylist()]
            return pa.array(values, wanted)
        if kind == "time" and (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            values = [None if x is None or math.isnan(x) else parse_time(f"{x:.6f}") for x in column.to_pylist()]
            return pa.array(values, wanted)
        if kind == "time" and pa.types.is_timestamp(column.type) and column.type.tz is None:
            column = column.cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
        return column.cast(wanted, safe=kind != "time")
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{source}: column {name!r} is to hold {kind} values: {error}") from None


def inferred(texts: Sequence[str | None]) -> str:
    """The kind of a column of texts: that which every value is written as; text otherwise."""
    there = [text for text in texts if text is not None]
    for kind, form in _FORMS.items():
        if there and all(form.fullmatch(text) for text in there):
            return kind
    return "text"
