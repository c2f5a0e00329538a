"""From features to distances: fusion of parts, neighbour feature centralisation, query expansion, re-ranking.

Tensors and numbers in, tensors out. Shapes: n images, D feature width, Q queries, G gallery images. Whatever looks at
pairs of images works in blocks of rows, so that no n x n matrix is ever held.

The forms are those of SAGA-ReID's published evaluation (arXiv 2604.22190), in float32 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import scipy.sparse as sparse
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "expand_queries",
    "fuse",
    "l2",
    "nfc",
    "orthogonal",
    "rerank",
    "reranked_rows",
    "squared_distance",
]

BLOCK_BYTES = 128 * 2**20


def l2(x: Tensor) -> Tensor:
    """(n, D) -> rows of unit length; a zero row stays zero."""
    return F.normalize(x, dim=1, eps=1e-12)


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """(m, D), (n, D) -> (m, n) squared Euclidean distances |x|^2 + |y|^2 - 2xy; rounding may leave them below zero."""
    product = x @ y.t()
    return product.mul_(-2).add_(x.square().sum(1, keepdim=True)).add_(y.square().sum(1))


def fuse(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Concatenate sqrt(w) L2(part): the squared distance is then the weighted sum of the parts' own.

    Args:
        parts: name -> (n, D_name).
        weights: name -> w >= 0 for each part. A part of weight 0 adds nothing and is left out.

    Returns:
        (n, sum of the widths) rows of norm sqrt(sum of the weights), not normalised again.

    Raises:
        ValueError: a weight is negative, or none is positive.
    """
    if any(weights[name] < 0 for name in parts) or not any(weights[name] > 0 for name in parts):
        raise ValueError(
            f"fusion weights {dict(weights)} for {list(parts)}: expected none below 0 and one above; set TEST.FUSION"
        )
    # one cat, not writes into slices of a tensor: exported, those become a chain of ScatterND that OpenCV cannot run
    return torch.cat([l2(part) * weights[name] ** 0.5 for name, part in parts.items() if weights[name] > 0], dim=1)


def orthogonal(refined: Tensor, cls: Tensor, beta: float) -> Tensor:
    """L2(u + beta (v - (u.v) u)), u = L2(refined), v = L2(cls): add only what the class token knows beyond u.

    Args:
        refined, cls: (n, D), of the same width.

    Returns:
        (n, D) rows of unit length.
    """
    u, v = l2(refined), l2(cls)
    return l2(u + beta * (v - (u * v).sum(1, keepdim=True) * u))


