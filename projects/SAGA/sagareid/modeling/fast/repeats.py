"""What a batch repeats, computed once. No FastReID and no config in here."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import enabled

__all__ = ["each_once"]


def each_once(function: Callable[[Tensor], Tensor], labels: Tensor) -> Tensor:
    """`function(labels)` of labels that repeat: each is computed once, and the results are copied.

    A compiled step computes one for each element: how many different labels a batch has would be a new shape each time.

    Args:
        function: (B,) labels to (B, E), each element of its label alone.
        labels: (B,).

    Returns:
        (B, E).
    """
    if not enabled("each_once") or torch.compiler.is_compiling():
        return function(labels)
    unique, inverse = labels.unique(return_inverse=True)
    return function(unique)[inverse]
