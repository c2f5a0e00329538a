"""Extract the feature of every image under a folder with a trained run.

    python tools/extract.py crops --checkpoint logs/SAGA/quickstart/anchors -o features.npz
    python tools/extract.py crops --checkpoint logs/SAGA/quickstart/anchors -o features   # a folder of shards
    torchrun --nproc-per-node 8 tools/extract.py crops --checkpoint logs/SAGA/quickstart/anchors -o features

--metadata TABLE.CSV and --pattern REGEX write cameras, times, tracks and other columns beside the features (.parquet,
or a folder); the share of a person that is seen comes with them where tools/fit_visibility.py has worked on the run.

The same command goes on where it was interrupted. --update brings an output up to date with its folder: new images are
added, vanished ones dropped.
Exit code: 0 all images, 3 some could not be read (they are listed in the report), 1 an error, 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_import_argument, errors_in_one_line, import_modules, tool_parser
from ..deploy.options import is_single_file
from ..files import check_output


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of images, searched with its subfolders")
    # --run, its earlier name, cannot stand behind torchrun, which takes it for its own --run-path
    parser.add_argument(
        "--checkpoint",
        "--run",
        type=Path,
        required=True,
        help="folder of a finished run, .pth checkpoint, or name of a model",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, help=".npz or .parquet file, or a folder for Parquet shards"
    )
    parser.add_argument(
        "--feature",
        default="auto",
        help="feature of the evaluation to extract: refined, cls ... (default: the run's result)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="device to compute on: auto (a GPU where there is one), cpu, cuda, cuda:1 ... (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        default="auto",
        help="number type to compute in: float32, bfloat16, float16, or auto, which is float32 on a CPU and bfloat16 "
        "on a GPU that has it (default: %(default)s)",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images per batch (default: %(default)s)")
    workers = min(4, max(1, (os.cpu_count() or 1) - 1))
    parser.add_argument(
        "--workers",
        type=int,
        default=workers,
        help="processes that decode images (default on this machine: %(default)s)",
    )
    parser.add_argument("--shard-size", type=int, default=4096, help="images per Parquet shard (default: %(default)s)")
    parser.add_argument(
        "--metadata",
        type=Path,
        metavar="TABLE.CSV",
        help="table of what is known of the images: a column path, and camera, time, track or others (default: none)",
    )
    parser.add_argument(
        "--pattern",
        metavar="REGEX",
        help=r"regular expression that is searched in an image's path; its named groups are columns, such as "
        r"'c(?P<camera>\d+)/(?P<track>\d+)' (default: none)",
    )
    others = parser.add_mutually_exclusive_group()
    others.add_argument(
        "--overwrite", action="store_true", help="replace an output that was made from other images or weights"
    )
    others.add_argument(
        "--update",
        action="store_true",
        help="keep the features of images that are as they were, extract new and changed ones, drop vanished ones",
    )
    add_import_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args, after_interrupt="the same command goes on where this one stopped"):
        from ..deploy import extract_folder

        import_modules(args.modules)
        check_output(args.output, folder=not is_single_file(args.output))
        extractor, sha256 = extract_folder.open_extractor(
            args.checkpoint, device=args.device, dtype=args.dtype, feature=args.feature
        )
        report = extract_folder.extract_folder(
            extractor,
            args.folder,
            args.output,
            checkpoint_sha256=sha256,
            shard_size=args.shard_size,
            batch_size=args.batch_size,
            num_workers=args.workers,
            overwrite=args.overwrite,
            update=args.update,
            table=args.metadata,
            pattern=args.pattern,
        )
    print(
        f"{report.output}: {report.extracted} of {report.images} images, {report.feature}, {report.width} numbers each"
    )
    if args.update:
        new = report.extracted - report.kept
        print(f"{report.kept} kept, {new} new or changed, {report.dropped} dropped")
    if report.unreadable:
        print(f"{len(report.unreadable)} could not be read, such as {report.unreadable[0]['path']}; see the report")
        sys.exit(3)
