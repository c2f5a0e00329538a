"""Training stages: ordinary runs in a row, each in its own folder, each starting from the one before."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from fastreid.data.datasets import DATASET_REGISTRY
from fastreid.utils import comm
from fastreid.utils.env import seed_all_rng
from fastreid.utils.logger import setup_logger

from .. import compat
from ..cli import command_line
from ..config import flatten, get_cfg
from ..config_checks import check_config, check_configs
from ..config_files import ConfigFile, config_chain, find_config
from ..config_merge import merge_files, merge_pairs, read_config
from ..data.datasets.build import DataSets
from ..deploy.load import load_model
from ..files import DamagedFile, check_output, read_json, read_yaml, write_json, write_text
from ..hardware import pick_device
from .feature_cache import cache_folder
from .hooks import CheckpointHook, by_set
from .logs import heading, surroundings
from .trainer import SAGATrainer

__all__ = ["Run", "check_machine", "differences", "evaluate", "plan", "run_all", "without_effect"]

logger = logging.getLogger(__name__)

RESULT = "result.json"  # of a stage
RESULTS = "results.json"  # of a configuration
SECONDS = "seconds.json"  # of a stage, from its first interruption on
# What may differ between a run and its resumption: where and how it runs, not what it computes.
_MACHINE_KEYS = (
    "OUTPUT_DIR",
    "MODEL.DEVICE",
    "MODEL.WEIGHTS",
    "DATALOADER.NUM_WORKERS",
    "DATALOADER.NUM_WORKERS_TEST",
    "CACHE.DIR",
)


@dataclass
class Run:
    """One stage.

    Attributes:
        name: empty for a config without stages.
        cfg: its whole config, frozen.
        asked_weights: MODEL.WEIGHTS as given on the command line; empty where it is not.
        siblings: names of all stages of its configuration, in order.
    """

    name: str
    cfg: Any
    asked_weights: str = ""
    siblings: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        return Path(self.cfg.OUTPUT_DIR)

    @property
    def whole_folder(self) -> Path:
        """OUTPUT_DIR of the whole configuration."""
        return self.folder.parent if self.name else self.folder

    @property
    def final(self) -> Path:
        return self.folder / f"{CheckpointHook.FINAL}.pth"

    def result(self) -> dict | None:
        """What `run_all` wrote when the stage ended; None before.

        Raises:
            DamagedFile: it is not what was written.
        """
        file = self.folder / RESULT
        if not (file.is_file() and self.final.is_file()):
            return None
        return read_result(file) | {"checkpoint": str(self.final)}  # the folder may have been moved


def read_result(file: Path) -> dict:
    """The result of a stage.

    Raises:
        DamagedFile: it is not what was written.
    """
    remedy = "Delete this one file: the same command with --resume evaluates the finished stage and writes it again"
    fields = {"stage": str, "metrics": dict, "seconds": float, "steps": int}
    return read_json(file, remedy=remedy, required=fields)


def read_seconds(file: Path) -> float:
    """How long the training of a stage took so far. Errors as of `read_result`."""
    return read_json(file, remedy="Delete this one file: it only holds how long the training took so far", kind=float)


# ---- planning
# ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Entry:
    """One of STAGES: its name, the files that it merges, its KEY VALUE pairs, and where it stands."""

    name: str
    chain: list[ConfigFile]
    opts: list
    place: str


def plan(
    config_file: str | Path, opts: Sequence[str] = (), stage: str | None = None, *, last: bool = False
) -> list[Run]:
    """The runs of a config, in order: the config, then the stage's file and OPTS, then `opts`.

    Args:
        stage: only these of STAGES, separated by commas. The first starts from MODEL.WEIGHTS of `opts` where given.
        last: only the last of these, to be evaluated.

    Raises:
        FileNotFoundError: a config that is not there.
        ValueError: a key or a stage that does not exist, values that cannot work, of all these stages together.
    """
    opts = list(opts)
    asked = next((v for k, v in zip(opts[::2], opts[1::2]) if k == "MODEL.WEIGHTS"), "")
    chain = config_chain(config_file)
    whole = _merged(chain, opts)
    if not whole.STAGES:
        if stage:
            raise ValueError(f"{config_file} has no STAGES, so there is no stage {stage!r}; run it without --stage")
        whole.freeze()
        check_config(whole)
        return [Run("", whole, asked)]
    entries = _entries(whole, chain)
    names = [entry.name for entry in entries]
    chosen = stage.split(",") if stage else names
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise ValueError(f"no stage {unknown[0]!r} in {config_file}; its stages: {', '.join(names)}")
    runs: list[Run] = []
    for entry in entries:
        cfg = _merged(chain, opts, entry)
        cfg.STAGES = []
        cfg.CACHE.DIR = str(cache_folder(whole))
        cfg.OUTPUT_DIR = str(Path(whole.OUTPUT_DIR, entry.name))
        if runs and not (asked and entry.name == chosen[0]):
            cfg.MODEL.WEIGHTS = str(runs[-1].final)
        cfg.freeze()
        runs.append(Run(entry.name, cfg, asked, tuple(names)))
    runs = [run for run in runs if run.name in chosen][-1 if last else 0 :]
    check_configs({run.name: run.cfg for run in runs})
    return runs


def _merged(chain: Sequence[ConfigFile], opts: Sequence[str], entry: _Entry | None = None):
    """The defaults, a config, a stage's file and OPTS, a command line."""
    cfg = get_cfg()
    merge_files(cfg, chain)
    if entry:
        merge_files(cfg, entry.chain)
        merge_pairs(cfg, entry.opts, entry.place)
    merge_pairs(cfg, opts)
    return cfg


