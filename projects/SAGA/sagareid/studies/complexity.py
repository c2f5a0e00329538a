"""The size and the computational cost of a model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from ..benchmarks.measure import count_flops

__all__ = [
    "Complexity",
    "complexity",
]


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a model as it is evaluated, without a text tower whose anchors are stored.

    Attributes:
        parameters: number of all parameters.
        trained: number of those that training changes.
        gflops: 1e9 floating-point operations for one image, two per multiply-add; matrix products, convolutions and
            attention are counted.
        head_parameters, head_gflops: those of `model.heads`; None for a model without one, such as FastReID's MGN.
    """

    parameters: int
    trained: int
    gflops: float
    head_parameters: int | None
    head_gflops: float | None


def complexity(cfg, model: nn.Module) -> Complexity:
    """Measure a model in evaluation mode, as `load_model` gives it, on one image of INPUT.SIZE_TEST."""
    images = torch.zeros(1, 3, *cfg.INPUT.SIZE_TEST, device=model.get_buffer("pixel_mean").device)
    counter = count_flops(lambda: model({"images": images}))
    heads = getattr(model, "heads", None)
    of_heads = counter.get_flop_counts().get(f"{type(model).__name__}.heads", {})
    return Complexity(
        parameters=_count(model),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        gflops=counter.get_total_flops() / 1e9,
        head_parameters=None if heads is None else _count(heads),
        head_gflops=None if heads is None else sum(of_heads.values()) / 1e9,
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
