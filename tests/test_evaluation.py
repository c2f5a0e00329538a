"""Evaluation against slow oracles written from the definitions, and against FastReID's own evaluator.

The ranking itself is in test_ranking.py."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pytest
import torch

from sagareid.config import get_cfg
from sagareid.evaluation import postprocess
from sagareid.evaluation.evaluator import SAGAEvaluator
from sagareid.evaluation.features import WholeFeature, available_features

from fastreid.evaluation import ReidEvaluator
from fastreid.evaluation.query_expansion import aqe
from fastreid.evaluation.rerank import re_ranking
from fastreid.utils.compute_dist import build_dist

LAYOUT = {"refined": 12, "cls": 12, "proj": 8}


def make_set(queries=30, gallery=150, people=10, cameras=4, width=32, seed=0):
    """Features that cluster by person, so that metrics are neither 0 nor 1."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(0, people, queries + gallery)
    cams = rng.integers(0, cameras, queries + gallery)
    centres = rng.normal(size=(people, width))
    x = centres[pids] + 1.3 * rng.normal(size=(queries + gallery, width))
    return torch.from_numpy(x.astype(np.float32)), pids, cams


def run(cfg, features, pids, cams, queries, layout=None, batch=37):
    evaluator = SAGAEvaluator(cfg, queries, layout=layout)
    evaluator.reset()
    for i in range(0, len(features), batch):
        part = slice(i, i + batch)
        inputs = {"targets": torch.from_numpy(pids[part]), "camids": torch.from_numpy(cams[part])}
        evaluator.process(inputs, features[part])
    return evaluator.evaluate()


def run_host(cfg, features, pids, cams, queries):
    evaluator = ReidEvaluator(cfg, queries)
    evaluator.process({"targets": torch.from_numpy(pids), "camids": torch.from_numpy(cams)}, features)
    return evaluator.evaluate()


# ---- the evaluator against the host's ------------------------------------------------------------------------------
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("option", [None, "AQE", "ROC"])
def test_one_part_equals_the_hosts_evaluator(metric, option):
    cfg = get_cfg()
    cfg.TEST.METRIC = metric
    if option:
        cfg.TEST[option].ENABLED = True
    features, pids, cams = make_set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        by_fastreid = run_host(cfg, features.clone(), pids, cams, 30)
    ours = run(cfg, features, pids, cams, 30)
    assert set(ours) == set(by_fastreid)
    for key in by_fastreid:
        assert ours[key] == pytest.approx(float(by_fastreid[key]), abs=1e-4), key
    assert 1 < ours["mAP"] < 99


def test_features_of_one_pass():
    cfg = get_cfg()
    features, pids, cams = make_set()
    results = run(cfg, features, pids, cams, 30, LAYOUT)
    parts = dict(zip(LAYOUT, features.split(list(LAYOUT.values()), dim=1)))
    expected = {
        **parts,
        "concat": features,
        "orth": postprocess.orthogonal(parts["refined"], parts["cls"], 0.3),
        "fusion": postprocess.fuse(parts, {"refined": 2.0, "cls": 0.2, "proj": 0.05}),
    }
    assert available_features(LAYOUT) == list(expected)
    for name, x in expected.items():
        by_fastreid = run_host(cfg, x.clone(), pids, cams, 30)
        for key in ("Rank-1", "mAP", "mINP"):
            ours = results[key if name == "fusion" else f"{name}/{key}"]  # auto: the result is the fusion
            assert ours == pytest.approx(float(by_fastreid[key]), abs=2e-2 if key == "mAP" else 1e-3), (name, key)
    assert results["metric"] == pytest.approx((results["Rank-1"] + results["mAP"]) / 2)
    assert "fusion/mAP" not in results


