"""Make one web page of a run: results, curves, config, ranked lists good and bad, attention.

    python tools/report.py logs/SAGA/quickstart
    python tools/report.py logs/SAGA/quickstart/anchors --lists none -o anchors.html

The page holds everything it shows: no network, no other file. Unfinished runs have one, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_import_argument, errors_in_one_line, import_modules, tool_parser
from ..reports.options import LISTS, REPORT


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a run, or of one of its stages")
    parser.add_argument("-o", "--output", type=Path, help=f"page to write (default: RUN/{REPORT})")
    parser.add_argument(
        "--lists", choices=LISTS, default=LISTS[0], help="stages with ranked lists and attention (default: %(default)s)"
    )
    parser.add_argument("--dataset", default="", help="test set of the ranked lists (default: the first of the run)")
    parser.add_argument(
        "--queries",
        type=int,
        default=3,
        help="queries to show of the best, of those around the median and of the worst (default: %(default)s of each)",
    )
    parser.add_argument(
        "--device", help="device to compute on: auto, cpu, cuda ... (default: the one in the run's config)"
    )
    parser.add_argument(
        "--study",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders of occlusion studies to show (default: those found in RUN)",
    )
    add_import_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    options = {"lists": args.lists, "dataset": args.dataset, "queries": args.queries, "device": args.device}
    with errors_in_one_line(args):
        from ..reports.run_page import report

        import_modules(args.modules)
        print(report(args.run, args.output, studies=args.study, **options))
