#!/usr/bin/env python
"""Check and measure everything on a GPU in about ten minutes; a dry run on the CPU in two.

python tools/gpu_check.py -o gpu_check
python tools/gpu_check.py -o gpu_check --steps base,compile --budget 240
python tools/gpu_check.py -o dry_run --device cpu --size tiny
"""

import shlex
import sys
from pathlib import Path

import sagareid  # noqa: F401  (registers, and lets FastReID import)
from sagareid.benchmarks import gpu_check
from sagareid.benchmarks.gpu_steps import SCALES, STEPS
from sagareid.cli import errors_in_one_line, tool_parser
from sagareid.files import check_output
from sagareid.hardware import pick_device

REPO = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of results.json, table.md and log.txt")
    parser.add_argument("--steps", default=",".join(STEPS), help="names with commas between (default: %(default)s)")
    parser.add_argument(
        "--budget", type=float, default=570.0, metavar="SECONDS", help="for all steps (default: %(default)g)"
    )
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a dry run (default: %(default)s)")
    parser.add_argument("--size", choices=tuple(SCALES), default="full", help="default: %(default)s")
    args = parser.parse_args()
    with errors_in_one_line(args, after_interrupt="the output folder holds what was found by then"):
        steps = args.steps.split(",")
        unknown = [name for name in steps if name not in STEPS]
        if unknown:
            raise ValueError(f"no step {', '.join(unknown)}; expected {', '.join(STEPS)}")
        results = gpu_check.run(
            steps=steps,
            device=pick_device(args.device),
            size=args.size,
            budget=args.budget,
            repo=REPO,
            output=check_output(args.output.absolute(), folder=True),
            command=shlex.join(["python", "tools/gpu_check.py", *sys.argv[1:]]),
        )
        print(gpu_check.table(results))
        if any(step["status"] != "passed" for step in results["steps"].values()):
            sys.exit(1)


if __name__ == "__main__":
    main()
