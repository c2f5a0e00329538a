"""Training steps and extraction against the plain way, and their largest costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fastreid.utils.events import EventStorage

from ...hardware import machine
from .. import cases, measure
from ..options import Size
from .job import Job, in_type, matrix_peak, operations_of, profile_of, say_profile, tf32

CASES = ("extraction", "backbone", "anchors_cached", "prompts")


@dataclass
class OpenedCase:
    """A case, and the model of our way."""

    case: cases.Case
    model: nn.Module


def open_case(job: Job, size: Size, key: str) -> OpenedCase:
    """A case, and the model of our way."""
    setting = cases.Setting(size, job.repo / "configs" / "SAGA", job.device)
    models: list[nn.Module] = []
    build = setting.model

    def kept(stage: str) -> nn.Module:
        with torch.device(job.device):  # random weights are drawn there, which is much faster for ViT-L
            models.append(build(stage))
        return models[-1]

    setting.model = kept
    torch.manual_seed(1)
    return OpenedCase(cases.COMPARISONS[key](setting), models[0])


def _timed(job: Job, key: str, opened: OpenedCase, dtype: torch.dtype | None) -> dict[str, Any]:
    case = opened.case
    plain, ours = (in_type(job, dtype, call) for call in (case.call_plain, case.call_ours))
    peak = matrix_peak(job)
    times = measure.in_turn(plain, ours, job.scale.rounds, job.device, name=key)
    operations = {"ours": operations_of(ours), "plain": operations_of(plain)}
    memory = {"ours": measure.peak_memory(ours, job.device), "plain": measure.peak_memory(plain, job.device)}
    return {
        **times,
        "images": case.images,
        "images_per_second": case.images / times["ours_seconds"],
        "gflop": {name: n / 1e9 for name, n in operations.items()},
        "bf16_peak_tflops": peak / 1e12,
        "share_of_peak": {
            "ours": operations["ours"] / times["ours_seconds"] / peak,
            "plain": operations["plain"] / times["plain_seconds"] / peak,
        },
        "peak_memory_mib": memory,
    }


def _say_times(job: Job, name: str, row: dict[str, Any]) -> None:
    memory = "/".join(
        "?" if m is None else f"{m / 1024:.1f}" for m in (row["peak_memory_mib"][w] for w in ("plain", "ours"))
    )
    job.say(
        f"{name}: {row['images_per_second']:.0f} images/s, plain/ours {row['ratio']['median']:.2f} "
        f"({row['plain_seconds'] * 1e3:.1f}/{row['ours_seconds'] * 1e3:.1f} ms), "
        f"{row['share_of_peak']['ours']:.0%} of bf16 peak, {memory} GiB"
    )


def training_step(name: str) -> Callable[[Job], None]:
    def run(job: Job) -> None:
        rows: dict[str, Any] = {}
        job.note(machine=machine(job.device))
        size = job.scale.models.get(name)
        if size is None:
            job.skip(f"no {name} model at this size")
            return
        with EventStorage(0):
            for key in CASES:
                with job.part(f"{name} {key}"):
                    opened = open_case(job, size, key)
                    rows[key] = row = {"plain": opened.case.plain}
                    with tf32(False):
                        ours, plain = opened.case.values_ours(), opened.case.values_plain()
                        row["largest_difference"] = cases.largest_difference(ours, plain)
                        del ours, plain
                    if job.cuda:
                        torch.cuda.empty_cache()
                    row["bfloat16"] = _timed(job, key, opened, torch.bfloat16)
                    job.note(cases=rows)
                    _say_times(job, f"{name} {key} bf16", row["bfloat16"])
                    if key == "anchors_cached":  # published in float32
                        row["float32"] = _timed(job, key, opened, None)
                        _say_times(job, f"{name} {key} float32", row["float32"])
                    row["profile"] = profile_of(job, in_type(job, torch.bfloat16, opened.case.call_ours))
                    job.note(cases=rows)
                    say_profile(job, f"{name} {key}", row["profile"])
                    del opened

    run.__doc__ = f"Training steps and extraction of {name}, bfloat16, against the plain way; the three largest costs."
    return run
