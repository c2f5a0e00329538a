"""What a value of a configuration may be, for the `check` of a part: a sentence for each value that is something else.

As in::

    @staticmethod
    def check(cfg):
        yield from one_of(cfg, "MODEL.HEADS.PATCH_POOL", ("mean", "max", "gem"))
        yield from within(cfg, "MODEL.HEADS.NUM_STRIPES", 1)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

from .errors import did_you_mean

__all__ = ["needs_cached", "numbers", "one_of", "span", "texts", "value_of", "within"]


def value_of(cfg: Any, key: str) -> Any:
    """The value of a key by its whole name, such as "MODEL.SAGA.POOL"."""
    for name in key.split("."):
        cfg = cfg[name]
    return cfg


def one_of(cfg: Any, key: str, valid: Collection[Any]) -> Iterator[str]:
    """The value is one of `valid`; so is each of a list."""
    value = value_of(cfg, key)
    for entry in value if isinstance(value, (list, tuple)) else (value,):
        if entry not in valid:
            listed = ", ".join(repr(v) if v == "" else str(v) for v in sorted(valid, key=str))
            yield f"{key} is {entry!r}; valid: {listed}.{did_you_mean(entry, valid)}"


def span(low: float, high: float = math.inf, *, above: bool = False, below: bool = False) -> str:
    """An interval in words. above: without `low`. below: without `high`."""
    if high == math.inf:
        return f"more than {low}" if above else f"{low} or more"
    if above:
        return f"more than {low}, {'less than' if below else 'at most'} {high}"
    return f"{low} or more, less than {high}" if below else f"{low} to {high}"


def within(
    cfg: Any, key: str, low: float, high: float = math.inf, *, above: bool = False, below: bool = False
) -> Iterator[str]:
    """A number from `low` to `high`; see `span`. NaN is none, and infinity is where `high` is."""
    value = value_of(cfg, key)
    if not _inside(value, low, high, above, below):
        yield f"{key} is {value}; expected {span(low, high, above=above, below=below)}"


def _inside(value: Any, low: float, high: float, above: bool, below: bool) -> bool:
    return (low < value if above else low <= value) and (value < high if below else value <= high)


def numbers(
    cfg: Any,
    key: str,
    count: int | None,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    whole: bool = False,
    rising: bool = False,
) -> Iterator[str]:
    """A list of `count` numbers (None: of any length), each from `low` to `high`.

    Args:
        whole: of whole numbers.
        rising: in their order; equal ones pass.
    """
    value = list(value_of(cfg, key))
    kind = "whole number" if whole else "number"
    expected = f"a list of {'' if count is None else f'{count} '}{kind}s"
    if low > -math.inf:
        expected += f", each {span(low, high)}"
    if rising:
        expected += ", the smaller first"
    fits = all(_is_number(x, whole) and low <= x <= high for x in value) and count in (None, len(value))
    if not fits or (rising and value != sorted(value)):
        yield f"{key} is {value}; expected {expected}"


def _is_number(value: Any, whole: bool) -> bool:
    return isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)


def texts(cfg: Any, key: str) -> Iterator[str]:
    """A list of texts."""
    value = list(value_of(cfg, key))
    if not all(isinstance(entry, str) for entry in value):
        yield f"{key} is {value}; expected a list of names or patterns, those that look like a number in quotes"


def needs_cached(part: type, cfg: Any, *fields: str) -> Iterator[str]:
    """For `check` of a part that reads these outputs of the tower, where they come from a feature cache."""
    kept = set(cfg.CACHE.FIELDS)
    if not cfg.CACHE.ENABLED or "all" in kept:
        return
    missing = [field for field in fields if field not in kept and not (field == "patches" and "map" in kept)]
    if missing:
        yield f"{part.__name__} reads {', '.join(missing)} from the feature cache: add it to CACHE.FIELDS"
