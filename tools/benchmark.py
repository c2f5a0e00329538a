#!/usr/bin/env python
"""Time steps and extraction against the same computation done the plain way, with random weights.

python tools/benchmark.py --size tiny
python tools/benchmark.py --size base --cases extraction bfloat16 loading --output base.json
"""

import shlex
import sys
from pathlib import Path

import torch

import sagareid  # noqa: F401  (registers, and lets the host import)
from sagareid.benchmarks import steps, steps_table
from sagareid.cli import errors_in_one_line, tool_parser
from sagareid.files import check_output, write_json
from sagareid.hardware import pick_device

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "SAGA"


def main() -> None:
    parser = tool_parser(__doc__)
    parser.add_argument("--size", choices=tuple(steps.SIZES), default="tiny", help="default: %(default)s")
    parser.add_argument("--cases", nargs="+", choices=steps.CASES, default=steps.CASES, help="default: all")
    parser.add_argument("--rounds", type=int, help="pairs of samples of a case (default: by size)")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own choice)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="write the measurements here, as JSON")
    parser.add_argument("--smoke", action="store_true", help="run the code, not a measurement: tiny, in seconds")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    with errors_in_one_line(args, after_interrupt="--output holds what was measured by then"):
        if args.output:
            check_output(args.output)
        result = steps.run(
            size=steps.SMOKE if args.smoke else steps.SIZES[args.size],
            name="smoke" if args.smoke else args.size,
            configs=CONFIGS,
            cases=args.cases,
            rounds=args.rounds,
            device=pick_device(args.device),
            command=shlex.join(["python", "tools/benchmark.py", *sys.argv[1:]]),
            done=lambda result: args.output and write_json(args.output, steps_table.as_json(result)),
        )
        print(steps_table.table(result))


if __name__ == "__main__":
    main()
