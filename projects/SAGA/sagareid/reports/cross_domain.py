"""Sources and targets from the models to the files: cross_domain.json, table.md and one page that needs no network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tabulate import tabulate

from .. import compat
from ..engine import plans
from ..evaluation.tables import legend, without_gaps
from ..files import check_output, write_json, write_text
from ..hardware import machine
from ..studies import cross_domain
from ..studies.compare import Trial
from ..studies.cross_domain import Source
from ..studies.models import Model, load_models
from ..studies.occlusion_study import METRICS
from . import html

__all__ = ["PAGE", "RECORD", "TABLE", "markdown", "page", "run_cross_domain"]

RECORD, TABLE, PAGE = "cross_domain.json", "table.md", "cross_domain.html"
OTHERS = "mean of the others"
MARKS = (
    "In brackets: the source was trained on that data set, whatever the split. Mean of the others: over the sets "
    "without brackets."
)


def run_cross_domain(
    *,
    targets: Sequence[str],
    command: str,
    sources: Sequence[Source] = (),
    runs: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    config_file: str | None = None,
    opts: Sequence[str] = (),
    output: Path,
    arguments: Sequence[str] = (),
    workers: int | None = None,
    device: str | None = None,
) -> list[Trial]:
    """Train what is to be trained, evaluate every model on every target, and write the table after each target.

    Args:
        targets: data sets to test on.
        command: as typed, for the record.
        sources: a model of the config is trained on each.
        runs: ``[NAME=]PATH`` of models that are trained already, see `load_models`.
        config_file, opts: what `sources` are trained with; also where the data sets of DATASETS.CUSTOM are found.
        output: folder; runs and cells that it holds are kept.
        arguments: further arguments of tools/train_net.py.
        workers: processes that read images; None: the config's.
        device: of the evaluation; None: the one of the models' configs.

    Returns:
        The trials of the sources, those that failed among them.

    Raises:
        OSError, ValueError, RuntimeError: what is wrong with the arguments, the models or the data; nothing is trained
            then.
    """
    start = time.perf_counter()
    if not (sources or runs):
        raise ValueError("name what to evaluate: --sources SET[,SET] to train on, or --runs [NAME=]PATH")
    if (sources or opts) and not config_file:
        raise ValueError("--sources and KEY VALUE pairs need the config that is trained: name it with --config-file")
    check_output(output, folder=True)
    planned = plans.plan(config_file, opts, last=True)[-1].cfg if config_file else None
    with compat.quiet_host():
        given = load_models(runs, planned, device) if runs else []
        if both := {model.name for model in given} & {source.name for source in sources}:
            raise ValueError(f"--runs and --sources both have {', '.join(sorted(both))}; name one of them NAME=...")
        cfg = planned or given[0].cfg
        cross_domain.read_targets(cfg, targets)
    trials = cross_domain.train_sources(sources, seeds, str(config_file), output, opts, arguments) if sources else []
    finished = [f"{trial.name}={trial.result['checkpoint']}" for trial in trials if trial.result]
    if not (finished or given):
        return trials
    with compat.quiet_host():
        models = [*given, *(load_models(finished, planned, device) if finished else [])]
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = models[0].cfg.MODEL.DEVICE
        cfg.freeze()
        record = _begin(command, cfg, models, trials)
        for about, found in cross_domain.evaluate(models, targets, cfg, output, workers):
            record["targets"].append(about)
            record["results"] += found
            record["seconds"] = round(time.perf_counter() - start, 1)
            _write(output, record)
    print(f"\n{markdown(record)}\n\n{output / PAGE}")
    return trials


def _begin(command: str, cfg: Any, models: Sequence[Model], trials: Sequence[Trial]) -> dict[str, Any]:
    """The record before the first target."""
    sources = []
    for name in dict.fromkeys(model.name for model in models):
        some = [model for model in models if model.name == name]
        sources.append(
            {
                "name": name,
                "trained_on": cross_domain.trained_on(some[0]),
                "head": some[0].head,
                "backbone": some[0].cfg.MODEL.BACKBONE.NAME,
                "runs": [{"path": model.path, "seed": model.cfg.SEED, "digest": model.key} for model in some],
            }
        )
    return {
        "format": 1,
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": 0.0,
        "machine": machine(cfg.MODEL.DEVICE),
        "sources": sources,
        "targets": [],
        "results": [],
        "failed": [{"source": t.name, "seed": t.seed, "error": t.error} for t in trials if t.error],
    }


def _write(folder: Path, record: Mapping[str, Any]) -> None:
    write_json(folder / RECORD, record)
    write_text(folder / TABLE, f"`{record['command']}`\n\n{markdown(record)}\n")
    write_text(folder / PAGE, page(record))


# ---- tables ----------------------------------------------------------------------------------------------------------


def _cell(result: Mapping[str, Any], metric: str) -> str:
    value = result[metric]
    sd = "" if value["spread"] is None else f" ± {value['spread']:.1f}"
    text = f"{value['mean']:.1f}{sd}"
    return f"({text})" if result["own"] else text


def metric_table(record: Mapping[str, Any], metric: str) -> tuple[list[str], list[list[str]]]:
    """Sources in rows, targets in columns, and the mean over the targets that a source was not trained on."""
    by = {(r["source"], r["target"]): r for r in record["results"]}
    targets = [target["name"] for target in record["targets"]]
    rows = []
    for source in record["sources"]:
        name = source["name"]
        mean = cross_domain.others_mean(record["results"], name, metric)
        found = [_cell(by[name, target], metric) for target in targets]
        rows.append([name, ", ".join(source["trained_on"]), *found, "" if mean is None else f"{mean:.1f}"])
    return without_gaps(["source", "trained on", *targets, OTHERS], rows)


def _words(record: Mapping[str, Any]) -> str:
    seeds = any(len(source["runs"]) > 1 for source in record["sources"])
    return f"Percent{'; ± standard deviation over seeds' if seeds else ''}. {MARKS} " + legend(
        dict.fromkeys([*(r["feature"] for r in record["results"]), *METRICS])
    )


def markdown(record: Mapping[str, Any]) -> str:
    """A table for each metric, the targets, and a line for each run that failed."""
    parts = []
    for metric in METRICS:
        headers, rows = metric_table(record, metric)
        drawn = tabulate(rows, headers, tablefmt="github", disable_numparse=True)
        parts.append(f"**{metric}**\n\n{drawn}")
    parts.append(_words(record))
    parts += [f"failed: {failed['source']}, seed {failed['seed']}: {failed['error']}" for failed in record["failed"]]
    return "\n\n".join(parts)


def page(record: Mapping[str, Any]) -> str:
    """The record as one HTML document."""
    body = [
        html.heading(1, "Trained here, tested there"),
        html.paragraph(
            "Every model is tested on each data set by that set's own protocol, as it is: nothing is adapted to it."
        ),
    ]
    body += [html.note(f"{f['source']}, seed {f['seed']} failed: {f['error']}") for f in record["failed"]]
    for metric in METRICS:
        headers, rows = metric_table(record, metric)
        body += [html.heading(2, metric), html.table(headers, rows)]
    body.append(html.paragraph(_words(record), soft=True))
    every = [
        [r["source"], r["target"], r["feature"], m, r[m]["mean"], r[m]["low"], r[m]["high"]]
        for r in record["results"]
        for m in METRICS
    ]
    columns = ("source", "target", "feature", "metric", "percent", "least", "most")
    caption = "95 % intervals over the queries of a target, by bootstrap, of the mean over seeds"
    body.append(html.details("Every metric with its interval", html.table(columns, every, caption)))
    targets = [[t["name"], t["queries"], t["queries_with_a_match"], t["gallery"]] for t in record["targets"]]
    body += [
        html.heading(2, "Data sets"),
        html.table(("target", "queries", "with a match", "gallery images"), targets),
        html.heading(2, "Models"),
        html.table(
            ("source", "trained on", "head", "backbone", "seed", "checkpoint"),
            [
                [s["name"], ", ".join(s["trained_on"]), s["head"], s["backbone"], str(run["seed"]), run["path"]]
                for s in record["sources"]
                for run in s["runs"]
            ],
        ),
        html.paragraph(html.Html(f"<code>{html.escape(record['command'])}</code>")),
        html.paragraph(f"{record['date']}, {record['machine']['cpu']}, torch {record['machine']['torch']}.", soft=True),
    ]
    return html.page("Sources and targets", html.join(body))
