"""FastReID's optimizer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from fastreid.config import CfgNode

__all__ = ["build_optimizer"]


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> tuple[torch.optim.Optimizer, list[dict[str, Any]]]:
    """FastReID's optimizer over the model's own parameters: ``(optimizer, parameter groups)``, as its trainer wants.

    Why: its default packs the parameters into one buffer (solver/build.py:180, utils/params.py) whose ``.grad`` torch
    2's ``zero_grad`` sets to None; ``step`` then skips it and **no weight ever changes, without a word**.
    Goes when: a FastReID release keeps the buffer's gradient (``zero_grad(set_to_none=False)``).
    """
    from fastreid.solver import build_optimizer as host_build_optimizer

    optimizer, groups = host_build_optimizer(cfg, model, contiguous=False)
    return optimizer, groups
