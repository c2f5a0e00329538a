"""The ranking of a gallery for every query, a block of queries at a time.

Memory beyond the features stays near `BLOCK_BYTES` where FastReID holds three Q x G matrices. Metrics equal FastReID's.

Q queries, m of a block, G gallery images.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from fastreid.utils import comm

from . import cpu_ranking, device_ranking
from .cpu_ranking import Gallery, RankedBlock

__all__ = ["Distances", "Ranking", "rank_in_blocks", "rank_together", "roc_metrics"]

MAX_RANK = 50
NEAREST = 10
BLOCK_BYTES = 256 * 2**20
BLOCK_QUERIES = 256  # a product of as many is as fast as a larger one, and processes share blocks
PAIR_BYTES = 4  # of a query and a gallery image: their float32 distance
ORDER_BYTES = 24  # of a pair where the gallery is ordered: distance, int64 place, temporaries of the two

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
    """Rank the gallery for every query, a block of queries at a time, where the distances are: CPU or GPU.

    A query's gallery images of the same person from the same camera do not count. Queries without any other match are
    skipped. CMC, AP and INP equal those of FastReID's `evaluate_rank` of the whole matrix, on a CPU to the last bit.
    (FastReID's Cython reads past the end of a query's list where fewer than 50 gallery images are left for it, and its
    Python refuses; such galleries are ranked as any other here.)

    Args:
        distances: gives the distances of some of the queries to the gallery.
        block: queries at a time, at most; None: `BLOCK_QUERIES`, or as many as `BLOCK_BYTES` holds.

    Raises:
        ValueError: there is no query, no gallery image, or no query with a match.
    """
    test_set = _TestSet(q_pids, g_pids, q_camids, g_camids)
    return test_set.ranking(test_set.rank(distances, test_set.blocks(block), description))


def rank_together(
    distances: Distances,
    q_pids: np.ndarray,
    g_pids: np.ndarray,
    q_camids: np.ndarray,
    g_camids: np.ndarray,
    *,
    description: str = "",
) -> Ranking | None:
    """`rank_in_blocks` by all processes of the job, each of which calls it and ranks its share of the blocks.

    They are the blocks of one process: the metrics are the same bits whatever the number of processes.

    Returns:
        None in every process but the first.
    """
    test_set = _TestSet(q_pids, g_pids, q_camids, g_camids)
    rank, processes = comm.get_rank(), comm.get_world_size()
    blocks = test_set.blocks()
    shares = comm.gather(test_set.rank(distances, blocks[rank::processes], description))
    if rank:
        return None
    return test_set.ranking([shares[i % processes][i // processes] for i in range(len(blocks))])


class _TestSet:
    """Who is to be ranked: ids of queries and gallery, which queries have a match, blocks of them."""

    def __init__(self, q_pids: np.ndarray, g_pids: np.ndarray, q_camids: np.ndarray, g_camids: np.ndarray):
        self.pids, self.camids = q_pids, q_camids
        self.valid, same_camera = _with_a_match(q_pids, g_pids, q_camids, g_camids)
        self.gallery = Gallery(g_pids, g_camids)
        self.nearest = min(NEAREST, len(g_pids) - int(same_camera[self.valid].max()))

    def blocks(self, size: int | None = None) -> list[tuple[int, int]]:
        """Begin and end of blocks of at most so many queries, of about equal size: a product of a single query may
        round otherwise than one of many."""
        if size is None:
            size = max(1, min(BLOCK_QUERIES, BLOCK_BYTES // (PAIR_BYTES * len(self.gallery))))
        number = -(-len(self.pids) // size)
        return list(itertools.pairwise(len(self.pids) * i // number for i in range(number + 1)))

    def rank(self, distances: Distances, blocks: list[tuple[int, int]], description: str) -> list[RankedBlock | None]:
        """Each of the blocks; None for one without any query that has a match."""
        shown = None if comm.is_main_process() else True
        return [
            self._rank_block(distances, start, stop)
            for start, stop in tqdm(
                blocks, desc=f"ranking {description}".strip(), unit="block", disable=shown, leave=False
            )
        ]

    def _rank_block(self, distances: Distances, start: int, stop: int) -> RankedBlock | None:
        use = np.flatnonzero(self.valid[start:stop])
        if not len(use):
            return None
        values = distances(start, stop)
        rank = _rank_on_device if values.is_cuda else _rank_on_cpu
        return rank(values, use, self.pids[start:stop], self.camids[start:stop], self.gallery, self.nearest)

    def ranking(self, blocks: list[RankedBlock | None]) -> Ranking:
        """What all blocks give, in their order."""
        hits, ap, inp, nearest = _joined([block for block in blocks if block is not None])
        cmc = hits.astype(np.float32) / np.float32(len(ap))
        return Ranking(cmc, ap, inp, len(self.valid) - len(ap), np.flatnonzero(self.valid), nearest)


def _joined(blocks: list[RankedBlock]) -> RankedBlock:
    """One block of the queries of several, in their order."""
    hits, *columns = zip(*blocks)
    return RankedBlock(np.sum(hits, axis=0), *(np.concatenate(column) for column in columns))


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


def _rank_on_cpu(
    distances: Tensor, use: np.ndarray, q_pids: np.ndarray, q_camids: np.ndarray, gallery: Gallery, count: int
) -> RankedBlock:
    """The queries `use` of a block, in PyTorch's number of threads."""
    values = np.asarray(distances.numpy(), np.float32)
    return cpu_ranking.rank_block(
        values if len(use) == len(values) else values[use],
        q_pids[use],
        q_camids[use],
        gallery,
        max_rank=MAX_RANK,
        count=count,
        threads=torch.get_num_threads(),
    )


def _rank_on_device(
    distances: Tensor, use: np.ndarray, q_pids: np.ndarray, q_camids: np.ndarray, gallery: Gallery, count: int
) -> RankedBlock:
    """The queries `use` of a block, ordered where the distances are, as many at a time as `BLOCK_BYTES` holds."""
    device = distances.device
    g_pids, g_camids = (torch.from_numpy(x).to(device) for x in (gallery.pids, gallery.camids))
    blocks = []
    for some in torch.from_numpy(use).split(max(1, BLOCK_BYTES // (ORDER_BYTES * len(gallery)))):
        pids, camids = (torch.from_numpy(x)[some].to(device) for x in (q_pids, q_camids))
        values = distances[some.to(device)]
        blocks.append(device_ranking.rank_block(values, pids, g_pids, camids, g_camids, max_rank=MAX_RANK, count=count))
    return _joined(blocks)


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

    block = max(1, BLOCK_BYTES // (ORDER_BYTES * len(g_pids)))
    scores, labels = [], []
    for start in range(0, len(q_pids), block):
        part = slice(start, start + block)
        values = distances(start, min(start + block, len(q_pids))).cpu().numpy()
        block_scores, block_labels = evaluate_roc(values, q_pids[part], g_pids, q_camids[part], g_camids)
        scores.append(block_scores)
        labels.append(block_labels)
    fprs, tprs, _ = roc_curve(np.concatenate(labels), np.concatenate(scores))
    return {f"TPR@FPR={fpr:.0e}": float(tprs[np.argmin(np.abs(fprs - fpr))]) for fpr in (1e-4, 1e-3, 1e-2)}
