"""Several configs with several seeds each in one table; tools/train_net.py trains every run.

The folder of a run is OUTPUT/<config>/seed_<n>. A finished run is not trained again, an unfinished one goes on where it
stopped, and one that fails does not stop the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

from tabulate import tabulate
from tqdm import tqdm

from ..deploy.load import load_model
from ..engine import plans, stages
from ..engine.hooks import by_set
from ..engine.main import launch_runs
from ..engine.options import training_parser
from ..errors import message_of
from ..evaluation.tables import legend, without_gaps
from ..files import write_json, write_text
from .complexity import complexity
from .on_tower import on_tower

__all__ = ["Trial", "compare", "names_of", "split_words", "summarise", "table", "train"]

logger = logging.getLogger(__name__)

METRICS = ("Rank-1", "mAP", "mINP")


@dataclass
class Trial:
    """One config with one seed.

    Attributes:
        name: the config's, unique among those compared.
        result: the result of its last stage, with "seconds" and "steps" of all stages; None for a run that failed.
        cost: `Complexity` of its model, by field.
        error: why it failed; None for a run that did not.
    """

    name: str
    config: str
    seed: int
    folder: str
    result: dict | None = None
    cost: dict | None = None
    error: str | None = None


def split_words(
    words: Sequence[str], seeds: Sequence[str], rows: Sequence[str] = ()
) -> tuple[list[str], list[int], list[str], list[str]]:
    """Configs, seeds, features and KEY VALUE pairs of a command line on which pairs may come after each list.

    Base-*.yml, which other configs extend, are left out, so that a folder's *.yml may be named.

    Raises:
        ValueError: no config, no seed, or words that are not pairs.
    """
    count = next((i for i, s in enumerate(seeds) if not s.isdigit()), len(seeds))
    features = next((i for i, row in enumerate(rows) if row.partition(".")[0].isupper()), len(rows))
    files = [w for w in words if w.endswith((".yml", ".yaml"))]
    configs = [f for f in files if not Path(f).name.startswith("Base-")]
    opts = [w for w in (*words, *seeds[count:], *rows[features:]) if w not in files]
    if not configs:
        raise ValueError("name one config or more, such as configs/study/saga.yml")
    if not count:
        raise ValueError("--seeds needs one number or more")
    if len(opts) % 2:
        raise ValueError(f"options are pairs of KEY VALUE; found {' '.join(opts)}")
    for key, instead in (("SEED", "--seeds"), ("OUTPUT_DIR", "--output")):
        if key in opts[::2]:
            raise ValueError(f"{key} is set for each run: use {instead}")
    return configs, [int(s) for s in seeds[:count]], list(rows[:features]), opts


def names_of(configs: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell the configs apart: occ_duke, or SAGA-occ_duke and CLIPReID-occ_duke.

    Raises:
        ValueError: a config that is named twice.
    """
    paths = [Path(c).resolve().with_suffix("").parts for c in configs]
    if len(set(paths)) < len(paths):
        raise ValueError("a config is named twice; name each once, and --seeds for several runs of it")
    length = 1
    while len({p[-length:] for p in paths}) < len(paths):
        length += 1
    return ["-".join(p[-length:]) for p in paths]


def compare(
    configs: Sequence[str],
    seeds: Sequence[int],
    output: str | Path,
    opts: Sequence[str] = (),
    arguments: Sequence[str] = (),
    rows: Sequence[str] = ("refined",),
    tower: str = "",
) -> list[Trial]:
    """Train and evaluate each config with each seed; write `comparison.json` and `comparison.md` after each.

    Args:
        opts: KEY VALUE pairs for all runs.
        arguments: further arguments of tools/train_net.py, such as ["--num-gpus", "2"].
        rows: features that the table shows beside the result's, where a model gives them.
        tower: a config whose tower takes the place of each config's own (see `on_tower`); empty for none.

    Raises:
        ValueError, FileNotFoundError: a config that cannot be planned; nothing is trained then.
    """
    output = Path(output)
    trials = [
        Trial(name, str(config), seed, str(output / name / f"seed_{seed}"))
        for seed in seeds
        for name, config in zip(names_of(configs), configs)
    ]
    opts_of = {str(config): [*(on_tower(config, tower) if tower else []), *opts] for config in configs}
    for trial in trials[: len(configs)]:
        plans.plan(trial.config, [*opts_of[trial.config], "OUTPUT_DIR", trial.folder])
    with tqdm(trials, desc="comparing", unit="run", disable=None) as bar:
        for trial in bar:
            bar.set_postfix_str(f"{trial.name}, seed {trial.seed}")
            train(trial, opts_of[trial.config], arguments)
            done = [t for t in trials if t.result or t.error]
            _write(output, done, summarise(done, rows))
    return trials


