"""Building and loading a model: a file is read once, no model touches another's, and nothing of training is needed."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from small_runs import QUICKSTART, SMALL, SMALL_IMAGES
from test_agreement import config, feature

from sagareid.deploy import export
from sagareid.deploy.load import load_model
from sagareid.engine.checkpoint import RunCheckpointer
from sagareid.engine.trainer import SAGATrainer
from sagareid.modeling.build import build_model
from sagareid.modeling.clip import towers

# What a run may train and keep in evaluation mode by patterns; an evaluated model has no text tower.
PATTERNS = [
    "MODEL.EVAL_MODE",
    ["heads.text_encoder*"],
    "MODEL.TRAINABLE",
    ["heads.text_anchors*", "heads.refine*", "heads.classifiers*"],
]


def test_a_model_reads_its_clip_file_once_and_leaves_anothers_alone(monkeypatch):
    reads, read = [], towers._read_clip_weights
    monkeypatch.setattr(towers, "_read_clip_weights", lambda *file: reads.append(file) or read(*file))
    cfg = config("MODEL.BACKBONE.PRETRAIN", True)
    with towers.weights_read_once():
        outer = towers.read_clip_weights(cfg.MODEL.CLIP.NAME, "")
        build_model(cfg)
        assert len(reads) == 2, "the towers of the model share one reading"
        assert towers.read_clip_weights(cfg.MODEL.CLIP.NAME, "") is outer, "which is none of this scope's business"
    assert towers.read_clip_weights(cfg.MODEL.CLIP.NAME, "") is not outer and len(reads) == 3


@pytest.mark.parametrize("meta_arch", ["SAGABaseline", "Baseline"])
def test_the_text_tower_is_built_where_it_is_asked_for(meta_arch):
    cfg = config("MODEL.META_ARCHITECTURE", meta_arch, "MODEL.SAGA.DOMAIN_ANCHORS", "content")
    whole, slim = build_model(cfg), build_model(cfg, text_tower=False)
    names = {name for name in whole.state_dict() if not name.startswith("heads.text_encoder.")}
    assert whole.heads.text_encoder is not None and slim.heads.text_encoder is None
    assert set(slim.state_dict()) == names < set(whole.state_dict())
    assert build_model(cfg).heads.text_encoder is not None, "as before"


def test_a_state_is_complete_whoever_reads_it():
    model = build_model(config())
    with torch.no_grad():
        model.heads.text_anchors.context_learned.mul_(3)
    state = model.state_dict()
    expected = model.heads.text_anchors.compute(model.heads.text_encoder)
    torch.testing.assert_close(state["heads.text_anchors.anchors"], expected)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.heads.text_anchors.context_learned.mul_(3)
    changed = other.state_dict()["heads.text_anchors.anchors"]
    assert not torch.allclose(changed, expected), "a copy refreshes itself"


def test_a_model_that_was_trained_by_patterns_is_loaded_evaluated_and_exported(tmp_path):
    cfg = config(*PATTERNS)
    torch.manual_seed(0)
    model = SAGATrainer.build_model(cfg).train()
    assert model.heads.training and not model.heads.text_encoder.training
    assert {n.split(".")[1] for n, p in model.named_parameters() if p.requires_grad} == {
        "text_anchors",
        "refine",
        "classifiers",
    }
    RunCheckpointer(model, str(tmp_path), cfg=cfg).save("model_final")
    own, loaded = load_model(tmp_path)
    assert loaded.heads.text_encoder is None and list(own.MODEL.EVAL_MODE) == ["heads.text_encoder*"]
    torch.testing.assert_close(feature(loaded), feature(model))
    done = export.export(own, loaded, tmp_path / "model.pt", format="torchscript")
    assert max(done.difference.values()) < 1e-5


@pytest.mark.slow
def test_such_a_run_is_trained_evaluated_and_exported_by_its_commands(train_net, call_tool, tmp_path):
    keys = ["STAGES", "[]", *PATTERNS, *SMALL, *SMALL_IMAGES, "OUTPUT_DIR", tmp_path / "run"]
    assert train_net(*QUICKSTART, *keys) == 0
    [trained] = json.loads((tmp_path / "run" / "results.json").read_text())
    assert train_net(*QUICKSTART, "--eval-only", *keys) == 0
    [evaluated] = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluated["metrics"] == pytest.approx(trained["metrics"], abs=1e-3)
    assert call_tool("export.py", tmp_path / "run", "--output", tmp_path / "model.pt") == 0
    assert (tmp_path / "model.pt").is_file()
