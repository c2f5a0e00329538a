"""Measure time and memory of ranking a test set: ours, FastReID's own evaluator, and the way of published code.

python tools/benchmark_ranking.py
python tools/benchmark_ranking.py --sizes 3368x15913 --rounds 3 --output ranking.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..benchmarks.options import RANKING_SIZES, SPREADS, RankingSize
from ..cli import command_line, errors_in_one_line, tool_parser
from ..files import json_output


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    default = " ".join(map(str, RANKING_SIZES))
    parser.add_argument(
        "--sizes", nargs="+", metavar="QxG", help=f"test set sizes, as queries x gallery images (default: {default})"
    )
    parser.add_argument("--width", type=int, default=2048, help="numbers of a feature (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="timings of each way at each size (default: %(default)s)")
    parser.add_argument(
        "--spreads",
        nargs="+",
        choices=SPREADS,
        default=list(SPREADS),
        help="features to rank: close, as of a trained model, or chance, where matches stand among everybody and most "
        "are tied with somebody (default: both)",
    )
    parser.add_argument(
        "--memory",
        type=float,
        default=6.0,
        metavar="GIB",
        help="memory for matrices; a way that needs more ranks as many queries as fit, and its time is scaled to all "
        "(default: %(default)g GiB)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's own choice)")
    parser.add_argument("--output", type=Path, help="JSON file for the measurements (default: none)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args, after_interrupt="--output holds what was measured by then"):
        import torch

        from ..benchmarks import ranking

        if args.threads:
            torch.set_num_threads(args.threads)
        save = json_output(args.output)
        result = ranking.run(
            sizes=[RankingSize.parse(s) for s in args.sizes] if args.sizes else RANKING_SIZES,
            width=args.width,
            rounds=args.rounds,
            memory_gib=args.memory,
            spreads=args.spreads,
            command=command_line(),
            done=save,
        )
        print(ranking.table(result))
