"""docs/tutorial_*.md: every command and every piece of Python, in their order, on tiny runs of the quick start."""

from __future__ import annotations

import glob
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import small_runs

pytestmark = pytest.mark.slow

REPO = Path(__file__).resolve().parents[1]
PAGES = sorted(p.name for p in (REPO / "docs").glob("tutorial_*.md"))
# What makes a command small, behind its own words.
SMALL = {
    "compare.py": [
        *small_runs.SMALL,
        *"SOLVER.WARMUP_EPOCHS 0  SOLVER.IMS_PER_BATCH 24  TEST.EVAL_PERIOD 1".split(),
    ],
    "occlusion_study.py": ["--levels", "30", "--bootstrap", "20", "--samples", "1", "--workers", "0"],
    "extract.py": ["--workers", "0"],
    "report.py": ["--lists", "none"],
    "calibrate.py": ["--fmr", "0.3"],
    "benchmark.py": ["--smoke"],
}
# What a command leaves behind.
MADE = {
    "tutorial_researcher.md": [
        "logs/SAGA/quickstart/report.html",
        "logs/study/comparison.md",
        "logs/study/occlusion/study.html",
    ],
    "tutorial_engineer.md": ["features.npz", "index/gallery.json", "found.png", "model.onnx", "calibration.json"],
    "tutorial_contributor.md": [],
}


@pytest.fixture
def workplace(tiny_quickstart, tiny_root, tmp_path, monkeypatch) -> Path:
    """A folder as the pages take it to be: the quick start's result, crops, a query."""
    shutil.copytree(tiny_quickstart, tmp_path / "logs" / "SAGA" / "quickstart")
    people = tiny_root / "synthetic_pedestrians"
    shutil.copytree(people / "query", tmp_path / "crops")
    shutil.copy(sorted((people / "bounding_box_test").glob("*.jpg"))[-1], tmp_path / "query.jpg")
    (tmp_path / "configs").symlink_to(REPO / "configs")
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(page: str) -> list[tuple[str, str]]:
    return re.findall(r"^```(bash|python)\n(.*?)^```$", (REPO / "docs" / page).read_text(), re.S | re.M)


def run(line: str, monkeypatch) -> None:
    """A command as a shell would run it, small. What needs a real data set or an environment is for the other tests."""
    words = [w for word in shlex.split(line, comments=True) for w in (sorted(glob.glob(word)) or [word])]
    if words[:1] != ["python"] or "OccludedDuke" in words or "configs/SAGA/occ_duke.yml" in words:
        return
    tool = Path(words[1]).name
    monkeypatch.setattr(sys, "argv", [tool, *words[2:], *SMALL.get(tool, [])])
    try:
        runpy.run_path(str(REPO / "tools" / tool), run_name="__main__")
    except SystemExit as end:
        assert not end.code, line


def test_every_tutorial_is_run_here():
    assert sorted(MADE) == PAGES


@pytest.mark.parametrize("page", PAGES)
def test_a_tutorial_runs_from_top_to_bottom(page, workplace, monkeypatch):
    found = blocks(page)
    assert found
    names: dict = {}
    for language, body in found:
        if language == "python":
            exec(compile(body, page, "exec"), names)
            continue
        for line in body.strip().splitlines():
            run(line, monkeypatch)
    assert not [name for name in MADE[page] if not (workplace / name).exists()]
    if "features" in names:
        assert names["features"].shape[0] == 1
