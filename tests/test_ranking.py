"""The ranking against its definition and, to the last bit, against FastReID's Cython."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch

from sagareid.evaluation import cpu_ranking, ranking
from sagareid.evaluation.ranking import rank_in_blocks

from fastreid.evaluation.rank import evaluate_rank


def rank(distance, *ids, **options):
    return rank_in_blocks(lambda a, b: torch.from_numpy(distance[a:b]), *ids, **options)


def draw_ids(rng, queries, gallery, people, cameras):
    """Person and camera ids as `rank_in_blocks` takes them."""
    return [rng.integers(0, high, n) for high in (people, cameras) for n in (queries, gallery)]


def oracle(distance, q_pids, g_pids, q_cams, g_cams, ranks=50):
    """CMC, AP and INP by the definition, one query and one gallery image after the other."""
    cmc, aps, inps = [], [], []
    for d, pid, cam in zip(distance, q_pids, q_cams):
        kept = [j for j in np.argsort(d, kind="stable") if not (g_pids[j] == pid and g_cams[j] == cam)]
        hits = [g_pids[j] == pid for j in kept]
        if not any(hits):
            continue
        places = [place for place, hit in enumerate(hits, start=1) if hit]
        cmc.append([float(places[0] <= k) for k in range(1, ranks + 1)])
        aps.append(np.mean([count / place for count, place in enumerate(places, start=1)]))
        inps.append(len(places) / places[-1])
    return np.mean(cmc, axis=0), np.array(aps), np.array(inps)


def nearest(distance, q_pids, g_pids, q_cams, g_cams, count):
    """The nearest images by the definition; of equal distances the earlier image first."""
    found = []
    for d, pid, cam in zip(distance, q_pids, q_cams):
        kept = [j for j in np.argsort(d, kind="stable") if not (g_pids[j] == pid and g_cams[j] == cam)]
        if any(g_pids[j] == pid for j in kept):
            found.append(kept[:count])
    return np.array(found)


@pytest.mark.parametrize("where", ["cpu", "device"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("gallery", [150, 55, 30, 7, 3])
def test_ranking_equals_the_definition(seed, gallery, where, monkeypatch):
    """Also for galleries smaller than the CMC's 50 ranks, where the host's Cython reads stale values.

    What ranks on a GPU runs on the CPU's tensors here, seven queries at a time.
    """
    if where == "device":
        monkeypatch.setattr(ranking, "_rank_on_cpu", ranking._rank_on_device)
        monkeypatch.setattr(ranking, "BLOCK_BYTES", 7 * gallery * ranking.ORDER_BYTES)
    rng = np.random.default_rng(seed)
    distance = rng.permutation(40 * gallery).reshape(40, gallery).astype(np.float32)
    ids = draw_ids(rng, 40, gallery, 4, 2)
    cmc, ap, inp = oracle(distance, *ids)
    found = rank(distance, *ids, block=9)
    np.testing.assert_allclose(found.cmc, cmc, atol=1e-6)
    np.testing.assert_allclose(found.ap, ap, atol=1e-6)
    np.testing.assert_allclose(found.inp, inp, atol=1e-6)
    assert found.skipped == 40 - len(ap)
    np.testing.assert_array_equal(found.nearest, nearest(distance, *ids, found.nearest.shape[1]))


def test_host_alone_is_wrong_on_small_galleries():
    """Why small galleries are compared with the definition alone."""
    distance = np.array([[1, 2, 3, 4], [1, 2, 4, 3]], np.float32)
    ids = np.array([6, 5]), np.array([5, 5, 5, 6]), np.array([1, 0]), np.array([0, 0, 1, 0])
    # The second query has two images left; FastReID's Cython takes ranks 3 and 4 from the first query, and its Python
    # cannot average curves of different lengths.
    with contextlib.suppress(ValueError):
        assert list(evaluate_rank(distance, *ids)[0]) == [0, 0.5, 0, 1]
    assert list(rank(distance, *ids).cmc[:4]) == [0, 0.5, 0.5, 1]


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("block", [1, 7, 64])
@pytest.mark.parametrize("levels", [3, 40, 3000, 10**6])
def test_blocks_equal_the_whole_matrix_bit_for_bit(block, levels, threads, monkeypatch):
    """Few levels: most distances are tied, and blocks must resolve ties as FastReID does of the whole matrix."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    rng = np.random.default_rng(levels)
    distance = rng.integers(0, levels, (64, 300)).astype(np.float32)
    ids = draw_ids(rng, 64, 300, 20, 3)
    cmc, ap, inp = evaluate_rank(distance, *ids)
    found = rank(distance, *ids, block=block)
    np.testing.assert_array_equal(found.cmc, np.asarray(cmc, np.float32))
    np.testing.assert_array_equal(found.ap, np.asarray(ap, np.float32))
    np.testing.assert_array_equal(found.inp, np.asarray(inp, np.float32))
    np.testing.assert_array_equal(found.nearest, nearest(distance, *ids, ranking.NEAREST))


