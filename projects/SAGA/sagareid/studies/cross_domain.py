"""Models of some data sets on the test sets of others: the table of sources and targets of domain generalisation.

A *source* is one data set or several that a model is trained on together; a *cell* is a model on a target. Cells are
those of an occlusion study with nothing hidden, kept under a name made of the model's weights and the target's images:
a table that was interrupted goes on, and a further source or target adds its own cells alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from tqdm import tqdm

from fastreid.data.datasets import DATASET_REGISTRY

from .. import compat
from ..config import VALIDATION_OF, own_parameters
from .compare import Trial, train
from .models import Model
from .occlusion import ImageSet
from .occlusion_study import METRICS, Study
from .options import Options

__all__ = ["Source", "evaluate", "others_mean", "read_sources", "read_targets", "train_sources", "trained_on"]

logger = logging.getLogger(__name__)

# Nothing is hidden: one cell for each model.
_CLEAN = Options(conditions=("mask",), levels=())


@dataclass(frozen=True)
class Source:
    """Data sets that one model is trained on together, under a name."""

    name: str
    datasets: tuple[str, ...]


def read_sources(words: Sequence[str]) -> list[Source]:
    """Sources by ``[NAME=]SET[,SET...]``; without a name, the sets joined by a plus.

    Raises:
        ValueError: no set in a word, one twice, or a name twice.
    """
    found: list[Source] = []
    for word in words:
        name, _, rest = word.rpartition("=")
        datasets = tuple(part.strip() for part in rest.split(","))
        if not all(datasets) or len(set(datasets)) < len(datasets):
            raise ValueError(
                f"--sources {word}: expected data sets, each once, such as Market1501 or Market1501,CUHK01"
            )
        found.append(Source(name or "+".join(datasets), datasets))
        if [source.name for source in found].count(found[-1].name) > 1:
            raise ValueError(f"--sources has {found[-1].name} twice; name each once, NAME=SET,SET")
    return found


def read_targets(cfg: Any, names: Sequence[str]) -> None:
    """List the images of every target, so that a missing one is said before anything is trained.

    Raises:
        OSError, RuntimeError, ValueError: it is not known, not there, cannot be tested on, or is named twice.
    """
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"--targets names {', '.join(sorted(twice))} twice; name each once")
    for name in names:
        ImageSet.read(cfg, name)


def train_sources(
    sources: Sequence[Source],
    seeds: Sequence[int],
    config: str,
    output: Path,
    opts: Sequence[str] = (),
    arguments: Sequence[str] = (),
) -> list[Trial]:
    """Train a model of the config on every source with every seed, in OUTPUT/runs/<source>/seed_<n>.

    A finished run is not trained again, an unfinished one goes on, and one that fails does not stop the others. At its
    end a run is tested on the sets that it is trained on, unless `opts` have DATASETS.TESTS.

    Args:
        opts: KEY VALUE pairs for all runs.
        arguments: further arguments of tools/train_net.py.
    """
    trials: list[Trial] = []
    todo = [(source, seed) for seed in seeds for source in sources]
    with tqdm(todo, desc="training", unit="run", disable=None) as bar:
        for source, seed in bar:
            bar.set_postfix_str(f"{source.name}, seed {seed}")
            trial = Trial(source.name, config, seed, str(output / "runs" / source.name / f"seed_{seed}"))
            names = repr(list(source.datasets))
            own = ["DATASETS.NAMES", names, *([] if "DATASETS.TESTS" in opts[::2] else ["DATASETS.TESTS", names])]
            train(trial, [*own, *opts], arguments)
            trials.append(trial)
    return trials


def trained_on(model: Model) -> list[str]:
    """Data sets that a model was trained on, by its own configuration."""
    return list(model.cfg.DATASETS.NAMES)


def _is_own(source: Any, cfg: Any, target: str) -> bool:
    """Whether a target is of a data set that a model was trained on: the same name, or a class that derives from the
    other's, as validation people, another split or another kind of boxes of one data set have.

    Args:
        source: the model's configuration. cfg: the one that knows the target.
    """
    if target in source.DATASETS.NAMES:
        return True
    trained = [cls for name in source.DATASETS.NAMES for cls in _classes(source, name)]
    return any(issubclass(a, b) or issubclass(b, a) for a in trained for b in _classes(cfg, target))


def _classes(cfg: Any, name: str) -> list[type]:
    """The registered class of a data set, or of what an entry of DATASETS.CUSTOM is of; none for data of one's own."""
    known = compat.registered(DATASET_REGISTRY)
    base = name.removesuffix(VALIDATION_OF)
    entry = next((entry for entry in cfg.DATASETS.CUSTOM if entry["NAME"] in (name, base)), None)
    words = [name] if entry is None else [entry["TYPE"], entry.get("OF", "")]
    classes = [known[word] for word in words if word in known]
    return [cls for cls in classes if "name" not in {parameter.name for parameter in own_parameters(cls)}]


def evaluate(
    models: Sequence[Model], targets: Sequence[str], cfg: Any, folder: Path, workers: int | None = None
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The models on one target after the other; cells that the folder holds are kept.

    Args:
        models: those of one name are seeds of one source.
        cfg: knows the data sets of DATASETS.CUSTOM, workers, batch and device.

    Yields:
        The target ("name", "digest", "queries", "queries_with_a_match", "gallery"), and for each source a record:
        "source", "target", "own" (whether the target is of a set that it was trained on), "feature", and for each
        metric mean, low and high (95 % over queries), seeds and spread, in percent.
    """
    with tqdm(targets, desc="targets", unit="set", disable=None) as bar:
        for target in bar:
            bar.set_postfix_str(target)
            study = Study(cfg, target, models, _CLEAN, folder, workers).run(resume=True)
            described = study.describe()["dataset"]
            about = {k: described[k] for k in ("name", "digest", "queries", "queries_with_a_match", "gallery")}
            records = []
            for found in study.results(models[0].name):
                own = _is_own(study.seeds(found["model"])[0].cfg, cfg, target)
                record = {"source": found["model"], "target": target, "own": own, "feature": found["row"]}
                keys = ("mean", "low", "high", "seeds", "spread")
                records.append(record | {m: {k: found[m][k] for k in keys} for m in METRICS})
            yield about, records


def others_mean(results: Sequence[dict[str, Any]], source: str, metric: str) -> float | None:
    """The mean of a metric over the targets that a source was not trained on; None where there is none."""
    found = [r[metric]["mean"] for r in results if r["source"] == source and not r["own"]]
    return fmean(found) if found else None
