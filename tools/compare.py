#!/usr/bin/env python
"""Train and evaluate several configs with several seeds, and print one table with mean and standard deviation.

    python tools/compare.py configs/study/saga.yml configs/study/cls.yml --seeds 0 1 2
    python tools/compare.py configs/SAGA/occ_duke.yml configs/CLIPReID/occ_duke.yml --seeds 0 SOLVER.IMS_PER_BATCH 128

The same command again shows what is finished, goes on with what is not, and tries again what failed.
"""

import sys
from pathlib import Path

import sagareid  # noqa: F401  (registers, and lets the host import)
from sagareid.cli import add_import_argument, errors_in_one_line, import_modules, tool_parser
from sagareid.files import check_output
from sagareid.studies import compare


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("words", nargs="+", metavar="CONFIG", help="config files, then KEY VALUE pairs for all of them")
    parser.add_argument("--seeds", nargs="+", default=["0", "1", "2"], help="(default: 0 1 2)")
    parser.add_argument("--output", type=Path, default=Path("logs/comparison"), help="folder (default: %(default)s)")
    parser.add_argument("--rows", nargs="*", default=["refined"], help="rows beside the result's (default: refined)")
    parser.add_argument("--num-gpus", default="1", help="of each run, one after the other (default: %(default)s)")
    add_import_argument(parser)
    args = parser.parse_intermixed_args()
    arguments = ["--num-gpus", args.num_gpus, *(f"--import={module}" for module in args.modules)]
    with errors_in_one_line(args, after_interrupt="the same command goes on from the last whole epoch"):
        import_modules(args.modules)
        check_output(args.output, folder=True)
        configs, seeds, opts = compare.split_words(args.words, args.seeds)
        trials = compare.compare(configs, seeds, args.output, opts, arguments, args.rows)
    print(f"\n{compare.table(compare.summarise(trials, args.rows), trials)}\n\n{args.output / 'comparison.md'}")
    sys.exit(any(trial.error for trial in trials))


if __name__ == "__main__":
    main()
