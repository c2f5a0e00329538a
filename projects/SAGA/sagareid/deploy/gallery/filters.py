"""Which images of a gallery a search, a deletion or a count is about: one small language for every engine.

    camera in (3, 4) and time between 8:00 and 9:00
    time >= 2026-11-28T08:00 and not (track == 17 or visibility < 0.5)

The grammar::

    filter = all { "or" all }
    all    = one { "and" one }
    one    = "not" one | "(" filter ")" | column test
    test   = ( "==" | "!=" | "<" | "<=" | ">" | ">=" ) value
           | [ "not" ] "in" "(" value { "," value } ")"
           | [ "not" ] "between" value "and" value              both ends belong to it
    value  = number | 'text' | "text" | word | day | moment | clock

A day is 2026-11-28, a moment 2026-11-28T08:00 with seconds and an offset (Z, +01:00) if wanted, a clock 8:00 or
8:00:30, the time of any day; `between 22:00 and 6:00` goes over midnight. A column of texts takes a number as it is
written: camera == 3 is the camera named 3. An image without a value in a column passes no test of it, nor its opposite.

`parse` gives a tree of four kinds of node (`All`, `Any`, `Compare`, `In`) whose values fit their columns; `not` and
`between` are gone by then. An engine translates it, or evaluates it with `passing`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...errors import did_you_mean, first_few
from .columns import arrow_type, clock_of, parse_time

__all__ = ["DAY", "All", "Any", "Clock", "Compare", "In", "Node", "Value", "microseconds", "parse", "passing"]

DAY = 86_400_000_000  # microseconds
EXAMPLE = "camera in (3, 4) and time between 8:00 and 9:00"


class Clock(NamedTuple):
    """A time of day, in microseconds since midnight UTC."""

    microseconds: int


Value = str | int | float | bool | dt.datetime | Clock


@dataclass(frozen=True)
class Compare:
    """column op value. op: one of ==, !=, <, <=, >, >=."""

    column: str
    op: str
    value: Value


@dataclass(frozen=True)
class In:
    """column is one of values; negated: it has a value that is none of them."""

    column: str
    values: tuple[Value, ...]
    negated: bool = False


@dataclass(frozen=True)
class All:
    """Every part passes."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Any:
    """One part passes or more."""

    parts: tuple[Node, ...]


Node = Compare | In | All | Any

