#!/usr/bin/env python
"""Draw ranked lists and the anchors' attention of a trained run.

python tools/visualize.py logs/SAGA/quickstart/anchors
"""

import argparse
import sys
from pathlib import Path

import sagareid  # noqa: F401  (registers, and lets the host import)
from sagareid.analysis import visualize
from sagareid.engine.inference import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a run, or a .pth checkpoint")
    parser.add_argument("-o", "--output", type=Path, help="picture (default: RUN/ranked_lists.png)")
    parser.add_argument("--dataset", help="test set (default: the first of the run)")
    parser.add_argument("--queries", type=int, default=8, help="rows (default: %(default)s)")
    parser.add_argument("--device", help="cpu or cuda (default: the run's)")
    args = parser.parse_args()
    folder = args.run if args.run.is_dir() else args.run.parent
    output = args.output or folder / "ranked_lists.png"
    try:
        cfg, model = load_model(args.run, device=args.device)
        gallery = visualize.extract_test_set(cfg, model, args.dataset or cfg.DATASETS.TESTS[0])
        visualize.draw_ranked_lists(cfg, model, gallery, visualize.ranked_lists(gallery, args.queries), output)
    except (OSError, ValueError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    print(output)


if __name__ == "__main__":
    main()
