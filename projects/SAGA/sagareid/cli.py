"""What command-line tools share."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
from collections.abc import Collection, Iterable

__all__ = ["add_dataclass_arguments", "import_modules"]


def import_modules(names: Iterable[str]) -> None:
    """Import the user's modules, found as with `python -m`: in the working folder too."""
    for name in names:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        importlib.import_module(name)


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
