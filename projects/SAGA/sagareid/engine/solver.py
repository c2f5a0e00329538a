"""Optimizer and learning-rate schedule: FastReID's builders with per-pattern learning rates and epoch-wise cosines."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from fastreid.solver import build_lr_scheduler as host_scheduler

from .. import compat

__all__ = [
    "build_lr_scheduler",
    "build_optimizer",
    "freeze_except",
    "match_names",
    "train_neck_bias",
    "warmup_cosine",
]


def match_names(names: Sequence[str], patterns: Sequence[str], key: str) -> set[str]:
    """Names that match any glob pattern.

    Raises:
        ValueError: a pattern that matches nothing; `key` names the config key it came from.
    """
    matched: set[str] = set()
    for pattern in patterns:
        hits = [n for n in names if fnmatchcase(n, pattern)]
        if not hits:
            heads = sorted({".".join(n.split(".")[:2]) for n in names})
            raise ValueError(
                f"{key}: {pattern!r} matches none of {len(names)} names, which begin with {', '.join(heads)}"
            )
        matched.update(hits)
    return matched


def freeze_except(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze every parameter that matches none of `patterns`; what was built frozen (a text tower) stays so.

    No patterns: leave the model as it was built.
    """
    if not patterns:
        return
    trainable = match_names([n for n, _ in model.named_parameters()], patterns, "MODEL.TRAINABLE")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name in trainable)


def train_neck_bias(head: nn.Module) -> None:
    """Let the biases of a head's necks train; a neck whose weight is frozen, since no loss reaches it, stays frozen.

    Raises:
        ValueError: no neck has a frozen bias beside a weight that trains.
    """
    norms = (m for m in head.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)))
    biases = [m.bias for m in norms if m.affine and m.weight.requires_grad and not m.bias.requires_grad]
    if not biases:
        raise ValueError(
            f"MODEL.HEADS.NECK_BIAS is True, and {type(head).__name__} has no batch norm with a frozen bias: leave the "
            "key False"
        )
    for bias in biases:
        bias.requires_grad_(True)


def build_optimizer(cfg, model: nn.Module):
    """FastReID's optimizer, its one-parameter groups joined where their settings agree, with SOLVER.LR_FACTORS applied.

    Returns:
        (optimizer, parameter groups), as FastReID's trainer expects.

    Raises:
        ValueError: nothing to train, or a pattern without a match.
    """
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("no parameter trains: MODEL.TRAINABLE leaves nothing, or everything was built frozen")
    optimizer, groups = compat.build_optimizer(cfg, model)
    name_of = {p: n for n, p in model.named_parameters()}
    trained = [name_of[p] for g in optimizer.param_groups for p in g["params"]]
    factors = [
        (pattern, factor, match_names(trained, [pattern], "SOLVER.LR_FACTORS"))
        for pattern, factor in cfg.SOLVER.LR_FACTORS
    ]
    joined: dict[tuple, dict] = {}
    for group in optimizer.param_groups:
        name = name_of[group["params"][0]]
        factor = next((f for _, f, names in factors if name in names), None)
        if factor is not None:
            group["lr"] = cfg.SOLVER.BASE_LR * factor
        settings = tuple(sorted((k, str(v)) for k, v in group.items() if k != "params"))
        if settings in joined:
            joined[settings]["params"].extend(group["params"])
        else:
            joined[settings] = group
    optimizer.param_groups[:] = joined.values()
    return _fused(optimizer), groups


def _fused(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The same optimizer in torch's fused form, one pass over a parameter and its states, where there is one."""
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD):
        return optimizer
    return type(optimizer)([group | {"fused": True} for group in optimizer.param_groups], fused=True)


def warmup_cosine(epochs: int, warmup_epochs: int, warmup_factor: float, min_ratio: float) -> Callable[[int], float]:
    """Factor of the base rate during 0-based epoch e.

    e < warm-up: linear from `warmup_factor` towards 1, reached at e = warm-up; then
    min_ratio + (1 - min_ratio) * (1 + cos(pi * (e - warmup) / (epochs - warmup))) / 2.
    """

    def factor(epoch: int) -> float:
        if epoch < warmup_epochs:
            return warmup_factor + (1 - warmup_factor) * epoch / warmup_epochs
        progress = (epoch - warmup_epochs) / max(1, epochs - warmup_epochs)
        return min_ratio + (1 - min_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return factor


def build_lr_scheduler(cfg, optimizer, iters_per_epoch: int) -> dict:
    """{"lr_sched": ...} for FastReID's hook, which steps it after each epoch; its own schedules pass through."""
    if cfg.SOLVER.SCHED != "WarmupCosineLR":
        return host_scheduler(cfg, optimizer, iters_per_epoch)
    factor = warmup_cosine(
        cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.WARMUP_EPOCHS, cfg.SOLVER.WARMUP_FACTOR, cfg.SOLVER.MIN_LR_RATIO
    )
    return {"lr_sched": torch.optim.lr_scheduler.LambdaLR(optimizer, factor)}
