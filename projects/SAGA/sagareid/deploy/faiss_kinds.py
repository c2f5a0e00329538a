"""The kinds of FAISS index, and which of them holds a gallery of some size.

n gallery images, F feature width; bytes of a vector in memory::

    flat     answers exactly                                    4 F
    hnsw     walks a graph of 32 neighbours                     4 F + 264
    ivfpq    looks into some of 4 sqrt(n) cells, at most 4096   m + 8; a vector is quantised to m <= F / 4 bytes
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import faiss
import numpy as np
from tqdm import tqdm

from .options import KINDS

__all__ = ["LEAST", "Empty", "Features", "choose_kind", "empty_index", "random_sample"]

# Up to this many bytes of vectors an exact search is quick enough, about 0.1 s a query on one core.
FLAT_BYTES = 2**30
NEIGHBOURS = 32
HNSW_LINKS = 264  # bytes: 2 * 32 links of 4 bytes in the lowest layer of HNSW, and a few for the others
LEAST = 256  # vectors of an ivfpq: as many values as a byte has
CELLS = 4096  # at most: more of them take longer to fill than they save in a search
TRAIN_PER_CELL = 40  # FAISS warns below 39
SEED = 0


class Features(Protocol):
    """n features (n, F), read batch by batch."""

    @property
    def count(self) -> int: ...
    @property
    def width(self) -> int: ...
    def batches(self) -> Iterator[tuple[Any, np.ndarray]]:
        """Names or numbers, and (m, F) float32 features, in a fixed order."""


def choose_kind(count: int, width: int, memory: float) -> str:
    """The kind for `count` vectors: flat while they take up to FLAT_BYTES, hnsw while it fits, else ivfpq.

    Args:
        memory: bytes that the index and its building may take.
    """
    if count * 4 * width <= min(FLAT_BYTES, memory):
        return "flat"
    return "hnsw" if count * (4 * width + HNSW_LINKS) <= memory else "ivfpq"


class Empty(NamedTuple):
    """A FAISS index without vectors yet.

    Attributes:
        bytes_per_vector: of memory, once it is filled.
        effort: candidates (hnsw) or cells (ivfpq) that a query looks at; 0 for flat.
    """

    vectors: Any
    bytes_per_vector: float
    effort: int


def empty_index(kind: str, features: Features, memory: float) -> Empty:
    """An index of a kind for these features, trained where the kind learns from them.

    Raises:
        ValueError: an unknown kind, or features that it cannot hold in `memory` bytes.
    """
    if kind not in KINDS:
        raise ValueError(f"no index of kind {kind!r}; expected auto, {', '.join(KINDS)}")
    return {"flat": _flat, "hnsw": _hnsw, "ivfpq": _ivfpq}[kind](features, memory)


def _flat(features: Features, memory: float) -> Empty:
    return Empty(faiss.IndexFlatIP(features.width), 4 * features.width, effort=0)


def _hnsw(features: Features, memory: float) -> Empty:
    vectors = faiss.IndexHNSWFlat(features.width, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    vectors.hnsw.efConstruction = 80
    return Empty(vectors, 4 * features.width + HNSW_LINKS, effort=128)


def _ivfpq(features: Features, memory: float) -> Empty:
    """4 sqrt(n) cells, up to CELLS, trained on a sample; a query looks at one in 16 of them, and at 8 or more."""
    n, width = features.count, features.width
    if n < LEAST:
        raise ValueError(f"ivfpq learns {LEAST} values a byte, so it needs as many vectors, not {n}; use --index flat")
    cells = max(1, min(int(4 * math.sqrt(n)), CELLS, n // TRAIN_PER_CELL))
    codes = [m for m in range(1, width // 4 + 1) if width % m == 0 and n * (m + 8) <= memory / 2]
    if not codes:
        raise ValueError(f"{n} vectors do not fit {memory / 2**30:.1f} GiB in any index: raise --memory")
    code = max(codes)
    quantizer = faiss.IndexFlatIP(width)
    vectors = faiss.IndexIVFPQ(quantizer, width, cells, code, 8, faiss.METRIC_INNER_PRODUCT)
    vectors.cp.seed = vectors.pq.cp.seed = SEED
    vectors.cp.niter = 10
    wanted = min(n, max(TRAIN_PER_CELL * cells, 256 * TRAIN_PER_CELL), max(256, int(memory / 4 / (4 * width))))
    vectors.train(random_sample(features, wanted, "training sample")[1])
    return Empty(vectors, code + 8, effort=max(8, cells // 16))


def random_sample(features: Features, wanted: int, description: str) -> tuple[np.ndarray, np.ndarray]:
    """The numbers (s,) in rising order and the features (s, F) of a seeded random sample."""
    size = min(wanted, features.count)
    numbers = np.sort(np.random.default_rng(SEED).choice(features.count, size, replace=False))
    sample = np.empty((size, features.width), np.float32)
    start = 0
    with tqdm(total=features.count, desc=description, unit="vec", disable=None) as bar:
        for _, batch in features.batches():
            low, high = np.searchsorted(numbers, (start, start + len(batch)))
            sample[low:high] = batch[numbers[low:high] - start]
            start += len(batch)
            bar.update(len(batch))
    return numbers, sample
