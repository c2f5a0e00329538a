"""The installed program: ``sagareid COMMAND ...`` is what ``python tools/COMMAND.py ...`` is in a checkout."""

from __future__ import annotations

import importlib
import pkgutil
import sys

from . import commands
from .cli import PROGRAM, as_installed, command_name
from .version import __version__


def modules() -> dict[str, str]:
    """Name of every command -> its module's."""
    return {command_name(m.name): f"{commands.__name__}.{m.name}" for m in pkgutil.iter_modules(commands.__path__)}


def usage() -> str:
    """What there is, a line each: the first of the module's docstring."""
    lines = [f"usage: {PROGRAM} COMMAND ...    ({PROGRAM} COMMAND --help says more)", ""]
    for name, module in modules().items():
        description = (importlib.import_module(module).__doc__ or "").partition("\n")[0]
        lines.append(f"  {name:20} {as_installed(description)}")
    return "\n".join(lines)


def main() -> None:
    """Run the command that the first argument names with the others."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(__version__)
    elif name not in modules():
        print(f"error: no command {name!r}\n{usage()}", file=sys.stderr)
        sys.exit(2)
    else:
        sys.argv = [f"{PROGRAM} {name}", *arguments]
        importlib.import_module(modules()[name]).main()


if __name__ == "__main__":
    main()
