"""The page of a run: what is read of a folder, finished or not, and that the page holds it and nothing from outside."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest
import yaml
from PIL import Image
from test_pictures import Page

from sagareid.reports import run_page, runs

TINY = """
    SOLVER.MAX_EPOCH 1  SOLVER.WARMUP_EPOCHS 0  SOLVER.IMS_PER_BATCH 48  DATALOADER.NUM_WORKERS 0
    INPUT.SIZE_TRAIN [48,24]  INPUT.SIZE_TEST [48,24]  CACHE.NUM_VIEWS 1
""".split()


def folder_of(path, metrics=(), weights="", **extra):
    """A made-up stage: config.yaml, metrics.json and further files."""
    path.mkdir(parents=True)
    (path / "config.yaml").write_text(
        yaml.safe_dump({"MODEL": {"WEIGHTS": weights, "DEVICE": "cpu"}, "DATASETS": {"TESTS": ["A"]}})
    )
    (path / "metrics.json").write_text(
        "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in metrics)
    )
    for name, content in extra.items():
        (path / name.replace("__", ".")).write_text(content)
    return path


def check(path) -> str:
    """The page's text, after seeing that it is whole and needs nothing else."""
    text = path.read_text()
    page = Page(text)
    assert not page.outside and not page.silent and not page.open
    return text


def test_what_a_resumed_run_repeats_counts_once():
    first = [{"iteration": i, "total_loss": 10.0 - i, "lr": 0.1} for i in (10, 20, 30)] + [
        {"iteration": 31, "mAP": 5.0}
    ]
    again = [{"iteration": i, "total_loss": 1.0, "lr": 0.2} for i in (20, 30, 40)] + [{"iteration": 31, "mAP": 7.0}]
    lines = [json.dumps(line) for line in first + again] + ['{"iteration": 50, "total_lo', ""]
    curves, damaged = runs.read_scalars(lines)
    assert curves["total_loss"] == ([10, 20, 30, 40], [0.0, 1.0, 1.0, 1.0]) and curves["mAP"] == ([31], [7.0])
    assert damaged == 1


def test_stages_come_in_the_order_of_their_weights(tmp_path):
    folder_of(tmp_path / "b", weights="/elsewhere/c/model_final.pth")
    folder_of(tmp_path / "a", weights="/elsewhere/b/model_final.pth")
    folder_of(tmp_path / "c")
    folder_of(tmp_path / "a.before-20260101-000000")  # an earlier run, set aside
    assert [stage.name for stage in runs.read_run(tmp_path)] == ["c", "b", "a"]
    assert [stage.name for stage in runs.read_run(tmp_path / "b")] == [""]
    with pytest.raises(FileNotFoundError, match="expected a config.yaml"):
        runs.read_run(tmp_path / "none")


def test_an_interrupted_run_shows_what_there_is(tmp_path):
    losses = [{"iteration": i, "total_loss": 5.0 - i / 100, "loss_cls": 4.0, "time": 0.1} for i in (99, 199)]
    evaluations = [{"iteration": i, "Rank-1": 10.0 + i, "mAP": 7.0, "cls/mAP": 3.0, "metric": 9.0} for i in (100, 200)]
    folder_of(tmp_path / "run" / "one", [*losses, *evaluations, '{"iteration": 2'], last_checkpoint="gone.pth")
    folder_of(tmp_path / "run" / "two", weights="one/model_final.pth")
    (tmp_path / "run" / "two" / "config.yaml").write_text("MODEL: {WEIGHTS: one/model_final.pth, ")  # cut off
    page = run_page.report(tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    text = check(page)
    assert "not finished: iteration 200" in text and "not finished: nothing recorded" in text
    assert "1 line(s) of metrics.json cannot be read" in text and "It has no checkpoint yet" in text
    assert "210.0" in text and "loss_cls: from 4 to 4" in text and "Rank-1: from 110 to 210" in text
    assert "mAP of cls: from 3 to 3" in text and "config.yaml is empty or cannot be read" in text


def test_several_test_sets_and_validation_have_rows_of_their_own(tmp_path):
    folder = folder_of(tmp_path / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["DATASETS"]["TESTS"] = ["A", "B"]
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "model_final.pth").touch()
    metrics = {
        "A": {"Rank-1": 11.0, "Rank-5": 14.5, "mAP": 12.0, "cls/Rank-1": 9.0, "cls/mAP": 13.0},
        "B": {"Rank-1": 21.0, "mAP": 22.0},
    }
    validation = {"metric": 55.5, "epoch": 3, "steps": 9, "metrics": {"Rank-1": 66.0, "metric": 55.5}}
    result = {"stage": "", "metrics": metrics, "seconds": 120.0, "steps": 9, "validation": validation}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "evaluation.json").write_text(
        json.dumps([{"stage": "", "metrics": {"mAP": 77.7}, "checkpoint": "x.pth"}])
    )
    text = check(run_page.report(folder, tmp_path / "page.html", lists="none"))
    for shown in (
        "A/cls",
        ">21.0<",
        ">13.0<",
        "A: Rank-5 14.5",
        "cls: what the image tower pools itself: its class token, where it has one",
        "after epoch 3",
        ">66.0<",
        ">77.7<",
        "x.pth",
        ">2.0<",
    ):
        assert shown in text, shown


