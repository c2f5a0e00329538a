"""The memory of a training step of the image tower with gradient checkpointing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import compat
from ..engine.precision import autocast_dtype
from ..engine.trainer import SAGATrainer
from .cases import optimizer_step
from .measure import peak_memory, seconds

if TYPE_CHECKING:
    from .cases import Setting

STEPS = 2  # the optimizer makes its state in the first


def training_memory(setting: Setting, batches: Sequence[int]) -> dict[str, Any]:
    """MiB at the highest point of `STEPS` steps of the stage `backbone` with MODEL.BACKBONE.GRAD_CHECKPOINT, under
    autocast as that stage has it, with the weights, gradients and optimizer state: of the GPU, or of the process.

    Args:
        batches: images of a step, in rising order: on a CPU a process keeps what it once had.
    """
    cfg = setting.cfgs["backbone"].clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.GRAD_CHECKPOINT, cfg.SOLVER.AMP.ENABLED = True, True
    dtype, kind = autocast_dtype(cfg), setting.device.split(":")[0]
    torch.manual_seed(0)
    with compat.quiet_host():
        model = SAGATrainer.build_model(cfg).train()
    with torch.no_grad():
        model.heads.text_features.normal_()
    optimizer = SAGATrainer.build_optimizer(cfg, model)[0]

    def measure(count: int) -> dict[str, Any]:
        batch = {"images": setting.images(count), "targets": setting.identity_batch(count)}

        def losses() -> dict[str, Tensor]:
            with torch.autocast(kind, dtype=dtype, enabled=dtype is not None):
                return model(batch)

        step, times = optimizer_step(optimizer, losses), []
        peak = peak_memory(lambda: times.extend(seconds(step, setting.device) for _ in range(STEPS)), setting.device)
        return {"batch": count, "peak_mib": peak, "step_seconds": min(times)}

    return {
        "autocast": "float32" if dtype is None else str(dtype).removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "batches": [measure(count) for count in sorted(batches)],
    }
