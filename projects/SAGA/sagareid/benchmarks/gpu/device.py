"""The device itself: what it is, and what its matrix products and copies reach."""

from __future__ import annotations

import torch

from ...hardware import machine
from .. import measure
from .job import Job, matrix_peak, tf32

__all__ = ["device_step"]


def device_step(job: Job) -> None:
    """What the device is, and what its matrix products and copies reach."""
    about = machine(job.device)
    if job.cuda:
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "gpus": torch.cuda.device_count(),
            "gpu_memory_gib": properties.total_memory / 2**30,
            "capability": list(torch.cuda.get_device_capability()),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    job.note(machine=about)
    rates = {}
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        rates[str(dtype).removeprefix("torch.")] = matrix_peak(job, dtype) / 1e12
    if job.cuda:
        with tf32(True):
            rates["tf32"] = matrix_peak(job, torch.float32) / 1e12
    size = (2**32 if job.cuda else 2**20) // 4
    x = torch.empty(size, device=job.device)
    y = torch.empty_like(x)
    y.copy_(x)
    seconds = min(measure.seconds(lambda: y.copy_(x), job.device, 3) for _ in range(3))
    copied = 2 * 4 * size / seconds / 1e12
    job.note(matrix_tflops=rates, copy_tb_per_second=copied)
    what = ", ".join(f"{name} {rate:.3g}" for name, rate in rates.items())
    job.say(
        f"{about.get('gpu') or about['cpu']}; products of {job.scale.peak}^2 in TFLOP/s: {what}; copy {copied:.3g} TB/s"
    )
