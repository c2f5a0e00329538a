"""What the README promises: it is short, its code and its head run as printed, its links and names lead somewhere."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import sys

import pytest
import torch
from small_runs import SMALL, SMALL_IMAGES

from sagareid.weights import load_state

RUN = [
    *SMALL,
    *SMALL_IMAGES,
    *"SOLVER.MAX_EPOCH 2  SOLVER.WARMUP_EPOCHS 0  SOLVER.IMS_PER_BATCH 24  TEST.EVAL_PERIOD 1".split(),
    *("MODEL.WEIGHTS", "", "CACHE.DIR", "cache"),
]


@pytest.fixture(scope="module")
def readme(repo) -> str:
    return (repo / "README.md").read_text()


def test_it_takes_five_minutes(readme):
    assert len(readme.splitlines()) <= 150


def test_its_links_and_pictures_are_there(readme, repo):
    targets = [t for t in re.findall(r"\]\(([^)]+)\)", readme) if not t.startswith("http")]
    assert len(targets) > 10
    assert not [t for t in targets if not (repo / t.partition("#")[0]).exists()]


def test_the_files_that_its_commands_name_are_there(readme, repo):
    commands = [line for block in re.findall(r"^```\w*\n(.*?)^```", readme, re.S | re.M) for line in block.splitlines()]
    named = [w for line in commands for w in line.split() if re.match(r"(tools|configs)/", w)]
    assert named and not [w for w in named if not (repo / w).is_file()]
    goals = [line.split()[1] for line in commands if line.startswith("make ")]
    makefile = (repo / "Makefile").read_text()
    assert goals and all(re.search(rf"^{goal}:", makefile, re.M) for goal in goals)


def test_the_five_lines_of_python_run_as_printed(readme, tiny_root, tmp_path, monkeypatch, capsys):
    [code] = [c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if "Extractor" in c]
    images = sorted((tiny_root / "synthetic_pedestrians" / "query").glob("*.jpg"))
    for name, image in zip(("query.jpg", "gallery.jpg"), images, strict=False):
        shutil.copy(image, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert -1 <= float(capsys.readouterr().out.split()[-1]) <= 1


@pytest.mark.slow
def test_its_head_trains_by_its_own_command(readme, repo, train_net, tmp_path, monkeypatch):
    from fastreid.modeling.heads import REID_HEADS_REGISTRY

    monkeypatch.setattr(REID_HEADS_REGISTRY, "_obj_map", dict(REID_HEADS_REGISTRY._obj_map))
    [code] = [c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if "REID_HEADS_REGISTRY" in c]
    [command] = re.findall(r"^python tools/train_net\.py (--import .*)$", readme, re.M)
    (tmp_path / "my_head.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert train_net(*shlex.split(command), *RUN, "OUTPUT_DIR", tmp_path / "out") == 0
    [result] = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 <= result["metrics"]["mAP"] <= 100
    state = load_state(tmp_path / "out" / "model_final.pth")["model"]
    [gate] = [v for k, v in state.items() if k.endswith("gate.bias")]
    [layer] = [v for k, v in state.items() if k.endswith("embedding.weight")]
    assert torch.isfinite(gate).all() and not torch.equal(layer, torch.eye(len(layer))), "its feature learns something"
    sys.modules.pop("my_head", None)


def test_the_page_of_the_method_names_symbols_where_they_are(repo):
    """`file.py: Symbol` is defined in that file; a symbol alone, in some file of the package."""
    package = repo / "projects/SAGA/sagareid"
    page = (repo / "projects/SAGA/README.md").read_text()

    def defined(path) -> set[str]:
        tree = ast.parse(path.read_text())
        return {n.name for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef))}

    everywhere = set().union(*(defined(path) for path in package.rglob("*.py")))
    checked = 0
    for file, symbol in re.findall(r"`([\w/]+\.py): ([\w.]+)`", page):
        assert set(symbol.split(".")) <= defined(package / file), f"{file}: {symbol}"
        checked += 1
    for symbol in re.findall(r"`([A-Z][a-z]\w+(?:\.\w+)?)`", page):
        assert set(symbol.split(".")) <= everywhere, symbol
        checked += 1
    assert checked > 15
