"""Whether this machine can run a plan: data, devices, folders to write to, batches that processes can share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from fastreid.data.datasets import DATASET_REGISTRY

from .. import compat
from ..data.datasets.build import DataSets
from ..files import DamagedFile, check_output
from ..hardware import pick_device
from .feature_cache import cache_folder
from .plans import Run
from .results import RESULTS, earlier

__all__ = ["check_machine"]


def check_machine(
    runs: Sequence[Run], datasets: DataSets | None = None, *, eval_only: bool = False, processes: int = 1
) -> None:
    """See that every run finds its data, which can be trained and tested on, its device, and a folder to write to.

    Draws the synthetic data set where it is not. Files' names are read, images are not.

    Args:
        datasets: reads them, and keeps them for the runs.
        eval_only: no training data is needed.
        processes: of the whole job; they share each batch.

    Raises:
        ValueError: every problem found, one a line.
    """
    problems: list[str] = []
    datasets = datasets or DataSets()
    if not eval_only:
        problems += dict.fromkeys(problem for r in runs for problem in _drawn_validation(r.cfg))
    if problems:  # before anything is drawn
        raise ValueError("\n  ".join(problems))
    readers = {"TESTS": datasets.test}
    if not eval_only:
        readers |= {"NAMES": datasets.training, "VALIDATION": datasets.test}
    for cfg, read, name in (
        (r.cfg, read, name) for r in runs for key, read in readers.items() for name in r.cfg.DATASETS[key]
    ):
        try:
            read(cfg, name)
        except (OSError, RuntimeError, ValueError) as error:
            problem = str(error) if name in str(error) else f"{name}: {error}. Set FASTREID_DATASETS"
            if problem not in problems:
                problems.append(problem)
    for device in dict.fromkeys(r.cfg.MODEL.DEVICE for r in runs):
        try:
            pick_device(device)
        except ValueError as error:
            problems.append(str(error))
    problems += _unwritable(runs, eval_only)
    if not eval_only:
        problems += _not_installed(runs)
    if not eval_only and not problems:
        try:
            earlier(runs[0].whole_folder / RESULTS)
        except DamagedFile as error:
            problems.append(str(error))
    if not eval_only:
        if any(not r.cfg.DATASETS.NAMES for r in runs):
            problems.append("DATASETS.NAMES is empty; expected one training set or more (--eval-only needs none)")
        problems += dict.fromkeys(problem for r in runs for problem in _indivisible(r.cfg, processes))
    if problems:
        raise ValueError("\n  ".join(["this machine cannot run it:", *problems]) if len(problems) > 1 else problems[0])


def _drawn_validation(cfg) -> Iterator[str]:
    """Validation on drawn people for a run on others, as a config has it whose base is the quick start's."""
    classes = compat.registered(DATASET_REGISTRY)
    drawn = {name for name, cls in classes.items() if getattr(cls, "drawn", False)}
    others = [name for name in (*cfg.DATASETS.NAMES, *cfg.DATASETS.TESTS) if name not in drawn]
    for name in cfg.DATASETS.VALIDATION:
        if name in drawn and others:
            yield (
                f"DATASETS.VALIDATION names {name}, drawn people, for a run on {others[0]}: name people of its own (an "
                "entry of DATASETS.CUSTOM with VALIDATION_SHARE keeps some of its training people for this), or set "
                "DATASETS.VALIDATION '[]' and SOLVER.PATIENCE 0"
            )


def _not_installed(runs: Sequence[Run]) -> list[str]:
    """Clients of WRITERS that cannot be imported."""
    names = dict.fromkeys(name for run in runs for name in run.cfg.WRITERS)
    return [
        f"WRITERS names {name}, whose client is not installed: pip install 'sagareid[{name}]', or leave it out"
        for name in names
        if importlib.util.find_spec(name) is None
    ]


def _unwritable(runs: Sequence[Run], eval_only: bool) -> list[str]:
    """Why a folder or file that the runs write to, now or at their end, cannot be written; one for each place."""
    outputs = {run.folder: True for run in runs} | {runs[0].whole_folder / RESULTS: False}
    caches = {cache_folder(run.cfg) for run in runs if run.cfg.CACHE.ENABLED and not eval_only}
    # a finished cache may be on a disk that is only read; which one a stage needs, its weights decide
    outputs |= {folder: True for folder in caches if not any(folder.glob("*/done.bin"))}
    found: dict[Path, str] = {}
    for path, is_folder in outputs.items():
        place = next(p for p in (path, *path.absolute().parents) if p.exists())
        try:
            check_output(path, folder=is_folder)
        except OSError as error:
            found.setdefault(place, str(error))
    return list(found.values())


def _indivisible(cfg, processes: int) -> list[str]:
    """What keeps `processes` from sharing a batch by whole identities."""
    batch, sampler = cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.SAMPLER_TRAIN
    group = cfg.DATALOADER.NUM_INSTANCE if "Identity" in sampler else 1
    if batch % (processes * group) == 0:
        return []
    images = f"{group} images of an identity" if group > 1 else "one image"
    return [
        f"SOLVER.IMS_PER_BATCH {batch} is the batch of all {processes} processes, and {sampler} gives each of them "
        f"{images} or a multiple: set a multiple of {processes * group}"
    ]
