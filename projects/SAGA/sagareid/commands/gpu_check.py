"""Check and measure everything on a GPU in about ten minutes; a dry run on the CPU in two.

    python tools/gpu_check.py -o gpu_check
    python tools/gpu_check.py -o gpu_check --steps base,compile --budget 240
    python tools/gpu_check.py -o dry_run --device cpu --size tiny

Needs a checkout: it runs the tools and the tests of this repository.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..benchmarks.options import GPU_STEPS, SCALES
from ..cli import command_line, errors_in_one_line, tool_parser
from ..config_files import shipped_configs
from ..files import check_output


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help="folder for results.json, table.md and log.txt"
    )
    parser.add_argument(
        "--steps", default=",".join(GPU_STEPS), help="steps to do, separated by commas (default: %(default)s)"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=570.0,
        metavar="SECONDS",
        help="time for all steps; those that do not fit are left out (default: %(default)g)",
    )
    parser.add_argument(
        "--device", default="cuda", help="device to check: cuda, or cpu for a dry run (default: %(default)s)"
    )
    parser.add_argument(
        "--size", choices=tuple(SCALES), default="full", help="size of models and data (default: %(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args, after_interrupt="the output folder holds what was found by then"):
        repo = shipped_configs().parent
        if not (repo / "tools").is_dir():
            raise FileNotFoundError(f"no tools/ in {repo}: gpu-check runs in a checkout of the repository")
        steps = args.steps.split(",")
        unknown = [name for name in steps if name not in GPU_STEPS]
        if unknown:
            raise ValueError(f"no step {', '.join(unknown)}; expected {', '.join(GPU_STEPS)}")
        from ..benchmarks.gpu import check
        from ..hardware import pick_device

        results = check.run(
            steps=steps,
            device=pick_device(args.device),
            size=args.size,
            budget=args.budget,
            repo=repo,
            output=check_output(args.output.absolute(), folder=True),
            command=command_line(),
        )
        print(check.table(results))
        if any(step["status"] != "passed" for step in results["steps"].values()):
            sys.exit(1)
