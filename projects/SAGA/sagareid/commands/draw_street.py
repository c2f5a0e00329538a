"""Draw a street that two cameras film, with true tracks and a detector's boxes in MOT-Challenge's layout.

    python tools/draw_street.py -o streets/0
    python tools/draw_street.py -o streets/1 --seed 1 --frames 600 --video

docs/tracking.md shows trackers on it. The same options draw the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..cli import add_dataclass_arguments, dataclass_of, errors_in_one_line, tool_parser
from ..synthetic.options import StreetSpec


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="made by this command; one street each")
    parser.add_argument("--video", action="store_true", help="one mp4 a camera in the place of its frames")
    add_dataclass_arguments(parser, StreetSpec)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args, after_interrupt="nothing was left behind"):
        from ..synthetic import street

        print(street.draw_street(args.output, dataclass_of(StreetSpec, args), video=args.video))