def test_feature_and_report_choose():
    cfg = get_cfg()
    cfg.TEST.FEATURE, cfg.TEST.REPORT = "cls", ["proj"]
    features, pids, cams = make_set()
    results = run(cfg, features, pids, cams, 30, LAYOUT)
    assert {key.split("/")[0] for key in results if "/" in key} == {"proj"}
    two = run(get_cfg(), features[:, :20], pids, cams, 30, {"cls": 12, "proj": 8})
    assert {key.split("/")[0] for key in two if "/" in key} == {"cls", "proj"}  # auto: concat, no fusion
    cfg.TEST.REPORT = []
    assert not any("/" in key for key in run(cfg, features, pids, cams, 30, LAYOUT))


def test_the_feature_parts_is_in_no_other():
    features, pids, cams = make_set(width=44)
    with_parts = run(get_cfg(), features, pids, cams, 30, {**LAYOUT, "parts": 12})
    without = run(get_cfg(), features[:, :32], pids, cams, 30, LAYOUT)
    assert {k: v for k, v in with_parts.items() if not k.startswith("parts/")} == without
    first = run(get_cfg(), torch.cat([features[:, 32:], features[:, :32]], 1), pids, cams, 30, {"parts": 12, **LAYOUT})
    assert first == pytest.approx(with_parts)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("FEATURE", "orth", "TEST.FEATURE names the feature 'orth'; this model gives cls, proj, concat"),
        ("REPORT", ["refined"], "TEST.REPORT names the feature 'refined'; this model gives cls, proj, concat"),
    ],
)
def test_a_feature_that_the_head_does_not_give(key, value, message):
    cfg = get_cfg()
    cfg.TEST[key] = value
    with pytest.raises(ValueError, match=message):
        SAGAEvaluator(cfg, 3, layout={"cls": 12, "proj": 8})


def test_wrong_width_and_bad_features():
    features, pids, cams = make_set()
    with pytest.raises(ValueError, match="width 32.*sums to 20"):
        run(get_cfg(), features, pids, cams, 30, {"cls": 12, "proj": 8})
    features[3, 3] = float("nan")
    with pytest.raises(ValueError, match="1 of 180 features are not finite"):
        run(get_cfg(), features, pids, cams, 30)


@pytest.mark.parametrize("option", ["NFC", "AQE", "RERANK"])
def test_what_uses_other_images_is_marked(option, caplog):
    features, pids, cams = make_set()
    cfg = get_cfg()
    with caplog.at_level(logging.INFO, "sagareid"):
        plain = run(cfg, features, pids, cams, 30, LAYOUT)
        assert "transductive" not in caplog.text
        cfg.TEST[option].ENABLED = True
        changed = run(cfg, features, pids, cams, 30, LAYOUT)
    assert f"transductive: {option}" in caplog.text
    assert changed["mAP"] != plain["mAP"] and np.isfinite(changed["mAP"])


def test_skipped_queries_are_counted_in_the_log(caplog):
    features, pids, cams = make_set()
    pids[:4] = 99
    with caplog.at_level(logging.WARNING, "sagareid"):
        run(get_cfg(), features, pids, cams, 30)
    assert "4 of 30 queries" in caplog.text


# ---- fusion --------------------------------------------------------------------------------------------------------
def test_fusion_distance_is_the_weighted_sum_of_the_parts_distances():
    x = torch.randn(9, 32)
    parts = dict(zip(LAYOUT, x.split(list(LAYOUT.values()), dim=1)))
    weights = {"refined": 10.0, "cls": 1.0, "proj": 0.0}
    fused = postprocess.fuse(parts, weights)
    expected = sum(w * torch.cdist(postprocess.l2(parts[n]), postprocess.l2(parts[n])) ** 2 for n, w in weights.items())
    torch.testing.assert_close(postprocess.squared_distance(fused, fused), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(fused.norm(dim=1), torch.full((9,), 11.0**0.5))
    for bad in ({**weights, "cls": -1.0}, dict.fromkeys(weights, 0.0)):
        with pytest.raises(ValueError, match="TEST.FUSION"):
            postprocess.fuse(parts, bad)


def test_orthogonal_by_hand():
    u, v = torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 3.0]])
    side = 0.3 / 2**0.5
    torch.testing.assert_close(postprocess.orthogonal(u, v, 0.3), postprocess.l2(torch.tensor([[1.0, side]])))
    torch.testing.assert_close(postprocess.orthogonal(u, v, 0.0), torch.tensor([[1.0, 0.0]]))


