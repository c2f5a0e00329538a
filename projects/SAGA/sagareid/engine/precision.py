"""What a step computes in: float32, or autocast to a type that the device has instructions for."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ..hardware import bfloat16_instructions

__all__ = [
    "autocast_dtype",
]

logger = logging.getLogger(__name__)


def autocast_dtype(cfg: Any) -> torch.dtype | None:
    """The type that SOLVER.AMP asks for; None for float32.

    "auto" is bfloat16 where the device has it; else float16 on a GPU, and float32 on a CPU.
    """
    amp, cpu = cfg.SOLVER.AMP, cfg.MODEL.DEVICE.split(":")[0] == "cpu"
    if not amp.ENABLED:
        return None
    if amp.DTYPE == "auto":
        if cpu:
            return torch.bfloat16 if bfloat16_instructions() else None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if cpu and not bfloat16_instructions():
        logger.warning(
            "SOLVER.AMP.DTYPE %s: this CPU has no instructions for it, and steps take many times as long as with auto",
            amp.DTYPE,
        )
    return getattr(torch, amp.DTYPE)
