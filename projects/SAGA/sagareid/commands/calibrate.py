"""Find the similarity from on which two images are called one person, on pairs that are known.

    python tools/calibrate.py logs/SAGA/quickstart/anchors --dataset SyntheticPedestriansVal
    python tools/calibrate.py logs/SAGA/quickstart/anchors --dataset SyntheticPedestriansVal --fmr 0.01 -o shop.json
    python tools/calibrate.py logs/SAGA/quickstart/anchors --dataset SyntheticPedestriansVal --far 0.2

--fmr counts pairs: two images of two people that are called one. --far counts searches: somebody who is not in the
gallery is found there all the same, which the more people there are in it happens the more often.
`tools/search.py query --threshold FILE` answers by what is written here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_import_argument, command_line, errors_in_one_line, import_modules, tool_parser
from ..deploy.options import CALIBRATION, FMR
from ..files import check_output, write_json


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run, .pth checkpoint, or name of a model")
    parser.add_argument("--dataset", default="", help="test set to compare pairs of (default: the run's first)")
    wanted = parser.add_mutually_exclusive_group()
    wanted.add_argument(
        "--fmr", type=float, metavar="RATE", help=f"wanted rate of false matches of pairs (default: {FMR:g})"
    )
    wanted.add_argument(
        "--far",
        type=float,
        metavar="RATE",
        help="wanted rate of searches that find a stranger (default: none, --fmr counts)",
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help=f".json file to write, with a .png of the same name (default: RUN/{CALIBRATION})",
    )
    parser.add_argument(
        "--feature", default="auto", help="feature of the evaluation: refined, cls ... (default: the run's result)"
    )
    parser.add_argument("--device", default="auto", help="device: auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images (default: %(default)s)")
    parser.add_argument(
        "--resamples", type=int, default=200, help="resamples of the 95 %% intervals (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the resamples (default: %(default)s)")
    add_import_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(argv)
    if args.output and args.output.suffix != ".json":
        parser.error(f"-o {args.output}: name a .json file; the picture goes beside it")
    if args.fmr is None and args.far is None:
        args.fmr = FMR
    with errors_in_one_line(args):
        from ..deploy import calibrate
        from ..deploy.extract_folder import open_extractor
        from ..deploy.load import own_folder
        from ..reports import calibration

        import_modules(args.modules)
        output = args.output or own_folder(args.run, "name the output by -o") / CALIBRATION
        picture = output.with_suffix(".png")
        for path in (output, picture):
            check_output(path)
        extractor, _ = open_extractor(args.run, device=args.device, dtype="auto", feature=args.feature)
        found = calibrate.calibrate(
            extractor,
            args.dataset or extractor.cfg.DATASETS.TESTS[0],
            fmr=args.fmr,
            far=args.far,
            batch_size=args.batch_size,
            num_workers=args.workers,
            resamples=args.resamples,
            seed=args.seed,
        )
        found = {"command": command_line()} | found
        calibration.draw(found, picture)
        write_json(output, found)
        print(calibration.text(found), picture, output, sep="\n")
