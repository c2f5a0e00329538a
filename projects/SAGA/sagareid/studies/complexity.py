"""The size and the computational cost of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from fastreid.modeling.backbones import build_backbone

from ..benchmarks.measure import count_flops
from ..structures import as_features

__all__ = [
    "Complexity",
    "TowerComplexity",
    "complexity",
    "tower_complexity",
]


@dataclass(frozen=True)
class Complexity:
    """Size and cost of a model as it is evaluated, without a text tower whose anchors are stored.

    Attributes:
        parameters: number of all parameters.
        trained: number of those that training changes: MODEL.TRAINABLE, less what was built frozen.
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
    trainable = cfg.MODEL.TRAINABLE or ["*"]  # which loading a model leaves alone
    images = torch.zeros(1, 3, *cfg.INPUT.SIZE_TEST, device=model.get_buffer("pixel_mean").device)
    counter = count_flops(lambda: model({"images": images}))
    heads = getattr(model, "heads", None)
    of_heads = counter.get_flop_counts().get(f"{type(model).__name__}.heads", {})
    return Complexity(
        parameters=_count(model),
        trained=sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad and any(fnmatchcase(name, pattern) for pattern in trainable)
        ),
        gflops=counter.get_total_flops() / 1e9,
        head_parameters=None if heads is None else _count(heads),
        head_gflops=None if heads is None else sum(of_heads.values()) / 1e9,
    )


@dataclass(frozen=True)
class TowerComplexity:
    """Size and cost of a backbone alone.

    Attributes:
        width: D of a patch token. grid: (h, w) of the patches.
        parameters: number of all parameters, of the layers behind the token layer, too.
        gflops: as of `Complexity`, of the whole backbone.
    """

    width: int
    grid: tuple[int, int]
    parameters: int
    gflops: float


def tower_complexity(cfg: Any, size: Sequence[int] = (256, 128)) -> TowerComplexity:
    """The backbone of a configuration on one image of (H, W), without values: neither weights nor time are needed."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.PRETRAIN, cfg.INPUT.SIZE_TRAIN, cfg.INPUT.SIZE_TEST = False, list(size), list(size)
    with torch.device("meta"):
        backbone = build_backbone(cfg).eval()
        images, given = torch.empty(1, 3, *size), []
        counter = count_flops(lambda: given.append(as_features(backbone(images))))
    return TowerComplexity(
        width=given[0].patches.shape[2],
        grid=given[0].grid,
        parameters=_count(backbone),
        gflops=counter.get_total_flops() / 1e9,
    )


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
