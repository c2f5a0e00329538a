"""tools/cross_domain.py: trained here, tested there; kept cells, the tables and what is refused."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from sagareid import get_cfg
from sagareid.reports.cross_domain import markdown, metric_table, page
from sagareid.studies.cross_domain import Source, _is_own, others_mean, read_sources

TINY = """
    MODEL.WEIGHTS ''  SOLVER.MAX_EPOCH 1  SOLVER.WARMUP_EPOCHS 0  SOLVER.IMS_PER_BATCH 16  DATALOADER.NUM_WORKERS 0
    CACHE.NUM_VIEWS 1
""".split()


def record(seeds: int = 1) -> dict:
    """Two sources, two targets, one of them a source's own."""

    def result(source: str, target: str, value: float, own: bool = False) -> dict:
        spread = None if seeds == 1 else 1.25
        metric = {"mean": value, "low": value - 1, "high": value + 1, "seeds": [value] * seeds, "spread": spread}
        found = dict.fromkeys(("Rank-1", "mAP", "mINP"), metric)
        return {"source": source, "target": target, "own": own, "feature": "fusion"} | found

    source = {
        "head": "SAGAHead",
        "backbone": "b",
        "runs": [{"path": "p", "seed": i, "digest": "d"} for i in range(seeds)],
    }
    target = {"digest": "d", "queries": 10, "queries_with_a_match": 9, "gallery": 30}
    return {
        "format": 1,
        "command": "cross_domain.py <b>",
        "date": "2026-01-01",
        "seconds": 1.0,
        "machine": {"cpu": "a CPU", "torch": "2"},
        "sources": [
            {"name": "A", "trained_on": ["A"], **source},
            {"name": "A+C", "trained_on": ["A", "C"], **source},
        ],
        "targets": [{"name": "A", **target}, {"name": "B", **target}],
        "results": [
            result("A", "A", 80.0, own=True),
            result("A", "B", 20.0),
            result("A+C", "A", 70.0, own=True),
            result("A+C", "B", 30.0),
        ],
        "failed": [{"source": "D", "seed": 1, "error": "no folder <D>"}],
    }


def test_own_sets_are_in_brackets_and_out_of_the_mean():
    headers, rows = metric_table(record(), "mAP")
    assert headers == ["source", "trained on", "A", "B", "mean of the others"]
    assert rows == [["A", "A", "(80.0)", "20.0", "20.0"], ["A+C", "A, C", "(70.0)", "30.0", "30.0"]]
    assert metric_table(record(seeds=3), "mAP")[1][0][2] == "(80.0 ± 1.2)"
    assert others_mean(record()["results"], "nobody", "mAP") is None


def test_the_page_and_the_table_hold_everything_and_escape_it():
    text, html = markdown(record()), page(record())
    assert "**mINP**" in text and "failed: D, seed 1: no folder <D>" in text and "| (80.0)" in text
    assert "cross_domain.py &lt;b&gt;" in html and "no folder &lt;D&gt;" in html and "<script" not in html


@pytest.mark.parametrize(
    "names, target, own",
    [
        (["Market1501"], "Market1501", True),
        (["Market1501"], "CUHK01", False),
        (["CUHK03Pair"], "CUHK03PairDetected", True),
        (["CUHK01"], "cuhk01_3", True),
        (["market"], "Market1501", True),
        (["shop"], "mall", False),
        (["shop"], "shop", True),
    ],
)
def test_what_counts_as_a_sources_own_set(names, target, own):
    cfg = get_cfg()
    cfg.DATASETS.CUSTOM = [
        {"NAME": "cuhk01_3", "TYPE": "CUHK01", "SPLIT": 3},
        {"NAME": "market", "TYPE": "HeldOutDataset", "OF": "Market1501", "VALIDATION_SHARE": 0.2},
        {"NAME": "shop", "TYPE": "FolderDataset", "PATH": "shop"},
        {"NAME": "mall", "TYPE": "FolderDataset", "PATH": "mall"},
    ]
    cfg.DATASETS.NAMES = names
    assert _is_own(cfg, cfg, target) is own


