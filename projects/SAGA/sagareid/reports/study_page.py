"""The occlusion study for readers: a table, curves, and one page that needs no network."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from tabulate import tabulate

from .. import compat
from ..data.images import read_image
from ..engine import stages
from ..files import check_output, write_atomically, write_json, write_text
from ..hardware import machine
from ..studies.occlusion_study import CLEAN, METRICS, Options, Study, load_models
from . import html
from .html import Html
from .pictures import INK, MARKS, overlay

__all__ = ["RECORD", "SAMPLES", "STYLE", "curves", "drawn_curves", "full_table", "page", "run_study", "summary"]

RECORD = "study.json"
# as many as tell apart on light and dark; beyond them a colour comes again with another marker
COLOURS = (
    "#2a78d6", "#e07b00", "#1f9e77", "#c2478f", "#8f6bd9", "#b59a00", "#17a2b8", "#d1495b", "#6a8f3a", "#9a6b4f", "#7d8894",
    "#4f5bd5",
)  # fmt: skip
MARKERS = "os^Dv<>Pp*X"
TITLES = {
    "mask": "Masked: identity signal absent",
    "distractor": "Another person in front: identity signal confused",
}
WORDS = {"mask": "masked", "distractor": "behind another person"}
THUMB_HEIGHT, RANKED, SAMPLES = 96, 5, 4


def _records(record: dict[str, Any], results: Sequence[dict], condition: str) -> list[dict]:
    """Of one model and feature, by level, the picture with nothing hidden first."""
    same = [r for r in results if r["model"] == record["model"] and r["feature"] == record["feature"]]
    return sorted((r for r in same if r["condition"] in (CLEAN, condition)), key=lambda r: r["level"])


def _first(results: Sequence[dict], feature: str) -> list[dict]:
    """One record for each model that gives the feature, in the models' order."""
    return list({r["model"]: r for r in reversed(results) if r["feature"] == feature}.values())[::-1]


def _conditions(results: Sequence[dict]) -> list[str]:
    return [c for c in dict.fromkeys(r["condition"] for r in results) if c != CLEAN] or [CLEAN]


# ---- tables ----------------------------------------------------------------------------------------------------------


def summary(results: Sequence[dict], tablefmt: str = "pipe") -> str:
    """One small table for each condition, metric and feature: models by levels, in percent."""
    blocks = []
    features = list(dict.fromkeys(r["feature"] for r in results))
    for feature in features:
        for condition in _conditions(results):
            for metric in METRICS:
                rows, head = [], []
                for first in _first(results, feature):
                    records = _records(first, results, condition)
                    head = [f"{metric}, {WORDS.get(condition, condition)}", *(f"{r['level']:.0%}" for r in records)]
                    rows.append([first["model"], *(f"{r[metric]['mean']:.1f}" for r in records)])
                title = [f"feature: {feature}\n"] if len(features) > 1 else []
                blocks.append("\n".join([*title, tabulate(rows, head, tablefmt=tablefmt, disable_numparse=True)]))
    return "\n\n".join(blocks)


COLUMNS = ("hidden", "model", "feature", *METRICS, "difference in mAP", "spread", "weight on occluder / its area")


def _interval(figures: dict[str, float] | None, sign: str = "") -> str:
    return (
        ""
        if figures is None
        else f"{figures['mean']:{sign}.1f} [{figures['low']:{sign}.1f}, {figures['high']:{sign}.1f}]"
    )


def _cells_of(r: dict) -> list[str]:
    on = r.get("attention", {}).get("occluder")
    spread = r["mAP"]["spread"]
    return [
        f"{r['level']:.0%}",
        r["model"],
        r["row"],
        *(_interval(r[m]) for m in METRICS),
        _interval(r["mAP"].get("difference"), "+"),
        "" if spread is None else f"{spread:.1f}",
        "" if on is None else f"{on['weight']:.1f} / {on['area']:.1f}",
    ]


