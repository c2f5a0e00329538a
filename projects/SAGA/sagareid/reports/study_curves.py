"""Curves of an occlusion study over the hidden share: as files, and inside the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ..files import write_atomically
from ..studies.occlusion_study import METRICS
from . import html
from .html import Html
from .pictures import INK, clean, names_as_they_are
from .study_tables import WORDS, conditions_of, models_giving, records_of

__all__ = ["Panel", "colour_of", "curves", "inline_curve", "panels_of"]

# As many as can be told apart on light and dark; beyond them a colour comes again with another marker.
_COLOURS = (
    "#2a78d6", "#e07b00", "#1f9e77", "#c2478f", "#8f6bd9", "#b59a00",
    "#17a2b8", "#d1495b", "#6a8f3a", "#9a6b4f", "#7d8894", "#4f5bd5",
)  # fmt: skip
_MARKERS = "os^Dv<>Pp*X"
_SVG: dict[Any, Any] = {"svg.fonttype": "none", "font.family": "sans-serif"}


class Panel:
    """One quantity over the hidden share, a curve a model.

    Attributes:
        value: gives the quantity in a record; None where the record has none.
        bounds: gives its interval; None for a quantity without.
        baseline: gives what the curve is compared with, drawn dotted; None for nothing.
    """

    def __init__(
        self,
        title: str,
        value: Callable[[dict], float | None],
        bounds: Callable[[dict], tuple[float, float]] | None = None,
        baseline: Callable[[dict], float] | None = None,
        signed: bool = False,
    ):
        self.title, self.value, self.bounds, self.baseline, self.signed = title, value, bounds, baseline, signed

    def draw(self, axis: Axes, records: Sequence[dict], colour: str, marker: str) -> None:
        """The curve of one model, whose records come by level."""
        values = [v for r in records if (v := self.value(r)) is not None]
        records = [r for r in records if self.value(r) is not None]
        if not records:
            return
        x = [100 * r["level"] for r in records]
        axis.plot(x, values, linewidth=1.6, color=colour, marker=marker, ms=4)
        if self.bounds:
            low, high = zip(*(self.bounds(r) for r in records))
            axis.fill_between(x, low, high, color=colour, alpha=0.12, linewidth=0)
        if self.baseline:
            axis.plot(x, [self.baseline(r) for r in records], color=INK, linestyle=":", linewidth=1)

    def in_words(self, records: Sequence[dict]) -> str:
        """The curve of one model: its value at each level."""
        values = [(r["level"], self.value(r)) for r in records]
        return ", ".join(f"{v:.1f} at {level:.0%}" for level, v in values if v is not None) or "no curve"


def _mean(metric: str, record: dict) -> float:
    return record[metric]["mean"]


def _ends(metric: str, record: dict) -> tuple[float, float]:
    return record[metric]["low"], record[metric]["high"]


def panels_of(results: Sequence[dict], reference: str) -> list[Panel]:
    """Each metric; the difference to the reference and the weight on the occluder where the study has them."""
    panels = [Panel(f"{m} (%)", partial(_mean, m), partial(_ends, m)) for m in METRICS]
    if any("difference" in r["mAP"] for r in results):
        panels.append(
            Panel(
                f"mAP: ahead of {reference} (points)",
                lambda r: r["mAP"].get("difference", {}).get("mean"),
                lambda r: _ends("difference", r["mAP"]),
                signed=True,
            )
        )
    if any("attention" in r for r in results):
        panels.append(
            Panel(
                "Weight on the occluder (%); dotted: its area",
                lambda r: r.get("attention", {}).get("occluder", {}).get("weight"),
                baseline=lambda r: r["attention"]["occluder"]["area"],
            )
        )
    return panels


def colour_of(number: int) -> str:
    """The colour of the model at this place of the study."""
    return _COLOURS[number % len(_COLOURS)]


def _style_of(number: int) -> dict[str, Any]:
    return {"color": colour_of(number), "marker": _MARKERS[number % len(_MARKERS)]}


def _draw_panel(axis: Axes, panel: Panel, results: Sequence[dict], feature: str, condition: str) -> None:
    for i, model in enumerate(models_giving(results, feature)):
        records, style = records_of(model, feature, condition, results), _style_of(i)
        panel.draw(axis, records, colour=style["color"], marker=style["marker"])
    axis.set_title(clean(panel.title), fontsize=9, color=INK)
    axis.set_xlabel("hidden share of the visible person (%)", fontsize=8, color=INK)
    axis.tick_params(labelsize=8, colors=INK)
    axis.patch.set_alpha(0)
    axis.grid(alpha=0.25, linewidth=0.6)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(INK)
    if panel.signed:
        axis.axhline(0, color=INK, linewidth=0.8)
    else:
        axis.set_ylim(bottom=0)


def curves(results: Sequence[dict], reference: str, feature: str, folder: Path, stem: str = "curves") -> list[Path]:
    """Write all panels of a feature as PNG and SVG, a line of panels for each condition."""
    panels, conditions = panels_of(results, reference), conditions_of(results)
    with names_as_they_are(_SVG | {"svg.hashsalt": clean(stem)}):
        figure = Figure(figsize=(3.4 * len(panels), 3.1 * len(conditions) + 0.7), dpi=120)
        axes = figure.subplots(len(conditions), len(panels), squeeze=False)
        for line, condition in zip(axes, conditions):
            for axis, panel in zip(line, panels):
                _draw_panel(axis, panel, results, feature, condition)
            line[0].set_ylabel(WORDS.get(condition, condition), fontsize=9, color=INK)
        labels = [clean(model) for model in models_giving(results, feature)]
        handles = [Line2D([], [], linewidth=1.6, ms=4, **_style_of(i)) for i in range(len(labels))]
        figure.legend(handles, labels, loc="lower center", ncols=min(6, len(labels)), fontsize=8, frameon=False)
        figure.tight_layout(rect=(0, 0.25 * (1 + (len(labels) - 1) // 6) / figure.get_figheight(), 1, 1))
        paths = [folder / f"{stem}.png", folder / f"{stem}.svg"]
        for path in paths:
            form = path.suffix[1:]
            metadata = {"Date": None} if form == "svg" else {}  # the same study gives the same bytes
            write = partial(figure.savefig, format=form, facecolor="white", metadata=metadata)
            write_atomically(path, write)
    return paths


def inline_curve(panel: Panel, results: Sequence[dict], feature: str, condition: str) -> Html:
    """A panel inside a page, with its values as the text for readers who do not see it."""
    with names_as_they_are():
        figure = Figure(figsize=(4.1, 2.9))
        _draw_panel(figure.subplots(), panel, results, feature, condition)
        figure.tight_layout()
    curves_in_words = (
        f"{model}: {panel.in_words(records_of(model, feature, condition, results))}."
        for model in models_giving(results, feature)
    )
    alt = f"{panel.title}, {WORDS.get(condition, condition)}. {' '.join(curves_in_words)}"
    return Html(f'<div class="curve">{html.svg(figure, alt)}</div>')
