"""A training run as one web page: results, curves, config, ranked lists and attention. `runs` says what is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..config import flatten, get_cfg
from ..deploy.options import CALIBRATION
from ..deploy.threshold import read_calibration
from ..evaluation.tables import legend
from ..files import DamagedFile, check_output, file_hash, read_json
from ..studies.models import load_models
from . import calibration, html, pictures, rankings, study_page, visualize
from .attention import HOW_TO_READ, without_maps
from .html import Html
from .options import LISTS, REPORT
from .runs import Curve, Stage, flat_metrics, is_metric, read_run

__all__ = ["report"]

logger = logging.getLogger(__name__)

HEADLINE = ("Rank-1", "Rank-5", "Rank-10", "mAP", "mINP")
TIMING = ("time", "data_time", "eta_seconds")
# What every record of an occlusion study has.
_STUDY = {"dataset": dict, "results": list, "reference": str}
# A data set or a checkpoint of any origin may fail in these ways, which must not cost the reader the rest of the page.
FAILURES = (OSError, ValueError, RuntimeError, KeyError, TypeError)


def report(
    folder: str | Path,
    output: str | Path | None = None,
    *,
    lists: str = "last",
    dataset: str = "",
    queries: int = 3,
    device: str | None = None,
    studies: Sequence[str | Path] = (),
) -> Path:
    """Write the page of a run, or of one stage, finished or not.

    Args:
        output: None takes report.html in the folder.
        lists: ranked lists and attention of the "last" stage that has a checkpoint, of "all" stages, or of "none". They
            need the test set; without it the page says so.
        dataset: test set of the lists; empty takes the first of the stage's.
        queries: how many of the best, of those around the median and of the worst.
        device: of the model; None takes the run's.
        studies: folders of occlusion studies whose curves are shown, beside those found in the run's.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: no run there, or no study in a folder that is named.
        ValueError: an option out of range.
    """
    folder = Path(folder)
    if lists not in LISTS:
        raise ValueError(f"lists is {lists!r}; expected one of {', '.join(LISTS)}")
    if queries < 1:
        raise ValueError(f"queries is {queries}; expected 1 or more")
    output = check_output(output or folder / REPORT)
    stages = read_run(folder)
    with_weights = [stage for stage in stages if stage.checkpoint]
    listed = {"last": with_weights[-1:], "all": with_weights, "none": []}[lists]
    title = f"Run {'/'.join(folder.resolve().parts[-2:])}"
    parts = [html.heading(1, title), html.paragraph(str(folder.resolve()), soft=True), _overview(stages)]
    for stage in stages:
        parts += [html.heading(2, _title(stage), _title(stage)), *_stage(stage)]
        if stage in listed:
            parts += _lists(stage, dataset, queries, device)
    parts += _evaluations(stages)
    parts += _studies(folder, studies)
    html.write(output, title, html.join(parts), study_page.STYLE)
    return output


def _title(stage: Stage) -> str:
    return stage.name or stage.folder.resolve().name


# ---- results ---------------------------------------------------------------------------------------------------------


def _rows(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Metrics by row ("" the result of a single data set, "<data set>" or "<data set>/<row>") and name."""
    rows: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        row, _, metric = name.rpartition("/")
        rows.setdefault(row, {})[metric] = value
    return rows


def _metrics_table(metrics: Mapping[str, float], caption: str) -> Html:
    """What every row has as a table; what some have beside it, such as Rank-5 of the result, in words."""
    rows = {name or "result": row for name, row in _rows(metrics).items()}
    columns = sorted(set.intersection(*(set(row) for row in rows.values())) - {"metric"}, key=_place) if rows else []
    table = [[name, *(row[m] for m in columns)] for name, row in rows.items()]
    further = [
        f"{name}: " + ", ".join(f"{m} {row[m]:.1f}" for m in sorted(set(row) - {*columns, "metric"}, key=_place))
        for name, row in rows.items()
        if set(row) - {*columns, "metric"}
    ]
    meaning = legend([*(name.rpartition("/")[2] for name in rows), *columns])
    parts = [html.table(["feature", *columns], table, caption), *(html.paragraph(text) for text in further)]
    return html.join([*parts, html.paragraph(meaning, soft=True)] if meaning else parts)


def _state(stage: Stage) -> str:
    if stage.finished:
        return "finished"
    return f"not finished: iteration {stage.iterations}" if stage.curves else "not finished: nothing recorded"


def _overview(stages: Sequence[Stage]) -> Html:
    rows = []
    for stage in stages:
        sets = stage.config.get("DATASETS.TESTS") or [""]
        results = _rows(stage.metrics)
        for name in sets if len(sets) > 1 else [""]:
            metrics = results.get(name, {})
            minutes = stage.seconds / 60 if stage.seconds is not None else None
            link = html.link(_title(stage), _title(stage))
            rows.append(
                [link, name or sets[0], *(metrics.get(m) for m in ("Rank-1", "mAP", "mINP")), minutes, _state(stage)]
            )
    headers = ["stage", "test set", "Rank-1", "mAP", "mINP", "minutes", "state"]
    return html.table(headers, rows, "Results in percent, at the last evaluation of each stage")


