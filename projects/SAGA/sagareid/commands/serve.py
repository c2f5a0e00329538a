"""A web page and a JSON API over a gallery: who is this?

Drop in an image, or draw a box around a person in a frame; filter by camera and time; see the most similar images,
what the threshold says of them, where the model looks, and when each camera saw the person. The page is on this machine
alone unless --host says otherwise; then a token is needed, which is in the address that is printed.

    python tools/serve.py index --run logs/SAGA/quickstart/anchors
    python tools/serve.py index --run logs/SAGA/quickstart/anchors --threshold calibration.json
    curl --data-binary @person.jpg "http://127.0.0.1:8766/api/query?k=5&camera=3"
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..cli import add_import_argument, errors_in_one_line, import_modules, tool_parser
from ..serving.options import HOST, PORT, TOKEN_VARIABLE, Limits


def add_gallery_arguments(parser: argparse.ArgumentParser) -> None:
    """The gallery and the model that the page is about."""
    parser.add_argument("gallery", help="the gallery, as the build of a search made it")
    parser.add_argument(
        "--checkpoint",
        "--run",
        type=Path,
        required=True,
        help="model that extracted the gallery: folder of a finished run, or a .pth checkpoint",
    )
    parser.add_argument(
        "--device", default="auto", help="device of the model: auto, cpu, cuda ... (default: %(default)s)"
    )


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    add_gallery_arguments(parser)
    parser.add_argument(
        "--threshold",
        metavar="FILE_OR_NUMBER",
        help="say nobody below it: a file of tools/calibrate.py, or a similarity (default: nothing is said)",
    )
    parser.add_argument(
        "--folder", type=Path, help="where the gallery's images are now, if they were moved (default: as extracted)"
    )
    parser.add_argument(
        "--host",
        default=HOST,
        help="address to listen on; beyond this machine a token is needed: the value of the environment's "
        f"{TOKEN_VARIABLE}, or one that is drawn and printed (default: %(default)s)",
    )
    parser.add_argument(
        "--port", type=int, default=PORT, help="port to listen on; 0: a free one (default: %(default)s)"
    )
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name by which browsers may call the server, beside IP addresses and localhost (default: none)",
    )
    parser.add_argument(
        "--max-upload",
        type=float,
        default=Limits.max_bytes / 2**20,
        metavar="MIB",
        help="largest upload (default: %(default)g MiB)",
    )
    parser.add_argument(
        "--max-megapixels",
        type=float,
        default=Limits.max_pixels / 1e6,
        help="largest image, in million pixels (default: %(default)g)",
    )
    add_import_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args, after_interrupt="the page is closed"):
        from ..serving import require_extra

        require_extra()
        if args.max_upload <= 0 or args.max_megapixels <= 0 or not 0 <= args.port < 65536:
            raise ValueError("--max-upload and --max-megapixels are more than 0, --port is from 0 to 65535")
        from ..deploy.threshold import Threshold
        from ..serving import server

        import_modules(args.modules)
        threshold = Threshold.read(args.threshold) if args.threshold is not None else None
        server.serve(
            server.open_searcher(args.gallery, args.checkpoint, device=args.device),
            host=args.host,
            port=args.port,
            folder=args.folder or "",
            threshold=threshold,
            names=args.allow_host,
            limits=Limits(int(args.max_upload * 2**20), int(args.max_megapixels * 1e6)),
            started=lambda address: print(f"{address}    (Ctrl-C ends it)", flush=True),
        )
