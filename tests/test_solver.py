"""Schedules against the published ones step by step, through FastReID's own hook; groups, patterns, trainable sets."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from sagareid import get_cfg, hardware
from sagareid.engine import plans, precision, solver
from sagareid.engine.trainer import SAGATrainer

from fastreid.engine import hooks

CONFIGS = "configs/SAGA"


def stage_config(repo, leaf: str, *opts):
    cfg = get_cfg()
    cfg.merge_from_file(str(repo / CONFIGS / "occ_duke.yml"))
    cfg.merge_from_file(str(repo / CONFIGS / "stages" / f"{leaf}.yml"))
    cfg.merge_from_list(list(opts))
    return cfg


def rates(cfg, iters_per_epoch: int = 20) -> np.ndarray:
    """Learning rate of each optimizer step of a whole run, driven by FastReID's hook."""
    model = nn.Linear(2, 2)
    optimizer, _ = solver.build_optimizer(cfg, model)
    schedule = solver.build_lr_scheduler(cfg, optimizer, iters_per_epoch)
    hook = hooks.LRScheduler(optimizer, schedule)
    hook.trainer = SimpleNamespace(
        warmup_iters=cfg.SOLVER.WARMUP_ITERS,
        delay_epochs=cfg.SOLVER.DELAY_EPOCHS,
        grad_scaler=None,
        storage=SimpleNamespace(put_scalar=lambda *args, **kwargs: None),
        iter=0,
        epoch=0,
    )
    seen = []
    for hook.trainer.epoch in range(cfg.SOLVER.MAX_EPOCH):
        for _ in range(iters_per_epoch):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            hook.after_step()
            hook.trainer.iter += 1
        hook.after_epoch()
    return np.array(seen)


@pytest.mark.parametrize(
    "leaf, name, opts",
    [
        ("prompts", "lr.s1_per_epoch", ()),
        ("anchors_warmup", "lr.s3a_per_epoch", ()),
        ("anchors", "lr.s3b_per_epoch", ()),
        ("anchors", "lr.s3b_per_epoch_no_min_ratio_key", ("SOLVER.MIN_LR_RATIO", 0.01)),
        ("end_to_end", "lr.s4_per_epoch", ()),
    ],
)
def test_epoch_schedules(leaf, name, opts, repo, data_dir):
    expected = np.load(data_dir / "expected.npz")[f"{name}|slice"]
    found = rates(stage_config(repo, leaf, *opts)).reshape(-1, 20)
    assert (found == found[:, :1]).all(), "constant within an epoch"
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-9)


def test_iteration_schedule_of_the_backbone_stage(repo, data_dir):
    expected = np.load(data_dir / "expected.npz")["lr.s2_per_iter_20it_per_epoch|slice"]
    np.testing.assert_allclose(rates(stage_config(repo, "backbone")), expected, rtol=1e-9)


def test_every_stage_has_the_published_solver(repo):
    """The published table: epochs, optimizer, rate, decay."""
    table = {
        "prompts": (100, "Adam", 3.5e-4, 0.0),  # decay 1e-4 in the published code moves prompts of absent identities
        "backbone": (80, "Adam", 5e-6, 1e-4),
        "anchors_warmup": (20, "AdamW", 3.5e-4, 1e-4),
        "anchors": (80, "AdamW", 2e-4, 1e-4),
        "end_to_end": (100, "AdamW", 5e-6, 1e-4),
    }
    for leaf, recipe in table.items():
        s = stage_config(repo, leaf).SOLVER
        assert recipe == (s.MAX_EPOCH, s.OPT, s.BASE_LR, s.WEIGHT_DECAY), leaf
        optimizer, _ = solver.build_optimizer(stage_config(repo, leaf), nn.Linear(2, 2))
        assert optimizer.defaults["betas"] == (0.9, 0.999) and optimizer.defaults["eps"] == 1e-8


def test_groups_of_equal_settings_are_one(repo):
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    cfg = stage_config(repo, "anchors")
    optimizer, _ = solver.build_optimizer(cfg, model)
    assert len(optimizer.param_groups) == 1 and len(optimizer.param_groups[0]["params"]) == 6
    cfg.SOLVER.LR_FACTORS = [["2.*", 0.1], ["*.weight", 2.0]]
    optimizer, _ = solver.build_optimizer(cfg, model)
    rate = {p: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    base = cfg.SOLVER.BASE_LR
    assert rate[model[2].weight] == pytest.approx(0.1 * base), "the first match counts"
    assert rate[model[0].weight] == pytest.approx(2 * base) and rate[model[0].bias] == base


def test_freeze_except_never_thaws_what_was_built_frozen():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].bias.requires_grad_(False)
    solver.freeze_except(model, ["1.*"])
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, False]
    with pytest.raises(ValueError, match="'2.*' matches none"):
        solver.freeze_except(model, ["2.*"])


SMALL = """
    MODEL.DEVICE cpu  MODEL.CLIP.NAME ViT-XS-8-pedestrians  MODEL.BACKBONE.PRETRAIN False  MODEL.BACKBONE.FEAT_DIM 128
    MODEL.BACKBONE.STRIDE_SIZE (8,8)  MODEL.CLIP.TOKEN_LAYERS [4]  INPUT.SIZE_TRAIN [48,24]  INPUT.SIZE_TEST [48,24]
    MODEL.HEADS.NUM_CLASSES 4
""".split()


