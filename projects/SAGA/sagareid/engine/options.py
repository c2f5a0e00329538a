"""The command line of training. Imports neither torch nor FastReID, so that --help is quick."""

from __future__ import annotations

import argparse

from ..cli import add_config_pairs, add_import_argument, tool_parser

__all__ = ["AUTO", "training_parser"]

AUTO = "auto"  # --dist-url: a free port of this machine


def training_parser(description: str | None = None) -> argparse.ArgumentParser:
    """FastReID's options (its `default_argument_parser`), with --stage, --import, --dist-timeout and --traceback."""
    parser = tool_parser(description)
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="config file, or the name of one that ships: configs/SAGA/... (default: none, every key at its default)",
    )
    parser.add_argument(
        "--resume", action="store_true", help="skip finished stages, and go on inside the unfinished one"
    )
    parser.add_argument(
        "--eval-only", action="store_true", help="evaluate only: the last stage's result, or MODEL.WEIGHTS"
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="train only this stage of the config, or several: A,B (default: all)"
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help=(
            "processes on this machine, each with a GPU of its own; on the CPU with MODEL.DEVICE cpu (default: "
            "%(default)s)"
        ),
    )
    parser.add_argument("--num-machines", type=int, default=1, help="machines of this run (default: %(default)s)")
    parser.add_argument(
        "--machine-rank", type=int, default=0, help="number of this machine, from 0 (default: %(default)s)"
    )
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
        help="time that a process waits for a silent one; longer than the evaluation's ranking, which one process does "
        "(default: %(default)g)",
    )
    add_import_argument(parser)
    add_config_pairs(parser)
    return parser
