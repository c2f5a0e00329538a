"""From features to distances: fusion of parts, neighbour feature centralisation, query expansion, re-ranking.

Tensors and numbers in, tensors out. n images, D feature width, Q queries, G gallery images. Whatever looks at pairs of
images works on a block of images at a time, so that no n x n matrix is ever held.

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
    "reranked_distances",
    "squared_distance",
    "weight_problems",
]

BLOCK_BYTES = 128 * 2**20


def l2(x: Tensor) -> Tensor:
    """(n, D) features to unit length; one of zeros stays so."""
    return F.normalize(x, dim=1, eps=1e-12)


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """(m, D), (n, D) to (m, n) squared Euclidean distances |x|^2 + |y|^2 - 2xy; rounding may leave them below zero."""
    product = x @ y.t()
    return product.mul_(-2).add_(x.square().sum(1, keepdim=True)).add_(y.square().sum(1))


def fuse(parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Concatenate sqrt(w) L2(part): the squared distance is then the weighted sum of the parts' own.

    Args:
        parts: name -> (n, D_name).
        weights: name -> w >= 0 for each part. A part of weight 0 adds nothing and is left out.

    Returns:
        (n, sum of the widths), of norm sqrt(sum of the weights), not normalised again.

    Raises:
        ValueError: a weight is negative, or none is positive.
    """
    for problem in weight_problems({name: weights[name] for name in parts}):
        raise ValueError(problem)
    # one cat, not writes into slices of a tensor: exported, those become a chain of ScatterND that OpenCV cannot run
    return torch.cat([l2(part) * weights[name] ** 0.5 for name, part in parts.items() if weights[name] > 0], dim=1)


def weight_problems(weights: Mapping[str, float]) -> Iterator[str]:
    """What is wrong with the weights of `fuse`, for a check before anything is computed."""
    if min(weights.values()) < 0 or max(weights.values()) <= 0:
        yield f"TEST.FUSION weighs {dict(weights)}; expected none below 0 and one above"


def orthogonal(refined: Tensor, cls: Tensor, beta: float) -> Tensor:
    """L2(u + beta (v - (u.v) u)), u = L2(refined), v = L2(cls): add only what the class token knows beyond u.

    Args:
        refined, cls: (n, D), of the same width.

    Returns:
        (n, D), of unit length.
    """
    u, v = l2(refined), l2(cls)
    return l2(u + beta * (v - (u * v).sum(1, keepdim=True) * u))


