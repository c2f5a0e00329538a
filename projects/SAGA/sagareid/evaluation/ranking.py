"""The ranking of a gallery for every query, a block of queries at a time.

Distances and ranks are made for a block of queries and handed to FastReID's own `evaluate_rank`, so memory beyond the
features stays near `BLOCK_BYTES` where FastReID holds three Q x G matrices. Metrics equal FastReID's.

Q queries, m of a block, G gallery images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .device_ranking import rank_block

__all__ = ["Distances", "Ranking", "rank_in_blocks", "roc_metrics"]

MAX_RANK = 50
NEAREST = 10
BLOCK_BYTES = 256 * 2**20
# Per query and gallery image: float32 distance, its int64 place in the order, temporaries of the two.
PAIR_BYTES = 24

Distances = Callable[[int, int], Tensor]  # (start, stop) -> (stop - start, G), of those queries


class Ranking(NamedTuple):
    """What a ranking gives. V queries have a match in another camera.

    Attributes:
        cmc: (MAX_RANK,) float32, 0..1.
        ap, inp: (V,) average precision and inverse negative penalty, 0..1.
        skipped: queries without a match.
        queries: (V,) which queries have one.
        nearest: (V, NEAREST or fewer) their first gallery images, without the same person in the same camera.
    """

    cmc: np.ndarray
    ap: np.ndarray
    inp: np.ndarray
    skipped: int
    queries: np.ndarray
    nearest: np.ndarray


def rank_in_blocks(
    distances: Distances,
    q_pids: np.ndarray,
    g_pids: np.ndarray,
    q_camids: np.ndarray,
    g_camids: np.ndarray,
    *,
    block: int | None = None,
    description: str = "",
) -> Ranking:
    """Rank the gallery for every query, a block of queries at a time.

    Through FastReID's `evaluate_rank` where the distances are on the CPU, and by `rank_block` where they are on a GPU.

    A query's gallery images of the same person from the same camera do not count. Queries without any other match are
    skipped. CMC curves of the blocks are turned back into counts, so the metrics equal those of one whole matrix.

    FastReID's Cython reads past the end of a query's list where fewer than 50 gallery images are left for it, and its
    Python refuses. Such galleries get images of nobody at infinite distance, which change no metric.

    Args:
        distances: gives the distances of some of the queries to the gallery.
        block: queries at a time; None: as many as `BLOCK_BYTES` holds.

    Raises:
        ValueError: there is no query, no gallery image, or no query with a match.
    """
    num_query, num_gallery = len(q_pids), len(g_pids)
    valid, same_camera = _with_a_match(q_pids, g_pids, q_camids, g_camids)
    shortest = num_gallery - int(same_camera[valid].max())
    padding = max(0, MAX_RANK - shortest)
    if block is None:
        block = max(1, BLOCK_BYTES // (PAIR_BYTES * (num_gallery + padding)))

    blocks: list[_Block] = []
    with tqdm(total=num_query, desc=f"ranking {description}".strip(), unit="query", disable=None, leave=False) as bar:
        for start in range(0, num_query, block):
            stop = min(start + block, num_query)
            use = valid[start:stop]
            if use.any():
                block_distances = distances(start, stop)
                if not use.all():
                    block_distances = block_distances[torch.from_numpy(use).to(block_distances.device)]
                ids = (q_pids[start:stop][use], g_pids, q_camids[start:stop][use], g_camids)
                rank = _rank_on_device if block_distances.is_cuda else _rank_on_cpu
                blocks.append(rank(block_distances, ids, padding, min(NEAREST, shortest)))
            bar.update(stop - start)
    hits = sum((block[0] for block in blocks), np.zeros(MAX_RANK, np.int64))
    ap, inp, nearest = (np.concatenate(column) for column in list(zip(*blocks))[1:])
    cmc = hits.astype(np.float32) / np.float32(len(ap))
    return Ranking(cmc, ap, inp, num_query - len(ap), np.flatnonzero(valid), nearest)


def _with_a_match(
    q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray, g_camids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) bool, queries whose person another camera has seen; (Q,) gallery images of their person in their camera."""
    same_camera = _count_pairs(q_pids, q_camids, g_pids, g_camids)
    valid = _count(q_pids, g_pids) > same_camera
    if not valid.any():
        raise ValueError(
            f"none of the {len(q_pids)} queries has an image of the same person from another camera among the "
            f"{len(g_pids)} gallery images, so nothing can be ranked. Expected person and camera ids that query and "
            "gallery share; look at both splits' file names"
        )
    return valid, same_camera


