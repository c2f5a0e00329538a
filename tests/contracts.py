"""What every part must keep to, as functions of its name: for the registered ones, and for those of the pages."""

from __future__ import annotations

import numpy as np
import torch
from test_interchange import TARGETS, B, batch, config, loss_of
from torch import nn

from sagareid import get_cfg
from sagareid.evaluation.evaluator import SAGAEvaluator
from sagareid.evaluation.features import Parts, available_features, build_feature
from sagareid.registry import DOMAIN_ANCHOR_REGISTRY, EVALUATION_FEATURE_REGISTRY, LOSS_REGISTRY, POOL_REGISTRY, parts

from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import build_model

# Layouts of heads: SAGAHead with per-anchor features, SAGAHead, CLSHead, a head of two parts of its own, FastReID's.
LAYOUTS = (
    {"refined": 12, "cls": 12, "proj": 8, "parts": 24},
    {"refined": 12, "cls": 12, "proj": 8},
    {"cls": 12, "proj": 8},
    {"upper": 6, "lower": 6},
    {"feature": 16},
)


def features(seed: int = 0):
    """What the embedded CLIP gives of the batch, with random weights."""
    torch.manual_seed(seed)
    model = build_model(config("MODEL.BACKBONE.PRETRAIN", False)).eval()
    with torch.no_grad():
        return model.extract(batch() | {"cameras": torch.arange(B) % 3 - 1})


# ---- losses ----------------------------------------------------------------------------------------------------------


def loss_options(head: str, losses: list[str], meta_arch: str = "SAGABaseline") -> list:
    """Keys of a small model of a head, ours or FastReID's, with these losses."""
    out = ["MODEL.HEADS.NAME", head, "MODEL.LOSSES.NAME", losses, "MODEL.META_ARCHITECTURE", meta_arch]
    out += ["MODEL.BACKBONE.PRETRAIN", False, "MODEL.SAGA.NUM_CLASSIFIERS", 2]
    out += ["INPUT.OCCLUDE.ENABLED", True, "INPUT.OCCLUDE.KEEP_WHOLE", True]
    fastreids = REID_HEADS_REGISTRY.get(head).__module__.startswith("fastreid")
    return out + (["MODEL.BACKBONE.OUTPUT", "map", "MODEL.HEADS.POOL_LAYER", "GlobalAvgPool"] if fastreids else [])


def check_loss(head: str, loss: str, meta_arch: str = "SAGABaseline") -> None:
    """The term of a model is in its loss dictionary, a finite scalar that something learns from."""
    model = build_model(config(*loss_options(head, [loss], meta_arch)))
    if hasattr(model.heads, "text_features"):
        model.heads.text_features.normal_()
    images = batch()
    hidden = torch.zeros(images["images"].shape[:1] + images["images"].shape[2:])
    hidden[:, : hidden.shape[1] // 2] = 1
    losses = loss_of(model, images | {"hidden": hidden, "whole_images": images["images"].flip(2)})
    fastreids = {"CircleLoss": "loss_circle", "Cosface": "loss_cosface"}
    name = fastreids[loss] if loss in fastreids else parts(LOSS_REGISTRY)[loss].log_name
    assert list(losses) == [name] and losses[name].dim() == 0 and bool(losses[name].isfinite())
    assert losses[name] > 0 or loss == "AnchorConsistencyLoss"
    losses[name].backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()) or not losses[name]


# ---- pools -----------------------------------------------------------------------------------------------------------


def trained_and_evaluated(opts: list) -> tuple[torch.Tensor, torch.Tensor]:
    """The pooled feature of the batch by a head in training mode, without dropout, and in evaluation mode."""
    cfg = config("MODEL.BACKBONE.PRETRAIN", False, "MODEL.SAGA.DROPOUT", 0.0, *opts)
    torch.manual_seed(1)
    model, tokens = build_model(cfg), features()
    for layer in model.heads.refine[0].layers:  # what pooling before the last matrix could get wrong
        nn.init.normal_(layer.ff[3].bias)
    with torch.no_grad():
        trained = model.heads.train()(tokens, TARGETS)["features"]
        evaluated = model.heads.eval()(tokens)[:, : trained.shape[1]]
    return trained, evaluated


def check_pool_is_one_equation(name: str) -> None:
    """Training and evaluation compute the same feature."""
    trained, evaluated = trained_and_evaluated(["MODEL.SAGA.POOL", name])
    torch.testing.assert_close(trained, evaluated, rtol=1e-4, atol=1e-4)


