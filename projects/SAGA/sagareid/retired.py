"""Keys that the configuration no longer has: what became of each, and which values of it are still read.

A configuration file, a command line, a stored run and a checkpoint from before may have them. They are taken out while
it is read, with one line in the log. A value that asked for something that is no longer there is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

__all__ = ["RETIRED", "Retired", "take_out", "without_retired"]

logger = logging.getLogger(__name__)


class Retired(NamedTuple):
    """A key that is gone.

    Attributes:
        values: those that ask for what is computed today, too.
        became: what became of it, the end of a sentence that begins with the key.
    """

    values: Collection[Any]
    became: str


RETIRED: dict[str, Retired] = {
    "MODEL.PROMPT.NUM_BLANK": Retired(range(17), "is 16 less MODEL.PROMPT.NUM_CONTEXT"),
    "MODEL.PROMPT.MODE": Retired(("identity",), "is always identity: no training used the published code's other mode"),
    "MODEL.CLIP.TEXT_TOWER": Retired(
        (True, False), "is decided by the command: training builds the text tower, evaluation and export do not"
    ),
    "MODEL.HEADS.POOL_HEADS": Retired((8,), "is always 8, the attention heads of AttentionPoolHead"),
    "MODEL.LOSSES.SUPCON.SCALE": Retired((1.0,), "is always 1, the weight of the only loss of its stage"),
}

_said: set[tuple[str, ...]] = set()


def take_out(content: Mapping[str, Any], origin: str | Path, *, level: int = logging.WARNING) -> dict[str, Any]:
    """What a file holds, nested mappings of keys, without the retired ones; `content` stays as it is.

    Args:
        origin: what it was read from, for messages.
        level: of the line in the log; it is written once for each origin.

    Raises:
        ValueError: a retired key with a value that nothing computes today.
    """
    found: dict[str, Any] = {}
    rest = _without(content, "", found)
    _say(found, str(origin), level)
    return rest


def without_retired(opts: Sequence[object], origin: str | Path) -> list[str]:
    """The same for KEY VALUE pairs; a last one without a partner stays for FastReID to refuse.

    Raises:
        ValueError: as `take_out`.
    """
    words = [str(opt) for opt in opts]
    rest: list[str] = []
    found: dict[str, Any] = {}
    for i in range(0, len(words), 2):
        if words[i] in RETIRED and i + 1 < len(words):
            found[words[i]] = _value(words[i + 1])
        else:
            rest += words[i : i + 2]
    _say(found, str(origin), logging.WARNING)
    return rest


def _without(content: Mapping[str, Any], prefix: str, found: dict[str, Any]) -> dict[str, Any]:
    rest: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if key in RETIRED:
            found[key] = value
        elif isinstance(value, Mapping):
            below = _without(value, f"{key}.", found)
            if below or not value:  # a section that only retired keys were in is gone with them
                rest[name] = below
        else:
            rest[name] = value
    return rest


def _value(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _say(found: Mapping[str, Any], origin: str, level: int) -> None:
    for key, value in found.items():
        if value not in RETIRED[key].values:
            raise ValueError(
                f"{origin}: {key} is {value!r}, and this key is gone: it {RETIRED[key].became}. Take it out; for what "
                "it asked for, use version 1.0.0 of this package"
            )
    if found and (origin, *found) not in _said:
        _said.add((origin, *found))
        keys = "; ".join(f"{key}, which {RETIRED[key].became}" for key in found)
        logger.log(level, "%s has %s that the configuration no longer has: %s", origin, _count(len(found)), keys)


def _count(number: int) -> str:
    return "a key" if number == 1 else f"{number} keys"
