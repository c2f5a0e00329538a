"""What a step computes in: float32, or autocast to a type that the device has instructions for."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Optional

import torch

__all__ = ["autocast_dtype", "bfloat16_instructions", "cpu_info"]

logger = logging.getLogger(__name__)


def cpu_info() -> dict[str, str]:
    """What the kernel says of the first core; empty where it does not."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().split("\n\n")[0].splitlines() if file.is_file() else []
    return {key.strip(): value.strip() for key, found, value in (line.partition(":") for line in lines) if found}


def bfloat16_instructions() -> list[str]:
    """Those of this CPU that multiply bfloat16; without one of them a product takes about ten times as long as in float32."""
    info = cpu_info()
    flags = f"{info.get('flags', '')} {info.get('Features', '')}".split()
    return sorted({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def autocast_dtype(cfg: Any) -> Optional[torch.dtype]:
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
