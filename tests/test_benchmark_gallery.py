"""tools/benchmark_gallery.py on a small size: recall against a truth of its own, a whole report. Nothing is timed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from sagareid.benchmarks.gallery import CAMERAS, Drawn


def test_drawn_people_are_the_same_at_every_pass_and_have_clusters():
    drawn = Drawn(2000, 64, images=20)
    blocks = [next(drawn.blocks()) for _ in range(2)]
    assert np.array_equal(blocks[0][2], blocks[1][2]) and np.array_equal(blocks[0][1], blocks[1][1])
    _, cameras, x = blocks[0]
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5)
    products = np.sort(x[:50] @ x.T, axis=1)
    assert 0.6 < np.median(products[:, -10:]) < 0.9, "images of a person"
    assert abs(np.median(products[:, :1000])) < 0.25, "of others"
    queries = drawn.queries(5)
    truth = drawn.nearest(queries, [1.0, 0.1])
    assert np.array_equal(truth[1.0], np.argsort(-(queries @ x.T), axis=1)[:, :10])
    few = np.flatnonzero(cameras < 0.1 * CAMERAS)
    assert np.array_equal(truth[0.1], few[np.argsort(-(queries @ x[few].T), axis=1)[:, :10]])


@pytest.mark.slow
def test_the_report_is_whole(run_tool, tmp_path):
    words = ["--count", 3000, "--width", 16, "--queries", 20, "--threads", 1, "--folder", tmp_path / "g"]
    code, printed, _ = run_tool("benchmark_gallery.py", *words, "--output", tmp_path / "b.json")
    assert code == 0 and not (tmp_path / "g").exists()
    found = json.loads((tmp_path / "b.json").read_text())
    assert [entry["kind"] for entry in found["kinds"]] == ["flat", "hnsw", "ivfpq"]
    for entry in found["kinds"]:
        assert [search["share"] for search in entry["searches"]] == [1.0, 0.1, 0.01]
        assert all(search["recall"] > 0.97 for search in entry["searches"]) and entry["disk_mib"] > 0
    assert "recall@10" in printed and "python tools/benchmark_gallery.py --count 3000" in printed
    assert run_tool("benchmark_gallery.py", "--shares", 0.001)[0] == 2
