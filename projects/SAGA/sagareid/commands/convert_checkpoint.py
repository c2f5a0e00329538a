"""Convert checkpoints between published layouts and ours.

    python tools/convert_checkpoint.py published.pth ours.pth

Reads SAGA-ReID (any stage and variant), CLIP-ReID's ViTs and baseline, CLIP (OpenAI or open_clip), the towers of
TransReID, TransReID-SSL, PersonViT, HAP, SOLIDER and torchreid, and our own files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..cli import errors_in_one_line, tool_parser
from ..errors import printable
from ..files import check_output


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument("input", help="checkpoint to read")
    parser.add_argument("output", help="checkpoint to write")
    parser.add_argument(
        "--to",
        choices=("ours", "published"),
        help="layout to write (default: published for a file of ours, ours for any other)",
    )
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="image size in pixels to adapt to (default: INPUT's)",
    )
    parser.add_argument("--stride", type=int, help="patch stride in pixels to adapt to (default: INPUT's)")
    parser.add_argument(
        "--from-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="image size of INPUT (default: found)"
    )
    parser.add_argument("--from-stride", type=int, help="patch stride of INPUT (default: found)")
    parser.add_argument(
        "--head", choices=("cls", "prompts"), help="head of a file of SAGA-ReID's first two stages (default: found)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args):
        from ..interchange import convert

        check_output(args.output)
        result, side, count = convert.convert_file(
            args.input,
            args.output,
            to=args.to,
            size=args.size,
            stride=args.stride,
            from_size=args.from_size,
            from_stride=args.from_stride,
            head=args.head,
        )
        print(f"{printable(args.input)}: {convert.describe(result)}")
        print(f"{printable(args.output)}: {side}, {count} tensors")
        for note in result.notes:
            print(f"note: {printable(note)}")
        print("config keys that fit it:")
        for key, value in convert.config_keys(result).items():
            print(f"  {key} {printable(str(value))}")
