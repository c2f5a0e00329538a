"""The ranking of a block of queries where their distances are: on a GPU, without copying a matrix to the CPU.

m queries of a block, G gallery images.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cpu_ranking import RankedBlock

__all__ = ["rank_block"]


def rank_block(
    distances: Tensor, q_pids: Tensor, g_pids: Tensor, q_camids: Tensor, g_camids: Tensor, *, max_rank: int, count: int
) -> RankedBlock:
    """Rank the gallery for queries that each have a match, as FastReID's `evaluate_rank` does.

    Of equal distances the earlier gallery image comes first; FastReID leaves their order open.

    Args:
        distances: (m, G), finite. q_pids, q_camids: (m,). g_pids, g_camids: (G,). All on one device.
        count: nearest gallery images to return.

    Returns:
        On the CPU; `ap` and `inp` in double precision.
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
    ranked = hits, precision.sum(1, dtype=torch.float64) / total, total / last, order[:, :count]
    return RankedBlock(*(x.cpu().numpy() for x in ranked))