_Block = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # hits, AP, INP, nearest
_Ids = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # pids of queries and gallery, camids of both


def _rank_on_cpu(distances: Tensor, ids: _Ids, padding: int, count: int) -> _Block:
    """One block through FastReID. padding: images of nobody to add to the gallery."""
    from fastreid.evaluation.rank import evaluate_rank  # here: the first import may compile it

    q_pids, g_pids, q_camids, g_camids = ids
    values = distances.numpy()
    if padding:
        values = np.pad(values, ((0, 0), (0, padding)), constant_values=np.inf)
        g_pids = np.concatenate([g_pids, np.full(padding, min(q_pids.min(), g_pids.min()) - 1)])
        g_camids = np.concatenate([g_camids, np.full(padding, -1)])
    cmc, ap, inp = evaluate_rank(values, q_pids, g_pids, q_camids, g_camids, MAX_RANK)
    hits = np.rint(np.asarray(cmc, np.float64) * len(ap)).astype(np.int64)
    return hits, np.asarray(ap), np.asarray(inp), _nearest(values, q_pids, g_pids, q_camids, g_camids, count)


def _rank_on_device(distances: Tensor, ids: _Ids, padding: int, count: int) -> _Block:
    """One block where the distances are. padding: `rank_block` needs none."""
    tensors = (torch.from_numpy(x).to(distances.device) for x in ids)
    ranked = rank_block(distances, *tensors, max_rank=MAX_RANK, count=count)
    hits, ap, inp, nearest = (x.cpu().numpy() for x in ranked)
    return hits, ap, inp, nearest


def _nearest(distances: np.ndarray, q_pids, g_pids, q_camids, g_camids, count: int) -> np.ndarray:
    """(m, count) gallery indices by distance; ``distances`` (m, G)."""
    kept = np.where((q_pids[:, None] == g_pids) & (q_camids[:, None] == g_camids), np.inf, distances)
    some = np.argpartition(kept, count - 1, axis=1)[:, :count]
    some.sort(axis=1)  # of equal distances the earlier image first
    order = np.take_along_axis(kept, some, 1).argsort(axis=1, kind="stable")
    return np.take_along_axis(some, order, 1)


def _count(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """How often each of ``values`` (m,) occurs in ``among`` (n,)."""
    ordered = np.sort(among)
    return np.searchsorted(ordered, values, "right") - np.searchsorted(ordered, values, "left")


def _count_pairs(a: np.ndarray, b: np.ndarray, among_a: np.ndarray, among_b: np.ndarray) -> np.ndarray:
    """How often each pair (a, b) occurs among (among_a, among_b)."""
    pairs = np.concatenate([np.stack([a, b], 1), np.stack([among_a, among_b], 1)])
    codes = np.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
    return _count(codes[: len(a)], codes[len(a) :])


def roc_metrics(distances: Distances, q_pids, g_pids, q_camids, g_camids) -> dict[str, float]:
    """FastReID's TPR@FPR (evaluation/reid_evaluation.py:113), whose pairs are collected in blocks of queries.

    One score for every pair stays in memory: TEST.ROC is for small test sets.
    """
    from sklearn.metrics import roc_curve

    from fastreid.evaluation.roc import evaluate_roc

    block = max(1, BLOCK_BYTES // (PAIR_BYTES * len(g_pids)))
    scores, labels = [], []
    for start in range(0, len(q_pids), block):
        part = slice(start, start + block)
        values = distances(start, min(start + block, len(q_pids))).cpu().numpy()
        block_scores, block_labels = evaluate_roc(values, q_pids[part], g_pids, q_camids[part], g_camids)
        scores.append(block_scores)
        labels.append(block_labels)
    fprs, tprs, _ = roc_curve(np.concatenate(labels), np.concatenate(scores))
    return {f"TPR@FPR={fpr:.0e}": float(tprs[np.argmin(np.abs(fprs - fpr))]) for fpr in (1e-4, 1e-3, 1e-2)}