def _evaluations(stages: Sequence[Stage]) -> list[Html]:
    """The results that --eval-only added later."""
    found = [e for stage in stages for e in stage.evaluation]
    if not found:
        return []
    parts = [html.heading(2, "Evaluated later")]
    for e in found:
        parts.append(_metrics_table(flat_metrics(e.get("metrics") or {}), f"{e.get('checkpoint', '')}"))
    return parts


# ---- one stage -------------------------------------------------------------------------------------------------------


def _stage(stage: Stage) -> list[Html]:
    parts = [_facts(stage)]
    if not stage.finished:
        kept = f"Its last checkpoint is {stage.checkpoint.name}." if stage.checkpoint else "It has no checkpoint yet."
        parts.append(html.note(f"This stage is {_state(stage)}. What there is so far is shown. {kept}"))
    parts += [html.note(problem) for problem in stage.problems]
    if stage.damaged:
        parts.append(html.note(f"{stage.damaged} line(s) of metrics.json cannot be read and are left out."))
    if stage.metrics:
        when = "At the end, in percent" if stage.finished else "At the last evaluation, in percent"
        parts.append(_metrics_table(stage.metrics, when))
    chosen = (stage.result or {}).get("validation")
    if chosen:
        text = (
            f"The state after epoch {chosen['epoch']} was chosen on validation "
            f"((Rank-1 + mAP) / 2 = {chosen['metric']:.1f})."
        )
        parts += [html.paragraph(text), _metrics_table(flat_metrics(chosen["metrics"]), "On validation, in percent")]
    parts += _curves(stage)
    parts += _calibration(stage)
    parts.append(_config(stage.config))
    return parts


def _calibration(stage: Stage) -> list[Html]:
    """The threshold that tools/calibrate.py found for the stage's checkpoint, if it was asked."""
    path = stage.folder / CALIBRATION
    if not path.is_file():
        return []
    try:
        found = read_calibration(path)
        if stage.checkpoint is None or file_hash(stage.checkpoint) != found["checkpoint_sha256"]:
            return [
                html.note(f"{CALIBRATION} is of another checkpoint than this stage's; run tools/calibrate.py again.")
            ]
        return calibration.section(found)
    except FAILURES as error:
        return [html.note(f"The threshold is not shown: {error}")]


def _facts(stage: Stage) -> Html:
    config = stage.config

    def names(key: str) -> str:
        return ", ".join(map(str, config.get(key) or []))

    facts = [
        ("head", config.get("MODEL.HEADS.NAME")),
        ("backbone", config.get("MODEL.BACKBONE.NAME")),
        ("trained on", names("DATASETS.NAMES")),
        ("seed", config.get("SEED")),
        ("epochs", config.get("SOLVER.MAX_EPOCH")),
        ("batch", config.get("SOLVER.IMS_PER_BATCH")),
        ("steps", (stage.result or {}).get("steps") or stage.iterations or None),
        ("device", config.get("MODEL.DEVICE")),
    ]
    return html.paragraph(" · ".join(f"{name} {value}" for name, value in facts if value not in (None, "")), soft=True)


def _curves(stage: Stage) -> list[Html]:
    """Losses and other scalars of training; evaluations where there is more than one; timing, folded."""
    losses = sorted(name for name in stage.curves if name.startswith("loss"))
    others = sorted(n for n in stage.curves if n not in (*losses, "total_loss", *TIMING) and not is_metric(n))
    total = ["total_loss"] if "total_loss" in stage.curves and len(losses) != 1 else []
    evaluated: dict[str, dict[str, Curve]] = {}
    for name in filter(is_metric, stage.curves):
        row, _, metric = name.rpartition("/")
        if metric != "metric":  # the mean of two that are shown
            evaluated.setdefault(metric, {})[row or "result"] = stage.curves[name]
    evaluated = {m: evaluated[m] for m in sorted(evaluated, key=_place)}

    def panels(names: Sequence[str]) -> dict[str, dict[str, Curve]]:
        return {name: {"": stage.curves[name]} for name in names if name in stage.curves}

    parts = [_panels("Training", panels([*total, *losses, *others]))]
    if max((len(c.iterations) for lines in evaluated.values() for c in lines.values()), default=0) > 1:
        parts.append(_panels("Evaluations", evaluated))
    timing = _panels("", panels(TIMING))
    if timing:
        parts.append(html.details("Timing, in seconds", timing))
    return [part for part in parts if part]


