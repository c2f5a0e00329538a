"""Cheaper forms of what open_clip's blocks compute, exact but for rounding.

B sequences, L rows, D width. No FastReID and no config in here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import open_clip
import torch
import torch.distributed as dist
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock
from torch import Tensor, nn

from . import enabled
from .dropout import SharedMasks

__all__ = ["Attention", "QuickGELU", "block_at_row", "in_groups", "use_cheaper_forms"]

# On a CPU, about so many rows pass a stack of layers at once: enough to use a weight well while it is in the cache, few
# enough that activations stay there, too. All rows of a batch at once take a fifth to a half longer.
_GROUP_ROWS = 2400


def in_groups(
    function: Callable[..., tuple[Tensor, ...]],
    rows: int,
    *batches: Tensor | None,
    whole: bool = False,
    masks: int = 0,
) -> tuple[Tensor, ...]:
    """`function(*batches)`, on a CPU for a few elements of the batch at a time so that activations stay in its caches.

    Args:
        function: treats each element of the batch alone; returns tensors with the batch first.
        rows: rows of an element.
        batches: (B, ...) tensors; None is handed on.
        whole: all at once. So it is on a GPU, too, and in a graph that is being exported, which is of no one batch
            size.
        masks: that `fast.dropout` draws in a call. Of several processes, which hold consecutive parts of one batch,
            each draws its part of the masks of all; all call this in the same order.
    """
    first = batches[0]
    whole = whole or not enabled("groups") or first.device.type != "cpu"
    whole = whole or torch.compiler.is_compiling() or torch.jit.is_tracing()
    group = max(1, _GROUP_ROWS // rows)
    if masks and not whole and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _in_shared_groups(function, group, batches, SharedMasks(masks))
    if whole or len(first) <= group:
        return function(*batches)
    starts = range(0, len(first), group)
    parts = [function(*(None if b is None else b[i : i + group] for b in batches)) for i in starts]
    return tuple(torch.cat(x) for x in zip(*parts))


def _in_shared_groups(
    function: Callable[..., tuple[Tensor, ...]], group: int, batches: Sequence[Tensor | None], masks: SharedMasks
) -> tuple[Tensor, ...]:
    """`in_groups` in the groups of the batch of all processes, as far as they are of this one."""
    size = len(batches[0])
    begin, end = masks.rank * size, (masks.rank + 1) * size  # this process's images among all
    first, last, groups = begin // group, -(-end // group), -(-size * masks.processes // group)
    parts = []
    masks.skip(first)
    for start in range(first * group, last * group, group):
        own = slice(max(start - begin, 0), min(start + group, end) - begin)
        with masks.group(max(begin - start, 0)):
            parts.append(function(*(None if b is None else b[own] for b in batches)))
    masks.skip(groups - last)
    return tuple(torch.cat(x) for x in zip(*parts))


class Attention(nn.MultiheadAttention):
    """`nn.MultiheadAttention` with the batch first, as a block of a tower calls it.

    Each input is projected by one product over all rows of the batch, and torch's fused attention follows. The parent
    class multiplies sequence by sequence where the batch is first, and in evaluation its own kernels are the slower
    ones.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention`, which serves every call but that of a block: no weights asked for, keys that are
        the values, no mask or one that is added to the scores.

        Args:
            query: (B, L, D). key, value: (B, M, D).
            attn_mask: (L, M).

        Returns:
            (B, L, D), and None or the weights.
        """
        added = attn_mask is None or (attn_mask.dim() == 2 and attn_mask.is_floating_point())
        if need_weights or others or key is not value or not added or not enabled("attention"):
            return super().forward(query, key, value, need_weights=need_weights, attn_mask=attn_mask, **others)
        d, weight, bias = self.embed_dim, self.in_proj_weight, self.in_proj_bias
        if query is key:
            parts = F.linear(query, weight, bias).chunk(3, dim=2)
        else:
            parts = F.linear(query, weight[:d], bias[:d]), *F.linear(key, weight[d:], bias[d:]).chunk(2, dim=2)
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in parts)
        dropped = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropped)
        return self.out_proj(attended.transpose(1, 2).flatten(2)), None


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x) as SiLU(1.702 x) / 1.702, in few passes over memory: on a CPU they cost a tenth of a tower.

    Without gradients in place: in a block nothing else reads what it is given.
    """

    def forward(self, x: Tensor) -> Tensor:
        # a compiler makes one pass of it, forward and backward
        if not enabled("quick_gelu") or torch.compiler.is_compiling():
            return x * torch.sigmoid(1.702 * x)
        if torch.is_grad_enabled() and x.requires_grad:
            return _QuickGELU.apply(x)
        return F.silu(x.mul_(1.702), inplace=True).mul_(1 / 1.702)


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        scaled = x * 1.702
        ctx.save_for_backward(scaled)
        return F.silu(scaled).mul_(1 / 1.702)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return torch.ops.aten.silu_backward(gradient, *ctx.saved_tensors)  # the factors cancel


def use_cheaper_forms(model: nn.Module) -> None:
    """Put `QuickGELU` and `Attention` in the places of open_clip's and torch's, in every block of a model."""
    for block in model.modules():
        if isinstance(block, ResidualAttentionBlock):
            if block.attn.batch_first:
                block.attn.__class__ = Attention  # the same parameters and names, another forward
            if isinstance(block.mlp.gelu, open_clip.transformer.QuickGELU):
                block.mlp.gelu = QuickGELU()


def block_at_row(block: nn.Module, x: Tensor, row: int) -> Tensor:
    """What an open_clip block gives at one row, in about a sixth of the arithmetic: only keys and values need every
    row.

    For the last block of a tower, of which only the class token or the end of text is read.

    Args:
        x: (B, L, D), the rows that this row attends to.
        row: the one that is read.

    Returns:
        (B, D), as `block(x)[:, row]`.
    """
    normed = block.ln_1(x)
    own = x[:, row : row + 1]
    own = own + block.ls_1(block.attention(normed[:, row : row + 1], normed, normed))
    return (own + block.ls_2(block.mlp(block.ln_2(own))))[:, 0]
