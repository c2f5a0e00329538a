"""Hand a trained run on by name: weights, configuration and a model card in one folder, and on a hub if asked.

    python tools/publish.py logs/SAGA/quickstart/anchors --license apache-2.0
    python tools/publish.py logs/SAGA/quickstart/anchors --license apache-2.0 --half --evaluate SyntheticPedestrians
    python tools/publish.py logs/SAGA/quickstart/anchors --license apache-2.0 --push ORG/MODEL
    python tools/publish.py published --push ORG/MODEL

`Extractor.from_pretrained("published")`, or "hf-hub:ORG/MODEL", loads it; so does every tool that takes a run. Read the
card before you push: it says what the run left, and nothing of what you know.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_import_argument, command_line, errors_in_one_line, import_modules, tool_parser


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "run",
        type=Path,
        help="folder of a finished run, or a .pth checkpoint; with --push, also a folder written before",
    )
    parser.add_argument("-o", "--output", type=Path, help="folder to write (default: RUN/published)")
    parser.add_argument(
        "--license",
        default="",
        help="licence of the weights, which you choose: apache-2.0, mit, cc-by-nc-4.0 ... (default: none, an error)",
    )
    parser.add_argument("--license-link", default="", help="its address; needed with --license other (default: none)")
    parser.add_argument("--name", default="", help="what the card calls the model (default: the folder's name)")
    parser.add_argument(
        "--half", action="store_true", help="store parameters as float16, half the size (default: float32)"
    )
    parser.add_argument(
        "--evaluate",
        default="",
        metavar="DATASET",
        help="test set to rank with the run's weights and with the stored ones, for the card (default: none)",
    )
    parser.add_argument(
        "--study",
        type=Path,
        help="folder of an occlusion study of this run, for the card (default: one in the run's folder or beside it)",
    )
    parser.add_argument("--not-for", default="", help="what the model is not for, for the card (default: nothing more)")
    parser.add_argument("--push", default="", metavar="ORG/MODEL", help="model of the hub to push to (default: none)")
    parser.add_argument("--private", action="store_true", help="create the model of --push as a private one")
    add_import_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = argument_parser()
    args = parser.parse_args(argv)
    with errors_in_one_line(args):
        from ..deploy.load import own_folder
        from ..reports import publish
        from ..weights import PUBLISHED

        folder, written = args.run, (args.run / PUBLISHED).is_file()  # by an earlier call
        if written and (args.output or args.license or args.half or args.evaluate or args.study or not args.push):
            parser.error(f"{args.run} was written by this command; it can be pushed as it is, by --push alone")
        import_modules(args.modules)
        if not written:
            folder = args.output or own_folder(args.run, "name the output by -o") / "published"
            files = publish.save_pretrained(
                args.run,
                folder,
                license=args.license,
                license_link=args.license_link,
                name=args.name or args.push.rpartition("/")[2],
                half=args.half,
                evaluate=args.evaluate,
                study=args.study,
                not_for=args.not_for,
                repository=args.push,
                command=command_line(),
            )
            print(*files, sep="\n")
        if args.push:
            print(publish.push(folder, args.push, private=args.private))
