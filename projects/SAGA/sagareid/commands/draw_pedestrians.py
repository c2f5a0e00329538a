"""Draw the SyntheticPedestrians data set, of any size.

    python tools/draw_pedestrians.py --root datasets
    python tools/draw_pedestrians.py --root /tmp/tiny --train-ids 8 --test-ids 6 --gallery-distractors 30

Training draws the default by itself where it is missing.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence

from ..cli import add_dataclass_arguments, dataclass_of, errors_in_one_line, tool_parser
from ..synthetic.options import Spec


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--root",
        default="datasets",
        help="folder of all data sets, what FASTREID_DATASETS names in training (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, help="processes that draw (default: one per CPU core where that pays)")
    parser.add_argument("--force", action="store_true", help="replace a data set that is there already")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="image size in pixels (default: 96 48)"
    )
    add_dataclass_arguments(parser, Spec, skip=("height", "width"))  # --size sets both
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    size = dict(zip(("height", "width"), args.size or ()))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors_in_one_line(args, after_interrupt="nothing was left behind"):
        from ..synthetic import drawn

        spec = dataclass_of(Spec, args, **size)
        print(drawn.draw_dataset(args.root, spec, workers=args.workers, force=args.force))
