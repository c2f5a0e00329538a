"""Training stages: ordinary runs in a row, each in its own folder, each starting from the one before."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from fastreid.utils.logger import setup_logger

from .. import compat
from ..cli import command_line
from ..config import flatten
from ..config_merge import read_config
from ..data.datasets.build import DataSets
from ..deploy.load import load_model
from ..files import read_yaml, write_json, write_text
from .hooks import CheckpointHook
from .logs import heading, surroundings
from .plans import Run
from .results import RESULT, SECONDS, read_seconds
from .trainer import SAGATrainer

__all__ = ["differences", "evaluate", "run_all"]

logger = logging.getLogger(__name__)

# What may differ between a run and its resumption: where and how it runs, not what it computes.
_MACHINE_KEYS = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.NUM_WORKERS_TEST",
    "CACHE.DIR",
    "WRITERS",
    "WRITER_PROJECT",
)


def _setup(run: Run, args, *, introduce: bool = True) -> None:
    """FastReID's set-up with one log per run and a known seed.

    FastReID's `default_setup` prints the environment and the whole configuration, 300 lines, for every stage; the
    configuration is in config.yaml.

    Args:
        introduce: say first where the command runs.
    """
    compat.close_logs()
    cfg = run.cfg
    if cfg.SEED < 0:
        cfg.defrost()
        cfg.SEED = int(torch.randint(2**31, ()).item() if comm.get_world_size() == 1 else comm.shared_random_seed())
        cfg.freeze()
    if comm.is_main_process():
        run.folder.mkdir(parents=True, exist_ok=True)
    comm.synchronize()
    if not run.folder.is_dir():
        raise FileNotFoundError(
            f"{run.folder.absolute()} was made by rank 0 and is not here: OUTPUT_DIR must be on a disk that all "
            "machines share"
        )
    for name in ("fastreid", "sagareid"):
        setup_logger(str(run.folder), distributed_rank=comm.get_rank(), name=name)
    compat.quiet_logs()
    if introduce:
        logger.info("%s\n%s", command_line(), surroundings(cfg.MODEL.DEVICE))
    logger.info(heading(cfg, run.name, run.siblings, eval_only=args.eval_only))
    if comm.is_main_process():
        write_text(run.folder / "config.yaml", cfg.dump())
    if not args.eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK
    seed_all_rng(cfg.SEED)  # the same for every process: they build the same model; see hooks.OwnRandomness


def differences(run: Run) -> list[str]:
    """Keys in which the config differs from the one that the folder was trained with."""
    file = run.folder / "config.yaml"
    remedy = "Delete this one file: --resume writes it again, and compares with the configuration in the checkpoint"
    read_yaml(file, remedy=remedy)  # whole, before its keys are looked at
    saved = read_config(file)
    counted = ("MODEL.HEADS.NUM_CLASSES", "MODEL.CLIP.CAMERAS", "SEED")  # filled in by the run
    before, out = flatten(saved), []
    for key, now in flatten(run.cfg).items():
        then = before.get(key)
        left_open = key in counted and now in (0, [], -1)
        if key not in _MACHINE_KEYS and not left_open and _unplaced(key, now) != _unplaced(key, then):
            out.append(f"{key}: {then} -> {now}")
    return out


def _unplaced(key: str, value: Any) -> Any:
    """A value without where data sets are: a folder may move, and a checkpoint knows people and images by name."""
    if key != "DATASETS.CUSTOM" or not isinstance(value, list):
        return value
    return [{k: v for k, v in entry.items() if k not in ("PATH", "IMAGES")} for entry in value]


def run_all(runs: Sequence[Run], args, datasets: DataSets | None = None) -> list[dict]:
    """Train the runs in order and return their results: {"stage", "metrics", "seconds", "checkpoint", "steps"}.

    With DATASETS.VALIDATION, "validation" too: the "metric" that chose the state, its "epoch", "steps" and "metrics".

    With `args.resume`, finished runs are skipped and the unfinished one goes on where its last checkpoint stands.

    Args:
        datasets: those that have been read; None to read them here, once for all runs.

    Raises:
        ValueError: resuming with a configuration other than the one that the run began with.
    """
    results, datasets, introduce = [], datasets or DataSets(), True
    for run in runs:
        if args.resume and (run.folder / "config.yaml").is_file() and any(run.folder.glob("*.pth")):
            changed = differences(run)
            if changed:
                raise ValueError(
                    f"{run.folder} was trained with another configuration; {'; '.join(changed[:6])}. Give the changed "
                    "run its own OUTPUT_DIR, or leave --resume out to begin anew (the old run is kept aside)"
                )
        done = comm.all_gather(run.result() if args.resume else None)[0]  # one answer for all processes
        if done is None:
            done = _train(run, args, datasets, introduce=introduce)
            introduce = False
        results.append(done)
    return results


def _train(run: Run, args, datasets: DataSets, *, introduce: bool) -> dict:
    begun = time.time()
    before = _seconds_so_far(run) if args.resume else 0.0
    _setup(run, args, introduce=introduce)
    trainer = SAGATrainer(run.cfg, datasets, stage=run.name, first=run.name in run.siblings[:1])
    trainer.resume_or_load(resume=args.resume)
    try:
        metrics = trainer.train()
    finally:
        seconds = before + time.time() - begun
        if comm.is_main_process():
            write_json(run.folder / SECONDS, seconds)
    result = {"stage": run.name, "metrics": metrics or {}, "seconds": seconds, "checkpoint": str(run.final)}
    result |= trainer.record()
    if comm.is_main_process():
        write_json(run.folder / RESULT, result)
    return result


def _seconds_so_far(run: Run) -> float:
    file = run.folder / SECONDS
    return read_seconds(file) if file.is_file() else 0.0


def evaluate(run: Run, args, datasets: DataSets | None = None) -> dict:
    """Evaluate a run (`_weights_to_evaluate`); no CLIP weights and no text tower are needed.

    Raises:
        FileNotFoundError: no checkpoint. ValueError: one that does not fit.
    """
    _setup(run, args)
    weights = _weights_to_evaluate(run)
    cfg, model = load_model(weights, run.cfg)
    return {"stage": run.name, "metrics": SAGATrainer.test(cfg, model, datasets), "checkpoint": str(weights)}


def _weights_to_evaluate(run: Run) -> Path:
    """MODEL.WEIGHTS of the command line, the final checkpoint, the last whole epoch, or MODEL.WEIGHTS of the config."""
    if run.asked_weights:
        return Path(run.asked_weights)
    kept = run.folder / f"{CheckpointHook.LAST}.pth"
    if not run.final.is_file() and kept.is_file():
        logger.warning("%s has not ended: its last whole epoch is evaluated. --resume goes on from there", run.folder)
        return kept
    return run.final if run.name or run.final.is_file() else Path(run.cfg.MODEL.WEIGHTS or run.final)
