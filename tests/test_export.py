"""Export: every head and every option runs in onnxruntime as in PyTorch, at any batch size; a wrong file is not
kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import open_clip
import pytest
import torch
from PIL import Image

from sagareid import Extractor, get_cfg
from sagareid.benchmarks import exported
from sagareid.config import reads_cameras
from sagareid.config_checks import check_config
from sagareid.deploy import export, formats
from sagareid.deploy.feature_model import FeatureModel
from sagareid.deploy.load import load_model
from sagareid.deploy.options import FORMATS, TOLERANCE
from sagareid.deploy.traced import Traced
from sagareid.engine import plans
from sagareid.engine.trainer import SAGATrainer
from sagareid.modeling.build import build_model

from fastreid.modeling.heads import REID_HEADS_REGISTRY

OUR_HEADS = sorted(n for n, h in REID_HEADS_REGISTRY._obj_map.items() if h.__module__.startswith("sagareid."))
ABLATIONS = sorted((Path(__file__).parents[1] / "configs/SAGA/ablations").glob("*.yml"))


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> str:
    """An architecture of two blocks of width 32: what an option does to the graph shows at any size."""
    dims = {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 32, "layers": 2, "head_width": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    }
    file = tmp_path_factory.mktemp("clip") / "ViT-two-blocks.json"
    file.write_text(json.dumps(dims))
    open_clip.add_model_config(file)
    return file.stem


def tiny_options(name: str) -> list:
    return [
        "MODEL.DEVICE",
        "cpu",
        "MODEL.CLIP.NAME",
        name,
        "MODEL.BACKBONE.FEAT_DIM",
        32,
        "MODEL.BACKBONE.STRIDE_SIZE",
        (8, 8),
        "MODEL.BACKBONE.PRETRAIN",
        False,
        "MODEL.SAGA.NUM_HEADS",
        4,
        "INPUT.SIZE_TRAIN",
        [48, 16],
        "INPUT.SIZE_TEST",
        [48, 16],
        "MODEL.HEADS.NUM_CLASSES",
        3,
        "MODEL.WEIGHTS",
        "",
    ]


def built(cfg):
    """(cfg, model) as `load_model` gives them, its anchors stored and the text tower gone; random weights."""
    check_config(cfg)
    torch.manual_seed(0)
    model = SAGATrainer.build_model(cfg).eval()
    state = {k: v for k, v in model.state_dict().items() if "text_encoder" not in k}  # reading it stores the anchors
    slim = build_model(cfg, text_tower=False).eval()
    slim.load_state_dict(state)
    return cfg, slim


def plugin_config(name, *opts):
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            "MODEL.META_ARCHITECTURE",
            "SAGABaseline",
            "MODEL.BACKBONE.NAME",
            "build_clip_vit_backbone",
            "MODEL.CLIP.TOKEN_LAYERS",
            [1],
            "MODEL.HEADS.NAME",
            "SAGAHead",
            "MODEL.LOSSES.NAME",
            ("CrossEntropyLoss",),
            *tiny_options(name),
            *opts,
        ]
    )
    return cfg


_seen: dict[str, export.Exported] = {}


def what_evaluation_reads(cfg) -> str:
    """The part of a config that changes the operations of the graph, not their sizes alone: others share one export."""
    training = ("DROPOUT", "CLASSIFIER_DROPOUT", "NUM_CLASSIFIERS", "INIT_BLOCK", "PHRASE_CONTEXT", "NUM_ANCHORS")
    saga = {k: v for k, v in cfg.MODEL.SAGA.items() if k not in training}
    return str([saga, dict(cfg.MODEL.CLIP), cfg.MODEL.HEADS.NECK_FEAT, dict(cfg.TEST)])


@pytest.mark.slow
@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_every_option_exports(path, tiny_clip, tmp_path):
    cfg = plans.plan(path)[-1].cfg.clone()
    cfg.defrost()
    layers = [1, 2] if path.stem == "two_path" else [2]
    stride = (8, 8) if path.stem in ("stride_16", "v1") else (6, 6)  # of patches of 8: as published, others overlap
    cfg.merge_from_list(
        [*tiny_options(tiny_clip), "MODEL.CLIP.TOKEN_LAYERS", layers, "MODEL.BACKBONE.STRIDE_SIZE", stride]
    )
    cfg.MODEL.CLIP.CAMERAS = ["a_1", "a_2", "b_1"] if reads_cameras(cfg) else []
    key = what_evaluation_reads(cfg)
    if key not in _seen:
        target = "generic" if cfg.MODEL.CLIP.CAMERAS else "opencv"  # checked in OpenCV, where it can be
        _seen[key] = export.export(*built(cfg), tmp_path / "model.onnx", target=target)
        metadata = export.load_exported(tmp_path / "model.onnx")[1]
        assert metadata["cameras"] == cfg.MODEL.CLIP.CAMERAS and metadata["feature"] == "fusion"
        names = [t.name for t in onnx.load(tmp_path / "model.onnx").graph.initializer]
        assert not [n for n in names if "text_encoder" in n or "classifier" in n or "context" in n]
    done = _seen[key]
    assert set(done.difference) == set(export.CHECKED_BATCHES) and max(done.difference.values()) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
@pytest.mark.parametrize("head", OUR_HEADS)
def test_every_head_exports(head, format, tiny_clip, tmp_path):
    """A head that is registered later is tested without editing this file."""
    losses = ("SupConLoss",) if head == "PromptHead" else ("CrossEntropyLoss",)
    cfg, model = built(plugin_config(tiny_clip, "MODEL.HEADS.NAME", head, "MODEL.LOSSES.NAME", losses))
    path = tmp_path / f"model{FORMATS[format]}"
    done = export.export(cfg, model, path, format=format)
    run, metadata = export.load_exported(path)
    images = torch.rand(5, 3, 48, 16) * 255
    with torch.no_grad():
        expected = FeatureModel(cfg, model)(images)
    torch.testing.assert_close(run(images)[0], expected, rtol=0, atol=1e-5)
    assert metadata["input_size"] == [48, 16] and metadata["width"] == expected.shape[1]
    assert done.bytes == path.stat().st_size and done.parameters > 0


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_cameras_attention_and_flip(format, tiny_clip, tmp_path):
    """Everything at once: a second input, a second output, and two passes inside."""
    cfg, model = built(
        plugin_config(
            tiny_clip,
            "MODEL.CLIP.SIE_CAMERA",
            True,
            "MODEL.CLIP.CAMERAS",
            ["a_1", "b_1"],
            "MODEL.BACKBONE.SIE_COE",
            9.0,
            "MODEL.SAGA.DOMAIN_ANCHORS",
            "camera",
            "TEST.FLIP.ENABLED",
            True,
        )
    )
    path = tmp_path / f"model{FORMATS[format]}"
    export.export(cfg, model, path, format=format, attention=True)
    run, metadata = export.load_exported(path)
    assert metadata["cameras"] == ["a_1", "b_1"] and metadata["flip"] is True
    if format == "torch-export":  # weights that no image meets are left out
        assert not [n for n in torch.export.load(path).state_dict if "context" in n or "classifier" in n]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 16, 3), np.uint8))
    extractor = Extractor(cfg, model)
    features, maps = extractor([picture] * 3, cameras=["a_1", "b_1", None], attention=True)
    images = torch.tensor(np.asarray(picture)).permute(2, 0, 1).float().expand(3, -1, -1, -1).contiguous()
    found = run(images, torch.tensor([0, 1, -1]))
    torch.testing.assert_close(found[0], features, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[1], maps, rtol=0, atol=1e-5)
    assert not torch.allclose(found[0][0], found[0][1], atol=1e-4) and maps.shape[1] == len(metadata["anchors"])


@pytest.mark.slow
def test_an_onnx_file_speaks_for_itself(tiny_run, tiny_root, tmp_path):
    """onnxruntime alone, from the file's own metadata, gives the extractor's features of an image."""
    cfg, model = load_model(tiny_run, device="cpu")
    export.export(cfg, model, tmp_path / "model.onnx", source={"checkpoint_sha256": "abc"})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    height, width = json.loads(metadata["input_size"])
    assert [i.name for i in session.get_inputs()] == ["images"] and session.get_inputs()[0].shape == [
        "batch",
        3,
        height,
        width,
    ]
    assert metadata["checkpoint_sha256"] == "abc" and len(json.loads(metadata["anchors"])) == 24
    assert json.loads(metadata["mean"]) == list(cfg.MODEL.PIXEL_MEAN) and "RGB in 0..255" in metadata["input"]
    files = sorted((tiny_root / "synthetic_pedestrians/query").iterdir())[:3]
    resize = Image.Resampling[metadata["resize"].upper()]
    pixels = [np.asarray(Image.open(f).convert("RGB").resize((width, height), resize)) for f in files]
    images = np.stack(pixels).transpose(0, 3, 1, 2).astype(np.float32)
    [features] = session.run(None, {"images": images})
    torch.testing.assert_close(torch.tensor(features), Extractor(cfg, model)(files), rtol=0, atol=1e-5)
    raw = (tmp_path / "model.onnx").read_bytes()
    assert b"sagareid/modeling" not in raw and b"site-packages" not in raw  # no trace of the machine that made it


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["float16", "int8"])
def test_smaller_variants(variant, tiny_clip, tmp_path, tiny_root, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    cfg, model = built(plugin_config(tiny_clip, "MODEL.HEADS.NAME", "PatchPoolHead", "DATALOADER.NUM_WORKERS", 0))
    weights = 4 * sum(v.numel() for v in model.backbone.state_dict().values())
    small = export.export(cfg, model, tmp_path / "small.onnx", variant=variant)
    stored = [onnx.numpy_helper.to_array(t) for t in onnx.load(small.path).graph.initializer]
    assert sum(a.nbytes for a in stored) < 0.6 * weights
    assert 1e-6 < max(small.difference.values()) < TOLERANCE[variant]
    if variant == "int8":  # 7 bits, whatever CPU this test runs on: see the writer
        assert max(np.abs(a.astype(int)).max() for a in stored if a.dtype == np.int8 and a.ndim == 2) <= 64
    ranking = exported.compare_ranking(cfg, model, small, "SyntheticPedestrians")
    assert abs(ranking["pytorch"]["mAP"] - ranking[variant]["mAP"]) < 3
    with pytest.raises(ValueError, match="made of ONNX only"):
        export.export(cfg, model, tmp_path / "small.pt", format="torchscript", variant=variant)


@pytest.mark.slow
def test_ranking_is_the_evaluators(tiny_run, tiny_root, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTREID_DATASETS", str(tiny_root))
    cfg, model = load_model(tiny_run, device="cpu")
    done = export.export(cfg, model, tmp_path / "model.pt", format="torchscript")
    ranking = exported.compare_ranking(cfg, model, done, "SyntheticPedestrians")
    [result] = json.loads((tiny_run / "results.json").read_text())
    for metrics in ranking.values():
        assert metrics["mAP"] == pytest.approx(result["metrics"]["mAP"], abs=0.05)


def test_a_file_that_differs_is_not_kept(tiny_clip, tmp_path, monkeypatch):
    cfg, model = built(plugin_config(tiny_clip, "MODEL.HEADS.NAME", "PatchPoolHead"))
    path = tmp_path / "model.pt"
    path.write_text("an earlier one")
    monkeypatch.setitem(TOLERANCE, "float32", -1.0)
    with pytest.raises(RuntimeError, match="differs from PyTorch by .*; no file was kept"):
        export.export(cfg, model, path, format="torchscript")
    assert path.read_text() == "an earlier one" and list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("shape", [(1, 3, 64, 16), (1, 3, 48, 24), (2, 3, 16, 48), (1, 1, 48, 16), (3, 48, 16)])
def test_a_file_refuses_images_of_another_size(format, shape, exports):
    """A convolutional network would compute something of them."""
    run = exports[format]
    assert run(torch.zeros(1, 3, 48, 16))[0].shape[0] == 1
    said = {
        "onnx": "[Ii]nvalid dimensions|Invalid rank",
        "torchscript": r"images are .*; expected \(B, 3, 48, 16\)",
        "torch-export": "Guard failed|Expected input",
    }
    with pytest.raises(Exception, match=said[format]):
        run(torch.zeros(shape))


@pytest.fixture(scope="module")
def convolutional():
    cfg = get_cfg()
    cfg.merge_from_list(
        [
            "MODEL.META_ARCHITECTURE",
            "Baseline",
            "MODEL.BACKBONE.NAME",
            "build_resnet_backbone",
            "MODEL.BACKBONE.DEPTH",
            "18x",
            "MODEL.BACKBONE.FEAT_DIM",
            512,
            "MODEL.BACKBONE.PRETRAIN",
            False,
            "MODEL.HEADS.NAME",
            "EmbeddingHead",
            "MODEL.HEADS.NUM_CLASSES",
            4,
            "MODEL.DEVICE",
            "cpu",
            "INPUT.SIZE_TRAIN",
            [48, 16],
            "INPUT.SIZE_TEST",
            [48, 16],
        ]
    )
    torch.manual_seed(0)
    return cfg, SAGATrainer.build_model(cfg).eval()


@pytest.fixture(scope="module")
def exports(convolutional, tmp_path_factory):
    """A convolutional network, which has no size of its own, in each format."""
    runs, folder = {}, tmp_path_factory.mktemp("exports")
    for format, suffix in FORMATS.items():
        export.export(*convolutional, folder / f"model{suffix}", format=format)
        runs[format] = formats.open_file(folder / f"model{suffix}", format)[0]
    return runs


@pytest.mark.slow
def test_a_size_by_option(convolutional, tiny_clip, tmp_path):
    cfg, model = convolutional
    other = export.at_size(cfg, model, [64, 32])
    export.export(other, model, tmp_path / "model.pt", format="torchscript")
    run, metadata = export.load_exported(tmp_path / "model.pt")
    images = torch.rand(2, 3, 64, 32) * 255
    with torch.no_grad():
        torch.testing.assert_close(run(images)[0], FeatureModel(other, model)(images), rtol=0, atol=1e-5)
    assert metadata["input_size"] == [64, 32] and list(cfg.INPUT.SIZE_TEST) == [48, 16]
    cfg, model = built(plugin_config(tiny_clip))
    with pytest.raises(ValueError, match=r"size \[64, 32\]: backbone.*position.* made for \[48, 16\]. Train it with"):
        export.at_size(cfg, model, [64, 32])
    assert list(export.at_size(cfg, model, [48, 16]).INPUT.SIZE_TEST) == [48, 16]


def test_a_wrong_shape_is_an_error(tiny_clip):
    traced = Traced(FeatureModel(*built(plugin_config(tiny_clip, "MODEL.HEADS.NAME", "PatchPoolHead"))), False)
    done = export.Exported(None, "onnx", "float32", 0, 0, 0)
    with pytest.raises(RuntimeError, match="shapes"):
        export._check(traced, lambda images: [torch.zeros(len(images), 1)], done)


def test_errors(tiny_clip, tmp_path):
    cfg, model = built(plugin_config(tiny_clip, "MODEL.HEADS.NAME", "PatchPoolHead"))
    with pytest.raises(ValueError, match="no anchors' attention"):
        export.export(cfg, model, tmp_path / "model.onnx", attention=True)
    with pytest.raises(ValueError, match="no format has the suffix '.bin'"):
        formats.format_of("model.bin")
    assert not list(tmp_path.iterdir())


def test_the_model_is_left_as_it_was(tiny_clip, tmp_path):
    cfg, model = built(plugin_config(tiny_clip))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    export.export(cfg, model, tmp_path / "model.pt", format="torchscript")
    after = model.state_dict()
    assert set(after) == set(before) and all(torch.equal(v, after[k]) for k, v in before.items())


@pytest.mark.slow
def test_tool(tiny_run, tmp_path, run_tool):
    words = (tiny_run, "-o", tmp_path / "model.pt", "--evaluate", "SyntheticPedestrians", "--batch-sizes", 1)
    code, out, _ = run_tool("export.py", *words)
    assert code == 0
    for part in (
        "torchscript float32",
        "largest difference from PyTorch",
        "PyTorch / it",
        "Rank-1",
        str(tmp_path / "model.pt"),
    ):
        assert part in out
    code, _, error = run_tool("export.py", tmp_path / "nothing", "-o", tmp_path / "other.pt")
    assert code == 1 and error.startswith("error: no checkpoint at")
