"""An occlusion study from the models to the files: study.json, tables, curves and one page that needs no network."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from .. import compat
from ..engine import plans
from ..files import check_output, write_json, write_text
from ..hardware import machine
from ..studies.models import load_models
from ..studies.occlusion_study import Study
from ..studies.options import CLEAN, Options
from . import html, study_samples
from .html import Html
from .options import SAMPLES
from .study_curves import colour_of, curves, inline_curve, panels_of
from .study_samples import Samples
from .study_tables import (
    COLUMNS,
    SHARES,
    TITLES,
    cells_of,
    conditions_of,
    features_of,
    full_table,
    legend_of,
    models_giving,
    share_cells,
    summary,
)

__all__ = [
    "RECORD",
    "STYLE",
    "drawn_curves",
    "page",
    "run_study",
]

RECORD, PAGE = "study.json", "study.html"


STYLE = """
.keys { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: 0; margin: .6rem 0; list-style: none; }
.keys { font-size: .9rem; }
.keys i { display: inline-block; width: 1.3rem; height: .28rem; border-radius: 2px; vertical-align: middle; }
.keys i { margin-right: .4rem; }
"""


def drawn_curves(record: Mapping[str, Any]) -> Html:
    """Curves of a study by condition, each with its metrics folded below.

    Args:
        record: what study.json holds.
    """
    results, reference = record["results"], record["reference"]
    panels, parts = panels_of(results, reference), []
    features = features_of(results)
    caption = (
        f"Percent, with 95 % intervals over queries; difference in mAP to {reference}, paired by query; spread: "
        f"standard deviation over seeds. {legend_of(results)}"
    )
    for feature in features:
        title = f" (feature: {feature})" if len(features) > 1 else ""
        keys = "".join(
            f'<li><i style="background:{colour_of(i)}"></i>{html.escape(model)}</li>'
            for i, model in enumerate(models_giving(results, feature))
        )
        for condition in conditions_of(results):
            drawn = "".join(inline_curve(panel, results, feature, condition) for panel in panels)
            parts.append(html.heading(3, TITLES.get(condition, condition) + title))
            parts.append(Html(f'<ul class="keys">{keys}</ul><div class="curves">{drawn}</div>'))
            rows = [cells_of(r) for r in results if r["condition"] in (CLEAN, condition) and r["feature"] == feature]
            marked = [i for i, row in enumerate(rows) if row[1] == reference]
            parts.append(html.details("Every metric", html.table(COLUMNS, rows, caption, marked)))
    return html.join(parts)


def page(study: Study, record: dict[str, Any], samples: int) -> str:
    """The study as one HTML document: pictures inside, no script, nothing from outside.

    Args:
        record: what study.json holds.
        samples: queries shown.
    """
    options, data = study.options, record["dataset"]
    shown = Samples(study, options.features[0])
    conditions = conditions_of(record["results"])
    tables = [shown.table(place, condition) for place in shown.choose(samples) for condition in conditions]
    models = [
        [m["name"], m["head"], m["backbone"], str(m["seed"]), f"{m['parameters'] / 1e6:.2f}", m["path"]]
        for m in record["models"]
    ]
    end = (
        f"{record['date']}, {record['machine']['cpu']}, torch {record['machine']['torch']}; seed {options.seed}, "
        f"{options.resamples} resamples."
    )
    covered = [share_cells(s) for s in record["shares"]]
    body = [
        html.heading(1, "Who is still found when part of the person is hidden?"),
        html.paragraph(_introduction(data, options.occlude)),
        drawn_curves(record),
        html.heading(2, "Sample queries"),
        html.paragraph(_HOW_TO_READ_SAMPLES, soft=True),
        *tables,
        html.heading(2, "What was covered"),
        html.table(SHARES, covered, "Percent of what was asked, and what was covered"),
        html.heading(2, "Models"),
        html.table(("model", "head", "backbone", "seed", "parameters (M)", "checkpoint"), models, "Every checkpoint"),
        html.paragraph(Html(f"<code>{html.escape(record['command'])}</code>")),
        html.paragraph(end, soft=True),
    ]
    style = STYLE + study_samples.STYLE + shown.style()
    return html.page(f"Occlusion study: {data['name']}", html.join(body), style)


_HOW_TO_READ_SAMPLES = (
    "They are spread evenly over the queries, not chosen by result. Bright patches count most in the head's feature. "
    "In ranked lists a solid line marks the query's person and a dotted one another person. Of each model the first "
    "seed is shown."
)


def _introduction(data: Mapping[str, Any], occlude: str) -> str:
    hidden = {"query": "the query", "gallery": "the gallery", "both": "query and gallery"}[occlude]
    some = f" of {data['queries_of']}, spread evenly over them" if data["queries"] < data["queries_of"] else ""
    text = (
        f"{data['name']}: {data['queries']} queries{some}, {data['gallery']} gallery pictures. A growing share of the "
        f"visible person in {hidden} is hidden, in the same way for every model. The person is {data['person']}. "
    )
    if data["distractors"]:
        text += f"Pasted people come from {data['distractors']}; "
        text += (
            "none of them is in the test set."
            if data["distractors_known"]
            else "who they are is not known, so nobody of the test set could be left out."
        )
    return text


def run_study(
    options: Options,
    *,
    command: str,
    config_file: str | None = None,
    opts: Sequence[str] = (),
    weights: Sequence[str] = (),
    dataset: str | None = None,
    reference: str | None = None,
    output: Path | None = None,
    resume: bool = False,
    workers: int | None = None,
    device: str | None = None,
    samples: int = SAMPLES,
) -> Path:
    """Run a study and write study.json, table.md, curves and study.html; prints the small tables.

    Args:
        command: as typed, for the record.
        config_file, opts: name the test set, and the trained result where `weights` names none.
        weights: see `load_models`.
        dataset: test set; None: the first of the config, or of the first model.
        reference: model that differences are taken to; None: the last.
        output: None: logs/occlusion_study/<dataset>.
        resume: keep the cells that are there.
        workers: processes that read images; None: the config's.
        device: of the models; None: the one of their configs.
        samples: queries shown on the page.

    Returns:
        The folder.

    Raises:
        OSError, ValueError, RuntimeError: what is wrong with the arguments, the models or the data.
    """
    start = time.perf_counter()
    if opts and not config_file:
        raise ValueError(f"{' '.join(opts)}: KEY VALUE pairs change a config; name it with --config-file")
    last = plans.plan(config_file, opts, last=True)[-1] if config_file else None
    if weights:
        paths = list(weights)
    elif last is not None:
        paths = [str(last.folder)]
    else:
        raise ValueError("name trained models with --weights [NAME=]PATH, or a trained config with --config-file")
    with compat.quiet_host():
        models = load_models(paths, last.cfg if last else None, device)
        cfg = (last.cfg if last else models[0].cfg).clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = models[0].cfg.MODEL.DEVICE
        cfg.freeze()
        dataset = dataset or cfg.DATASETS.TESTS[0]
        reference = reference or models[-1].name
        if reference not in [m.name for m in models]:
            names = ", ".join(dict.fromkeys(m.name for m in models))
            raise ValueError(f"the reference {reference!r} is none of the models {names}")
        folder = Path(output or Path("logs/occlusion_study") / dataset)
        check_output(folder, folder=True)
        study = Study(cfg, dataset, models, options, folder, workers).run(resume)
    record = {
        "format": 1,
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(cfg.MODEL.DEVICE),
        "reference": reference,
        **study.describe(),
        "shares": study.shares(),
        "results": study.results(reference),
    }
    _write(study, record, samples)
    print(f"\n{summary(record['results'])}\n\n{legend_of(record['results'])}\n\n{folder / PAGE}")
    return folder


def _write(study: Study, record: dict[str, Any], samples: int) -> None:
    """Write the record of a study into its folder, as data and for readers."""
    folder, results, reference = study.folder, record["results"], record["reference"]
    write_json(folder / RECORD, record)
    head = (
        f"# Occlusion study on {study.dataset}\n\n`{record['command']}`\n\n"
        f"Percent; 95 % intervals over queries; reference: {reference}."
    )
    write_text(folder / "table.md", full_table(results, record["shares"], head))
    write_text(folder / PAGE, page(study, record, samples))
    for feature in study.options.features:
        stem = "curves" if len(study.options.features) == 1 else f"curves-{feature}"
        curves(results, reference, feature, folder, stem)
