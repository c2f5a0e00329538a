"""Exact faster forms of what the method's own files say plainly, each with a switch.

Everything here computes what its plain form computes, up to the rounding of float32; tests/test_fast.py holds each form
to that, in value and gradient. `tools/benchmark.py --forms` measures what each is worth (docs/fast_forms.md has it).
The forms are on. `disabled()` computes as it is written, `disabled("dropout")` with every form but this one::

    with fast.disabled():
        loss = model(batch)

| form | plain form | faster form |
|---|---|---|
| refinement | `refinement.RefinementLayer.forward` | `fast.refinement.refine`: keys and values made once, batched |
| absorption | projections of queries and outputs | `fast.refinement.attend_by_anchor`: in the anchors |
| dropout | the layer's `nn.GELU` and `nn.Dropout` | `fast.dropout`: 16 random bits a number, in place |
| early_pooling | refinement, then `pooling` | `fast.refinement.refine_and_pool`: before the last matrix (evaluation) |
| groups | layers on a whole batch | `fast.blocks.in_groups`: a few images at a time, on a CPU |
| one_row | open_clip's block, of which one row is read | `fast.blocks.block_at_row` |
| attention | `nn.MultiheadAttention` in a block | `fast.blocks.Attention`: fused, after one product |
| quick_gelu | open_clip's QuickGELU | `fast.blocks.QuickGELU`: SiLU, in place in evaluation |
| each_once | a prompt for every image of a batch | `fast.repeats.each_once`: for every identity |

A module is computed by a faster form only where its class says so beside its `forward` (`says`). A subclass that
overrides `forward` is computed by what it overrides, in training and in evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["FORMS", "disabled", "enabled", "says"]

FORMS = (
    "refinement",
    "absorption",
    "dropout",
    "early_pooling",
    "groups",
    "one_row",
    "attention",
    "quick_gelu",
    "each_once",
)

# Switches of the process, not of a thread: the backward pass, which may run in threads of its own, must recompute a
# checkpointed block in the form of the forward pass.
_on = dict.fromkeys(FORMS, True)


def enabled(form: str) -> bool:
    """Whether a form of `FORMS` is in use."""
    return _on[form]


@contextmanager
def disabled(*forms: str) -> Iterator[None]:
    """Compute what is inside by the plain forms of these of `FORMS`; without a name, by those of all.

    Raises:
        KeyError: no such form.
    """
    before = {form: _on[form] for form in forms or FORMS}
    _on.update(dict.fromkeys(before, False))
    try:
        yield
    finally:
        _on.update(before)


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
