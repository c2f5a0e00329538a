"""The plain way to rank, as the official SAGA-ReID and other published code has it: whole matrices, a loop in Python.

Squared Euclidean distances of unit features, an order of the whole gallery for every query, a table of matches in that
order, then CMC and average precision of one query after the other (CLIP-ReID and TransReID, utils/metrics.py). Written
from its description, for `benchmarks.ranking` to time ours against. It knows no mINP.

Q queries, G gallery images, D feature width.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..evaluation.ranking import MAX_RANK

__all__ = ["PAIR_BYTES", "PlainEvaluator", "distances"]

# Of a query and a gallery image at the highest point: distance, order, gathered ids and their comparison.
PAIR_BYTES = 4 + 8 + 8 + 1


def distances(query: Tensor, gallery: Tensor) -> np.ndarray:
    """(Q, D), (G, D) to (Q, G) squared Euclidean distances."""
    squares = query.square().sum(1, keepdim=True) + gallery.square().sum(1)
    return squares.addmm_(query, gallery.t(), beta=1, alpha=-2).numpy()


class PlainEvaluator:
    """Collects batches like any evaluator; `evaluate` gives (CMC, AP)."""

    def __init__(self, num_query: int):
        self.num_query = num_query
        self.reset()

    def reset(self) -> None:
        self._batches: list[tuple[Tensor, Tensor, Tensor]] = []

    def process(self, inputs: dict[str, Tensor], outputs: Tensor) -> None:
        self._batches.append((outputs, inputs["targets"], inputs["camids"]))

    def evaluate(self) -> tuple[np.ndarray, np.ndarray]:
        features, pids, camids = (torch.cat(parts) for parts in zip(*self._batches))
        unit, q = F.normalize(features, dim=1), self.num_query
        ids = pids[:q].numpy(), pids[q:].numpy(), camids[:q].numpy(), camids[q:].numpy()
        return _rank(distances(unit[:q], unit[q:]), *ids)


def _rank(matrix: np.ndarray, q_pids, g_pids, q_camids, g_camids) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(matrix, axis=1)
    matches = (g_pids[order] == q_pids[:, None]).astype(np.int32)
    cmc, ap = [], []
    for images, hits, pid, camid in zip(order, matches, q_pids, q_camids):
        kept = ~((g_pids[images] == pid) & (g_camids[images] == camid))
        hits = hits[kept]
        if not hits.any():
            continue
        found = hits.cumsum()
        cmc.append(np.minimum(found, 1)[:MAX_RANK])
        ap.append((found / np.arange(1, len(found) + 1) * hits).sum() / hits.sum())
    return np.mean(cmc, axis=0), np.array(ap)
