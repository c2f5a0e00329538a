"""A batch is the batch of all processes: what compares images, or takes statistics of them, sees every one.

B images of a process, W processes. Without torch.distributed, or with one process, everything here does nothing.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["GlobalBatchNorm1d", "gather_batch"]


def _size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Gather(torch.autograd.Function):
    """(B, ...) to (W*B, ...) in the order of the ranks; gradients of all processes add up where an element is from."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        whole = x.new_empty(_size() * len(x), *x.shape[1:])
        dist.all_gather(list(whole.chunk(_size())), x.contiguous())
        return whole

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return _own_part(total)


def _own_part(x: Tensor) -> Tensor:
    return x.chunk(_size())[dist.get_rank()]


def gather_batch(x: Tensor) -> Tensor:
    """(B, ...) of this process to (W*B, ...) of all, in the order of the ranks. Every process holds as many.

    Half precision comes out as float32, which losses and statistics compute in and gradients are summed in. Called by
    all processes in the same order. A loss that every process computes of a gathered batch has, after
    DistributedDataParallel's mean over the processes, the gradient of one process with the whole batch; so has a mean
    over a process's own images against all.
    """
    return x if _size() == 1 else _gathered(x)


@torch.compiler.disable  # the exchange is not compiled: what stands before and after it is
def _gathered(x: Tensor) -> Tensor:
    return _Gather.apply(x.float() if x.is_floating_point() else x)


class GlobalBatchNorm1d(nn.BatchNorm1d):
    """`BatchNorm1d` whose statistics in training are those of all processes' images, on any device (torch's
    SyncBatchNorm has no CPU). (B, D)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or _size() == 1:
            return super().forward(x)
        return _own_part(super().forward(gather_batch(x)))
