"""FastReID's own backbones: a pretrained file fills them or stops the run, and cannot run code."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from sagareid import get_cfg
from sagareid.compat.pretraining import checked_pretraining
from sagareid.modeling.build import build_model
from sagareid.modeling.foreign.loaders import for_loader

import fastreid
from fastreid.modeling.backbones import build_backbone

# backbone -> (DEPTH, the level that its loader looks under, what its loader takes off each name)
BACKBONES = {
    "resnet": ("18x", None, ""),
    "osnet": ("x0_25", None, ""),
    "resnest": ("50x", None, ""),
    "resnext": ("50x", "model", "module.encoder."),
    "shufflenetv2": ("0.5x", "state_dict", "module."),
    "mobilenetv2": ("0.25x", None, ""),
    "mobilenetv3": ("Small", None, ""),
    "repvgg": ("A0", None, ""),
    "regnet": ("200x", None, ""),
    "effnet": ("b0", "model_state", ""),
    "vit": ("small", None, ""),
}


def config(name: str, path: Path | None = None, **backbone):
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.DEPTH = f"build_{name}_backbone", BACKBONES[name][0]
    cfg.INPUT.SIZE_TRAIN = cfg.INPUT.SIZE_TEST = [64, 32]
    for key, value in backbone.items():
        cfg.MODEL.BACKBONE[key] = value
    if path is not None:
        cfg.MODEL.BACKBONE.PRETRAIN, cfg.MODEL.BACKBONE.PRETRAIN_PATH = True, str(path)
    return cfg


@pytest.fixture(autouse=True)
def beside_fastreid(monkeypatch):
    """The RegNets read their settings relative to the folder above FastReID's."""
    monkeypatch.chdir(Path(fastreid.__file__).parents[1])


def build(cfg):
    with checked_pretraining(for_loader):
        return build_backbone(cfg)


def write(folder: Path, name: str, state) -> Path:
    _, level, prefix = BACKBONES[name]
    state = {prefix + k: v for k, v in state.items()}
    torch.save({level: state} if level else state, folder / "w.pth")
    return folder / "w.pth"


@pytest.mark.parametrize("name", BACKBONES)
def test_its_own_file_fills_it(name, tmp_path):
    """With the classifier that an ImageNet file has beside the backbone."""
    torch.manual_seed(0)
    state = build_backbone(config(name)).state_dict()
    path = write(tmp_path, name, state | {"fc.weight": torch.zeros(1000, 8)})
    torch.manual_seed(1)
    filled = build(config(name, path)).state_dict()
    assert all(torch.equal(filled[k], v) for k, v in state.items())