# ---- NFC, expansion, re-ranking ------------------------------------------------------------------------------------
def naive_nfc(x, k1, k2):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    distance = ((x[:, None] - x[None]) ** 2).sum(2)
    np.fill_diagonal(distance, np.inf)
    top = [list(np.argsort(row)[:k1]) for row in distance]
    out = x.copy()
    for i in range(len(x)):
        for j in top[i]:
            if i in top[j][:k2]:
                out[i] += x[j]
    return out / np.linalg.norm(out, axis=1, keepdims=True)


@pytest.mark.parametrize(("k1", "k2"), [(2, 2), (5, 2), (3, 3)])
def test_nfc_equals_loops(k1, k2, monkeypatch):
    monkeypatch.setattr(postprocess, "BLOCK_BYTES", 8 * 60 * 7)  # blocks of 7 rows
    x = make_set(10, 50, 8)[0]
    expected = naive_nfc(x.double().numpy(), k1, k2)
    np.testing.assert_allclose(postprocess.nfc(x, k1, k2).numpy(), expected, atol=1e-5)
    assert not np.allclose(expected, postprocess.l2(x).numpy())


@pytest.mark.parametrize("n", [1, 2, 3])
def test_nfc_of_a_handful(n):
    x = torch.randn(n, 4)
    assert postprocess.nfc(x, 2, 2).shape == x.shape


def test_expansion_equals_the_hosts(monkeypatch):
    monkeypatch.setattr(postprocess, "BLOCK_BYTES", 20_000)
    x = make_set()[0]
    expected = torch.cat(aqe(x[:30], x[30:], 2, 5, 3.0))
    torch.testing.assert_close(postprocess.expand_queries(x, 2, 5, 3.0), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("k1", "k2", "lam"), [(20, 6, 0.3), (50, 15, 0.3), (7, 1, 0.0)])
def test_rerank_equals_the_reference_algorithm(k1, k2, lam, monkeypatch):
    """Against the host's numpy form (dense matrices, plain loops), which the evaluator itself cannot afford."""
    monkeypatch.setattr(postprocess, "BLOCK_BYTES", 50_000)
    x = postprocess.l2(make_set(20, 90, 8)[0])
    q, g = x[:20].double(), x[20:].double()

    def plain(a, b):
        return np.sqrt(((a[:, None] - b[None]) ** 2).sum(2).numpy())  # re_ranking squares it

    expected = re_ranking(plain(q, g), plain(q, q), plain(g, g), k1, k2, lam)
    np.testing.assert_allclose(
        postprocess.reranked_distances(x[:20], x[20:], k1, k2, lam)(0, 20).numpy(), expected, atol=2e-5
    )
    rows = postprocess.reranked_distances(x[:20], x[20:], k1, k2, lam)
    np.testing.assert_array_equal(rows(5, 9).numpy(), rows(0, 20)[5:9].numpy())


def test_rerank_of_a_handful():
    """Fewer images than k1."""
    x = torch.randn(5, 4)
    assert torch.isfinite(postprocess.reranked_distances(x[:2], x[2:], 50, 15, 0.3)(0, 2)).all()


def test_rerank_improves_a_clustered_set():
    features, pids, cams = make_set(40, 400, 20)
    cfg = get_cfg()
    plain = run(cfg, features, pids, cams, 40)["mAP"]
    cfg.TEST.RERANK.ENABLED = True
    assert run(cfg, features, pids, cams, 40)["mAP"] > plain


def test_cosine_distance_is_the_hosts():
    features, _, _ = make_set()
    evaluator = SAGAEvaluator(get_cfg(), 30)
    found = evaluator._distances(WholeFeature(), features)(0, 30).numpy()
    np.testing.assert_array_equal(found, build_dist(features[:30], features[30:], "cosine"))
