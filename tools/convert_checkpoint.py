#!/usr/bin/env python
"""Convert checkpoints between published layouts and ours: `python tools/convert_checkpoint.py published.pth ours.pth`.

Reads SAGA-ReID (any stage and variant), CLIP-ReID's ViTs and baseline, CLIP (OpenAI or open_clip) and our own files.
"""

import argparse
import sys

from sagareid.engine import convert


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--to", choices=("ours", "published"), help="default: the other side of what INPUT is")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="adapt to this input size")
    parser.add_argument("--stride", type=int, help="adapt to this patch stride")
    parser.add_argument("--from-size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="what INPUT was made for")
    parser.add_argument("--from-stride", type=int, help="what INPUT was made for")
    parser.add_argument("--head", choices=("cls", "prompts"), help="head for a file of SAGA-ReID's first two stages")
    args = vars(parser.parse_args())
    source, target = args.pop("input"), args.pop("output")
    try:
        result, side, count = convert.convert_file(source, target, **args)
    except (ValueError, OSError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"{source}: {convert.describe(result)}")
    print(f"{target}: {side}, {count} tensors")
    for note in result.notes:
        print(f"note: {note}")
    print("config keys that fit it:")
    for key, value in convert.config_keys(result).items():
        print(f"  {key} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