@pytest.mark.parametrize("name", BACKBONES)
def test_a_file_of_another_model_stops_the_run(name, tmp_path):
    """Its names, as TransReID's; some of its own, as a file that was cut off; and its own in another shape."""
    state = build_backbone(config(name)).state_dict()
    first = next(k for k, v in state.items() if v.dim() > 1)
    foreign = {f"base.blocks.{i}.norm1.weight": torch.ones(4) for i in range(3)}
    part = dict(list(state.items())[: len(state) // 2])
    for wrong, message in (
        (foreign, "weights are missing, such as"),
        (part, "weights are missing, such as"),
        (state | {first: torch.zeros(2, 2)}, "have another shape|weights are missing|another shape, such as"),
    ):
        if name == "vit" and first in wrong and wrong[first].shape == (2, 2):
            continue  # its loader resizes position embeddings
        with pytest.raises(ValueError, match=rf"w.pth (does not fill|is) .*({message}|tensors are missing)"):
            build(config(name, write(tmp_path, name, wrong)))


def test_the_model_that_trained_from_random_weights(tmp_path):
    """A ViT was fed a TransReID file, all of whose names begin with "base."; now it is read, whole or not at all."""
    torch.manual_seed(0)
    own = build_backbone(config("vit")).state_dict()
    state = {f"base.{k}": v for k, v in own.items()} | {"classifier.weight": torch.zeros(7, 768)}
    torch.save(state, tmp_path / "transreid.pth")
    cfg = config("vit", tmp_path / "transreid.pth", FEAT_DIM=768)
    cfg.MODEL.HEADS.NUM_CLASSES, cfg.MODEL.HEADS.POOL_LAYER = 2, "Identity"
    filled = build_model(cfg).backbone.state_dict()
    assert all(torch.equal(filled[k], v) for k, v in own.items())
    torch.save({k: v for k, v in state.items() if "blocks.3.norm1" not in k}, tmp_path / "transreid.pth")
    with pytest.raises(ValueError, match=r"2 of its \d+ tensors are missing: base.blocks.3.norm1.weight") as caught:
        build_model(cfg)
    assert "\x1b" not in str(caught.value)
    torch.save(state | {"extra.weight": torch.zeros(1)}, tmp_path / "transreid.pth")
    with pytest.raises(ValueError, match="with 1 tensors that this layout does not have: extra.weight"):
        build_model(cfg)


@pytest.mark.parametrize("name", ["resnet", "resnext", "shufflenetv2"])
@pytest.mark.parametrize("wrapper", ["state_dict", "model", "teacher", "module.", "whole model"])
def test_wrappers_come_off(name, wrapper, tmp_path):
    torch.manual_seed(0)
    state = build_backbone(config(name)).state_dict()
    content = {
        "module.": {f"module.{k}": v for k, v in state.items()},
        "whole model": {"model": {f"backbone.{k}": v for k, v in state.items()} | {"heads.weight": torch.zeros(2, 2)}},
    }.get(wrapper, {wrapper: state, "epoch": 3})
    if {"resnext": "model", "shufflenetv2": "state_dict"}.get(name) in content:
        return  # its own level, whose names it takes as they are
    torch.save(content, tmp_path / "w.pth")
    filled = build(config(name, tmp_path / "w.pth")).state_dict()
    assert all(torch.equal(filled[k], v) for k, v in state.items())


def test_non_local_blocks_are_in_no_file(tmp_path):
    plain = config("resnet", DEPTH="50x")
    path = write(tmp_path, "resnet", build_backbone(plain).state_dict())
    build(config("resnet", path, DEPTH="50x", WITH_NL=True))
    with pytest.raises(ValueError, match="does not fill ResNet"):
        build(config("resnet", path, DEPTH="50x", WITH_IBN=True))


def test_a_download_that_fits_in_part_is_noticed(tmp_path, monkeypatch):
    """OSNet's loader of downloads puts the file's weights among the model's own, so that nothing is ever missing."""
    state = dict(list(build_backbone(config("osnet")).state_dict().items())[:20])
    folder = tmp_path / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / "osnet_x0_25_imagenet.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    cfg = config("osnet")
    cfg.MODEL.BACKBONE.PRETRAIN = True
    with pytest.raises(ValueError, match="osnet_x0_25_imagenet.pth does not fill OSNet"):
        build(cfg)


def test_no_file_at_all(tmp_path):
    cfg = config("vit")
    cfg.MODEL.BACKBONE.PRETRAIN = True
    with pytest.raises(FileNotFoundError, match="PRETRAIN_PATH is empty and FastReID has nothing to download"):
        build(cfg)
    with pytest.raises(FileNotFoundError, match="no weights file at .*nowhere.pth"):
        build(config("resnet", tmp_path / "nowhere.pth"))


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", BACKBONES)
def test_code_in_a_file_does_not_run(name, tmp_path, monkeypatch):
    """Whatever torch's default is: as if it were the one before torch 2.6."""
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda f, *a, **k: load(f, *a, **({"weights_only": False} | k)))
    torch.save({"x": Hostile(tmp_path / "ran"), "model": {}, "state_dict": {}, "model_state": {}}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="was refused: it needs Python code"):
        build(config(name, tmp_path / "w.pth"))
    assert not (tmp_path / "ran").exists()


def test_the_hubs_own_switch_is_not_believed(tmp_path, monkeypatch):
    """torch.hub loads what it downloads with weights_only off."""
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"x": Hostile(tmp_path / "ran")}, folder / "w.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with checked_pretraining(), pytest.raises(ValueError, match="was refused"):
        torch.hub.load_state_dict_from_url("https://example.invalid/w.pth")
    assert not (tmp_path / "ran").exists()


def test_the_scope_ends(tmp_path):
    before = torch.load, torch.nn.Module.load_state_dict
    with pytest.raises(RuntimeError), checked_pretraining():
        raise RuntimeError
    assert before == (torch.load, torch.nn.Module.load_state_dict)


def test_others_keep_their_own_loading():
    """A backbone of a user's that fills itself in part, as it means to."""
    with checked_pretraining():
        model = torch.nn.Linear(2, 2)
        assert model.load_state_dict({"weight": torch.ones(2, 2)}, strict=False).missing_keys == ["bias"]
