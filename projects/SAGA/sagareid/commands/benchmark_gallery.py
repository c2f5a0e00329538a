"""Measure recall, memory, disk and time of a gallery's indexes, with filters, on drawn features of people.

python tools/benchmark_gallery.py
python tools/benchmark_gallery.py --count 1000000 --kinds ivfpq --output gallery.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import command_line, errors_in_one_line, tool_parser
from ..deploy.options import KINDS
from ..files import json_output


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="images of the gallery (default: %(default)s)")
    parser.add_argument("--width", type=int, default=256, help="numbers of a feature (default: %(default)s)")
    parser.add_argument("--images", type=int, default=20, help="images of a person (default: %(default)s)")
    parser.add_argument(
        "--noise",
        type=float,
        default=0.65,
        help="length of what an image adds to a person's point of length 1: two images of a person have a cosine of "
        "1 / (1 + noise^2) (default: %(default)s)",
    )
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="kinds of index (default: %(default)s)"
    )
    parser.add_argument(
        "--shares",
        nargs="+",
        type=float,
        default=[1.0, 0.1, 0.01],
        help="shares of the gallery that a filter passes, 0.01 to 1 (default: %(default)s)",
    )
    parser.add_argument("--queries", type=int, default=200, help="queries of each measurement (default: %(default)s)")
    parser.add_argument(
        "--memory",
        type=float,
        default=4.0,
        metavar="GIB",
        help="memory that an index may take in a search (default: %(default)g GiB)",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of FAISS (default: %(default)s)")
    parser.add_argument(
        "--folder",
        type=Path,
        default=Path("build/benchmark_gallery"),
        help="folder for the galleries, removed in the end (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the measurements (default: none)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(argv)
    if not all(0.01 <= share <= 1 for share in args.shares):
        parser.error("--shares: each from 0.01 to 1")
    if args.noise < 0:
        parser.error("--noise: 0 or more")
    if min(args.count, args.width, args.images, args.queries, args.threads) < 1:
        parser.error("--count, --width, --images, --queries and --threads: 1 or more")
    with errors_in_one_line(args, after_interrupt="--output holds what was measured by then"):
        from ..benchmarks import gallery

        save = json_output(args.output)
        result = gallery.run(
            count=args.count,
            width=args.width,
            images=args.images,
            noise=args.noise,
            kinds=args.kinds,
            shares=args.shares,
            queries=args.queries,
            memory_gib=args.memory,
            threads=args.threads,
            folder=args.folder,
            command=command_line(),
            done=save,
        )
        print(gallery.table(result))