def _blocks(images: int, values: int) -> Iterator[tuple[int, int]]:
    """Begin and end of blocks of images, for each of which about `values` numbers are held at a time."""
    step = max(1, BLOCK_BYTES // (8 * max(1, values)))
    for start in range(0, images, step):
        yield start, min(start + step, images)


def nfc(x: Tensor, k1: int = 2, k2: int = 2) -> Tensor:
    """Neighbour feature centralisation: add to a feature those neighbours that also count it among theirs.

    j is added to i where j is one of the k1 nearest of i and i one of the k2 nearest of j (k2 <= k1; nobody is its own
    neighbour). Transductive: call it on the queries alone and on the gallery alone.

    Args:
        x: (n, D), normalised here.

    Returns:
        (n, D), of unit length.
    """
    x = l2(x)
    n = len(x)
    k = min(k1, n - 1)
    if k < 1:
        return x
    nearest = torch.empty(n, k, dtype=torch.long, device=x.device)
    for start, stop in _blocks(n, n):
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
    """FastReID's query expansion (fastreid/evaluation/query_expansion.py) without its n x n matrix.

    Each feature becomes the mean of its k nearest in cosine, itself among them, weighted by similarity^alpha.

    Args:
        x: (n, D) queries and gallery together.

    Returns:
        (n, D), not normalised.
    """
    for _ in range(times):
        unit = l2(x)
        expanded = torch.empty_like(x)
        for start, stop in _blocks(len(x), len(x) + k * x.shape[1]):
            similarity, index = (unit[start:stop] @ unit.t()).topk(min(k, len(x)))
            expanded[start:stop] = (x[index] * similarity.pow(alpha).unsqueeze(2)).mean(1)
        x = expanded
    return x


def reranked_distances(
    query: Tensor, gallery: Tensor, k1: int = 50, k2: int = 15, lambda_value: float = 0.3
) -> Callable[[int, int], Tensor]:
    """k-reciprocal re-ranking (Zhong et al., CVPR 2017) without an (Q+G) x (Q+G) matrix and without faiss.

    With d(i, j) the squared distance divided by the largest of image i, over queries and gallery together: an image's
    k-reciprocal neighbours, widened by those of neighbours that share more than 2/3 of theirs, weighted by exp(-d),
    averaged over the k2 nearest; distance (1 - lambda) Jaccard + lambda d. SAGA-ReID uses 50/15/0.3, the original
    20/6/0.3. (The published code holds the weights in float16; float32 here.)

    Args:
        query: (Q, D). gallery: (G, D), on the same device, which does the distances; the set algebra is on the CPU.

    Returns:
        A function (start, stop) -> (stop - start, G) float32 distances of those queries, on the CPU.
    """
    x, num_query = torch.cat([query, gallery]).float(), len(query)
    nearest, largest = _neighbours(x, k1 + 1)
    members = _widened_neighbours(nearest, k1)
    encoding = sparse.csr_matrix((_weights(x, members, largest), (members.row, members.col)), members.shape)
    encoding = sparse.diags(1 / np.asarray(encoding.sum(1)).ravel().astype(np.float32)) @ encoding
    if k2 > 1:
        count = min(k2, nearest.shape[1])
        mean = np.full(len(x) * count, 1 / count, np.float32)
        encoding = _sparse(mean, nearest[:, :count]) @ encoding
    query_code, gallery_code = encoding[:num_query].tocsr(), encoding[num_query:].tocsc()

    def distances(start: int, stop: int) -> Tensor:
        overlap = np.zeros((stop - start, len(gallery)), np.float32)
        for out, i in zip(overlap, range(start, stop)):
            entries = slice(*query_code.indptr[i : i + 2])
            for j, weight in zip(query_code.indices[entries], query_code.data[entries]):
                column = slice(*gallery_code.indptr[j : j + 2])
                out[gallery_code.indices[column]] += np.minimum(weight, gallery_code.data[column])
        jaccard = torch.from_numpy(1 - overlap / (2 - overlap))
        plain = squared_distance(x[start:stop], x[num_query:]).div_(largest[start:stop, None]).cpu()
        return jaccard.mul_(1 - lambda_value).add_(plain, alpha=lambda_value)

    return distances


def _neighbours(x: Tensor, count: int) -> tuple[np.ndarray, Tensor]:
    """(n, k) nearest of each image, itself among them, k at most `count`; (n,) its largest squared distance, > 0."""
    n = len(x)
    k = min(count, n)
    nearest = np.empty((n, k), dtype=np.int64)
    largest = torch.empty(n, device=x.device)
    for start, stop in _blocks(n, n):
        distance = squared_distance(x[start:stop], x)
        largest[start:stop] = distance.amax(1)
        nearest[start:stop] = distance.topk(k, largest=False).indices.cpu().numpy()
    return nearest, largest.clamp_min(torch.finfo(torch.float32).tiny)


def _sparse(values: np.ndarray, columns: np.ndarray) -> sparse.csr_matrix:
    """(n, n) with the values (n*count,) at the columns (n, count) of each image."""
    n, count = columns.shape
    return sparse.csr_matrix((values, (np.repeat(np.arange(n), count), columns.ravel())), (n, n))


def _widened_neighbours(nearest: np.ndarray, k1: int) -> sparse.coo_matrix:
    """(n, n), not zero where j is a k-reciprocal neighbour of i, or one of such a neighbour that shares most of its
    own."""
    n, k = nearest.shape

    def reciprocal(count: int) -> sparse.csr_matrix:
        """(n, n) 1 where i and j are among each other's first ``count``."""
        count = min(count, k)
        forward = _sparse(np.ones(n * count, np.float32), nearest[:, :count])
        return forward.multiply(forward.T).tocsr()

    near = reciprocal(k1 + 1)
    close = reciprocal(int(np.around(k1 / 2)) + 1)
    size = np.asarray(close.sum(1)).ravel()
    # a candidate c of i widens i's set where |close(c) & near(i)| > 2/3 |close(c)|
    shared = (near @ close.T).multiply(near).tocoo()
    keep = shared.data > 2 / 3 * size[shared.col]
    widening = sparse.csr_matrix((shared.data[keep], (shared.row[keep], shared.col[keep])), (n, n))
    return (near + widening @ close).tocoo()


def _weights(x: Tensor, members: sparse.coo_matrix, largest: Tensor) -> np.ndarray:
    """exp(-d(i, j)) of the pairs in `members`."""
    weight = np.empty(len(members.data), np.float32)
    step = max(1, BLOCK_BYTES // (8 * x.shape[1]))
    squares = x.square().sum(1)
    for start in range(0, len(weight), step):
        i = torch.from_numpy(members.row[start : start + step].astype(np.int64)).to(x.device)
        j = torch.from_numpy(members.col[start : start + step].astype(np.int64)).to(x.device)
        d = squares[i] + squares[j] - 2 * (x[i] * x[j]).sum(1)
        weight[start : start + step] = (-d / largest[i]).exp().cpu().numpy()
    return weight
