"""The command line of tools/train_net.py."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from fastreid.engine import default_argument_parser
from fastreid.utils import comm

from .. import compat
from ..cli import add_import_argument, add_traceback_argument, errors_in_one_line, import_modules
from ..data.datasets.build import DataSets
from ..files import write_json
from . import stages
from .launch import AUTO, launch, number_of_processes

__all__ = ["argument_parser", "launch_runs", "main"]


def argument_parser():
    """FastReID's parser, with --stage, --import, --dist-timeout and --traceback."""
    parser = argparse.ArgumentParser(
        description="Train and evaluate the stages of a configuration.",
        parents=[default_argument_parser()],
        conflict_handler="resolve",  # options with the name of FastReID's replace it
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="processes on this machine, each with a GPU of its own; on the CPU with MODEL.DEVICE cpu",
    )
    parser.add_argument(
        "--dist-url",
        default=AUTO,
        metavar="URL",
        help="where several machines meet: tcp://HOST:PORT of machine 0 (default: a free port of this machine)",
    )
    parser.add_argument(
        "--dist-timeout",
        type=float,
        default=1800.0,
        metavar="SECONDS",
        help="how long a process waits for another that is silent; more than the evaluation's ranking, which one process does "
        "(default: %(default)g)",
    )
    parser.add_argument(
        "--stage", default=None, metavar="NAME", help="run only this stage of the config, or several: A,B"
    )
    add_import_argument(parser)
    add_traceback_argument(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Parse, plan, launch; an error ends in one message and exit code 1, Ctrl-C in 130."""
    args = argument_parser().parse_args(argv)
    with errors_in_one_line(args, after_interrupt="the same command with --resume goes on from the last whole epoch"):
        if not args.config_file:
            raise ValueError("name a config with --config-file, such as configs/SAGA/quickstart.yml")
        import_modules(args.modules)
        launch_runs(args)


def launch_runs(args) -> None:
    """What the parsed arguments ask for, on as many processes; errors are the caller's to show."""
    runs, datasets = stages.plan(args.config_file, args.opts, args.stage), DataSets()
    processes = number_of_processes(args)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # torchrun ends the others
        stages.check_machine(runs, datasets, eval_only=args.eval_only, processes=processes)  # before any process starts
    launch(_work, (runs, datasets, args), args, device=runs[0].cfg.MODEL.DEVICE)


def _work(runs: list[stages.Run], datasets: DataSets, args) -> None:
    """What each process of the job does."""
    import_modules(args.modules)
    try:
        with compat.quiet_host():
            _run(runs, datasets, args)
    finally:
        compat.close_logs()


def _run(runs: list[stages.Run], datasets: DataSets, args) -> None:
    if args.eval_only:
        results = [stages.evaluate(runs[-1], args, datasets)]
    else:
        results = stages.run_all(runs, args, datasets)
    if not comm.is_main_process():
        return
    folder = runs[-1].folder.parent if runs[-1].name else runs[-1].folder
    name = "evaluation.json" if args.eval_only else "results.json"
    write_json(folder / name, results)
    print(f"\n{stages.table(results)}\n\n{folder / name}")