def _place(metric: str) -> tuple[int, str]:
    """The order of metrics: the headline ones first."""
    return (HEADLINE.index(metric) if metric in HEADLINE else len(HEADLINE), metric)


def _panels(title: str, panels: Mapping[str, Mapping[str, Curve]]) -> Html:
    if not panels:
        return Html()
    names = list(dict.fromkeys(line for lines in panels.values() for line in lines))
    figures = []
    for name, lines in panels.items():
        ends = "; ".join(
            f"{name}{f' of {line}' if len(lines) > 1 else ''}: from {c.values[0]:.4g} to {c.values[-1]:.4g}"
            for line, c in lines.items()
        )
        figure = pictures.curves({name: lines}, x="iteration", names=names)
        figures.append((figure, f"{title or 'Timing'} over iterations. {ends}."))
    drawn = "".join(f'<div class="curve">{html.svg(figure, alt)}</div>' for figure, alt in figures)
    return html.join([html.heading(3, title) if title else Html(), Html(f'<div class="curves small">{drawn}</div>')])


def _config(config: Mapping[str, Any]) -> Html:
    """What differs from the defaults, then everything; folded."""
    if not config:
        return html.note("config.yaml is empty or cannot be read.")
    defaults = flatten(get_cfg())
    missing = object()
    changed = [
        (key, value, defaults.get(key, "no such key"))
        for key, value in config.items()
        if defaults.get(key, missing) != value
    ]
    differences = html.table(["key", "value", "default"], [[_code(x) for x in row] for row in changed])
    whole = html.table(["key", "value"], [[_code(key), _code(value)] for key, value in config.items()])
    summary = f"Config: {len(changed)} of {len(config)} keys differ from the defaults"
    return html.details(summary, html.join([differences, html.details("All keys", whole)]))


def _code(value: Any) -> Html:
    return Html(f"<code>{html.escape(str(value))}</code>")


# ---- pictures --------------------------------------------------------------------------------------------------------


def _lists(stage: Stage, dataset: str, number: int, device: str | None) -> list[Html]:
    """Ranked lists of the best, median and worst queries, and every anchor over the best and the worst."""
    parts = [html.heading(3, "Ranked lists")]
    try:
        [model] = load_models([f"{_title(stage)}={stage.checkpoint}"], device=device)
        [ranked] = rankings.rank_test_set([model], dataset)
        chosen = rankings.best_median_worst(ranked, number)
        of_queries = {name: visualize.ranked_blocks([ranked], which) for name, which in chosen.items() if which}
    except FAILURES as error:
        logger.debug("ranked lists", exc_info=True)
        return [*parts, html.note(f"Left out: {type(error).__name__}: {error}")]
    gallery = len(ranked.images.items) - ranked.images.num_query
    parts.append(
        html.paragraph(
            f"{ranked.images.name}: {len(ranked.queries)} queries, {gallery} gallery images, mAP "
            f"{100 * ranked.ap.mean():.1f} with {Path(model.path).name}. AP is a query's average precision, in percent."
        )
    )
    parts.append(html.legend())
    remark = without_maps([model])
    parts.append(html.note(remark) if remark else html.paragraph(HOW_TO_READ, soft=True))
    for name, blocks in of_queries.items():
        parts += [html.heading(3, name), html.blocks(blocks)]
    if not remark:
        ends = [which[0] for name, which in chosen.items() if which and "median" not in name]
        items = [ranked.images.items[ranked.queries[v]] for v in ends]
        maps = visualize.attention_blocks([model], items, ranked.images.run_names)
        parts.append(html.details("Every anchor, over the best and the worst query", html.blocks(maps), opened=True))
    return parts


# ---- occlusion -------------------------------------------------------------------------------------------------------


def _studies(folder: Path, named: Sequence[str | Path]) -> list[Html]:
    """Curves of occlusion studies: of those named, and of those in the run's folder."""
    records = [Path(path) / study_page.RECORD for path in named]
    for record in records:
        if not record.is_file():
            raise FileNotFoundError(
                f"no {record.name} in {record.parent}: expected the output folder of an occlusion study"
            )
    found = [p for depth in ("", "*/", "*/*/") for p in sorted(folder.glob(depth + study_page.RECORD))]
    parts = []
    for path in dict.fromkeys(p.resolve() for p in (*records, *found)):
        try:
            record = read_json(path, remedy="tools/occlusion_study.py --resume writes it again", required=_STUDY)
            drawn = study_page.drawn_curves(record)
            name = record["dataset"]["name"]
        except DamagedFile as error:
            parts.append(html.note(str(error)))
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            parts.append(html.note(f"{path} cannot be read as an occlusion study ({type(error).__name__}: {error})"))
            continue
        parts += [html.heading(2, f"Occlusion, {name}"), html.paragraph(str(path.parent), soft=True), drawn]
    return parts
