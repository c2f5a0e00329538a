"""How large and how dear a model is."""

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
    """Of a model as it is evaluated (a text tower whose anchors are stored is no part of it).

    Attributes:
        parameters: all of them. trained: those that training changes.
        gflops: 1e9 floating-point operations of one image, a multiplication and an addition being two; matrix products,
            convolutions and attention are counted.
        head_parameters, head_gflops: of `model.heads`; None for a model without, such as FastReID's MGN.
    """

    parameters: int
    trained: int
    gflops: float
    head_parameters: int | None
    head_gflops: float | None


def complexity(cfg, model: nn.Module) -> Complexity:
    """Count a model in evaluation mode, as `load_model` gives it, on one image of INPUT.SIZE_TEST."""
    images = torch.zeros(1, 3, *cfg.INPUT.SIZE_TEST, device=model.pixel_mean.device)
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
