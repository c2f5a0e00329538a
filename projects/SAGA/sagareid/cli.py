"""What command-line tools share."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Collection

__all__ = ["add_dataclass_arguments"]


def add_dataclass_arguments(parser: argparse.ArgumentParser, cls: type, skip: Collection[str] = ()) -> None:
    """One ``--option`` for each field of a dataclass whose fields all have defaults, with that default and its type."""
    for field in dataclasses.fields(cls):
        if field.name not in skip:
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(field.default),
                default=field.default,
                help="(default: %(default)s)",
            )
