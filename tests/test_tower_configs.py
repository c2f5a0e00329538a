"""The configs of towers and their page: each plans, its checks pass, and the page has its size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sagareid.engine import plans
from sagareid.studies.complexity import tower_complexity

FOLDER = Path(__file__).parents[1] / "configs/SAGA/towers"
# Those of timm and open_clip; towers with weights of ReID papers have tests of their own.
LEAVES = [p for p in sorted(FOLDER.glob("*.yml")) if re.search(r"Base-(timm|SAGA)\.yml", p.read_text())]
LEAVES = [p for p in LEAVES if not p.name.startswith("Base-")]


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: p.stem)
def test_a_tower_plans_and_the_page_says_its_size(path, repo):
    runs = plans.plan(path)
    own = [] if runs[-1].cfg.MODEL.BACKBONE.NAME == "build_timm_backbone" else ["prompts"]
    assert [run.name for run in runs] == [*own, "backbone", "anchors_warmup", "anchors"]
    cfg = runs[-1].cfg
    found = tower_complexity(cfg)
    assert found.width == cfg.MODEL.BACKBONE.FEAT_DIM
    [row] = [line for line in (repo / "docs/towers.md").read_text().splitlines() if f"`{path.stem}.yml`" in line]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    size = [f"{found.width}", f"{found.grid[0]}x{found.grid[1]}"]
    size += [f"{found.parameters / 1e6:.1f}", f"{found.gflops:.1f}"]
    assert cells[2:6] == size
    assert re.search(r"timm|open_clip", cells[1])
