"""tools/compare.py: every config trains with every seed, a failure stops no other run, the table holds means."""

from __future__ import annotations

import json
import re

import pytest
import torch
from test_baseline_heads import head
from test_interchange import config
from torch import nn

from sagareid.modeling.heads import text_towers
from sagareid.studies import compare, complexity

TINY = """
    MODEL.WEIGHTS ''  SOLVER.MAX_EPOCH 1  SOLVER.WARMUP_EPOCHS 0  SOLVER.IMS_PER_BATCH 16  DATALOADER.NUM_WORKERS 0
    CACHE.NUM_VIEWS 1
""".split()


@pytest.fixture
def run(call_tool, monkeypatch, repo, tmp_path):
    """tools/compare.py on tiny data; returns its exit code."""
    monkeypatch.chdir(repo)

    def call(*words) -> int:
        return call_tool("compare.py", *words, *TINY, "CACHE.DIR", tmp_path / "cache", "--output", tmp_path / "out")

    return call


@pytest.mark.slow
def test_two_heads_two_seeds(run, tmp_path, capsys):
    words = ("configs/study/cls.yml", "configs/study/patch_mean.yml", "--seeds", "0", "1")
    assert run(*words) == 0
    printed = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert [(r["name"], r["seed"]) for r in found["runs"]] == [
        ("cls", 0),
        ("patch_mean", 0),
        ("cls", 1),
        ("patch_mean", 1),
    ]
    [row] = [s for s in found["summary"] if s["name"] == "cls" and s["row"] == "result"]
    values = [r["result"]["metrics"]["mAP"] for r in found["runs"] if r["name"] == "cls"]
    assert row["mAP"]["mean"] == pytest.approx(sum(values) / 2)
    assert row["mAP"]["sd"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert {s["row"] for s in found["summary"]} == {"result", "refined"}
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert text.strip() in printed and re.search(r"\| cls +\|", text) and "±" in text
    # the heads and seeds share one cache of the training set and one of the validation set, and are two models
    assert len(list((tmp_path / "cache").iterdir())) == 2
    # again: nothing is trained
    before = {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.pth")}
    assert run(*words) == 0
    assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "out").rglob("*.pth")} and len(before) == 4
    assert json.loads((tmp_path / "out" / "comparison.json").read_text()) == found


@pytest.mark.slow
def test_a_failed_run_is_reported_and_tried_again(run, tmp_path, capsys, monkeypatch):
    from sagareid.engine.trainer import SAGATrainer

    original = SAGATrainer.train

    def breaks(self):
        if "cls" in self.cfg.OUTPUT_DIR:
            raise RuntimeError("the disk fell off")
        return original(self)

    words = ("configs/study/cls.yml", "configs/study/patch_mean.yml", "--seeds", "3")
    with monkeypatch.context() as patch:
        patch.setattr(SAGATrainer, "train", breaks)
        assert run(*words) == 1
    printed = capsys.readouterr().out
    assert "failed: cls, seed 3: the disk fell off" in printed and re.search(r"\| patch_mean +\|", printed)
    assert run(*words) == 0
    assert "failed" not in (tmp_path / "out" / "comparison.md").read_text()


def test_a_config_that_cannot_be_planned_stops_before_anything_runs(run, tmp_path, capsys):
    assert run("configs/study/cls.yml", "configs/study/nowhere.yml") == 1
    assert "no config file at configs/study/nowhere.yml" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_words():
    configs, seeds, rows, opts = compare.split_words(
        ["Base-a.yml", "a.yml", "b.yml", "SOLVER.MAX_EPOCH", "1"],
        ["0", "2", "MODEL.DEVICE", "cpu"],
        ["refined", "SEED_OF_DATA", "3"],
    )
    assert (configs, seeds, rows) == (["a.yml", "b.yml"], [0, 2], ["refined"])
    assert opts == ["SOLVER.MAX_EPOCH", "1", "MODEL.DEVICE", "cpu", "SEED_OF_DATA", "3"]
    for words, seeds, message in [
        (["MODEL.DEVICE", "cpu"], ["0"], "name one config"),
        (["a.yml", "MODEL.DEVICE"], ["0"], "pairs"),
        (["a.yml", "SEED", "1"], ["0"], "use --seeds"),
        (["a.yml", "OUTPUT_DIR", "x"], ["0"], "use --output"),
        (["a.yml"], ["MODEL.DEVICE", "cpu"], "one number"),
    ]:
        with pytest.raises(ValueError, match=message):
            compare.split_words(words, seeds)


def test_names():
    assert compare.names_of(["x/SAGA/a.yml", "x/SAGA/b.yml"]) == ["a", "b"]
    assert compare.names_of(["x/SAGA/a.yml", "x/CLIPReID/a.yml"]) == ["SAGA-a", "CLIPReID-a"]
    with pytest.raises(ValueError, match="named twice"):
        compare.names_of(["a.yml", "./a.yml"])


class _OfHead(nn.Module):
    """A head alone, on given features, where `complexity` expects a model."""

    def __init__(self, heads, features):
        super().__init__()
        self.heads, self.features = heads, features
        self.register_buffer("pixel_mean", torch.zeros(1))

    def forward(self, batch):
        return self.heads(self.features)


def test_operations_and_parameters_are_those_counted_by_hand():
    """One image, 18 patches of width 128: a linear layer, a query with 8 heads, a scan of width 64 both ways."""
    from sagareid.structures import CLIPFeatures

    N, D = 18, 128
    features = CLIPFeatures(torch.randn(1, N, D), (6, 3), torch.randn(1, D), torch.randn(1, D), torch.randn(1, 1, D))
    products = {  # multiply-adds
        "PatchPoolHead": 0,
        "AttentionPoolHead": D * D + 2 * N * D * D + 2 * N * D + D * D,  # q; k, v; scores, values; out
        "SequentialHead": 2 * N * (D + 64) * 3 * 64,
        "LastBlockHead": D * D
        + 2 * (N + 1) * D * D
        + 2 * (N + 1) * D
        + D * D
        + 2 * 4 * D * D,  # class token's row alone
    }
    for name, count in products.items():
        model = head(name, "MODEL.HEADS.EMBEDDING_DIM", D, "MODEL.HEADS.NUM_CLASSES", 4)
        cost = complexity.complexity(config(), _OfHead(model, features))
        assert cost.head_gflops == pytest.approx(2e-9 * (count + D * D)), name
        assert cost.gflops == cost.head_gflops
        assert cost.parameters == cost.head_parameters == sum(p.numel() for p in model.parameters())
        assert cost.trained == cost.parameters - D, "the neck's bias stays at zero"
        cost = complexity.complexity(config("MODEL.TRAINABLE", ["heads.classifier*"]), _OfHead(model, features))
        assert cost.trained == 4 * D, "loading a model freezes nothing, and the rest of it was frozen in training"


def test_operations_of_anchors_that_are_parameters_themselves():
    from sagareid.structures import CLIPFeatures

    features = CLIPFeatures(
        torch.randn(1, 18, 128), (6, 3), torch.randn(1, 128), torch.randn(1, 128), torch.randn(1, 1, 128)
    )
    with text_towers(False):
        counts = [
            complexity.complexity(
                config(), _OfHead(head("SAGAHead", "MODEL.HEADS.NUM_CLASSES", 4, *options), features)
            ).gflops
            for options in (["MODEL.SAGA.FREE_ANCHORS", True], [])
        ]
    assert counts[0] > 0
    assert counts[0] == counts[1], "stored text anchors cost what free ones do"
