"""Dropout whose mask costs 16 random bits a number on the CPU. No FastReID and no config in here."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Dropout", "dropout"]

_LEVELS = 2**16


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`torch.nn.functional.dropout`: zero with probability p, the rest times 1/(1-p), from torch's generator.

    torch draws the mask number by number in one thread on CPUs without MKL's generator (AMD), which there was a fifth of
    a training step of the anchors. Here 64 random bits serve four numbers, so p is rounded to 1/65536, and the rest is
    scaled by what it then is. The bits are numpy's SFC64's, three times as fast as torch's Mersenne twister, which gives
    each mask its seed. On other devices torch's own.
    """
    dropped = round(p * _LEVELS)
    if not training or x.device.type != "cpu" or not 0 < dropped < _LEVELS:
        return F.dropout(x, p, training)
    seed = int(torch.randint(2**63 - 1, ()))
    bits = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.int16)[: x.numel()]
    keep = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(torch.from_numpy(bits).view(x.shape), dropped - _LEVELS // 2, out=keep)
    return x * keep.mul_(_LEVELS / (_LEVELS - dropped))


class Dropout(nn.Dropout):
    """`torch.nn.Dropout` by `dropout`."""

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)
