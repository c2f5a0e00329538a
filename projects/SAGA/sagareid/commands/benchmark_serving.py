"""Measure how long the page of a gallery takes to answer, with one client and with many at once.

python tools/benchmark_serving.py index --run logs/SAGA/quickstart/anchors --images queries
python tools/benchmark_serving.py index --run logs/SAGA/quickstart/anchors --images queries --output serving.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import command_line, errors_in_one_line, tool_parser
from ..files import check_output, write_json

CLIENTS, REQUESTS = (1, 8, 64), 512


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("gallery", help="the gallery, as the build of a search made it")
    parser.add_argument(
        "--checkpoint",
        "--run",
        type=Path,
        required=True,
        help="model that extracted the gallery: folder of a finished run, or a .pth checkpoint",
    )
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
    parser.add_argument(
        "--device", default="auto", help="device of the model: auto, cpu, cuda ... (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the measurements (default: none)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args, after_interrupt="--output holds what was measured by then"):
        if args.output:
            check_output(args.output)
        from ..serving import require_extra

        require_extra()
        if min(*args.clients, args.requests) < 1:
            raise ValueError("--clients and --requests are 1 or more")
        from ..benchmarks import serving

        def save(measured: dict) -> None:
            if args.output:
                write_json(args.output, measured)

        result = serving.run(
            words=[args.gallery, "--checkpoint", str(args.checkpoint), "--device", args.device],
            images=args.images,
            clients=args.clients,
            requests=args.requests,
            command=command_line(),
            done=save,
        )
        print(serving.table(result))