def test_config_shows_first_what_differs_from_the_defaults(tmp_path):
    folder = folder_of(tmp_path / "run")
    (folder / "config.yaml").write_text("MODEL: {SAGA: {NUM_ANCHORS: 7}, DEVICE: cuda, MINE: <b>}\n")
    text = check(run_page.report(folder))
    differences, _, everything = text.partition("All keys")
    assert "2 of 3 keys differ" in text and "MODEL.SAGA.NUM_ANCHORS" in differences and "<code>24</code>" in differences
    assert "no such key" in differences and "&lt;b&gt;" in differences
    assert "MODEL.DEVICE" not in differences and "MODEL.DEVICE" in everything


@pytest.mark.slow
def test_tool_makes_the_page_of_a_run(run_tool, tiny_run, tmp_path):
    code, output, error = run_tool("report.py", tiny_run, "-o", tmp_path / "page.html", "--queries", 2)
    assert code == 0 and output.strip() == str(tmp_path / "page.html"), error
    text = check(tmp_path / "page.html")
    for shown in (
        "Best queries",
        "Worst queries",
        "Every anchor",
        "claimed by the anchors",
        "loss_cls: from",
        "the hair of a person",
        "A phrase is where an anchor started before training, not what it means",
    ):
        assert shown in text, shown
    code, _, error = run_tool("report.py", tmp_path)
    assert code == 1 and error.startswith("error: no run at") and error.count("\n") == 2
    assert run_tool("report.py", tiny_run, "--queries", 0)[0] == 1


def test_without_the_test_set_the_page_says_so(run_tool, tiny_run, tmp_path):
    code, *_ = run_tool("report.py", tiny_run, "-o", tmp_path / "page.html", "--dataset", "OccludedDuke")
    text = check(tmp_path / "page.html")
    assert code == 0 and "Left out: " in text and "Occluded_Duke" in text and "Best queries" not in text
    assert "loss_cls: from" in text


@pytest.mark.slow
def test_stages_of_a_run_of_fastreids_own_head(run_tool, train_net, tmp_path, repo):
    """Stages, one of them interrupted before its end, and a head without anchors."""
    run = ["--config-file", repo / "configs/SAGA/quickstart.yml", "OUTPUT_DIR", tmp_path, *TINY]
    head = """
        MODEL.HEADS.NAME EmbeddingHead  MODEL.BACKBONE.OUTPUT map  MODEL.LOSSES.NAME ('CrossEntropyLoss',)
        MODEL.HEADS.POOL_LAYER GlobalAvgPool
    """.split()
    assert train_net(*run, "STAGES", "[]", *head) == 0
    assert run_tool("report.py", tmp_path)[0] == 0
    text = check(tmp_path / "report.html")
    assert "No anchors and no patch weights, so no maps" in text and "EmbeddingHead" in text
    assert "Best queries" in text and "Every anchor" not in text
    (tmp_path / "result.json").unlink(), (tmp_path / "model_final.pth").rename(tmp_path / "last.pth")
    (tmp_path / "last_checkpoint").write_text("last.pth")
    assert run_tool("report.py", tmp_path)[0] == 0
    text = check(tmp_path / "report.html")
    assert "Its last checkpoint is last.pth" in text and "Best queries" in text


