"""Transformer blocks of timm's as `BlockWeights`, for refinement layers that start from them.

D width. No FastReID and no config in here.
"""

from __future__ import annotations

import torch
from timm.layers import Mlp
from timm.models.beit import Block as BeitBlock
from timm.models.eva import EvaBlock
from timm.models.hiera import HieraBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ...structures import BlockWeights
from .variants import PaddedBlock

__all__ = ["block_weights"]

# x + Attention(LN_1 x), then x + MLP(LN_2 x), but for position biases and rotations, which attention to anchors has
# not. Blocks with a norm behind the attention (Swin V2) compute something else.
_PRE_NORM = (Block, BeitBlock, EvaBlock, HieraBlock, SwinTransformerBlock, PaddedBlock)


@torch.no_grad()
def block_weights(layer: nn.Module) -> BlockWeights | None:
    """A block, or the last block of a stage, layer scales multiplied in; None where it is no plain attention of one
    width, LayerNorm in front."""
    blocks = [m for m in layer.modules() if isinstance(m, _PRE_NORM)]
    if not blocks:
        return None
    block = blocks[-1]
    if not isinstance(block.norm1, nn.LayerNorm) or not isinstance(block.norm2, nn.LayerNorm):
        return None
    attention = _attention(block.attn, _scale(block, 1))
    if attention is None or attention["in_proj_weight"].shape[1] != len(block.norm1.weight):
        return None
    forward = _feed_forward(block.mlp, _scale(block, 2))
    norm_2 = None if forward is None else _norm(block.norm2)
    return BlockWeights(attention=attention, norm_1=_norm(block.norm1), feed_forward=forward, norm_2=norm_2)


def _scale(block: nn.Module, number: int) -> Tensor | float:
    """(D,) factor of the attention (1) or the MLP (2): LayerScale."""
    gamma = getattr(getattr(block, f"ls{number}", None), "gamma", None)
    gamma = getattr(block, f"gamma_{number}", None) if gamma is None else gamma
    return 1.0 if gamma is None else gamma


def _norm(norm: nn.LayerNorm) -> dict[str, Tensor]:
    bias = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
    return {"weight": norm.weight.clone(), "bias": bias.clone()}


def _attention(attn: nn.Module, scale: Tensor | float) -> dict[str, Tensor] | None:
    """State of an `nn.MultiheadAttention`; None where queries, keys or the read-out are normed or gated."""
    between = (getattr(attn, name, None) for name in ("q_norm", "k_norm", "norm", "gate"))
    if any(m is not None and not isinstance(m, nn.Identity) for m in between):
        return None
    if getattr(attn, "qkv", None) is not None:
        weight, width = attn.qkv.weight, attn.qkv.weight.shape[1]
        bias = attn.qkv.bias
        if bias is None and getattr(attn, "q_bias", None) is not None:
            bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
    else:
        parts = [attn.q_proj, attn.k_proj, attn.v_proj]
        weight, width = torch.cat([part.weight for part in parts]), attn.q_proj.weight.shape[1]
        zero = torch.zeros(len(weight) // 3)
        bias = torch.cat([zero if part.bias is None else part.bias for part in parts])
    out = attn.proj
    if weight.shape != (3 * width, width) or out.weight.shape != (width, width):
        return None
    bias = torch.zeros(3 * width) if bias is None else bias
    return {
        "in_proj_weight": weight.clone(),
        "in_proj_bias": bias.clone(),
        "out_proj.weight": _scaled(out.weight, scale),
        "out_proj.bias": torch.zeros(width) if out.bias is None else _scaled(out.bias, scale),
    }


def _feed_forward(mlp: nn.Module, scale: Tensor | float) -> dict[str, Tensor] | None:
    """State of the feed-forward of a refinement layer; None for a gated or normed MLP, or one of another width."""
    if not isinstance(mlp, Mlp) or not isinstance(mlp.norm, nn.Identity):
        return None
    first, second = mlp.fc1, mlp.fc2
    hidden, width = first.weight.shape
    if hidden != 4 * width or second.weight.shape != (width, hidden):
        return None
    return {
        "0.weight": first.weight.clone(),
        "0.bias": torch.zeros(hidden) if first.bias is None else first.bias.clone(),
        "3.weight": _scaled(second.weight, scale),
        "3.bias": torch.zeros(width) if second.bias is None else _scaled(second.bias, scale),
    }


def _scaled(tensor: Tensor, scale: Tensor | float) -> Tensor:
    """Rows of a matrix, or entries of a vector, by their factor."""
    if isinstance(scale, Tensor) and tensor.dim() == 2:
        scale = scale[:, None]
    return tensor * scale
