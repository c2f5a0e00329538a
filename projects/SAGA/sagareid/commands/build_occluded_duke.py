"""Build Occluded-Duke from DukeMTMC-reID and the lists that its authors publish.

    git clone https://github.com/lightas/Occluded-DukeMTMC-Dataset
    python tools/build_occluded_duke.py /data/DukeMTMC-reID Occluded-DukeMTMC-Dataset/Occluded_Duke --root /data --link

The counts of the lists are checked first: 15,618 training images of 702 people, 2,210 queries of 519, 17,661 gallery
images of 1,110. <root>/Occluded_Duke appears whole or not at all, and is never overwritten.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..cli import errors_in_one_line, tool_parser


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("source", help="folder of DukeMTMC-reID: bounding_box_train, query and bounding_box_test")
    parser.add_argument("lists", help="folder of the published lists: train.list, query.list and gallery.list")
    parser.add_argument(
        "--root",
        default="datasets",
        help="folder of all data sets, what FASTREID_DATASETS names in training (default: %(default)s)",
    )
    mode = parser.add_mutually_exclusive_group()
    for name, text in (
        ("copy", "copy the images (this is the default)"),
        ("link", "make hard links: they take no space, and the originals may be removed"),
        ("symlink", "make symbolic links: they take no space, and the originals must stay"),
    ):
        mode.add_argument(f"--{name}", dest="mode", action="store_const", const=name, default="copy", help=text)
    parser.add_argument("--any-size", action="store_true", help="accept lists whose counts are not the published ones")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args, after_interrupt="nothing was left behind"):
        from ..data.datasets import duke

        expected = None if args.any_size else duke.OccludedDuke.statistics
        print(duke.build_occluded_duke(args.source, args.lists, args.root, args.mode, expected))