def full_table(results: Sequence[dict], shares: Sequence[dict], head: str) -> str:
    """Markdown: `head`, the small tables, every figure with its interval, and what was really covered."""
    parts = [head, summary(results)]
    for condition in _conditions(results):
        rows = [_cells_of(r) for r in results if r["condition"] in (CLEAN, condition)]
        parts.append(
            f"## {TITLES.get(condition, condition)}\n\n" + tabulate(rows, COLUMNS, "pipe", disable_numparse=True)
        )
    covered = [_share_cells(s) for s in shares]
    if covered:
        parts.append("## What was covered (%)\n\n" + tabulate(covered, SHARES, "pipe", disable_numparse=True))
    return "\n\n".join(parts) + "\n"


SHARES = ("condition", "level", "of the visible person: mean", "std", "least", "most", "of the picture")


def _share_cells(s: dict) -> list[str]:
    of = s["share"]
    figures = [f"{of[k]:.1f}" for k in ("mean", "std", "min", "max")]
    return [WORDS[s["condition"]], f"{100 * s['level']:.0f}", *figures, f"{s['area']['occluder']:.1f}"]


# ---- curves ----------------------------------------------------------------------------------------------------------


def _draw_metric(metric: str) -> Callable:
    def draw(axis, records: list[dict], **style) -> None:
        x = [100 * r["level"] for r in records]
        axis.plot(x, [r[metric]["mean"] for r in records], **style)
        low, high = ([r[metric][k] for r in records] for k in ("low", "high"))
        axis.fill_between(x, low, high, color=style["color"], alpha=0.12, linewidth=0)

    return draw


def _draw_difference(axis, records: list[dict], **style) -> None:
    records = [r for r in records if "difference" in r["mAP"]]
    if not records:
        return
    x = [100 * r["level"] for r in records]
    d = [r["mAP"]["difference"] for r in records]
    axis.plot(x, [v["mean"] for v in d], **style)
    axis.fill_between(x, [v["low"] for v in d], [v["high"] for v in d], color=style["color"], alpha=0.12, linewidth=0)


def _draw_attention(axis, records: list[dict], **style) -> None:
    records = [r for r in records if "attention" in r]
    if records:
        x = [100 * r["level"] for r in records]
        axis.plot(x, [r["attention"]["occluder"]["weight"] for r in records], **style)
        axis.plot(x, [r["attention"]["occluder"]["area"] for r in records], color=INK, linestyle=":", linewidth=1)


def _panels(results: Sequence[dict], reference: str) -> dict[str, tuple[str, Callable]]:
    """Name -> (title, drawing of one model's curve)."""
    panels = {m: (f"{m} (%)", _draw_metric(m)) for m in METRICS}
    if any("difference" in r["mAP"] for r in results):
        panels["difference"] = (f"mAP: ahead of {reference} (points)", _draw_difference)
    if any("attention" in r for r in results):
        panels["attention"] = ("Weight on the occluder (%); dotted: its area", _draw_attention)
    return panels


def _draw_panel(axis, results, feature: str, condition: str, title: str, draw: Callable) -> None:
    for i, first in enumerate(_first(results, feature)):
        style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)], "markersize": 4}
        draw(axis, _records(first, results, condition), linewidth=1.6, label=first["model"], **style)
    axis.set_title(title, fontsize=9, color=INK)
    axis.set_xlabel("hidden share of the visible person (%)", fontsize=8, color=INK)
    axis.tick_params(labelsize=8, colors=INK)
    axis.patch.set_alpha(0)
    axis.grid(alpha=0.25, linewidth=0.6)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom")), spine.set_color(INK)
    if "ahead" in title:
        axis.axhline(0, color=INK, linewidth=0.8)
    else:
        axis.set_ylim(bottom=0)


SVG = {"svg.fonttype": "none", "font.family": "sans-serif"}


