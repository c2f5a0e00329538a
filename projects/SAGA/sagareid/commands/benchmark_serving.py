"""Measure how long the page of a gallery takes to answer, with one client and with many at once.

python tools/benchmark_serving.py index --run logs/SAGA/quickstart/anchors --images queries
python tools/benchmark_serving.py index --run logs/SAGA/quickstart/anchors --images queries --output serving.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import command_line, errors_in_one_line, tool_parser
from ..files import json_output
from .serve import add_gallery_arguments

CLIENTS, REQUESTS = (1, 8, 64), 512


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    add_gallery_arguments(parser)
    parser.add_argument("--images", type=Path, required=True, help="folder of the images to ask for")
    parser.add_argument(
        "--clients",
        type=int,
        nargs="+",
        default=list(CLIENTS),
        help=f"clients that ask at once (default: {' '.join(map(str, CLIENTS))})",
    )
    parser.add_argument(
        "--requests", type=int, default=REQUESTS, help="requests of each number of clients (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the measurements (default: none)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args, after_interrupt="--output holds what was measured by then"):
        save = json_output(args.output)
        from ..serving import require_extra

        require_extra()
        if min(*args.clients, args.requests) < 1:
            raise ValueError("--clients and --requests are 1 or more")
        from ..benchmarks import serving

        result = serving.run(
            words=[args.gallery, "--checkpoint", str(args.checkpoint), "--device", args.device],
            images=args.images,
            clients=args.clients,
            requests=args.requests,
            command=command_line(),
            done=save,
        )
        print(serving.table(result))
