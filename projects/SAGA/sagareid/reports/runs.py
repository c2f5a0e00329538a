"""Reads the folder of a training run, finished or not: config, scalars, result, checkpoint. Loads no model."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ..config import flatten
from ..engine.hooks import CheckpointHook, by_set
from ..engine.stages import RESULT

__all__ = ["Curve", "Stage", "flat_metrics", "read_run", "read_scalars"]

logger = logging.getLogger(__name__)

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
        result: the content of its result file; None before its end.
        checkpoint: the final one, else the last; None before the first.
    """

    folder: Path
    name: str
    config: dict[str, Any]
    curves: dict[str, Curve]
    damaged: int = 0
    result: dict | None = None
    seconds: float | None = None
    checkpoint: Path | None = None
    evaluation: list[dict] = field(default_factory=list)

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
    config: dict[str, Any] = {}
    curves: dict[str, Curve] = {}
    damaged = 0
    try:
        config = flatten(yaml.safe_load((folder / CONFIG).read_text()) or {})
    except (yaml.YAMLError, AttributeError):  # cut off while it was written
        logger.warning("%s cannot be read", folder / CONFIG)
    if (folder / SCALARS).is_file():
        with open(folder / SCALARS, errors="replace") as file:
            curves, damaged = read_scalars(file)
    final = folder / f"{CheckpointHook.FINAL}.pth"
    tag = folder / "last_checkpoint"
    last = folder / tag.read_text().strip() if tag.is_file() else None
    checkpoint = final if final.is_file() else last if last and last.is_file() else None
    result = _read_json(folder / RESULT) if checkpoint == final else None
    seconds = result.get("seconds") if result else _read_json(folder / SECONDS)
    return Stage(
        folder, name, config, curves, damaged, result, seconds, checkpoint, _read_json(folder / EVALUATION) or []
    )


def _read_json(path: Path) -> Any:
    """None where there is no file, or no whole one."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
