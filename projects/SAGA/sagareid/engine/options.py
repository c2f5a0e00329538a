"""The command line of training. Imports neither torch nor FastReID, so that --help is quick."""

from __future__ import annotations

import argparse

from ..cli import add_import_argument, tool_parser

__all__ = ["AUTO", "training_parser"]

AUTO = "auto"  # --dist-url: a free port of this machine


def training_parser(description: str | None = None) -> argparse.ArgumentParser:
    """FastReID's options (its `default_argument_parser`), with --stage, --import, --dist-timeout and --traceback."""
    parser = tool_parser(description)
    parser.add_argument("--config-file", default="", metavar="FILE", help="a file, or one that ships: configs/SAGA/...")
    parser.add_argument("--resume", action="store_true", help="skip what is finished, go on inside what is not")
    parser.add_argument("--eval-only", action="store_true", help="evaluate the last stage's result, or MODEL.WEIGHTS")
    parser.add_argument("--stage", metavar="NAME", help="run only this stage of the config, or several: A,B")
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help=(
            "processes on this machine, each with a GPU of its own; on the CPU with MODEL.DEVICE cpu (default: "
            "%(default)s)"
        ),
    )
    parser.add_argument("--num-machines", type=int, default=1, help="(default: %(default)s)")
    parser.add_argument("--machine-rank", type=int, default=0, help="of this machine, from 0 (default: %(default)s)")
    parser.add_argument(
        "--dist-url",
        default=AUTO,
        help="where several machines meet: tcp://HOST:PORT of machine 0 (default: a free port of this machine)",
    )
    parser.add_argument(
        "--dist-timeout",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="how long a process waits for another that is silent; more than the evaluation's ranking, which one "
        "process does (default: %(default)g)",
    )
    add_import_argument(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="keys of the config and their values"
    )
    return parser
