#!/usr/bin/env python
"""Draw the SyntheticPedestrians data set: `python tools/draw_pedestrians.py --root datasets`.

Training draws the default by itself; this is for other sizes, and for a tiny one in tests:
`python tools/draw_pedestrians.py --root /tmp/tiny --train-ids 8 --test-ids 6 --gallery-distractors 30`.
"""

import logging

from sagareid.cli import add_dataclass_arguments, dataclass_of, errors_in_one_line, tool_parser
from sagareid.synthetic import drawn


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "--root", default="datasets", help="folder of data sets, as FASTREID_DATASETS (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per core where that pays)")
    parser.add_argument("--force", action="store_true", help="replace a data set that is there")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels (default: 96 48)")
    add_dataclass_arguments(parser, drawn.Spec, skip=("height", "width"))  # --size sets both
    args = parser.parse_args()
    size = dict(zip(("height", "width"), args.size or ()))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with errors_in_one_line(args, after_interrupt="nothing was left behind"):
        spec = dataclass_of(drawn.Spec, args, **size)
        print(drawn.draw_dataset(args.root, spec, workers=args.workers, force=args.force))


if __name__ == "__main__":
    main()
