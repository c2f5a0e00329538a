"""The ranking of a block of queries where their distances are: on a GPU, without copying a matrix to the CPU.

m queries of a block, G gallery images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["RankedBlock", "rank_block"]


class RankedBlock(NamedTuple):
    """What the ranking of m queries gives, as tensors on the device of their distances.

    Attributes:
        hits: (max_rank,) int64, queries whose first match is among the first k.
        ap, inp: (m,) float64, 0..1.
        nearest: (m, count) int64 places in the gallery, without the same person in the same camera.
    """

    hits: Tensor
    ap: Tensor
    inp: Tensor
    nearest: Tensor


def rank_block(
    distances: Tensor, q_pids: Tensor, g_pids: Tensor, q_camids: Tensor, g_camids: Tensor, *, max_rank: int, count: int
) -> RankedBlock:
    """Rank the gallery for queries that each have a match, as FastReID's `evaluate_rank` does.

    Of equal distances the earlier gallery image comes first; FastReID leaves their order open.

    Args:
        distances: (m, G), finite. q_pids, q_camids: (m,). g_pids, g_camids: (G,). All on one device.
        count: nearest gallery images to return.
    """
    same = q_pids[:, None] == g_pids
    ignored = same & (q_camids[:, None] == g_camids)
    order = distances.masked_fill(ignored, torch.inf).argsort(dim=1, stable=True)  # (m, G), the ignored last
    matches = (same & ~ignored).gather(1, order)
    places = torch.arange(1, len(g_pids) + 1, device=distances.device)
    found = matches.cumsum(1, dtype=torch.int32)
    total = found[:, -1].double()
    precision = torch.where(matches, found / places, 0)
    last = torch.where(matches, places, 0).amax(1)
    first = matches.to(torch.int8).argmax(1).clamp(max=max_rank)
    hits = torch.bincount(first, minlength=max_rank + 1)[:max_rank].cumsum(0)
    return RankedBlock(hits, precision.sum(1, dtype=torch.float64) / total, total / last, order[:, :count])
