"""Dropout whose mask costs 16 random bits a number on the CPU. No FastReID and no config in here.

B images of a process, W processes. With several processes a mask is that of the image's place in the batch of all:
`SharedMasks` lets each process draw what one process with the whole batch would draw, and keep its own rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from . import enabled

__all__ = ["SharedMasks", "draws", "dropout", "gelu_dropout"]

_LEVELS = 2**16


def _mask(x: Tensor, p: float, training: bool) -> Tensor | None:
    """0 with probability p, else 1/(1-p), for each number of x; None where torch's own dropout is as good, or is
    exact."""
    dropped = round(p * _LEVELS)
    if not draws(p, training) or x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    shared = SharedMasks.current
    before = 0 if shared is None else shared.first_row * x[0].numel()  # numbers of the mask that are of other processes
    seed = int(torch.randint(2**63 - 1, ())) if shared is None else shared.seed()
    count = before + x.numel()
    bits = np.random.SFC64(seed).random_raw(-(-count // 4)).view(np.int16)[before:count]
    keep = torch.empty(x.shape, dtype=x.dtype)
    torch.ge(torch.from_numpy(bits).view(x.shape), dropped - _LEVELS // 2, out=keep)
    return keep.mul_(_LEVELS / (_LEVELS - dropped))


def draws(p: float, training: bool) -> bool:
    """Whether a dropout draws a mask here, on a CPU."""
    return enabled("dropout") and training and 0 < round(p * _LEVELS) < _LEVELS


class SharedMasks:
    """The seeds of the masks of the whole batch, group by group of its images, in each of several processes.

    Rank 0 draws from torch's generator, as a process with the whole batch does, and tells the others its state.

    Attributes:
        first_row: of the masks' rows, the first that is of this process.
    """

    current: SharedMasks | None = None  # whose masks `dropout` draws inside `group`

    def __init__(self, masks: int):
        """Called by all processes in the same order. masks: of a group."""
        self.rank, self.processes, self.masks = dist.get_rank(), dist.get_world_size(), masks
        self.first_row = self._drawn = 0
        state = torch.get_rng_state()
        dist.broadcast(state, 0)
        self._generator = torch.default_generator
        if self.rank:
            self._generator = torch.Generator()
            self._generator.set_state(state)

    def seed(self) -> int:
        self._drawn += 1
        return int(torch.randint(2**63 - 1, (), generator=self._generator))

    def skip(self, groups: int) -> None:
        """Draw what groups without an image of this process draw."""
        torch.randint(2**63 - 1, (groups * self.masks,), generator=self._generator)

    @contextmanager
    def group(self, first_row: int) -> Iterator[None]:
        """Inside, rows of x are rows `first_row` and on of a group's masks."""
        SharedMasks.current, self.first_row, self._drawn = self, first_row, 0
        try:
            yield
        finally:
            SharedMasks.current = None
        if self._drawn != self.masks:
            raise RuntimeError(f"{self._drawn} dropout masks were drawn where {self.masks} were expected")


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
