"""What command-line tools share."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import os
import sys
from collections.abc import Collection, Iterable

__all__ = ["add_dataclass_arguments", "add_import_argument", "import_modules"]


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


def add_import_argument(parser: argparse.ArgumentParser) -> None:
    """``--import MODULE``, given as often as needed; the names are in ``args.modules``, for `import_modules`."""
    parser.add_argument(
        "--import",
        dest="modules",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this Python module first: your own registered heads, backbones, data sets",
    )


def import_modules(names: Iterable[str]) -> None:
    """Import the user's modules, found as with `python -m`: in the working folder too."""
    for name in names:
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
        importlib.import_module(name)
