"""The result of a benchmark of steps: what the file holds, and the report in Markdown."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tabulate import tabulate


@dataclass
class Result:
    """Everything that one command measured; `asdict` of it is the JSON."""

    command: str
    date: str
    size: str
    machine: dict[str, Any]
    model: dict[str, Any]
    peak_gflops: dict[str, dict[str, float]] = field(default_factory=dict)
    cases: list[dict[str, Any]] = field(default_factory=list)
    forms: list[dict[str, Any]] = field(default_factory=list)
    tower: dict[str, Any] | None = None
    bfloat16: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    loading: dict[str, Any] | None = None
    peak_memory_mib: float = 0.0


def table(result: Result) -> str:
    """The report in Markdown: command, machine and date, then the measurements."""
    m = result.machine
    peaks = ", ".join(f"{k} {v['best']:.0f} GFLOP/s" for k, v in result.peak_gflops.items())
    lines = [
        f"`{result.command}`, {result.date}. {m.get('gpu') or m['cpu']}, {m['cores']} cores, {m['threads']} threads, "
        f"torch {m['torch']}. {result.model['name']} at {'x'.join(map(str, result.model['image']))}, random weights.",
        "",
        f"Matrix products reach {peaks} here and now. Peak memory of the process {result.peak_memory_mib:.0f} MiB.",
    ]
    if result.cases:
        lines += ["", _case_table(result.cases), "", *(f"Plain {c['case']}: {c['plain']}." for c in result.cases)]
    if result.forms:
        lines += ["", _form_table(result.forms)]
    if result.tower:
        lines += ["", _tower_line(result.tower)]
    if result.bfloat16:
        lines += ["", _bfloat16_line(result.bfloat16)]
    if result.memory:
        lines += ["", _memory_line(result.memory)]
    if result.loading:
        lines += ["", _loading_line(result.loading)]
    return "\n".join(lines)


def _case_table(cases: list[dict[str, Any]]) -> str:
    rows = []
    for case in cases:
        median, target, memory = case["ratio"]["median"], case["target"], case["peak_memory_mib"]
        cells = {
            "case": case["case"],
            "batch": case["images"],
            "plain ms": f"{case['plain_seconds'] * 1e3:.1f}",
            "ours ms": f"{case['ours_seconds'] * 1e3:.1f}",
            "ratio (quartiles)": _with_quartiles(case["ratio"], ".2f"),
            "target": "" if target is None else f"{target:g} {'met' if median >= target else 'MISSED'}",
            "images/s": f"{case['images_per_second']:.1f}",
            "MiB plain / ours": "" if memory["ours"] is None else f"{memory['plain']:.0f} / {memory['ours']:.0f}",
            "differ by": f"{case['largest_difference']:.0e}",
        }
        rows.append(cells)
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def _form_table(forms: list[dict[str, Any]]) -> str:
    rows = [
        {
            "form": measured["form"],
            "case": measured["case"],
            "batch": measured["images"],
            "without ms": f"{measured['without_seconds'] * 1e3:.1f}",
            "with ms": f"{measured['with_seconds'] * 1e3:.1f}",
            "ratio (quartiles)": _with_quartiles(measured["ratio"], ".3f"),
            "pairs": measured["rounds"],
            "differ by": f"{measured['largest_difference']:.0e}",
        }
        for measured in forms
    ]
    return tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True)


def _with_quartiles(measured: dict[str, float], form: str) -> str:
    return f"{measured['median']:{form}} ({measured['low']:{form}} to {measured['high']:{form}})"


def _tower_line(tower: dict[str, Any]) -> str:
    return (
        f"Image tower: {tower['gflop_per_image']:.2f} GFLOP an image; {tower['tower_gflops']:.0f} GFLOP/s alone, "
        f"{_with_quartiles(tower['tower_share_of_peak'], '.0%')} of the float32 peak, measured before each call; "
        f"in the whole evaluation forward {_with_quartiles(tower['forward_share_of_peak'], '.0%')}."
    )


def _bfloat16_line(measured: dict[str, Any]) -> str:
    ratio = measured["ratio"]
    turned = ", ".join(f"{k} {v:.1e}" for k, v in measured["largest_cosine_difference"].items())
    return (
        f"Extraction under bfloat16 autocast: {ratio['median']:.2f} times as fast as float32 "
        f"({ratio['low']:.2f} to {ratio['high']:.2f}), {measured['images_per_second']:.1f} images/s; "
        f"largest 1 - cosine of a feature: {turned}."
    )


def _memory_line(measured: dict[str, Any]) -> str:
    steps = [
        f"batch {m['batch']}: {'unknown' if m['peak_mib'] is None else format(m['peak_mib'], '.0f')} MiB, "
        f"{m['step_seconds']:.1f} s a step"
        for m in measured["batches"]
    ]
    return (
        "Highest memory while the image tower trains with gradient checkpointing, "
        f"{measured['parameters'] / 1e6:.0f} M parameters, {measured['autocast']}: {'; '.join(steps)}."
    )


def _loading_line(measured: dict[str, Any]) -> str:
    return (
        f"Images per second with {measured['workers']} worker(s): loading alone "
        f"{measured['loading_images_per_second']:.0f}, model alone {measured['model_images_per_second']:.1f}, "
        f"both {measured['both_images_per_second']:.1f}; the limit is {measured['limit']}. "
        f"Loading with the training transform {measured['training_loading_images_per_second']:.0f}."
    )


def as_json(result: Result) -> dict[str, Any]:
    """What the output file holds."""
    return asdict(result)
