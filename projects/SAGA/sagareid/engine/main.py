"""From a training command to its processes and results."""

from __future__ import annotations

import logging
import os

from fastreid.utils import comm

from .. import compat
from ..cli import import_modules
from ..config_files import find_config
from ..data.datasets.build import DataSets
from ..files import write_json
from . import plans, readiness, stages
from .launch import is_first, launch, number_of_processes
from .ownership import FolderLock, owned_folders
from .results import RESULTS, beside_earlier, table

__all__ = ["launch_runs"]

logger = logging.getLogger(__name__)


def launch_runs(args) -> None:
    """What the arguments of `options.training_parser` ask for, on as many processes; errors are the caller's to
    show."""
    if not args.config_file:
        raise ValueError("name a config with --config-file, such as configs/SAGA/quickstart.yml")
    args.config_file = str(find_config(args.config_file))
    import_modules(args.modules)
    runs = plans.plan(args.config_file, args.opts, args.stage, last=args.eval_only)
    datasets = DataSets()
    processes = number_of_processes(args)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:  # torchrun ends the others
        for sentence in plans.without_effect(args.config_file, args.opts):
            logger.warning(sentence)
        # before any process starts
        readiness.check_machine(runs, datasets, eval_only=args.eval_only, processes=processes)
    folders = [run.folder for run in runs] if is_first(args) else []
    with owned_folders(folders, fresh=not (args.resume or args.eval_only)) as locks:
        launch(_work, (runs, datasets, args, locks), args, device=runs[0].cfg.MODEL.DEVICE)


def _work(runs: list[plans.Run], datasets: DataSets, args, locks: list[FolderLock]) -> None:
    """What each process of the job does. locks: held as long as one of them lives."""
    import_modules(args.modules)
    try:
        with compat.quiet_host():
            _run(runs, datasets, args)
    finally:
        compat.close_logs()


def _run(runs: list[plans.Run], datasets: DataSets, args) -> None:
    if args.eval_only:
        results = [stages.evaluate(runs[-1], args, datasets)]
    else:
        results = stages.run_all(runs, args, datasets)
    if not comm.is_main_process():
        return
    file = runs[-1].whole_folder / ("evaluation.json" if args.eval_only else RESULTS)
    write_json(file, results if args.eval_only else beside_earlier(results, file, runs[-1].siblings))
    print(f"\n{table(results)}\n\n{file}")