def train(trial: Trial, opts: Sequence[str], arguments: Sequence[str]) -> None:
    """Train a trial, or go on with it, and fill in its result and cost; its error where it fails, which is logged."""
    own_opts = [*opts, "SEED", str(trial.seed), "OUTPUT_DIR", trial.folder]
    args = training_parser().parse_args(["--config-file", trial.config, "--resume", *arguments, *own_opts])
    try:
        results = _finished(trial, own_opts)
        if results is None:
            launch_runs(args)
            results = _finished(trial, own_opts)
        if results is None:
            raise RuntimeError(f"{trial.folder}: training ended, but not every stage has a result")
        cfg, model = load_model(results[-1]["checkpoint"], device="cpu")
        trial.cost = asdict(complexity(cfg, model))
        trial.result = results[-1] | {key: sum(r[key] for r in results) for key in ("seconds", "steps")}
    except Exception as error:
        trial.error = message_of(error)
        logger.error("%s, seed %d failed: %s", trial.name, trial.seed, trial.error)


def _finished(trial: Trial, opts: Sequence[str]) -> list[dict] | None:
    """The results of all stages, where all are finished with this very configuration; None otherwise."""
    runs = plans.plan(trial.config, opts)
    results = [result for run in runs if (result := run.result())]
    return results if len(results) == len(runs) and not any(stages.differences(run) for run in runs) else None


def summarise(trials: Sequence[Trial], rows: Sequence[str] = ("refined",)) -> list[dict]:
    """Mean and standard deviation over the seeds for each config, test set and feature, with the model's cost."""
    out = []
    for name in dict.fromkeys(t.name for t in trials):
        done = [t for t in trials if t.name == name]
        results = [t.result for t in done if t.result]
        if not results:
            continue
        cost = {
            **next(t.cost for t in done if t.cost),
            "steps": _mean_and_sd([r["steps"] for r in results]),
            "minutes": _mean_and_sd([r["seconds"] / 60 for r in results]),
        }
        if all("validation" in r for r in results):
            cost["validation"] = _mean_and_sd([r["validation"]["metric"] for r in results])
            cost["chosen_steps"] = _mean_and_sd([r["validation"]["steps"] for r in results])
        sets = [by_set(r["metrics"]) for r in results]
        for dataset in sets[0]:
            for row, prefix in _rows(sets[0][dataset], rows):
                metrics = {m: _mean_and_sd([s[dataset][prefix + m] for s in sets]) for m in METRICS}
                seeds = [t.seed for t in done if t.result]
                out.append({"name": name, "dataset": dataset, "row": row, "seeds": seeds, **metrics, **cost})
    return out


def _rows(metrics: Mapping[str, float], rows: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The result, and those of `rows` that the metrics have: name and prefix of the metrics' keys."""
    yield "result", ""
    for row in rows:
        if f"{row}/mAP" in metrics:
            yield row, f"{row}/"


def _mean_and_sd(values: Sequence[float]) -> dict[str, float | None]:
    """Mean, and sample standard deviation of two or more."""
    return {"mean": fmean(values), "sd": stdev(values) if len(values) > 1 else None}


def _with_sd(value: Mapping | None, digits: int = 1) -> str:
    if value is None:
        return ""
    sd = "" if value["sd"] is None else f" ± {value['sd']:.{digits}f}"
    return f"{value['mean']:.{digits}f}{sd}"


def _metric_with_sd(metric: str, entry: Mapping) -> str:
    return _with_sd(entry[metric])


def _number(value: float | None, scale: float = 1.0) -> str:
    return "" if value is None else f"{value / scale:.3g}"


def table(summary: Sequence[dict], trials: Sequence[Trial] = ()) -> str:
    """The summary as a Markdown table, and a line for each run that failed."""
    columns: dict[str, Callable[[dict], str]] = {
        "config": lambda s: s["name"],
        "data set": lambda s: s["dataset"],
        "row": lambda s: s["row"],
        "seeds": lambda s: str(len(s["seeds"])),
        **{m: partial(_metric_with_sd, m) for m in METRICS},
        "validation": lambda s: _with_sd(s.get("validation")),
        "M parameters": lambda s: _number(s["parameters"], 1e6),
        "M trained": lambda s: _number(s["trained"], 1e6),
        "GFLOPs": lambda s: _number(s["gflops"]),
        "head GFLOPs": lambda s: _number(s["head_gflops"]),
        "steps": lambda s: _with_sd(s["steps"], 0),
        "minutes": lambda s: _with_sd(s["minutes"]),
    }
    text = "nothing is finished"
    if summary:
        headers, cells = without_gaps(list(columns), [[cell(s) for cell in columns.values()] for s in summary])
        shown = tabulate(cells, headers, tablefmt="github", disable_numparse=True)
        text = f"{shown}\n\nPercent. {legend([*(s['row'] for s in summary), *METRICS])}"
    failed = [f"failed: {t.name}, seed {t.seed}: {t.error}" for t in trials if t.error]
    return "\n".join([text, *([""] if failed else []), *failed])


def _write(output: Path, trials: Sequence[Trial], summary: Sequence[dict]) -> None:
    write_json(output / "comparison.json", {"summary": list(summary), "runs": [asdict(t) for t in trials]})
    text = table(summary, trials) + "\n"
    write_text(output / "comparison.md", text)
