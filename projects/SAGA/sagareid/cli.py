"""What command-line tools share: their parser, the user's modules, and how they end."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import logging
import os
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from .errors import message_of

__all__ = [
    "add_dataclass_arguments",
    "add_import_argument",
    "add_traceback_argument",
    "dataclass_of",
    "errors_in_one_line",
    "import_modules",
    "tool_parser",
]

T = TypeVar("T")


def tool_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows the tool's docstring as it stands, with --traceback."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_traceback_argument(parser)
    return parser


def add_traceback_argument(parser: argparse.ArgumentParser) -> None:
    """``--traceback``, for `errors_in_one_line`. A parser and its subparsers may both have it."""
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,  # a subparser's default would undo what its parser has read
        help="show the whole traceback of an error",
    )


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


def dataclass_of(cls: type[T], args: argparse.Namespace, **values: Any) -> T:
    """The dataclass that `add_dataclass_arguments` asked for; `values` for what it skipped."""
    given = {field.name for field in dataclasses.fields(cls)} & set(vars(args))
    return cls(**{name: getattr(args, name) for name in given}, **values)


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


@contextmanager
def errors_in_one_line(args: argparse.Namespace, *, after_interrupt: str = "", code: int = 1) -> Iterator[None]:
    """End the process on an error with one message and exit code `code`, on Ctrl-C with 130.

    ``--traceback``, or SAGAREID_TRACEBACK in the environment, shows the whole traceback first.

    Args:
        args: as parsed, with `add_traceback_argument`.
        after_interrupt: what became of the work, and how it goes on.
    """
    asked = getattr(args, "traceback", False) or bool(os.environ.get("SAGAREID_TRACEBACK"))
    logs_may_fail = logging.raiseExceptions
    logging.raiseExceptions = asked  # of a log that cannot be written, the error that follows tells
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a name that the terminal cannot show is printed with escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninterrupted{after_interrupt and '; '}{after_interrupt}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if asked:
            traceback.print_exc()
        print(f"error: {message_of(error)}", file=sys.stderr)
        if not asked:
            print("(--traceback shows where)", file=sys.stderr)
        sys.exit(code)
    finally:
        logging.raiseExceptions = logs_may_fail
