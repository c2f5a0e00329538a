"""What tools/calibrate.py found, as text, as a picture and as a part of a run's page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.ticker
from matplotlib.figure import Figure
from tabulate import tabulate

from ..evaluation.verification import ENOUGH
from ..files import write_atomically
from . import html
from .html import Html
from .pictures import INK, LINES, names_as_they_are

__all__ = ["draw", "markdown", "section", "text"]

INKED = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")

RATES = ("rate", "found", "95 % interval", "threshold")
NAMES = {
    "same": "one person, two cameras",
    "other": "two people, two cameras",
    "other_within_a_camera": "two people, one camera",
}


def _percent(value: float | None) -> str:
    return "no pair" if value is None else f"{100 * value:.3g} %"


def _wanted(found: Mapping[str, Any]) -> str:
    [(kind, rate)] = found["wanted"].items()
    return f"{kind.upper()} of at most {_percent(rate)}"


def _where(found: Mapping[str, Any]) -> str:
    data, pairs = found["dataset"], found["pairs"]
    return (
        f"{data['name']}: {data['people']} people, {data['cameras']} cameras, {data['queries']} queries, "
        f"{data['gallery']} gallery images; in two cameras {pairs['same']} pairs of one person, {pairs['other']} of two"
    )


def _at_threshold(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    at = found["at_threshold"]
    return [
        ("FMR: two people in two cameras called one", _percent(at["fmr"])),
        ("the same within one camera", _percent(at["fmr_within_a_camera"])),
        ("TPR: one person in two cameras recognised", _percent(at["tpr"])),
        ("FAR: searches for a stranger that are answered", _percent(at["far"])),
        ("DIR: searches for somebody there that are answered rightly", _percent(at["dir"])),
    ]


def _rates(found: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    rows = []
    for key, right, false in (("tpr_at_fpr", "TPR", "FPR"), ("dir_at_far", "DIR", "FAR")):
        for rate, value in found[key].items():
            if value is None:
                rows.append((f"{right} at {false} {rate}", f"too few to tell: below {ENOUGH} false ones", "", ""))
            else:
                interval = " to ".join(_percent(end) for end in value["interval"])
                rows.append(
                    (f"{right} at {false} {rate}", _percent(value["right"]), interval, f"{value['threshold']:.4f}")
                )
    return rows


def _heading(found: Mapping[str, Any]) -> str:
    low, high = found["interval"]
    return f"Threshold {found['threshold']:.4f} (95 % interval {low:.4f} to {high:.4f}) for a {_wanted(found)}"


def text(found: Mapping[str, Any]) -> str:
    """For the screen."""
    rates = tabulate(_rates(found), ["", "found", "95 % interval", "threshold"], disable_numparse=True)
    at = tabulate(_at_threshold(found), tablefmt="plain", disable_numparse=True)
    return "\n\n".join([_where(found), _heading(found), at, rates, ""])


def markdown(found: Mapping[str, Any]) -> str:
    """For a model card."""
    where = f"{_heading(found)}; found on {found['date']} on {_where(found)}."
    at = tabulate(_at_threshold(found), ["at the threshold", "share"], tablefmt="pipe", disable_numparse=True)
    rates = tabulate(_rates(found), list(RATES), tablefmt="pipe", disable_numparse=True)
    return "\n\n".join([where, at, rates])


def section(found: Mapping[str, Any]) -> list[Html]:
    """For the page of a run."""
    figure = html.svg(_figure(found, INK), f"{_heading(found)}. {_where(found)}.")
    return [
        html.heading(3, "Threshold"),
        html.paragraph(f"{_heading(found)}; found on {found['date']} on {_where(found)}.", soft=True),
        html.table(["at the threshold", "share"], [list(row) for row in _at_threshold(found)]),
        Html(f'<div class="scroll" tabindex="0">{figure}</div>'),
        html.table(list(RATES), [list(row) for row in _rates(found)]),
    ]


def draw(found: Mapping[str, Any], path: str | Path) -> None:
    """Histograms, and the rates of right and false matches, as a picture file (.png, .svg or .pdf)."""
    figure = _figure(found)
    suffix = Path(path).suffix.lstrip(".")
    with names_as_they_are():
        write_atomically(path, lambda temporary: figure.savefig(temporary, format=suffix))


def _figure(found: Mapping[str, Any], ink: str = "black") -> Figure:
    with names_as_they_are(dict.fromkeys(INKED, ink) | {"font.size": 8}):
        figure = Figure(figsize=(9, 3), dpi=130)
        shares, rates = figure.subplots(1, 2)
        histograms = found["histograms"]
        for name, (colour, line) in zip(NAMES, LINES):
            if any(histograms[name]):
                shares.stairs(histograms[name], histograms["edges"], color=colour, linestyle=line, label=NAMES[name])
        shares.axvline(found["threshold"], color="#7f7f7f", linewidth=1)
        shares.set(xlabel="similarity; the line is the threshold", ylabel="share of the pairs")
        shares.set_title(f"{found['dataset']['name']}", fontsize=8.5)
        labels = {"roc": "pairs: TPR over FPR", "identification": "searches: DIR over FAR"}
        for (name, label), (colour, line) in zip(labels.items(), LINES):
            curve = found["curves"][name]
            rates.plot(curve["false"], curve["right"], color=colour, linestyle=line, label=label)
        rates.set(xscale="log", ylim=(0, 1.02), xlabel="share of false ones", ylabel="share of right ones")
        rates.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        rates.set_title("Right and false answers", fontsize=8.5)
        for axis in (shares, rates):
            axis.legend(fontsize=7, frameon=False)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=7)
        figure.tight_layout()
    return figure
