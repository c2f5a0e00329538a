"""What deploy does, for every head and backbone that can be trained: embed, adapters, visibility, calibrate, export.

ONNX of every head is in test_export.py; here it is TorchScript, which takes no time, and ONNX of FastReID's families.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from test_interchange import OUR_HEADS, SIZE, config, of_head
from test_timm_backbone import options as timm_options
from torch import nn

from sagareid import Extractor
from sagareid.config_checks import DEPTHS
from sagareid.deploy.adapters import BoxMOTReID, UltralyticsReID
from sagareid.deploy.calibrate import calibrate
from sagareid.deploy.export import export, load_exported
from sagareid.deploy.load import load_model
from sagareid.deploy.visibility import BANDS, Readout
from sagareid.modeling.build import build_model

from fastreid.modeling.backbones import BACKBONE_REGISTRY
from fastreid.modeling.heads import REID_HEADS_REGISTRY

EMBEDDING = ("MODEL.HEADS.NAME", "EmbeddingHead", "MODEL.HEADS.POOL_LAYER")
# FastReID's backbones: depth, and the width that it gives
HOST = {
    "build_resnet_backbone": ("18x", 512),
    "build_osnet_backbone": ("x0_25", 128),
    "build_vit_backbone": ("small", 768),
    "build_resnext_backbone": ("50x", 2048),
    "build_resnest_backbone": ("50x", 2048),
    "build_mobilenetv2_backbone": ("0.1x", 1280),
    "build_mobilenetv3_backbone": ("Small", 1024),
    "build_shufflenetv2_backbone": ("0.5x", 1024),
    "build_repvgg_backbone": ("A0", 1280),
    "build_regnet_backbone": ("200x", 368),
    "build_effnet_backbone": ("b0", 384),
}
QUICK = ("build_resnet_backbone", "build_osnet_backbone", "build_vit_backbone")
ON_CLIP = {
    **{name: [] for name in OUR_HEADS},
    "EmbeddingHead, map": ["MODEL.BACKBONE.OUTPUT", "map", *EMBEDDING, "GeneralizedMeanPooling"],
    "EmbeddingHead, cls": ["MODEL.BACKBONE.OUTPUT", "cls", *EMBEDDING, "Identity"],
}
FRAME = np.random.default_rng(0).integers(0, 256, (96, 120, 3), np.uint8)
BOXES = np.array([[0, 0, 40, 80], [30, 20, 90, 96], [100, 10, 130, 70]], np.float32)


def on_host(name: str, arch: str = "Baseline"):
    depth, width = HOST[name]
    return config(
        *("MODEL.BACKBONE.NAME", name, "MODEL.BACKBONE.DEPTH", depth, "MODEL.BACKBONE.FEAT_DIM", width),
        *("MODEL.BACKBONE.PRETRAIN", False, "MODEL.BACKBONE.STRIDE_SIZE", (16, 16), "MODEL.META_ARCHITECTURE", arch),
        *(*EMBEDDING, "GlobalAvgPool"),
    )  # fmt: skip


@pytest.fixture
def saved(tmp_path, tiny_root, monkeypatch):
    """The folder of a run as training leaves it, with random weights and a read-out that says the same of everybody."""

    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))

    def make(cfg):
        torch.manual_seed(0)
        folder, model = tmp_path / "run", build_model(cfg)
        folder.mkdir()
        if cfg.MODEL.BACKBONE.NAME in HOST:  # statistics of a batch: with none, the signal of some families dies out
            for module in model.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.momentum = None
            with torch.no_grad():
                model.backbone.train()(torch.randn(8, 3, *SIZE))
            for module in model.backbone.modules():
                if isinstance(module, nn.BatchNorm2d):  # pooled values are alike, and float32 coarse by as much
                    module.running_var.clamp_(min=0.1)
        torch.save({"model": model.state_dict(), "config": cfg.dump()}, folder / "model_final.pth")
        Readout(channels=4).save(folder / "visibility.safetensors", {})
        return folder

    return make


def check(folder, tmp_path, batch: int | None = None) -> Extractor:
    """All of it from the folder alone. batch: the one size that the exported file takes."""
    extractor = Extractor.from_checkpoint(folder, device="cpu")
    plain = extractor.embed(FRAME, BOXES)
    assert plain.shape == (3, extractor.width) and bool(plain.isfinite().all())
    torch.testing.assert_close(plain.norm(dim=1), torch.ones(3))
    features, seen = extractor.embed(FRAME, BOXES, visibility=True)
    torch.testing.assert_close(features, plain, atol=1e-6, rtol=0)
    assert seen.crop.shape == (3,) and seen.sixths.shape == (3, BANDS) and 0 < seen.crop.min() <= seen.crop.max() <= 1
    assert extractor.compare(plain[:1], plain).shape == (1, 3)
    assert np.allclose(BoxMOTReID(extractor).get_features(BOXES, FRAME), plain, atol=1e-6)
    centred = np.hstack([(BOXES[:, :2] + BOXES[:, 2:]) / 2, BOXES[:, 2:] - BOXES[:, :2]])
    assert np.allclose(np.stack(UltralyticsReID(extractor)(FRAME, centred)), plain, atol=1e-6)
    found = calibrate(extractor, "SyntheticPedestrians", fmr=0.1, resamples=2)
    assert -1 <= found["threshold"] <= 1 and found["checkpoint_sha256"] == extractor.checkpoint_sha256
    model = load_model(folder, device="cpu")
    done = export(*model, tmp_path / "person.torchscript", target="boxmot", batch=batch)
    assert json.loads(done.side_files[0].read_text())
    run, metadata = load_exported(done.path)
    images = torch.rand(2, 3, *extractor.size) * 255
    torch.testing.assert_close(run(images)[0], extractor(images), atol=1e-4, rtol=0)
    assert metadata["width"] == extractor.width
    return extractor


@pytest.mark.parametrize("name", ON_CLIP)
def test_every_head_on_clip(name, saved, tmp_path):
    cfg = config(*ON_CLIP[name]) if ON_CLIP[name] else of_head(name)
    extractor = check(saved(cfg), tmp_path)
    if not extractor.anchor_names:
        with pytest.raises(ValueError, match="has no anchors' attention; SAGAHead under SAGABaseline has"):
            extractor([FRAME], attention=True)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in HOST])
def test_every_backbone_of_fastreid(name, saved, tmp_path):
    folder, batch = saved(on_host(name)), None
    if name == "build_shufflenetv2_backbone":  # its channel_shuffle makes a number of the traced batch size
        with pytest.raises(RuntimeError, match="does not run at a batch of 1: .* for one size with --batch"):
            check(folder, tmp_path)
        batch = 2
    check(folder, tmp_path, batch)


@pytest.mark.parametrize("name", ["vit_base_patch14_reg4_dinov2", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_families_of_timm(name, saved, tmp_path):
    check(saved(config(*timm_options(name))), tmp_path)


def test_every_registered_part_is_tested_here():
    own = {"build_clip_vit_backbone", "build_timm_backbone"}
    assert set(HOST) | own == set(BACKBONE_REGISTRY._obj_map)
    hosts = {n for n, part in BACKBONE_REGISTRY._obj_map.items() if part.__module__.startswith("fastreid.")}
    assert hosts == set(HOST) == set(DEPTHS)
    heads = {n for n, part in REID_HEADS_REGISTRY._obj_map.items() if part.__module__.startswith("fastreid.")}
    assert heads == {"EmbeddingHead", "ClasHead"}  # the second classifies images, and has no feature to rank by


@pytest.mark.slow
@pytest.mark.parametrize("name", ["build_osnet_backbone", "build_vit_backbone"])
def test_onnx_of_fastreids_backbones(name, saved, tmp_path):
    folder = saved(on_host(name, "SAGABaseline"))
    done = export(*load_model(folder, device="cpu"), tmp_path / "person.onnx")
    assert done.cosine < 1e-5


def test_mgn_has_ways_of_its_own(saved, tmp_path):
    """FastReID's MGN has branches in the place of a head: it embeds, is exported, and gives no patches."""
    options = ("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.BACKBONE.DEPTH", "50x")
    cfg = config(
        *(*options, "MODEL.BACKBONE.FEAT_DIM", 2048, "MODEL.BACKBONE.PRETRAIN", False),
        *("MODEL.META_ARCHITECTURE", "MGN", *EMBEDDING, "GlobalAvgPool", "MODEL.HEADS.EMBEDDING_DIM", 8),
    )  # fmt: skip
    extractor = check(saved(cfg), tmp_path)
    assert extractor.head is None and extractor.anchor_names == []
    with pytest.raises(ValueError, match="MGN has a way of its own from images to features"):
        extractor.tower(torch.zeros(1, 3, *SIZE))
    with pytest.raises(ValueError, match="MGN has no anchors' attention"):
        extractor([FRAME], attention=True)
