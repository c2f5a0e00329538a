"""What this machine is: its processor and its devices."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

import torch

from .errors import first_line

__all__ = ["bfloat16_instructions", "compiler_problem", "cpu_info", "machine", "pick_device"]


def cpu_info() -> dict[str, str]:
    """What the kernel says of the first core; empty where it does not."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().split("\n\n")[0].splitlines() if file.is_file() else []
    return {key.strip(): value.strip() for key, found, value in (line.partition(":") for line in lines) if found}


def bfloat16_instructions() -> list[str]:
    """Those of this CPU that multiply bfloat16; without one of them a product takes about ten times as long as in
    float32."""
    info = cpu_info()
    flags = f"{info.get('flags', '')} {info.get('Features', '')}".split()
    return sorted({"avx512_bf16", "amx_bf16", "bf16"} & set(flags))


def pick_device(device: str) -> str:
    """ "auto" is the GPU where there is one, else the CPU; any other is checked, without taking memory of a GPU.

    Raises:
        ValueError: no such device here.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        asked = torch.device(device)
        if asked.type == "cuda":
            gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if (asked.index or 0) >= gpus:
                raise RuntimeError(f"PyTorch sees {gpus or 'no'} GPU here")
        else:
            torch.empty(0, device=asked)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"device {device!r} cannot be used: {first_line(error)}. Say MODEL.DEVICE cpu, or --device cpu to a tool "
            "that has it; or install a CUDA build of PyTorch and its driver"
        ) from None
    return device


def compiler_problem(device: str) -> str | None:
    """Why torch.compile cannot build kernels for a device here; None where it can."""
    if device.startswith("cuda") and importlib.util.find_spec("triton") is None:
        return "no Triton; install a build of PyTorch that brings it"
    if not any(shutil.which(os.environ.get(name, default)) for name, default in (("CC", "gcc"), ("CXX", "g++"))):
        return "no C compiler; install gcc and g++, or name them by CC and CXX"
    return None


def machine(device: str) -> dict[str, Any]:
    """What it runs on: processor, cores, threads, bfloat16 instructions, versions."""
    info = cpu_info()
    name = info.get("model name") or platform.processor()
    if "cpu family" in info:
        name += f" (family {info['cpu family']}, model {info['model']})"
    out = {
        "cpu": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "openmp": {k: v for k in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if (v := os.environ.get(k))},  # how threads wait
        "bfloat16_instructions": bfloat16_instructions(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": device,
    }
    if device.startswith("cuda"):
        out["gpu"] = torch.cuda.get_device_name()
    return out