def check_pool_treats_an_image_alone(name: str) -> None:
    pool = parts(POOL_REGISTRY)[name].from_config(config("MODEL.SAGA.POOL", name)).eval()
    tokens, scores = torch.randn(3, 10, 8), torch.rand(3, 10, 5).softmax(2)
    with torch.no_grad():
        feature, weights = pool(tokens, scores)
        alone = [pool(tokens[i : i + 1], scores[i : i + 1]) for i in range(3)]
    assert feature.shape == (3, 8) and weights.shape == (3, 10) and bool((weights >= 0).all())
    torch.testing.assert_close(feature, torch.cat([f for f, _ in alone]))
    torch.testing.assert_close(weights.sum(1), torch.ones(3))


# ---- domain anchors --------------------------------------------------------------------------------------------------

CAMERAS = ["MODEL.CLIP.CAMERAS", ["a", "b"]]


def domain_anchors(name: str) -> nn.Module:
    torch.manual_seed(0)
    return parts(DOMAIN_ANCHOR_REGISTRY)[name].from_config(config("MODEL.SAGA.DOMAIN_ANCHORS", name, *CAMERAS))


def _call(module: nn.Module, f, some=slice(None)) -> torch.Tensor:
    inputs = {"camids": f.camids[some], "proj": f.proj[some], "text_anchors": torch.ones(4, f.patches.shape[2])}
    return module(f.patches[some], **inputs)


def check_domain_anchors_of_an_image_alone(name: str) -> None:
    """Some for each image, which counts alone; without cameras, too."""
    module, f = domain_anchors(name).eval(), features()
    with torch.no_grad():
        together = _call(module, f)
        alone = torch.cat([_call(module, f, slice(i, i + 1)) for i in range(B)])
        unknown = module(f.patches, camids=None, proj=f.proj, text_anchors=torch.ones(4, f.patches.shape[2]))
    assert together.shape == unknown.shape == (B, get_cfg().MODEL.SAGA.NUM_DOMAIN_ANCHORS, f.patches.shape[2])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def check_domain_anchors_learn(name: str) -> None:
    """Every parameter gets a gradient."""
    module = domain_anchors(name).train()
    _call(module, features()).pow(2).sum().backward()
    assert not [n for n, p in module.named_parameters() if p.grad is None]


def check_domain_anchors_are_one_equation(name: str) -> None:
    """Training and evaluation compute the same feature."""
    opts = ["MODEL.SAGA.DOMAIN_ANCHORS", name, *CAMERAS]
    torch.testing.assert_close(*trained_and_evaluated(opts), rtol=1e-4, atol=1e-4)


# ---- evaluation features ---------------------------------------------------------------------------------------------


def check_evaluation_feature(name: str) -> None:
    """Some model gives it; it is finite, of an image alone, nearest to itself, reported, and no model's raw output
    changes by it."""
    giving = [layout for layout in LAYOUTS if name in available_features(layout)]
    assert giving, f"no layout of {LAYOUTS} gives {name}"
    cfg = get_cfg()
    cfg.TEST.FEATURE, cfg.TEST.REPORT = name, []
    check = getattr(parts(EVALUATION_FEATURE_REGISTRY)[name], "check", None)
    assert check is None or not list(check(cfg)), "its own defaults are refused"
    for layout in giving:
        raw = torch.randn(12, sum(layout.values()), generator=torch.Generator().manual_seed(0))
        before, feature = raw.clone(), build_feature(cfg, name)
        made = feature.make(Parts(raw, layout))
        alone = torch.cat([feature.make(Parts(raw[i : i + 1], layout)) for i in range(12)])
        assert made.dim() == 2 and len(made) == 12 and made.dtype == torch.float32 and bool(made.isfinite().all())
        torch.testing.assert_close(made, alone)
        for metric in ("cosine", "euclidean"):
            x = nn.functional.normalize(made) if metric == "cosine" else made
            distance = feature.distance(x, x, metric)
            assert distance.shape == (12, 12) and torch.equal(distance.argmin(1), torch.arange(12))
            cfg.TEST.METRIC = metric
            evaluator = SAGAEvaluator(cfg, 4, layout=layout)
            ids = {"targets": torch.arange(12) % 4, "camids": torch.arange(12) // 4}
            evaluator.process(ids, raw)
            metrics = evaluator.evaluate()
            assert list(metrics)[:1] == ["Rank-1"] and np.isfinite(list(metrics.values())).all()
            assert torch.equal(raw, before)