@pytest.mark.parametrize("seed", range(8))
def test_fastreids_cython_is_the_judge(seed):
    """Features whose people are far apart, near each other or alike; people of one camera alone, of many images, of
    none; a camera in which everybody is dropped; images that are there twice."""
    rng = np.random.default_rng(seed)
    people, cameras = int(rng.choice([2, 5, 60])), int(rng.choice([2, 6]))
    ids = draw_ids(rng, 50, 700, people, cameras)
    ids[0][:5] = 1000  # nobody in the gallery
    ids[2][5:9], ids[3][ids[1] == ids[0][5]] = 0, 0  # seen by one camera
    points = rng.normal(size=(1001, 16)) * rng.choice([0.02, 0.5, 4.0])
    query, gallery = (points[p] + rng.normal(size=(len(p), 16)) for p in ids[:2])
    gallery[rng.integers(0, 700, 200)] = gallery[rng.integers(0, 700, 200)]
    distance = np.square(query[:, None] - gallery).sum(2).astype(np.float32)
    cmc, ap, inp = evaluate_rank(distance, *ids)
    found = rank(distance, *ids, block=11)
    assert 5 <= found.skipped < 50 and 0 < ap.mean() < 1
    np.testing.assert_array_equal(found.cmc, np.asarray(cmc, np.float32))
    np.testing.assert_array_equal(found.ap, np.asarray(ap, np.float32))
    np.testing.assert_array_equal(found.inp, np.asarray(inp, np.float32))


def test_only_a_tie_with_somebody_else_costs_an_order(monkeypatch):
    """Images of one person at one distance, or of others at one, need none; an ignored image needs none either."""
    ordered, by_order = [], cpu_ranking._places_by_order

    def counted(distances, matches, ignored):
        ordered.append(distances[0])
        return by_order(distances, matches, ignored)

    monkeypatch.setattr(cpu_ranking, "_places_by_order", counted)
    g_pids, g_camids = np.array([1, 1, 1, 2, 3, 4]), np.array([1, 1, 0, 1, 1, 1])
    distance = np.array(
        [
            [1, 1, 5, 3, 3, 4],  # two matches tied, two others tied
            [2, 5, 3, 3, 4, 6],  # an image of the query's own camera as far as another person's
            [3, 1, 1, 5, 5, 6],  # and as far as a match
            [9, 2, 1, 9, 3, 4],  # a match as far as another person's
        ],
        np.float32,
    )
    found = rank(distance, np.ones(4, int), g_pids, np.zeros(4, int), g_camids)
    assert ordered == [9]
    np.testing.assert_allclose(found.ap[:3], [1, (1 + 2 / 4) / 2, (1 + 2 / 2) / 2])


def test_block_of_queries_without_a_match():
    distance = np.random.default_rng(0).random((6, 60), dtype=np.float32)
    q_pids, g_pids = np.array([9, 9, 9, 1, 1, 9]), np.ones(60, int)
    found = rank(distance, q_pids, g_pids, np.zeros(6, int), np.ones(60, int), block=3)
    assert found.skipped == 4 and len(found.ap) == 2 and found.cmc[0] == 1
    assert list(found.queries) == [3, 4]


def test_single_camera_is_an_error_that_says_so():
    distance = np.zeros((2, 60), np.float32)
    with pytest.raises(ValueError, match="none of the 2 queries .* another camera"):
        rank(distance, np.ones(2, int), np.ones(60, int), np.zeros(2, int), np.zeros(60, int))


@pytest.mark.parametrize(("held", "queries", "sizes"), [(10, 25, [8, 8, 9]), (10**6, 600, [200, 200, 200])])
def test_blocks_are_even_and_bounded(held, queries, sizes, monkeypatch):
    """By memory, and by what a product and several processes need; no block is left with a single query."""
    found = []

    def distances(start, stop):
        found.append(stop - start)
        return torch.rand(stop - start, 100)

    monkeypatch.setattr(ranking, "BLOCK_BYTES", held * 100 * ranking.PAIR_BYTES)
    ids = np.zeros(queries, int), np.zeros(100, int), np.zeros(queries, int), np.ones(100, int)
    rank_in_blocks(distances, *ids)
    assert found == sizes
