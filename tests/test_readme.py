"""What the README promises: its head of ten lines trains, the files and flags that it names exist."""

from __future__ import annotations

import json
import re
import sys

import pytest


@pytest.fixture(scope="module")
def readme(repo) -> str:
    return (repo / "README.md").read_text()


def test_the_head_of_ten_lines_trains_through_train_net(readme, repo, train_net, tmp_path, monkeypatch):
    [code] = [c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if "REID_HEADS_REGISTRY" in c]
    (tmp_path / "my_head.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    keys = """
        STAGES []  MODEL.HEADS.NAME TopPatchHead  MODEL.BACKBONE.PRETRAIN False  SOLVER.MAX_EPOCH 1
        SOLVER.IMS_PER_BATCH 48  DATALOADER.NUM_WORKERS 0  INPUT.SIZE_TRAIN [48,24]  INPUT.SIZE_TEST [48,24]
    """.split()
    run = [
        "--import",
        "my_head",
        "--config-file",
        repo / "configs/SAGA/quickstart.yml",
        "OUTPUT_DIR",
        tmp_path / "out",
        *keys,
    ]
    assert train_net(*run) == 0
    [result] = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 <= result["metrics"]["mAP"] <= 100
    from fastreid.modeling.heads import REID_HEADS_REGISTRY

    del REID_HEADS_REGISTRY._obj_map["TopPatchHead"], sys.modules["my_head"]


def test_named_files_exist(readme, repo):
    for path in set(re.findall(r"(?:tools|configs|tests|docs|projects)/[\w./-]+\.\w+", readme)):
        assert (repo / path).exists(), path
    folder_map = re.search(r"## The house\n\n```\n(.*?)```", readme, re.S)[1]
    for tool in re.findall(r"\b(\w+\.py)\b", folder_map):
        assert list(repo.glob(f"tools/{tool}")) or list(repo.glob(f"projects/SAGA/sagareid/**/{tool}")), tool


def test_method_page_names_what_is_there(repo):
    """Every `symbol` that the page maps an equation to is defined in the package."""
    page = (repo / "projects/SAGA/README.md").read_text()
    source = "\n".join(p.read_text() for p in (repo / "projects/SAGA/sagareid").rglob("*.py"))
    for symbol in set(re.findall(r"`(?:[\w./]+\.py: )?(?:\w+\.)?(\w+)`", page)):
        if symbol not in ("py", "yml") and not re.search(rf"^\s*(?:def|class) {symbol}\b|\b{symbol}\b", source, re.M):
            raise AssertionError(symbol)


def test_no_figure_is_left_open(readme):
    assert not re.findall(r"@\w+@", readme)
