"""Train on some data sets, test on others: the table of sources and targets of domain generalisation.

    python tools/cross_domain.py --config-file configs/SAGA/market1501.yml --sources Market1501 Market1501,CUHK01 \
        --targets Market1501 CUHK01 CUHK03Pair
    python tools/cross_domain.py --runs drawn=logs/SAGA/quickstart/anchors --targets Market1501 CUHK01

A model is trained on each source, or is given with --runs; each is tested on every target, as it is. Writes
cross_domain.json, table.md and cross_domain.html, a page that needs no network, after each target. The same command
again shows what is finished, and goes on with what is not. docs/cross_domain.md
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_config_pairs, add_import_argument, command_line, errors_in_one_line, import_modules, tool_parser


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--targets",
        nargs="+",
        required=True,
        metavar="SET",
        help="data sets to test on, registered or of CUSTOM",
    )
    parser.add_argument(
        "--sources",
        nargs="+",
        default=[],
        metavar="[NAME=]SET[,SET]",
        help="data sets to train on; those joined by a comma train one model together (default: none)",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        default=[],
        metavar="[NAME=]PATH",
        help="folders of finished runs, or .pth checkpoints; several of one NAME are seeds (default: none)",
    )
    parser.add_argument("--config-file", metavar="FILE", help="config that --sources are trained with (default: none)")
    parser.add_argument(
        "--seeds", nargs="+", type=int, default=[0], help="seeds to train each source with (default: 0)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("logs/cross_domain"),
        help="folder of the runs, the kept results and the table (default: %(default)s)",
    )
    parser.add_argument(
        "--num-gpus", default="1", help="GPUs of each training run; runs follow each other (default: %(default)s)"
    )
    parser.add_argument(
        "--workers", type=int, help="processes that read test images (default: DATALOADER.NUM_WORKERS of the config)"
    )
    parser.add_argument(
        "--device", help="device to test on: auto, cpu, cuda ... (default: the one in each model's config)"
    )
    add_import_argument(parser)
    add_config_pairs(parser, "; before the options that take several words")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_intermixed_args(argv)
    with errors_in_one_line(args, after_interrupt="the same command goes on from the last whole epoch, or target"):
        from ..reports.cross_domain import run_cross_domain
        from ..studies.cross_domain import read_sources

        import_modules(args.modules)
        trials = run_cross_domain(
            targets=args.targets,
            command=command_line(),
            sources=read_sources(args.sources),
            runs=args.runs,
            seeds=args.seeds,
            config_file=args.config_file,
            opts=args.opts,
            output=args.output,
            arguments=["--num-gpus", args.num_gpus, *(f"--import={module}" for module in args.modules)],
            workers=args.workers,
            device=args.device,
        )
    sys.exit(any(trial.error for trial in trials))
