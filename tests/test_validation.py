"""Validation sets choose the state of a run, stop it, and survive interruption; the tests are evaluated once, at the
end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_runs import ONE_STAGE, SMALL

from sagareid import compat, get_cfg
from sagareid.config_checks import check_config
from sagareid.engine import plans, stages
from sagareid.engine.hooks import Selection
from sagareid.engine.options import training_parser
from sagareid.engine.trainer import SAGATrainer, StepTrainer
from sagareid.weights import load_state

# a small run: a linear layer on the mean patch of an untrained tower, from cached features; 9 steps an epoch
RUN = [
    *ONE_STAGE,
    *SMALL,
    *"""
    MODEL.BACKBONE.PRETRAIN False  MODEL.HEADS.NAME PatchPoolHead  MODEL.HEADS.EMBEDDING_DIM 32
    MODEL.TRAINABLE ['heads.*']  MODEL.LOSSES.NAME ('CrossEntropyLoss',)  CACHE.ENABLED True  CACHE.DTYPE float32
    SOLVER.MAX_EPOCH 6  SOLVER.CHECKPOINT_PERIOD 1  SOLVER.OPT Adam  SOLVER.AMP.ENABLED False  TEST.EVAL_PERIOD 1
    DATASETS.VALIDATION ['SyntheticPedestriansVal']  SOLVER.PATIENCE 2
    """.split(),
]
STEPS = 9


@pytest.fixture(autouse=True)
def in_repo(monkeypatch, repo):
    monkeypatch.chdir(repo)


@pytest.fixture
def scripted(monkeypatch):
    """Validation says that the state after the second epoch is the best. Returns how often the tests were evaluated."""
    metrics = {0: 10.0, 1: 30.0, 2: 20.0, 3: 30.0}  # as good is not better
    tests = []
    original = SAGATrainer.evaluate
    monkeypatch.setattr(SAGATrainer, "validate", lambda self: {"metric": metrics[self.epoch]})
    monkeypatch.setattr(SAGATrainer, "evaluate", lambda self: tests.append(1) or original(self))
    return tests


def result(folder) -> dict:
    return json.loads((folder / "result.json").read_text())


def weights(folder, name: str) -> dict[str, torch.Tensor]:
    return load_state(folder / f"{name}.pth")["model"]


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow
def test_the_best_state_is_the_result_and_patience_ends_the_run(scripted, train_net, tmp_path):
    assert train_net(*RUN, "OUTPUT_DIR", tmp_path) == 0
    found = result(tmp_path)
    assert found["steps"] == 4 * STEPS
    assert found["validation"] == {"metric": 30.0, "epoch": 2, "steps": 2 * STEPS, "metrics": {"metric": 30.0}}
    assert same(weights(tmp_path, "model_final"), weights(tmp_path, "model_0001"))
    assert not same(weights(tmp_path, "model_final"), weights(tmp_path, "model_0002"))
    assert len(scripted) == 1
    assert sorted(p.name for p in tmp_path.glob("*.pth") if not p.stem[-4:].isdigit()) == ["model_final.pth"]
    assert train_net(RUN[0], RUN[1], "--eval-only", *RUN[2:], "OUTPUT_DIR", tmp_path) == 0
    [evaluated] = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluated["metrics"] == pytest.approx(found["metrics"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [line["validation/metric"] for line in lines if "validation/metric" in line][:3] == [10.0, 30.0, 20.0]
    assert any("Rank-1" in line for line in lines), "the test of the chosen state is logged"


@pytest.mark.slow
def test_without_patience_every_epoch_is_trained(train_net, scripted, tmp_path):
    assert train_net(*RUN, "OUTPUT_DIR", tmp_path, "SOLVER.PATIENCE", 0, "SOLVER.MAX_EPOCH", 4) == 0
    assert result(tmp_path)["steps"] == 4 * STEPS and result(tmp_path)["validation"]["epoch"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("where", ["a step", "the test", "the result"])
def test_interrupted_and_resumed_is_the_same_run(where, scripted, shared, train_net, tmp_path):
    """In the middle of an epoch after the best state; while the chosen state is tested; before the result is
    written."""

    def make(folder: Path) -> None:  # once for all three
        assert train_net(*RUN, "OUTPUT_DIR", folder) == 0

    uninterrupted = shared("whole_by_best", make)
    calls = {"n": 0}
    owner, name, at = {
        "a step": (StepTrainer, "run_step", 3 * STEPS + 4),
        "the test": (SAGATrainer, "evaluate", 0),
        "the result": (SAGATrainer, "record", 0),
    }[where]
    original = getattr(owner, name)

    def interrupted(*args):
        if calls["n"] == at:
            raise KeyboardInterrupt
        calls["n"] += 1
        return original(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        assert train_net(*RUN, "OUTPUT_DIR", tmp_path / "part") == 130
    assert train_net(RUN[0], RUN[1], "--resume", *RUN[2:], "OUTPUT_DIR", tmp_path / "part") == 0
    whole, part = (result(folder) for folder in (uninterrupted, tmp_path / "part"))
    assert {k: whole[k] for k in ("metrics", "steps", "validation")} == {
        k: part[k] for k in ("metrics", "steps", "validation")
    }
    assert same(weights(uninterrupted, "model_final"), weights(tmp_path / "part", "model_final"))


@pytest.mark.parametrize("which", ["VALIDATION", "TESTS"])
def test_cached_evaluation_gives_the_metrics_of_images(which, tiny_root, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    [run] = plans.plan(RUN[1], [*map(str, RUN[2:]), "OUTPUT_DIR", str(tmp_path), "CACHE.TESTS", "True"])
    stages._setup(run, training_parser().parse_args([]))
    trainer = SAGATrainer(run.cfg)
    evaluate = {"VALIDATION": trainer.validate, "TESTS": trainer.evaluate}[which]
    cached = evaluate()
    monkeypatch.setattr(type(trainer.model), "preprocess_image", None)  # a second look reads the cache alone
    assert evaluate() == cached
    monkeypatch.undo()
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    cfg = run.cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TESTS = cfg.DATASETS[which]
    assert SAGATrainer.test(cfg, trainer.model) == pytest.approx(cached, abs=0.2)
    assert (tmp_path / "feature_cache").is_dir()
    compat.close_logs()


def test_several_sets_count_alike():
    selection = Selection(patience=1)
    assert selection.update(0, {"A": {"metric": 10.0}, "B": {"metric": 20.0}}) and selection.metric == 15.0
    assert not selection.update(1, {"A": {"metric": 29.0}, "B": {"metric": 1.0}}) and selection.exhausted


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["DATASETS.VALIDATION", ["SyntheticPedestrians"], "DATASETS.TESTS", ("SyntheticPedestrians",)],
            "as DATASETS.TESTS does",
        ),
        (["DATASETS.VALIDATION", ["Market1501"], "DATASETS.NAMES", ("Market1501",)], "as DATASETS.NAMES does"),
        (["DATASETS.VALIDATION", ["Nowhere"]], "DATASETS.VALIDATION is 'Nowhere'"),
        (["SOLVER.PATIENCE", 3], "SOLVER.PATIENCE 3"),
        (["DATASETS.VALIDATION", ["SyntheticPedestriansVal"], "TEST.SELECT_BEST", True], "one of the two"),
        (
            [
                *("DATASETS.VALIDATION", ["SyntheticPedestriansVal"], "CACHE.ENABLED", True),
                *("CACHE.FIELDS", ["patches"]),
                *("MODEL.META_ARCHITECTURE", "SAGABaseline", "MODEL.BACKBONE.NAME", "build_clip_vit_backbone"),
            ],
            "CACHE.FIELDS with cls and proj",
        ),
        (["CACHE.TESTS", True], "set CACHE.ENABLED True, too"),
        (["CACHE.ENABLED", True], "META_ARCHITECTURE Baseline does not read: set SAGABaseline"),
        (
            ["CACHE.ENABLED", True, "MODEL.FREEZE_LAYERS", ["backbone"], "SOLVER.FREEZE_ITERS", 10],
            "FREEZE_LAYERS opens it after SOLVER.FREEZE_ITERS 10",
        ),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", *options])
    with pytest.raises(ValueError, match=message):
        check_config(cfg)


# ---- the state is kept before it is evaluated
# -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("validation", ["[]", "['SyntheticPedestriansVal']"], ids=["test", "validation"])
@pytest.mark.parametrize("epoch", [1, 3], ids=["on the way", "at the end"])
def test_an_evaluation_that_fails_loses_nothing(validation, epoch, shared, train_net, tmp_path, monkeypatch, capfd):
    """The trained epoch is not trained again: resuming begins with its evaluation, and the run is the same to the
    bit."""
    run = [*RUN, "DATASETS.VALIDATION", validation, "SOLVER.PATIENCE", 0, "SOLVER.MAX_EPOCH", 3]

    def make(folder: Path) -> None:  # once for both epochs
        assert train_net(*run, "OUTPUT_DIR", folder) == 0

    uninterrupted = shared("whole_by_test" if validation == "[]" else "whole_by_validation", make)
    part = [*run, "OUTPUT_DIR", tmp_path / "part"]
    steps: list[int] = []
    step, evaluate = StepTrainer.run_step, SAGATrainer._evaluate_on

    def fails(self, *args, **kwargs):
        if self.epoch + 1 == epoch and len(steps) == epoch * STEPS:
            raise RuntimeError("no evaluation today")
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(StepTrainer, "run_step", lambda self: steps.append(1) or step(self))
    monkeypatch.setattr(SAGATrainer, "_evaluate_on", fails)
    assert train_net(*part) == 1 and "no evaluation today" in capfd.readouterr().err
    assert load_state(tmp_path / "part" / "last.pth")["epoch"] == epoch - 1
    monkeypatch.setattr(SAGATrainer, "_evaluate_on", evaluate)
    if (validation, epoch) == ("[]", 3):  # evaluated alone, it is what the whole run gives
        assert train_net(part[0], part[1], "--eval-only", *part[2:]) == 0
        [alone] = json.loads((tmp_path / "part" / "evaluation.json").read_text())
        assert alone["checkpoint"] == str(tmp_path / "part" / "last.pth")
        assert alone["metrics"] == pytest.approx(result(uninterrupted)["metrics"], abs=1e-3)
    assert train_net(part[0], part[1], "--resume", *part[2:]) == 0
    assert len(steps) == 3 * STEPS
    folders = (uninterrupted, tmp_path / "part")
    whole, found = map(result, folders)
    assert {k: v for k, v in whole.items() if k not in ("seconds", "checkpoint")} == {
        k: v for k, v in found.items() if k not in ("seconds", "checkpoint")
    }
    assert same(weights(uninterrupted, "model_final"), weights(tmp_path / "part", "model_final"))
    evaluated = [
        [
            line["iteration"]
            for line in map(json.loads, (folder / "metrics.json").read_text().splitlines())
            if any("mAP" in key for key in line)
        ]
        for folder in folders
    ]
    assert evaluated[0] == evaluated[1], "every evaluation is in metrics.json"
