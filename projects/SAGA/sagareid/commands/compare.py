"""Train and evaluate several configs with several seeds, and print one table with mean and standard deviation.

    python tools/compare.py configs/study/saga.yml configs/study/cls.yml --seeds 0 1 2
    python tools/compare.py configs/SAGA/occ_duke.yml configs/CLIPReID/occ_duke.yml --seeds 0 SOLVER.IMS_PER_BATCH 128

The same command again shows what is finished, goes on with what is not, and tries again what failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_import_argument, errors_in_one_line, import_modules, tool_parser
from ..files import check_output


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("words", nargs="+", metavar="CONFIG", help="config files, then KEY VALUE pairs for all of them")
    parser.add_argument(
        "--seeds", nargs="+", default=["0", "1", "2"], help="seeds to train each config with (default: 0 1 2)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("logs/comparison"),
        help="folder of the runs and the table (default: %(default)s)",
    )
    parser.add_argument(
        "--rows",
        nargs="*",
        default=["refined"],
        metavar="FEATURE",
        help="features whose metrics are listed beside the result's (default: refined)",
    )
    parser.add_argument(
        "--tower",
        default="",
        metavar="CONFIG",
        help="config file whose tower takes the place of each config's own: MODEL.BACKBONE, its weights, size and "
        "normalisation of images (default: each its own)",
    )
    parser.add_argument(
        "--num-gpus", default="1", help="GPUs of each run; runs follow each other (default: %(default)s)"
    )
    add_import_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_intermixed_args(argv)
    arguments = ["--num-gpus", args.num_gpus, *(f"--import={module}" for module in args.modules)]
    with errors_in_one_line(args, after_interrupt="the same command goes on from the last whole epoch"):
        from ..studies import compare

        import_modules(args.modules)
        check_output(args.output, folder=True)
        configs, seeds, rows, opts = compare.split_words(args.words, args.seeds, args.rows)
        trials = compare.compare(configs, seeds, args.output, opts, arguments, rows, args.tower)
    print(f"\n{compare.table(compare.summarise(trials, rows), trials)}\n\n{args.output / 'comparison.md'}")
    sys.exit(any(trial.error for trial in trials))