def _row_blocks(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_BYTES // (8 * max(1, columns)))
    for start in range(0, rows, step):
        yield start, min(start + step, rows)


def nfc(x: Tensor, k1: int = 2, k2: int = 2) -> Tensor:
    """Neighbour feature centralisation: add to a feature those neighbours that also count it among theirs.

    j is added to i where j is one of the k1 nearest of i and i one of the k2 nearest of j (k2 <= k1; nobody is its own
    neighbour). Transductive: call it on the queries alone and on the gallery alone.

    Args:
        x: (n, D), normalised here.

    Returns:
        (n, D) rows of unit length.
    """
    x = l2(x)
    n = len(x)
    k = min(k1, n - 1)
    if k < 1:
        return x
    nearest = torch.empty(n, k, dtype=torch.long, device=x.device)
    for start, stop in _row_blocks(n, n):
        distance = squared_distance(x[start:stop], x)
        own = torch.arange(start, stop, device=x.device)
        distance[own - start, own] = torch.inf
        nearest[start:stop] = distance.topk(k, largest=False).indices
    # mutual[i, a]: whether i is among the first k2 of its a-th neighbour
    summed = x.clone()
    me = torch.arange(n, device=x.device)
    for a in range(k):
        j = nearest[:, a]
        mutual = (nearest[j, :k2] == me[:, None]).any(1)
        summed[mutual] += x[j[mutual]]
    return l2(summed)


def expand_queries(x: Tensor, times: int, k: int, alpha: float) -> Tensor:
    """The host's query expansion (fastreid/evaluation/query_expansion.py) without its n x n matrix.

    Each feature becomes the mean of its k nearest in cosine, itself among them, weighted by similarity^alpha.

    Args:
        x: (n, D) queries and gallery together.

    Returns:
        (n, D), not normalised.
    """
    for _ in range(times):
        unit = l2(x)
        expanded = torch.empty_like(x)
        for start, stop in _row_blocks(len(x), len(x) + k * x.shape[1]):
            similarity, index = (unit[start:stop] @ unit.t()).topk(min(k, len(x)))
            expanded[start:stop] = (x[index] * similarity.pow(alpha).unsqueeze(2)).mean(1)
        x = expanded
    return x


def rerank(query: Tensor, gallery: Tensor, k1: int = 50, k2: int = 15, lambda_value: float = 0.3) -> Tensor:
    """(Q, D), (G, D) -> (Q, G) re-ranked distances. See `reranked_rows`, which gives them block by block."""
    return reranked_rows(query, gallery, k1, k2, lambda_value)(0, len(query))


def reranked_rows(
    query: Tensor, gallery: Tensor, k1: int = 50, k2: int = 15, lambda_value: float = 0.3
) -> Callable[[int, int], Tensor]:
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017) without an (Q+G) x (Q+G) matrix and without faiss.

    With d(i, j) the squared distance divided by the largest in row i, over queries and gallery together: an image's
    k-reciprocal neighbours, widened by those of neighbours that share more than 2/3 of theirs, weighted by exp(-d),
    averaged over the k2 nearest; distance (1 - lambda) Jaccard + lambda d. SAGA-ReID uses 50/15/0.3, the original
    20/6/0.3. (The published code holds the weights in float16; float32 here.)

    Args:
        query: (Q, D). gallery: (G, D), on the same device, which does the distances; the set algebra is on the CPU.

    Returns:
        A function (start, stop) -> (stop - start, G) float32 distances of those queries, on the CPU.
    """
    x = torch.cat([query, gallery]).float()
    n, num_query = len(x), len(query)
    k = min(k1 + 1, n)
    nearest = np.empty((n, k), dtype=np.int64)
    largest = torch.empty(n, device=x.device)
    for start, stop in _row_blocks(n, n):
        distance = squared_distance(x[start:stop], x)
        largest[start:stop] = distance.amax(1)
        nearest[start:stop] = distance.topk(k, largest=False).indices.cpu().numpy()
    largest = largest.clamp_min(torch.finfo(torch.float32).tiny)

    def reciprocal(count: int) -> sparse.csr_matrix:
        """(n, n) 1 where i and j are among each other's first ``count``."""
        count = min(count, k)
        rows = np.repeat(np.arange(n), count)
        forward = sparse.csr_matrix((np.ones(n * count, np.float32), (rows, nearest[:, :count].ravel())), (n, n))
        return forward.multiply(forward.T).tocsr()

    near = reciprocal(k1 + 1)
    close = reciprocal(int(np.around(k1 / 2)) + 1)
    size = np.asarray(close.sum(1)).ravel()
    # a candidate c of i widens i's set where |close(c) & near(i)| > 2/3 |close(c)|
    shared = (near @ close.T).multiply(near).tocoo()
    keep = shared.data > 2 / 3 * size[shared.col]
    widening = sparse.csr_matrix((shared.data[keep], (shared.row[keep], shared.col[keep])), (n, n))
    members = (near + widening @ close).tocoo()

    weight = np.empty(len(members.data), np.float32)
    step = max(1, BLOCK_BYTES // (8 * x.shape[1]))
    squares = x.square().sum(1)
    for start in range(0, len(weight), step):
        i = torch.from_numpy(members.row[start : start + step].astype(np.int64)).to(x.device)
        j = torch.from_numpy(members.col[start : start + step].astype(np.int64)).to(x.device)
        d = squares[i] + squares[j] - 2 * (x[i] * x[j]).sum(1)
        weight[start : start + step] = (-d / largest[i]).exp().cpu().numpy()
    encoding = sparse.csr_matrix((weight, (members.row, members.col)), (n, n))
    encoding = sparse.diags(1 / np.asarray(encoding.sum(1)).ravel().astype(np.float32)) @ encoding
    if k2 > 1:
        count = min(k2, k)
        rows = np.repeat(np.arange(n), count)
        mean = np.full(n * count, 1 / count, np.float32)
        encoding = sparse.csr_matrix((mean, (rows, nearest[:, :count].ravel())), (n, n)) @ encoding
    query_code, gallery_code = encoding[:num_query].tocsr(), encoding[num_query:].tocsc()

    def distances(start: int, stop: int) -> Tensor:
        overlap = np.zeros((stop - start, len(gallery)), np.float32)
        for out, i in zip(overlap, range(start, stop)):
            neighbours = slice(*query_code.indptr[i : i + 2])
            for j, own_weight in zip(query_code.indices[neighbours], query_code.data[neighbours]):
                images = slice(*gallery_code.indptr[j : j + 2])
                out[gallery_code.indices[images]] += np.minimum(own_weight, gallery_code.data[images])
        jaccard = torch.from_numpy(1 - overlap / (2 - overlap))
        plain = squared_distance(x[start:stop], x[num_query:]).div_(largest[start:stop, None]).cpu()
        return jaccard.mul_(1 - lambda_value).add_(plain, alpha=lambda_value)

    return distances
