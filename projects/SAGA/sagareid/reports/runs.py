"""Reads the folder of a training run, finished or not: config, scalars, result, checkpoint. Loads no model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ..config import flatten
from ..engine.hooks import CheckpointHook, by_set
from ..engine.results import RESULT, read_result, read_seconds
from ..files import DamagedFile, read_json, read_utf8, read_yaml

__all__ = ["Curve", "Stage", "flat_metrics", "read_run", "read_scalars"]

logger = logging.getLogger(__name__)

Content = TypeVar("Content")

CONFIG, SCALARS, SECONDS, EVALUATION = "config.yaml", "metrics.json", "seconds.json", "evaluation.json"


class Curve(NamedTuple):
    """A scalar over training."""

    iterations: list[int]
    values: list[float]


@dataclass
class Stage:
    """The folder of one stage.

    Attributes:
        name: empty for a run without stages.
        config: every key by its whole name, as `flatten`; empty where there is no config.yaml.
        curves: one for each scalar, by its name.
        damaged: lines of metrics.json that cannot be read, such as the last one of a run that was cut off.
        problems: files beside the checkpoint that cannot be read, each with what is wrong and what to do.
        result: the content of its result file; None before its end.
        checkpoint: the final one, else the last; None before the first.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    curves: dict[str, Curve]
    damaged: int = 0
    problems: list[str] = field(default_factory=list)
    result: dict | None = None
    seconds: float | None = None
    checkpoint: Path | None = None
    evaluation: list[dict] = field(default_factory=list)

    def _read(self, file: Path, read: Callable[[Path], Content]) -> Content | None:
        """None where there is no file, and where it is damaged, which is logged and kept in `problems`."""
        try:
            return read(file) if file.is_file() else None
        except DamagedFile as error:
            logger.warning("%s", error)
            self.problems.append(str(error))
            return None

    @property
    def finished(self) -> bool:
        return self.result is not None

    @property
    def iterations(self) -> int:
        """Iterations of training so far, by its scalars."""
        return max((curve.iterations[-1] for curve in self.curves.values()), default=0)

    @property
    def metrics(self) -> dict[str, float]:
        """The last evaluation in percent by "<data set>/<feature>/<metric>"; {} before the first.

        A part of the name is left out where there is one data set, or for the feature of the result.
        """
        if self.result:
            return flat_metrics(self.result.get("metrics") or {})
        return {
            name: c.values[-1]
            for name, c in self.curves.items()
            if is_metric(name) and not name.startswith("validation/")
        }


def is_metric(name: str) -> bool:
    """Whether a scalar is one of the evaluator's."""
    last = name.rpartition("/")[2]
    return last in ("mAP", "mINP", "metric") or last.startswith(("Rank-", "TPR@FPR="))


def flat_metrics(metrics: dict) -> dict[str, float]:
    """Metrics of one data set or of several, named as in metrics.json."""
    return {
        f"{s}/{name}" if s else name: value for s, values in by_set(metrics).items() for name, value in values.items()
    }


def read_scalars(lines: Iterable[str]) -> tuple[dict[str, Curve], int]:
    """Scalars of a metrics.json, and how many of its lines cannot be read.

    A resumed run appends to the file and repeats what came after the checkpoint that it went on from: what is written
    later counts.
    """
    curves: dict[str, Curve] = {}
    damaged = 0
    for line in lines:
        try:
            scalars = json.loads(line)
            iteration = int(scalars.pop("iteration"))
        except (ValueError, KeyError, TypeError, AttributeError):
            damaged += bool(line.strip())
            continue
        for name, value in scalars.items():
            at, values = curves.setdefault(name, Curve([], []))
            while at and at[-1] >= iteration:
                at.pop()
                values.pop()
            at.append(iteration)
            values.append(float(value))
    return curves, damaged


def read_run(folder: str | Path) -> list[Stage]:
    """The stages of a run in the order of training, or the one whose folder it is.

    Raises:
        FileNotFoundError: no run there.
    """
    folder = Path(folder)
    if (folder / CONFIG).is_file():
        return [_read_stage(folder, "")]
    inside = [p.parent for p in folder.glob(f"*/{CONFIG}") if ".before-" not in p.parent.name]
    if not inside:
        raise FileNotFoundError(
            f"no run at {folder}: expected a {CONFIG} in it or in the folders of its stages. Name an OUTPUT_DIR of "
            "tools/train_net.py, or the folder of one stage"
        )
    stages = {p.name: _read_stage(p, p.name) for p in sorted(inside)}

    def place(name: str) -> int:
        """How many stages come before it: each starts from the weights of the one before."""
        seen: list[str] = []
        while name in stages and name not in seen:
            seen.append(name)
            name = Path(str(stages[name].config.get("MODEL.WEIGHTS") or "")).parent.name
        return len(seen)

    return sorted(stages.values(), key=lambda stage: place(stage.name))


def _read_stage(folder: Path, name: str) -> Stage:
    stage = Stage(folder, name, {}, {})
    stage.config = flatten(stage._read(folder / CONFIG, _config) or {})
    if (folder / SCALARS).is_file():
        with open(folder / SCALARS, errors="replace") as file:
            stage.curves, stage.damaged = read_scalars(file)
    final = folder / f"{CheckpointHook.FINAL}.pth"
    tag = stage._read(folder / "last_checkpoint", _tag)
    last = folder / tag if tag else None
    stage.checkpoint = final if final.is_file() else last if last and last.is_file() else None
    if stage.checkpoint == final:
        stage.result = stage._read(folder / RESULT, read_result)
    stage.seconds = stage.result["seconds"] if stage.result else stage._read(folder / SECONDS, read_seconds)
    stage.evaluation = stage._read(folder / EVALUATION, _evaluation) or []
    return stage


def _config(file: Path) -> dict[str, Any]:
    return read_yaml(file, remedy="Training with --resume writes it again")


def _tag(file: Path) -> str:
    return read_utf8(file, remedy="Write into it the name of the last checkpoint in the folder").strip()


def _evaluation(file: Path) -> list[dict]:
    return read_json(file, remedy="--eval-only writes it again", kind=list, required={"metrics": dict})
