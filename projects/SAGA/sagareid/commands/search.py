"""Search a gallery of extracted features for the images that look like a query.

`features` is what tools/extract.py writes.

    python tools/search.py build features -o index
    python tools/search.py add index more.npz
    python tools/search.py query index person.jpg --checkpoint logs/SAGA/quickstart/anchors -k 5 --picture found.png
    python tools/search.py query index --features queries.npz -o matches.json
    python tools/search.py query index person.jpg --checkpoint logs/SAGA/quickstart/anchors --threshold calibration.json
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_import_argument, add_traceback_argument, errors_in_one_line, import_modules, tool_parser
from ..deploy.options import KINDS
from ..files import check_output


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser("build", help="make an index of features")
    build.add_argument("features", type=Path, help="extracted features: .npz, .parquet or a folder of shards")
    build.add_argument("-o", "--output", type=Path, required=True, help="folder to write the index to")
    build.add_argument(
        "--index",
        choices=("auto", *KINDS),
        default="auto",
        help="kind of index (default: auto, by the number of images and --memory)",
    )
    build.add_argument(
        "--memory",
        type=float,
        default=4.0,
        metavar="GIB",
        help="memory that the index may take in a search (default: %(default)g GiB)",
    )

    add = commands.add_parser("add", help="append features to an index")
    add.add_argument("index", type=Path, help="folder of the index")
    add.add_argument("features", type=Path, help="extracted features: .npz, .parquet or a folder of shards")
    add.add_argument(
        "--folder", type=Path, help="where the gallery's images are now, if they were moved (default: as extracted)"
    )

    query = commands.add_parser("query", help="ranked lists of images or of features")
    query.add_argument("index", type=Path, help="folder of the index")
    query.add_argument("images", type=Path, nargs="*", help="query images, or folders of them; needs --checkpoint")
    query.add_argument(
        "--checkpoint",
        "--run",
        type=Path,
        help="model that extracted the gallery: folder of a finished run, or a .pth checkpoint (default: none)",
    )
    query.add_argument(
        "--features", type=Path, help="extracted features of the queries, instead of images (default: none)"
    )
    query.add_argument(
        "--device", default="auto", help="device of --checkpoint: auto, cpu, cuda ... (default: %(default)s)"
    )
    query.add_argument("-k", type=int, default=10, help="matches per query (default: %(default)s)")
    query.add_argument(
        "--effort",
        type=int,
        help="cells (ivfpq) or candidates (hnsw) to look at: more are slower and miss less (default: the index's)",
    )
    query.add_argument(
        "--threshold",
        metavar="FILE_OR_NUMBER",
        help="answer nobody below it: a file of tools/calibrate.py, or a similarity (default: every query has matches)",
    )
    query.add_argument(
        "-o", "--output", type=Path, help=".json or .csv file for the matches (default: a table on the screen)"
    )
    query.add_argument("--picture", type=Path, help="picture of the ranked lists to write (default: none)")
    query.add_argument(
        "--folder", type=Path, help="where the gallery's images are now, if they were moved (default: as extracted)"
    )
    add_import_argument(query)
    for command in (build, add, query):
        add_traceback_argument(command)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(argv)
    if args.command == "query" and bool(args.features) == bool(args.images and args.checkpoint):
        parser.error("query: give images and --checkpoint, or --features")
    with errors_in_one_line(args):
        from ..deploy import gallery
        from ..deploy.feature_set import FeatureSet

        if args.command == "build":
            check_output(args.output, folder=True)
            features = FeatureSet(args.features)
            index = gallery.build(features, args.output, kind=args.index, memory_gib=args.memory)
            print(gallery.describe(index, features))
        elif args.command == "add":
            print(gallery.describe(gallery.add(args.index, FeatureSet(args.features), args.folder)))
        else:
            _query(args)


def _query(args: argparse.Namespace) -> None:
    from ..deploy import gallery
    from ..deploy import matches as lists
    from ..deploy.feature_set import FeatureSet
    from ..deploy.threshold import Threshold

    import_modules(args.modules)
    for path in filter(None, (args.output, args.picture)):
        check_output(path)
    threshold = Threshold.read(args.threshold) if args.threshold is not None else None
    index = gallery.Index.load(args.index)
    if args.features:
        names, features = gallery.feature_queries(index, FeatureSet(args.features))
    else:
        names, features = gallery.image_queries(index, args.images, args.checkpoint, device=args.device)
    matches = index.matches(names, features, args.k, args.effort, folder=args.folder or "")
    if threshold is not None:
        matches = gallery.answers(index, matches, threshold)
    if args.output:
        lists.write_matches(matches, args.output)
    else:
        print(lists.table(matches))
    if args.picture:
        from ..reports import ranked_lists

        folder = args.folder or Path(index.about.folder)
        if lost := [m.path for one in matches for m in one if not m.nobody and not (folder / m.path).is_file()]:
            print(
                f"{len(lost)} of the images found are not there, such as {folder / lost[0]}: --folder names the place "
                "of the gallery's images if they were moved",
                file=sys.stderr,
            )
        ranked_lists.draw(matches, args.picture, folder=str(folder))
