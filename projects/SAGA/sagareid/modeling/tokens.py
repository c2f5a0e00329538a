"""What a model's backbone gives its head, of our meta-architecture or FastReID's."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fastreid.modeling.meta_arch.baseline import Baseline

from .meta_arch import SAGABaseline

__all__ = ["backbone_then_head", "tower_output"]


def backbone_then_head(model: nn.Module) -> bool:
    """Whether a model goes FastReID's way, `heads(backbone(images))`."""
    return type(model).forward in (Baseline.forward, SAGABaseline.forward)


def tower_output(model: nn.Module, batch: dict[str, Tensor]) -> Any:
    """What a model's backbone gives its head; None for a meta-architecture with its own ways.

    Args:
        batch: "images" (B, 3, H, W) in 0..255, left as they are, and "cameras" (B,).
    """
    if not backbone_then_head(model):
        return None
    if isinstance(model, SAGABaseline):
        return model.head_input(batch)
    # FastReID normalises in place
    return model.backbone(model.preprocess_image(batch["images"].to(model.device, copy=True)))
