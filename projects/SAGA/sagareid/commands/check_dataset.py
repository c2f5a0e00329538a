"""Check a data set before training on it: counts, files that cannot be read, duplicates, queries without a match.

    python tools/check_dataset.py Market1501
    python tools/check_dataset.py shop --config-file shop.yml --sheets logs/check

NAME is a registered data set, or one of DATASETS.CUSTOM in the config or in the trailing KEY VALUE pairs. Every image
is read whole, as a run reads it. Exit code 0: nothing is wrong; 1: something is, and is listed; 2: the data set cannot
be checked.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from ..cli import add_config_pairs, add_import_argument, errors_in_one_line, import_modules, tool_parser


def argument_parser() -> argparse.ArgumentParser:
    parser = tool_parser(__doc__)
    parser.add_argument(
        "name", metavar="NAME", help="a registered data set under FASTREID_DATASETS, or one of DATASETS.CUSTOM"
    )
    parser.add_argument("--config-file", help="config file with DATASETS.CUSTOM (default: none)")
    parser.add_argument(
        "--sheets", metavar="FOLDER", help="folder for a contact sheet of each split (default: none is drawn)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON with every problem instead of the table")
    parser.add_argument("--workers", type=int, help="threads that read images (default: one per CPU core)")
    add_import_argument(parser)
    add_config_pairs(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = argument_parser().parse_intermixed_args(argv)
    with errors_in_one_line(args, code=2):
        from ..config_merge import read_config
        from ..data import check_dataset
        from ..data.contact_sheet import contact_sheets

        import_modules(args.modules)
        cfg = read_config(args.config_file, args.opts)
        checked = check_dataset.check_dataset(cfg, args.name, args.workers)
        report = checked.report
        print(json.dumps(report.to_dict(), indent=1) if args.json else report.table())
        for path in contact_sheets(checked.items, args.sheets, checked.names) if args.sheets else ():
            print(path, file=sys.stderr)
    sys.exit(bool(report.problems))
