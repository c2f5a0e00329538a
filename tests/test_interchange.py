"""Backbones, heads and meta-architectures of the plug-in and of FastReID meet by config alone; each pair really
trains."""

from __future__ import annotations

import json

import pytest
import torch
from small_runs import ONE_STAGE, SMALL

from sagareid import get_cfg
from sagareid.config_checks import check_config
from sagareid.modeling import build
from sagareid.modeling.meta_arch import SAGABaseline
from sagareid.registry import computed_losses
from sagareid.structures import CLIPFeatures, as_features

from fastreid.modeling.heads import REID_HEADS_REGISTRY
from fastreid.modeling.meta_arch import build_model
from fastreid.utils.events import EventStorage

B, CLASSES, SIZE = 8, 4, (48, 24)
TARGETS = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
OUR_HEADS = sorted(n for n, h in REID_HEADS_REGISTRY._obj_map.items() if h.__module__.startswith("sagareid."))


def config(*opts):
    """The embedded CLIP's architecture with random weights on small images."""
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            "MODEL.META_ARCHITECTURE",
            "SAGABaseline",
            "MODEL.DEVICE",
            "cpu",
            "MODEL.BACKBONE.NAME",
            "build_clip_vit_backbone",
            "MODEL.CLIP.NAME",
            "ViT-XS-8-pedestrians",
            "MODEL.BACKBONE.FEAT_DIM",
            128,
            "MODEL.BACKBONE.STRIDE_SIZE",
            (8, 8),
            "MODEL.CLIP.TOKEN_LAYERS",
            [4],
            "INPUT.SIZE_TRAIN",
            list(SIZE),
            "INPUT.SIZE_TEST",
            list(SIZE),
            "MODEL.HEADS.NAME",
            "SAGAHead",
            "MODEL.HEADS.NUM_CLASSES",
            CLASSES,
            "MODEL.LOSSES.NAME",
            ("CrossEntropyLoss", "TripletLoss"),
            *opts,
        ]
    )
    check_config(cfg)
    return cfg


def batch(size=SIZE):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(B, 3, *size, generator=generator) * 255
    return {"images": images, "targets": TARGETS.clone(), "camids": torch.zeros(B, dtype=torch.long)}


def loss_of(model, data) -> dict[str, torch.Tensor]:
    with EventStorage():
        return model(data)


def of_head(head: str, *opts):
    """The config of a head, with the losses that it computes: identity and triplet loss, or what it has instead."""
    losses = computed_losses(SAGABaseline, REID_HEADS_REGISTRY.get(head))
    losses = [name for name in losses if name in ("CrossEntropyLoss", "TripletLoss")] or losses
    return config("MODEL.HEADS.NAME", head, "MODEL.LOSSES.NAME", losses, *opts)


