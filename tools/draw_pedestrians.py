#!/usr/bin/env python
"""Draw the SyntheticPedestrians data set: `python tools/draw_pedestrians.py --root datasets`.

Training draws the default by itself; this is for other sizes, and for a tiny one in tests:
`python tools/draw_pedestrians.py --root /tmp/tiny --train-ids 8 --test-ids 6 --gallery-distractors 30`.
"""

import argparse
import logging

from sagareid.cli import add_dataclass_arguments
from sagareid.data import synthetic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--root", default="datasets", help="folder of data sets, as FASTREID_DATASETS (default: %(default)s)"
    )
    parser.add_argument("--workers", type=int, help="processes (default: one per core where that pays)")
    parser.add_argument("--force", action="store_true", help="replace a data set that is there")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="pixels (default: 96 48)")
    add_dataclass_arguments(parser, synthetic.Spec, skip=("height", "width"))  # --size sets both
    args = vars(parser.parse_args())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    root, workers, force, size = (args.pop(k) for k in ("root", "workers", "force", "size"))
    if size:
        args["height"], args["width"] = size
    try:
        print(synthetic.draw_dataset(root, synthetic.Spec(**args), workers=workers, force=force))
    except (ValueError, OSError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
