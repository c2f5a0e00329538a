"""Search a gallery of extracted features for the images that look like a query.

`features` is what tools/extract.py writes. A gallery is a folder (FAISS), milvus:FILE.db (Milvus Lite) or
milvus:http://HOST:PORT/COLLECTION (a Milvus server).

    python tools/search.py build features -o index
    python tools/search.py add index more.parquet
    python tools/search.py add index shards --watch        # while tools/extract.py ... -o shards is at work
    python tools/search.py query index person.jpg --checkpoint logs/SAGA/quickstart/anchors -k 5 --picture found.png
    python tools/search.py query index --features queries.npz -o matches.json
    python tools/search.py query index person.jpg --checkpoint logs/SAGA/quickstart/anchors --threshold calibration.json
    python tools/search.py query index --features queries.npz --where "camera in (3, 4) and time between 8:00 and 9:00"
    python tools/search.py delete index --where "track == 17"
    python tools/search.py expire index --older-than 30d
    python tools/search.py describe index
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_import_argument, add_traceback_argument, errors_in_one_line, import_modules, tool_parser
from ..deploy.options import KINDS
from ..files import check_output

GALLERY = "the gallery: a folder, milvus:FILE.db or milvus:http://HOST:PORT/COLLECTION"
FEATURES = "extracted features: .npz, .parquet or a folder of shards"
FOLDER = "where the gallery's images are now, if they were moved (default: as extracted)"
FILTER = 'filter such as "camera in (3, 4) and time between 8:00 and 9:00" (default: all images)'


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    build = commands.add_parser("build", help="make a gallery of features")
    build.add_argument("features", type=Path, help=FEATURES)
    build.add_argument("-o", "--output", required=True, metavar="GALLERY", help=GALLERY)
    _add_index_arguments(build)

    add = commands.add_parser("add", help="add features to a gallery; images that it has already stay as they are")
    add.add_argument("index", help=GALLERY)
    add.add_argument("features", type=Path, help=FEATURES)
    add.add_argument("--folder", type=Path, help=FOLDER)
    add.add_argument(
        "--replace", action="store_true", help="put new features in the place of earlier ones of the same image"
    )
    add.add_argument(
        "--watch",
        action="store_true",
        help="add the shards of a running tools/extract.py as they are finished, each once, until all are there; the "
        "gallery is made if there is none",
    )
    add.add_argument(
        "--every",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="time between two looks of --watch (default: %(default)g s)",
    )
    _add_index_arguments(add)

    query = commands.add_parser("query", help="ranked lists of images or of features")
    query.add_argument("index", help=GALLERY)
    _add_query_arguments(query)

    delete = commands.add_parser("delete", help="delete images by id, or by a filter")
    delete.add_argument("index", help=GALLERY)
    delete.add_argument("ids", nargs="*", help="ids of images: their paths, unless the features had a column id")
    delete.add_argument("--where", default="", metavar="FILTER", help="delete what passes this filter (default: none)")

    expire = commands.add_parser("expire", help="delete images by their age")
    expire.add_argument("index", help=GALLERY)
    expire.add_argument(
        "--older-than",
        required=True,
        metavar="AGE",
        help="a number and s, m, h, d or w, such as 30d, before now by the column time",
    )
    for command in (delete, expire):
        command.add_argument(
            "--erase", action="store_true", help="write the files anew at once, so that nothing deleted is left in them"
        )

    describe = commands.add_parser("describe", help="what a gallery holds")
    describe.add_argument("index", help=GALLERY)
    describe.add_argument("--where", default="", metavar="FILTER", help=f"also count what passes a {FILTER}")
    describe.add_argument("--json", action="store_true", help="print all that is known of it, as JSON")
    for command in (build, add, query, delete, expire, describe):
        add_import_argument(command)
        add_traceback_argument(command)
    return parser


def _add_index_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--index",
        dest="index_kind",
        choices=("auto", *KINDS),
        default="auto",
        help="kind of index of a new gallery (default: auto, by the number of images and --memory)",
    )
    parser.add_argument(
        "--memory",
        type=float,
        default=4.0,
        metavar="GIB",
        help="memory that the index may take in a search (default: %(default)g GiB)",
    )


def _add_query_arguments(query: argparse.ArgumentParser) -> None:
    query.add_argument("images", type=Path, nargs="*", help="query images, or folders of them; needs --checkpoint")
    query.add_argument(
        "--checkpoint",
        "--run",
        type=Path,
        help="model that extracted the gallery: folder of a finished run, .pth checkpoint, or name of a model "
        "(default: none)",
    )
    query.add_argument(
        "--features", type=Path, help="extracted features of the queries, instead of images (default: none)"
    )
    query.add_argument(
        "--device", default="auto", help="device of --checkpoint: auto, cpu, cuda ... (default: %(default)s)"
    )
    query.add_argument("-k", type=int, default=10, help="matches per query (default: %(default)s)")
    query.add_argument("--where", default="", metavar="FILTER", help=FILTER)
    query.add_argument(
        "--effort",
        type=int,
        help="cells (ivfpq) or candidates (hnsw) to look at: more are slower and miss less (default: the gallery's)",
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
    query.add_argument("--folder", type=Path, help=FOLDER)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(argv)
    if args.command == "query" and bool(args.features) == bool(args.images and args.checkpoint):
        parser.error("query: give images and --checkpoint, or --features")
    if args.command == "delete" and not (args.ids or args.where):
        parser.error("delete: give ids, or --where")
    with errors_in_one_line(args, after_interrupt="the gallery is as it was, and the same command begins again"):
        import_modules(args.modules)
        {
            "build": _build,
            "add": _add,
            "query": _query,
            "delete": _delete,
            "expire": _delete,
            "describe": _describe,
        }[args.command](args)


def _build(args: argparse.Namespace) -> None:
    from ..deploy import gallery

    scheme, place = gallery.split(args.output)
    if scheme == "faiss":
        check_output(place, folder=True)
    features = gallery.FeatureSet(args.features)
    built = gallery.build(features, args.output, kind=args.index_kind, memory_gib=args.memory)
    print(gallery.summary(built))
    if not built.exact and isinstance(built, gallery.Measurable):
        print(f"recall@10 against exact search, a sample of its images: {built.recall():.3f}")


def _add(args: argparse.Namespace) -> None:
    from ..deploy import gallery

    if args.watch:
        _watch(args)
        return
    crops = gallery.open_gallery(args.index)
    added = gallery.add(crops, gallery.FeatureSet(args.features), args.folder, replace=args.replace)
    print(f"{added.added} added, {added.replaced} of them in place of earlier ones; {added.present} were there already")
    print(gallery.summary(crops))


def _watch(args: argparse.Namespace) -> None:
    from ..deploy import gallery
    from ..deploy.gallery.watch import watch

    options = {"replace": args.replace, "kind": args.index_kind, "memory_gib": args.memory, "wait": args.every}
    for name, added in watch(args.index, args.features, args.folder, **options):
        print(f"{name}: {added.added} added, {added.present} were there already", flush=True)
    print(gallery.summary(gallery.open_gallery(args.index)))


def _delete(args: argparse.Namespace) -> None:
    from ..deploy import gallery
    from ..deploy.gallery.columns import parse_age

    crops = gallery.open_gallery(args.index)
    if args.command == "expire":
        count = crops.expire(parse_age(args.older_than))
    else:
        count = crops.delete(args.ids, where=args.where)
    if args.erase:
        crops.compact()
    print(f"{count} images deleted, {crops.count()} left")


def _describe(args: argparse.Namespace) -> None:
    from ..deploy import gallery

    crops = gallery.open_gallery(args.index)
    about = crops.describe()
    if args.where:
        about["passing"] = crops.count(args.where)
    if args.json:
        print(json.dumps(about, indent=1))
        return
    print(gallery.summary(crops))
    if args.where:
        print(f"{about['passing']} images pass {args.where}")


def _query(args: argparse.Namespace) -> None:
    from ..deploy import gallery
    from ..deploy import matches as lists
    from ..deploy.threshold import Threshold

    for path in filter(None, (args.output, args.picture)):
        check_output(path)
    threshold = Threshold.read(args.threshold) if args.threshold is not None else None
    crops = gallery.open_gallery(args.index)
    crops.check_filter(args.where)
    if args.features:
        names, features = gallery.feature_queries(crops, gallery.FeatureSet(args.features))
    else:
        names, features = gallery.image_queries(crops, args.images, args.checkpoint, device=args.device)
    matches = gallery.matches(
        crops, names, features, args.k, where=args.where, effort=args.effort, folder=args.folder or ""
    )
    if threshold is not None:
        matches = gallery.answers(crops, matches, threshold)
    if args.output:
        lists.write_matches(matches, args.output)
    else:
        print(lists.table(matches))
    if args.picture:
        from ..reports import ranked_lists

        folder = args.folder or Path(crops.folder)
        if lost := [m.path for one in matches for m in one if not m.nobody and not (folder / m.path).is_file()]:
            print(
                f"{len(lost)} of the images found are not there, such as {folder / lost[0]}: --folder names the place "
                "of the gallery's images if they were moved",
                file=sys.stderr,
            )
        ranked_lists.draw(matches, args.picture, folder=str(folder))
