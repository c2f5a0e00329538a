"""Draw ranked lists of trained models, side by side if there are several, and where their anchors look.

    python tools/visualize.py logs/SAGA/quickstart/anchors
    python tools/visualize.py logs/SAGA/quickstart/anchors --images a.jpg b.jpg --anchors all -o attention.html
    python tools/visualize.py logs/SAGA/quickstart/anchors --hide 40 -o half_hidden.png
    python tools/visualize.py CLS=logs/SAGA/quickstart/backbone SAGA=logs/SAGA/quickstart/anchors -o compared.png

One model: queries whose first match is right, and queries whose is wrong. Several: the queries that the last does
better than the first, and those that it does worse.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_import_argument, errors_in_one_line, import_modules, tool_parser
from ..data.occluders import CONDITIONS
from ..files import check_output
from ..reports.options import LENGTH
from ..studies.options import Occlusion


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="[NAME=]RUN", help="folder of a finished run, .pth checkpoint, or name of a model"
    )
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        help=".png, .svg, .pdf or .html file to write (default: ranked_lists.png or attention.png in the last RUN)",
    )
    parser.add_argument(
        "--dataset", default="", help="test set of the ranked lists (default: the first of the first run)"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--queries", type=int, default=8, help="queries of the test set to draw (default: %(default)s)")
    what.add_argument(
        "--images",
        nargs="+",
        metavar="PATH",
        help="images to draw attention over, instead of ranked lists (default: none)",
    )
    parser.add_argument(
        "--anchors",
        help="anchors to draw: all, top:N, or their numbers or words of their phrases, separated by commas (default: "
        "top:2; all with --images)",
    )
    parser.add_argument(
        "--length", type=int, default=LENGTH, help="gallery images per ranked list (default: %(default)s)"
    )
    parser.add_argument(
        "--device", help="device to compute on: auto, cpu, cuda ... (default: the one in each run's config)"
    )
    parser.add_argument(
        "--hide",
        type=float,
        metavar="PERCENT",
        help="share of every query's person to hide, in percent, as the occlusion study does (default: none)",
    )
    parser.add_argument(
        "--condition", choices=CONDITIONS, default="distractor", help="what hides the person (default: %(default)s)"
    )
    add_import_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args):
        occlusion = Occlusion(args.condition, args.hide / 100) if args.hide is not None else None
        from ..deploy.load import own_folder
        from ..reports import visualize
        from ..studies.models import load_models, named_path

        folder = own_folder(named_path(args.runs[-1])[1], "name the output by -o") if not args.output else Path()
        output = args.output or folder / ("attention.png" if args.images else "ranked_lists.png")
        import_modules(args.modules)
        check_output(output)
        models = load_models(args.runs, device=args.device)
        if args.images:
            visualize.picture_images(models, args.images, output, anchors=args.anchors or "all")
        else:
            visualize.picture_ranked_lists(
                models,
                output,
                anchors=args.anchors or "top:2",
                dataset=args.dataset,
                number=args.queries,
                length=args.length,
                occlusion=occlusion,
            )
        print(output)