def test_the_bias_of_the_neck_trains_where_it_is_asked_for(repo):
    def trained(config):
        runs = {r.name: r.cfg for r in plans.plan(repo / CONFIGS / config, SMALL)}
        models = {name: SAGATrainer.build_model(runs[name]) for name in ("backbone", "anchors")}
        return {name: {n for n, p in m.named_parameters() if p.requires_grad} for name, m in models.items()}

    asked, not_asked = trained("ablations/neck_bias.yml"), trained("occ_duke.yml")
    # the neck of the projection, which no loss of this stage reaches, stays frozen
    assert asked["backbone"] - not_asked["backbone"] == {"heads.bottleneck.bias"}
    assert not_asked["backbone"] < asked["backbone"] and asked["anchors"] == not_asked["anchors"]


def test_a_head_without_a_neck_refuses_the_bias_of_one(repo):
    with pytest.raises(ValueError, match=r"PromptHead has no neck: set it in the OPTS .*ablations/neck_bias\.yml"):
        plans.plan(repo / CONFIGS / "occ_duke.yml", [*SMALL, "MODEL.HEADS.NECK_BIAS", "True"])
    with pytest.raises(ValueError, match="Linear has no batch norm with a frozen bias"):
        solver.train_neck_bias(nn.Linear(2, 2))


def test_nothing_to_train_is_an_error(repo):
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter trains"):
        solver.build_optimizer(stage_config(repo, "anchors"), model)


def test_recipe_of_occluded_duke(repo):
    """The published configuration, read from the planned runs."""
    runs = {r.name: r.cfg for r in plans.plan(repo / CONFIGS / "occ_duke.yml")}
    assert list(runs) == ["prompts", "backbone", "anchors_warmup", "anchors"]
    for cfg in runs.values():
        assert tuple(cfg.INPUT.SIZE_TRAIN) == tuple(cfg.INPUT.SIZE_TEST) == (256, 128)
        assert tuple(cfg.MODEL.BACKBONE.STRIDE_SIZE) == (12, 12)
        assert cfg.MODEL.PIXEL_MEAN == cfg.MODEL.PIXEL_STD == [127.5] * 3
        assert (cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_INSTANCE, cfg.DATALOADER.NUM_WORKERS) == (64, 4, 8)
        assert (cfg.TEST.FUSION.REFINED, cfg.TEST.FUSION.CLS, cfg.TEST.FUSION.PROJ, cfg.TEST.FUSION.BETA) == (
            2.0,
            0.2,
            0.05,
            0.3,
        )
        assert cfg.INPUT.REA.ENABLED and cfg.INPUT.REA.PROB == 0.5 and cfg.INPUT.PADDING.SIZE == 10
        assert cfg.TEST.EVAL_PERIOD in (10, 100) and not cfg.TEST.SELECT_BEST
    loss = runs["backbone"].MODEL.LOSSES
    assert (loss.CE.SCALE, loss.TRI.SCALE, loss.I2T.SCALE, loss.CE.EPSILON, loss.TRI.MARGIN) == (0.25, 1, 1, 0.1, 0.3)
    saga, loss = runs["anchors"].MODEL.SAGA, runs["anchors"].MODEL.LOSSES
    assert (saga.NUM_ANCHORS, saga.NUM_DOMAIN_ANCHORS, saga.REFINE_LAYERS, saga.NUM_HEADS) == (24, 3, 2, 8)
    assert (saga.PHRASE_CONTEXT, saga.DROPOUT, saga.NUM_CLASSIFIERS, saga.CLASSIFIER_DROPOUT) == (12, 0.1, 1, 0.0)
    assert runs["anchors"].MODEL.CLIP.TOKEN_LAYERS == [9] and runs["anchors"].CACHE.NUM_VIEWS == 4
    assert (loss.CE.SCALE, loss.TRI.SCALE, loss.ANCHOR_DIVERSITY.SCALE, loss.CLASSIFIER_DIVERSITY.SCALE) == (
        1,
        1,
        0.05,
        0.5,
    )


# ---- what a step computes in ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype, instructions, expected",
    [
        ("auto", ["avx512_bf16"], torch.bfloat16),
        ("auto", [], None),  # emulated products took a quick start from minutes to an hour
        ("bfloat16", [], torch.bfloat16),
    ],
)
def test_autocast_on_a_cpu_by_its_instructions(dtype, instructions, expected, monkeypatch, caplog):
    monkeypatch.setattr(precision, "bfloat16_instructions", lambda: instructions)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.SOLVER.AMP.DTYPE = dtype
    cfg.SOLVER.AMP.ENABLED = False
    assert precision.autocast_dtype(cfg) is None
    cfg.SOLVER.AMP.ENABLED = True
    assert precision.autocast_dtype(cfg) is expected
    assert ("no instructions for it" in caplog.text) == (dtype == "bfloat16")


@pytest.mark.parametrize("supported, expected", [(True, torch.bfloat16), (False, torch.float16)])
def test_autocast_on_a_gpu(supported, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: supported)
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cuda:1"
    cfg.SOLVER.AMP.ENABLED = True
    assert cfg.SOLVER.AMP.DTYPE == "auto" and precision.autocast_dtype(cfg) is expected


@pytest.mark.parametrize(
    "text, found",
    [
        ("flags\t: fpu avx512_bf16 sse\n\nflags : amx_bf16\n", ["avx512_bf16"]),
        ("Features\t: fp asimd bf16\n", ["bf16"]),
        ("flags : avx2 avx512f\n", []),
    ],
)
def test_instructions_of_a_cpu(text, found, monkeypatch):
    monkeypatch.setattr(hardware.Path, "is_file", lambda self: True)
    monkeypatch.setattr(hardware.Path, "read_text", lambda self: text)
    assert hardware.bfloat16_instructions() == found