def curves(results: Sequence[dict], reference: str, feature: str, folder: Path, stem: str = "curves") -> list[Path]:
    """All panels of a feature as PNG and SVG: a row for each condition."""
    panels, conditions = _panels(results, reference), _conditions(results)
    with matplotlib.rc_context(SVG | {"svg.hashsalt": stem}):
        figure = Figure(figsize=(3.4 * len(panels), 3.1 * len(conditions) + 0.7), dpi=120)
        axes = figure.subplots(len(conditions), len(panels), squeeze=False)
        for row, condition in zip(axes, conditions):
            for axis, (title, draw) in zip(row, panels.values()):
                _draw_panel(axis, results, feature, condition, title, draw)
            row[0].set_ylabel(WORDS.get(condition, condition), fontsize=9, color=INK)
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=min(6, len(labels)), fontsize=8, frameon=False)
        figure.tight_layout(rect=(0, 0.25 * (1 + (len(labels) - 1) // 6) / figure.get_figheight(), 1, 1))
        paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
        for path in paths:
            kind = path.suffix[1:]
            metadata = {"Date": None} if kind == "svg" else {}
            write_atomically(path, lambda to: figure.savefig(to, format=kind, facecolor="white", metadata=metadata))
    return paths


def _inline_svg(results, feature: str, condition: str, name: str, title: str, draw: Callable) -> Html:
    figure = Figure(figsize=(4.1, 2.9))
    _draw_panel(figure.subplots(), results, feature, condition, title, draw)
    figure.tight_layout()
    said = f"{title}, {WORDS.get(condition, condition)}. " + " ".join(
        f"{first['model']}: {_said(_records(first, results, condition), name)}." for first in _first(results, feature)
    )
    return Html(f'<div class="curve">{html.svg(figure, said)}</div>')


def _said(records: list[dict], name: str) -> str:
    """A curve in words: its value at each level."""
    of = {
        "difference": lambda r: r["mAP"].get("difference", {}).get("mean"),
        "attention": lambda r: r.get("attention", {}).get("occluder", {}).get("weight"),
    }.get(name, lambda r: r[name]["mean"])
    values = [(r["level"], of(r)) for r in records]
    return ", ".join(f"{value:.1f} at {level:.0%}" for level, value in values if value is not None) or "no curve"


# ---- the page --------------------------------------------------------------------------------------------------------

STYLE = f"""
.keys {{ display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: 0; margin: .6rem 0; list-style: none; font-size: .9rem; }}
.keys i {{ display: inline-block; width: 1.3rem; height: .28rem; border-radius: 2px; vertical-align: middle; margin-right: .4rem; }}
.curves {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 330px), 1fr)); gap: .6rem; }}
.curve {{ background: var(--box); border: 1px solid var(--line); border-radius: 8px; padding: .3rem; }} .curve svg {{ width: 100%; height: auto; }}
.pictures td {{ padding: .3rem .45rem; }} .pictures img {{ display: block; height: 96px; width: auto; border-radius: 3px; }}
.pictures th[scope=row] {{ position: sticky; left: 0; background: var(--page); max-width: 9.5rem; z-index: 1; }}
.strip {{ display: flex; gap: 2px; }}
.t {{ width: 24px; height: 50px; background-size: cover; background-position: center; background-clip: padding-box; }}
.t {{ border-bottom: 4px dotted {MARKS["wrong"].colour}; border-radius: 2px; }}
.t.r {{ border-bottom: 4px solid {MARKS["right"].colour}; }}
"""


def _thumbnail(image: Image.Image, height: int = THUMB_HEIGHT) -> Image.Image:
    return image.convert("RGB").resize(
        (max(1, round(image.width * height / image.height)), height), Image.Resampling.LANCZOS
    )


class _Samples:
    """Some queries at every level: the picture, what each head looks at, each model's ranked list.

    Gallery pictures recur, so each is kept once, as the background of a class of its own.
    """

    def __init__(self, study: Study, feature: str):
        self.study, self.feature = study, feature
        self.first = [study.seeds(name)[0] for name in study.names]
        self.pictures: dict[int, str] = {}

    def choose(self, number: int) -> list[int]:
        """Places in `Cell.queries`, spread evenly, whatever the models did with them."""
        valid = len(next(iter(self.study.cells.values())).queries)
        return sorted({int(i) for i in np.linspace(0, valid - 1, min(number, valid))})

    def _ranked(self, cell, place: int) -> str:
        q, items = self.study.images.num_query, self.study.images.items
        pid, strip = items[cell.queries[place]][1], []
        for rank, g in enumerate(cell.nearest[self.feature][place][:RANKED], 1):
            path, found, camid = items[q + int(g)]
            self.pictures[int(g)] = path
            right = found == pid
            said = f"rank {rank}: {'the same person' if right else 'another person'}, camera {camid + 1}"
            strip.append(
                f'<span class="t g{int(g)}{" r" if right else ""}" role="img" title="{said}" aria-label="{said}"></span>'
            )
        return f'<div class="strip">{"".join(strip)}</div>'

    def table(self, place: int, condition: str) -> str:
        study = self.study
        columns = [(c, level) for c, level in study.options.cells() if c in (CLEAN, condition)]
        index = next(iter(study.cells.values())).queries[place]
        path, pid, camid = study.images.items[index]
        images = []
        for c, level in columns:
            image = read_image(path)
            hide = c != CLEAN and study.options.occlude != "gallery"
            images.append(study.occluder(c, level)(image, path).image if hide else image)
        rows = [
            (
                "query",
                [
                    f'<img alt="query, {_said_level(*c)}" src="{html.data_uri(_thumbnail(i))}">'
                    for c, i in zip(columns, images)
                ],
            )
        ]
        for m in self.first:
            cells = [study.cells[m.key, *c] for c in columns]
            if cells[0].weights is not None:
                looks = [
                    f'<img alt="patch weights of {html.escape(m.name)}, {_said_level(*c)}" src="{html.data_uri(_thumbnail(_heat(i, cell.weights[index])))}">'
                    for c, i, cell in zip(columns, images, cells)
                ]
                rows.append((f"{m.name} looks at", looks))
        for m in self.first:
            cells = [study.cells[m.key, *c] for c in columns]
            if self.feature in cells[0].nearest:
                rows.append((f"{m.name} finds", [self._ranked(cell, place) for cell in cells]))
        head = "".join(f'<th scope="col">{level:.0%}</th>' for _, level in columns)
        body = "".join(
            f'<tr><th scope="row">{html.escape(title)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
            for title, cells in rows
        )
        caption = f"Person {pid}, camera {camid + 1}, {WORDS.get(condition, condition)}"
        return (
            f'<div class="scroll" tabindex="0"><table class="pictures"><caption>{html.escape(caption)}</caption>'
            f'<thead><tr><th scope="row"></th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def style(self) -> str:
        return "".join(
            f".g{g}{{background-image:url({html.data_uri(_thumbnail(read_image(path), 64))})}}"
            for g, path in sorted(self.pictures.items())
        )


def _said_level(condition: str, level: float) -> str:
    return "nothing hidden" if condition == CLEAN else f"{level:.0%} {WORDS[condition]}"


def _heat(image: Image.Image, weights: np.ndarray) -> Image.Image:
    return overlay(image, torch.from_numpy(weights.astype(np.float32)))


def drawn_curves(record: Mapping[str, Any]) -> Html:
    """Curves of a study by condition, each with its figures folded below.

    Args:
        record: what study.json holds.
    """
    results, reference = record["results"], record["reference"]
    panels, parts = _panels(results, reference), []
    features = list(dict.fromkeys(r["feature"] for r in results))
    for feature in features:
        title = f" (feature: {feature})" if len(features) > 1 else ""
        keys = "".join(
            f'<li><i style="background:{COLOURS[i % len(COLOURS)]}"></i>{html.escape(r["model"])}</li>'
            for i, r in enumerate(_first(results, feature))
        )
        for condition in _conditions(results):
            drawn = "".join(_inline_svg(results, feature, condition, k, *v) for k, v in panels.items())
            parts.append(html.heading(3, TITLES.get(condition, condition) + title))
            parts.append(Html(f'<ul class="keys">{keys}</ul><div class="curves">{drawn}</div>'))
            rows = [_cells_of(r) for r in results if r["condition"] in (CLEAN, condition) and r["feature"] == feature]
            caption = (
                f"Percent, with 95 % intervals over queries; difference in mAP to {reference}, paired by query; spread: "
                "standard deviation over seeds"
            )
            marked = [i for i, row in enumerate(rows) if row[1] == reference]
            parts.append(html.details("Every figure", html.table(COLUMNS, rows, caption, marked)))
    return html.join(parts)


def page(study: Study, record: dict[str, Any], samples: int) -> str:
    """The study as one HTML document: pictures inside, no script, nothing from outside.

    Args:
        record: what study.json holds.
        samples: queries shown.
    """
    o, data = study.options, record["dataset"]
    shown = _Samples(study, o.features[0])
    hidden = {"query": "the query", "gallery": "the gallery", "both": "query and gallery"}[o.occlude]
    intro = (
        f"{data['name']}: {data['queries']} queries, {data['gallery']} gallery pictures. A growing share of the visible person "
        f"in {hidden} is hidden, in the same way for every model. The person is {data['person']}. "
    )
    if data["distractors"]:
        intro += f"Pasted people come from {data['distractors']} and are nobody in the test set."
    rules = (
        "Spread evenly over the queries, not chosen by result. Bright: the patches that count most in the head's feature. "
        "Ranked lists: a solid line marks the query's person, a dotted one another. The first "
        "seed of each model."
    )
    covered = [_share_cells(s) for s in record["shares"]]
    models = [
        [m["name"], m["head"], m["backbone"], str(m["seed"]), f"{m['parameters'] / 1e6:.2f}", m["path"]]
        for m in record["models"]
    ]
    end = f"{record['date']}, {record['machine']['cpu']}, torch {record['machine']['torch']}; seed {o.seed}, {o.resamples} resamples."
    body = [
        html.heading(1, "Who is still found when part of the person is hidden?"),
        html.paragraph(intro),
        drawn_curves(record),
        html.heading(2, "Sample queries"),
        html.paragraph(rules, soft=True),
        *(Html(shown.table(place, c)) for place in shown.choose(samples) for c in _conditions(record["results"])),
        html.heading(2, "What was covered"),
        html.table(SHARES, covered, "Percent of what was asked, and what was covered"),
        html.heading(2, "Models"),
        html.table(("model", "head", "backbone", "seed", "parameters (M)", "checkpoint"), models, "Every checkpoint"),
        html.paragraph(Html(f"<code>{html.escape(record['command'])}</code>")),
        html.paragraph(end, soft=True),
    ]
    return html.page(f"Occlusion study: {data['name']}", html.join(body), STYLE + shown.style())


# ---- all of it ---------------------------------------------------------------------------------------------------------


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
        workers: processes that read images; None: the config's. device: None: the models'.
        samples: queries shown on the page.

    Returns:
        The folder.

    Raises:
        OSError, ValueError, RuntimeError: what is wrong with the arguments, the models or the data.
    """
    start = time.perf_counter()
    if opts and not config_file:
        raise ValueError(f"{' '.join(opts)}: KEY VALUE pairs change a config; name it with --config-file")
    last = stages.plan(config_file, opts)[-1] if config_file else None
    if not weights and last is None:
        raise ValueError("name trained models with --weights [NAME=]PATH, or a trained config with --config-file")
    with compat.quiet_host():
        models = load_models(weights or [str(last.folder)], last.cfg if last else None, device)
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
    results, shares = study.results(reference), study.shares()
    record = {
        "format": 1,
        "command": command,
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(cfg.MODEL.DEVICE),
        "reference": reference,
        **study.describe(),
        "shares": shares,
        "results": results,
    }
    write_json(folder / RECORD, record)
    head = f"# Occlusion study on {dataset}\n\n`{command}`\n\nPercent; 95 % intervals over queries; reference: {reference}."
    texts = {
        "table.md": full_table(results, shares, head),
        "study.html": page(study, record, samples),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    for feature in options.features:
        curves(results, reference, feature, folder, "curves" if len(options.features) == 1 else f"curves-{feature}")
    print(f"\n{summary(results)}\n\n{folder / 'study.html'}")
    return folder
