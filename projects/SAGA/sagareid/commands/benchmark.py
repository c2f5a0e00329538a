"""Time steps and extraction against the same computation done the plain way, with random weights.

python tools/benchmark.py --size tiny
python tools/benchmark.py --size base --cases extraction bfloat16 loading --output base.json
python tools/benchmark.py --size tiny --forms --rounds 25
python tools/benchmark.py --size large --cases memory --batches 8 16
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..benchmarks.options import CASES, FORMS, SIZES, SMOKE
from ..cli import command_line, errors_in_one_line, tool_parser
from ..config_files import shipped_configs
from ..files import json_output


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--size", choices=tuple(SIZES), default="tiny", help="model and batch sizes to time (default: %(default)s)"
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES, help="what to time (default: all)")
    parser.add_argument(
        "--forms",
        nargs="*",
        choices=tuple(FORMS),
        help="faster forms to time the cases with and without, instead of against the plain way (no name: all of them; "
        "default: the plain way)",
    )
    parser.add_argument(
        "--batches", type=int, nargs="+", help="images of a training step in the case memory (default: by --size)"
    )
    parser.add_argument("--rounds", type=int, help="pairs of timings of each case (default: by --size)")
    parser.add_argument("--threads", type=int, help="PyTorch's CPU threads (default: PyTorch's own choice)")
    parser.add_argument(
        "--device",
        default="auto",
        help="device to compute on: auto (a GPU where there is one), cpu, cuda, cuda:1 ... (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the measurements (default: none)")
    parser.add_argument(
        "--smoke", action="store_true", help="run the code at a tiny size in seconds; its times mean nothing"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args, after_interrupt="--output holds what was measured by then"):
        import torch

        from ..benchmarks import steps, steps_table
        from ..hardware import pick_device

        if args.threads:
            torch.set_num_threads(args.threads)
        keep = json_output(args.output)

        def save(measured: steps.Result) -> None:
            keep(steps_table.as_json(measured))

        result = steps.run(
            size=SMOKE if args.smoke else SIZES[args.size],
            name="smoke" if args.smoke else args.size,
            configs=shipped_configs() / "SAGA",
            cases=args.cases,
            forms=None if args.forms is None else args.forms or tuple(FORMS),
            rounds=args.rounds,
            batches=args.batches,
            device=pick_device(args.device),
            command=command_line(),
            done=save,
        )
        print(steps_table.table(result))