def test_curves_of_an_occlusion_study_are_shown_where_there_is_one(tmp_path):
    metric = {"mean": 50.0, "low": 40.0, "high": 60.0, "spread": None}
    results = [
        {
            "model": "A<",
            "condition": c,
            "level": v,
            "feature": "auto",
            "row": "cls",
            "Rank-1": metric,
            "mAP": metric,
            "mINP": metric,
        }
        for c, v in (("clean", 0.0), ("mask", 0.3))
    ]
    record = {"reference": "A<", "dataset": {"name": "Toy"}, "results": results}
    folder = folder_of(tmp_path / "run", study__json="")
    (folder / "study.json").write_text(json.dumps(record))
    assert "Occlusion, Toy" in check(run_page.report(folder))
    (folder / "study.json").rename(tmp_path / "study.json")
    assert "Occlusion, Toy" not in check(run_page.report(folder))
    text = check(run_page.report(folder, studies=[tmp_path]))
    assert "A&lt;: 50.0 at 0%, 50.0 at 30%" in text and "[40.0, 60.0]" in text
    with pytest.raises(FileNotFoundError, match="expected the output folder of an occlusion study"):
        run_page.report(folder, studies=[folder])


def browser() -> str | None:
    """A Chromium of this machine, on PATH or of Playwright."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next((path for name in names if (path := shutil.which(name))), None)
    folder = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache/ms-playwright")
    return found or next(
        (str(p) for p in sorted(folder.glob("chromium*/chrome-linux*/*")) if p.name in ("chrome", "headless_shell")),
        None,
    )


HEADLESS = ["--headless", "--no-sandbox", "--disable-gpu"]


def scrolled_width(text: str, folder: Path) -> tuple[int, int]:
    """Pixels that a page needs, and has, in a frame 400 pixels wide; skips where there is no Chromium."""
    chromium = browser()
    if not chromium:
        pytest.skip("no Chromium here")
    (folder / "frame.html").write_text(
        f'<iframe width=400 height=900 srcdoc="{escape(text)}"></iframe><script>onload = () => {{ const page = '
        "frames[0].document.documentElement; document.title = `${page.scrollWidth} ${page.clientWidth}` }</script>"
    )
    command = [chromium, *HEADLESS, f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [*command, (folder / "frame.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    needed, there = re.search(r"<title>(\d+) (\d+)</title>", done.stdout).groups()
    return int(needed), int(there)


@pytest.mark.slow
def test_the_page_of_a_run_fits_400_pixels(tiny_run, tmp_path, tiny_root, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    text = run_page.report(tiny_run, tmp_path / "page.html", queries=1).read_text().replace("<details", "<details open")
    needed, there = scrolled_width(text, tmp_path)
    assert needed <= there <= 400


@pytest.mark.slow
def test_a_browser_shows_the_page_in_light_and_dark(tiny_run, tmp_path, tiny_root, monkeypatch):
    chromium = browser()
    if not chromium:
        pytest.skip("no Chromium here")
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    page = run_page.report(tiny_run, tmp_path / "page.html", queries=1)
    brightness = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        shot = tmp_path / f"{scheme}.png"
        command = [
            chromium,
            *HEADLESS,
            "--hide-scrollbars",
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--window-size=1200,1600",
            f"--blink-settings=preferredColorScheme={number}",
            f"--screenshot={shot}",
            page.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert shot.is_file(), done.stderr[-2000:]
        assert "CONSOLE" not in done.stderr, done.stderr  # what the page's own policy or the parser objects to
        with Image.open(shot) as picture:
            grey = picture.convert("L")
            brightness[scheme] = grey.getpixel((3, 3))
            assert len(grey.getcolors()) > 100
    assert brightness["light"] > 240 and brightness["dark"] < 40
