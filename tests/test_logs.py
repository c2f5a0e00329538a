"""The log of a command: what stands in it once, a heading and progress for each stage, and nothing of 300 lines."""

from __future__ import annotations

import logging
import re

import pytest
import yaml

from sagareid.config import flatten, get_cfg
from sagareid.engine import logs
from sagareid.engine.logs import ProgressLines, few_steps

from fastreid.utils.events import EventStorage

STAGES = ("prompts", "backbone", "anchors_warmup", "anchors")


@pytest.mark.slow
def test_a_run_says_once_where_it_runs_and_each_stage_what_it_does(tiny_quickstart):
    of_stage = {name: (tiny_quickstart / name / "log.txt").read_text() for name in STAGES}
    whole = "\n".join(of_stage.values())
    assert len(whole.splitlines()) < 130  # 1,400 when FastReID's set-up wrote them
    assert whole.count("FastReID 1.4.0, PyTorch") == 1 and "FastReID 1.4.0" in of_stage["prompts"]
    for number, (name, text) in enumerate(of_stage.items(), 1):
        assert len(re.findall(r"==== ", text)) == 1
        assert re.search(rf"==== stage {name} \({number} of 4\): \w+ on SyntheticPedestrians, 2 epochs", text)
        last = re.findall(
            r"epoch 2 of 2, step (\d+) of (\d+): loss \S+ \(.*\), learning rate \S+; \S+ steps a sec", text
        )
        assert len(last) == 1 and last[0][0] == last[0][1] and "0:00:00 left" in text
        assert text.count("SyntheticPedestrians: train ") == 1 and text.count("evaluating on SyntheticPedestrians") == 1
        assert text.count("the result is ") == 1 and f"{name}/model_final.pth" in text
        config = flatten(yaml.safe_load((tiny_quickstart / name / "config.yaml").read_text()))
        assert set(config) == set(flatten(get_cfg())), "the whole configuration is in its file"
    for said in (
        "aved checkpoint",
        "last.pth",
        "SOLVER:",
        "Environment info",
        "csv format",
        "Namespace(",
        "Start inference",
    ):
        assert said not in whole, said


def test_lines_of_progress_are_as_many_as_one_reads(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = [0.0]
    monkeypatch.setattr(logs.time, "monotonic", lambda: clock[0])
    writer = ProgressLines(max_iter=30, max_epoch=3)
    with EventStorage(0) as storage:
        for i in range(30):
            clock[0] += 1
            storage.iter, storage.epoch = i, i // 10
            storage.put_scalars(total_loss=3.0, loss_cls=2.0, time=0.5, lr=1e-3)
            for _ in range(2 if i % 10 == 9 else 1):  # after a step, and after an epoch
                writer.write()
        assert storage.latest()["eta_seconds"][0] == 0
    lines = [r.getMessage() for r in caplog.records]
    assert [re.search(r"step (\d+)", line)[1] for line in lines] == ["1", "11", "21", "30"]
    assert lines[1] == (
        "epoch 2 of 3, step 11 of 30: loss 3 (cls 2), learning rate 1.00e-03; 2 steps a second, 0:00:09 left"
    )


def test_a_stage_of_few_steps_says_what_to_set():
    cfg = get_cfg()
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_EPOCH, cfg.DATALOADER.NUM_INSTANCE = 64, 11, 4
    text = few_steps(cfg, 72, 1)
    assert text.startswith("72 images are 1 step(s) of 64 an epoch, so 11 epochs are 11 steps, too few")
    assert "set SOLVER.MAX_EPOCH 300, or SOLVER.IMS_PER_BATCH 16 and SOLVER.MAX_EPOCH 75, for about 300 steps" in text
    assert "IMS_PER_BATCH" not in few_steps(cfg, 300, 4) and "MAX_EPOCH 75" in few_steps(cfg, 300, 4)
    assert few_steps(cfg, 4800, 75) == ""


@pytest.mark.slow
def test_the_warning_reaches_the_log(tiny_run):
    text = (tiny_run / "log.txt").read_text()
    assert re.search(r"WARNING: 144 images are 3 step\(s\) of 48 an epoch, so 1 epochs are 3 steps", text)
