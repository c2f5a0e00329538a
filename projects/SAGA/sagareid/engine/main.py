"""From a training command to its processes and results."""

from __future__ import annotations

import os

from fastreid.utils import comm

from .. import compat
from ..cli import import_modules
from ..config_files import find_config
from ..data.datasets.build import DataSets
from ..files import write_json
from . import stages
from .launch import launch, number_of_processes

__all__ = ["launch_runs"]


def launch_runs(args) -> None:
    """What the arguments of `options.training_parser` ask for, on as many processes; errors are the caller's to show."""
    if not args.config_file:
        raise ValueError("name a config with --config-file, such as configs/SAGA/quickstart.yml")
    args.config_file = str(find_config(args.config_file))
    import_modules(args.modules)
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
