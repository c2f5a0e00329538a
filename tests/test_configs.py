"""Every config that ships: it parses, its stages plan, its figures pass check_config, and small it runs."""

from __future__ import annotations

import json

import pytest

from sagareid.engine import stages
from sagareid.engine.trainer import StepTrainer

ABLATIONS = sorted((stages.Path(__file__).parents[1] / "configs/SAGA/ablations").glob("*.yml"))
DATASETS = [p for p in sorted(ABLATIONS[0].parents[1].glob("*.yml")) if p.name != "Base-SAGA.yml"]

# the embedded CLIP's architecture with random weights, one tiny epoch a stage
TINY = [
    "MODEL.DEVICE", "cpu", "MODEL.CLIP.NAME", "ViT-XS-8-pedestrians", "MODEL.BACKBONE.PRETRAIN", False,
    "MODEL.BACKBONE.FEAT_DIM", 128, "MODEL.BACKBONE.STRIDE_SIZE", "(8,8)", "INPUT.SIZE_TRAIN", "[48,24]",
    "INPUT.SIZE_TEST", "[48,24]", "DATALOADER.NUM_WORKERS", 0, "SOLVER.MAX_EPOCH", 1, "SOLVER.WARMUP_EPOCHS", 0,
    "SOLVER.IMS_PER_BATCH", 48, "CACHE.NUM_VIEWS", 1, "DATASETS.NAMES", "['SyntheticPedestrians']",
    "DATASETS.TESTS", "['SyntheticPedestrians']",
]  # fmt: skip


@pytest.mark.parametrize("path", [*DATASETS, *ABLATIONS], ids=lambda p: p.stem)
def test_plans(path):
    runs = stages.plan(path)
    assert [r.name for r in runs][:4] == ["prompts", "backbone", "anchors_warmup", "anchors"]
    assert len({r.cfg.OUTPUT_DIR for r in runs}) == len(runs)
    for before, run in zip(runs, runs[1:]):
        assert run.cfg.MODEL.WEIGHTS == str(before.final)


def test_every_output_folder_is_its_own():
    folders = [stages.plan(p)[0].folder.parent for p in [*DATASETS, *ABLATIONS]]
    assert len(set(folders)) == len(folders)


def test_an_ablation_differs_from_the_recipe_it_names():
    reference = {r.name: r.cfg for r in stages.plan(ABLATIONS[0].parents[1] / "occ_duke.yml")}
    for path in ABLATIONS:
        runs = stages.plan(path)
        changed = any(
            str(stages._get(r.cfg, key)) != str(stages._get(reference[r.name], key))
            for r in runs
            if r.name in reference
            for key in stages._keys(r.cfg)
            if key not in ("OUTPUT_DIR", "MODEL.WEIGHTS", "CACHE.DIR")
        )
        assert changed or len(runs) > len(reference), path.stem


@pytest.fixture
def every_parameter_learns(monkeypatch):
    """After each training step, every parameter that trains has a gradient: DistributedDataParallel waits for all of them."""
    step, stages_seen = StepTrainer.run_step, set()

    def checked(self):
        step(self)
        assert [n for n, p in self.model.named_parameters() if p.requires_grad and p.grad is None] == []
        stages_seen.add(id(self))

    monkeypatch.setattr(StepTrainer, "run_step", checked)
    return stages_seen


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_trains_resumes_and_evaluates(path, train_net, tmp_path, every_parameter_learns):
    """Every option in training (all its stages), resuming (a finished run is recognised), and evaluation alone."""
    size = ["MODEL.CLIP.TOKEN_LAYERS", "[2,4]" if path.stem == "two_path" else "[4]"]
    run = ["--config-file", path, *TINY, *size, "OUTPUT_DIR", tmp_path]
    assert train_net(*run) == 0
    results = json.loads((tmp_path / "results.json").read_text())
    assert every_parameter_learns
    assert train_net("--resume", *run) == 0
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert train_net("--eval-only", *run) == 0
    [evaluated] = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluated["metrics"] == pytest.approx(results[-1]["metrics"], abs=1e-3)
