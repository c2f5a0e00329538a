"""Measure how much each model still finds as more and more of a person is hidden.

Hidden by a mask, or behind somebody else.

    python tools/occlusion_study.py --config-file configs/SAGA/quickstart.yml
    python tools/occlusion_study.py --weights SAGA=logs/a/anchors SAGA=logs/b/anchors CLS=logs/c --reference CLS

Writes study.json, table.md, curves.png, curves.svg and study.html, a page that needs no network.
docs/occlusion_study.md
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_config_pairs, add_import_argument, command_line, errors_in_one_line, import_modules, tool_parser
from ..data import occluders
from ..reports.options import SAMPLES
from ..studies.options import OCCLUDE, Options


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--config-file",
        help="config of the test set, and of the trained run where --weights names none (default: none)",
    )
    parser.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="[NAME=]PATH",
        help="folders of finished runs, .pth checkpoints, or names of models; several of one NAME are seeds, averaged "
        "query by query (default: the run of --config-file)",
    )
    parser.add_argument("--dataset", help="test set (default: the first of the config, or of the first model)")
    parser.add_argument("--reference", help="NAME of the model that the others are compared with (default: the last)")
    parser.add_argument(
        "--conditions",
        nargs="+",
        choices=occluders.CONDITIONS,
        default=Options.conditions,
        help="kinds of occlusion (default: all)",
    )
    parser.add_argument(
        "--levels",
        nargs="+",
        type=float,
        default=[100 * level for level in Options.levels],
        metavar="PERCENT",
        help="shares of the visible person to hide, in percent (default: %(default)s)",
    )
    parser.add_argument(
        "--occlude", choices=OCCLUDE, default=Options.occlude, help="images to occlude (default: %(default)s)"
    )
    parser.add_argument(
        "--shapes", nargs="+", choices=occluders.SHAPES, default=Options.shapes, help="shapes of masks (default: all)"
    )
    parser.add_argument(
        "--fill",
        choices=occluders.FILLS,
        default=Options.fill,
        help="what masks are filled with (default: %(default)s)",
    )
    parser.add_argument(
        "--distractors",
        default=Options.distractors,
        metavar="SOURCE",
        help="where pasted people come from: train, a data set's name, or a folder of crops, a path with a slash "
        "(default: the test set's own choice)",
    )
    parser.add_argument(
        "--queries",
        type=int,
        default=Options.queries,
        metavar="N",
        help="queries studied, spread evenly over the test set's; 0: all (default: %(default)s)",
    )
    parser.add_argument(
        "--feature",
        nargs="+",
        default=Options.features,
        metavar="FEATURE",
        help="features to rank by: auto (the one that each model's config names), refined, cls, fusion ... "
        "(default: auto)",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=Options.resamples,
        help="bootstrap resamples of the intervals (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=Options.seed, help="seed of occlusions and resamples (default: %(default)s)"
    )
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help="sample queries on the page (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, help="folder for the results (default: logs/occlusion_study/DATASET)")
    parser.add_argument(
        "--resume", action="store_true", help="keep the results that the folder holds already, and measure the rest"
    )
    parser.add_argument(
        "--workers", type=int, help="processes that read images (default: DATALOADER.NUM_WORKERS of the config)"
    )
    parser.add_argument(
        "--device", help="device to compute on: auto, cpu, cuda ... (default: the one in each model's config)"
    )
    add_import_argument(parser)
    add_config_pairs(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_intermixed_args(argv)
    with errors_in_one_line(args, after_interrupt="the same command with --resume goes on from the last whole cell"):
        options = Options(
            conditions=tuple(args.conditions),
            levels=tuple(level / 100 for level in args.levels),
            occlude=args.occlude,
            shapes=tuple(args.shapes),
            fill=args.fill,
            distractors=args.distractors,
            features=tuple(args.feature),
            seed=args.seed,
            resamples=args.bootstrap,
            queries=args.queries,
        )
        from ..reports.study_page import run_study

        import_modules(args.modules)
        run_study(
            options,
            config_file=args.config_file,
            opts=args.opts,
            weights=args.weights,
            dataset=args.dataset,
            reference=args.reference,
            output=args.output,
            resume=args.resume,
            workers=args.workers,
            device=args.device,
            samples=args.samples,
            command=command_line(),
        )
