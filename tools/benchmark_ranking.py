#!/usr/bin/env python
"""Time and peak memory of ranking a test set, our blocks of queries against FastReID's own evaluator, in turn.

python tools/benchmark_ranking.py
python tools/benchmark_ranking.py --sizes 3368x15913 --rounds 3 --output ranking.json
"""

import shlex
import sys
from pathlib import Path

import torch

import sagareid  # noqa: F401  (registers, and lets the host import)
from sagareid.benchmarks import ranking as benchmark
from sagareid.cli import errors_in_one_line, tool_parser
from sagareid.files import check_output, write_json


def main() -> None:
    parser = tool_parser(__doc__)
    default = " ".join(map(str, benchmark.SIZES))
    parser.add_argument("--sizes", nargs="+", metavar="QxG", help=f"queries x gallery images (default: {default})")
    parser.add_argument("--width", type=int, default=2048, help="of a feature (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="pairs of samples (default: %(default)s)")
    parser.add_argument(
        "--memory", type=float, default=6.0, metavar="GIB", help="leave FastReID out above (default: %(default)g)"
    )
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own choice)")
    parser.add_argument("--output", type=Path, help="write the measurements here, as JSON")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with errors_in_one_line(args, after_interrupt="--output holds what was measured by then"):
        if args.output:
            check_output(args.output)
        result = benchmark.run(
            sizes=[benchmark.RankingSize.parse(s) for s in args.sizes] if args.sizes else benchmark.SIZES,
            width=args.width,
            rounds=args.rounds,
            memory_gib=args.memory,
            command=shlex.join(["python", "tools/benchmark_ranking.py", *sys.argv[1:]]),
            done=lambda result: args.output and write_json(args.output, result),
        )
        print(benchmark.table(result))


if __name__ == "__main__":
    main()