_OPPOSITE = {"==": "!=", "!=": "==", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_WORDS = ("and", "or", "not", "in", "between")
_MOMENT = r"\d{4}-\d{2}-\d{2}(?:[Tt ]\d{1,2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?(?:[Zz]|[+-]\d{2}:\d{2})?)?"
_TOKENS = re.compile(
    rf"""\s*(?:
      (?P<text>'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")
    | (?P<moment>{_MOMENT})(?![\w:.-])
    | (?P<clock>\d{{1,2}}:\d{{2}}(?::\d{{2}}(?:\.\d{{1,6}})?)?)(?![\w:.-])
    | (?P<number>-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)(?![\w:.])
    | (?P<op>==|!=|<=|>=|<|>)
    | (?P<mark>[(),])
    | (?P<word>[^\W\d][\w.-]*)
    )""",
    re.VERBOSE,
)


class _Token(NamedTuple):
    kind: str
    text: str
    place: int


def parse(text: str, columns: Mapping[str, str]) -> Node:
    """A filter as a tree.

    Args:
        columns: the kind of every column by its name (`columns.KINDS`).

    Raises:
        ValueError: the text is no filter, names a column that is not there, or compares it with a value of another
            kind; the message says where.
    """
    parser = _Parser(text, columns)
    node = parser.any(negated=False)
    if parser.next.kind != "end":
        parser.fail("`and`, `or` or the end")
    return node


class _Parser:
    """Recursive descent. `negated` goes down to the tests, so that the tree has no node for `not`."""

    def __init__(self, text: str, columns: Mapping[str, str]):
        self.text, self.columns = text, columns
        self.tokens: list[_Token] = []
        self.at = self.depth = 0
        place = 0
        while place < len(text.rstrip()):
            match = _TOKENS.match(text, place)
            if match is None:
                start = place + len(text[place:]) - len(text[place:].lstrip())
                raise self._error(
                    start, f"{text[start : start + 12]!r} is nothing that a filter has; texts are in quotes"
                )
            kind = str(match.lastgroup)
            self.tokens.append(_Token(kind, match[kind], match.start(kind)))
            place = match.end()
        self.tokens.append(_Token("end", "the end", len(text)))

    @property
    def next(self) -> _Token:
        return self.tokens[self.at]

    def _error(self, place: int, what: str) -> ValueError:
        return ValueError(
            f"filter {self.text!r}, character {place + 1}: {what}{'' if what.endswith('?') else '.'} Example: {EXAMPLE}"
        )

    def fail(self, expected: str) -> None:
        raise self._error(self.next.place, f"expected {expected}, found {self.next.text}")

    def take(self, *texts: str) -> str | None:
        """The next token if it is one of these words or marks."""
        token = self.next
        same = token.text.lower() if token.kind == "word" else token.text
        if token.kind in ("word", "mark", "op") and same in texts:
            self.at += 1
            return same
        return None

    def need(self, text: str) -> None:
        if not self.take(text):
            self.fail(f"`{text}`")

    def any(self, negated: bool) -> Node:
        return self._joined("or", All if negated else Any, self.all, negated)

    def all(self, negated: bool) -> Node:
        return self._joined("and", Any if negated else All, self.one, negated)

    def _joined(self, word: str, kind: type, part, negated: bool) -> Node:
        parts = [part(negated)]
        while self.take(word):
            parts.append(part(negated))
        return parts[0] if len(parts) == 1 else kind(tuple(parts))

    def one(self, negated: bool) -> Node:
        self.depth += 1
        if self.depth > 50:
            raise self._error(self.next.place, "more than 50 levels of not and parentheses")
        if self.take("not"):
            node = self.one(not negated)
        elif self.take("("):
            node = self.any(negated)
            self.need(")")
        else:
            node = self.test(negated)
        self.depth -= 1
        return node

    def test(self, negated: bool) -> Node:
        column = self.column()
        if op := self.take(*_OPPOSITE):
            return Compare(column, _OPPOSITE[op] if negated else op, self.value(column, op))
        if self.take("not"):
            negated = not negated
        if self.take("in"):
            self.need("(")
            values = [self.value(column, "==")]
            while self.take(","):
                values.append(self.value(column, "=="))
            self.need(")")
            if any(isinstance(value, Clock) for value in values):
                raise self._error(self.next.place, "a time of day is compared by between, <, >, not by in")
            return In(column, tuple(values), negated)
        if self.take("between"):
            return self._between(column, negated)
        self.fail("==, !=, <, <=, >, >=, in or between")
        raise AssertionError

    def _between(self, column: str, negated: bool) -> Node:
        place = self.next.place
        low = self.value(column, "<")
        self.need("and")
        high = self.value(column, "<")
        if isinstance(low, Clock) != isinstance(high, Clock):
            raise self._error(place, "one end is a time of day, the other a moment")
        over_midnight = low > high  # type: ignore[operator]
        if over_midnight and not isinstance(low, Clock):
            raise self._error(place, f"between {low} and {high} is nothing: the smaller value comes first")
        parts = (Compare(column, ">=", low), Compare(column, "<=", high))
        if negated:
            parts = (Compare(column, "<", low), Compare(column, ">", high))
        return Any(parts) if over_midnight != negated else All(parts)

    def column(self) -> str:
        token = self.next
        if token.kind != "word" or token.text.lower() in _WORDS:
            self.fail("a column")
        if token.text not in self.columns:
            known = first_few(self.columns, 20) or "none"
            hint = did_you_mean(token.text, self.columns)
            raise self._error(
                token.place, f"the gallery has no column {token.text!r}; it has {known}.{hint}".rstrip(".")
            )
        self.at += 1
        return token.text

    def value(self, column: str, op: str) -> Value:
        token = self.next
        if token.kind in ("end", "mark", "op") or (token.kind == "word" and token.text.lower() in _WORDS):
            self.fail("a value")
        self.at += 1
        try:
            return _bind(token, self.columns[column], op)
        except ValueError as error:
            raise self._error(token.place, f"column {column!r}: {error}") from None


def _bind(token: _Token, kind: str, op: str) -> Value:
    """The value of a token for a column of this kind.

    Raises:
        ValueError: it is of another kind.
    """
    text = re.sub(r"\\(.)", r"\1", token.text[1:-1]) if token.kind == "text" else token.text
    if kind == "text":
        if token.kind == "number" and op not in ("==", "!="):
            raise ValueError(f"it holds texts, so that {op} {text} has no meaning; in quotes it is compared as a text")
        return text
    if kind == "time":
        return Clock(clock_of(text)) if token.kind == "clock" else parse_time(text)
    if kind == "boolean":
        if text.lower() not in ("true", "false"):
            raise ValueError(f"expected true or false, found {text}")
        if op not in ("==", "!="):
            raise ValueError(f"true and false are compared by == and !=, not by {op}")
        return text.lower() == "true"
    if token.kind != "number":
        raise ValueError(f"expected a number, found {text}")
    number = float(text)
    return int(text) if re.fullmatch(r"-?\d{1,18}", text) else number


def microseconds(moment: dt.datetime) -> int:
    """Since 1970."""
    return (moment - dt.datetime.fromtimestamp(0, dt.UTC)) // dt.timedelta(microseconds=1)


_COMPUTE = {
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
}


def passing(node: Node, table: pa.Table) -> np.ndarray:
    """(n,) bool, which rows of a table pass. A missing value passes no test."""
    if isinstance(node, (All, Any)):
        masks = [passing(part, table) for part in node.parts]
        return np.logical_and.reduce(masks) if isinstance(node, All) else np.logical_or.reduce(masks)
    column = table[node.column]
    if isinstance(node, In):
        # a fraction among the values of an integer column equals none of its numbers, but may not be cast
        values = pa.array(list(node.values))
        kind = column.type if not pa.types.is_integer(column.type) else values.type
        found = pc.is_in(column.cast(kind), value_set=values.cast(kind))
        found = pc.and_(pc.invert(found), pc.is_valid(column)) if node.negated else found
    elif isinstance(node.value, Clock):
        clock = column.cast(pa.int64())
        clock = pc.subtract(
            clock, pc.multiply(pc.floor(pc.divide(clock.cast(pa.float64()), float(DAY))).cast(pa.int64()), DAY)
        )
        found = _COMPUTE[node.op](clock, node.value.microseconds)
    elif isinstance(node.value, dt.datetime):
        found = _COMPUTE[node.op](column, pa.scalar(node.value, arrow_type("time")))
    else:
        found = _COMPUTE[node.op](column, node.value)
    return np.asarray(pc.fill_null(found, False))
