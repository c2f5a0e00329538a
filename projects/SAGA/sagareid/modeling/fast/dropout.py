"""Dropout whose mask costs 16 random bits a number on the CPU. No FastReID and no config in here."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["dropout", "gelu_dropout"]

_LEVELS = 2**16


def _mask(x: Tensor, p: float, training: bool) -> Tensor | None:
    """0 with probability p, else 1/(1-p), for each number of x; None where torch's own dropout is as good, or is
    exact."""
    dropped = round(p * _LEVELS)
    if not training or x.device.type != "cpu" or not 0 < dropped < _LEVELS or torch.compiler.is_compiling():
        return None
    seed = int(torch.randint(2**63 - 1, ()))
    bits = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)[: x.numel()]
    keep = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(torch.from_numpy(bits).view(x.shape), dropped - _LEVELS // 2, out=keep)
    return keep.mul_(_LEVELS / (_LEVELS - dropped))


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`torch.nn.functional.dropout`: zero with probability p, the rest times 1/(1-p), from torch's generator.

    torch draws the mask number by number in one thread on CPUs without MKL's generator (AMD), which there was a fifth
    of a training step of the anchors. Here 64 random bits serve four numbers, so p is rounded to 1/65536, and the rest
    is scaled by what it then is. The bits are numpy's SFC64's, three times as fast as torch's Mersenne twister, which
    gives each mask its seed. On other devices torch's own.
    """
    mask = _mask(x, p, training)
    return F.dropout(x, p, training) if mask is None else x * mask


def gelu_dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Exact GELU, then `dropout`; on the CPU the mask is applied in place, forward and backward."""
    mask = _mask(x, p, training)
    return F.dropout(F.gelu(x), p, training) if mask is None else _MaskedGELU.apply(x, mask)


class _MaskedGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(x, mask)
        return F.gelu(x).mul_(mask)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        x, mask = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(gradient, x).mul_(mask), None
