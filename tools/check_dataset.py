#!/usr/bin/env python
"""Check a data set before training on it: counts, files that cannot be read, duplicates, queries without a match.

    python tools/check_dataset.py Market1501
    python tools/check_dataset.py shop --config-file shop.yml --sheets logs/check

NAME is a registered data set, or one of DATASETS.CUSTOM in the config or in the trailing KEY VALUE pairs. Every image is
decoded whole. Exit code 0: nothing is wrong; 1: something is, and is listed; 2: the data set cannot be checked.
"""

import argparse
import json
import sys

import sagareid  # noqa: F401  (registers, and lets the host import)
from sagareid.analysis import check_dataset
from sagareid.cli import add_import_argument, import_modules
from sagareid.engine.stages import read_config


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help="data set, under FASTREID_DATASETS")
    parser.add_argument("--config-file", help="where DATASETS.CUSTOM is")
    parser.add_argument("--sheets", metavar="FOLDER", help="draw a contact sheet of each split there")
    parser.add_argument("--json", action="store_true", help="print JSON with every problem instead of the table")
    parser.add_argument("--workers", type=int, help="threads that decode (default: one a core)")
    add_import_argument(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys and their values")
    args = parser.parse_intermixed_args()
    try:
        import_modules(args.modules)
        cfg = read_config(args.config_file, args.opts)
        report, items = check_dataset.check_dataset(cfg, args.name, args.workers)
        print(json.dumps(report.to_dict(), indent=1) if args.json else report.table())
        for path in check_dataset.contact_sheets(items, args.sheets) if args.sheets else ():
            print(path, file=sys.stderr)
    except (OSError, RuntimeError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