def test_sources_are_sets_joined_by_commas():
    assert read_sources(["A", "A,B", "both=A, B"]) == [
        Source("A", ("A",)),
        Source("A+B", ("A", "B")),
        Source("both", ("A", "B")),
    ]
    for words, message in ((["A,"], "expected data sets, each once"), (["A,A"], "each once"), (["A", "A"], "A twice")):
        with pytest.raises(ValueError, match=message):
            read_sources(words)


@pytest.mark.slow
def test_a_table_of_a_trained_source_and_a_given_run(run_tool, tiny_run, repo, tmp_path, monkeypatch):
    """A source of two sets as well. Again with a further target: nothing is trained or evaluated twice."""
    monkeypatch.chdir(repo)
    for image in range(16):
        path = tmp_path / f"shop/person{image // 4}/{image}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((24, 48), 40 + 10 * image).convert("RGB").save(path)
    shop = f"[{{NAME: shop, TYPE: FolderDataset, PATH: '{tmp_path / 'shop'}', TRAIN_SHARE: 1}}]"
    opts = [*TINY, "CACHE.DIR", tmp_path / "cache", "DATASETS.CUSTOM", shop]
    opts += ["DATASETS.TESTS", "[SyntheticPedestrians]"]  # the shop has no queries
    opts += ["DATASETS.VALIDATION", "[]", "SOLVER.PATIENCE", 0]
    out = tmp_path / "out"
    words = ["--config-file", "configs/study/cls.yml", *opts, "--sources"]
    words += ["drawn=SyntheticPedestrians", "both=SyntheticPedestrians,shop"]
    words += ["--runs", f"given={tiny_run}", "--output", out, "--targets"]
    code, printed, err = run_tool("cross_domain.py", *words, "SyntheticPedestriansVal")
    assert code == 0, err
    found = json.loads((out / "cross_domain.json").read_text())
    assert [s["name"] for s in found["sources"]] == ["given", "drawn", "both"]
    assert [t["name"] for t in found["targets"]] == ["SyntheticPedestriansVal"]
    assert all(r["own"] for r in found["results"]) and found["failed"] == []  # validation people of the same set
    assert [s["trained_on"][1:] for s in found["sources"]] == [[], [], ["shop"]]
    log = (out / "runs/both/seed_0/log.txt").read_text()
    assert "shop: train 16 images of 4 people" in log
    assert (out / "table.md").read_text().split("\n\n", 1)[1].strip() in printed
    # the training run's own evaluation of its own test set is the same as the table's
    cells = {file: file.stat().st_mtime_ns for file in (out / "cells").rglob("*.npz")}
    models = {file: file.stat().st_mtime_ns for file in (out / "runs").rglob("*.pth")}
    assert run_tool("cross_domain.py", *words, "SyntheticPedestriansVal", "SyntheticPedestrians")[0] == 0
    again = json.loads((out / "cross_domain.json").read_text())
    assert again["results"][:3] == found["results"]
    [own] = [r for r in again["results"] if r["source"] == "drawn" and r["target"] == "SyntheticPedestrians"]
    result = json.loads((out / "runs/drawn/seed_0/result.json").read_text())["metrics"]
    assert own["mAP"]["mean"] == pytest.approx(result["mAP"], abs=0.01) and own["own"]
    assert all(file.stat().st_mtime_ns == time for file, time in (cells | models).items())
    assert len(list((out / "cells").rglob("*.npz"))) == 6


@pytest.mark.parametrize(
    "words, message",
    [
        (["--targets", "SyntheticPedestrians"], "name what to evaluate: --sources SET"),
        (["--targets", "A", "--sources", "A"], "need the config that is trained: name it with --config-file"),
        (["--targets", "Nowhere", "--runs", "RUN"], "Nowhere is neither a registered data set"),
        (["--targets", "Market1501", "--runs", "RUN"], "Market1501: no folder Market-1501-v15.09.15 under"),
        (
            ["--targets", "SyntheticPedestrians", "SyntheticPedestrians", "--runs", "RUN"],
            "names SyntheticPedestrians twice",
        ),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_done(run_tool, tiny_run, tmp_path, words, message):
    words = [str(tiny_run) if word == "RUN" else word for word in words]
    code, _, err = run_tool("cross_domain.py", *words, "--output", tmp_path / "out")
    assert code == 1 and message in err
    assert not list(tmp_path.rglob("*.json"))
