"""What command-line tools share: their parser, the user's modules, and how they end."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from .errors import message_of

__all__ = [
    "PROGRAM",
    "add_config_pairs",
    "add_dataclass_arguments",
    "add_import_argument",
    "add_traceback_argument",
    "as_installed",
    "command_line",
    "command_name",
    "dataclass_of",
    "errors_in_one_line",
    "import_modules",
    "option",
    "tool_parser",
]


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T")
D = TypeVar("D", bound=_Dataclass)


PROGRAM = "sagareid"  # the installed program, whose first word is the command


def _installed() -> bool:
    """Whether the command was started as ``sagareid COMMAND``, not as ``python tools/COMMAND.py``."""
    return sys.argv[0].split()[0] == PROGRAM


def command_line() -> str:
    """The command as it was given, to be written beside its results."""
    program = sys.argv[0].split() if _installed() else ["python", f"tools/{Path(sys.argv[0]).name}"]
    return shlex.join([*program, *sys.argv[1:]])


class _ToolParser(argparse.ArgumentParser):
    """A parser, and its subcommands', whose help calls tools by the name that they have here."""

    def format_help(self) -> str:
        text = super().format_help()
        return as_installed(text) if _installed() else text


def tool_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that shows a command's docstring as it stands, with --traceback.

    Docstrings and help name commands as ``python tools/NAME.py``; as a part of the installed program they call
    themselves ``sagareid NAME``.
    """
    parser = _ToolParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_traceback_argument(parser)
    return parser


def as_installed(text: str) -> str:
    """A text about ``python tools/NAME.py`` as one about ``sagareid NAME``."""

    def program(match: re.Match[str]) -> str:
        return f"{match[1] + '-m ' if match[1] else ''}{PROGRAM} {command_name(match[2])}"

    return re.sub(r"(torchrun .*)?(?:python )?tools/(\w+)\.py", program, text)


def command_name(tool: str) -> str:
    """Name of a tool among the commands of the installed program: build_occluded_duke -> build-occluded-duke."""
    return "train" if tool == "train_net" else tool.replace("_", "-")


def add_traceback_argument(parser: argparse.ArgumentParser) -> None:
    """``--traceback``, for `errors_in_one_line`. A parser and its subparsers may both have it."""
    parser.add_argument(
        "--traceback",
        action="store_true",
        default=argparse.SUPPRESS,  # a subparser's default would undo what its parser has read
        help="show the whole traceback of an error",
    )


def option(default: T, help: str) -> T:
    """A dataclass field that `add_dataclass_arguments` makes an option of; `help` says what it is and its unit."""
    return dataclasses.field(default=default, metadata={"help": help})


def add_dataclass_arguments(parser: argparse.ArgumentParser, cls: type[_Dataclass], skip: Collection[str] = ()) -> None:
    """One ``--option`` for each field of a dataclass, with the field's default, type and help (`option`)."""
    for field in dataclasses.fields(cls):
        if field.name not in skip:
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                type=type(field.default),
                default=field.default,
                help=f"{field.metadata['help']} (default: %(default)s)",
            )


def dataclass_of(cls: type[D], args: argparse.Namespace, **values: Any) -> D:
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


def add_config_pairs(parser: argparse.ArgumentParser, note: str = "") -> None:
    """Trailing ``KEY VALUE ...`` pairs, in ``args.opts``. note: joins the help."""
    help_text = "config keys and their values, on top of the config file"
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help=help_text + note)


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
