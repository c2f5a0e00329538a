#!/usr/bin/env python
"""Time steps and extraction against the same computation done the plain way, with random weights.

    python tools/benchmark.py --size tiny
    python tools/benchmark.py --size base --cases extraction bfloat16 loading --output base.json
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import sagareid  # noqa: F401  (registers, and lets the host import)
import torch
from sagareid.analysis import benchmark

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "SAGA"


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=tuple(benchmark.SIZES), default="tiny", help="default: %(default)s")
    parser.add_argument("--cases", nargs="+", choices=benchmark.CASES, default=benchmark.CASES, help="default: all")
    parser.add_argument("--rounds", type=int, help="pairs of samples of a case (default: by size)")
    parser.add_argument("--threads", type=int, help="of torch (default: torch's own choice)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: %(default)s")
    parser.add_argument("--output", type=Path, help="write the figures here, as JSON")
    parser.add_argument("--smoke", action="store_true", help="run the code, not a measurement: tiny, in seconds")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        result = benchmark.run(
            size=benchmark.SMOKE if args.smoke else benchmark.SIZES[args.size],
            name="smoke" if args.smoke else args.size,
            configs=CONFIGS,
            cases=args.cases,
            rounds=args.rounds,
            device=args.device,
            command=shlex.join(["python", "tools/benchmark.py", *argv]),
        )
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(benchmark.table(result))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(benchmark.as_json(result), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
