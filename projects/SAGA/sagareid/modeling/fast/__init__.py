"""Exact faster forms of what the method's own files say plainly, behind one switch.

Everything here computes what its plain form computes, up to the rounding of float32; tests/test_fast.py holds each form
to that, in value and gradient. The forms are on. `disabled()` computes as it is written::

    with fast.disabled():
        loss = model(batch)

| plain form | faster form |
|---|---|
| `refinement.RefinementLayer.forward` | `fast.refinement.refine`: projections multiplied into the anchors, or batched |
| its `nn.GELU` and `nn.Dropout` | `fast.dropout`: masks of 16 random bits a number, applied in place |
| refinement, then `pooling` | `fast.refinement.refine_and_pool`: pooled before the last matrix (evaluation) |
| a stack of layers on a whole batch | `fast.blocks.in_groups`: a few images at a time, on a CPU |
| open_clip's block, of which one row is read | `fast.blocks.block_at_row` |
| `nn.MultiheadAttention` in open_clip's blocks | `fast.blocks.Attention`: torch's fused attention after one product |
| open_clip's QuickGELU | `fast.blocks.QuickGELU`: SiLU, in place in evaluation |

A module is computed by a faster form only where its class says so beside its `forward` (`says`). A subclass that
overrides `forward` is computed by what it overrides, in training and in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["disabled", "enabled", "says"]

# One switch for the process, not for a thread: the backward pass, which may run in threads of its own, must recompute a
# checkpointed block in the form of the forward pass.
_on = True


def enabled() -> bool:
    """Whether the faster forms are in use."""
    return _on


@contextmanager
def disabled() -> Iterator[None]:
    """Compute everything inside by its plain form."""
    global _on
    before, _on = _on, False
    try:
        yield
    finally:
        _on = before


def says(module: nn.Module, flag: str) -> bool:
    """Whether a module's class sets `flag` True for the `forward` that it has.

    A subclass that overrides `forward` does not inherit the flag, which was said of another equation; it may say it
    again.
    """
    for cls in type(module).__mro__:
        if flag in vars(cls):
            return bool(vars(cls)[flag])
        if "forward" in vars(cls):
            return False
    return False
