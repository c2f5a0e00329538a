"""Train a small read-out beside a run: how much of the person is seen, in a crop and in each of its sixths.

    python tools/fit_visibility.py logs/SAGA/quickstart/anchors

It looks at the crop itself, learns from drawn people of whom some is hidden, and is measured on others, beside the
anchors' attention where the run has anchors. `Extractor.embed(frame, boxes, visibility=True)` uses it, whatever the
model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import (
    add_dataclass_arguments,
    add_import_argument,
    command_line,
    dataclass_of,
    errors_in_one_line,
    import_modules,
    tool_parser,
)
from ..deploy.options import VISIBILITY
from ..files import check_output
from ..studies.options import ReadoutOptions


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run, or a .pth checkpoint")
    parser.add_argument(
        "--dataset",
        default="SyntheticPedestrians",
        help="data set with masks, to train on (default: %(default)s)",
    )
    parser.add_argument(
        "--validation",
        default="SyntheticPedestriansVal",
        help="data set with masks, to measure on (default: %(default)s)",
    )
    add_dataclass_arguments(parser, ReadoutOptions)
    parser.add_argument("--device", default="auto", help="device: auto, cpu, cuda, cuda:1 ... (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that read and hide (default: %(default)s)")
    add_import_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args):
        from ..deploy.extract_folder import open_extractor
        from ..deploy.load import own_folder
        from ..reports import visibility as report
        from ..studies import visibility

        import_modules(args.modules)
        options = dataclass_of(ReadoutOptions, args)
        output = check_output(own_folder(args.run, "copy it, and name the copy") / VISIBILITY)
        extractor, _ = open_extractor(args.run, device=args.device, dtype="float32", feature="auto")
        readout, about = visibility.fit_visibility(
            extractor, options=options, dataset=args.dataset, validation=args.validation, num_workers=args.workers
        )
        readout.save(output, {"command": command_line()} | about)
        print(report.text(about), output, sep="\n\n")