@pytest.mark.parametrize("head", OUR_HEADS)
class TestEveryRegisteredHead:
    """The contract of a head; one that is registered later is tested without editing this file."""

    @pytest.fixture
    def model(self, head):
        torch.manual_seed(0)
        return build_model(of_head(head))

    def test_training_gives_scalar_losses_with_gradient(self, model):
        losses = loss_of(model, batch())
        assert losses and all(v.dim() == 0 and torch.isfinite(v) for v in losses.values())
        sum(losses.values()).backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in model.heads.parameters())

    def test_evaluation_gives_one_tensor_of_the_stated_layout(self, model):
        model.eval()
        with torch.no_grad():
            out = model(batch())
        assert out.shape == (B, sum(model.feature_layout.values())) and out.dtype == torch.float32

    def test_evaluation_treats_each_image_alone(self, model):
        model.eval()
        data = batch()
        with torch.no_grad():
            together = model(data)
            alone = torch.cat([model({k: v[i : i + 1] for k, v in data.items()}) for i in range(B)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)

    def test_the_batch_is_left_as_it_was(self, model):
        data = batch()
        model.eval()
        with torch.no_grad():
            first, second = model(data), model(data)
        assert torch.equal(data["images"], batch()["images"]) and torch.equal(first, second)

    def test_state_goes_through_a_file(self, model, head, tmp_path):
        model.eval()
        torch.save(model.state_dict(), tmp_path / "m.pth")
        torch.manual_seed(1)
        other = build.build_model(of_head(head), text_tower=False).eval()
        state = torch.load(tmp_path / "m.pth", weights_only=True)
        other.load_state_dict({k: v for k, v in state.items() if "text_encoder" not in k})
        with torch.no_grad():
            torch.testing.assert_close(model(batch()), other(batch()))


def host_backbone(name, width, *opts):
    return ["MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.FEAT_DIM", width, "MODEL.BACKBONE.PRETRAIN", False, *opts]


# of width 2048 the head is large: one layer and no domain anchors keep the test short
SLIM = ["MODEL.SAGA.REFINE_LAYERS", 1, "MODEL.SAGA.NUM_DOMAIN_ANCHORS", 0]

PAIRS = {
    "SAGAHead under FastReID's Baseline": ["MODEL.META_ARCHITECTURE", "Baseline"],
    "EmbeddingHead, GlobalAvgPool": [
        "MODEL.BACKBONE.OUTPUT",
        "map",
        "MODEL.HEADS.NAME",
        "EmbeddingHead",
        "MODEL.HEADS.POOL_LAYER",
        "GlobalAvgPool",
    ],
    "EmbeddingHead, GeM": [
        "MODEL.BACKBONE.OUTPUT",
        "map",
        "MODEL.HEADS.NAME",
        "EmbeddingHead",
        "MODEL.HEADS.POOL_LAYER",
        "GeneralizedMeanPooling",
    ],
    "EmbeddingHead, Identity on the class token": [
        "MODEL.BACKBONE.OUTPUT",
        "cls",
        "MODEL.HEADS.NAME",
        "EmbeddingHead",
        "MODEL.HEADS.POOL_LAYER",
        "Identity",
    ],
    "EmbeddingHead under FastReID's Baseline": [
        "MODEL.META_ARCHITECTURE",
        "Baseline",
        "MODEL.BACKBONE.OUTPUT",
        "map",
        "MODEL.HEADS.NAME",
        "EmbeddingHead",
        "MODEL.HEADS.POOL_LAYER",
        "GlobalAvgPool",
    ],
    "PatchPoolHead on FastReID's ResNet": [
        *host_backbone("build_resnet_backbone", 512, "MODEL.BACKBONE.DEPTH", "18x"),
        "MODEL.HEADS.NAME",
        "PatchPoolHead",
    ],
    "SAGAHead on FastReID's ResNet-50": host_backbone(
        "build_resnet_backbone", 2048, "MODEL.BACKBONE.DEPTH", "50x", *SLIM
    ),
    "SAGAHead on FastReID's ViT": host_backbone(
        "build_vit_backbone", 768, "MODEL.BACKBONE.DEPTH", "small", "MODEL.BACKBONE.STRIDE_SIZE", (16, 16)
    ),
    "SAGAHead on FastReID's ResNet-50 under its Baseline": [
        *host_backbone("build_resnet_backbone", 2048, "MODEL.BACKBONE.DEPTH", "50x", *SLIM),
        "MODEL.META_ARCHITECTURE",
        "Baseline",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("options", PAIRS.values(), ids=PAIRS.keys())
def test_pair_trains_and_evaluates_through_train_net(options, train_net, tmp_path):
    """Two steps and an evaluation by the real command; the weights of backbone and head have moved."""
    run = [
        *ONE_STAGE,
        *SMALL,
        *("INPUT.SIZE_TRAIN", list(SIZE), "INPUT.SIZE_TEST", list(SIZE), "SOLVER.IMS_PER_BATCH", 48),
        *"MODEL.BACKBONE.PRETRAIN False  SOLVER.AMP.ENABLED False  SOLVER.OPT Adam".split(),
        *("MODEL.LOSSES.NAME", "('CrossEntropyLoss','TripletLoss')", "OUTPUT_DIR", tmp_path),
        *options,
    ]
    assert train_net(*run) == 0
    [result] = json.loads((tmp_path / "results.json").read_text())
    assert 0 <= result["metrics"]["mAP"] <= 100
    from sagareid.engine import plans
    from sagareid.weights import load_state

    cfg = plans.plan("configs/SAGA/quickstart.yml", [str(o) for o in run[2:]])[0].cfg.clone()
    cfg.defrost()
    cfg.MODEL.HEADS.NUM_CLASSES = 12
    torch.manual_seed(0)
    fresh, trained = build_model(cfg).state_dict(), load_state(tmp_path / "model_final.pth")["model"]
    for part in ("backbone", "heads"):
        assert any(not torch.equal(fresh[k], trained[k]) for k in fresh if k.startswith(part) and k.endswith("weight"))


def test_flip_test_does_not_normalise_twice():
    """FastReID's Baseline normalises the batch in place; its flip test then forwards it again."""
    model = build_model(config()).eval()
    data = batch()
    with torch.no_grad():
        flipped_after = (model(data), model({**data, "images": data["images"].flip(3)}))[1]
        fresh = model({**batch(), "images": batch()["images"].flip(3)})
    torch.testing.assert_close(flipped_after, fresh)


def test_as_features():
    tokens = as_features(torch.arange(2 * 3 * 4.0).view(1, 3, 2, 4))
    assert tokens.grid == (2, 4) and tokens.patches.shape == (1, 8, 3)
    assert torch.equal(tokens.patches[0, 5], torch.tensor([5.0, 13.0, 21.0]))  # row-major
    with pytest.raises(TypeError, match="3-D tensor"):
        as_features(torch.zeros(1, 2, 3))
    with pytest.raises(ValueError, match="expected 8"):
        CLIPFeatures(patches=torch.zeros(1, 7, 3), grid=(2, 4))


@pytest.mark.parametrize(
    "options, message",
    [
        (
            ["MODEL.HEADS.NAME", "CLSHead", "MODEL.BACKBONE.OUTPUT", "map"],
            "CLSHead reads the class token: .* or build_timm_backbone",
        ),
        (["MODEL.CLIP.TOKEN_LAYERS", [1, 2], "MODEL.SAGA.NUM_ANCHORS", 3], "even MODEL.SAGA.NUM_ANCHORS"),
        (["MODEL.LOSSES.NAME", ("Nothing",)], "CrossEntropyLoss"),
        (["SOLVER.SCHED", "WarmupCosineLR"], "set SOLVER.WARMUP_ITERS 0"),
        (["MODEL.CLIP.SIE_CAMERA", True, "MODEL.META_ARCHITECTURE", "Baseline"], "SAGABaseline"),
        (["INPUT.AFFINE.ENABLED", True], "INPUT.AFFINE"),
        (["SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float16"], "auto or bfloat16 on the CPU"),
    ],
)
def test_combinations_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(*options)