def _entries(whole, chain: Sequence[ConfigFile]) -> list[_Entry]:
    """The STAGES of a config. Their FILEs are relative to the file of the chain that lists them, or ship.

    Raises:
        FileNotFoundError: a FILE that is not there. ValueError: an entry that is none, or has the name of another.
    """
    source = next((file for file in chain if "STAGES" in file.content), chain[0])
    place = source.place("STAGES")
    entries: list[_Entry] = []
    for entry in whole.STAGES:
        if not isinstance(entry, Mapping) or not {"NAME", "FILE"} <= set(entry) <= {"NAME", "FILE", "OPTS"}:
            raise ValueError(
                f"{place}: an entry of STAGES is {entry!r}; expected NAME and FILE, and OPTS where there are any, such "
                "as {NAME: anchors, FILE: stages/anchors.yml, OPTS: [SOLVER.MAX_EPOCH, 60]}"
            )
        name, file, opts = entry["NAME"], entry["FILE"], entry.get("OPTS", [])
        if not isinstance(name, str) or name != Path(name).name or name in [e.name for e in entries]:
            raise ValueError(f"{place}: a stage is called {name!r}; expected the name of a folder, another for each")
        if not isinstance(file, str) or not isinstance(opts, list):
            raise ValueError(
                f"{place}: the stage {name} has FILE {file!r} and OPTS {opts!r}; expected a path and a list"
            )
        try:
            files = config_chain(find_config(file, source.path.parent))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{place}: the file of the stage {name}: {error}") from error
        entries.append(_Entry(name, files, opts, f"{place}: OPTS of the stage {name}"))
    return entries


def without_effect(config_file: str | Path, opts: Sequence[str] = ()) -> list[str]:
    """A sentence for each key of a config that its stages' own files override, so that it does nothing there.

    Looked at are the config itself and those of its bases that are nearer to it than the list of STAGES: what stands
    beside that list is a default of the recipe, which its stages change. What `opts` set is merged last, and counts.
    """
    chain = config_chain(config_file)
    whole = _merged(chain, opts)
    if not whole.STAGES:
        return []
    lists = next((i for i, file in enumerate(chain) if "STAGES" in file.content), 0)
    given: dict[str, tuple[Any, ConfigFile]] = {}
    for file in chain[: max(lists, 1)]:
        given = {key: (value, file) for key, value in flatten(file.content).items()} | given
    overridden: dict[str, list[str]] = {}
    for entry in _entries(whole, chain):
        own = {
            key: (value, file.path) for file in reversed(entry.chain) for key, value in flatten(file.content).items()
        }
        own |= {key: (value, "its OPTS") for key, value in zip(entry.opts[::2], entry.opts[1::2])}
        for key in given.keys() & own.keys() - set(opts[::2]):
            if str(own[key][0]) != str(given[key][0]):
                overridden.setdefault(key, []).append(f"{entry.name}, which sets {own[key][0]} in {own[key][1]}")
    return [
        f"{key} {given[key][0]} in {given[key][1].place(key)} has no effect in the stage {'; '.join(stages)}. Set it "
        "behind the command, or in OPTS of the stage"
        for key, stages in sorted(overridden.items())
    ]


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
    if not eval_only and not problems:
        try:
            _earlier(runs[0].whole_folder / RESULTS)
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


# ---- running
# ----------------------------------------------------------------------------------------------------------


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
    trainer = SAGATrainer(run.cfg, datasets)
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


def beside_earlier(results: Sequence[dict], file: Path, names: Sequence[str]) -> list[dict]:
    """This command's results beside those of the configuration's other stages as they are in the file, in order.

    Args:
        names: of the configuration's stages.

    Raises:
        DamagedFile: the file is not what was written.
    """
    rows = {row["stage"]: row for row in _earlier(file) if row["stage"] in names}
    rows |= {result["stage"]: result for result in results}
    return sorted(rows.values(), key=lambda row: names.index(row["stage"]) if row["stage"] in names else -1)


def _earlier(file: Path) -> list[dict]:
    remedy = (
        f"Delete this one file: every stage has its own {RESULT}, and the whole configuration with --resume collects "
        "them again"
    )
    return read_json(file, remedy=remedy, kind=list, required={"stage": str}) if file.is_file() else []


# ---- reporting
# --------------------------------------------------------------------------------------------------------


def table(results: Sequence[dict]) -> str:
    """One line a stage: Rank-1, mAP, mINP in percent, and minutes."""
    rows = []
    for r in results:
        for dataset, m in by_set(r["metrics"]).items():
            minutes = f"{r['seconds'] / 60:.1f}" if "seconds" in r else ""
            rows.append(
                [r["stage"] or "run", dataset, *(m.get(k, float("nan")) for k in ("Rank-1", "mAP", "mINP")), minutes]
            )
    headers = ["stage", "data set", "Rank-1", "mAP", "mINP", "minutes"]
    if not any(row[1] for row in rows):
        rows, headers = [[r[0], *r[2:]] for r in rows], [headers[0], *headers[2:]]
    return tabulate(rows, headers=headers, tablefmt="github", floatfmt=".1f")
