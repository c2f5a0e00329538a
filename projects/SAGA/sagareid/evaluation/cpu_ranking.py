"""The ranking of a block of queries on the CPU: where the matches stand, without ordering the gallery.

Rank-k, average precision and inverse negative penalty need the places of a query's matches alone. Distances sorted
without their images (a twelfth of the time of an order, by NumPy's vector instructions) and a binary search for each
match say how many images are nearer than it. No order is needed, unless a match and somebody else's image are equally
far: FastReID takes them as `numpy.argsort` happens to leave them, and so does `_places_by_order`, for that query alone.
CMC, AP and INP are the bits of FastReID's Cython (fastreid/evaluation/rank_cylib/rank_cy.pyx).

m queries of a block, G gallery images, P matches of a query.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np

__all__ = ["Gallery", "RankedBlock", "rank_block"]

# chunks of queries for each thread, so that none waits long for the last
CHUNKS = 4


class RankedBlock(NamedTuple):
    """What the ranking of m queries gives.

    Attributes:
        hits: (max_rank,) int64, queries whose first match is among the first k.
        ap, inp: (m,) 0..1.
        nearest: (m, count) int64 places in the gallery, without the same person in the same camera.
    """

    hits: np.ndarray
    ap: np.ndarray
    inp: np.ndarray
    nearest: np.ndarray


class Gallery:
    """Person and camera of each gallery image, and the images of a person.

    Attributes:
        pids, camids: (G,).
    """

    def __init__(self, pids: np.ndarray, camids: np.ndarray):
        self.pids, self.camids = pids, camids
        self._by_person = np.argsort(pids, kind="stable")
        self._people = pids[self._by_person]

    def __len__(self) -> int:
        return len(self.pids)

    def images(self, pid: int, camid: int) -> tuple[np.ndarray, np.ndarray]:
        """Places of the person's images in other cameras, and in this one, ascending."""
        first, last = (np.searchsorted(self._people, pid, side) for side in ("left", "right"))
        own = self._by_person[first:last]
        same_camera = self.camids[own] == camid
        return own[~same_camera], own[same_camera]


def rank_block(
    distances: np.ndarray,
    q_pids: np.ndarray,
    q_camids: np.ndarray,
    gallery: Gallery,
    *,
    max_rank: int,
    count: int,
    threads: int,
) -> RankedBlock:
    """Rank the gallery for queries that each have a match, as FastReID's `evaluate_rank` does.

    Args:
        distances: (m, G) float32.
        q_pids, q_camids: (m,).
        count: nearest gallery images to return; of equal distances the earlier image comes first.
        threads: how many rank at a time; NumPy sorts without holding the interpreter.
    """

    def rank_some(chunk: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        return [_rank_query(distances[i], *gallery.images(q_pids[i], q_camids[i]), count) for i in chunk]

    chunks = np.array_split(np.arange(len(q_pids)), min(len(q_pids), threads * CHUNKS))
    if threads == 1:
        ranked = [found for chunk in chunks for found in rank_some(chunk)]
    else:
        with ThreadPoolExecutor(threads) as pool:
            ranked = [found for part in pool.map(rank_some, chunks) for found in part]
    places, nearest = zip(*ranked)
    ap, inp = _average_precision(places)
    first = np.minimum([found[0] for found in places], max_rank)
    hits = np.bincount(first, minlength=max_rank + 1)[:max_rank].cumsum()
    return RankedBlock(hits, ap, inp, np.stack(nearest))


def _rank_query(
    distances: np.ndarray, matches: np.ndarray, ignored: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """(P,) places of the matches from 0, ascending, and (count,) the nearest images; both without the ignored ones."""
    ordered = np.sort(distances)
    own, dropped = np.sort(distances[matches]), np.sort(distances[ignored])

    def others(side: Literal["left", "right"]) -> np.ndarray:
        """(P,) images of other people that are nearer than each match ("left"), or nearer or as far ("right")."""
        everybody, matching, gone = (np.searchsorted(x, own, side) for x in (ordered, own, dropped))
        return everybody - matching - gone

    nearer = others("left")
    if np.array_equal(nearer, others("right")):
        places = nearer + np.arange(len(own))
    else:
        places = _places_by_order(distances, matches, ignored)
    limit = ordered[count + len(ignored) - 1]
    near = ~(distances > limit)
    near[ignored] = False
    near = np.flatnonzero(near)
    return places, near[np.argsort(distances[near], kind="stable")[:count]]


def _places_by_order(distances: np.ndarray, matches: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """(P,) places of the matches in NumPy's order of the distances, which FastReID's Cython walks along."""
    kind = np.zeros(len(distances), np.int8)
    kind[matches], kind[ignored] = 1, 2
    kind = kind.take(np.argsort(distances))
    places = np.flatnonzero(kind)
    kind = kind[places]
    return (places - np.cumsum(kind == 2))[kind == 1]


def _average_precision(places: tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(m,), (m,) float32 AP and INP of m queries from the places of their matches.

    FastReID divides in double precision and adds up in single, one match after the other.
    """
    number = np.array([len(found) for found in places])
    has = np.arange(number.max()) < number[:, None]
    table = np.full(has.shape, np.inf)
    table[has] = np.concatenate(places)
    total = np.zeros(len(places), np.float32)
    for found, column in enumerate(table.T, 1):
        total = (total + found / (column + 1)).astype(np.float32)
    last = np.array([found[-1] for found in places])
    return total / number.astype(np.float32), (number / (last + 1)).astype(np.float32)
